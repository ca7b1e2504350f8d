//! What a difference of losses says about other text: its spread over the documents of the split,
//! beside that over seeds.
//!
//! A loss is a ratio, nats over tokens, so the mean of a document counts by its tokens. The error of
//! a ratio of sums over documents is that of the jackknife, which leaves out one document after the
//! other (Cochran, Sampling Techniques, 1977, section 6.17), with as many degrees of freedom as there
//! would be documents of one length. That over seeds and documents together is at most the sum of both variances:
//! two-way clustered errors (Cameron, Gelbach and Miller, 2011, doi:10.1198/jbes.2010.07136) without
//! the term that is taken off for being counted twice, so that the interval is conservative.

use serde::{Deserialize, Serialize};

use super::interval::{Interval, student_t_reach};
use super::paired::PairedDifference;
use super::verdict::Stopping;

/// A difference over the documents of a split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DocumentDifference {
    /// Documents that both arms have a loss of.
    pub(crate) num_documents: usize,
    /// Documents that weigh as much as these do: the squared sum of their tokens over the sum of
    /// their squares.
    pub(crate) effective_documents: f64,
    /// Share of the documents on which the arm is ahead, all seeds together.
    pub(crate) share_ahead: f64,
    /// Student t interval of the mean over documents, the seeds being those at hand.
    pub(crate) interval: Interval,
    /// The same over documents and seeds together; conservative. `None` with one seed.
    pub(crate) interval_with_seeds: Option<Interval>,
}

impl DocumentDifference {
    /// From `nats_sd`, for each seed the difference in nats of each document, and the tokens of the
    /// documents. `None` with fewer than two documents, or if a number is not finite.
    pub(crate) fn new(nats_sd: &[Vec<f64>], tokens_d: &[u64], confidence: f64) -> Option<Self> {
        let num_documents = tokens_d.len();
        let fits = !nats_sd.is_empty() && nats_sd.iter().all(|nats_d| nats_d.len() == num_documents);
        let tokens: f64 = tokens_d.iter().map(|&tokens| tokens as f64).sum();
        if !fits || num_documents < 2 || tokens == 0.0 {
            return None;
        }
        let seeds = nats_sd.len() as f64;
        let nats_d: Vec<f64> = (0..num_documents)
            .map(|document| nats_sd.iter().map(|nats_d| nats_d[document]).sum::<f64>() / seeds)
            .collect();
        let mean = nats_d.iter().sum::<f64>() / tokens;
        let document_error = ratio_error(&nats_d, tokens_d);
        let squares: f64 = tokens_d.iter().map(|&tokens| (tokens as f64).powi(2)).sum();
        let effective_documents = tokens * tokens / squares;
        let reach = student_t_reach(confidence, degrees_of_freedom(effective_documents))?;
        let ahead = nats_d.iter().filter(|nats| **nats < 0.0).count();
        let means: Vec<f64> = nats_sd.iter().map(|nats_d| nats_d.iter().sum::<f64>() / tokens).collect();
        Some(Self {
            num_documents,
            effective_documents,
            share_ahead: ahead as f64 / num_documents as f64,
            interval: Interval::around(mean, reach * document_error)?,
            interval_with_seeds: with_seeds(&means, document_error, effective_documents, confidence),
        })
    }
}

impl DocumentDifference {
    /// The same, with the interval over seeds and documents that holds under `stopping`: where the
    /// number of seeds is open, both intervals' widths are added as errors are, which is wider.
    pub(crate) fn judged_at(self, difference: &PairedDifference, stopping: Stopping) -> Self {
        if stopping == Stopping::Planned {
            return self;
        }
        let half_width = |interval: &Interval| 0.5 * (interval.high - interval.low);
        let both = difference.interval(stopping).and_then(|over_seeds| {
            Interval::around(difference.mean, half_width(over_seeds).hypot(half_width(&self.interval)))
        });
        Self { interval_with_seeds: both, ..self }
    }
}

/// Standard error of the ratio of the sums of `nats_d` and `tokens_d`, by the jackknife.
fn ratio_error(nats_d: &[f64], tokens_d: &[u64]) -> f64 {
    let (nats, tokens) = (nats_d.iter().sum::<f64>(), tokens_d.iter().sum::<u64>() as f64);
    let without = |(own_nats, &own_tokens): (&f64, &u64)| (nats - own_nats) / (tokens - own_tokens as f64);
    let ratios: Vec<f64> = nats_d.iter().zip(tokens_d).map(without).collect();
    let count = ratios.len() as f64;
    let mean = ratios.iter().sum::<f64>() / count;
    let squares: f64 = ratios.iter().map(|ratio| (ratio - mean).powi(2)).sum();
    (squares * (count - 1.0) / count).sqrt()
}

/// Those of the error over documents.
fn degrees_of_freedom(effective_documents: f64) -> usize {
    ((effective_documents - 1.0).floor() as usize).max(1)
}

