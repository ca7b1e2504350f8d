//! One optimizer step: forward, backward, accumulate, clip, update.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};
use switchyard_datasets::TokenBatch;
use switchyard_model::{ModelOutput, Pass, StepNoise, Transformer, parameter_gradients};
use switchyard_router::{AuxLossKind, BalanceCount, RouterStatistics};

use crate::TrainError;
use crate::batch::DeviceBatch;
use crate::flight::{RoutedPass, non_finite_origin};
use crate::loss::LossParts;
use crate::norms::MoeNorms;
use crate::optimizer::StepGradients;

/// What one step needs to know besides model, optimizer and data.
#[derive(Debug, Clone, Copy)]
pub struct StepSettings {
    /// Seed of dropout and of the routers' noise.
    pub seed: u64,
    /// Index of the step, from 0.
    pub step: u64,
    /// Global norm above which gradients are scaled down.
    pub max_grad_norm: Option<f64>,
    /// Weight of the head's z-loss; absent turns it off.
    pub head_z_weight: Option<f64>,
}

/// What one step learned, means over its micro-batches.
#[derive(Debug, Clone, Default)]
pub struct StepMeasurements {
    /// Next-token cross-entropy, in nats.
    pub cross_entropy_nats: f64,
    /// Router losses with a weight.
    pub router_losses: BTreeMap<AuxLossKind, LossValue>,
    /// Mean squared log-partition of the head's scores, unweighted.
    pub head_z_loss: Option<f64>,
    /// The loss that was minimised.
    pub total_loss: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Routing of each MoE layer, with the layer's index.
    pub routing: RoutingByLayer,
    /// What the routers with a bias learned about their balance, by layer.
    pub balance: BTreeMap<usize, BalanceCount>,
    /// Gradient norms of each mixture before clipping, by layer.
    pub moe_grad_norms: BTreeMap<usize, MoeNorms>,
    /// Who went where in each micro-batch.
    pub passes: Vec<RoutedPass>,
}

/// A loss as it is, and as it enters the total.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossValue {
    /// As it is.
    pub unweighted: f64,
    /// As it enters the total.
    pub weighted: f64,
}

/// Routing statistics of the MoE layers, merged over batches.
pub type RoutingByLayer = Vec<(usize, RouterStatistics)>;

/// Gradients of one update on `micro_batches`, averaged over them and clipped, and what was measured on the way.
/// [`crate::optimizer::AdamW::update`] makes the update, which cannot fail.
///
/// # Errors
/// [`TrainError::NonFiniteLoss`], [`TrainError::NonFiniteGradient`], or [`TrainError::Device`] if it cannot be read.
pub fn step_gradients(
    model: &Transformer,
    micro_batches: Vec<TokenBatch>,
    settings: &StepSettings,
    device: &Device,
) -> Result<(StepGradients, StepMeasurements), TrainError> {
    let scale = 1.0 / micro_batches.len() as f64;
    let mut gradients = StepGradients::default();
    let mut measurements = StepMeasurements::default();
    for (index, micro_batch) in micro_batches.into_iter().enumerate() {
        let (domains, seq_len) = (micro_batch.domains.clone(), micro_batch.seq_len);
        let batch = DeviceBatch::upload(micro_batch, device);
        let noise = StepNoise::new(settings.seed, settings.step, index as u64);
        let earlier = measurements.routing.clone();
        let pass = Pass::Training { noise, earlier: &earlier };
        let output = model.forward(&batch.input, pass);
        let parts = LossParts::new(model, &output, batch.target_ids_t, settings.head_z_weight);
        measurements.add(&parts, &output, scale)?;
        if !measurements.total_loss.is_finite() {
            return Err(TrainError::NonFiniteLoss {
                step: settings.step + 1,
                loss: measurements.total_loss,
                origin: non_finite_origin(model, &batch.input, pass),
            });
        }
        measurements.passes.push(RoutedPass::new(&batch.input, domains, seq_len, output)?);
        gradients.accumulate(parameter_gradients(model, &parts.total.mul_scalar(scale).backward()));
    }
    let num_experts = |layer| model.moe(layer).map_or(1, |moe| moe.router.num_experts());
    let norms = gradients
        .norms(num_experts)
        .map_err(|source| TrainError::NonFiniteGradient { step: settings.step + 1, source })?;
    (measurements.grad_norm, measurements.moe_grad_norms) = (norms.global, norms.moe);
    if let Some(max_norm) = settings.max_grad_norm {
        gradients.clip(measurements.grad_norm, max_norm);
    }
    Ok((gradients, measurements))
}

impl StepMeasurements {
    fn add(&mut self, parts: &LossParts, output: &ModelOutput, scale: f64) -> Result<(), TrainError> {
        self.cross_entropy_nats += scale * read_scalar(&parts.cross_entropy)?;
        self.total_loss += scale * read_scalar(&parts.total)?;
        for (kind, loss) in &parts.router {
            let value = self.router_losses.entry(*kind).or_default();
            value.unweighted += scale * read_scalar(&loss.unweighted)?;
            value.weighted += scale * read_scalar(&loss.weighted)?;
        }
        if let Some(head_z) = &parts.head_z {
            *self.head_z_loss.get_or_insert(0.0) += scale * read_scalar(head_z)?;
        }
        merge_routing(&mut self.routing, output);
        self.merge_balance(output);
        Ok(())
    }

    fn merge_balance(&mut self, output: &ModelOutput) {
        for (layer, aux) in &output.moe_layers {
            match (self.balance.get_mut(layer), &aux.balance) {
                (Some(sum), Some(balance)) => sum.merge(balance),
                (None, Some(balance)) => {
                    self.balance.insert(*layer, balance.clone());
                }
                (_, None) => {}
            }
        }
    }
}

/// Add the routing of one forward pass to what earlier passes gathered.
pub fn merge_routing(routing: &mut RoutingByLayer, output: &ModelOutput) {
    if routing.is_empty() {
        routing.extend(output.moe_layers.iter().map(|(layer, aux)| (*layer, aux.statistics.clone())));
        return;
    }
    for ((_, sum), (_, aux)) in routing.iter_mut().zip(&output.moe_layers) {
        sum.merge(&aux.statistics);
    }
}

/// The value of a one-element tensor.
///
/// # Errors
/// [`TrainError::Device`] if the device cannot be read.
pub fn read_scalar(tensor: &Tensor<1>) -> Result<f64, TrainError> {
    tensor
        .clone()
        .try_into_scalar::<f32>()
        .map(f64::from)
        .map_err(|error| TrainError::Device { reason: format!("{error:?}") })
}
