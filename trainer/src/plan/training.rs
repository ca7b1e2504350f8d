//! `[train]` and the run's own keys: from what is written to what is done.

use switchyard_datasets::{DataConfig, Packing, SourceConfig};
use switchyard_experts::{FfnSpec, RouterSpec};
use switchyard_ground::key_checks::{
    below_one, in_range, not_negative, not_zero, optional_in_range, positive,
};
use switchyard_ground::key_error::KeyError;
use switchyard_ground::printable::excerpt;
use switchyard_model::{LayerSpec, MAX_SEQ_LEN, MAX_VOCAB_SIZE, ModelSpec, PassOptions, Recompute};
use switchyard_router::{GatePrecision, Selection};

use crate::config::{
    AdamWConfig, ComputeType, DistributedConfig, FlightRecorderConfig, MomentType, ParameterGroupConfig,
    PrecisionConfig, RunConfig, SampleConfig, ScheduleConfig, ScheduleShapeConfig, TrainConfig, WsdConfig,
};
use crate::device::{computes_f64, is_cpu};
use crate::memory::StepSize;
use crate::schedule::{Schedule, ScheduleShape};

// Upper bounds, far above what anybody trains.
pub(super) const MAX_BATCH_TOKENS: usize = 1 << 30;
/// Steps that spikes are told by; each is two numbers in every checkpoint.
const MAX_SPIKE_WINDOW: usize = 1 << 16;
pub(super) const MAX_STEPS: u64 = 1_000_000_000;
pub(crate) const MAX_THREADS: usize = 4096;
const MAX_RANKS: usize = 1 << 20;
const MAX_WAIT_SECS: u64 = 30 * 24 * 3600;

/// Checks the keys that stand alone.
///
/// # Errors
/// The first key whose value cannot be used.
pub(super) fn check_run(config: &RunConfig) -> Result<(), KeyError> {
    check_name(&config.name)?;
    // TOML's integers are signed; a larger seed could not be written back.
    in_range("seed", config.seed, 0..=i64::MAX as u64)?;
    optional_in_range("train.data_seed", config.train.data_seed, 0..=i64::MAX as u64, "to take `seed`")?;
    optional_in_range("threads", config.threads, 1..=MAX_THREADS, "to use all cores")?;
    let DistributedConfig { expert_parallel, silence_secs, timeout_secs } = config.distributed;
    in_range("distributed.expert_parallel", expert_parallel, 1..=MAX_RANKS)?;
    in_range("distributed.silence_secs", silence_secs, 2..=MAX_WAIT_SECS)?;
    in_range("distributed.timeout_secs", timeout_secs, 1..=MAX_WAIT_SECS)?;
    check_adamw(&config.train.adamw)?;
    check_groups(&config.train.groups)?;
    if let Some(spikes) = &config.train.skip_spikes {
        in_range("train.skip_spikes.window_steps", spikes.window_steps, 4..=MAX_SPIKE_WINDOW)?;
        positive("train.skip_spikes.deviations", spikes.deviations)?;
    }
    if let Some(norm) = config.train.max_grad_norm {
        positive("train.max_grad_norm", norm)?;
    }
    if let Some(weight) = config.train.head_z_loss_weight {
        positive("train.head_z_loss_weight", weight)?;
    }
    check_sample(&config.sample)
}

/// Tokens of one forward and backward pass.
///
/// # Errors
/// A number that is zero, too large, or not a multiple of the next smaller one.
pub(super) fn resolve_micro_batch_tokens(train: &TrainConfig) -> Result<usize, KeyError> {
    in_range("train.num_steps", train.num_steps, 1..=MAX_STEPS)?;
    in_range("train.seq_len", train.seq_len, 1..=MAX_SEQ_LEN)?;
    in_range("train.batch_tokens", train.batch_tokens, 1..=MAX_BATCH_TOKENS)?;
    let Some(micro_batch_tokens) = train.micro_batch_tokens else {
        check_multiple("train.batch_tokens", train.batch_tokens, "train.seq_len", train.seq_len)?;
        return Ok(train.batch_tokens);
    };
    let key = "train.micro_batch_tokens";
    in_range(key, micro_batch_tokens, 1..=MAX_BATCH_TOKENS)?;
    check_multiple(key, micro_batch_tokens, "train.seq_len", train.seq_len)?;
    check_multiple("train.batch_tokens", train.batch_tokens, key, micro_batch_tokens)?;
    Ok(micro_batch_tokens)
}