/// The interval of the mean of `means`, one of each seed, with the error over documents added. Of
/// the two numbers of degrees of freedom the smaller counts.
fn with_seeds(
    means: &[f64],
    document_error: f64,
    effective_documents: f64,
    confidence: f64,
) -> Option<Interval> {
    let count = means.len();
    let mean = super::moments::mean(means)?;
    let seed_error = super::moments::standard_deviation(means, mean)? / (count as f64).sqrt();
    let reach = student_t_reach(confidence, (count - 1).min(degrees_of_freedom(effective_documents)))?;
    Interval::around(mean, reach * seed_error.hypot(document_error))
}

#[cfg(test)]
mod tests {
    use super::super::simulated::{NormalNoise, coverage};
    use super::*;

    #[test]
    fn documents_count_by_their_tokens() {
        // One seed; 10 nats ahead on 90 tokens, 5 behind on 10.
        let found = DocumentDifference::new(&[vec![-10.0, 5.0]], &[90, 10], 0.95).unwrap();
        let mean = 0.5 * (found.interval.low + found.interval.high);
        assert!((mean + 0.05).abs() < 1e-12, "{mean}");
        // Without the first 5 / 10, without the second -10 / 90: half their distance is the error.
        let half = 0.5 * (found.interval.high - found.interval.low);
        assert!((half - 12.706_204_7 * 0.5 * (0.5 + 10.0 / 90.0)).abs() < 1e-6, "{half}");
        assert_eq!((found.share_ahead, found.interval_with_seeds), (0.5, None));
        assert!((found.effective_documents - 100.0_f64.powi(2) / 8200.0).abs() < 1e-12);
    }

    #[test]
    fn an_open_number_of_seeds_widens_the_interval_over_both_too() {
        let differences = [-0.02, -0.03, -0.01, -0.025, -0.015, -0.02, -0.03];
        let nats_sd: Vec<Vec<f64>> =
            differences.iter().map(|of| vec![of * 90.0, of * 110.0 + 0.1, of * 100.0 - 0.1]).collect();
        let found = DocumentDifference::new(&nats_sd, &[90, 110, 100], 0.95).unwrap();
        let seeds = PairedDifference::new(&differences, 0.95).unwrap();
        assert_eq!(found.clone().judged_at(&seeds, Stopping::Planned), found);
        let open = found.judged_at(&seeds, Stopping::Open).interval_with_seeds.unwrap();
        let alone = seeds.anytime_interval.unwrap();
        assert!(open.low < alone.low && alone.high < open.high, "{open:?} {alone:?}");
    }

    #[test]
    fn what_has_no_spread_has_no_interval() {
        assert_eq!(DocumentDifference::new(&[vec![1.0]], &[5], 0.95), None);
        assert_eq!(DocumentDifference::new(&[vec![1.0, 2.0], vec![1.0]], &[5, 5], 0.95), None);
        assert_eq!(DocumentDifference::new(&[], &[5, 5], 0.95), None);
    }

    const NUM_SEEDS: usize = 6;
    const TRUTH: f64 = -0.02;

    /// A study of documents whose lengths have a `spread`, each with an effect of its own, and of six
    /// seeds with theirs; also the mean over all documents of those seeds.
    fn simulated(num_documents: usize, spread: f64, noise: &mut NormalNoise) -> (DocumentDifference, f64) {
        let length = |noise: &mut NormalNoise| (200.0 * (spread * noise.next()).exp()) as u64 + 1;
        let tokens_d: Vec<u64> = (0..num_documents).map(|_| length(noise)).collect();
        let effect_d: Vec<f64> = tokens_d.iter().map(|_| 0.05 * noise.next()).collect();
        let effect_s: Vec<f64> = (0..NUM_SEEDS).map(|_| 0.01 * noise.next()).collect();
        let mut nats_of = |of_seed: &f64| {
            let nats = |(&tokens, of_document): (&u64, &f64)| {
                tokens as f64 * (TRUTH + of_seed + of_document + 0.02 * noise.next())
            };
            tokens_d.iter().zip(&effect_d).map(nats).collect()
        };
        let nats_sd: Vec<Vec<f64>> = effect_s.iter().map(&mut nats_of).collect();
        let of_seeds = TRUTH + effect_s.iter().sum::<f64>() / NUM_SEEDS as f64;
        (DocumentDifference::new(&nats_sd, &tokens_d, 0.95).unwrap(), of_seeds)
    }

    #[test]
    fn the_intervals_cover_what_they_speak_of() {
        let contains = |interval: &Interval, value: f64| interval.low <= value && value <= interval.high;
        // The second has about as many documents of one length as a real split was found to have.
        for (num_documents, spread) in [(60, 0.8), (36, 1.5)] {
            let over_documents = coverage(2000, |noise| {
                let (found, of_seeds) = simulated(num_documents, spread, noise);
                contains(&found.interval, of_seeds)
            });
            assert!((0.93..=0.975).contains(&over_documents), "{num_documents}: {over_documents}");
            let over_both = coverage(2000, |noise| {
                let (found, _) = simulated(num_documents, spread, noise);
                contains(&found.interval_with_seeds.unwrap(), TRUTH)
            });
            assert!((0.94..=0.995).contains(&over_both), "{num_documents}: {over_both}");
        }
    }
}
