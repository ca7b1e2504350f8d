//! What the user writes: one TOML file is one [`RunConfig`].
//!
//! Nothing here is derived. [`crate::plan`] resolves a configuration into what will happen.

mod adamw;
mod distributed;
mod muon;
mod parameter_group;
mod precision;
mod qk_clip;
mod skip_spikes;
mod start;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use switchyard_datasets::DataConfig;
use switchyard_flight::alarms::AlarmsConfig;
use switchyard_model::{ModelConfig, Recompute};

pub use adamw::{AdamWConfig, MomentType};
pub use distributed::DistributedConfig;
pub use muon::{MuonConfig, MuonRole};
pub use parameter_group::ParameterGroupConfig;
pub use precision::{ComputeType, PrecisionConfig};
pub use qk_clip::QkClipConfig;
pub use skip_spikes::SkipSpikesConfig;
pub use start::StartConfig;
pub(crate) use start::fill_model;

/// A run, as written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Name of the run; part of the run folder's name. Letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Seed of the initial parameters, the data order (unless `train.data_seed` is given), dropout
    /// and jitter; default 0.
    #[serde(default)]
    pub seed: u64,
    /// `cpu`, `wgpu`, `wgpu:N` or `cuda:N`; default `cpu`.
    #[serde(default = "default_device")]
    pub device: String,
    /// Threads for the CPU device and the host work; absent means all cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Text and tokenizer.
    pub data: DataConfig,
    /// The network.
    pub model: ModelConfig,
    /// What the run begins with, and which parameters it trains.
    #[serde(default, skip_serializing_if = "StartConfig::is_default")]
    pub start: StartConfig,
    /// The loop.
    pub train: TrainConfig,
    /// How several processes share the run; absent is data parallel.
    #[serde(default, skip_serializing_if = "DistributedConfig::is_default")]
    pub distributed: DistributedConfig,
    /// Text generated at the end of the run, written to `sample.txt`.
    #[serde(default)]
    pub sample: SampleConfig,
}

/// The training loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimizer steps.
    pub num_steps: u64,
    /// Tokens in one training sequence.
    pub seq_len: usize,
    /// Tokens per optimizer step, a multiple of `micro_batch_tokens`.
    pub batch_tokens: usize,
    /// Tokens per forward and backward pass, a multiple of `seq_len`; gradients of
    /// `batch_tokens / micro_batch_tokens` passes are accumulated. Absent means `batch_tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch_tokens: Option<usize>,
    /// Seed of the data order alone; absent is `seed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_seed: Option<u64>,
    /// Go over the tokens in order, one stream for each sequence of a step, and carry the state of
    /// `model.lstm` from each window to the next: gradients end at the window's borders, the state
    /// does not. False shuffles windows, each of which begins with an empty state. Absent is true
    /// with `model.lstm`; attention has no state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carry_state: Option<bool>,
    /// Evaluate on the validation split every n steps, and at the end; absent means at the end
    /// only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_every_steps: Option<u64>,
    /// Write a checkpoint every n steps, and at the end; absent means at the end only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_every_steps: Option<u64>,
    /// Global norm to which gradients are clipped; absent means no clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_grad_norm: Option<f64>,
    /// Weight of the mean squared log-partition of the head's scores, which keeps them near zero
    /// (PaLM, arXiv:2204.02311, section 5); absent turns the loss off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_z_loss_weight: Option<f64>,
    /// What a step computes with; absent is f32.
    #[serde(default, skip_serializing_if = "PrecisionConfig::is_default")]
    pub precision: PrecisionConfig,
    /// `none`, `ffn` or `block`: what a backward pass computes anew instead of keeping it, with the
    /// same bits; default `none`.
    #[serde(default, skip_serializing_if = "Recompute::is_none")]
    pub recompute: Recompute,
    /// The optimizer of all that `muon` does not take. Its learning rate is that of the run.
    pub adamw: AdamWConfig,
    /// Muon for the matrices between hidden units; absent is AdamW for all parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub muon: Option<MuonConfig>,
    /// Make the heads smaller whose attention logits grow too large; absent lets them grow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qk_clip: Option<QkClipConfig>,
    /// Take no step whose loss or gradient is far above those before; absent takes all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_spikes: Option<SkipSpikesConfig>,
    /// Parameters that are trained otherwise than the rest. One that several groups name belongs to
    /// the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<ParameterGroupConfig>,
    /// The learning rate over the steps; at most one table inside. Absent is constant.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// How validation loss is measured.
    #[serde(default)]
    pub eval: EvalConfig,
    /// Which checkpoints stay on disk.
    #[serde(default)]
    pub checkpoints: CheckpointsConfig,
    /// Stop when the validation loss no longer falls; absent trains all `num_steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStoppingConfig>,
    /// What is recorded about routers and experts, and what raises an alarm; on without the table.
    #[serde(default, skip_serializing_if = "FlightRecorderConfig::is_default")]
    pub flight_recorder: FlightRecorderConfig,
}

