//! What will happen: a [`RunConfig`] with all arithmetic done and every rule between its keys
//! checked.

mod describe;
mod muon;
mod qk_clip;
mod router;
mod training;

pub(crate) use training::MAX_THREADS;

use serde::{Deserialize, Serialize};
use switchyard_experts::PassSize;
use switchyard_ground::key_error::KeyError;
use switchyard_model::{Compute, ModelCounts, ModelSpec, PassOptions, Recompute};

use crate::config::{
    AdamWConfig, EarlyStoppingConfig, FlightRecorderConfig, MuonConfig, QkClipConfig, RunConfig, SampleConfig,
};
use crate::memory::{MemoryEstimate, StepSize};
use crate::schedule::Schedule;

/// A run with nothing left open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunPlan {
    /// Name of the run.
    pub name: String,
    /// Seed of the initial parameters, the data order, dropout and jitter.
    pub seed: u64,
    /// Optimizer steps.
    pub num_steps: u64,
    /// Tokens in one training sequence.
    pub seq_len: usize,
    /// Tokens of one optimizer step.
    pub tokens_per_step: usize,
    /// Forward and backward passes whose gradients make one step.
    pub micro_batches_per_step: usize,
    /// Sequences in one of these passes.
    pub sequences_per_micro_batch: usize,
    /// Whether the state of a recurrent network goes from each window to the next.
    #[serde(default, skip_serializing_if = "crate::config::is_false")]
    pub carries_state: bool,
    /// The network.
    pub model: ModelSpec,
    /// What products of a step compute with.
    #[serde(default, skip_serializing_if = "is_f32")]
    pub compute: Compute,
    /// What a backward pass computes anew.
    #[serde(default, skip_serializing_if = "Recompute::is_none")]
    pub recompute: Recompute,
    /// AdamW, of all parameters that Muon does not take.
    pub optimizer: AdamWConfig,
    /// Muon, with the roles that the model has and its own decay; `None` means AdamW for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub muon: Option<MuonConfig>,
    /// Which heads are made smaller after an update; `None` means none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qk_clip: Option<QkClipConfig>,
    /// Global norm to which gradients are clipped; `None` means no clipping.
    pub max_grad_norm: Option<f64>,
    /// Weight of the head's z-loss; `None` means none.
    pub head_z_loss_weight: Option<f64>,
    /// Learning rate of each step.
    pub schedule: Schedule,
    /// When and on how much to validate.
    pub evaluation: EvaluationPlan,
    /// When to write a checkpoint, and which to keep.
    pub checkpoints: CheckpointPlan,
    /// When to give up early; `None` means never.
    pub early_stopping: Option<EarlyStoppingConfig>,
    /// What is recorded about routers and experts.
    #[serde(default)]
    pub flight_recorder: FlightRecorderConfig,
    /// Text generated at the end.
    pub sample: SampleConfig,
    /// Parameters and FLOPs.
    pub counts: ModelCounts,
    /// Memory of training on the CPU.
    pub memory: MemoryEstimate,
    /// Keys that are allowed as they stand but have no effect, or hardly the intended one.
    pub notes: Vec<String>,
}

/// When and on how much to validate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluationPlan {
    /// Steps between evaluations; `None` means at the end only.
    pub every_steps: Option<u64>,
    /// Tokens from the start of the validation split; `None` means all of it. The last evaluation
    /// always takes all.
    pub max_tokens: Option<u64>,
    /// Whether the last model is measured on the test split.
    #[serde(default, skip_serializing_if = "crate::config::is_false")]
    pub test_at_end: bool,
}

/// When to write a checkpoint, and which to keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointPlan {
    /// Steps between checkpoints; `None` means at the end only.
    pub every_steps: Option<u64>,
    /// Newest checkpoints that stay.
    pub keep_last: usize,
    /// Whether the best so far stays too.
    pub keep_best: bool,
}

/// Whether factors are not rounded.
fn is_f32(compute: &Compute) -> bool {
    *compute == Compute::F32
}

