//! Whole training steps of a configuration, and forward passes alone; beside those of another, in
//! turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use serde::Serialize;
use switchyard_datasets::{Dataset, Loader, Progress};
use switchyard_model::Transformer;

use super::timing::Work;
use super::{Machine, Repetitions, Timed, Timings, Usage};
use crate::TrainError;
use crate::available_memory::check_memory;
use crate::config::RunConfig;
use crate::device;
use crate::evaluate::{EvaluationSettings, evaluate_unless};
use crate::optimizer::Optimizer;
use crate::plan::RunPlan;
use crate::qk_clip::{clip_factors, clipped};
use crate::replaceable::Replaceable;
use crate::step::{StepSettings, step_gradients};
use crate::throughput::MatmulCeiling;
use crate::train::{loader_config, with_threads};

/// What was measured; times are wall-clock times.
#[derive(Debug, Clone, Serialize)]
pub struct StepReport {
    /// Name of the case.
    pub case: String,
    /// Median time of a step: forward, backward, clipping, update.
    pub step_ms_median: f64,
    /// Shortest time of a step.
    pub step_ms_min: f64,
    /// Tokens trained on per second of the median step.
    pub tokens_per_sec: f64,
    /// Most memory resident during the steps and before, those compared with included; `None` where
    /// the system does not tell.
    pub peak_rss_bytes: Option<u64>,
    /// Active training FLOPs per second of the median step, in units of 1e9.
    pub gflops: f64,
    /// The machine.
    #[serde(flatten)]
    pub machine: Machine,
    /// `gflops` as a share of the ceiling, which is the highest rate of a moment.
    pub ceiling_share: f64,
    /// Median over the steps of their rate as a share of that of matrix products right after them,
    /// an eighth of the step's arithmetic: both meet the same slow moments of the machine.
    pub ceiling_share_in_turn: f64,
    /// Median time of a forward pass over as many tokens, with the loss and without gradients.
    pub forward_ms_median: f64,
    /// Shortest time of a forward pass.
    pub forward_ms_min: f64,
    /// Steps timed.
    pub steps: usize,
    /// Tokens per step.
    pub tokens_per_step: usize,
    /// Parameters of the model.
    pub total_params: u64,
    /// Loss of the first step, warm-up included.
    pub loss_first: f64,
    /// Loss of the last step.
    pub loss_last: f64,
    /// Pages mapped per timed step, those compared with included; `None` where the system does not
    /// tell.
    pub minor_page_faults_per_step: Option<f64>,
    /// The configuration whose steps took turns with these; `None` without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<StepRatio>,
}

/// Steps beside those of another configuration, in turn with them.
#[derive(Debug, Clone, Serialize)]
pub struct StepRatio {
    /// Name of the other case.
    pub case: String,
    /// Median time of its steps.
    pub step_ms_median: f64,
    /// Shortest time of its steps.
    pub step_ms_min: f64,
    /// Median over the pairs of steps of this case's time as a multiple of the other's.
    pub ratio_median: f64,
    /// This case's shortest step as a multiple of the other's.
    pub ratio_of_shortest: f64,
}

/// A configuration to time.
#[derive(Debug, Clone, Copy)]
pub struct StepCase<'a> {
    /// Its name.
    pub name: &'a str,
    /// As written.
    pub config: &'a RunConfig,
    /// What it resolves to.
    pub plan: &'a RunPlan,
}

/// Time the training steps of `case` as [`crate::train::train`] does them, in turn with those of
/// `against`, on the device and the threads of `case`.
///
/// # Errors
/// [`TrainError`] if the data cannot be had, the device fails or the loss diverges;
/// [`TrainError::Interrupted`] before the first step after `stop` is set.
pub fn benchmark_step(
    case: StepCase<'_>,
    against: Option<StepCase<'_>>,
    repetitions: Repetitions,
    stop: &Arc<AtomicBool>,
) -> Result<StepReport, TrainError> {
    with_threads(case.config.threads, || benchmark_here(case, against, repetitions, stop))
}

