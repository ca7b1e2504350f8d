//! `switchyard bisect`

use std::path::Path;

use switchyard_flight::RunStep;
use switchyard_flight::divergence::{Divergence, first_divergence};
use switchyard_trainer::metrics::Record;
use switchyard_trainer::products::{Products, bits_differ};
use switchyard_trainer::run_folder::{RunManifest, RunPaths};

use super::print_text;
use crate::cli::BisectArgs;
use crate::failure::Failure;
use crate::run_series::read_records;

pub(super) fn run(args: &BisectArgs) -> Result<(), Failure> {
    let ((a, a_products), (b, b_products)) = (read(&args.run_a)?, read(&args.run_b)?);
    let divergence = first_divergence(&a, &b);
    if divergence == Divergence::NothingInCommon {
        let (a, b) = (args.run_a.display(), args.run_b.display());
        return Err(Failure::Mistake(format!(
            "no step is in both `{a}` and `{b}`: name two runs that have been trained"
        )));
    }
    let products = match bits_differ(a_products, b_products) {
        Some([a, b]) => format!("products by {a} in A and by {b} in B: their bits differ\n"),
        None => String::new(),
    };
    print_text(&format!("A {}\nB {}\n{products}{divergence}\n", args.run_a.display(), args.run_b.display()))
}

/// The steps of a run, and what multiplied in it.
fn read(folder: &Path) -> Result<(Vec<RunStep>, Products), Failure> {
    let paths = RunPaths::new(folder);
    let products = RunManifest::read(&paths.manifest())?.products();
    let steps = read_records(&paths)?.iter().filter_map(Record::as_step).map(RunStep::from).collect();
    Ok((steps, products))
}