impl RunPlan {
    /// The plan of `config`. Touches no data and allocates no parameters; a `tokenizer.json` is
    /// read for its vocabulary if one is configured.
    ///
    /// # Errors
    /// The first key whose value cannot be used, alone or beside the others.
    pub fn resolve(config: &RunConfig) -> Result<Self, KeyError> {
        let mut notes = Vec::new();
        training::check_run(config)?;
        config.data.validate().map_err(|error| error.under("data"))?;
        let micro_batch_tokens = training::resolve_micro_batch_tokens(&config.train)?;
        let vocab_size = training::resolve_vocab_size(&config.data)?;
        let model = config.model.resolve(vocab_size, config.train.seq_len, &mut notes)?;
        training::check_packing(config, &model)?;
        training::check_token_rounding(&model, micro_batch_tokens)?;
        training::check_precision(config, &model)?;
        training::check_moments(config)?;
        training::check_gates(config, &model)?;
        training::check_recompute(config, &model)?;
        let carries_state = training::resolve_carry_state(config, &model)?;
        let muon = muon::resolve(&config.train, &model)?;
        qk_clip::check(config.train.qk_clip, &model)?;
        let schedule = training::resolve_schedule(&config.train, &mut notes)?;
        training::check_intervals(&config.train)?;
        let counts = ModelCounts::of(&model, micro_batch_tokens);
        let size = training::step_size(config, micro_batch_tokens);
        Ok(Self {
            name: config.name.clone(),
            seed: config.seed,
            num_steps: config.train.num_steps,
            seq_len: config.train.seq_len,
            tokens_per_step: config.train.batch_tokens,
            micro_batches_per_step: size.micro_batches,
            sequences_per_micro_batch: micro_batch_tokens / config.train.seq_len,
            memory: MemoryEstimate::of(&model, &counts, size, (&config.train.adamw, muon.as_ref())),
            carries_state,
            model,
            compute: config.train.precision.resolve(),
            recompute: config.train.recompute,
            optimizer: config.train.adamw.clone(),
            muon,
            qk_clip: config.train.qk_clip,
            max_grad_norm: config.train.max_grad_norm,
            head_z_loss_weight: config.train.head_z_loss_weight,
            schedule,
            evaluation: EvaluationPlan {
                every_steps: config.train.eval_every_steps,
                max_tokens: config.train.eval.max_tokens,
                test_at_end: config.train.eval.test_at_end,
            },
            checkpoints: CheckpointPlan {
                every_steps: config.train.checkpoint_every_steps,
                keep_last: config.train.checkpoints.keep_last,
                keep_best: config.train.checkpoints.keep_best,
            },
            early_stopping: config.train.early_stopping.clone(),
            flight_recorder: config.train.flight_recorder.clone(),
            sample: config.sample.clone(),
            counts,
            notes,
        })
    }

    /// Ok if the sizes of a step are those of some configuration: a plan that is read from a file
    /// says whatever the file says.
    ///
    /// # Errors
    /// What does not add up.
    pub(crate) fn check_sizes(&self) -> Result<(), String> {
        let Self { seq_len, tokens_per_step, micro_batches_per_step, sequences_per_micro_batch, .. } = *self;
        let tokens = micro_batches_per_step
            .checked_mul(sequences_per_micro_batch)
            .and_then(|sequences| sequences.checked_mul(seq_len));
        let adds_up = tokens == Some(tokens_per_step)
            && (1..=training::MAX_BATCH_TOKENS).contains(&tokens_per_step)
            && self.num_steps <= training::MAX_STEPS;
        if adds_up {
            return Ok(());
        }
        Err(format!(
            "{micro_batches_per_step} micro-batches of {sequences_per_micro_batch} sequences of {seq_len} tokens, {tokens_per_step} \
             tokens a step and {} steps are those of no run",
            self.num_steps
        ))
    }

    /// Sequences of one optimizer step.
    pub fn sequences_per_step(&self) -> usize {
        self.micro_batches_per_step * self.sequences_per_micro_batch
    }

    /// Memory of a process that makes so many passes of each step, and all of the update.
    pub(crate) fn memory_of_passes(&self, config: &RunConfig, num_passes: usize) -> MemoryEstimate {
        let size = training::step_size(config, self.micro_batch_tokens());
        let size = StepSize { micro_batches: num_passes, ..size };
        MemoryEstimate::of(&self.model, &self.counts, size, (&self.optimizer, self.muon.as_ref()))
    }

    /// Tokens of one forward and backward pass.
    pub fn micro_batch_tokens(&self) -> usize {
        self.sequences_per_micro_batch * self.seq_len
    }

    /// How training passes are computed.
    pub(crate) fn pass_options(&self) -> PassOptions {
        PassOptions {
            compute: self.compute,
            recompute: self.recompute,
            measures_logits: self.qk_clip.is_some(),
        }
    }

    /// What a training pass goes over.
    pub(crate) fn pass_size(&self) -> PassSize {
        PassSize { micro_batch_tokens: self.micro_batch_tokens(), seq_len: self.model.max_seq_len }
    }

    /// Tokens of the whole run.
    pub fn total_tokens(&self) -> u64 {
        self.num_steps * self.tokens_per_step as u64
    }

    /// Active training FLOPs of one step.
    pub fn training_flops_per_step(&self) -> f64 {
        self.counts.training_flops_per_token as f64 * self.tokens_per_step as f64
    }

    /// Active training FLOPs of the whole run, evaluation not counted.
    pub fn total_training_flops(&self) -> f64 {
        self.training_flops_per_step() * self.num_steps as f64
    }
}
