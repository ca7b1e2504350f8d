//! `switchyard eval`

use serde_json::json;
use switchyard_datasets::Progress;
use switchyard_trainer::TrainError;
use switchyard_trainer::checkpoint::{Checkpoint, find_checkpoint};
use switchyard_trainer::device;
use switchyard_trainer::evaluate::{Evaluation, EvaluationSettings, evaluate};
use switchyard_trainer::train::with_threads;

use super::{print_json, print_text};
use crate::cli::EvalArgs;
use crate::failure::Failure;

pub(super) fn run(args: &EvalArgs) -> Result<(), Failure> {
    let checkpoint = Checkpoint::read(&find_checkpoint(&args.path)?)?;
    let evaluation = with_threads(checkpoint.config.threads, || measure(args, &checkpoint))?;
    let (nats, step) = (evaluation.cross_entropy_nats, checkpoint.state.step);
    if args.json {
        return print_json(&json!({
            "checkpoint": checkpoint.path,
            "step": step,
            "cross_entropy_nats": nats,
            "perplexity": nats.exp(),
            "num_tokens": evaluation.num_tokens,
            "whole_split": evaluation.whole_split,
            "eval_secs": evaluation.secs,
        }));
    }
    let extent =
        if evaluation.whole_split { "the whole validation split" } else { "part of the validation split" };
    print_text(&format!(
        "{}: step {step}, cross-entropy {nats:.4} nats per token (perplexity {:.2}) over {} tokens, {extent}, in {:.1} s\n",
        checkpoint.path.display(),
        nats.exp(),
        evaluation.num_tokens,
        evaluation.secs
    ))
}

fn measure(args: &EvalArgs, checkpoint: &Checkpoint) -> Result<Evaluation, TrainError> {
    let device = device::select(args.device.as_deref().unwrap_or(&checkpoint.config.device))?;
    let data = &checkpoint.config.data;
    let dataset = switchyard_datasets::prepare(data, &Progress::stderr())?;
    checkpoint.check_data(&dataset)?;
    let settings = EvaluationSettings {
        seq_len: checkpoint.plan.seq_len,
        sequences_per_batch: checkpoint.plan.sequences_per_micro_batch,
        max_tokens: args.max_tokens,
        mask_documents: data.mask_documents,
    };
    evaluate(&checkpoint.model(&device)?, &dataset.validation, &settings, &device)
}
