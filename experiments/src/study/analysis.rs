//! From the finished runs of a study to its result.

use super::evidence::{AXES, Evidence};
use super::matrix::Stage;
use super::outcome::FinishedRun;
use super::result::{
    ArmComparison, ArmResult, Axis, AxisComparison, EffectiveSpeedup, Provenance, Question, StudyResult,
    TimeToLoss,
};
use super::words;
use crate::statistics::{Gauge, GaugeSample, LossCurve, PairedDifference, RatioEstimate, Verdict};

/// The result of the study as far as its runs are finished.
pub(crate) fn analyse(evidence: &Evidence<'_>, provenance: Provenance) -> StudyResult {
    let study = &evidence.loaded.study;
    let question = Question::from(&study.question);
    let arms: Vec<ArmResult> = (0..evidence.arms.len()).map(|index| evidence.arm_result(index)).collect();
    let comparisons: Vec<ArmComparison> =
        (1..evidence.arms.len()).map(|index| evidence.comparison(index, &question)).collect();
    let verdict = overall(&comparisons, question.axis);
    let baseline = study.arms[0].label.clone();
    StudyResult {
        study: study.name.clone(),
        headline: words::headline(&comparisons, verdict, &baseline, &question),
        verdict,
        unequal: words::unequal(&arms),
        notes: words::notes(evidence, &comparisons),
        held_equal: study.held_equal,
        question,
        baseline,
        arms,
        comparisons,
        provenance,
    }
}

