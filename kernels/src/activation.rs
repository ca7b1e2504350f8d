//! Activation functions of feed-forward blocks: their loops on the CPU, and the same as stock operations.
//!
//! Shape letters: n rows, f hidden width.

pub(crate) mod lanes;
pub(crate) mod stock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Non-linearity of a feed-forward block, dense or expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `silu(x W_gate) * (x W_up)`: three weight matrices (arXiv:2002.05202).
    Swiglu,
    /// Exact GELU: `x * Phi(x)` (arXiv:1606.08415).
    Gelu,
    /// GELU's tanh approximation, as in GPT-2.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// Whether the block has a gate matrix beside the up projection.
    pub fn is_gated(self) -> bool {
        matches!(self, Self::Swiglu)
    }
}

/// `sqrt(2 / pi)`.
const SQRT_2_OVER_PI: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
/// Weight of the cube in GELU's tanh formula, `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))` (arXiv:1606.08415,
/// section 2).
const TANH_CUBIC: f64 = 0.044715;

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;
    use crate::matrix::Unwritten;
    use crate::slices::test_support::{assert_agree, random_flex};
    use crate::slices::{elements, from_elements};

    const ALL: [Activation; 4] =
        [Activation::Swiglu, Activation::Gelu, Activation::GeluTanh, Activation::Relu];

    /// Phi by its series near 0 and by the continued fraction of the tail elsewhere, in f64.
    fn normal_distribution(x: f64) -> f64 {
        let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let t = x.abs();
        if t < 3.0 {
            let (mut term, mut sum, mut n) = (x, x, 1.0);
            while f64::abs(term) > 1e-18 {
                n += 2.0;
                term *= x * x / n;
                sum += term;
            }
            return 0.5 + density * sum;
        }
        let fraction = (1..200).rev().fold(t, |fraction, k| t + f64::from(k) / fraction);
        if x < 0.0 { density / fraction } else { 1.0 - density / fraction }
    }

    fn hidden(activation: Activation, x: &[f32]) -> Vec<f32> {
        lanes::activate(activation, Unwritten::new(x.len()).as_mut_slice(), x, None).to_vec()
    }

    /// Its documented accuracy.
    #[test]
    fn gelu_is_accurate_to_five_ten_millionths_and_in_its_lower_tail_to_an_absolute_bound() {
        let x: Vec<f32> = (0..400_001).map(|i| -12.0 + i as f32 * 6e-5).collect();
        for (&x, y) in x.iter().zip(hidden(Activation::Gelu, &x)) {
            let expected = f64::from(x) * normal_distribution(f64::from(x));
            let relative = if x < 0.0 { 1e-7 * (5.0 + f64::from(x * x)) } else { 5e-7 };
            let error = (f64::from(y) - expected).abs();
            assert!(error <= relative * expected.abs(), "gelu({x}) = {y}, not {expected}");
        }
    }

    #[test]
    fn gelu_far_out_is_the_identity_or_zero() {
        let x = [f32::INFINITY, 1e30, -1e30, f32::NAN];
        for activation in [Activation::Gelu, Activation::GeluTanh] {
            let y = hidden(activation, &x);
            assert_eq!(y[..3], [f32::INFINITY, 1e30, 0.0], "{activation:?}");
            assert!(y[3].is_nan(), "{activation:?}");
            let (mut dx, mut dhidden) = (x, [1.0; 4]);
            lanes::backward(activation, &mut dx, None, &mut dhidden, 1.0);
            assert_eq!(dx[..3], [1.0, 1.0, 0.0], "{activation:?}");
        }
    }

    #[test]
    fn loops_agree_with_the_stock_operations() {
        for (activation, len) in
            ALL.into_iter().flat_map(|activation| [1, 7, 16, 1203].map(|len| (activation, len)))
        {
            let [up, gate, dhidden] = [1, 2, 3].map(|seed| random_flex(seed, [1, len]));
            let gate = activation.is_gated().then_some(gate);
            let stock_hidden = stock::activate::<Flex>(activation, up.clone(), gate.clone());
            let (stock_dup, stock_dgate) =
                stock::gradients::<Flex>(activation, up.clone(), gate.clone(), dhidden.clone());

            let tensor = |values: &[f32]| from_elements(values.to_vec(), [1, len].into());
            let mut hidden = Unwritten::new(len);
            let gate_elements = gate.as_ref().map(elements);
            let hidden = lanes::activate(activation, hidden.as_mut_slice(), elements(&up), gate_elements);
            assert_agree("hidden", &tensor(hidden), &stock_hidden);

            let weight = 0.5;
            let mut dup = elements(&up).to_vec();
            let mut dgate = gate.as_ref().map(|gate| elements(gate).to_vec());
            let mut weighted = elements(&dhidden).to_vec();
            let dweight = lanes::backward(activation, &mut dup, dgate.as_deref_mut(), &mut weighted, weight);
            let doubled =
                |values: &[f32]| tensor(&values.iter().map(|value| value / weight).collect::<Vec<_>>());
            assert_agree("gradient of up", &doubled(&dup), &stock_dup);
            if let (Some(dgate), Some(stock_dgate)) = (dgate, stock_dgate) {
                assert_agree("gradient of gate", &doubled(&dgate), &stock_dgate);
            }
            assert_agree("weighted hidden", &doubled(&weighted), &stock_hidden);
            let expected: f64 =
                elements(&dhidden).iter().zip(&*hidden).map(|(&d, &h)| f64::from(d) * f64::from(h)).sum();
            let size: f64 =
                elements(&dhidden).iter().zip(&*hidden).map(|(&d, &h)| f64::from((d * h).abs())).sum();
            assert!((f64::from(dweight) - expected).abs() <= 1e-6 * size, "{dweight}, not {expected}");
        }
    }
}
