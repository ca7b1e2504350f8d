//! What a router learns: the gate that turns a token into one logit per expert.
//!
//! Shape letters: t tokens, d model width, e experts, c width of a cosine gate's comparison.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor};
use switchyard_kernels::{Compute, linear};

use crate::GatePrecision;

/// Largest factor on the cosines, the inverse of the lowest temperature (as in Tutel's cosine
/// gate).
const MAX_COSINE_SCALE: f64 = 100.0;
/// Added to squared lengths: a token of zeros is at a right angle to every expert.
const LENGTH_EPSILON: f64 = 1e-12;

/// Initial values of a [`Router`](crate::Router); which of them there are depends on the
/// configuration.
#[derive(Debug, Clone, Default)]
pub struct GateWeights {
    /// Linear gate, `[d_model, num_experts]`; under soft mixing one column per slot.
    pub weight_de: Option<Tensor<2>>,
    /// Gate of the noise's size, `[d_model, num_experts]`.
    pub noise_weight_de: Option<Tensor<2>>,
    /// Cosine gate.
    pub cosine: Option<CosineWeights>,
    /// Bias of the linear gate's logits, `[num_experts]`.
    pub logit_bias_e: Option<Tensor<1>>,
    /// Bias of each expert in the selection.
    pub bias_e: Option<Tensor<1>>,
}

/// Initial values of a [`CosineGate`].
#[derive(Debug, Clone)]
pub struct CosineWeights {
    /// Projection of the tokens, `[d_model, d_projection]`.
    pub projection_dc: Tensor<2>,
    /// One direction per expert, `[d_projection, num_experts]`.
    pub directions_ce: Tensor<2>,
    /// Logarithm of the factor on the cosines, `[1]`.
    pub log_scale_1: Tensor<1>,
}

impl GateWeights {
    /// A linear gate.
    pub fn linear(weight_de: Tensor<2>) -> Self {
        Self { weight_de: Some(weight_de), ..Self::default() }
    }
}

/// A gate by angles: `scale * cos(x P, direction_e)` (X-MoE, arXiv:2204.09179, eq. 4 and 5).
#[derive(Module, Debug)]
pub struct CosineGate {
    /// Projection of the tokens, `[d_model, d_projection]`.
    pub projection_dc: Param<Tensor<2>>,
    /// One direction per expert, `[d_projection, num_experts]`.
    pub directions_ce: Param<Tensor<2>>,
    /// Logarithm of the factor on the cosines, `[1]`: minus that of the temperature.
    pub log_scale_1: Param<Tensor<1>>,
}

impl CosineGate {
    pub(crate) fn new(weights: CosineWeights) -> Self {
        Self {
            projection_dc: Param::from_tensor(weights.projection_dc),
            directions_ce: Param::from_tensor(weights.directions_ce),
            log_scale_1: Param::from_tensor(weights.log_scale_1),
        }
    }

    pub(crate) fn logits_te(&self, x_td: Tensor<2>, dtype: DType) -> Tensor<2> {
        let projected_tc = linear(x_td, self.projection_dc.val().cast(dtype), None, Compute::F32);
        let cosines_te = linear(
            unit_length(projected_tc, 1),
            unit_length(self.directions_ce.val().cast(dtype), 0),
            None,
            Compute::F32,
        );
        let scale_1 = self.log_scale_1.val().cast(dtype).clamp_max(MAX_COSINE_SCALE.ln()).exp();
        cosines_te * scale_1.reshape([1, 1])
    }
}

fn unit_length(x: Tensor<2>, dim: usize) -> Tensor<2> {
    let length = (x.clone().square().sum_dim(dim) + LENGTH_EPSILON).sqrt();
    x / length
}

/// What the gate says about every token.
#[derive(Debug, Clone)]
pub(crate) struct GateOutput {
    /// `[num_tokens, num_experts]`, the noise included.
    pub(crate) logits_te: Tensor<2>,
    /// The logits before the noise and the noise's standard deviations, where there is noise.
    pub(crate) noise: Option<GateNoise>,
}

/// Parts of noisy logits.
#[derive(Debug, Clone)]
pub(crate) struct GateNoise {
    pub(crate) clean_logits_te: Tensor<2>,
    pub(crate) std_te: Tensor<2>,
}

/// `x` in the type of the gate's arithmetic: never shorter than 32 bits.
pub(crate) fn in_gate_precision(x: Tensor<2>, precision: GatePrecision) -> Tensor<2> {
    match (precision, x.dtype()) {
        (GatePrecision::F64, dtype) if dtype != DType::F64 => x.cast(DType::F64),
        (GatePrecision::F32, DType::F16 | DType::BF16) => x.cast(DType::F32),
        _ => x,
    }
}
