//! How large activations are after a few steps: what a parametrisation is to keep the same for all
//! sizes of a model (the coordinate check of arXiv:2203.03466, appendix D.1).

use std::sync::atomic::{AtomicBool, Ordering};

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use switchyard_datasets::{Dataset, Loader, TokenBatch};
use switchyard_model::{ModelInput, Pass, Transformer};

use crate::TrainError;
use crate::batch::DeviceBatch;
use crate::config::RunConfig;
use crate::device;
use crate::optimizer::Optimizer;
use crate::plan::RunPlan;
use crate::replaceable::Replaceable;
use crate::step::{StepSettings, step_gradients};
use crate::train::{loader_config, with_threads};

/// Where activations are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// The residual stream before the first block.
    Embedding,
    /// What all blocks together add to it.
    Blocks,
    /// The logits of all routers.
    RouterLogits,
    /// The scores of the head.
    Logits,
}

impl Site {
    /// Every site, in the order of the pass.
    pub const ALL: [Self; 4] = [Self::Embedding, Self::Blocks, Self::RouterLogits, Self::Logits];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Blocks => "blocks",
            Self::RouterLogits => "router logits",
            Self::Logits => "logits",
        }
    }
}

/// Activations of one site on the tokens of the first micro-batch, before and after the steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coordinate {
    /// Which.
    pub site: Site,
    /// Root mean square before the first step.
    pub initial_rms: f64,
    /// Root mean square after the last.
    pub final_rms: f64,
    /// Root mean square of what the steps changed.
    pub change_rms: f64,
}

/// The coordinates of the sites that the model has, after `num_steps` steps at the peak of the
/// learning rate.
///
/// # Errors
/// [`TrainError`] if the data has no batch, the device fails or the loss diverges;
/// [`TrainError::Interrupted`] before the first step after `stop` is set.
pub fn coordinates(
    config: &RunConfig,
    plan: &RunPlan,
    dataset: &Dataset,
    num_steps: u64,
    stop: &AtomicBool,
) -> Result<Vec<Coordinate>, TrainError> {
    with_threads(config.threads, || {
        let device = device::select(&config.device)?;
        let sequences_per_step = plan.sequences_per_step();
        let mut loader =
            Loader::of_sources(&dataset.sources, loader_config(config, plan), sequences_per_step, 0)?;
        let mut training = Training::new(config, plan, &device);
        let mut probe = None;
        let mut before = Vec::new();
        for step in 0..num_steps {
            if stop.load(Ordering::SeqCst) {
                return Err(TrainError::Interrupted);
            }
            let micro_batches = (0..plan.micro_batches_per_step)
                .map(|_| loader.next_batch())
                .collect::<Result<Vec<_>, _>>()?;
            if probe.is_none()
                && let Some(first) = micro_batches.first()
            {
                let input = DeviceBatch::upload(first.clone(), &device).input;
                before = activations(training.network.get(), &input);
                probe = Some(input);
            }
            training.step(plan, step, micro_batches, &device)?;
        }
        let after = probe.map_or_else(Vec::new, |input| activations(training.network.get(), &input));
        Ok(before.iter().zip(&after).map(|(before, after)| Coordinate::new(before, after)).collect())
    })
}

/// A network and what trains it.
struct Training {
    network: Replaceable<Transformer>,
    optimizer: Optimizer,
}

impl Training {
    fn new(config: &RunConfig, plan: &RunPlan, device: &Device) -> Self {
        let network = Transformer::new(&plan.model, plan.seed, &device.clone().autodiff());
        Self { network: Replaceable::new(network), optimizer: Optimizer::new(&config.train, &plan.model) }
    }

    fn step(
        &mut self,
        plan: &RunPlan,
        step: u64,
        micro_batches: Vec<TokenBatch>,
        device: &Device,
    ) -> Result<(), TrainError> {
        let settings = StepSettings {
            seed: plan.seed,
            step,
            max_grad_norm: plan.max_grad_norm,
            head_z_weight: plan.head_z_loss_weight,
            options: plan.pass_options(),
            // Only models of attention have a parametrisation.
            state: None,
        };
        let (gradients, _) = step_gradients(self.network.get(), micro_batches, &settings, device)?;
        let rate = plan.schedule.peak_learning_rate;
        self.network.replace(|network| self.optimizer.update(network, gradients, rate));
        Ok(())
    }
}

/// The activations of each site that the model has.
fn activations(network: &Transformer, input: &ModelInput) -> Vec<(Site, Vec<f64>)> {
    let network = network.valid();
    let (streams, output) = network.forward_with_streams(input, Pass::Evaluation);
    let host = |tensor: Tensor<2>| tensor.into_data().iter::<f64>().collect::<Vec<f64>>();
    let router_logits: Vec<f64> = output
        .moe_layers
        .iter()
        .filter_map(|(_, aux)| aux.route.as_ref())
        .flat_map(|route| route.logits_te.iter().copied())
        .collect();
    let logits = host(network.logits(output.hidden_td));
    let mut sites = Vec::with_capacity(Site::ALL.len());
    if let (Some(first), Some(last)) = (streams.first(), streams.last()) {
        sites.push((Site::Embedding, host(first.clone())));
        sites.push((Site::Blocks, host(last.clone() - first.clone())));
    }
    if !router_logits.is_empty() {
        sites.push((Site::RouterLogits, router_logits));
    }
    sites.push((Site::Logits, logits));
    sites
}

impl Coordinate {
    fn new((site, before): &(Site, Vec<f64>), (_, after): &(Site, Vec<f64>)) -> Self {
        let change = before.iter().zip(after).map(|(before, after)| after - before);
        Self {
            site: *site,
            initial_rms: root_mean_square(before.iter().copied()),
            final_rms: root_mean_square(after.iter().copied()),
            change_rms: root_mean_square(change),
        }
    }
}

fn root_mean_square(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    (values.map(|value| value * value).sum::<f64>() / count).sqrt()
}
