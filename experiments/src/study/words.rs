//! A result in words.

mod held_equal;

use super::evidence::{AXES, Evidence};
use super::metric::JudgedSplit;
use super::outcome::FinishedRun;
use super::result::{ArmComparison, ArmResult, Axis, AxisComparison, DivergedRun, Question};

use crate::statistics::{Stopping, Verdict};

/// Seeds below which a verdict is no claim: with five pairs no test that leaves the distribution
/// open can reach 5 %.
pub(super) const SEEDS_FOR_A_CLAIM: usize = 6;

/// What is said of an axis after "at equal".
pub(crate) fn axis_words(axis: Axis) -> &'static str {
    match axis {
        Axis::Steps => "steps",
        Axis::Tokens => "training tokens",
        Axis::ActiveFlops => "active FLOPs",
        Axis::Seconds => "wall-clock seconds",
    }
}

/// A deviation that may be far below the losses' digits.
pub(crate) fn small(deviation: f64) -> String {
    match deviation {
        0.0 => "0".into(),
        tiny if tiny < 1e-4 => format!("{tiny:.1e}"),
        _ => format!("{deviation:.4}"),
    }
}

/// The verdict of one arm on one axis, and why it is another than that of its interval.
pub(crate) fn axis_sentence(
    [arm, baseline]: [&str; 2],
    on: &AxisComparison,
    question: &Question,
    stopping: Stopping,
) -> String {
    let asked = question.asked();
    let (arm, baseline) = (format!("`{arm}`"), format!("`{baseline}`"));
    let verdict = if on.reasons.is_empty() {
        let seeds = on.seeds_to_decide;
        on.difference.sentence([&arm, &baseline], &asked, stopping, seeds)
    } else {
        let (word, evidence) = (on.verdict.word(), on.difference.evidence(&asked, stopping));
        format!("{arm} against {baseline} is {word}: {evidence}. {}", on.reasons.join(" "))
    };
    format!("At equal {}, {verdict}", axis_words(on.axis))
}

/// The first thing that a reader sees: the arm that is furthest ahead, and what its loss is worth.
pub(crate) fn headline(
    comparisons: &[ArmComparison],
    arms: &[ArmResult],
    verdict: Verdict,
    question: &Question,
) -> String {
    let baseline = arms.first().map_or("", |arm| arm.label.as_str());
    let on_axis = |comparison: &ArmComparison| comparison.on(question.axis).cloned();
    let compared = || comparisons.iter().filter_map(|comparison| Some((comparison, on_axis(comparison)?)));
    let best = compared()
        .filter(|(_, on)| on.verdict == verdict)
        .min_by(|(_, a), (_, b)| a.difference.mean.total_cmp(&b.difference.mean))
        .or_else(|| compared().next());
    let Some((comparison, on)) = best else {
        let num_diverged: usize = arms.iter().map(|arm| arm.diverged.len()).sum();
        let diverged = match num_diverged {
            0 => String::new(),
            count => format!(" {count} run(s) diverged."),
        };
        return format!(
            "No verdict: `{baseline}` and another arm have no pair of finished runs with {} in common.{diverged}",
            axis_words(question.axis)
        );
    };
    // Of the runs that the verdict is about: at a smaller budget the arm may be worth less.
    let judged = arms.iter().find(|arm| arm.label == comparison.arm);
    let judged_steps = judged.and_then(ArmResult::most_steps);
    let speedup = comparison.effective_speedup.iter().find(|speedup| {
        speedup.axis == question.axis && on.verdict.is_decided() && Some(speedup.num_steps) == judged_steps
    });
    let worth = speedup.and_then(|speedup| Some((speedup, speedup.estimate.as_ref()?))).map(|(speedup, estimate)| {
        format!(
            " For the {} that it has after {} steps `{baseline}` needs {:.2} times its {} ({:.2} to {:.2}).",
            question.metric.measure().quantity,
            speedup.num_steps,
            estimate.geometric_mean,
            axis_words(question.axis),
            estimate.interval.low,
            estimate.interval.high
        )
    });
    on.sentence + &worth.unwrap_or_default()
}

