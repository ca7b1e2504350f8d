//! The learning rate as a function of the step.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// Linear warm-up, then one [`ScheduleShape`], over a known number of steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Highest learning rate.
    pub peak_learning_rate: f64,
    /// Steps over which the learning rate rises to its peak.
    pub warmup_steps: u64,
    /// Steps of the whole run.
    pub num_steps: u64,
    /// What follows the warm-up.
    pub shape: ScheduleShape,
}

/// The course of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleShape {
    /// The peak throughout.
    Constant,
    /// Half a cosine down to the minimum (arXiv:1608.03983, eq. 5, without restarts).
    Cosine {
        /// Learning rate of the last step.
        min_learning_rate: f64,
    },
    /// A straight line down to the minimum.
    Linear {
        /// Learning rate of the last step.
        min_learning_rate: f64,
    },
    /// The peak, then a straight line down over the last steps (arXiv:2404.06395).
    Wsd {
        /// Steps of the final decay.
        decay_steps: u64,
        /// Learning rate of the last step.
        min_learning_rate: f64,
    },
    /// The peak times the root of the warm-up's share in the steps so far (arXiv:1706.03762, eq. 3).
    InverseSqrt,
}

impl Schedule {
    /// Learning rate of the update with index `step`, counted from 0; past the end, that of the
    /// last step.
    ///
    /// Warm-up step i has `peak * (i + 1) / (warmup_steps + 1)`: the first update already moves,
    /// and the peak comes right after the warm-up, at step `warmup_steps`. Cosine and linear fall
    /// from there to their minimum at step `num_steps - 1`; the inverse root does not know how many
    /// steps there are. A warm-up that fills the run leaves
    /// nothing to decay.
    pub fn learning_rate(&self, step: u64) -> f64 {
        let last_step = self.num_steps.saturating_sub(1);
        let step = step.min(last_step);
        if step < self.warmup_steps {
            return self.peak_learning_rate * (step + 1) as f64 / (self.warmup_steps + 1) as f64;
        }
        let share_after_warmup = share_done(step, self.warmup_steps, last_step);
        match self.shape {
            ScheduleShape::Constant => self.peak_learning_rate,
            ScheduleShape::Cosine { min_learning_rate } => {
                self.toward(min_learning_rate, 0.5 * (1.0 - (PI * share_after_warmup).cos()))
            }
            ScheduleShape::Linear { min_learning_rate } => self.toward(min_learning_rate, share_after_warmup),
            ScheduleShape::Wsd { decay_steps, min_learning_rate } => {
                let steps_decayed = (step + 1 + decay_steps).saturating_sub(self.num_steps);
                self.toward(min_learning_rate, steps_decayed as f64 / decay_steps.max(1) as f64)
            }
            ScheduleShape::InverseSqrt => {
                self.peak_learning_rate * ((self.warmup_steps + 1) as f64 / (step + 1) as f64).sqrt()
            }
        }
    }

    /// The value that lies `share` of the way from the peak to `minimum`; exact at both ends.
    fn toward(&self, minimum: f64, share: f64) -> f64 {
        self.peak_learning_rate * (1.0 - share) + minimum * share
    }
}

