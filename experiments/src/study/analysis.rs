//! From the finished runs of a study to its result.

use super::evidence::{AXES, Evidence};
use super::family;
use super::judged::{Judged, is_comparable, over_documents};
use super::matrix::Stage;
use super::metric::JudgedSplit;
use super::pairs::Pair;
use super::result::{
    ArmComparison, ArmResult, Axis, AxisComparison, EffectiveSpeedup, Provenance, Question, StudyResult,
    TimeToLoss,
};
use super::trust::call_fragile;
use super::words;
use crate::statistics::{Gauge, GaugeSample, PairedDifference, RatioEstimate, SignedRankInterval, Verdict};

/// How far beyond its smallest and largest budget the baseline's loss is still read.
const BEYOND_BUDGETS: f64 = 1.3;

/// The result of the study as far as its runs are finished.
pub(crate) fn analyse(evidence: &Evidence<'_>, provenance: Provenance) -> StudyResult {
    let study = &evidence.loaded.study;
    let question = evidence.loaded.question();
    let arms: Vec<ArmResult> = (0..evidence.arms.len()).map(|index| evidence.arm_result(index)).collect();
    let mut comparisons: Vec<ArmComparison> =
        (1..evidence.arms.len()).map(|index| evidence.comparison(index, &question)).collect();
    family::adjust(&mut comparisons, &question, evidence.stopping);
    let baseline = &study.arms[0].label;
    for (index, comparison) in (1..).zip(&mut comparisons) {
        evidence.withhold_verdicts(index, comparison);
        call_fragile(comparison, &question, evidence.stopping);
        let arm = &comparison.arm;
        for on in &mut comparison.axes {
            on.sentence = words::axis_sentence([arm, baseline], on, &question, evidence.stopping);
        }
    }
    let verdict = overall(&comparisons, question.axis);
    StudyResult {
        study: study.name.clone(),
        headline: words::headline(&comparisons, &arms, verdict, &question),
        verdict,
        unequal: words::unequal(&arms),
        notes: words::notes(evidence, &comparisons),
        stopping: evidence.stopping,
        held_equal: study.held_equal,
        question,
        baseline: baseline.clone(),
        arms,
        comparisons,
        provenance,
    }
}

/// `wins` if any arm wins, else `fragile` if any is, `loses` if all lose, else undecided.
fn overall(comparisons: &[ArmComparison], axis: Axis) -> Verdict {
    let verdicts: Vec<Verdict> =
        comparisons.iter().map(|arm| arm.on(axis).map_or(Verdict::Undecided, |on| on.verdict)).collect();
    match &verdicts[..] {
        verdicts if verdicts.contains(&Verdict::Wins) => Verdict::Wins,
        verdicts if verdicts.contains(&Verdict::Fragile) => Verdict::Fragile,
        verdicts if verdicts.iter().all(|verdict| *verdict == Verdict::Loses) => Verdict::Loses,
        _ => Verdict::Undecided,
    }
}

impl ArmComparison {
    /// What it says of an axis.
    pub(crate) fn on(&self, axis: Axis) -> Option<&AxisComparison> {
        self.axes.iter().find(|on| on.axis == axis)
    }
}

