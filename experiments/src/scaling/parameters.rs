//! Range and starting values of every parameter that a fit moves.

use super::terms::MAX_PARAMETERS;

/// A parameter's range and where the search starts.
///
/// The ranges are wide: a coefficient that ends at one says that the study does not determine it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Parameter {
    pub(super) lowest: f64,
    pub(super) highest: f64,
    /// Value where the study has too few distinct values to fit it.
    pub(super) held: f64,
    /// The search starts from every combination of the parameters' starts.
    pub(super) starts: &'static [f64],
}

/// Share of a range's width that counts as its edge.
const EDGE: f64 = 0.005;

impl Parameter {
    const fn new(range: [f64; 2], starts: &'static [f64]) -> Self {
        Self { lowest: range[0], highest: range[1], held: starts[0], starts }
    }

    const fn held_at(self, held: f64) -> Self {
        Self { held, ..self }
    }

    /// The value of an unbounded search variable, inside the range, with its slope.
    pub(super) fn value_and_slope(&self, variable: f64) -> (f64, f64) {
        let share = 1.0 / (1.0 + (-variable).exp());
        let width = self.highest - self.lowest;
        (self.lowest + width * share, width * share * (1.0 - share))
    }

    /// The search variable of `value`, kept off the edges, where the search would not move.
    pub(super) fn variable(&self, value: f64) -> f64 {
        let share =
            ((value - self.lowest) / (self.highest - self.lowest)).clamp(4.0 * EDGE, 1.0 - 4.0 * EDGE);
        (share / (1.0 - share)).ln()
    }

    /// Whether `value` lies at an end of the range.
    pub(super) fn is_at_bound(&self, value: f64) -> bool {
        let share = (value - self.lowest) / (self.highest - self.lowest);
        !(EDGE..=1.0 - EDGE).contains(&share)
    }
}

/// Every combination of the parameters' starts.
pub(super) fn starting_points(parameters: &[Parameter]) -> Vec<Vec<f64>> {
    parameters.iter().fold(vec![Vec::new()], |points, parameter| {
        let extend = |point: &Vec<f64>| {
            parameter.starts.iter().map(|&start| [point.as_slice(), &[start]].concat()).collect::<Vec<_>>()
        };
        points.iter().flat_map(extend).collect()
    })
}

/// Logarithm of a term at the centre of the study, in shares of the mean loss: 0.01% to four times.
const TERM: [f64; 2] = [-9.2, 1.4];
/// Logarithm of the irreducible loss, in shares of the mean loss: 0.1% to all of it.
const FLOOR: [f64; 2] = [-6.9, 0.0];
/// Logarithm of an exponent: 0.005 to 3.
const EXPONENT: [f64; 2] = [-5.3, 1.1];
/// Signed exponent of E_hat at the centre.
const EXPERT_EXPONENT: [f64; 2] = [-3.0, 3.0];
/// Interaction of E_hat with a size.
const INTERACTION: [f64; 2] = [-0.5, 0.5];

/// ln E_start: 1 to 16; held as published in arXiv:2502.05172, Table 3.
const LOG_START: Parameter = Parameter::new([0.0, 2.77], &[0.7]).held_at(0.729_093);
/// ln(E_max / E_start): 2 to 5000; held as published in arXiv:2502.05172, Table 3.
const LOG_RATIO: Parameter = Parameter::new([0.69, 8.5], &[2.5, 5.0]).held_at(4.942_345);

/// ln c, ln a, ln alpha, ln b, ln beta, ln g, ln gamma; the first five are the dense form's. gamma
/// is held as published in arXiv:2402.07871, Table 1: 0.58.
pub(super) const KRAJEWSKI: [Parameter; 7] = [
    Parameter::new(FLOOR, &[-1.6, -0.7, -0.2]),
    Parameter::new(TERM, &[-1.5]),
    Parameter::new(EXPONENT, &[-2.3, -0.9]),
    Parameter::new(TERM, &[-1.5]),
    Parameter::new(EXPONENT, &[-2.3, -0.9]),
    Parameter::new(TERM, &[-3.0]),
    Parameter::new(EXPONENT, &[-0.54]).held_at(-0.544_727),
];

/// d, a, b, c, ln E_start, ln(E_max / E_start).
pub(super) const CLARK: [Parameter; 6] = [
    Parameter::new([-1.0, 1.0], &[0.0]),
    Parameter::new([-2.0, 2.0], &[-0.05, -0.3]),
    Parameter::new([-2.0, 2.0], &[-0.03, -0.2]),
    Parameter::new(INTERACTION, &[0.0]),
    LOG_START,
    LOG_RATIO,
];

