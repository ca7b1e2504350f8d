//! `switchyard train`

use std::path::Path;
use switchyard_ground::say;

use switchyard_trainer::run_folder::{OpenMode, RunStatus};
use switchyard_trainer::train::{RunSummary, TrainRequest, default_run_folder, train};

use super::load_to_run;
use crate::cli::TrainArgs;
use crate::failure::Failure;
use crate::interrupt;

pub(super) fn run(args: &TrainArgs) -> Result<(), Failure> {
    let (loaded, plan) = load_to_run(&args.config.file, &args.config.overrides)?;
    say!("{}", plan.describe().trim_end());
    let out = args.out.clone().unwrap_or_else(|| default_run_folder(Path::new("runs"), &loaded.config));
    say!("run folder: {}", out.display());
    let mode = match (args.resume, args.overwrite) {
        (true, _) => OpenMode::Resume,
        (_, true) => OpenMode::Overwrite,
        _ => OpenMode::New,
    };
    let stop = interrupt::stop_flag()?;
    let request = TrainRequest { config: loaded.config, plan, out, mode, show_progress: true, stop };
    let summary = train(&request)?;
    report(&summary, &args.config.file)
}

/// Say how the run ended; one that an alarm stopped is no success.
fn report(summary: &RunSummary, file: &Path) -> Result<(), Failure> {
    let RunSummary { out, manifest } = summary;
    // Some routers cannot generate one.
    let sample = if out.join("sample.txt").exists() { "sample.txt, " } else { "" };
    let out = out.display();
    match (manifest.status, manifest.final_validation_cross_entropy_nats) {
        (RunStatus::Finished, Some(nats)) => {
            say!(
                "finished: {} steps in {:.1} s, validation cross-entropy {nats:.4} nats per token (perplexity {:.2})",
                manifest.steps_done,
                manifest.train_secs,
                nats.exp()
            );
            say!("run folder: {out} (metrics.jsonl, {sample}checkpoints/latest, events for TensorBoard)");
            say!("next: switchyard inspect {out}    switchyard generate {out} --prompt TEXT");
        }
        (RunStatus::Alarmed, _) => {
            let reason = manifest.error.as_deref().unwrap_or("stopped by an alarm");
            return Err(Failure::Fault(anyhow::anyhow!(
                "{reason}. The checkpoint of step {} is written; go on all the same with: switchyard train {} --out {out} \
                 --resume",
                manifest.steps_done,
                file.display()
            )));
        }
        _ => say!(
            "interrupted after step {}; continue with: switchyard train {} --out {out} --resume",
            manifest.steps_done,
            file.display()
        ),
    }
    Ok(())
}
