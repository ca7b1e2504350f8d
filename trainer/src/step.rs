//! One optimizer step: forward, backward, accumulate, clip, update.

use std::collections::BTreeMap;

use burn::tensor::Device;
use switchyard_datasets::TokenBatch;
use switchyard_model::{ModelInput, ModelOutput, ModelState, Pass, PassOptions, StepNoise, Transformer};
use switchyard_router::{AuxLossKind, BalanceCount, RouterStatistics};

use crate::TrainError;
use crate::batch::DeviceBatch;
use crate::loss::{LossParts, RouterLoss};
use crate::norms::MoeNorms;
use crate::optimizer::StepGradients;
use crate::provenance::non_finite_origin;
use crate::readings::{Reading, Readings, Values};
use crate::routed_pass::RoutedPass;
use crate::spikes::Spike;

/// What one step needs to know besides model, optimizer and data.
#[derive(Debug, Clone, Copy)]
pub struct StepSettings<'a> {
    /// Seed of dropout and of the routers' noise.
    pub seed: u64,
    /// Index of the step, from 0.
    pub step: u64,
    /// Global norm above which gradients are scaled down.
    pub max_grad_norm: Option<f64>,
    /// Weight of the head's z-loss; `None` turns it off.
    pub head_z_weight: Option<f64>,
    /// How passes are computed.
    pub options: PassOptions,
    /// What the sequences of the step before left in a recurrent model, row by row of all
    /// micro-batches; `None` if they begin.
    pub state: Option<&'a ModelState>,
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
    /// The largest logit of each attention head over all micro-batches, by layer; empty unless they
    /// are measured.
    pub max_logits: BTreeMap<usize, Vec<f64>>,
    /// Heads that were made smaller after the update; `None` before it, and without `train.qk_clip`.
    pub clipped_heads: Option<usize>,
    /// Why the step is not taken; `None` if it is.
    pub spike: Option<Spike>,
    /// Who went where in each micro-batch.
    pub passes: Vec<RoutedPass>,
    /// What the sequences leave to the next step; `None` unless the model is recurrent.
    pub state: Option<ModelState>,
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

/// Gradients of one update on `micro_batches`, averaged over them and clipped, and what was
/// measured on the way. [`crate::optimizer::Optimizer::update`] makes the update, which cannot fail.
///
/// # Errors
/// [`TrainError::NonFiniteLoss`], [`TrainError::NonFiniteGradient`], or [`TrainError::Device`] if
/// it cannot be read.
pub fn step_gradients(
    model: &Transformer,
    micro_batches: Vec<TokenBatch>,
    settings: &StepSettings<'_>,
    device: &Device,
) -> Result<(StepGradients, StepMeasurements), TrainError> {
    let scale = 1.0 / micro_batches.len() as f64;
    let mut gradients = StepGradients::default();
    let mut measurements = StepMeasurements::default();
    let mut readings = Readings::default();
    let mut passes = Vec::with_capacity(micro_batches.len());
    let (mut states, mut num_rows) = (Vec::with_capacity(micro_batches.len()), 0);
    for (index, micro_batch) in micro_batches.into_iter().enumerate() {
        let domains = micro_batch.domains.clone();
        let (first_row, num_sequences) = (num_rows, micro_batch.num_sequences);
        num_rows += num_sequences;
        let DeviceBatch { input, target_ids_t } = DeviceBatch::upload(micro_batch, device);
        let input = input.after(settings.state.map(|state| state.rows(first_row, num_sequences)));
        let noise = StepNoise::new(settings.seed, settings.step, index as u64);
        let earlier = measurements.routing.clone();
        let training = Pass::Training { noise, earlier: &earlier, options: settings.options };
        let (mut output, tape) = model.forward_for_backward(&input, training);
        states.push(output.state.take());
        let parts =
            LossParts::new(model, &output, target_ids_t, settings.head_z_weight, settings.options.compute);
        let losses = LossReadings::new(&parts, &output, &mut readings);
        measurements.count(&output);
        let routed = RoutedPass::new(&input, domains, output);
        gradients.accumulate(model.backward(&parts.total.mul_scalar(scale), tape, &input, training));
        passes.push(PassDone { input, noise, earlier, losses, routed });
    }
    measurements.state = ModelState::stacked(states);
    let num_experts = |layer| model.moe(layer).map_or(1, |moe| moe.router.num_experts());
    let squares = gradients.start_norms(num_experts, &mut readings);
    // The step's only wait for the device, but for the routers that choose on the host.
    let values = readings.read()?;
    for pass in passes {
        measurements.add(&pass.losses, &values, scale);
        if !measurements.total_loss.is_finite() {
            let training =
                Pass::Training { noise: pass.noise, earlier: &pass.earlier, options: settings.options };
            return Err(TrainError::NonFiniteLoss {
                step: settings.step + 1,
                loss: measurements.total_loss,
                origin: non_finite_origin(model, &pass.input, training),
            });
        }
        measurements.passes.push(pass.routed.with_losses(&pass.losses.of_layers, &values));
    }
    let norms = gradients
        .norms(&squares, &values)
        .map_err(|source| TrainError::NonFiniteGradient { step: settings.step + 1, source })?;
    (measurements.grad_norm, measurements.moe_grad_norms) = (norms.global, norms.moe);
    if let Some(max_norm) = settings.max_grad_norm {
        gradients.clip(measurements.grad_norm, max_norm);
    }
    Ok((gradients, measurements))
}