/// `wins` if any arm wins, `loses` if all lose, else undecided.
fn overall(comparisons: &[ArmComparison], axis: Axis) -> Verdict {
    let verdicts: Vec<Verdict> =
        comparisons.iter().map(|arm| arm.on(axis).map_or(Verdict::Undecided, |on| on.verdict)).collect();
    match &verdicts[..] {
        verdicts if verdicts.contains(&Verdict::Wins) => Verdict::Wins,
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

/// Runs of the arm and of the baseline with the same seed and budget.
struct Pair<'a> {
    seed: u64,
    baseline: &'a FinishedRun,
    arm: &'a FinishedRun,
}

impl Evidence<'_> {
    /// The finished runs for the result of an arm at its `budget`-th budget.
    fn runs_at(&self, arm: usize, budget: usize) -> impl Iterator<Item = &FinishedRun> {
        let wanted = self.budget_steps[arm].get(budget).copied();
        self.main_runs(arm).filter(move |run| Some(run.result.num_steps) == wanted)
    }

    fn main_runs(&self, arm: usize) -> impl Iterator<Item = &FinishedRun> {
        self.finished
            .iter()
            .filter(move |(stage, run)| *stage == Stage::Main && run.arm == arm)
            .map(|(_, run)| run)
    }

    fn num_budgets(&self) -> usize {
        self.loaded.study.budget.num_steps.len()
    }

    /// Pairs of runs by seed, in the order of the study's seeds.
    fn pairs(&self, arm: usize, budget: usize) -> Vec<Pair<'_>> {
        let of_seed =
            |arm: usize, seed: u64| self.runs_at(arm, budget).find(move |run| run.result.seed == seed);
        let seeds = self.loaded.study.seeds.iter();
        seeds
            .filter_map(|&seed| Some(Pair { seed, baseline: of_seed(0, seed)?, arm: of_seed(arm, seed)? }))
            .collect()
    }

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
            equality: arm.equality,
            learning_rate: self.learning_rates[index],
            learning_rate_grid: arm.learning_rates.iter().map(|&rate| (rate, pilot_loss(rate))).collect(),
            runs,
        }
    }

    fn comparison(&self, arm: usize, question: &Question) -> ArmComparison {
        let pairs = self.pairs(arm, self.num_budgets() - 1);
        let label = &self.arms[arm].label;
        ArmComparison {
            arm: label.clone(),
            axes: AXES
                .iter()
                .filter_map(|&axis| {
                    self.axis_comparison(arm, axis, &pairs, [label, &self.arms[0].label], question)
                })
                .map(|on| self.without_a_win_by_divergence(arm, on))
                .collect(),
            time_to_loss: AXES
                .iter()
                .map(|&axis| self.time_to_loss(arm, axis, &pairs, question.confidence))
                .collect(),
            effective_speedup: AXES
                .iter()
                .map(|&axis| self.effective_speedup(arm, axis, question.confidence))
                .collect(),
            gauge: self.gauge(arm, question.confidence),
        }
    }

    /// An arm whose bad seeds diverged has only its good ones left: it cannot win by them.
    fn without_a_win_by_divergence(&self, arm: usize, on: AxisComparison) -> AxisComparison {
        let num_diverged = self.diverged.iter().filter(|(of, _)| *of == arm).count();
        if num_diverged == 0 || on.verdict != Verdict::Wins {
            return on;
        }
        let sentence =
            format!("{} But {num_diverged} of its runs diverged, which leaves it undecided.", on.sentence);
        AxisComparison { verdict: Verdict::Undecided, sentence, ..on }
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
        for pair in self.pairs(arm, budget) {
            let (Some(mine), Some(theirs)) = (pair.arm.curve(axis), self.best_curve(0, pair.baseline, axis))
            else {
                continue;
            };
            if !is_comparable(axis, &pair) {
                continue;
            }
            num_steps = pair.arm.result.num_steps;
            at_most.push(mine.final_loss() > theirs.first_loss());
            lower_bounds.push(theirs.last_x() / mine.last_x());
            ratios.push(theirs.first_x_at(mine.final_loss()).map(|x| x / mine.last_x()));
        }
        let estimate = if at_most.contains(&true) { None } else { estimate(&ratios, confidence) };
        EffectiveSpeedup { axis, num_steps, estimate, ratios, lower_bounds, at_most }
    }

    /// Losses at the largest x that both arms reach with a seed.
    fn axis_comparison(
        &self,
        arm: usize,
        axis: Axis,
        pairs: &[Pair<'_>],
        [label, baseline]: [&str; 2],
        question: &Question,
    ) -> Option<AxisComparison> {
        let mut seeds = Vec::new();
        let mut differences = Vec::new();
        for pair in pairs {
            if !is_comparable(axis, pair) {
                return None;
            }
            let mine = self.best_curve(arm, pair.arm, axis)?;
            let theirs = self.best_curve(0, pair.baseline, axis)?;
            let x = mine.last_x().min(theirs.last_x());
            seeds.push(pair.seed);
            differences.push(mine.loss_at(x)? - theirs.loss_at(x)?);
        }
        let difference = PairedDifference::new(&differences, question.confidence)?;
        let verdict = difference.verdict(question.margin_nats);
        let seeds_to_decide = difference.pairs_to_decide(question.margin_nats, question.confidence);
        let sentence = words::axis_sentence([label, baseline], axis, &difference, question);
        Some(AxisComparison { axis, seeds, difference, verdict, seeds_to_decide, sentence })
    }

    /// When the arm had the final loss of the baseline's runs of the largest budget.
    fn time_to_loss(&self, arm: usize, axis: Axis, pairs: &[Pair<'_>], confidence: f64) -> TimeToLoss {
        let mut targets_nats = Vec::new();
        let mut ratios = Vec::new();
        for pair in pairs.iter().filter(|pair| is_comparable(axis, pair)) {
            let (Some(mine), Some(theirs)) =
                (self.best_curve(arm, pair.arm, axis), self.best_curve(0, pair.baseline, axis))
            else {
                continue;
            };
            let target = theirs.final_loss();
            targets_nats.push(target);
            let reached = mine.first_x_at(target).zip(theirs.first_x_at(target));
            ratios.push(reached.map(|(mine, theirs)| mine / theirs));
        }
        TimeToLoss { axis, targets_nats, estimate: estimate(&ratios, confidence), ratios }
    }

    /// The loss that an arm can have at each x, with the seed of `run`: that of its finished runs
    /// of all budgets, whose schedules have all come to their end; with one budget, that of the
    /// run's own evaluations.
    fn best_curve(&self, arm: usize, run: &FinishedRun, axis: Axis) -> Option<LossCurve> {
        if self.num_budgets() == 1 {
            return run.curve(axis);
        }
        let runs = self.main_runs(arm).filter(|other| other.result.seed == run.result.seed);
        let ends = runs.filter_map(|run| run.curve(axis)).map(|curve| (curve.last_x(), curve.final_loss()));
        LossCurve::new(ends.collect())
    }

    /// The gap in final loss over the budgets. Compute is the baseline's, which is the arm's too
    /// where it is held equal.
    fn gauge(&self, arm: usize, confidence: f64) -> Option<Gauge> {
        let samples: Vec<GaugeSample> = (0..self.num_budgets())
            .flat_map(|budget| self.pairs(arm, budget))
            .filter_map(|pair| {
                let gap = pair.arm.result.final_loss_nats? - pair.baseline.result.final_loss_nats?;
                Some(GaugeSample { compute: pair.baseline.result.active_flops, seed: pair.seed, gap })
            })
            .collect();
        Gauge::new(&samples, confidence)
    }
}

/// Seconds of two machines are not seconds of two arms.
fn is_comparable(axis: Axis, pair: &Pair<'_>) -> bool {
    axis != Axis::Seconds || pair.arm.manifest.host.hostname == pair.baseline.manifest.host.hostname
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
        use Verdict::{Loses, Undecided, Wins};
        let verdict = |verdicts: &[Verdict]| {
            let comparisons: Vec<ArmComparison> =
                verdicts.iter().map(|&verdict| comparison(verdict)).collect();
            overall(&comparisons, Axis::Tokens)
        };
        assert_eq!(verdict(&[Loses, Wins, Undecided]), Wins);
        assert_eq!(verdict(&[Loses, Undecided]), Undecided);
        assert_eq!(verdict(&[Loses, Loses]), Loses);
    }

    fn comparison(verdict: Verdict) -> ArmComparison {
        let difference = PairedDifference::new(&[0.0], 0.95).unwrap();
        let on = AxisComparison {
            axis: Axis::Tokens,
            seeds: vec![0],
            difference,
            verdict,
            seeds_to_decide: None,
            sentence: String::new(),
        };
        ArmComparison {
            arm: "arm".into(),
            axes: vec![on],
            time_to_loss: Vec::new(),
            effective_speedup: Vec::new(),
            gauge: None,
        }
    }
}