fn benchmark_here<'a>(
    case: StepCase<'a>,
    against: Option<StepCase<'a>>,
    repetitions: Repetitions,
    stop: &'a Arc<AtomicBool>,
) -> Result<StepReport, TrainError> {
    let StepCase { config, plan, .. } = case;
    let progress = Progress::stderr().with_stop(stop.clone());
    let device = device::select(&config.device)?;
    let mut cases = [Some(case), against].into_iter().flatten();
    cases.try_for_each(|case| check_memory(case.config, case.plan, &case.plan.memory))?;
    let dataset = switchyard_datasets::prepare(&config.data, &progress)?;
    let ceiling = MatmulCeiling::measure(&device, plan.compute)?;
    let machine = Machine::observe(&config.device, &ceiling);

    let mut training = Training::new(case, &dataset, &device, stop)?;
    let prepared = |other: StepCase<'a>| {
        let dataset = switchyard_datasets::prepare(&other.config.data, &progress)?;
        Training::new(other, &dataset, &device, stop)
    };
    let mut other = against.map(prepared).transpose()?;
    let step_flops = plan.training_flops_per_step();
    let products = &mut CeilingProducts::new(ceiling, step_flops / 8.0);
    // The warm-up is done here, so that its page faults are not counted.
    let warmup = Repetitions { timed: Timed::Times(0), ..repetitions };
    warmup.time_trainings(&mut training, products, other.as_mut())?;
    let before = Usage::now();
    let timed = Repetitions { warmup: 0, ..repetitions };
    let StepTimings { steps, products: product_times, other: other_steps } =
        timed.time_trainings(&mut training, products, other.as_mut())?;
    let after = Usage::now();

    let forward_passes = repetitions.time(|| training.forward(&dataset, config.data.mask_documents))?;
    let machine = machine.observe_again(&device, plan.compute)?;

    let step_secs = steps.median_ms() / 1e3;
    let gflops = step_flops / step_secs / 1e9;
    Ok(StepReport {
        case: case.name.into(),
        step_ms_median: steps.median_ms(),
        step_ms_min: steps.min_ms(),
        tokens_per_sec: plan.tokens_per_step as f64 / step_secs,
        peak_rss_bytes: after.peak_rss_bytes,
        gflops,
        ceiling_share: gflops / machine.matmul_ceiling_gflops,
        ceiling_share_in_turn: step_flops / products.flops() / steps.ratio_to(&product_times),
        machine,
        forward_ms_median: forward_passes.median_ms(),
        forward_ms_min: forward_passes.min_ms(),
        steps: steps.len(),
        tokens_per_step: plan.tokens_per_step,
        total_params: plan.counts.total_params,
        loss_first: training.losses.0,
        loss_last: training.losses.1,
        minor_page_faults_per_step: after
            .minor_page_faults_since(&before)
            .map(|faults| faults as f64 / steps.len() as f64),
        against: against.zip(other_steps).map(|(other, theirs)| StepRatio::new(other.name, &steps, &theirs)),
    })
}

impl StepRatio {
    fn new(case: &str, steps: &Timings, others: &Timings) -> Self {
        Self {
            case: case.into(),
            step_ms_median: others.median_ms(),
            step_ms_min: others.min_ms(),
            ratio_median: steps.ratio_to(others),
            ratio_of_shortest: steps.min_ms() / others.min_ms(),
        }
    }
}

/// Products that steps are measured against, some at a time.
struct CeilingProducts {
    ceiling: MatmulCeiling,
    times: u64,
}

impl CeilingProducts {
    /// As few as have `flops` multiplies and adds together.
    fn new(ceiling: MatmulCeiling, flops: f64) -> Self {
        let times = (flops / ceiling.product_flops()).ceil().max(1.0) as u64;
        Self { ceiling, times }
    }

    fn flops(&self) -> f64 {
        self.times as f64 * self.ceiling.product_flops()
    }

    fn compute(&mut self) -> Result<(), TrainError> {
        Ok(self.ceiling.multiply(self.times)?)
    }
}