/// A forward and backward pass whose losses are still to be read.
struct PassDone {
    input: ModelInput,
    noise: StepNoise,
    /// Routing of the step's passes before it.
    earlier: RoutingByLayer,
    losses: LossReadings,
    routed: RoutedPass,
}

/// Where the losses of one pass will be.
struct LossReadings {
    cross_entropy: Reading,
    total: Reading,
    /// Unweighted and weighted.
    router: BTreeMap<AuxLossKind, [Reading; 2]>,
    head_z: Option<Reading>,
    /// The load-balancing loss of each mixture.
    of_layers: Vec<Option<Reading>>,
    /// The largest logits of each layer that measured them.
    max_logits: Vec<(usize, Reading)>,
}

impl LossReadings {
    fn new(parts: &LossParts, output: &ModelOutput, readings: &mut Readings) -> Self {
        let mut both = |loss: &RouterLoss| [&loss.unweighted, &loss.weighted].map(|it| readings.add(it));
        Self {
            router: parts.router.iter().map(|(kind, loss)| (*kind, both(loss))).collect(),
            cross_entropy: readings.add(&parts.cross_entropy),
            total: readings.add(&parts.total),
            head_z: parts.head_z.as_ref().map(|head_z| readings.add(head_z)),
            of_layers: RoutedPass::losses(output, readings),
            max_logits: output
                .max_logits
                .iter()
                .map(|(layer, max_logits_h)| (*layer, readings.add(max_logits_h)))
                .collect(),
        }
    }
}

impl StepMeasurements {
    fn add(&mut self, losses: &LossReadings, values: &Values, scale: f64) {
        self.cross_entropy_nats += scale * values.scalar(&losses.cross_entropy);
        self.total_loss += scale * values.scalar(&losses.total);
        for (kind, [unweighted, weighted]) in &losses.router {
            let value = self.router_losses.entry(*kind).or_default();
            value.unweighted += scale * values.scalar(unweighted);
            value.weighted += scale * values.scalar(weighted);
        }
        if let Some(head_z) = &losses.head_z {
            *self.head_z_loss.get_or_insert(0.0) += scale * values.scalar(head_z);
        }
        for (layer, reading) in &losses.max_logits {
            let logits = values.of(reading);
            let largest = self.max_logits.entry(*layer).or_insert_with(|| logits.to_vec());
            largest.iter_mut().zip(logits).for_each(|(largest, logit)| *largest = largest.max(*logit));
        }
    }

    /// Adds the routing of one pass.
    fn count(&mut self, output: &ModelOutput) {
        merge_routing(&mut self.routing, output);
        self.merge_balance(output);
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
