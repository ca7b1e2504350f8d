//! The logits of a router's gate.
//!
//! Shape letters: t tokens, d model width, e experts.

use burn::tensor::Tensor;
use burn::tensor::activation::softplus;
use switchyard_kernels::{Compute, linear};

use super::Router;
use crate::gate::{GateNoise, GateOutput};

/// Added to the noise's size, as the authors of noisy gating do in their code (tensor2tensor's
/// `noisy_top_k_gating`): distances are measured in it, so it must not vanish.
const NOISE_EPSILON: f64 = 0.01;

impl Router {
    /// Logits of every token, in the type of `x_td` and not rounded whatever the run computes with;
    /// with `standard_normal_te` the noisy ones. None if nothing is learned.
    pub(crate) fn gate_logits(
        &self,
        x_td: Tensor<2>,
        standard_normal_te: impl FnOnce([usize; 2]) -> Option<Tensor<2>>,
    ) -> Option<GateOutput> {
        let dtype = x_td.dtype();
        let clean_logits_te = match (&self.cosine, &self.weight_de) {
            (Some(cosine), _) => cosine.logits_te(x_td.clone(), dtype),
            (None, Some(weight_de)) => {
                let bias_e = self.logit_bias_e.as_ref().map(|bias_e| bias_e.val().cast(dtype));
                linear(x_td.clone(), weight_de.val().cast(dtype), bias_e, Compute::F32)
            }
            (None, None) => return None,
        };
        let noise = self.noise_weight_de.as_ref().and_then(|noise_weight_de| {
            let normal_te = standard_normal_te(clean_logits_te.dims())?.cast(dtype);
            let std_te = softplus(linear(x_td, noise_weight_de.val().cast(dtype), None, Compute::F32), 1.0)
                + NOISE_EPSILON;
            Some((normal_te, std_te))
        });
        Some(match noise {
            None => GateOutput { logits_te: clean_logits_te, noise: None },
            Some((normal_te, std_te)) => GateOutput {
                logits_te: clean_logits_te.clone() + normal_te * std_te.clone(),
                noise: Some(GateNoise { clean_logits_te, std_te }),
            },
        })
    }
}