/// Quantities in which an arm is not the baseline's equal, by 1 % or more.
pub(crate) fn unequal(arms: &[ArmResult]) -> Vec<String> {
    let Some((baseline, others)) = arms.split_first() else { return Vec::new() };
    let mut lines = Vec::new();
    for arm in others {
        let mut line = |what: &str, mine: f64, theirs: f64| {
            let ratio = mine / theirs;
            if theirs > 0.0 && (ratio - 1.0).abs() >= 0.01 {
                lines.push(format!(
                    "{what}: `{}` has {ratio:.2} times that of `{}` ({} against {})",
                    arm.label,
                    baseline.label,
                    short(mine),
                    short(theirs)
                ));
            }
        };
        line("total parameters", arm.total_params as f64, baseline.total_params as f64);
        line("active parameters", arm.active_params as f64, baseline.active_params as f64);
        line(
            "training FLOPs per token",
            arm.training_flops_per_token as f64,
            baseline.training_flops_per_token as f64,
        );
        match arm.measured_peak_bytes.zip(baseline.measured_peak_bytes) {
            Some((mine, theirs)) => line("measured peak memory (bytes)", mine as f64, theirs as f64),
            None => line(
                "estimated training memory (bytes)",
                arm.memory_bytes as f64,
                baseline.memory_bytes as f64,
            ),
        }
        line("learning rate", arm.learning_rate, baseline.learning_rate);
        line(
            "active FLOPs of the longest run",
            longest(arm, |run| run.active_flops),
            longest(baseline, |run| run.active_flops),
        );
        line(
            "training tokens of the longest run",
            longest(arm, |run| run.tokens as f64),
            longest(baseline, |run| run.tokens as f64),
        );
        line(
            "seconds of the longest run",
            longest(arm, |run| run.train_secs),
            longest(baseline, |run| run.train_secs),
        );
    }
    lines
}

/// Mean of `of` over the runs of the largest budget.
fn longest(arm: &ArmResult, of: impl Fn(&super::result::RunResult) -> f64) -> f64 {
    let most = arm.runs.iter().map(|run| run.num_steps).max();
    let values: Vec<f64> = arm.runs.iter().filter(|run| Some(run.num_steps) == most).map(of).collect();
    // Of no runs it is no number, which is not told.
    values.iter().sum::<f64>() / values.len() as f64
}

fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1e9 => format!("{:.3} G", value / 1e9),
        size if size >= 1e6 => format!("{:.3} M", value / 1e6),
        size if size >= 1e3 => format!("{:.3} k", value / 1e3),
        size if size >= 1.0 => format!("{value:.1}"),
        _ => format!("{value}"),
    }
}

/// What a reader must know before believing the numbers.
pub(crate) fn notes(evidence: &Evidence<'_>, comparisons: &[ArmComparison]) -> Vec<String> {
    let mut notes = evidence.history_notes.to_vec();
    notes.extend(what_is_missing(evidence, comparisons));
    notes.extend(what_chance_may_do(evidence, comparisons));
    notes.extend(what_text_it_is_about(evidence, comparisons));
    notes.extend(held_equal::how_it_was_compared(evidence));
    notes
}

/// Runs and comparisons that one would expect and that are not there.
fn what_is_missing(evidence: &Evidence<'_>, comparisons: &[ArmComparison]) -> Vec<String> {
    let mut notes = Vec::new();
    if evidence.num_missing_beside > 0 {
        notes.push(format!(
            "Not finished: {} run(s) beside the judged ones, for the noise floor or for crossed seeds, are missing: how much \
             last bits or each kind of seed decide may not be known yet.",
            evidence.num_missing_beside
        ));
    }
    if evidence.num_missing > 0 {
        notes.push(format!(
            "Not finished: {} run(s) are missing, and pairs without both are left out. Until they are there, verdicts rest on \
             an interval that holds whenever one looks, which is wider.",
            evidence.num_missing
        ));
    }
    notes.extend(evidence.diverged.iter().map(|(arm, DivergedRun { seed, reason, .. })| {
        let label = &evidence.arms[*arm].label;
        format!(
            "A run of `{label}` diverged, which counts as worse than any loss: seed {seed} has no difference, `{label}` gets \
             no mean ratio and no gauge, and its other seeds do not win for it. {reason}"
        )
    }));
    for comparison in comparisons {
        notes.extend(AXES.iter().filter(|axis| comparison.on(**axis).is_none()).map(|&axis| {
            format!(
                "`{}` is not compared at equal {}: {}.",
                comparison.arm,
                axis_words(axis),
                why_not_compared(evidence, axis)
            )
        }));
    }
    notes
}

fn why_not_compared(evidence: &Evidence<'_>, axis: Axis) -> String {
    let study = &evidence.loaded.study;
    let budget = &study.budget;
    if study.question.metric.is_of_questions() && budget.num_steps.len() == 1 {
        return format!(
            "questions are asked at the end of a run, and the two runs of a pair end at different {}: give several budgets",
            axis_words(axis)
        );
    }
    if budget.num_steps.len() == 1 && budget.evaluations == 1 {
        return format!(
            "one evaluation per run is one point, and the two runs of a pair end at different {}: give `budget.evaluations` or \
             several budgets",
            axis_words(axis)
        );
    }
    format!(
        "no pair is finished, its runs are of different machines, or their curves have no {} in common",
        axis_words(axis)
    )
}

