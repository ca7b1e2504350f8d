//! The selection bias of balancing without a loss (Wang et al., arXiv:2408.15664).
//!
//! The bias is added to the scores that select experts, never to the gates, and follows the loads
//! of the last step.
//!
//! Shape letters: e experts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How far an expert's bias moves, given its load and the mean load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
pub enum BiasUpdate {
    /// `rate * sign(mean - load)` (arXiv:2408.15664, algorithm 1).
    #[default]
    Sign,
    /// `rate * (mean - load) / mean`. The paper's variant of section 4.3, `rate * (mean - load)`,
    /// is this with the rate multiplied by the mean load; divided by it, one rate serves every
    /// batch size.
    Proportional,
}

impl BiasUpdate {
    /// Moves the bias of every expert towards an even load, then subtracts the mean of all biases.
    /// Algorithm 1 does not subtract it; it changes no choice, and keeps the biases from drifting
    /// away from the scores together. Loads that are even, or all zero, change nothing.
    ///
    /// # Shapes
    /// - `bias_e`: `[num_experts]`; `tokens_per_expert`: `[num_experts]`, summed over the step's
    ///   micro-batches
    ///
    /// # Panics
    /// If there is not one load per bias.
    pub fn apply(self, bias_e: &mut [f64], tokens_per_expert: &[u64], rate: f64) {
        assert!(
            bias_e.len() == tokens_per_expert.len(),
            "{} biases but {} loads",
            bias_e.len(),
            tokens_per_expert.len()
        );
        let violation_e = load_violations(tokens_per_expert);
        if violation_e.iter().all(|&violation| violation == 0.0) {
            return;
        }
        for (bias, violation) in bias_e.iter_mut().zip(violation_e) {
            *bias += match self {
                Self::Sign if violation == 0.0 => 0.0, // f64's signum of 0 is 1.
                Self::Sign => rate * violation.signum(),
                Self::Proportional => rate * violation,
            };
        }
        recentre(bias_e);
    }
}

/// Subtracts the mean. Selection sees no difference.
pub(crate) fn recentre(bias_e: &mut [f64]) {
    let mean = bias_e.iter().sum::<f64>() / bias_e.len() as f64;
    bias_e.iter_mut().for_each(|bias| *bias -= mean);
}

/// `(mean - load) / mean` of each expert, exactly 0 at the mean; zeros without tokens.
fn load_violations(tokens_per_expert: &[u64]) -> Vec<f64> {
    let total: i128 = tokens_per_expert.iter().map(|&load| i128::from(load)).sum();
    let num_experts = tokens_per_expert.len() as i128;
    // Counted in units of 1 / num_experts of a token, the mean is a whole number.
    let violation = |&load: &u64| (total - num_experts * i128::from(load)) as f64 / total as f64;
    if total == 0 {
        vec![0.0; tokens_per_expert.len()]
    } else {
        tokens_per_expert.iter().map(violation).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOTH: [BiasUpdate; 2] = [BiasUpdate::Sign, BiasUpdate::Proportional];

    fn updated(update: BiasUpdate, bias_e: &[f64], loads: &[u64], rate: f64) -> Vec<f64> {
        let mut bias_e = bias_e.to_vec();
        update.apply(&mut bias_e, loads, rate);
        bias_e
    }

    #[track_caller]
    fn assert_close(actual: &[f64], expected: &[f64]) {
        assert_eq!(actual.len(), expected.len());
        for (a, e) in actual.iter().zip(expected) {
            assert!((a - e).abs() < 1e-15, "{actual:?} instead of {expected:?}");
        }
    }

    /// Loads 8, 2, 2, 4 around their mean 4. Signs -1, 1, 1, 0 have mean 1/4; the shares -1, 1/2,
    /// 1/2, 0 mean 0.
    #[test]
    fn golden_values() {
        let signs = updated(BiasUpdate::Sign, &[0.0; 4], &[8, 2, 2, 4], 0.1);
        assert_close(&signs, &[-0.125, 0.075, 0.075, -0.025]);
        let shares = updated(BiasUpdate::Proportional, &[0.0; 4], &[8, 2, 2, 4], 0.1);
        assert_close(&shares, &[-0.1, 0.05, 0.05, 0.0]);
    }

    #[test]
    fn nothing_routed_or_even_loads_change_nothing() {
        let bias_e = [0.3, -0.1, 7.0];
        for update in BOTH {
            assert_eq!(updated(update, &bias_e, &[0; 3], 0.1), bias_e);
            assert_eq!(updated(update, &bias_e, &[u64::MAX / 3; 3], 0.1), bias_e);
            assert_eq!(updated(update, &[0.0], &[12], 0.1), [0.0]);
            assert!(updated(update, &[], &[], 0.1).is_empty());
        }
    }

    #[test]
    #[should_panic(expected = "2 biases but 3 loads")]
    fn a_wrong_number_of_loads_is_refused() {
        BiasUpdate::Sign.apply(&mut [0.0; 2], &[1, 2, 3], 0.1);
    }

    proptest! {
        /// Before the common shift, the sign update moves an expert by the rate or not at all.
        #[test]
        fn every_expert_moves_towards_the_mean_load(
            loads in prop::collection::vec(0_u64..9, 1..8),
            start in -1.0..1.0_f64,
        ) {
            let bias_e = updated(BiasUpdate::Sign, &vec![start; loads.len()], &loads, 0.5);
            let (total, n) = (loads.iter().sum::<u64>(), loads.len() as u64);
            for (i, j) in (0..loads.len()).flat_map(|i| (0..loads.len()).map(move |j| (i, j))) {
                let side = |load: u64| f64::from((load * n < total) as i8 - (load * n > total) as i8);
                let expected = 0.5 * (side(loads[i]) - side(loads[j]));
                prop_assert!((bias_e[i] - bias_e[j] - expected).abs() < 1e-12);
            }
        }

        #[test]
        fn the_mean_bias_stays_zero(
            steps in prop::collection::vec(prop::collection::vec(0_u64..1000, 5), 1..50),
            update in prop::sample::select(BOTH.to_vec()),
        ) {
            let mut bias_e = vec![0.0; 5];
            for loads in steps {
                update.apply(&mut bias_e, &loads, 0.01);
                prop_assert!(bias_e.iter().sum::<f64>().abs() < 1e-14);
            }
        }

        #[test]
        fn the_proportional_update_does_not_depend_on_the_number_of_tokens(
            loads in prop::collection::vec(0_u64..1000, 5),
            times in 1_u64..1000,
        ) {
            let more: Vec<u64> = loads.iter().map(|load| load * times).collect();
            let once = updated(BiasUpdate::Proportional, &[0.0; 5], &loads, 0.1);
            let scaled = updated(BiasUpdate::Proportional, &[0.0; 5], &more, 0.1);
            prop_assert!(once.iter().zip(scaled).all(|(a, b)| (a - b).abs() < 1e-14));
        }
    }
}