/// Times of what took turns.
struct StepTimings {
    steps: Timings,
    products: Timings,
    other: Option<Timings>,
}

impl Repetitions {
    /// Times of steps of `training` and, in turn with them, of `products` and of steps of `other`.
    fn time_trainings(
        &self,
        training: &mut Training<'_>,
        products: &mut CeilingProducts,
        other: Option<&mut Training<'_>>,
    ) -> Result<StepTimings, TrainError> {
        let mut step = || training.step();
        let mut multiply = || products.compute();
        let mut other_step = other.map(|other| || other.step());
        let mut works: Vec<Work<'_>> = vec![&mut step, &mut multiply];
        works.extend(other_step.as_mut().map(|step| step as Work<'_>));
        let mut timings = self.time_in_turn(&mut works)?.into_iter();
        let mut next = || timings.next().unwrap_or_default();
        Ok(StepTimings { steps: next(), products: next(), other: timings.next() })
    }
}

/// A run's moving parts, without its folder.
struct Training<'a> {
    plan: &'a RunPlan,
    loader: Loader,
    model: Replaceable<Transformer>,
    optimizer: Optimizer,
    device: Device,
    stop: &'a AtomicBool,
    next_step: u64,
    /// Of the first and of the last step.
    losses: (f64, f64),
}

impl<'a> Training<'a> {
    fn new(
        case: StepCase<'a>,
        dataset: &Dataset,
        device: &Device,
        stop: &'a AtomicBool,
    ) -> Result<Self, TrainError> {
        let StepCase { config, plan, .. } = case;
        Ok(Self {
            plan,
            loader: Loader::of_sources(
                &dataset.sources,
                loader_config(config, plan),
                plan.sequences_per_step(),
                0,
            )?,
            model: Replaceable::new(Transformer::new(&plan.model, plan.seed, &device.clone().autodiff())),
            optimizer: Optimizer::new(&config.train, &plan.model),
            device: device.clone(),
            stop,
            next_step: 0,
            losses: (f64::NAN, f64::NAN),
        })
    }

    /// A forward pass over as many tokens as a step has, with the loss.
    fn forward(&self, dataset: &Dataset, mask_documents: bool) -> Result<(), TrainError> {
        let settings = EvaluationSettings {
            seq_len: self.plan.seq_len,
            sequences_per_batch: self.plan.sequences_per_micro_batch,
            max_tokens: Some(self.plan.tokens_per_step as u64),
            stride: None,
            mask_documents,
            // As many windows at a time as in a step.
            carries_state: false,
            by_document: false,
        };
        evaluate_unless(self.stop, self.model.get(), &dataset.train, &settings, &self.device).map(drop)
    }

    fn step(&mut self) -> Result<(), TrainError> {
        if self.stop.load(Ordering::SeqCst) {
            return Err(TrainError::Interrupted);
        }
        let Self { plan, next_step: step, .. } = *self;
        let settings = StepSettings {
            seed: plan.seed,
            step,
            max_grad_norm: plan.max_grad_norm,
            head_z_weight: plan.head_z_loss_weight,
            options: plan.pass_options(),
            // Empty or not, it costs the same.
            state: None,
        };
        let micro_batches = (0..plan.micro_batches_per_step)
            .map(|_| self.loader.next_batch())
            .collect::<Result<Vec<_>, _>>()?;
        let (gradients, measurements) =
            step_gradients(self.model.get(), micro_batches, &settings, &self.device)?;
        let learning_rate = plan.schedule.learning_rate(step);
        let factors = plan
            .qk_clip
            .map(|clip| clip_factors(&measurements.max_logits, clip.max_logit, |_| false))
            .unwrap_or_default();
        self.model.replace(|model| clipped(self.optimizer.update(model, gradients, learning_rate), &factors));
        let loss = measurements.total_loss;
        self.losses = (if step == 0 { loss } else { self.losses.0 }, loss);
        self.next_step += 1;
        Ok(())
    }
}
