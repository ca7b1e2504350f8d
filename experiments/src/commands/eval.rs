//! `switchyard eval`

mod choices;

use std::f64::consts::LN_2;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::json;
use switchyard_datasets::{
    DataConfig, Dataset, FileTokenizerConfig, Manifest, Progress, SplitManifest, TokenStore, TokenizerConfig,
    prepare,
};
use switchyard_model::Transformer;
use switchyard_trainer::TrainError;
use switchyard_trainer::average;
use switchyard_trainer::checkpoint::{Checkpoint, CheckpointError, find_checkpoint};
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::config_file::Override;
use switchyard_trainer::device;
use switchyard_trainer::evaluate::{Evaluation, EvaluationSettings, evaluate_sources, evaluate_unless};
use switchyard_trainer::metrics::perplexity;
use switchyard_trainer::moved_data::{
    MayChange, changed_config, check_has_data, check_same_data, with_missing_path,
};
use switchyard_trainer::run_folder::RunPaths;
use switchyard_trainer::train::with_threads;

use super::{loss_words, parsed, print_json, print_text, with_device};
use crate::cli::{EvalArgs, HeldOutSplit};
use crate::failure::Failure;
use crate::interrupt::Interruption;

pub(super) fn run(args: &EvalArgs, interruption: &Interruption) -> Result<(), Failure> {
    let overrides = parsed(&with_device(&args.overrides, args.device.as_deref()))?;
    let stop = interruption.watch("stopping")?;
    let mut checkpoint = Checkpoint::read(&find_checkpoint(&args.path)?)?;
    if let Some(file) = &args.choices {
        checkpoint.config = places_changed(&checkpoint, &overrides)?;
        return choices::run(args, file, &checkpoint, &stop);
    }
    let written = RunPaths::new(&checkpoint.path).config();
    let may_change = if args.other_data { MayChange::Data } else { MayChange::Places };
    checkpoint.config = changed_config(&checkpoint.config, &written, &overrides, may_change)?;
    if args.other_data {
        use_own_tokenizer(&mut checkpoint, &overrides);
    }
    let measured = with_threads(checkpoint.config.threads, || measure(args, &checkpoint, &stop));
    let measured = measured.map_err(|error| with_missing_path(error, &checkpoint.config.data))?;
    report(args, &checkpoint, &measured)
}

/// The configuration of `checkpoint` with another device or number of threads.
fn places_changed(checkpoint: &Checkpoint, overrides: &[Override]) -> Result<RunConfig, Failure> {
    let written = RunPaths::new(&checkpoint.path).config();
    Ok(changed_config(&checkpoint.config, &written, overrides, MayChange::Places)?)
}

/// An evaluation and what it was made on.
struct Measured {
    evaluation: Evaluation,
    dataset: Dataset,
    /// Bytes of text that the targets are; `None` unless they are counted exactly.
    target_bytes: Option<u64>,
    /// Steps of the checkpoints that the model is the mean of.
    steps: Vec<u64>,
}

impl Measured {
    /// In bits per byte of the targets' text, else of the split's mean token.
    fn bits_per_byte(&self, split: &SplitManifest) -> Option<f64> {
        let Evaluation { cross_entropy_nats, num_tokens, .. } = self.evaluation;
        match self.target_bytes {
            Some(bytes) => Some(cross_entropy_nats * num_tokens as f64 / bytes as f64 / LN_2),
            None => split.bits_per_byte(cross_entropy_nats),
        }
    }
}

/// Bytes of the text of all targets of `store` but its first token, which is none; `None` where the
/// bytes are not known.
fn bytes_after_first(
    store: &TokenStore,
    split: &SplitManifest,
    dataset: &Dataset,
) -> Result<Option<u64>, TrainError> {
    let mut first = [0];
    store.read(0, &mut first)?;
    let of_first = dataset.tokenizer.token_bytes(first[0] as u32)? as u64;
    Ok(split.num_bytes.checked_sub(of_first).filter(|bytes| *bytes > 0))
}

