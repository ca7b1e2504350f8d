//! The command line, as clap sees it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::study::Shard;

/// Train sparse mixture-of-experts Transformers from a configuration file, and find out whether they beat dense ones.
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

Exit codes: 0 done (also after Ctrl-C, which finishes the step and writes a checkpoint), 2 a mistake in the \
arguments, the configuration or the input, 1 anything else. Messages go to standard error, results to standard output.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a model from a configuration file
    #[command(after_help = TRAIN_HELP)]
    Train(TrainArgs),
    /// Begin a mixture of experts from a trained dense model: a run folder for `train --resume`
    #[command(after_help = UPCYCLE_HELP)]
    Upcycle(UpcycleArgs),
    /// Measure the validation loss of a checkpoint, dropless and without noise
    Eval(EvalArgs),
    /// Continue a text with a trained model
    Generate(GenerateArgs),
    /// Show what a configuration would do: parameters, FLOPs, memory, schedule; allocates nothing
    Plan(PlanArgs),
    /// Show what a run folder or a checkpoint holds, and which expert in which layer misbehaves since which step
    Inspect(InspectArgs),
    /// List the runs below a folder
    #[command(after_help = RUNS_HELP)]
    Runs(RunsArgs),
    /// Show what differs between two runs or two configurations
    #[command(after_help = DIFF_HELP)]
    Diff(DiffArgs),
    /// Watch a run while it trains: progress, losses, load of each expert, alarms
    #[command(after_help = WATCH_HELP)]
    Watch(WatchArgs),
    /// Repeat a step of a run exactly, from the nearest checkpoint before it
    #[command(after_help = REPLAY_HELP)]
    Replay(ReplayArgs),
    /// Find the first step, layer and expert at which two runs part
    #[command(after_help = BISECT_HELP)]
    Bisect(BisectArgs),
    /// Answer from recorded gate scores what another top_k or capacity would have done to a step
    #[command(name = "whatif", after_help = WHATIF_HELP)]
    WhatIf(WhatIfArgs),
    /// Prepare or describe a corpus
    #[command(subcommand)]
    Data(DataCommand),
    /// Compare dense and sparse arms: run a study to its verdict, or put a few runs side by side
    #[command(after_help = COMPARE_HELP)]
    Compare(CompareArgs),
    /// Try many values of some keys, stop the hopeless ones early, and name the best
    #[command(after_help = SWEEP_HELP)]
    Sweep(SweepArgs),
    /// Fit scaling laws to the finished runs of a study, and say which run to make next
    #[command(after_help = FIT_HELP)]
    Fit(FitArgs),
    /// Make the report of a study or of any runs: one page, its figures and its numbers
    Report(ReportArgs),
    /// Prove that a mixture of one expert trains as the dense model does in a recipe, bit for bit
    Verify(VerifyArgs),
    /// Time training steps or one feed-forward layer on this machine
    #[command(subcommand, after_help = BENCH_HELP)]
    Bench(BenchCommand),
    /// Print the JSON schema of the configuration file, for editors
    Schema,
    /// Print a completion script for a shell
    Completions {
        /// Shell to complete for
        shell: Shell,
    },
}

const TRAIN_HELP: &str = "\
Examples:
  switchyard train experiments/quickstart.toml
  switchyard train experiments/quickstart.toml --set train.num_steps=50 --out runs/short
  switchyard train experiments/quickstart.toml --resume

Ctrl-C finishes the step, writes a checkpoint and exits with 0; --resume goes on from there, bit for bit. \
A second Ctrl-C stops at once, with exit code 130.";

const UPCYCLE_HELP: &str = "\
Example:
  switchyard train dense.toml --out runs/dense
  switchyard upcycle runs/dense moe.toml --out runs/moe
  switchyard train moe.toml --out runs/moe --resume

The optimizer, the schedule and the data start anew. With copy and granular_split the first validation loss is the dense \
model's wherever a token's gates add up to one number; the command says when they do not.";

const COMPARE_HELP: &str = "\
A study (a TOML file with [[arms]]) is planned, run as far as it is missing, judged over its seeds, and reported in its \
folder: result.json, report.html, figures as SVG and PNG, numbers as CSV. The same command goes on after an interruption, \
and never uses runs of another program, other data or another configuration.

Configuration files (trained under --out, resumed if interrupted, skipped if finished) and run folders are put side by side \
in a table: steps and seconds are counted until each arm reaches the first one's final loss. One seed decides nothing.