/// Ids of the tokenizer.
///
/// # Errors
/// A tokenizer that cannot be used, or with too few or too many ids.
pub(super) fn resolve_vocab_size(data: &DataConfig) -> Result<usize, KeyError> {
    const KEY: &str = "data.tokenizer";
    let vocab_size =
        data.vocab_size().map_err(|error| KeyError::new(KEY, "cannot be used", error.to_string()))?;
    if (2..=MAX_VOCAB_SIZE).contains(&vocab_size) {
        return Ok(vocab_size);
    }
    let remedy = format!("use 2..={MAX_VOCAB_SIZE}");
    Err(KeyError::new(KEY, format!("gives {vocab_size} ids"), remedy))
}

/// Ok unless documents that are to be seen alone would be mixed with others of their sequence.
///
/// # Errors
/// The packing beside the router that does.
pub(super) fn check_packing(config: &RunConfig, model: &ModelSpec) -> Result<(), KeyError> {
    let soft = model.routers().find(|(_, router)| matches!(router.config.selection, Selection::Soft(_)));
    match (config.data.packing, soft) {
        (Packing::BestFit, Some((_, router))) => Err(KeyError::new(
            "data.packing",
            format!("is \"best_fit\", but `{}.selection.soft` mixes all tokens of a sequence", router.key),
            "use \"concatenate\", or another selection",
        )),
        _ => Ok(()),
    }
}

/// Ok unless a router's tiles would be empty: an expert whose load is that of the mean gets no token
/// if that is less than half a tile.
///
/// # Errors
/// The tile's key, beside the tokens of an expert.
pub(super) fn check_token_rounding(model: &ModelSpec, micro_batch_tokens: usize) -> Result<(), KeyError> {
    for (moe, router) in model.layers.iter().filter_map(|layer| layer.ffn.routed()) {
        let Some(rounding) = &router.config.token_rounding else { continue };
        let mean_load = (micro_batch_tokens * router.config.top_k) as f64 / moe.num_experts as f64;
        if rounding.tile > micro_batch_tokens || rounding.tile as f64 > 2.0 * mean_load {
            let key = format!("{}.token_rounding.tile", router.key);
            let problem = format!(
                "is {}, but in a micro-batch of {micro_batch_tokens} tokens an expert has {mean_load:.1} on average: with less \
                 than half a tile it would get none",
                rounding.tile
            );
            return Err(KeyError::new(key, problem, "use a smaller tile, or larger micro-batches"));
        }
    }
    Ok(())
}

/// What decides about a step's memory.
pub(super) fn step_size(config: &RunConfig, micro_batch_tokens: usize) -> StepSize {
    let train = &config.train;
    StepSize {
        micro_batch_tokens,
        micro_batches: train.batch_tokens / micro_batch_tokens,
        threads: config.threads,
        options: PassOptions {
            compute: train.precision.resolve(),
            recompute: train.recompute,
            measures_logits: train.qk_clip.is_some(),
        },
        writes_checkpoints: train.checkpoint_every_steps.is_some(),
    }
}

/// Ok unless products in bf16 are asked for where they cannot be had.
///
/// # Errors
/// The key, and what stands in its way.
pub(super) fn check_precision(config: &RunConfig, model: &ModelSpec) -> Result<(), KeyError> {
    let PrecisionConfig { compute, matrix_units } = config.train.precision;
    if compute == ComputeType::F32 {
        return match matrix_units {
            true => Ok(()),
            false => Err(KeyError::new(
                "train.precision.matrix_units",
                "is false, but `train.precision.compute` is \"f32\": matrix units multiply bf16 only",
                "remove the key, or compute in \"bf16\"",
            )),
        };
    }
    let refused = |problem: String, remedy: &str| {
        Err(KeyError::new("train.precision.compute", format!("is \"bf16\", but {problem}"), remedy))
    };
    if !is_cpu(&config.device) {
        let problem =
            format!("`device` is \"{}\": only the CPU computes products so", excerpt(&config.device, 60));
        return refused(problem, "use \"f32\", or the device \"cpu\"");
    }
    let is_block_sparse = |layer: &LayerSpec| matches!(layer.ffn, FfnSpec::BlockSparse(_));
    if model.layers.iter().any(is_block_sparse) {
        return refused(
            "block-sparse layers multiply in f32 only".to_owned(),
            "use \"f32\", or other layers",
        );
    }
    Ok(())
}