/// The split that is asked for, with its name.
fn split_of<'a>(args: &EvalArgs, manifest: &'a Manifest) -> (&'static str, &'a SplitManifest) {
    match (args.split, &manifest.test) {
        (HeldOutSplit::Test, Some(test)) => ("test", test),
        _ => ("validation", &manifest.validation),
    }
}

fn measure(args: &EvalArgs, checkpoint: &Checkpoint, stop: &Arc<AtomicBool>) -> Result<Measured, TrainError> {
    let device = device::select(&checkpoint.config.device)?;
    let data = &checkpoint.config.data;
    if !args.other_data {
        check_has_data(&checkpoint.path, &checkpoint.state.data_hash)?;
    }
    let dataset = prepare(data, &Progress::stderr().with_stop(stop.clone()))?;
    if args.other_data {
        check_same_tokens(checkpoint, &dataset)?;
    } else {
        check_same_data(&checkpoint.path, &checkpoint.state.data_hash, data, &dataset)
            .map_err(with_other_data)?;
    }
    let settings = EvaluationSettings {
        seq_len: checkpoint.plan.seq_len,
        sequences_per_batch: checkpoint.plan.sequences_per_micro_batch,
        max_tokens: args.max_tokens,
        stride: args.stride,
        mask_documents: data.mask_documents,
        carries_state: checkpoint.plan.carries_state,
        by_document: false,
    };
    let store = match args.split {
        HeldOutSplit::Validation => &dataset.validation,
        HeldOutSplit::Test => {
            dataset.test.as_ref().ok_or(TrainError::NoTestSplit { wanted_by: "`--split test`" })?
        }
    };
    let (model, steps) = network(args, checkpoint)?;
    let mut evaluation = evaluate_unless(stop, &model, store, &settings, &device)?;
    if dataset.sources.len() > 1 {
        let sources = dataset.sources.iter();
        let stores: Vec<_> = match args.split {
            HeldOutSplit::Validation => sources.map(|source| Some(&source.validation)).collect(),
            HeldOutSplit::Test => sources.map(|source| source.test.as_ref()).collect(),
        };
        evaluation.sources = evaluate_sources(&stores, &settings, |_, store, settings| {
            evaluate_unless(stop, &model, store, settings, &device)
        })?;
    }
    if !evaluation.cross_entropy_nats.is_finite() {
        return Err(TrainError::NoNumbers { what: "the loss is NaN or infinite" });
    }
    let target_bytes = if args.stride.is_some() && evaluation.whole_split {
        bytes_after_first(store, split_of(args, &dataset.manifest).1, &dataset)?
    } else {
        None
    };
    Ok(Measured { evaluation, dataset, target_bytes, steps })
}

/// The network that is asked for: the checkpoint's, or the mean of the newest ones of its run; with the
/// steps that it is of.
fn network(args: &EvalArgs, checkpoint: &Checkpoint) -> Result<(Transformer, Vec<u64>), TrainError> {
    let device = &device::select(&checkpoint.config.device)?;
    let Some(count) = args.average else {
        return Ok((checkpoint.model(device)?, vec![checkpoint.state.step]));
    };
    let newest = average::newest(&args.path, usize::try_from(count).unwrap_or(usize::MAX))?;
    let steps = newest.iter().map(|checkpoint| checkpoint.state.step).collect();
    Ok((average::mean(&newest, device)?, steps))
}

/// The steps in words: `step 8`, or `mean of steps 4, 6, 8`.
fn step_words(steps: &[u64]) -> String {
    match steps {
        [step] => format!("step {step}"),
        steps => {
            let steps: Vec<String> = steps.iter().map(u64::to_string).collect();
            format!("mean of steps {}", steps.join(", "))
        }
    }
}

/// `error`; that the data is not the run's, with how to evaluate it all the same.
fn with_other_data(error: CheckpointError) -> CheckpointError {
    match error {
        CheckpointError::Mismatch { path, reason } => CheckpointError::Mismatch {
            path,
            reason: reason + "; `--other-data` evaluates other data than the run's",
        },
        other => other,
    }
}

