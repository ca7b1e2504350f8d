//! The bootstrap: what an estimate would have been with other draws of the same units.
//!
//! Resamples of few units spread too little: their variance lacks the factor n / (n - 1), and their
//! tails are those of a normal distribution and not of Student's t (Hesterberg, arXiv:1411.5279, on
//! the narrowness bias). Three units have no percentile far enough out to make up for it, so
//! [`small_sample_widening`] stretches the deviations from the estimate instead. The bias-corrected
//! accelerated interval is not used: it takes its acceleration from the third moment of the units,
//! which three to ten of them do not tell.

use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

use super::interval::{normal_reach, student_t_reach};

/// Units below which nothing is resampled: two have only three different resamples.
pub(super) const FEWEST_UNITS: usize = 3;

/// Resamples. One less than a round number, so that the percentiles in use are order statistics.
const NUM_RESAMPLES: usize = 9_999;

/// Fixed: the same measurements give the same interval.
const SEED: u64 = 95;

/// `statistic` of every resample of `num_units` units, given as the indices drawn with replacement.
/// Resamples for which it has no value are left out.
pub(super) fn resamples<T>(num_units: usize, mut statistic: impl FnMut(&[usize]) -> Option<T>) -> Vec<T> {
    let mut generator = ChaCha8Rng::seed_from_u64(SEED);
    let mut drawn = vec![0; num_units];
    (0..NUM_RESAMPLES)
        .filter_map(|_| {
            drawn.fill_with(|| generator.random_range(0..num_units));
            statistic(&drawn)
        })
        .collect()
}

/// Factor on the deviations of resampled estimates from the estimate, above 1, with which the
/// spread of the mean's resamples gives the width of its Student t interval; `None` with one unit
/// or without a valid `confidence`.
pub(super) fn small_sample_widening(num_units: usize, confidence: f64) -> Option<f64> {
    let degrees_of_freedom = num_units.checked_sub(1)?;
    let reach_ratio = student_t_reach(confidence, degrees_of_freedom)? / normal_reach(confidence)?;
    Some(reach_ratio * (num_units as f64 / degrees_of_freedom as f64).sqrt())
}

/// Ends of the central share `confidence` of `draws`: order statistics, so draws at infinity are
/// welcome. `None` without draws.
pub(super) fn central_range(mut draws: Vec<f64>, confidence: f64) -> Option<(f64, f64)> {
    draws.sort_by(f64::total_cmp);
    let tail = ((1.0 - confidence) / 2.0 * (draws.len() + 1) as f64 + 1e-9).floor() as usize;
    let low = tail.saturating_sub(1);
    let high = draws.len().checked_sub(1 + low)?;
    Some((*draws.get(low)?, draws[high]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_central_range_leaves_out_equal_tails() {
        let draws: Vec<f64> = (1..=999).rev().map(f64::from).collect();
        assert_eq!(central_range(draws.clone(), 0.95), Some((25.0, 975.0)));
        assert_eq!(central_range(draws, 0.90), Some((50.0, 950.0)));
        assert_eq!(central_range(vec![3.0, 1.0, 2.0], 0.95), Some((1.0, 3.0)));
        assert_eq!(central_range(vec![], 0.95), None);
    }

    #[test]
    fn a_few_infinite_draws_stay_outside() {
        let draws = (1..=999).map(|draw| if draw > 980 { f64::INFINITY } else { f64::from(draw) }).collect();
        assert_eq!(central_range(draws, 0.95), Some((25.0, 975.0)));
    }

    #[test]
    fn every_unit_is_drawn_equally_often() {
        let mut counts = [0_u32; 4];
        let draws = resamples(4, |drawn| {
            drawn.iter().for_each(|&unit| counts[unit] += 1);
            Some(())
        });
        assert_eq!(draws.len(), NUM_RESAMPLES);
        // Binomial with n = 39,996 and p = 1/4: five standard deviations are 433.
        assert!(counts.iter().all(|&count| count.abs_diff(9_999) < 433), "{counts:?}");
    }

    #[test]
    fn resampling_repeats_itself() {
        let first = || resamples(5, |drawn| Some(drawn.to_vec()));
        assert_eq!(first(), first());
    }

    #[test]
    fn the_widening_is_strong_for_three_units_and_gone_for_many() {
        // 4.302653 / 1.959964 * sqrt(3 / 2), the quantiles from the table of Student's t.
        assert!((small_sample_widening(3, 0.95).unwrap() - 2.688_647).abs() < 1e-5);
        assert!((small_sample_widening(10_000, 0.95).unwrap() - 1.0).abs() < 2e-4);
        assert_eq!(small_sample_widening(1, 0.95), None);
        assert_eq!(small_sample_widening(0, 0.95), None);
    }
}
