//! One feed-forward layer: its time, and what it costs beside a dense layer of as many active
//! FLOPs.

use serde::Serialize;
use switchyard_model::Compute;

use super::layer_work::LayerWork;
use super::timing::Work;
use super::{LayerCase, Machine, Repetitions, Timings, Usage};
use crate::TrainError;
use crate::device;
use crate::throughput::MatmulCeiling;
use crate::train::with_threads;

/// What was measured; times are wall-clock times, and ratios are medians over pairs of repetitions.
#[derive(Debug, Clone, Serialize)]
pub struct LayerReport {
    /// Name of the case.
    pub case: String,
    /// Median time of a forward and backward pass: the gradients of the input and of all weights.
    pub step_ms_median: f64,
    /// Shortest time of a forward and backward pass.
    pub step_ms_min: f64,
    /// Tokens per second of the median pass.
    pub tokens_per_sec: f64,
    /// Most memory resident so far, the layers compared with included; `None` where the system does
    /// not tell.
    pub peak_rss_bytes: Option<u64>,
    /// Active FLOPs per second of the median pass, in units of 1e9.
    pub gflops: f64,
    /// The machine.
    #[serde(flatten)]
    pub machine: Machine,
    /// `gflops` as a share of the ceiling.
    pub ceiling_share: f64,
    /// Median time of a forward pass without gradients.
    pub forward_ms_median: f64,
    /// Shortest time of a forward pass.
    pub forward_ms_min: f64,
    /// Passes timed.
    pub steps: usize,
    /// Share of the tokens that the busiest expert gets; `None` for a dense layer.
    pub busiest_expert_share: Option<f64>,
    /// Median time of the dense layer of equal active FLOPs; `None` for a dense layer, as all that
    /// follows about it.
    pub dense_ms_median: Option<f64>,
    /// Time as a multiple of the dense layer's.
    pub ratio_to_dense: Option<f64>,
    /// Median time of the dense layer's forward pass.
    pub forward_dense_ms_median: Option<f64>,
    /// Time of the forward pass as a multiple of the dense layer's.
    pub forward_ratio_to_dense: Option<f64>,
    /// Share of the time that is not the experts' products and activations: routing, permutation,
    /// combination, and what they cost the products. Measured against the experts alone, each a
    /// dense block on rows that lie together, one after another: experts too small to occupy all
    /// threads need `threads = 1` for a meaningful share. `None` for a dense layer.
    pub routing_share: Option<f64>,
    /// The same of the forward pass.
    pub forward_routing_share: Option<f64>,
    /// Median time of the same layer without a hot expert; `None` if there is none, as all that
    /// follows about it.
    pub balanced_ms_median: Option<f64>,
    /// Time as a multiple of that without a hot expert.
    pub skew_ratio: Option<f64>,
    /// Time of the forward pass as a multiple of that without a hot expert.
    pub forward_skew_ratio: Option<f64>,
}

/// Time the layer of `case`, named `name`, in turn with those that it is compared with.
///
/// # Errors
/// [`TrainError::Threads`] if the threads cannot be started.
pub fn benchmark_layer(
    name: &str,
    case: &LayerCase,
    repetitions: Repetitions,
) -> Result<LayerReport, TrainError> {
    with_threads(case.threads, || benchmark_here(name, case, repetitions))
}