impl Evidence<'_> {
    fn arm_result(&self, index: usize) -> ArmResult {
        let arm = &self.arms[index];
        let pilot_loss = |learning_rate: f64| {
            let mut pilots =
                self.finished.iter().filter(|(stage, run)| *stage == Stage::Pilot && run.arm == index);
            pilots
                .find(|(_, run)| run.learning_rate == learning_rate)
                .and_then(|(_, run)| run.result.final_loss_nats)
        };
        let mut runs: Vec<_> = self.main_runs(index).map(|run| run.result.clone()).collect();
        runs.sort_by_key(|run| (run.num_steps, run.seed));
        ArmResult {
            label: arm.label.clone(),
            overrides: arm.overrides.clone(),
            total_params: arm.plan.counts.total_params,
            active_params: arm.plan.counts.active_params,
            training_flops_per_token: arm.plan.counts.training_flops_per_token,
            memory_bytes: arm.plan.memory.total_bytes(),
            measured_peak_bytes: arm.measured_peak_bytes,
            equality: arm.equality,
            learning_rate: self.learning_rates[index],
            learning_rate_grid: match arm.transfers_from {
                Some(_) => vec![(self.learning_rates[index], None)],
                None => arm.learning_rates.iter().map(|&rate| (rate, pilot_loss(rate))).collect(),
            },
            runs,
            diverged: self
                .diverged
                .iter()
                .filter(|(of, _)| *of == index)
                .map(|(_, run)| run.clone())
                .collect(),
            sees_later_tokens: self.sees_later_tokens(index).map(str::to_owned),
        }
    }

    /// Key of the first router of the arm that is not causal.
    pub(super) fn sees_later_tokens(&self, arm: usize) -> Option<&str> {
        let mut routers = self.arms[arm].plan.model.routers();
        routers.find(|(_, router)| !router.config.is_causal()).map(|(_, router)| router.key.as_str())
    }

    /// Key of the first router through which what the arm is judged by depends on later tokens: a loss
    /// may, an answer is scored as text is written.
    pub(super) fn loss_from_later_tokens(&self, arm: usize) -> Option<&str> {
        let is_of_questions = self.loaded.study.question.metric.is_of_questions();
        self.sees_later_tokens(arm).filter(|_| !is_of_questions)
    }

    fn comparison(&self, arm: usize, question: &Question) -> ArmComparison {
        let pairs = self.pairs(arm, self.num_budgets() - 1);
        ArmComparison {
            arm: self.arms[arm].label.clone(),
            axes: AXES.iter().filter_map(|&axis| self.axis_comparison(arm, axis, &pairs, question)).collect(),
            time_to_loss: AXES
                .iter()
                .map(|&axis| self.time_to_loss(arm, axis, &pairs, question.confidence))
                .collect(),
            effective_speedup: AXES
                .iter()
                .map(|&axis| self.effective_speedup(arm, axis, question.confidence))
                .collect(),
            gauge: self.gauge(arm, question),
            noise_floor: self.noise_floor(arm),
            seed_components: self.seed_components(arm),
        }
    }

    /// Takes back the verdicts that the finished runs alone do not carry.
    fn withhold_verdicts(&self, arm: usize, comparison: &mut ArmComparison) {
        for on in &mut comparison.axes {
            let reasons = self.against_a_verdict(arm, on);
            if on.verdict.is_decided() || !reasons.is_empty() || on.reads_unfinished_schedules {
                // More seeds would change nothing about it.
                on.seeds_to_decide = None;
            }
            if !reasons.is_empty() && on.verdict.is_decided() {
                on.verdict = Verdict::Undecided;
            }
            on.reasons.extend(reasons);
        }
    }

    /// Why what an interval says of an arm is no verdict; runs that diverged are told of undecided
    /// ones too.
    fn against_a_verdict(&self, arm: usize, on: &AxisComparison) -> Vec<String> {
        let (label, baseline) = (&self.arms[arm].label, &self.arms[0].label);
        let mut reasons = Vec::new();
        for (diverged, whose, favours) in
            [(self.num_diverged(arm), label, Verdict::Loses), (self.num_diverged(0), baseline, Verdict::Wins)]
        {
            // A run that diverged speaks against the side that it is of, and for the other.
            if diverged > 0 && on.verdict != favours {
                reasons.push(format!(
                    "{diverged} run(s) of `{whose}` diverged, which is worse than any loss, and its other seeds do not speak \
                     for them."
                ));
            }
        }
        if !on.verdict.is_decided() {
            return reasons;
        }
        let leaks = [arm, 0].map(|arm| self.loss_from_later_tokens(arm));
        let unfair = match (on.verdict, leaks) {
            (Verdict::Wins, [Some(key), None]) => Some((label, key)),
            (Verdict::Loses, [None, Some(key)]) => Some((baseline, key)),
            _ => None,
        };
        reasons.extend(unfair.map(|(whose, key)| {
            format!(
                "No verdict follows: `{key}` lets `{whose}` see later tokens, which the other does not, so that its loss is lower \
                 than that of the text that it could write."
            )
        }));
        if on.split == JudgedSplit::Questions
            && let Some(interval) = on.interval_within(self.loaded.question().margin, on.verdict)
        {
            reasons.push(format!(
                "It {} on these questions by its seeds, but over questions as well as seeds {interval}: other questions of the kind \
                 could say otherwise.",
                on.verdict.word()
            ));
        }
        if on.reads_unfinished_schedules {
            reasons.push(format!(
                "No verdict follows: the runs of a pair end at different {}, and the longer one's loss is read before its \
                 learning rate has come down. Ask with several budgets, or hold that equal.",
                words::axis_words(on.axis)
            ));
        }
        if on.seeds.len() < words::SEEDS_FOR_A_CLAIM {
            reasons.push(format!(
                "It {} by Student's interval, but {} seeds are a first look: a claim needs {}.",
                on.verdict.word(),
                on.seeds.len(),
                words::SEEDS_FOR_A_CLAIM
            ));
        }
        reasons
    }

    /// At the largest budget at which every seed has one; if there is none, at the largest, with
    /// lower bounds.
    fn effective_speedup(&self, arm: usize, axis: Axis, confidence: f64) -> EffectiveSpeedup {
        let at = |budget: usize| self.speedup_at(arm, budget, axis, confidence);
        let whole = |speedup: &EffectiveSpeedup| {
            !speedup.ratios.is_empty()
                && speedup.ratios.iter().all(Option::is_some)
                && !speedup.at_most.contains(&true)
        };
        let largest = self.num_budgets() - 1;
        (0..=largest).rev().map(at).find(whole).unwrap_or_else(|| at(largest))
    }

    fn speedup_at(&self, arm: usize, budget: usize, axis: Axis, confidence: f64) -> EffectiveSpeedup {
        let (mut ratios, mut lower_bounds, mut at_most, mut num_steps) =
            (Vec::new(), Vec::new(), Vec::new(), 0);
        let (mut seeds, mut is_whole) = (Vec::new(), true);
        for pair in self.pairs(arm, budget) {
            // Without the baseline there is nothing to measure a seed by.
            let Some(baseline) = pair.baseline else {
                is_whole = false;
                continue;
            };
            let Some(theirs) = self.best_curve(0, baseline, axis) else { continue };
            let Some(run) = pair.arm else {
                // What a run that diverged is worth is less than any of the baseline's losses.
                seeds.push(pair.seed);
                at_most.push(true);
                lower_bounds.push(0.0);
                ratios.push(Some(0.0));
                continue;
            };
            let Some(mine) = run.curve(axis).filter(|_| is_comparable(axis, [run, baseline])) else {
                continue;
            };
            num_steps = run.result.num_steps;
            seeds.push(pair.seed);
            at_most.push(mine.final_loss() > theirs.first_loss());
            lower_bounds.push(theirs.last_x() / mine.last_x());
            ratios.push(theirs.first_x_at(mine.final_loss()).map(|x| x / mine.last_x()));
        }
        let is_whole = is_whole && !at_most.contains(&true);
        let estimate = if is_whole { estimate(&ratios, confidence) } else { None };
        EffectiveSpeedup { axis, num_steps, seeds, estimate, ratios, lower_bounds, at_most }
    }

    /// Losses at the largest x that both arms reach with a seed, over the seeds with which neither
    /// diverged: of the test split where every pair ends at equal x or has finished runs around it,
    /// else of the validation split.
    fn axis_comparison(
        &self,
        arm: usize,
        axis: Axis,
        pairs: &[Pair<'_>],
        question: &Question,
    ) -> Option<AxisComparison> {
        let of_split = |split| Judged::new(self, arm, axis, pairs, split);
        let judged = match question.metric.is_of_questions() {
            true => of_split(JudgedSplit::Questions),
            false => of_split(JudgedSplit::Test).or_else(|| of_split(JudgedSplit::Validation)),
        };
        let Judged { split, pairs, differences, is_of_last_models } = judged?;
        let difference = PairedDifference::new(&differences, question.confidence)?;
        let verdict = difference.verdict(question.margin, self.stopping);
        let documents =
            is_of_last_models.then(|| over_documents(&pairs, split, question.confidence)).flatten();
        let documents = documents.map(|documents| documents.judged_at(&difference, self.stopping));
        Some(AxisComparison {
            axis,
            seeds: pairs.iter().map(|[run, _]| run.result.seed).collect(),
            p_value: difference.p_value(question.margin, self.stopping),
            adjusted_p_value: None,
            adjusted_interval: None,
            signed_rank: SignedRankInterval::new(&differences, question.confidence),
            difference,
            split,
            reads_unfinished_schedules: !is_of_last_models && self.num_budgets() == 1,
            documents,
            verdict,
            seeds_to_decide: None,
            reasons: Vec::new(),
            sentence: String::new(),
        })
    }

    /// When the arm had the final loss of the baseline's runs of the largest budget.
    fn time_to_loss(&self, arm: usize, axis: Axis, pairs: &[Pair<'_>], confidence: f64) -> TimeToLoss {
        let (mut seeds, mut targets, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let mut is_whole = true;
        for pair in pairs {
            // Without the baseline there is no loss to reach.
            let Some(baseline) = pair.baseline else {
                is_whole = false;
                continue;
            };
            if pair.arm.is_some_and(|run| !is_comparable(axis, [run, baseline])) {
                continue;
            }
            let Some(theirs) = self.best_curve(0, baseline, axis) else { continue };
            // Of the largest budget, whatever run took longest on this axis.
            let Some(target) = baseline.final_loss(self.curve_split()) else { continue };
            let mine = pair.arm.and_then(|run| self.best_curve(arm, run, axis));
            let reached = mine.and_then(|mine| mine.first_x_at(target)).zip(theirs.first_x_at(target));
            seeds.push(pair.seed);
            targets.push(target);
            ratios.push(reached.map(|(mine, theirs)| mine / theirs));
        }
        let estimate = if is_whole { estimate(&ratios, confidence) } else { None };
        TimeToLoss { axis, seeds, targets, estimate, ratios }
    }

    /// The gap in final loss over the budgets, at equal FLOPs; none of arms of which a run diverged,
    /// whose gaps would be those of its good seeds.
    fn gauge(&self, arm: usize, question: &Question) -> Option<Gauge> {
        if self.num_diverged(arm) + self.num_diverged(0) > 0 {
            return None;
        }
        let samples: Vec<GaugeSample> = (0..self.num_budgets())
            .flat_map(|budget| self.pairs(arm, budget))
            .filter_map(|pair| self.gauge_sample(&pair))
            .collect();
        Gauge::new(&samples, question.metric.measure(), question.confidence)
    }

    /// The gap of a pair. Where the arm's run took other FLOPs than the baseline's, the baseline's
    /// loss at the arm's FLOPs is read between its budgets, or little beyond them.
    fn gauge_sample(&self, pair: &Pair<'_>) -> Option<GaugeSample> {
        let [run, baseline] = pair.both()?;
        let split = self.judged_split();
        let [mine, theirs] = [run, baseline].map(|run| run.result.active_flops);
        let (compute, theirs) = if (mine / theirs - 1.0).abs() <= self.rounding([run, baseline]) {
            (theirs, baseline.final_loss(split)?)
        } else {
            let curve = self.curve_of_ends(split, 0, baseline, Axis::ActiveFlops)?;
            (mine, curve.loss_near(mine, BEYOND_BUDGETS)?)
        };
        Some(GaugeSample { compute, seed: pair.seed, gap: run.final_loss(split)? - theirs })
    }
}

/// A mean over seeds, unless one of them is censored: leaving it out would favour the arm.
fn estimate(ratios: &[Option<f64>], confidence: f64) -> Option<RatioEstimate> {
    let known: Option<Vec<f64>> = ratios.iter().copied().collect();
    known.and_then(|ratios| RatioEstimate::new(&ratios, confidence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_censored_seed_leaves_no_mean_to_favour_the_arm() {
        let mean = |ratios: &[Option<f64>]| estimate(ratios, 0.95).map(|estimate| estimate.geometric_mean);
        assert!((mean(&[Some(0.5), Some(2.0)]).unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(mean(&[Some(0.5), None, Some(0.5)]), None);
        assert_eq!(mean(&[Some(0.5)]), None, "one seed has no interval");
        assert_eq!(mean(&[]), None);
    }

    #[test]
    fn one_winning_arm_wins_the_study_and_one_losing_arm_does_not_lose_it() {
        use Verdict::{Fragile, Loses, Undecided, Wins};
        let verdict = |verdicts: &[Verdict]| {
            let comparisons: Vec<ArmComparison> =
                verdicts.iter().map(|&verdict| comparison(verdict)).collect();
            overall(&comparisons, Axis::Tokens)
        };
        assert_eq!(verdict(&[Loses, Wins, Undecided]), Wins);
        assert_eq!(verdict(&[Loses, Wins, Fragile]), Wins);
        assert_eq!(verdict(&[Loses, Fragile, Undecided]), Fragile);
        assert_eq!(verdict(&[Loses, Undecided]), Undecided);
        assert_eq!(verdict(&[Loses, Loses]), Loses);
    }

    fn comparison(verdict: Verdict) -> ArmComparison {
        let mut comparison = ArmComparison::of_differences(&[0.0]);
        comparison.axes[0].verdict = verdict;
        comparison
    }
}