/// Ok unless a router's numbers are to be of a type that the device computes wrongly.
///
/// # Errors
/// The router's key, beside the device.
pub(super) fn check_gates(config: &RunConfig, model: &ModelSpec) -> Result<(), KeyError> {
    let in_f64 = |router: &RouterSpec| router.config.precision == GatePrecision::F64;
    match model.routers().find(|(_, router)| in_f64(router) && !computes_f64(&config.device)) {
        None => Ok(()),
        Some((_, router)) => Err(KeyError::new(
            format!("{}.precision", router.key),
            format!(
                "is \"f64\", but `device` is \"{}\", which computes exponentials of f64 wrongly",
                excerpt(&config.device, 60)
            ),
            "use \"f32\", or another device",
        )),
    }
}

/// Ok unless moments in bf16 are asked for where they cannot be had.
///
/// # Errors
/// The key, beside the device.
pub(super) fn check_moments(config: &RunConfig) -> Result<(), KeyError> {
    match config.train.adamw.moments {
        MomentType::Bf16 if !is_cpu(&config.device) => Err(KeyError::new(
            "train.adamw.moments",
            format!(
                "is \"bf16\", but `device` is \"{}\": only the CPU rounds them so",
                excerpt(&config.device, 60)
            ),
            "use \"f32\", or the device \"cpu\"",
        )),
        MomentType::Bf16 | MomentType::F32 => Ok(()),
    }
}

/// Ok unless nothing of the model would be computed anew.
///
/// # Errors
/// The key, if no block keeps projections of its own.
pub(super) fn check_recompute(config: &RunConfig, model: &ModelSpec) -> Result<(), KeyError> {
    let keeps_projections =
        |layer: &LayerSpec| !matches!(layer.ffn, FfnSpec::BlockSparse(_) | FfnSpec::Absent);
    if config.train.recompute != Recompute::Ffn || model.layers.iter().any(keeps_projections) {
        return Ok(());
    }
    let problem =
        "is \"ffn\", but the model has neither dense blocks nor experts, whose projections it is about";
    Err(KeyError::new("train.recompute", problem, "remove the key"))
}

/// Whether the state of the network goes from each window to the next.
///
/// # Errors
/// If it should where there is none, or the data has no order to keep.
pub(super) fn resolve_carry_state(config: &RunConfig, model: &ModelSpec) -> Result<bool, KeyError> {
    const KEY: &str = "train.carry_state";
    match (model.is_recurrent(), config.train.carry_state) {
        (false, Some(true)) => {
            let remedy = "remove the key, or use `model.lstm`";
            return Err(KeyError::new(KEY, "is true, but attention has no state to carry", remedy));
        }
        (false, _) | (true, Some(false)) => return Ok(false),
        (true, Some(true) | None) => {}
    }
    let obstacle = match (&config.data.source, config.data.packing) {
        (SourceConfig::Mixture(sources), _) if sources.len() > 1 => "`data.sources` mixes several",
        (_, Packing::BestFit) => "`data.packing` is \"best_fit\"",
        (_, Packing::Concatenate) => return Ok(true),
    };
    let problem = format!("needs the tokens of one source in their order, but {obstacle}");
    let remedy = "set it to false: every window then begins with an empty state";
    Err(KeyError::new(KEY, problem, remedy))
}

