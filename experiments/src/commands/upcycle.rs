//! `switchyard upcycle`

use std::path::Path;

use switchyard_ground::say;
use switchyard_ground::shell::quoted_path;
use switchyard_trainer::TrainError;
use switchyard_trainer::config_file::LoadedConfig;
use switchyard_trainer::moved_data::with_missing_path;
use switchyard_trainer::run_folder::OpenMode;
use switchyard_trainer::train::{default_run_folder, with_threads};
use switchyard_trainer::upcycle::{
    DenseSource, UpcycleMethod, UpcycleRequest, UpcycleSettings, UpcycleSummary, upcycle,
};

use super::{load_to_run, next_command};
use crate::cli::{UpcycleArgs, UpcycleMethodArg};
use crate::failure::Failure;
use crate::interrupt::Interruption;

const DEFAULT_DROP_RATIO: f64 = 0.5;

pub(super) fn run(args: &UpcycleArgs, interruption: &Interruption) -> Result<(), Failure> {
    let method = method(args)?;
    let (loaded, plan) = load_to_run(&args.config.file, &args.config.overrides)?;
    let dense = DenseSource::read(&args.path, plan.seq_len)?;
    let request = UpcycleRequest {
        out: args.out.clone().unwrap_or_else(|| default_run_folder(Path::new("runs"), &loaded.config)),
        mode: if args.overwrite { OpenMode::Overwrite } else { OpenMode::New },
        settings: UpcycleSettings { method, seed: args.seed.unwrap_or(loaded.config.seed) },
        config: loaded.config.clone(),
        plan,
        show_progress: true,
        stop: interruption.watch("stopping: no run is begun")?,
    };
    let summary = with_threads(request.config.threads, || upcycle(&dense, &request))
        .map_err(|error| located(error, &loaded))?;
    report(&summary, &request);
    Ok(())
}

fn method(args: &UpcycleArgs) -> Result<UpcycleMethod, Failure> {
    match (args.method, args.drop_ratio) {
        (UpcycleMethodArg::Drop, ratio) => {
            Ok(UpcycleMethod::Drop { ratio: ratio.unwrap_or(DEFAULT_DROP_RATIO) })
        }
        (_, Some(ratio)) => Err(Failure::Mistake(format!(
            "--drop-ratio is {ratio}, but this method draws nothing anew: add --method drop, or remove it"
        ))),
        (UpcycleMethodArg::Copy, None) => Ok(UpcycleMethod::Copy),
        (UpcycleMethodArg::GranularSplit, None) => Ok(UpcycleMethod::GranularSplit),
    }
}

/// The error with the place of its key, if it has one.
fn located(error: TrainError, loaded: &LoadedConfig) -> Failure {
    match &error {
        TrainError::Upcycle(mistake) => match mistake.key() {
            Some(key) => Failure::Mistake(format!("{}: {mistake}", loaded.locate(key))),
            None => error.into(),
        },
        _ => with_missing_path(error, &loaded.config.data).into(),
    }
}

fn report(summary: &UpcycleSummary, request: &UpcycleRequest) {
    say!("written: {}", quoted_path(&summary.checkpoint));
    match &summary.deviation {
        None => say!("the mixture starts as the dense model's function"),
        Some(reason) => say!("the mixture does not start as the dense model's function: {reason}"),
    }
    if summary.same_data == Some(false) {
        say!("the data is not what the dense model was trained on");
    }
    say!("next: {}", next_command::resume(&request.out));
}
