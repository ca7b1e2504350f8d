//! One optimizer step: forward, backward, accumulate, clip, update.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use switchyard_datasets::TokenBatch;
use switchyard_experts::ExpertGradients;
use switchyard_model::{
    ModelInput, ModelOutput, ModelState, Named, Pass, PassOptions, StepNoise, Transformer, parameter_tensors,
};
use switchyard_router::{AuxLossKind, BalanceCount, RouterStatistics};

use crate::TrainError;
use crate::batch::DeviceBatch;
use crate::loss::{LossParts, RouterLoss};
use crate::norms::MoeNorms;
use crate::optimizer::{GradientSum, StepGradients};
use crate::provenance::non_finite_origin;
use crate::readings::{Reading, Readings, Values};
use crate::routed_pass::RoutedPass;
use crate::sharding::StepTraffic;
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
    /// What this rank sent for gradients and parameters; `None` for a process alone.
    pub traffic: Option<StepTraffic>,
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
    let share = Share { first: 0, of: micro_batches.len() };
    let mut readings = Readings::default();
    let Passes { gradients, passes, state } =
        run_passes(model, micro_batches, (settings, share), device, &mut readings);
    let mut gradients = gradients.finish();
    let squares = gradients.start_norms(num_experts_in(model), &mut readings);
    // The step's only wait for the device, but for the routers that choose on the host.
    let values = readings.read()?;
    let measured = measured(model, passes, &values, settings)?;
    let mut measurements = StepMeasurements { state, ..StepMeasurements::of(measured) };
    let norms = gradients
        .norms(&squares, &values)
        .map_err(|source| TrainError::NonFiniteGradient { step: settings.step + 1, source })?;
    (measurements.grad_norm, measurements.moe_grad_norms) = (norms.global, norms.moe);
    gradients.clip(measurements.grad_norm, settings.max_grad_norm);
    Ok((gradients, measurements))
}

/// Into how many rows the gradients of a layer's experts divide.
pub(crate) fn num_experts_in(model: &Transformer) -> impl Fn(usize) -> usize {
    |layer| model.moe(layer).map_or(1, |moe| moe.router.num_experts())
}

/// Which of a step's micro-batches some are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    /// Number of the first of them among those of the step, from 0.
    pub(crate) first: usize,
    /// Micro-batches of the step.
    pub(crate) of: usize,
}

/// What forward and backward passes left.
pub(crate) struct Passes {
    /// Gradients of the mean loss over all micro-batches of the step, of these alone.
    pub(crate) gradients: GradientSum,
    pub(crate) passes: Vec<PassDone>,
    /// What the sequences leave to the next step.
    pub(crate) state: Option<ModelState>,
}

/// A forward and backward pass whose losses are still to be read.
pub(crate) struct PassDone {
    input: ModelInput,
    noise: StepNoise,
    /// Routing of the step's passes before it.
    earlier: RoutingByLayer,
    losses: LossReadings,
    statistics: RoutingByLayer,
    balance: BTreeMap<usize, BalanceCount>,
    routed: RoutedPass,
}

/// Forward and backward passes over `micro_batches`, the given share of the step's.
pub(crate) fn run_passes(
    model: &Transformer,
    micro_batches: Vec<TokenBatch>,
    (settings, share): (&StepSettings<'_>, Share),
    device: &Device,
    readings: &mut Readings,
) -> Passes {
    let mut gradients = GradientSum::default();
    let mut passes: Vec<PassDone> = Vec::with_capacity(micro_batches.len());
    let (mut states, mut num_rows) = (Vec::with_capacity(micro_batches.len()), 0);
    let mut earlier = RoutingByLayer::new();
    for (index, micro_batch) in micro_batches.into_iter().enumerate() {
        let domains = micro_batch.domains.clone();
        let (first_row, num_sequences) = (num_rows, micro_batch.num_sequences);
        num_rows += num_sequences;
        let DeviceBatch { input, target_ids_t } = DeviceBatch::upload(micro_batch, device);
        let input = input.after(settings.state.map(|state| state.rows(first_row, num_sequences)));
        let noise = StepNoise::new(settings.seed, settings.step, (share.first + index) as u64);
        let before = earlier.clone();
        let training = Pass::Training { noise, earlier: &before, options: settings.options };
        let (mut output, tape) = model.forward_for_backward(&input, training);
        states.push(output.state.take());
        let parts =
            LossParts::new(model, &output, target_ids_t, settings.head_z_weight, settings.options.compute);
        let losses = LossReadings::new(&parts, &output, readings);
        let (statistics, balance) = (statistics_of(&output), balance_of(&output));
        // Without its output the pass holds no more than the way back needs.
        let routed = RoutedPass::new((model, &input), domains, &before, output);
        let mean = parts.total.mul_scalar(1.0 / share.of as f64);
        gradients.push(model.backward(&mean, tape, &input, training));
        if model.is_over_ranks() {
            gradients.push_of_experts(gradients_of_experts(model));
        }
        add_statistics(&mut earlier, statistics.clone());
        passes.push(PassDone { input, noise, earlier: before, losses, statistics, balance, routed });
    }
    Passes { gradients, passes, state: ModelState::stacked(states) }
}

/// What the last backward pass of every rank left for this rank's experts, by rank, parameters in the
/// model's order.
fn gradients_of_experts(model: &Transformer) -> Vec<Vec<Named<Tensor<1>>>> {
    let mut by_rank: Vec<Vec<Named<Tensor<1>>>> = Vec::new();
    let mut names = parameter_tensors(model).into_iter().filter(|named| named.name.role.is_of_experts());
    for (layer, moe) in model.moe_layers() {
        let Some(ranks) = moe.experts.ranks() else { continue };
        let mut passes = ranks.gradients.take();
        let of_ranks = passes.pop().filter(|_| passes.is_empty());
        let of_ranks = of_ranks.unwrap_or_else(|| panic!("not one backward pass of layer {layer}"));
        let stacks: Vec<Vec<Vec<f32>>> = of_ranks.into_iter().map(ExpertGradients::into_stacks).collect();
        by_rank.resize_with(stacks.len(), Vec::new);
        let of_layer: Vec<_> = names.by_ref().take(stacks[0].len()).collect();
        for (all, stacks) in by_rank.iter_mut().zip(stacks) {
            all.extend(of_layer.iter().zip(stacks).map(|(of, stack)| {
                let shape = [stack.len()];
                let value = Tensor::from_data(TensorData::new(stack, shape), &of.value.values_n.device());
                Named { name: of.name, value }
            }));
        }
    }
    by_rank
}

/// What one pass of a step measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PassMeasurements {
    cross_entropy_nats: f64,
    total_loss: f64,
    /// Unweighted and weighted.
    router_losses: Vec<(AuxLossKind, [f64; 2])>,
    head_z_loss: Option<f64>,
    /// The largest logits of each layer that measured them.
    max_logits: Vec<(usize, Vec<f64>)>,
    statistics: RoutingByLayer,
    balance: BTreeMap<usize, BalanceCount>,
    pub(crate) routed: RoutedPass,
}

