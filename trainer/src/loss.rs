//! The training loss and its parts.

use burn::tensor::{Int, Tensor};
use switchyard_experts::MoeAux;

use crate::model::{ModelOutput, Transformer};

/// Weights of what is added to the cross-entropy; absent turns a loss off.
#[derive(Debug, Clone, Copy, Default)]
pub struct AuxWeights {
    /// Weight of the load-balancing loss.
    pub load_balancing: Option<f64>,
    /// Weight of the router z-loss.
    pub router_z: Option<f64>,
    /// Weight of the head's z-loss.
    pub head_z: Option<f64>,
}

/// One micro-batch's loss and its parts, each `[1]`. Only the total is differentiated.
#[derive(Debug, Clone)]
pub struct LossParts {
    /// The number that is minimised: cross-entropy plus the weighted other losses.
    pub total: Tensor<1>,
    /// Mean next-token cross-entropy, in nats.
    pub cross_entropy: Tensor<1>,
    /// Load-balancing loss, unweighted, mean over the MoE layers.
    pub load_balancing: Option<Tensor<1>>,
    /// Router z-loss, unweighted, mean over the MoE layers.
    pub router_z: Option<Tensor<1>>,
    /// Mean squared log-partition of the head's scores, unweighted.
    pub head_z: Option<Tensor<1>>,
}

impl LossParts {
    /// The loss of `model`, which returned `output`, against the tokens that came next.
    pub fn new(
        model: &Transformer,
        output: &ModelOutput,
        target_ids_t: Tensor<1, Int>,
        weights: AuxWeights,
    ) -> Self {
        let head = model.head_loss(output.hidden_td.clone(), target_ids_t, weights.head_z);
        let load_balancing = mean_over_layers(output, |aux| aux.load_balancing_loss.clone());
        let router_z = mean_over_layers(output, |aux| aux.router_z_loss.clone());
        let weighted = [(&load_balancing, weights.load_balancing), (&router_z, weights.router_z)];
        let total = weighted.into_iter().fold(head.total_1, |total, part| match part {
            (Some(loss), Some(weight)) => total + loss.clone().mul_scalar(weight),
            _ => total,
        });
        let head_z = weights.head_z.map(|_| head.square_log_partition_1);
        Self { total, cross_entropy: head.cross_entropy_1, load_balancing, router_z, head_z }
    }
}

fn mean_over_layers(output: &ModelOutput, part: impl Fn(&MoeAux) -> Option<Tensor<1>>) -> Option<Tensor<1>> {
    let losses: Vec<_> = output.moe_layers.iter().filter_map(|(_, aux)| part(aux)).collect();
    let num_layers = losses.len();
    losses.into_iter().reduce(|sum, loss| sum + loss).map(|sum| sum.div_scalar(num_layers as f64))
}
