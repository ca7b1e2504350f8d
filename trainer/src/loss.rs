//! The training loss and its parts.

use std::collections::BTreeMap;

use burn::tensor::{DType, Int, Tensor};
use switchyard_model::{Compute, ModelOutput, Transformer};
use switchyard_router::AuxLossKind;

/// One micro-batch's loss and its parts, each `[1]`. Only the total is differentiated.
#[derive(Debug, Clone)]
pub struct LossParts {
    /// The number that is minimised: cross-entropy plus the weighted other losses.
    pub total: Tensor<1>,
    /// Mean next-token cross-entropy, in nats.
    pub cross_entropy: Tensor<1>,
    /// Every router loss with a weight.
    pub router: BTreeMap<AuxLossKind, RouterLoss>,
    /// Mean squared log-partition of the head's scores, unweighted.
    pub head_z: Option<Tensor<1>>,
}

/// One kind of router loss, each value the mean over the layers that have it, `[1]`.
#[derive(Debug, Clone)]
pub struct RouterLoss {
    /// As it is.
    pub unweighted: Tensor<1>,
    /// As it enters the total.
    pub weighted: Tensor<1>,
}

impl LossParts {
    /// The loss of `model`, which returned `output`, against the tokens that came next; the head's
    /// products are computed in `compute`.
    pub fn new(
        model: &Transformer,
        output: &ModelOutput,
        target_ids_t: Tensor<1, Int>,
        head_z_weight: Option<f64>,
        compute: Compute,
    ) -> Self {
        let head = model.head_loss(output.hidden_td.clone(), target_ids_t, head_z_weight, compute);
        let router = router_losses(output);
        let total = router.values().fold(head.total_1, |total, loss| total + loss.weighted.clone());
        let head_z = head_z_weight.map(|_| head.square_log_partition_1);
        Self { total, cross_entropy: head.cross_entropy_1, router, head_z }
    }
}

fn router_losses(output: &ModelOutput) -> BTreeMap<AuxLossKind, RouterLoss> {
    let mut by_kind: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for loss in output.moe_layers.iter().flat_map(|(_, aux)| &aux.losses) {
        by_kind.entry(loss.kind).or_default().push(loss);
    }
    let mean = |losses: Vec<Tensor<1>>| {
        let num_layers = losses.len() as f64;
        // A gate in f64 has its losses in f64, which do not add up with the head's.
        let losses = losses.into_iter().map(|loss| loss.cast(DType::F32));
        losses.reduce(|sum, loss| sum + loss).map(|sum| sum.div_scalar(num_layers))
    };
    by_kind
        .into_iter()
        .filter_map(|(kind, losses)| {
            let unweighted = mean(losses.iter().map(|loss| loss.value_1.clone()).collect())?;
            let weighted =
                mean(losses.iter().map(|loss| loss.value_1.clone().mul_scalar(loss.weight)).collect())?;
            Some((kind, RouterLoss { unweighted, weighted }))
        })
        .collect()
}