/// How far `step` is on the way from step `first` to step `last`, in `0..=1`.
fn share_done(step: u64, first: u64, last: u64) -> f64 {
    if last <= first { 0.0 } else { (step - first) as f64 / (last - first) as f64 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PEAK: f64 = 1e-3;
    const MIN: f64 = 1e-4;
    /// Rounding of a few operations on numbers of the peak's size.
    const ROUNDING: f64 = PEAK * 1e-14;

    /// Those that end where they are told to.
    fn shapes(decay_steps: u64) -> [ScheduleShape; 4] {
        [
            ScheduleShape::Constant,
            ScheduleShape::Cosine { min_learning_rate: MIN },
            ScheduleShape::Linear { min_learning_rate: MIN },
            ScheduleShape::Wsd { decay_steps, min_learning_rate: MIN },
        ]
    }

    fn schedule(warmup_steps: u64, num_steps: u64, shape: ScheduleShape) -> Schedule {
        Schedule { peak_learning_rate: PEAK, warmup_steps, num_steps, shape }
    }

    #[test]
    fn nanogpt_warm_up_and_cosine_are_reproduced() {
        let cosine = schedule(100, 2000, ScheduleShape::Cosine { min_learning_rate: MIN });
        assert_eq!(cosine.learning_rate(0), 1e-3 / 101.0);
        assert_eq!(cosine.learning_rate(99), 1e-3 * 100.0 / 101.0);
        assert_eq!(cosine.learning_rate(100), PEAK);
        // nanoGPT's formula with `lr_decay_iters` at the last step, which is where the minimum
        // falls here.
        let nanogpt = |step: f64| {
            let ratio = (step - 100.0) / (1999.0 - 100.0);
            MIN + 0.5 * (1.0 + (std::f64::consts::PI * ratio).cos()) * (PEAK - MIN)
        };
        for step in [101, 500, 1050, 1998] {
            assert!((cosine.learning_rate(step) - nanogpt(step as f64)).abs() < ROUNDING);
        }
    }

    /// The paper's rate of update n, counted from 1: `d^-0.5 min(n^-0.5, n w^-1.5)`, whose peak is at w.
    #[test]
    fn the_schedule_of_the_2017_transformer_is_reproduced() {
        let (width, warmup) = (512_f64, 4000_u64);
        let peak_learning_rate = (width * warmup as f64).powf(-0.5);
        let shape = ScheduleShape::InverseSqrt;
        let schedule = Schedule { peak_learning_rate, warmup_steps: warmup - 1, num_steps: 100_000, shape };
        for update in [1_u64, 2, 3999, 4000, 4001, 20_000, 100_000] {
            let n = update as f64;
            let expected = width.powf(-0.5) * n.powf(-0.5).min(n * (warmup as f64).powf(-1.5));
            let rate = schedule.learning_rate(update - 1);
            assert!((rate / expected - 1.0).abs() < 1e-12, "update {update}: {rate} {expected}");
        }
    }

    #[test]
    fn wsd_decays_over_exactly_its_steps() {
        let wsd = schedule(2, 10, ScheduleShape::Wsd { decay_steps: 4, min_learning_rate: 0.0 });
        let expected = [1.0 / 3.0, 2.0 / 3.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0];
        for (step, share) in expected.into_iter().enumerate() {
            assert!((wsd.learning_rate(step as u64) - share * PEAK).abs() < ROUNDING, "step {step}");
        }
    }

    #[test]
    fn a_warm_up_longer_than_the_run_only_rises() {
        let cosine = schedule(100, 10, ScheduleShape::Cosine { min_learning_rate: MIN });
        assert_eq!(cosine.learning_rate(9), PEAK * 10.0 / 101.0);
        assert_eq!(cosine.learning_rate(u64::MAX), cosine.learning_rate(9));
    }

    proptest! {
        #[test]
        fn each_schedule_rises_to_its_peak_then_falls_to_its_minimum_without_jumps(
            warmup_steps in 0_u64..50,
            decay_steps in 1_u64..50,
            stable_steps in 1_u64..50,
        ) {
            let num_steps = warmup_steps + stable_steps + decay_steps;
            for shape in shapes(decay_steps) {
                let schedule = schedule(warmup_steps, num_steps, shape);
                let rates: Vec<f64> = (0..num_steps).map(|step| schedule.learning_rate(step)).collect();
                let end = if shape == ScheduleShape::Constant { PEAK } else { MIN };
                prop_assert_eq!(rates[warmup_steps as usize], PEAK);
                prop_assert_eq!(rates[num_steps as usize - 1], end);
                prop_assert_eq!(schedule.learning_rate(num_steps + 7), end);
                prop_assert!(rates.iter().all(|rate| *rate > 0.0 && *rate <= PEAK + ROUNDING));
                let (rising, falling) = rates.split_at(warmup_steps as usize);
                prop_assert!(rising.windows(2).all(|pair| pair[0] < pair[1]));
                prop_assert!(falling.windows(2).all(|pair| pair[1] <= pair[0] + ROUNDING));
                // No step is larger than the steepest slope: pi/2 times a straight line's for the
                // cosine.
                let rise = PEAK / (warmup_steps + 1) as f64;
                let fall_steps = if matches!(shape, ScheduleShape::Wsd { .. }) { decay_steps } else { num_steps - 1 - warmup_steps };
                let largest = rise.max(PI / 2.0 * (PEAK - MIN) / fall_steps as f64) + ROUNDING;
                prop_assert!(rates.windows(2).all(|pair| (pair[1] - pair[0]).abs() <= largest));
            }
        }
    }
}