fn what_chance_may_do(evidence: &Evidence<'_>, comparisons: &[ArmComparison]) -> Vec<String> {
    let mut notes = Vec::new();
    let num_seeds = evidence.loaded.study.seeds.len();
    if num_seeds < SEEDS_FOR_A_CLAIM {
        notes.push(format!(
            "{num_seeds} seed(s): a claim needs at least {SEEDS_FOR_A_CLAIM}, because the interval rests on their spread, and \
             fewer pairs decide nothing without taking them to be normal."
        ));
    }
    if comparisons.len() > 1 {
        notes.push(format!(
            "{} arms are compared with the baseline: each interval is for one of them, and the verdicts are adjusted for \
             their number (Holm), so that the chance of a false one among all is that of one arm.",
            comparisons.len()
        ));
    }
    if evidence.loaded.study.noise_repeats == 0 {
        notes.push(
            "What the last bits of the arithmetic decide was not measured: `noise_repeats = 2` in the study repeats its first \
             seed, and a verdict nearer to its margin than that is called fragile."
                .into(),
        );
    }
    for (arm, &chosen) in evidence.arms.iter().zip(evidence.learning_rates) {
        notes.extend(edge_of_grid(&arm.label, &arm.learning_rates, chosen));
    }
    for arm in evidence.arms {
        notes.extend(arm.transfers_from.map(|source| {
            let source = &evidence.arms[source].label;
            format!(
                "The learning rate of `{}` was not tuned: that of `{source}` was transferred to it.",
                arm.label
            )
        }));
    }
    if evidence.arms.iter().all(|arm| arm.learning_rates.len() == 1) {
        notes.push("The learning rate was not tuned for each arm: the recipe's was taken.".into());
    }
    notes
}

/// Documents below which a word on their number is due.
const FEW_DOCUMENTS: f64 = 50.0;

/// What the losses are losses of, and how far that speaks for other text.
fn what_text_it_is_about(evidence: &Evidence<'_>, comparisons: &[ArmComparison]) -> Vec<String> {
    let (axis, metric) = (evidence.loaded.study.question.axis, evidence.loaded.study.question.metric);
    let on_axis = || comparisons.iter().filter_map(|arm| Some((arm, arm.on(axis)?)));
    let mut notes = Vec::new();
    match on_axis().map(|(_, on)| on.split).min_by_key(|split| *split == JudgedSplit::Test) {
        Some(JudgedSplit::Questions) => notes.push(about_questions(evidence)),
        Some(JudgedSplit::Test) => {
            let looks = match evidence.num_looks {
                0 => String::new(),
                count => format!(
                    " Results on it were printed {count} time(s) before: what was chosen since may have been chosen by it."
                ),
            };
            notes.push(format!(
                "The verdict is of the test split, which no learning rate is chosen by; curves, times to a loss and speedups are \
                 of the validation split.{looks}"
            ));
        }
        Some(JudgedSplit::Validation) if evidence.arms[0].config.data.has_test_split() => notes.push(format!(
            "At equal {} the runs do not end, so that the verdict is of the validation split; the test split was measured at \
             their ends only.",
            axis_words(axis)
        )),
        Some(JudgedSplit::Validation) => notes.push(
            "The verdict is of the text that settings are chosen by: `test_fraction` in the recipe's `data.split` keeps other \
             text for it."
                .into(),
        ),
        None => {}
    }
    let documents = on_axis().find_map(|(_, on)| on.documents.as_ref());
    if let Some(documents) = documents
        .filter(|documents| !metric.is_of_questions() && documents.effective_documents < FEW_DOCUMENTS)
    {
        notes.push(format!(
            "The text has {} documents of unequal length, which count as about {:.0}: few to speak for other text.",
            documents.num_documents, documents.effective_documents
        ));
    }
    notes.extend(on_axis().filter_map(|(arm, on)| other_text(&arm.arm, on, evidence)));
    notes.extend(runs_without_what_others_have(evidence));
    notes.extend(evidence.arms.iter().enumerate().filter_map(|(index, arm)| {
        let key = evidence.loss_from_later_tokens(index)?;
        Some(format!(
            "`{}` sees later tokens (`{key}`): none of its numbers, ratios and gauge included, compares with those of an arm \
             that does not.",
            arm.label
        ))
    }));
    if evidence.loaded.study.new_corpus_per_seed {
        notes.push(
            "Every seed has a generated corpus of its own: the interval speaks of such corpora, and there is none over documents, \
             which are not the same."
                .into(),
        );
    }
    notes
}

