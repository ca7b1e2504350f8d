//! The training loss and its parts.

use burn::tensor::{Int, Tensor};
use switchyard_experts::MoeAux;
use switchyard_kernels::cross_entropy;

use crate::model::ModelOutput;

/// Weights of the router's losses; absent turns a loss off.
#[derive(Debug, Clone, Copy, Default)]
pub struct AuxWeights {
    /// Weight of the load-balancing loss.
    pub load_balancing: Option<f64>,
    /// Weight of the router z-loss.
    pub router_z: Option<f64>,
}

/// The parts of one micro-batch's loss, each `[1]` and unweighted.
#[derive(Debug, Clone)]
pub struct LossParts {
    /// Mean next-token cross-entropy, in nats.
    pub cross_entropy: Tensor<1>,
    /// Load-balancing loss, mean over the MoE layers.
    pub load_balancing: Option<Tensor<1>>,
    /// Router z-loss, mean over the MoE layers.
    pub router_z: Option<Tensor<1>>,
}

impl LossParts {
    /// The parts of the loss of `output` against the tokens that came next.
    pub fn new(output: &ModelOutput, target_ids_t: Tensor<1, Int>) -> Self {
        Self {
            cross_entropy: cross_entropy(output.logits_tv.clone(), target_ids_t),
            load_balancing: mean_over_layers(output, |aux| aux.load_balancing_loss.clone()),
            router_z: mean_over_layers(output, |aux| aux.router_z_loss.clone()),
        }
    }

    /// The number that is minimised: cross-entropy plus the weighted router losses.
    pub fn total(&self, weights: AuxWeights) -> Tensor<1> {
        let weighted = [(&self.load_balancing, weights.load_balancing), (&self.router_z, weights.router_z)];
        weighted.into_iter().fold(self.cross_entropy.clone(), |total, part| match part {
            (Some(loss), Some(weight)) => total + loss.clone().mul_scalar(weight),
            _ => total,
        })
    }
}

fn mean_over_layers(output: &ModelOutput, part: impl Fn(&MoeAux) -> Option<Tensor<1>>) -> Option<Tensor<1>> {
    let losses: Vec<_> = output.moe_layers.iter().filter_map(|(_, aux)| part(aux)).collect();
    let num_layers = losses.len();
    losses.into_iter().reduce(|sum, loss| sum + loss).map(|sum| sum.div_scalar(num_layers as f64))
}
