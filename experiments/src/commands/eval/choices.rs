//! `switchyard eval --choices`

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde_json::json;
use switchyard_ground::units::grouped;
use switchyard_trainer::TrainError;
use switchyard_trainer::checkpoint::Checkpoint;
use switchyard_trainer::choices::{Accuracy, Answers, answer, read_questions};
use switchyard_trainer::device;
use switchyard_trainer::train::with_threads;

use super::super::{print_json, print_text};
use super::{network, step_words};
use crate::cli::EvalArgs;
use crate::failure::Failure;

/// Answers the questions in `file` and says how many are right.
pub(super) fn run(
    args: &EvalArgs,
    file: &Path,
    checkpoint: &Checkpoint,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let started = Instant::now();
    let (answers, steps) = with_threads(checkpoint.config.threads, || answers(args, file, checkpoint, stop))?;
    let [acc, acc_norm] = [Accuracy::of_likeliest(&answers), Accuracy::of_likeliest_per_character(&answers)];
    let (path, step, secs) =
        (checkpoint.path.display(), checkpoint.state.step, started.elapsed().as_secs_f64());
    if args.json {
        return print_json(&json!({
            "checkpoint": checkpoint.path.to_string_lossy(),
            "step": step,
            "averaged_steps": steps,
            "choices": file.to_string_lossy(),
            "delimiter": args.delimiter,
            "num_questions": answers.len(),
            "acc": acc.value,
            "acc_stderr": acc.standard_error,
            "acc_norm": acc_norm.value,
            "acc_norm_stderr": acc_norm.standard_error,
            "answers": answers,
            "eval_secs": secs,
        }));
    }
    print_text(&format!(
        "{path}: {}, acc {}, acc_norm {} on {} questions of {}, in {secs:.1} s\n",
        step_words(&steps),
        in_words(acc),
        in_words(acc_norm),
        grouped(answers.len() as u64),
        file.display(),
    ))
}

fn answers(
    args: &EvalArgs,
    file: &Path,
    checkpoint: &Checkpoint,
    stop: &AtomicBool,
) -> Result<(Vec<Answers>, Vec<u64>), TrainError> {
    let questions = read_questions(file)?;
    let device = device::select(&checkpoint.config.device)?;
    let (model, steps) = network(args, checkpoint)?;
    let answers = answer(&model, &checkpoint.tokenizer, (&questions, file), &args.delimiter, &device, stop)?;
    Ok((answers, steps))
}

/// `0.4120 ± 0.0155`; without an error where it is not known.
fn in_words(accuracy: Accuracy) -> String {
    let error = accuracy.standard_error.map(|error| format!(" ± {error:.4}")).unwrap_or_default();
    format!("{:.4}{error}", accuracy.value)
}