Examples:
  switchyard compare experiments/studies/quick.toml --dry-run
  switchyard compare experiments/studies/quick.toml --out runs/quick
  switchyard compare experiments/quickstart-dense.toml experiments/quickstart.toml";

const SWEEP_HELP: &str = "\
A sweep is a TOML file with [grid] (each value with each), [[list]] (written out) or [random] (drawn), or all of them. With \
[halving] all candidates run for a few steps and the better part goes on to longer runs; the result says where and why each \
was stopped. It is in the folder as sweep.json and sweep.csv. The same command goes on after an interruption, and a sweep that \
gets more candidates uses the runs that it has.

Examples:
  switchyard sweep experiments/studies/learning-rate.toml --dry-run
  switchyard sweep experiments/studies/learning-rate.toml --out runs/learning-rate";

const FIT_HELP: &str = "\
Reads every finished run at and below the folders. Fitted are the forms that the runs allow: dense (arXiv:2203.15556), Clark \
(arXiv:2202.01169), Krajewski (arXiv:2402.07871) and joint (arXiv:2502.05172); the others say what they lack.

Example:
  switchyard fit runs/experts";

const RUNS_HELP: &str = "\
Keys are the columns (name, status, steps, tokens, total_params, active_params, final_loss, best_loss, seconds, \
tokens_per_sec, alarms, started_at, path), dotted keys of the configuration and of run.json. Losses are validation losses \
in nats per token; tokens per second are those of the whole run, evaluations included. A run is `killed` if it says \
`running` but no process holds its lock.

Examples:
  switchyard runs
  switchyard runs --filter status=finished --sort final_loss --limit 10
  switchyard runs experiments --filter 'model.ffn.moe.num_experts>8' --filter name~quick --json";

const DIFF_HELP: &str = "\
Configurations are compared key by key with every default filled in, then what they resolve to. Two runs are also compared \
in their results, their alarms by kind, and in what program ran on what machine. Percentages are of A.

Examples:
  switchyard diff runs/monday runs/tuesday
  switchyard diff experiments/quickstart-dense.toml experiments/quickstart.toml --json";

const WATCH_HELP: &str = "\
Reads what the run writes and changes nothing; any number of watchers may look. Ends when the run has ended. Where standard \
output is no terminal, one frame is printed.

Examples:
  switchyard watch runs/quickstart-1a2b3c4d
  switchyard watch runs/quickstart-1a2b3c4d --once
  switchyard watch runs/quickstart-1a2b3c4d --serve 8080";

const REPLAY_HELP: &str = "\
Reads the checkpoint, repeats the steps after it without writing into the run, and compares each with the recorded row \
bit for bit. Exit code 1 if a step came out differently, or the run never recorded it.

Example:
  switchyard replay runs/quickstart-1a2b3c4d --step 120";

const BISECT_HELP: &str = "\
Compares loss, gradient norm and every expert's load by their bits, over the steps that both runs recorded.

Example:
  switchyard bisect runs/monday runs/tuesday";

const WHATIF_HELP: &str = "\
What is not asked about stays as it was in the run. Scores are recorded every train.flight_recorder.scores_every_steps \
steps. Each layer is asked alone, with the scores it had: another setting would have changed the scores of later layers \
too, so a rerun of the step shows the answer of the first mixture exactly and those above it nearly. Training with the \
setting from the start would have led elsewhere.

Examples:
  switchyard whatif runs/quickstart-1a2b3c4d --capacity-factor 1.25
  switchyard whatif runs/quickstart-1a2b3c4d --step 300 --top-k 1 --dropless --json";

const BENCH_HELP: &str = "\
Examples:
  switchyard bench step experiments/bench/s2-e8k2.toml --json
  switchyard bench step experiments/bench/s2-e8k2.toml --against experiments/bench/s2-dense.toml
  switchyard bench layer experiments/bench/s3-e8.toml

Times are wall-clock times of the median repetition, beside the machine's own rate of matrix products in the same \
process. On a busy machine compare ratios within one run only.";

