//! The sentence that carries a verdict.

use super::interval::Interval;
use super::measure::Measure;
use super::paired::{MOST_PAIRS, PairedDifference};
use super::verdict::{Stopping, Verdict};

/// What a verdict is asked of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    /// What is compared.
    pub(crate) measure: Measure,
    /// Differences up to this many of its units do not matter.
    pub(crate) margin: f64,
    /// Confidence level of the interval.
    pub(crate) confidence: f64,
}

impl PairedDifference {
    /// The verdict in words: who wins by how much, and how many more seeds would decide;
    /// `pairs_to_decide` in all.
    pub(crate) fn sentence(
        &self,
        [arm, baseline]: [&str; 2],
        asked: &Asked,
        stopping: Stopping,
        pairs_to_decide: Option<u64>,
    ) -> String {
        let evidence = self.evidence(asked, stopping);
        match self.verdict(asked.margin, stopping) {
            Verdict::Wins => format!("{arm} wins against {baseline}: {evidence}."),
            Verdict::Loses => format!("{arm} loses against {baseline}: {evidence}."),
            // Fragile is what a study says, which knows how much the last bits decide.
            Verdict::Undecided | Verdict::Fragile => {
                let outlook = self.outlook(asked, pairs_to_decide);
                format!("{arm} against {baseline} is undecided: {evidence}. {outlook}")
            }
        }
    }

    /// Mean, interval and signs.
    pub(crate) fn evidence(&self, asked: &Asked, stopping: Stopping) -> String {
        let num_pairs = self.differences.len();
        let Asked { measure, confidence, .. } = *asked;
        let by = measure.amount(format_args!("{:+.4}", self.mean));
        let mean = format!("its {} differs by {by}", measure.quantity);
        let Some(interval) = self.interval(stopping) else {
            return match num_pairs {
                1 => format!("{mean} in the one pair of runs"),
                _ => format!(
                    "{mean}; the number of seeds is not the planned one, and {num_pairs} pairs are too few for an interval \
                     that holds whenever one looks"
                ),
            };
        };
        let kind = match stopping {
            Stopping::Planned => "interval",
            Stopping::Open => "interval, which holds whenever one looks,",
        };
        if self.differences.iter().all(|difference| *difference == 0.0) {
            return format!("its {} is the same in all {num_pairs} pairs", measure.quantity);
        }
        let same_sign = (self.sign_consistency * num_pairs as f64).round();
        format!(
            "{mean} ({:.0}% {kind} {:+.4} to {:+.4}; {same_sign} of {num_pairs} pairs have this sign)",
            100.0 * confidence,
            interval.low,
            interval.high,
        )
    }

    /// What would decide an undecided comparison.
    fn outlook(&self, asked: &Asked, pairs_to_decide: Option<u64>) -> String {
        let margin = asked.margin;
        let num_pairs = self.differences.len() as u64;
        let is_inside = |interval: &Interval| interval.low >= -margin && interval.high <= margin;
        if margin > 0.0 && self.t_interval.as_ref().is_some_and(is_inside) {
            return format!(
                "The whole interval is within the margin of {}: no difference that matters.",
                asked.measure.amount(margin)
            );
        }
        match pairs_to_decide {
            Some(MOST_PAIRS) => "No affordable number of seeds would decide it.".into(),
            Some(pairs) => {
                let more = pairs.saturating_sub(num_pairs).max(1);
                let seeds = if more == 1 { "one more seed".into() } else { format!("{more} more seeds") };
                format!(
                    "Were the mean and the spread to stay as they are, {seeds} would decide it, judged as what is added \
                     after a look must be; they move with every seed, so it is an even bet."
                )
            }
            None if num_pairs == 1 => "A second seed would give it an interval.".into(),
            None if margin > 0.0 => {
                format!("The mean is within the margin of {}.", asked.measure.amount(margin))
            }
            None => "The mean is zero.".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(differences: &[f64], margin: f64) -> String {
        let difference = PairedDifference::new(differences, 0.95).unwrap();
        let pairs = difference.pairs_to_decide(margin, 0.95);
        let asked = Asked { measure: Measure::LOSS_IN_NATS, margin, confidence: 0.95 };
        difference.sentence(["moe", "dense"], &asked, Stopping::Planned, pairs)
    }

    #[test]
    fn a_decided_sentence_names_the_winner_and_the_evidence() {
        assert_eq!(
            sentence(&[-0.11, -0.10, -0.12], 0.01),
            "moe wins against dense: its loss differs by -0.1100 nats (95% interval -0.1348 to -0.0852; 3 of 3 pairs \
             have this sign)."
        );
        assert!(sentence(&[0.11, 0.10, 0.12], 0.01).starts_with("moe loses against dense: "));
    }

    #[test]
    fn an_undecided_sentence_says_what_would_decide() {
        // The sequence's half-width of n pairs is below 0.1 from NN pairs on.
        assert!(sentence(&[-0.2, -0.1, 0.0], 0.0).contains(" more seeds would decide it, judged as"));
        assert!(sentence(&[-0.01], 0.0).ends_with("A second seed would give it an interval."));
        assert!(sentence(&[-0.01, 0.01], 0.0).ends_with("The mean is zero."));
        assert!(sentence(&[-0.01, 0.0], 0.01).ends_with("The mean is within the margin of 0.01 nats."));
        assert!(sentence(&[-1.0, 0.999], 0.0).ends_with("No affordable number of seeds would decide it."));
    }
}