/// The learning rate over the run.
///
/// # Errors
/// A minimum above the peak, or decay steps that do not fit into the run.
pub(super) fn resolve_schedule(train: &TrainConfig, notes: &mut Vec<String>) -> Result<Schedule, KeyError> {
    let ScheduleConfig { warmup_steps, shape } = &train.schedule;
    in_range("train.schedule.warmup_steps", *warmup_steps, 0..=MAX_STEPS)?;
    let minimum = |table: &str, value| check_min_learning_rate(table, value, train.adamw.learning_rate);
    let shape = match shape {
        Some(ScheduleShapeConfig::Cosine(decay)) => {
            ScheduleShape::Cosine { min_learning_rate: minimum("cosine", decay.min_learning_rate)? }
        }
        Some(ScheduleShapeConfig::Linear(decay)) => {
            ScheduleShape::Linear { min_learning_rate: minimum("linear", decay.min_learning_rate)? }
        }
        Some(ScheduleShapeConfig::Wsd(wsd)) => {
            check_decay_steps(wsd, train)?;
            let min_learning_rate = minimum("wsd", wsd.min_learning_rate)?;
            ScheduleShape::Wsd { decay_steps: wsd.decay_steps, min_learning_rate }
        }
        Some(ScheduleShapeConfig::InverseSqrt) => ScheduleShape::InverseSqrt,
        Some(ScheduleShapeConfig::Constant) | None => ScheduleShape::Constant,
    };
    // Not an error: a trial run of a recipe with a few steps should not need a second key changed.
    if *warmup_steps >= train.num_steps {
        notes.push(format!(
            "the learning rate never reaches its peak: `train.schedule.warmup_steps` is {warmup_steps}, \
             `train.num_steps` {}",
            train.num_steps
        ));
    }
    Ok(Schedule {
        peak_learning_rate: train.adamw.learning_rate,
        warmup_steps: *warmup_steps,
        num_steps: train.num_steps,
        shape,
    })
}

/// Checks what happens every so many steps.
///
/// # Errors
/// An interval or a number that is zero, or early stopping without evaluations to stop at.
pub(super) fn check_intervals(train: &TrainConfig) -> Result<(), KeyError> {
    let at_the_end = ", or remove the key to do it at the end only";
    not_zero("train.eval_every_steps", train.eval_every_steps == Some(0), at_the_end)?;
    not_zero("train.checkpoint_every_steps", train.checkpoint_every_steps == Some(0), at_the_end)?;
    not_zero("train.checkpoints.keep_last", train.checkpoints.keep_last == 0, "")?;
    check_flight_recorder(&train.flight_recorder)?;
    match train.eval.max_tokens {
        Some(max_tokens) if max_tokens < train.seq_len as u64 => {
            let problem =
                format!("is {max_tokens}, less than one sequence of `train.seq_len` = {}", train.seq_len);
            let remedy = "use at least that, or remove the key to evaluate on the whole split";
            return Err(KeyError::new("train.eval.max_tokens", problem, remedy));
        }
        _ => {}
    }
    let Some(early_stopping) = &train.early_stopping else { return Ok(()) };
    not_zero("train.early_stopping.patience_evals", early_stopping.patience_evals == 0, "")?;
    not_negative("train.early_stopping.min_improvement_nats", early_stopping.min_improvement_nats)?;
    if train.eval_every_steps.is_none() {
        let remedy = "set `train.eval_every_steps`, or remove the table";
        return Err(KeyError::new("train.early_stopping", "needs evaluations to stop at", remedy));
    }
    Ok(())
}

fn check_flight_recorder(config: &FlightRecorderConfig) -> Result<(), KeyError> {
    let key = |name: &str| format!("train.flight_recorder.{name}");
    let never = "; a number above `train.num_steps` never does";
    not_zero(&key("scores_every_steps"), config.scores_every_steps == 0, never)?;
    not_zero(&key("probe_every_steps"), config.probe_every_steps == 0, never)?;
    not_zero(&key("steps_per_part"), config.steps_per_part == 0, "")?;
    config.alarms.validate().map_err(|error| error.under("train.flight_recorder.alarms"))
}

