//! The command line, as clap sees it: the program and its commands here, their arguments below, by
//! what they are for.

mod bench;
mod hub;
mod look;
mod run;
mod study;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

pub(crate) use bench::{BenchArgs, BenchCommand, BenchLayerArgs, BenchStepArgs};
pub(crate) use hub::{DtypeArg, ExpertsArg, ExportArgs, ImportArgs, ParityArgs};
pub(crate) use look::{
    AskedDrop, BisectArgs, DiffArgs, InspectArgs, ReplayArgs, RunsArgs, WatchArgs, WhatIfArgs,
};
pub(crate) use run::{
    DataCommand, EvalArgs, GenerateArgs, HeldOutSplit, PlanArgs, RoutingArg, ServeArgs, TrainArgs,
    UpcycleArgs, UpcycleMethodArg,
};
pub(crate) use study::{CompareArgs, FitArgs, ReportArgs, SweepArgs, VerifyArgs};

/// Train sparse mixture-of-experts Transformers from a configuration file, and find out whether
/// they beat dense ones.
#[derive(Debug, Parser)]
#[command(name = "switchyard", version, about, max_term_width = 110, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER_HELP: &str = "\
Start here:
  switchyard train experiments/quickstart.toml
  switchyard compare experiments/quickstart-dense.toml experiments/quickstart.toml

Exit codes: 0 done; 2 a mistake that the user can mend in the arguments, the configuration, the input or a path; 130, 143 \
or 129 stopped by Ctrl-C, SIGTERM or SIGHUP, after what there was to save is saved; 1 anything else. Messages go to standard \
error, results to standard output.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a model from a configuration file
    #[command(after_help = run::TRAIN_HELP)]
    Train(TrainArgs),
    /// Begin a mixture of experts from a trained dense model: a run folder for `train --resume`
    #[command(after_help = run::UPCYCLE_HELP)]
    Upcycle(UpcycleArgs),
    /// Measure the validation loss of a checkpoint, dropless and without noise
    #[command(after_help = run::EVAL_HELP)]
    Eval(EvalArgs),
    /// Continue a text with a trained model
    Generate(GenerateArgs),
    /// Answer completions over HTTP on this machine, as lm-evaluation-harness asks for them
    #[command(after_help = run::SERVE_HELP)]
    Serve(ServeArgs),
    /// Read a published model, such as one of Hugging Face's, and say what it is
    #[command(after_help = hub::IMPORT_HELP)]
    Import(ImportArgs),
    /// Write a checkpoint as other people's tools read models
    #[command(after_help = hub::EXPORT_HELP)]
    Export(ExportArgs),
    /// Hold an imported model to the reference outputs that lie beside it
    #[command(after_help = hub::PARITY_HELP)]
    Parity(ParityArgs),
    /// Show what a configuration would do: parameters, FLOPs, memory, schedule; allocates nothing
    Plan(PlanArgs),
    /// Show what a run folder or a checkpoint holds, and which expert in which layer misbehaves
    /// since which step
    Inspect(InspectArgs),
    /// List the runs below a folder
    #[command(after_help = look::RUNS_HELP)]
    Runs(RunsArgs),
    /// Show what differs between two runs or two configurations
    #[command(after_help = look::DIFF_HELP)]
    Diff(DiffArgs),
    /// Watch a run while it trains: progress, losses, load of each expert, alarms
    #[command(after_help = look::WATCH_HELP)]
    Watch(WatchArgs),
    /// Repeat a step of a run exactly, from the nearest checkpoint before it
    #[command(after_help = look::REPLAY_HELP)]
    Replay(ReplayArgs),
    /// Find the first step, layer and expert at which two runs part
    #[command(after_help = look::BISECT_HELP)]
    Bisect(BisectArgs),
    /// Answer from recorded gate scores what another top_k or capacity would have done to a step
    #[command(name = "whatif", after_help = look::WHATIF_HELP)]
    WhatIf(WhatIfArgs),
    /// Prepare or describe a corpus
    #[command(subcommand)]
    Data(DataCommand),
    /// Compare dense and sparse arms: run a study to its verdict, or put a few runs side by side
    #[command(after_help = study::COMPARE_HELP)]
    Compare(CompareArgs),
    /// Try many values of some keys, stop the hopeless ones early, and name the best
    #[command(after_help = study::SWEEP_HELP)]
    Sweep(SweepArgs),
    /// Fit scaling laws to the finished runs of a study, and say which run to make next
    #[command(after_help = study::FIT_HELP)]
    Fit(FitArgs),
    /// Make the report of a study or of any runs: one page, its figures and its numbers
    Report(ReportArgs),
    /// Prove that a mixture of one expert trains as the dense model does in a recipe, bit for bit; or
    /// check that activations do not drift with the model's size
    Verify(VerifyArgs),
    /// List what there is to compute on, and what is missing for more
    Devices {
        /// Print the list as JSON
        #[arg(long)]
        json: bool,
    },
    /// Time training steps, one feed-forward layer, or messages between ranks
    #[command(subcommand, after_help = bench::BENCH_HELP)]
    Bench(BenchCommand),
    /// Print the JSON schema of the configuration file, for editors
    Schema,
    /// Print a completion script for a shell
    Completions {
        /// Shell to complete for
        shell: Shell,
    },
}

/// A configuration file and changes to it.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// Configuration file (TOML)
    pub(crate) file: PathBuf,
    /// Change a key of the configuration, such as train.num_steps=100; repeatable. An empty value
    /// removes the key
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