/// A configuration file and changes to it.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// Configuration file (TOML)
    pub(crate) file: PathBuf,
    /// Change a key of the configuration, such as train.num_steps=100; repeatable. An empty value removes the key
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Run folder [default: runs/NAME-HASH, after the name and a hash of the configuration]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Go on from the newest checkpoint of the run folder
    #[arg(long)]
    pub(crate) resume: bool,
    /// Delete the run in the run folder first
    #[arg(long, conflicts_with = "resume")]
    pub(crate) overwrite: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UpcycleArgs {
    /// Run folder or checkpoint folder of the dense model
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Run folder to begin [default: runs/NAME-HASH, after the name and a hash of the configuration]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Delete the run in the run folder first
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// How a dense block becomes experts
    #[arg(long, value_enum, default_value_t = UpcycleMethodArg::Copy)]
    pub(crate) method: UpcycleMethodArg,
    /// Share of each expert's hidden units that `--method drop` draws anew, in 0..=1 [default: 0.5]
    #[arg(long, value_name = "RATIO")]
    pub(crate) drop_ratio: Option<f64>,
    /// Seed of the routers and of what is drawn anew [default: the configuration's]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum UpcycleMethodArg {
    /// Every expert is the dense block (arXiv:2212.05055)
    Copy,
    /// The experts are parts of the dense block (arXiv:2410.07524)
    GranularSplit,
    /// Every expert is the dense block with some hidden units drawn anew (arXiv:2502.19261)
    Drop,
}

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// Run folder or checkpoint folder
    pub(crate) path: PathBuf,
    /// Evaluate on this many tokens from the start of the validation split [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_tokens: Option<u64>,
    /// Device [default: the run's]
    #[arg(long)]
    pub(crate) device: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// Run folder or checkpoint folder
    pub(crate) path: PathBuf,
    /// Text to continue [default: a line break, or the end-of-document mark of ids]
    #[arg(long)]
    pub(crate) prompt: Option<String>,
    /// Tokens to generate
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) num_tokens: usize,
    /// Divides the logits; 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.8)]
    pub(crate) temperature: f64,
    /// Sample among the K likeliest tokens only
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Sample among the smallest set of tokens whose probability reaches P
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f64>,
    /// Seed of the choice of tokens
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// How experts that choose their tokens are replaced, since they need the later ones [default: the run's]
    #[arg(long, value_name = "RULE")]
    pub(crate) routing: Option<RoutingArg>,
    /// Device [default: the run's]
    #[arg(long)]
    pub(crate) device: Option<String>,
}

/// See [`switchyard_trainer::generate::GenerationRule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum RoutingArg {
    /// Each token takes its top_k best experts
    TopK,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Print the plan as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Run folder or checkpoint folder
    pub(crate) path: PathBuf,
    /// Write loss-curve.svg and expert-load.svg of the run into this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) figures: Option<PathBuf>,
    /// Print as JSON
    #[arg(long, conflicts_with = "figures")]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunsArgs {
    /// Folder whose run folders are listed, at any depth
    #[arg(default_value = "runs")]
    pub(crate) folder: PathBuf,
    /// Only runs with KEY=VALUE, KEY<VALUE, KEY>VALUE or, as a part of the text, KEY~TEXT; repeatable
    #[arg(long = "filter", value_name = "CONDITION")]
    pub(crate) filters: Vec<String>,
    /// Sort by this key [default: started_at]
    #[arg(long, value_name = "KEY")]
    pub(crate) sort: Option<String>,
    /// The largest or the newest first
    #[arg(long)]
    pub(crate) reverse: bool,
    /// At most this many runs
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// Run folder or configuration file A
    #[arg(value_name = "RUN|CONFIG")]
    pub(crate) a: PathBuf,
    /// Run folder or configuration file B
    #[arg(value_name = "RUN|CONFIG")]
    pub(crate) b: PathBuf,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Run folder
    pub(crate) run: PathBuf,
    /// Seconds between two looks
    #[arg(long, value_name = "SECS", default_value = "1", value_parser = parse_secs)]
    pub(crate) every: Duration,
    /// Print one frame and end
    #[arg(long)]
    pub(crate) once: bool,
    /// Serve a page for a browser on this machine instead, until Ctrl-C [default port: any free one]
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "0", conflicts_with_all = ["every", "once"])]
    pub(crate) serve: Option<u16>,
}