fn benchmark_here(name: &str, case: &LayerCase, repetitions: Repetitions) -> Result<LayerReport, TrainError> {
    const DEVICE: &str = "cpu";
    let device = device::select(DEVICE)?;
    let machine = Machine::observe(DEVICE, &MatmulCeiling::measure(&device, Compute::F32)?);
    let contenders = Contenders::new(case);
    let training = contenders.time(repetitions, LayerWork::train)?;
    let usage = Usage::now();
    let forward = contenders.time(repetitions, LayerWork::infer)?;
    let machine = machine.observe_again(&device, Compute::F32)?;

    let step_secs = training.layer.median_ms() / 1e3;
    let gflops = case.training_flops() / step_secs / 1e9;
    let share_beside = |layer: &Timings, experts: &Option<Timings>| {
        experts.as_ref().map(|experts| 1.0 - 1.0 / layer.ratio_to(experts))
    };
    let busiest = contenders.layer[0].tokens_per_expert().into_iter().max();
    Ok(LayerReport {
        case: name.into(),
        step_ms_median: training.layer.median_ms(),
        step_ms_min: training.layer.min_ms(),
        tokens_per_sec: case.num_tokens as f64 / step_secs,
        peak_rss_bytes: usage.peak_rss_bytes,
        gflops,
        ceiling_share: gflops / machine.matmul_ceiling_gflops,
        machine,
        forward_ms_median: forward.layer.median_ms(),
        forward_ms_min: forward.layer.min_ms(),
        steps: training.layer.len(),
        busiest_expert_share: busiest.map(|tokens| tokens as f64 / case.num_tokens as f64),
        dense_ms_median: training.dense.as_ref().map(Timings::median_ms),
        ratio_to_dense: training.dense.as_ref().map(|dense| training.layer.ratio_to(dense)),
        forward_dense_ms_median: forward.dense.as_ref().map(Timings::median_ms),
        forward_ratio_to_dense: forward.dense.as_ref().map(|dense| forward.layer.ratio_to(dense)),
        routing_share: share_beside(&training.layer, &training.experts_alone),
        forward_routing_share: share_beside(&forward.layer, &forward.experts_alone),
        balanced_ms_median: training.balanced.as_ref().map(Timings::median_ms),
        skew_ratio: training.balanced.as_ref().map(|balanced| training.layer.ratio_to(balanced)),
        forward_skew_ratio: forward.balanced.as_ref().map(|balanced| forward.layer.ratio_to(balanced)),
    })
}

/// The layer and those it is compared with; or, for each of them, something measured.
struct Contenders<T> {
    layer: T,
    /// Equal active FLOPs, for a mixture.
    dense: Option<T>,
    /// A mixture's experts without their routing.
    experts_alone: Option<T>,
    /// The same layer without a hot expert, if it has one.
    balanced: Option<T>,
}

/// Each contender is layers to be run one after another.
impl Contenders<Vec<LayerWork>> {
    fn new(case: &LayerCase) -> Self {
        let layer = LayerWork::new(case);
        let dense = case.is_mixture().then(|| vec![LayerWork::dense(case)]);
        let (layer, balanced) = match case.hot_expert_fraction {
            None => (layer, None),
            Some(fraction) => {
                let balanced = layer.with_switchable_expert();
                (balanced.clone().with_hot_expert(fraction), Some(vec![balanced]))
            }
        };
        let experts_alone = case.is_mixture().then(|| layer.experts_alone());
        Self { layer: vec![layer], dense, experts_alone, balanced }
    }

    /// Times of `pass` over each, taking turns.
    fn time(
        &self,
        repetitions: Repetitions,
        pass: impl Fn(&LayerWork) -> Result<(), TrainError>,
    ) -> Result<Contenders<Timings>, TrainError> {
        let run = |works: &Vec<LayerWork>| works.iter().try_for_each(&pass);
        let mut layer = || run(&self.layer);
        let mut dense = self.dense.as_ref().map(|dense| || run(dense));
        let mut experts_alone = self.experts_alone.as_ref().map(|experts| || run(experts));
        let mut balanced = self.balanced.as_ref().map(|balanced| || run(balanced));
        let mut works: Vec<Work<'_>> = vec![&mut layer];
        works.extend(dense.as_mut().map(|dense| dense as Work<'_>));
        works.extend(experts_alone.as_mut().map(|experts| experts as Work<'_>));
        works.extend(balanced.as_mut().map(|balanced| balanced as Work<'_>));
        let mut timings = repetitions.time_in_turn(&mut works)?.into_iter();
        let mut next = |is_there: bool| if is_there { timings.next() } else { None };
        Ok(Contenders {
            layer: next(true).unwrap_or_default(),
            dense: next(self.dense.is_some()),
            experts_alone: next(self.experts_alone.is_some()),
            balanced: next(self.balanced.is_some()),
        })
    }
}
