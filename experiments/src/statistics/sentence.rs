//! The sentence that carries a verdict.

use super::interval::Interval;
use super::paired::{MOST_PAIRS, PairedDifference};
use super::verdict::{Stopping, Verdict};

impl PairedDifference {
    /// The verdict in words: who wins by how much, and how many more seeds would decide. `margin`
    /// in nats; `confidence` that of the interval; `pairs_to_decide` in all.
    pub(crate) fn sentence(
        &self,
        [arm, baseline]: [&str; 2],
        margin: f64,
        confidence: f64,
        stopping: Stopping,
        pairs_to_decide: Option<u64>,
    ) -> String {
        let evidence = self.evidence(confidence, stopping);
        match self.verdict(margin, stopping) {
            Verdict::Wins => format!("{arm} wins against {baseline}: {evidence}."),
            Verdict::Loses => format!("{arm} loses against {baseline}: {evidence}."),
            // Fragile is what a study says, which knows how much the last bits decide.
            Verdict::Undecided | Verdict::Fragile => {
                let outlook = self.outlook(margin, pairs_to_decide);
                format!("{arm} against {baseline} is undecided: {evidence}. {outlook}")
            }
        }
    }

    /// Mean, interval and signs.
    pub(crate) fn evidence(&self, confidence: f64, stopping: Stopping) -> String {
        let num_pairs = self.differences.len();
        let mean = format!("its loss differs by {:+.4} nats", self.mean);
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
        let same_sign = (self.sign_consistency * num_pairs as f64).round();
        format!(
            "{mean} ({:.0}% {kind} {:+.4} to {:+.4}; {same_sign} of {num_pairs} pairs have this sign)",
            100.0 * confidence,
            interval.low,
            interval.high,
        )
    }

    /// What would decide an undecided comparison.
    fn outlook(&self, margin: f64, pairs_to_decide: Option<u64>) -> String {
        let num_pairs = self.differences.len() as u64;
        let is_inside = |interval: &Interval| interval.low >= -margin && interval.high <= margin;
        if self.t_interval.as_ref().is_some_and(is_inside) {
            return format!(
                "The whole interval is within the margin of {margin} nats: no difference that matters."
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
            None if margin > 0.0 => format!("The mean is within the margin of {margin} nats."),
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
        difference.sentence(["moe", "dense"], margin, 0.95, Stopping::Planned, pairs)
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