/// A pause: below a tenth of a second the looking would slow the run down.
fn parse_secs(text: &str) -> Result<Duration, String> {
    let secs = text.parse::<f64>().ok().filter(|secs| (0.1..=86_400.0).contains(secs));
    secs.map(Duration::from_secs_f64)
        .ok_or_else(|| "use a number of seconds between 0.1 and 86400".to_string())
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// Run folder
    pub(crate) run: PathBuf,
    /// Step to repeat, counted from 1
    #[arg(long, value_name = "N")]
    pub(crate) step: u64,
    /// Device [default: the run's]; another one than the run's gives other last bits
    #[arg(long)]
    pub(crate) device: Option<String>,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BisectArgs {
    /// Run folder A
    pub(crate) run_a: PathBuf,
    /// Run folder B
    pub(crate) run_b: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct WhatIfArgs {
    /// Run folder
    pub(crate) run: PathBuf,
    /// Step with recorded scores [default: the last]
    #[arg(long, value_name = "N")]
    pub(crate) step: Option<u64>,
    /// Experts of each token
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Capacity factor of the experts
    #[arg(long, value_name = "F")]
    pub(crate) capacity_factor: Option<f64>,
    /// No capacity
    #[arg(long, conflicts_with = "capacity_factor")]
    pub(crate) dropless: bool,
    /// Which assignments are dropped over capacity
    #[arg(long)]
    pub(crate) drop: Option<AskedDrop>,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Dropping that can be asked about: what random dropping would have kept is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AskedDrop {
    /// The later tokens
    Position,
    /// The smallest gates
    Probability,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Read, tokenize and cache the corpus of a configuration
    Prepare(ConfigArgs),
    /// Describe the corpus of a configuration: documents, tokens, domains, entropy
    Stats {
        #[command(flatten)]
        config: ConfigArgs,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
}

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
    /// Do the I-th of N parts of a study's runs, such as 2/8; the others in other processes or on other machines that share
    /// the folder
    #[arg(long, value_name = "I/N", default_value = "1/1")]
    pub(crate) shard: Shard,
    /// Plan a study, time a few steps, and run nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SweepArgs {
    /// Sweep (TOML)
    pub(crate) sweep: PathBuf,
    /// Folder for the runs and the result [default: runs/NAME]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Do the I-th of N parts of each round, such as 2/8; the others in other processes or on other machines that share the
    /// folder. Every part waits for the others after each round
    #[arg(long, value_name = "I/N", default_value = "1/1")]
    pub(crate) shard: Shard,
    /// Plan the sweep, time a few steps of the first candidate, and run nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

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
    /// Optimizer steps of the proof
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) steps: u64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Time training steps (forward, backward, clipping, AdamW) and forward passes of a configuration
    Step(BenchStepArgs),
    /// Time one feed-forward layer, dense or a mixture, described by a small file of its own; a mixture takes turns with
    /// the dense layer of equal active FLOPs
    Layer(BenchLayerArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BenchStepArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Another configuration, changed by --set too, whose steps take turns with these: the ratio is right on a machine
    /// that changes its speed
    #[arg(long, value_name = "FILE")]
    pub(crate) against: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) bench: BenchArgs,
}

#[derive(Debug, Args)]
pub(crate) struct BenchLayerArgs {
    /// Description of the layer (TOML): num_tokens, d_model, d_ff, activation, num_experts, top_k,
    /// hot_expert_fraction, seed, threads
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) bench: BenchArgs,
}

/// How often, and how it is shown.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Timed repetitions [default: at least 5, and as many as fit into 10 seconds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) steps: Option<u64>,
    /// Repetitions before the timed ones
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) warmup: usize,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_run_is_watched_every_second_and_served_on_a_free_port_unless_told_otherwise() {
        let watch = |arguments: &[&str]| {
            let cli = Cli::try_parse_from([&["switchyard", "watch", "run"][..], arguments].concat());
            cli.map(|cli| match cli.command {
                Command::Watch(args) => (args.every, args.serve),
                other => panic!("{other:?}"),
            })
        };
        let second = Duration::from_secs(1);
        assert_eq!(watch(&[]).unwrap(), (second, None));
        assert_eq!(watch(&["--every", "0.5"]).unwrap(), (Duration::from_millis(500), None));
        assert_eq!(watch(&["--serve"]).unwrap(), (second, Some(0)));
        assert_eq!(watch(&["--serve", "8080"]).unwrap(), (second, Some(8080)));
        for refused in [["--every", "0"], ["--every", "NaN"], ["--every", "inf"], ["--serve", "70000"]] {
            assert!(watch(&refused).is_err(), "{refused:?}");
        }
    }
}
