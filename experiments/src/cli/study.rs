//! Arguments of the commands that weigh sparse against dense over many runs: `compare`, `sweep`,
//! `fit` and `report`; and of `verify`, which proves that with one expert the two are the same.

use std::path::PathBuf;

use clap::Args;

use super::ConfigArgs;
use crate::study::Shard;

pub(super) const COMPARE_HELP: &str = "\
A study (a TOML file with [[arms]]) is planned, run as far as it is missing, judged over its seeds, and reported in its \
folder: result.json, report.html, figures as SVG and PNG, numbers as CSV. The same command goes on after an interruption, \
and never uses runs of other code, other data or another configuration.

Configuration files (trained under --out, resumed if interrupted, skipped if finished) and run folders are put side by side \
in a table: steps and seconds are counted until each arm reaches the first one's final loss. One seed decides nothing.

Examples:
  switchyard compare experiments/studies/quick.toml --dry-run
  switchyard compare experiments/studies/quick.toml --out runs/quick
  switchyard compare experiments/quickstart-dense.toml experiments/quickstart.toml";

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// A study, or configuration files and run folders, the baseline first
    #[arg(required = true, num_args = 1.., value_name = "STUDY|CONFIG|RUN")]
    pub(crate) arms: Vec<PathBuf>,
    /// Folder for the runs and the result [default: runs, and runs/NAME for a study]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Change a key in every configuration; repeatable. A study has its own `set`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Do the I-th of N parts of a study's runs, such as 2/8; the others in other processes or on
    /// other machines that share the folder
    #[arg(long, value_name = "I/N", default_value = "1/1")]
    pub(crate) shard: Shard,
    /// Write a study's protocol down before its first run, and run nothing: later changes are
    /// listed beside the result
    #[arg(long, conflicts_with_all = ["dry_run", "json"])]
    pub(crate) register: bool,
    /// Plan a study, time a few steps, and run nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(super) const SWEEP_HELP: &str = "\
A sweep is a TOML file with [grid] (each value with each), [[list]] (written out) or [random] (drawn), or all of them. With \
[halving] all candidates run for a few steps and the better part goes on to longer runs; the result says where and why each \
was stopped. It is in the folder as sweep.json and sweep.csv. The same command goes on after an interruption, and a sweep that \
gets more candidates uses the runs that it has.

Examples:
  switchyard sweep experiments/studies/learning-rate.toml --dry-run
  switchyard sweep experiments/studies/learning-rate.toml --out runs/learning-rate";

#[derive(Debug, Args)]
pub(crate) struct SweepArgs {
    /// Sweep (TOML)
    pub(crate) sweep: PathBuf,
    /// Folder for the runs and the result [default: runs/NAME]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Do the I-th of N parts of each round, such as 2/8; the others in other processes or on other
    /// machines that share the folder. Every part waits for the others after each round, and does
    /// what nobody is doing
    #[arg(long, value_name = "I/N", default_value = "1/1")]
    pub(crate) shard: Shard,
    /// Plan the sweep, time a few steps of the first candidate, and run nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(super) const FIT_HELP: &str = "\
Reads every finished run at and below the folders. Fitted are the forms that the runs allow: dense (arXiv:2203.15556), Clark \
(arXiv:2202.01169), Krajewski (arXiv:2402.07871), joint (arXiv:2502.05172), five-factor (arXiv:2509.23678) and the efficiency \
leverage of mixtures (arXiv:2507.17702); the others say what they lack.

Example:
  switchyard fit runs/experts";

#[derive(Debug, Args)]
pub(crate) struct FitArgs {
    /// Folders of a study, or of runs
    #[arg(required = true, value_name = "DIR")]
    pub(crate) folders: Vec<PathBuf>,
    /// Resamples of the runs for the intervals
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub(crate) bootstrap: usize,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Folder of a study, or run folders and folders that hold them
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
    /// Folder of the report [default: the study's folder; for runs, `report` in the first]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Optimizer steps of the proof [default: 20, with --coordinates 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) steps: Option<u64>,
    /// Check that what the first steps change in the activations does not go with width, depth, experts and granularity
    #[arg(long)]
    pub(crate) coordinates: bool,
}
