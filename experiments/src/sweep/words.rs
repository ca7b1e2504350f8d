//! A sweep's result in words.

use toml::Value;

use super::candidate_result::{CandidateResult, RungResult};
use super::candidates::Source;
use super::file::{Distribution, SweepFile};

/// Why a candidate came no further than `last`, after which `went_on` candidates did; `None` if
/// there is no further.
pub(crate) fn stop_reason(last: &RungResult, went_on: usize, num_steps: u64) -> Option<String> {
    let RungResult { num_steps: steps, rank, num_candidates, .. } = last;
    if let Some((run, reason)) = last.runs.iter().find_map(|run| Some((run, run.diverged.as_ref()?))) {
        return Some(format!("stopped at {steps} steps: diverged with seed {}: {reason}", run.seed));
    }
    let place = ordinal(*rank);
    let others =
        if went_on == 1 { "only the best went on".into() } else { format!("the best {went_on} went on") };
    (*steps < num_steps)
        .then(|| format!("stopped after {steps} steps: {place} of {num_candidates}, {others}"))
}

/// `1st`, `2nd`, `3rd`, `4th`.
fn ordinal(number: usize) -> String {
    let suffix = match (number % 100, number % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    };
    format!("{number}{suffix}")
}

/// Which candidate is best, in one sentence.
pub(crate) fn headline(sweep: &SweepFile, best: Option<&CandidateResult>, num_candidates: usize) -> String {
    let Some((best, nats)) = best.and_then(|best| Some((best, best.final_loss(sweep.num_steps)?))) else {
        return format!(
            "None of {num_candidates} candidates has a loss after {} steps: all that came so far diverged.",
            sweep.num_steps
        );
    };
    let seeds = match sweep.seeds.len() {
        1 => "with one seed".to_string(),
        many => format!("in the mean of {many} seeds"),
    };
    format!(
        "Best of {num_candidates} candidates: {} with {nats:.4} nats after {} steps, {seeds}.",
        best.title(),
        sweep.num_steps
    )
}

/// `--set` arguments of everything that tells the candidate from the base recipe.
pub(crate) fn arguments(sweep: &SweepFile, best: &CandidateResult) -> Vec<String> {
    let steps = format!("train.num_steps={}", sweep.num_steps);
    let overrides = sweep.set.iter().chain(&best.overrides).cloned().chain([steps]);
    overrides.flat_map(|text| ["--set".to_string(), text]).collect()
}

/// What early stopping did, if it did anything.
pub(crate) fn early_stopping(sweep: &SweepFile, results: &[CandidateResult]) -> Option<String> {
    let halving = sweep.halving.as_ref()?;
    let is_short = |rung: &RungResult| rung.num_steps < sweep.num_steps && rung.mean_loss_nats.is_some();
    let num_stopped = results.iter().filter(|result| result.rungs.last().is_some_and(is_short)).count();
    (num_stopped > 0).then(|| {
        format!(
            "Successive halving with factor {} from {} steps (arXiv:1502.07943) stopped {num_stopped} of {} candidates before \
             {} steps. Every round is a run of its own with a schedule of its own length. What the stopped candidates would \
             have reached is unknown: one that starts slowly may have ended best.",
            halving.factor,
            halving.first_steps,
            results.len(),
            sweep.num_steps
        )
    })
}

/// What is true of every sweep of this kind.
pub(crate) fn general_notes(sweep: &SweepFile, results: &[CandidateResult]) -> Vec<String> {
    let mut notes = Vec::new();
    let num_diverged = results.iter().filter(|result| result.has_diverged()).count();
    if num_diverged > 0 {
        notes.push(format!("{num_diverged} candidate(s) diverged; they count as the worst"));
    }
    if sweep.seeds.len() == 1 {
        notes.push("one seed: small differences between candidates may be chance".into());
    }
    if results.len() > 1 {
        notes.push(
            "the best of many is chosen by the loss that it is shown with, which flatters it: judge it in a study on other seeds"
                .into(),
        );
    }
    notes
}

/// A note for each number of the best candidate that lies at the edge of what was tried.
pub(crate) fn edge_notes(sweep: &SweepFile, best: &CandidateResult) -> Vec<String> {
    let note = |text: &String| {
        let (key, value) = text.split_once('=')?;
        let value: f64 = value.trim().parse().ok()?;
        let edge = match best.source {
            Source::List => None,
            Source::Grid => edge_of_values(sweep.grid.get(key)?, value),
            Source::Random => edge_of_distribution(sweep.random.as_ref()?.keys.get(key)?, value),
        }?;
        Some(format!("the best `{key}`, {value}, is {edge}: extend the range"))
    };
    best.overrides.iter().filter_map(note).collect()
}

fn edge_of_values(values: &[Value], value: f64) -> Option<String> {
    let numbers: Vec<f64> = values.iter().filter_map(number).collect();
    let low = numbers.iter().copied().fold(f64::INFINITY, f64::min);
    let high = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match value {
        _ if low >= high => None,
        value if value <= low => Some("the smallest tried".into()),
        value if value >= high => Some("the largest tried".into()),
        _ => None,
    }
}

/// Nothing is drawn at the very edge, so the outer tenths count as edges.
fn edge_of_distribution(distribution: &Distribution, value: f64) -> Option<String> {
    let (share, [low, high]) = match distribution {
        Distribution::LogUniform([low, high]) => ((value / low).ln() / (high / low).ln(), [*low, *high]),
        Distribution::Uniform([low, high]) => ((value - low) / (high - low), [*low, *high]),
        Distribution::Integer([low, high]) => {
            let range = [*low as f64, *high as f64];
            ((value - range[0]) / (range[1] - range[0]), range)
        }
        Distribution::Choice(values) => return edge_of_values(values, value),
    };
    let part = match share {
        share if share <= 0.1 => "lower",
        share if share >= 0.9 => "upper",
        _ => return None,
    };
    Some(format!("in the {part} tenth of {low} to {high}"))
}

fn number(value: &Value) -> Option<f64> {
    value.as_float().or_else(|| value.as_integer().map(|integer| integer as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outer_tenths_of_a_range_and_the_ends_of_a_grid_are_edges() {
        let rates = Distribution::LogUniform([1e-4, 1e-1]);
        assert_eq!(edge_of_distribution(&rates, 3e-3), None);
        assert_eq!(edge_of_distribution(&rates, 1.5e-4).unwrap(), "in the lower tenth of 0.0001 to 0.1");
        assert_eq!(
            edge_of_distribution(&Distribution::Integer([1, 8]), 8.0).unwrap(),
            "in the upper tenth of 1 to 8"
        );
        assert_eq!(edge_of_values(&[Value::Integer(4)], 4.0), None);
    }

    #[test]
    fn ordinals_are_english() {
        let ordinals = [1, 2, 3, 4, 11, 12, 13, 21, 111].map(ordinal);
        assert_eq!(ordinals, ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "111th"]);
    }
}