/// What the passes measured, now that it has been read.
///
/// # Errors
/// [`TrainError::NonFiniteLoss`].
pub(crate) fn measured(
    model: &Transformer,
    passes: Vec<PassDone>,
    values: &Values,
    settings: &StepSettings<'_>,
) -> Result<Vec<PassMeasurements>, TrainError> {
    let measured = |pass: PassDone| {
        let PassDone { input, noise, earlier, losses, statistics, balance, routed } = pass;
        let total_loss = values.scalar(&losses.total);
        if !total_loss.is_finite() {
            let training = Pass::Training { noise, earlier: &earlier, options: settings.options };
            return Err(TrainError::NonFiniteLoss {
                step: settings.step + 1,
                loss: total_loss,
                origin: non_finite_origin(model, &input, training),
            });
        }
        Ok(PassMeasurements {
            cross_entropy_nats: values.scalar(&losses.cross_entropy),
            total_loss,
            router_losses: losses
                .router
                .iter()
                .map(|(kind, both)| (*kind, both.each_ref().map(|reading| values.scalar(reading))))
                .collect(),
            head_z_loss: losses.head_z.as_ref().map(|reading| values.scalar(reading)),
            max_logits: losses
                .max_logits
                .iter()
                .map(|(layer, reading)| (*layer, values.of(reading).to_vec()))
                .collect(),
            statistics,
            balance,
            routed: routed.with_losses(&losses.of_layers, values),
        })
    };
    passes.into_iter().map(measured).collect()
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
    /// What all passes of a step measured, in their order, norms and state left out.
    pub(crate) fn of(passes: Vec<PassMeasurements>) -> Self {
        let scale = 1.0 / passes.len() as f64;
        let mut all = Self::default();
        passes.into_iter().for_each(|pass| all.add(pass, scale));
        all
    }

    fn add(&mut self, pass: PassMeasurements, scale: f64) {
        self.cross_entropy_nats += scale * pass.cross_entropy_nats;
        self.total_loss += scale * pass.total_loss;
        for (kind, [unweighted, weighted]) in pass.router_losses {
            let value = self.router_losses.entry(kind).or_default();
            value.unweighted += scale * unweighted;
            value.weighted += scale * weighted;
        }
        if let Some(head_z) = pass.head_z_loss {
            *self.head_z_loss.get_or_insert(0.0) += scale * head_z;
        }
        for (layer, logits) in pass.max_logits {
            let largest = self.max_logits.entry(layer).or_insert_with(|| logits.clone());
            largest.iter_mut().zip(logits).for_each(|(largest, logit)| *largest = largest.max(logit));
        }
        add_statistics(&mut self.routing, pass.statistics);
        for (layer, balance) in pass.balance {
            match self.balance.entry(layer) {
                Entry::Occupied(mut sum) => sum.get_mut().merge(&balance),
                Entry::Vacant(none) => drop(none.insert(balance)),
            }
        }
        self.passes.push(pass.routed);
    }
}

/// Routing of each mixture in one forward pass.
pub(crate) fn statistics_of(output: &ModelOutput) -> RoutingByLayer {
    output.moe_layers.iter().map(|(layer, aux)| (*layer, aux.statistics.clone())).collect()
}

fn balance_of(output: &ModelOutput) -> BTreeMap<usize, BalanceCount> {
    output.moe_layers.iter().filter_map(|(layer, aux)| Some((*layer, aux.balance.clone()?))).collect()
}

/// Add the statistics of each layer to what earlier passes gathered.
pub(crate) fn add_statistics(routing: &mut RoutingByLayer, more: RoutingByLayer) {
    if routing.is_empty() {
        *routing = more;
        return;
    }
    for ((_, sum), (_, more)) in routing.iter_mut().zip(&more) {
        sum.merge(more);
    }
}
