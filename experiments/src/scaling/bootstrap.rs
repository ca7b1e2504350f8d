//! Intervals of coefficients and predictions: the fit repeated on resampled configurations.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use super::Observation;
use super::law::Law;
use super::optimizer::minimize;

/// Draws per wanted sample, before giving up on a study whose resamples mostly lack what the form
/// needs.
const DRAWS_PER_SAMPLE: usize = 5;

/// Share of the samples below and above an interval: it covers 95%.
pub(super) const TAIL: f64 = 0.025;

/// Fewer samples than this leave no interval.
const FEWEST_SAMPLES: usize = 40;

/// Parameters of `law` refitted on `num_samples` resamples of `observations`. Configurations are
/// drawn with replacement and keep all their seeds: repeats of one configuration share its misfit,
/// so drawing single runs would give intervals that are too narrow. A draw that lacks what the form
/// needs is drawn again.
///
/// Returns fewer refits, or none, if too many draws lack it.
pub(super) fn refits(
    law: &Law,
    observations: &[&Observation],
    parameters: &[f64],
    num_samples: usize,
    seed: u64,
) -> Vec<Vec<f64>> {
    let groups = by_label(observations);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..num_samples * DRAWS_PER_SAMPLE)
        .filter_map(|_| refit(law, &resample(&groups, &mut random), parameters))
        .take(num_samples)
        .collect()
}

/// Around the centre of all runs, so that the fit's own parameters are the start.
fn refit(law: &Law, sample: &[&Observation], parameters: &[f64]) -> Option<Vec<f64>> {
    let is_as_rich = Law::new(law.form, sample).is_ok_and(|drawn| drawn.num_free == law.num_free);
    if !is_as_rich {
        return None;
    }
    let solution = minimize(law, sample, parameters);
    solution.huber_loss.is_finite().then_some(solution.parameters)
}

fn resample<'runs>(groups: &[Vec<&'runs Observation>], random: &mut ChaCha8Rng) -> Vec<&'runs Observation> {
    (0..groups.len()).flat_map(|_| groups[random.random_range(0..groups.len())].iter().copied()).collect()
}

/// The runs of each configuration, in the order of their first run.
pub(super) fn by_label<'runs>(observations: &[&'runs Observation]) -> Vec<Vec<&'runs Observation>> {
    let mut groups: Vec<Vec<&Observation>> = Vec::new();
    for &run in observations {
        match groups.iter_mut().find(|group| group[0].label == run.label) {
            Some(group) => group.push(run),
            None => groups.push(vec![run]),
        }
    }
    groups
}

/// The range of the middle 95% of `values`; `None` if there are too few.
pub(super) fn percentile_interval(mut values: Vec<f64>) -> Option<(f64, f64)> {
    if values.len() < FEWEST_SAMPLES {
        return None;
    }
    values.sort_by(f64::total_cmp);
    Some((quantile(&values, TAIL), quantile(&values, 1.0 - TAIL)))
}

/// Linear interpolation between the order statistics of `sorted`, which must not be empty.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let position = share * (sorted.len() - 1) as f64;
    let below = sorted[position.floor() as usize];
    let above = sorted[position.ceil() as usize];
    below + (above - below) * position.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_interpolates_between_order_statistics() {
        // Positions 2.475 and 96.525 of 0..=99: 4 + 0.475 * (9 - 4) and 9216 + 0.525 * (9409 -
        // 9216).
        let values = (0..100).rev().map(|value| f64::from(value * value)).collect();
        let (low, high) = percentile_interval(values).unwrap();
        assert!((low - 6.375).abs() < 1e-9 && (high - 9_317.325).abs() < 1e-9, "{low} {high}");
    }

    #[test]
    fn few_samples_leave_no_interval() {
        assert_eq!(percentile_interval(vec![1.0; 39]), None);
    }
}
