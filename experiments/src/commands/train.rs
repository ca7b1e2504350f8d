//! `switchyard train`

use std::path::Path;

use switchyard_ground::printable::printable;
use switchyard_ground::say;
use switchyard_ground::shell::quoted_path;
use switchyard_trainer::moved_data::with_missing_path;
use switchyard_trainer::run_folder::{OpenMode, RunPaths, RunStatus};
use switchyard_trainer::train::{RunSummary, TrainRequest, default_run_folder, train};

use super::{load_to_run, loss_words, next_command};
use crate::cli::TrainArgs;
use crate::failure::Failure;
use crate::interrupt::Interruption;
use crate::launch;

pub(super) fn run(args: &TrainArgs, interruption: &Interruption) -> Result<(), Failure> {
    let (loaded, plan) = load_to_run(&args.config.file, &args.config.overrides)?;
    say!("{}", printable(plan.describe().trim_end()));
    let out = args.out.clone().unwrap_or_else(|| default_run_folder(Path::new("runs"), &loaded.config));
    say!("run folder: {}", quoted_path(&out));
    let mode = match (args.resume, args.overwrite) {
        (true, _) => OpenMode::Resume,
        (_, true) => OpenMode::Overwrite,
        _ => OpenMode::New,
    };
    let stop = interruption.watch("stopping after this step, with a checkpoint")?;
    let request = TrainRequest {
        config: loaded.config,
        plan,
        out,
        mode,
        show_progress: true,
        stop,
        comm: launch::comm(),
    };
    let summary = train(&request).map_err(|error| with_missing_path(error, &request.config.data))?;
    report(&summary)
}

/// Say how the run ended; one that an alarm or a signal stopped is no success.
fn report(summary: &RunSummary) -> Result<(), Failure> {
    let RunSummary { out, manifest, validation } = summary;
    let steps = manifest.steps_done;
    match (manifest.status, manifest.final_validation_cross_entropy_nats) {
        (RunStatus::Finished, Some(nats)) => {
            let bits = manifest.final_validation_bits_per_byte;
            let (secs, loss) = (manifest.train_secs, loss_words::loss(nats, bits));
            say!("finished: {steps} steps in {secs:.1} s, validation cross-entropy {loss}");
            if let Some(nats) = manifest.final_test_cross_entropy_nats {
                say!(
                    "test split: cross-entropy {}",
                    loss_words::loss(nats, manifest.final_test_bits_per_byte)
                );
            }
            if let Some(validation) = validation {
                let num_targets = validation.num_tokens.saturating_sub(1);
                say!("validated on {}", loss_words::extent(num_targets, validation));
            }
            // Some routers cannot generate one.
            let sample = if RunPaths::new(out).sample().exists() { "sample.txt, " } else { "" };
            say!("in the run folder: metrics.jsonl, {sample}checkpoints/latest, events for TensorBoard");
            // What has written no sample may be of a router that no text comes from.
            let generate = if sample.is_empty() {
                String::new()
            } else {
                "    ".to_owned() + &next_command::generate(out)
            };
            say!("next: {}{generate}", next_command::inspect(out));
            Ok(())
        }
        (RunStatus::Alarmed, _) => {
            let reason = manifest.error.as_deref().unwrap_or("stopped by an alarm");
            let command = next_command::resume(out);
            Err(Failure::Fault(anyhow::anyhow!(
                "{reason}. The checkpoint of step {steps} is written; go on all the same with: {command}"
            )))
        }
        _ => {
            let command = next_command::resume(out);
            Err(Failure::Interrupted(format!("interrupted after step {steps}; continue with: {command}")))
        }
    }
}