/// What a verdict on questions speaks of.
fn about_questions(evidence: &Evidence<'_>) -> String {
    let looks = match evidence.num_looks {
        0 => String::new(),
        count => format!(" Answers to them were printed {count} time(s) before."),
    };
    let identity = evidence.loaded.questions.as_ref().map(|questions| questions.identity());
    let (count, repeated) =
        identity.map_or((0, 0), |questions| (questions.num_questions, questions.num_repeated));
    let repeated = match repeated {
        0 => String::new(),
        repeated => format!(
            " {repeated} of them repeat an earlier one word for word: the interval over questions takes them for others, and is too \
             narrow."
        ),
    };
    format!(
        "The verdict is of {count} question(s), each asked at the end of every run; no learning rate is chosen by them, the curves \
         are of the validation split.{repeated}{looks}"
    )
}

/// Runs that lack a number which others have, so that all are judged without it.
fn runs_without_what_others_have(evidence: &Evidence<'_>) -> Vec<String> {
    let runs: Vec<_> = (0..evidence.arms.len()).flat_map(|arm| evidence.main_runs(arm)).collect();
    let named = |what: &str, has: &dyn Fn(&FinishedRun) -> bool| {
        let without: Vec<&str> =
            runs.iter().filter(|run| !has(run)).map(|run| run.result.run.as_str()).collect();
        let is_told = !without.is_empty() && without.len() < runs.len();
        is_told.then(|| {
            format!(
                "{} run(s) have no {what}, so that none is judged by it: {}.",
                without.len(),
                without.join(", ")
            )
        })
    };
    let test_loss = named("loss on the test split", &|run| run.result.final_test_loss_nats.is_some());
    let documents = named("losses of documents", &|run| !run.documents.is_empty());
    test_loss.into_iter().chain(documents).collect()
}

/// A word on a verdict that the documents at hand carry and their spread does not.
fn other_text(arm: &str, on: &AxisComparison, evidence: &Evidence<'_>) -> Option<String> {
    on.documents.as_ref()?.interval_with_seeds?;
    let within = on.interval_within(evidence.loaded.question().margin, on.verdict)?;
    Some(format!(
        "`{arm}` {} on these documents; over documents as well as seeds {within}, which decides nothing about other text.",
        on.verdict.word()
    ))
}

fn edge_of_grid(label: &str, grid: &[f64], chosen: f64) -> Option<String> {
    let (low, high) =
        grid.iter().fold((f64::INFINITY, 0.0_f64), |(low, high), &rate| (low.min(rate), high.max(rate)));
    let side = if chosen == low { "smallest" } else { "largest" };
    (grid.len() > 1 && (chosen == low || chosen == high)).then(|| {
        format!(
            "The learning rate of `{label}`, {chosen}, is the {side} of its grid: a better one may lie outside. Extend the \
             grid."
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_names_the_axis_before_the_verdict() {
        let question = Question::of_nats(Axis::ActiveFlops, 0.0);
        let mut on = ArmComparison::of_differences(&[-0.10, -0.11, -0.12]).axes.remove(0);
        let sentence = axis_sentence(["e8k2", "dense"], &on, &question, Stopping::Planned);
        assert!(
            sentence.starts_with(
                "At equal training tokens, `e8k2` wins against `dense`: its loss differs by -0.1100 nats"
            ),
            "{sentence}"
        );
        // A verdict that was taken back does not begin with the one that it was.
        on.verdict = Verdict::Fragile;
        on.reasons = vec!["It hangs on the last bits.".into()];
        let sentence = axis_sentence(["e8k2", "dense"], &on, &question, Stopping::Planned);
        assert!(
            sentence.starts_with("At equal training tokens, `e8k2` against `dense` is fragile: its loss")
        );
        assert!(
            sentence.ends_with("have this sign). It hangs on the last bits.") && !sentence.contains("wins")
        );
    }

    #[test]
    fn what_is_small_is_not_said_to_be_nothing() {
        assert_eq!([0.0, 2.79e-5, 0.00132].map(small), ["0", "2.8e-5", "0.0013"]);
    }

    #[test]
    fn a_learning_rate_at_the_edge_of_its_grid_is_told() {
        assert_eq!(edge_of_grid("a", &[0.001, 0.002, 0.004], 0.002), None);
        assert_eq!(edge_of_grid("a", &[0.001], 0.001), None);
        assert!(
            edge_of_grid("a", &[0.001, 0.002], 0.002).unwrap().contains("0.002, is the largest of its grid")
        );
    }
}
