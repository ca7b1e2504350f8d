//! Activation functions of feed-forward blocks.
//!
//! Shape letters: n rows, f hidden width.

mod kept;
mod lanes;

use schemars::JsonSchema;
use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer, Serialize};

pub use kept::Kept;
pub use lanes::{activate, backward};

/// Non-linearity of a feed-forward block, dense or expert.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Activation {
    /// `silu(x W_gate) * (x W_up)`: three weight matrices (arXiv:2002.05202).
    Swiglu,
    /// SwiGLU with bounded factors, `g sigmoid(alpha g) * (u + 1)` of `g = min(x W_gate, limit)` and
    /// `u = clamp(x W_up, -limit, limit)`: no unit can grow without bound. As in gpt-oss
    /// (arXiv:2508.10925; its published code).
    ClampedSwiglu {
        /// Steepness of the gate's sigmoid, above 0; default 1.702, with which `g sigmoid(alpha g)`
        /// is close to GELU.
        #[serde(default = "default_alpha", deserialize_with = "positive")]
        alpha: f64,
        /// Largest value of the gate and largest magnitude of the up projection, above 0; default 7.
        #[serde(default = "default_limit", deserialize_with = "positive")]
        limit: f64,
    },
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
        matches!(self, Self::Swiglu | Self::ClampedSwiglu { .. })
    }
}

fn default_alpha() -> f64 {
    1.702
}

fn default_limit() -> f64 {
    7.0
}

/// A number above 0, also in f32, which the loops compute in.
fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let value = f64::deserialize(deserializer)?;
    if (value as f32).is_normal() && value > 0.0 {
        return Ok(value);
    }
    Err(D::Error::invalid_value(Unexpected::Float(value), &"a number above 0, between 1e-37 and 1e38"))
}

/// `sqrt(2 / pi)`.
pub const SQRT_2_OVER_PI: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
/// Weight of the cube in GELU's tanh formula, `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`
/// (arXiv:1606.08415, section 2).
pub const TANH_CUBIC: f64 = 0.044715;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwritten::Unwritten;

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
        Unwritten::new(x.len()).whole().fill(|hidden| activate(activation, hidden, x, None)).to_vec()
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
            backward(activation, &mut dx, None, &mut dhidden, 1.0);
            assert_eq!(dx[..3], [1.0, 1.0, 0.0], "{activation:?}");
        }
    }
}