/// Other text would train another byte-pair encoding: it gets the checkpoint's.
fn use_own_tokenizer(checkpoint: &mut Checkpoint, overrides: &[Override]) {
    let data: &mut DataConfig = &mut checkpoint.config.data;
    let is_trained = matches!(data.tokenizer, Some(TokenizerConfig::Bpe(_)));
    if is_trained && overrides.iter().any(|given| given.key().starts_with("data.")) {
        let file = FileTokenizerConfig::new(checkpoint.path.join("tokenizer.json"));
        data.tokenizer = Some(TokenizerConfig::File(file));
    }
}

/// Ok if an id of `dataset` means to the model what it meant in training.
fn check_same_tokens(checkpoint: &Checkpoint, dataset: &Dataset) -> Result<(), TrainError> {
    if dataset.tokenizer.to_json() == checkpoint.tokenizer.to_json() {
        return Ok(());
    }
    Err(TrainError::OtherTokens { path: checkpoint.path.clone() })
}

fn report(args: &EvalArgs, checkpoint: &Checkpoint, measured: &Measured) -> Result<(), Failure> {
    let Measured { evaluation, dataset, target_bytes, steps } = measured;
    let (nats, step) = (evaluation.cross_entropy_nats, checkpoint.state.step);
    let (name, split) = split_of(args, &dataset.manifest);
    let bits_per_byte = measured.bits_per_byte(split);
    let same_data = dataset.manifest.key == checkpoint.state.data_hash;
    if args.json {
        let mut result = json!({
            "checkpoint": checkpoint.path.to_string_lossy(),
            "step": step,
            "averaged_steps": steps,
            "split": name,
            "cross_entropy_nats": nats,
            "bits_per_byte": bits_per_byte,
            "perplexity": perplexity(nats),
            "num_tokens": evaluation.num_tokens,
            "num_split_targets": split.num_tokens.saturating_sub(1),
            "num_split_documents": split.num_documents,
            "whole_split": evaluation.whole_split,
            "same_data": same_data,
            "data_key": dataset.manifest.key,
            "eval_secs": evaluation.secs,
        });
        if !evaluation.sources.is_empty() {
            result["sources"] = sources_json(args, measured);
        }
        if let Some(stride) = args.stride {
            result["stride"] = stride.into();
            result["num_target_bytes"] = json!(target_bytes);
        }
        return print_json(&result);
    }
    let other = if same_data { "" } else { ", on data that is not the run's" };
    print_text(&format!(
        "{}: {}, cross-entropy {} over {} of the {name} split{other}, in {:.1} s\n",
        checkpoint.path.display(),
        step_words(steps),
        loss_words::loss(nats, bits_per_byte),
        loss_words::extent(evaluation.num_tokens, split),
        evaluation.secs
    ))?;
    for (name, source, found) in of_sources(args, measured) {
        let nats = found.cross_entropy_nats;
        print_text(&format!("  {name}: {}\n", loss_words::loss(nats, source.bits_per_byte(nats))))?;
    }
    Ok(())
}

/// What was found on each of several sources, with its name and its split.
fn of_sources<'a>(
    args: &'a EvalArgs,
    Measured { evaluation, dataset, .. }: &'a Measured,
) -> impl Iterator<Item = (&'a str, &'a SplitManifest, &'a Evaluation)> {
    evaluation.sources.iter().map(|(&index, found)| {
        let source = &dataset.sources[index];
        (source.name.as_str(), split_of(args, &source.manifest).1, found)
    })
}

fn sources_json(args: &EvalArgs, measured: &Measured) -> serde_json::Value {
    let of_source = |(name, split, found): (&str, &SplitManifest, &Evaluation)| {
        let nats = found.cross_entropy_nats;
        let bits = split.bits_per_byte(nats);
        let values =
            json!({ "cross_entropy_nats": nats, "bits_per_byte": bits, "num_tokens": found.num_tokens });
        (name.to_owned(), values)
    };
    of_sources(args, measured).map(of_source).collect::<serde_json::Map<_, _>>().into()
}