/// The learning rate over the steps: linear warm-up, then at most one of the tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(try_from = "ScheduleTables", into = "ScheduleTables")]
pub struct ScheduleConfig {
    /// Steps over which the learning rate rises linearly to its peak; default 0.
    pub warmup_steps: u64,
    /// What follows the warm-up; absent is constant.
    pub shape: Option<ScheduleShapeConfig>,
}

/// What follows the warm-up.
#[derive(Debug, Clone, PartialEq)]
pub enum ScheduleShapeConfig {
    /// Half a cosine down to `min_learning_rate` (arXiv:1608.03983).
    Cosine(DecayConfig),
    /// A straight line down to `min_learning_rate`.
    Linear(DecayConfig),
    /// Warm-up, stable, decay (arXiv:2404.06395).
    Wsd(WsdConfig),
    /// Falls with the root of the step (arXiv:1706.03762, eq. 3).
    InverseSqrt,
    /// The peak throughout.
    Constant,
}

/// The learning rate over the steps: [`ScheduleConfig`] as it is written, the shape beside the
/// warm-up.
// A flattened enum would lose the position of an error, and let misspelt keys pass.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [
    { "required": ["cosine"] },
    { "required": ["linear"] },
    { "required": ["wsd"] },
    { "required": ["inverse_sqrt"] },
    { "required": ["constant"] },
    { "not": { "anyOf": [
        { "required": ["cosine"] }, { "required": ["linear"] }, { "required": ["wsd"] },
        { "required": ["inverse_sqrt"] }, { "required": ["constant"] }
    ] } }
]))]
struct ScheduleTables {
    /// Steps over which the learning rate rises linearly to its peak; default 0.
    #[serde(default)]
    warmup_steps: u64,
    /// Half a cosine down to `min_learning_rate` (arXiv:1608.03983).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cosine: Option<DecayConfig>,
    /// A straight line down to `min_learning_rate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    linear: Option<DecayConfig>,
    /// Warm-up, stable, decay (arXiv:2404.06395).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wsd: Option<WsdConfig>,
    /// Falls with the root of the step: `peak sqrt(s / step)` from the end of the warm-up, step s, on
    /// (arXiv:1706.03762, eq. 3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inverse_sqrt: Option<NoKeys>,
    /// The peak throughout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    constant: Option<NoKeys>,
}

impl TryFrom<ScheduleTables> for ScheduleConfig {
    type Error = &'static str;

    fn try_from(tables: ScheduleTables) -> Result<Self, Self::Error> {
        let ScheduleTables { warmup_steps, cosine, linear, wsd, inverse_sqrt, constant } = tables;
        let shapes = [
            cosine.map(ScheduleShapeConfig::Cosine),
            linear.map(ScheduleShapeConfig::Linear),
            wsd.map(ScheduleShapeConfig::Wsd),
            inverse_sqrt.map(|NoKeys {}| ScheduleShapeConfig::InverseSqrt),
            constant.map(|NoKeys {}| ScheduleShapeConfig::Constant),
        ];
        let mut given = shapes.into_iter().flatten();
        match (given.next(), given.next()) {
            (shape, None) => Ok(Self { warmup_steps, shape }),
            (_, Some(_)) => {
                Err("wanted at most one of `cosine`, `linear`, `wsd`, `inverse_sqrt`, `constant`")
            }
        }
    }
}

impl From<ScheduleConfig> for ScheduleTables {
    fn from(ScheduleConfig { warmup_steps, shape }: ScheduleConfig) -> Self {
        let tables =
            Self { warmup_steps, cosine: None, linear: None, wsd: None, inverse_sqrt: None, constant: None };
        match shape {
            None => tables,
            Some(ScheduleShapeConfig::Cosine(cosine)) => Self { cosine: Some(cosine), ..tables },
            Some(ScheduleShapeConfig::Linear(linear)) => Self { linear: Some(linear), ..tables },
            Some(ScheduleShapeConfig::Wsd(wsd)) => Self { wsd: Some(wsd), ..tables },
            Some(ScheduleShapeConfig::InverseSqrt) => Self { inverse_sqrt: Some(NoKeys {}), ..tables },
            Some(ScheduleShapeConfig::Constant) => Self { constant: Some(NoKeys {}), ..tables },
        }
    }
}