/// ln c, ln a, ln -alpha, ln b, ln -beta, delta, gamma, omega, zeta, ln E_start, ln(E_max /
/// E_start).
pub(super) const JOINT: [Parameter; 11] = [
    Parameter::new(FLOOR, &[-1.6, -0.4]),
    Parameter::new(TERM, &[-1.5]),
    Parameter::new(EXPONENT, &[-2.3, -0.9]),
    Parameter::new(TERM, &[-1.5]),
    Parameter::new(EXPONENT, &[-2.3, -0.9]),
    Parameter::new(EXPERT_EXPONENT, &[-0.2]),
    Parameter::new(INTERACTION, &[0.0]),
    Parameter::new(EXPERT_EXPONENT, &[0.0]),
    Parameter::new(INTERACTION, &[0.0]),
    LOG_START,
    LOG_RATIO,
];

/// Logarithm of a term that may be much smaller than the loss: a millionth to four times.
const SMALL_TERM: [f64; 2] = [-13.8, 1.4];

/// ln epsilon, ln a, ln alpha, ln b, ln beta, ln c, ln k, ln h, ln e, ln f, ln m, n.
pub(super) const FIVE_FACTOR: [Parameter; MAX_PARAMETERS] = [
    Parameter::new(FLOOR, &[-1.6, -0.4]),
    Parameter::new(TERM, &[-2.3]),
    Parameter::new(EXPONENT, &[-2.3, -0.9]),
    Parameter::new(TERM, &[-1.5]),
    Parameter::new(EXPONENT, &[-2.3, -0.9]),
    Parameter::new(TERM, &[-2.3]),
    // Over 1/N^alpha: a thousandth to a hundred times.
    Parameter::new([-6.9, 4.6], &[-1.5]),
    Parameter::new([-6.9, 4.6], &[-0.5]),
    Parameter::new(SMALL_TERM, &[-5.0]),
    Parameter::new(SMALL_TERM, &[-5.0]),
    Parameter::new(SMALL_TERM, &[-4.0]),
    Parameter::new([-1.0, 1.0], &[-0.01]),
];

/// ln alpha_D, ln beta_D, a, d, ln A_start, beta, gamma. A_start is held as published in
/// arXiv:2507.17702, Table 2; without other granularities beta and gamma are zero and a has their
/// effect.
pub(super) const LEVERAGE: [Parameter; 7] = [
    Parameter::new([-1.0, 1.0], &[0.0]),
    Parameter::new(EXPONENT, &[-3.5, -2.3]),
    Parameter::new([-3.0, 3.0], &[-0.2, -0.8]),
    Parameter::new(INTERACTION, &[0.0]),
    // 0.0001 to 1.
    Parameter::new([-9.2, 0.0], &[-4.1]).held_at(-4.116_590),
    Parameter::new([-2.0, 2.0], &[0.0]),
    Parameter::new([-1.0, 1.0], &[0.0]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scaling::expert_saturation::ExpertSaturation;

    #[test]
    fn a_value_inside_the_range_survives_the_search_variable() {
        let parameter = KRAJEWSKI[2];
        for value in [-4.0, -2.3, 0.5] {
            let (back, _) = parameter.value_and_slope(parameter.variable(value));
            assert!((back - value).abs() < 1e-12);
        }
    }

    #[test]
    fn the_search_never_leaves_the_range() {
        let parameter = CLARK[1];
        for variable in [-1e3, -5.0, 0.0, 5.0, 1e3] {
            let (value, slope) = parameter.value_and_slope(variable);
            assert!((parameter.lowest..=parameter.highest).contains(&value) && slope >= 0.0);
        }
        assert!(parameter.is_at_bound(parameter.highest) && !parameter.is_at_bound(0.0));
    }

    #[test]
    fn held_experts_are_the_published_ones() {
        let held = ExpertSaturation::from_logs(LOG_START.held, LOG_RATIO.held);
        assert!((held.start - ExpertSaturation::PUBLISHED.start).abs() < 1e-4);
        assert!((held.max - ExpertSaturation::PUBLISHED.max).abs() < 1e-2);
    }

    #[test]
    fn the_held_start_of_the_activation_ratio_is_the_published_one() {
        assert!((LEVERAGE[4].held.exp() - 1.63e-2).abs() < 1e-7);
    }

    #[test]
    fn starts_are_every_combination_within_the_ranges() {
        let starts = starting_points(&JOINT);
        assert_eq!(starts.len(), 16);
        for (value, parameter) in starts.iter().flat_map(|start| start.iter().zip(&JOINT)) {
            assert!(!parameter.is_at_bound(*value));
        }
    }
}
