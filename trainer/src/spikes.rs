//! Steps that are not taken because their loss or gradient is far above those before: the rule of
//! OLMo 2's training ("skip step", arXiv:2501.00656, section 3.3 and its code).

use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Serialize};
use switchyard_flight::alarms::SkippedStep;

use crate::config::SkipSpikesConfig;

/// The losses and gradient norms of the last steps, those of skipped steps among them, so that a level
/// that stays is soon no spike.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SpikeHistory {
    losses: VecDeque<f64>,
    grad_norms: VecDeque<f64>,
    /// Steps skipped so far.
    pub skipped_steps: u64,
}

/// Why a step is skipped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spike {
    what: &'static str,
    value: f64,
    limit: f64,
}

impl Spike {
    /// What the alarms are told.
    pub(crate) fn observation(self) -> SkippedStep {
        SkippedStep { what: self.what, value: self.value, limit: self.limit }
    }
}

impl fmt::Display for Spike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its {} of {:.4} is above {:.4}", self.what, self.value, self.limit)
    }
}

impl SpikeHistory {
    /// Whether a step with this loss and gradient norm is to be skipped; takes both in.
    pub(crate) fn judge(&mut self, config: &SkipSpikesConfig, loss: f64, grad_norm: f64) -> Option<Spike> {
        let found = [("loss", loss, &self.losses), ("gradient norm", grad_norm, &self.grad_norms)]
            .into_iter()
            .find_map(|(what, value, before)| {
                let limit = limit(config, before)?;
                (value > limit).then_some(Spike { what, value, limit })
            });
        for (values, value) in [(&mut self.losses, loss), (&mut self.grad_norms, grad_norm)] {
            values.push_back(value);
            if values.len() > config.window_steps {
                values.pop_front();
            }
        }
        self.skipped_steps += u64::from(found.is_some());
        found
    }
}

/// What a value may be at most: so many deviations above the mean of the window; `None` until half of
/// the window is there.
fn limit(config: &SkipSpikesConfig, before: &VecDeque<f64>) -> Option<f64> {
    if before.len() < (config.window_steps / 2).max(2) {
        return None;
    }
    let count = before.len() as f64;
    let mean = before.iter().sum::<f64>() / count;
    let squares: f64 = before.iter().map(|value| (value - mean).powi(2)).sum();
    Some(mean + config.deviations * (squares / (count - 1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: SkipSpikesConfig = SkipSpikesConfig { window_steps: 8, deviations: 3.0 };

    /// A history of `losses`, whose gradient norms do not move.
    fn after(losses: &[f64]) -> SpikeHistory {
        let mut history = SpikeHistory::default();
        losses.iter().for_each(|loss| assert_eq!(history.judge(&CONFIG, *loss, 1.0), None));
        history
    }

    #[test]
    fn a_value_beyond_so_many_deviations_of_the_window_is_a_spike() {
        // Mean 2, deviation of the sample 1.
        let calm = [1.0, 3.0, 2.0, 1.0, 3.0];
        assert_eq!(after(&calm).judge(&CONFIG, 4.9, 1.0), None);
        let mut history = after(&calm);
        let spike = history.judge(&CONFIG, 5.1, 1.0).unwrap();
        assert_eq!(spike.to_string(), "its loss of 5.1000 is above 5.0000");
        assert_eq!(history.skipped_steps, 1);
        assert!(after(&calm).judge(&CONFIG, 2.0, 1.1).unwrap().to_string().contains("gradient norm"));
    }

    #[test]
    fn nothing_is_one_before_half_a_window_and_a_level_that_stays_is_none() {
        assert_eq!(after(&[1.0, 1.0, 1.0]).judge(&CONFIG, 1e9, 1e9), None);
        let mut history = after(&[1.0, 3.0, 2.0, 1.0, 3.0]);
        let skipped = (0..12).filter(|_| history.judge(&CONFIG, 9.0, 1.0).is_some()).count();
        assert!((1..4).contains(&skipped), "{skipped}");
    }
}