fn check_name(name: &str) -> Result<(), KeyError> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=100).contains(&name.len())
        && name.chars().all(is_allowed)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
    {
        return Ok(());
    }
    let problem = format!("is \"{}\", but it becomes a folder's name", excerpt(name, 60));
    let remedy = "use 1 to 100 letters (a-z, A-Z), digits, `-`, `_` and `.`, a letter or digit first";
    Err(KeyError::new("name", problem, remedy))
}

fn check_adamw(adamw: &AdamWConfig) -> Result<(), KeyError> {
    positive("train.adamw.learning_rate", adamw.learning_rate)?;
    below_one("train.adamw.beta1", adamw.beta1)?;
    below_one("train.adamw.beta2", adamw.beta2)?;
    positive("train.adamw.epsilon", adamw.epsilon)?;
    not_negative("train.adamw.weight_decay", adamw.weight_decay)
}

fn check_groups(groups: &[ParameterGroupConfig]) -> Result<(), KeyError> {
    for (index, group) in groups.iter().enumerate() {
        let key = |name: &str| format!("train.groups[{index}].{name}");
        positive(&key("learning_rate_factor"), group.learning_rate_factor)?;
        not_negative(&key("weight_decay"), group.weight_decay.unwrap_or(0.0))?;
        let changes_rate = group.learning_rate_factor != 1.0 || group.weight_decay.is_some();
        // One that changes nothing is no mistake: it keeps its parameters out of later, wider groups.
        if group.freeze && changes_rate {
            let problem = "freezes, and has a rate or a decay of its own";
            return Err(KeyError::new(format!("train.groups[{index}]"), problem, "leave one of them out"));
        }
    }
    Ok(())
}

fn check_sample(sample: &SampleConfig) -> Result<(), KeyError> {
    not_negative("sample.temperature", sample.temperature)?;
    not_zero("sample.top_k", sample.top_k == Some(0), ", or remove the key to sample among all tokens")?;
    if let Some(top_p) = sample.top_p.filter(|top_p| !(*top_p > 0.0 && *top_p <= 1.0)) {
        let remedy = "use a number above 0 and up to 1, or remove the key to sample among all tokens";
        return Err(KeyError::new("sample.top_p", format!("is {top_p}"), remedy));
    }
    if sample.num_tokens > 0 && sample.prompt.as_deref() == Some("") {
        let remedy = "give at least one character, or set `sample.num_tokens = 0` for no sample";
        return Err(KeyError::new("sample.prompt", "is empty", remedy));
    }
    Ok(())
}

fn check_multiple(key: &str, value: usize, divisor_key: &str, divisor: usize) -> Result<(), KeyError> {
    if value.is_multiple_of(divisor) {
        return Ok(());
    }
    let above = (value / divisor + 1) * divisor;
    let nearest = match above - divisor {
        0 => above.to_string(),
        below => format!("{below} or {above}"),
    };
    let problem = format!("is {value}, not a multiple of `{divisor_key}` = {divisor}");
    Err(KeyError::new(key, problem, format!("use {nearest}")))
}

fn check_min_learning_rate(table: &str, minimum: f64, peak: f64) -> Result<f64, KeyError> {
    let key = format!("train.schedule.{table}.min_learning_rate");
    not_negative(&key, minimum)?;
    if minimum > peak {
        let problem = format!("is {minimum}, above the peak `train.adamw.learning_rate` = {peak}");
        return Err(KeyError::new(key, problem, "use at most the peak"));
    }
    Ok(minimum)
}

fn check_decay_steps(wsd: &WsdConfig, train: &TrainConfig) -> Result<(), KeyError> {
    let key = "train.schedule.wsd.decay_steps";
    in_range(key, wsd.decay_steps, 1..=MAX_STEPS)?;
    let steps_left = train.num_steps.saturating_sub(train.schedule.warmup_steps);
    if wsd.decay_steps > steps_left {
        let problem = format!(
            "is {}, but `train.num_steps` = {} less `train.schedule.warmup_steps` = {} leaves {steps_left}",
            wsd.decay_steps, train.num_steps, train.schedule.warmup_steps
        );
        return Err(KeyError::new(key, problem, "use at most that"));
    }
    Ok(())
}
