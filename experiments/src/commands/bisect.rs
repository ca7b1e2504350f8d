//! `switchyard bisect`

use std::path::Path;

use switchyard_flight::RunStep;
use switchyard_flight::divergence::{Divergence, first_divergence};
use switchyard_trainer::metrics::Record;
use switchyard_trainer::run_folder::{RunManifest, RunPaths};

use super::print_text;
use crate::cli::BisectArgs;
use crate::failure::Failure;
use crate::run_series::read_records;

pub(super) fn run(args: &BisectArgs) -> Result<(), Failure> {
    let (a, b) = (steps_of(&args.run_a)?, steps_of(&args.run_b)?);
    let divergence = first_divergence(&a, &b);
    if divergence == Divergence::NothingInCommon {
        let (a, b) = (args.run_a.display(), args.run_b.display());
        return Err(Failure::Mistake(format!(
            "no step is in both `{a}` and `{b}`: name two runs that have been trained"
        )));
    }
    print_text(&format!("A {}\nB {}\n{divergence}\n", args.run_a.display(), args.run_b.display()))
}

fn steps_of(folder: &Path) -> Result<Vec<RunStep>, Failure> {
    let paths = RunPaths::new(folder);
    RunManifest::read(&paths.manifest())?;
    Ok(read_records(&paths)?.iter().filter_map(Record::as_step).map(RunStep::from).collect())
}