/// `[train.schedule.cosine]` and `[train.schedule.linear]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DecayConfig {
    /// Learning rate of the last step; default 0.
    #[serde(default)]
    pub min_learning_rate: f64,
}

/// `[train.schedule.wsd]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WsdConfig {
    /// Steps of the final linear decay.
    pub decay_steps: u64,
    /// Learning rate of the last step; default 0.
    #[serde(default)]
    pub min_learning_rate: f64,
}

/// `[train.schedule.inverse_sqrt]` and `[train.schedule.constant]`, which have no keys.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NoKeys {}

/// `[train.eval]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// Tokens of the validation split to evaluate on, from its start; absent means all of it. The
    /// evaluation after the last step always covers the whole split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// Measure the last model's loss on the test split too, once; default false: a run whose
    /// settings are still being chosen should not know it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub test_at_end: bool,
}

pub(crate) fn is_false(value: &bool) -> bool {
    !value
}

/// `[train.checkpoints]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointsConfig {
    /// Newest checkpoints to keep, at least 1; default 2.
    #[serde(default = "default_keep_last")]
    pub keep_last: usize,
    /// Also keep the checkpoint with the lowest validation loss, of those written right after an
    /// evaluation; default true.
    #[serde(default = "enabled")]
    pub keep_best: bool,
}

impl Default for CheckpointsConfig {
    fn default() -> Self {
        Self { keep_last: default_keep_last(), keep_best: true }
    }
}

/// `[train.early_stopping]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EarlyStoppingConfig {
    /// Evaluations in a row without improvement before the run stops.
    pub patience_evals: u32,
    /// Fall of the validation cross-entropy, in nats, that counts as improvement; default 0.
    #[serde(default)]
    pub min_improvement_nats: f64,
}

/// `[train.flight_recorder]`: what the run leaves in `flight/`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlightRecorderConfig {
    /// Record and watch at all; default true.
    #[serde(default = "enabled")]
    pub enabled: bool,
    /// Record every token's gate scores every n steps, for `switchyard whatif`; default 100. A
    /// number above `num_steps` records none, and of a step with more than 4 million scores its
    /// first micro-batches are recorded.
    #[serde(default = "default_scores_every_steps")]
    pub scores_every_steps: u64,
    /// Measure what costs too much for every step every n steps: co-activation, saturation,
    /// specialisation, the experts' similarity and weights, the balancing losses' gradient;
    /// default 100.
    #[serde(default = "default_probe_every_steps")]
    pub probe_every_steps: u64,
    /// Steps in one file of expert rows, which a killed process loses at most; default 20.
    #[serde(default = "default_steps_per_part")]
    pub steps_per_part: usize,
    /// When to raise an alarm.
    #[serde(default)]
    pub alarms: AlarmsConfig,
}

impl FlightRecorderConfig {
    /// Whether the recorder looks at each token of this step, counted from 1.
    pub(crate) fn looks_at_tokens(&self, step: u64) -> bool {
        let is_due = |every: u64| step.is_multiple_of(every);
        self.enabled && (is_due(self.probe_every_steps) || is_due(self.scores_every_steps))
    }
}

impl Default for FlightRecorderConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            scores_every_steps: default_scores_every_steps(),
            probe_every_steps: default_probe_every_steps(),
            steps_per_part: default_steps_per_part(),
            alarms: AlarmsConfig::default(),
        }
    }
}

impl FlightRecorderConfig {
    /// A table that says nothing is not written, so that a run without it keeps the hash, and the
    /// folder, it had.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// `[sample]`: text generated from the trained model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SampleConfig {
    /// Text to continue; absent is a line break, or the end-of-document mark of data that is ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Tokens to generate; default 256, and 0 writes no sample.
    #[serde(default = "default_sample_tokens")]
    pub num_tokens: usize,
    /// Divides the logits; 0 always takes the likeliest token; default 0.8.
    #[serde(default = "default_temperature")]
    pub temperature: f64,
    /// Sample among the k likeliest tokens only; absent means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Sample among the smallest set of tokens whose probability reaches this (arXiv:1904.09751).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self {
            prompt: None,
            num_tokens: default_sample_tokens(),
            temperature: default_temperature(),
            top_k: None,
            top_p: None,
        }
    }
}

fn default_device() -> String {
    "cpu".into()
}

fn default_keep_last() -> usize {
    2
}

fn default_scores_every_steps() -> u64 {
    100
}

fn default_probe_every_steps() -> u64 {
    100
}

fn default_steps_per_part() -> usize {
    20
}

fn default_sample_tokens() -> usize {
    256
}

fn default_temperature() -> f64 {
    0.8
}

fn enabled() -> bool {
    true
}

fn is_enabled(value: &bool) -> bool {
    *value
}
