//! Arguments of `bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::ConfigArgs;

pub(super) const BENCH_HELP: &str = "\
Examples:
  switchyard bench step experiments/bench/s2-e8k2.toml --json
  switchyard bench step experiments/bench/s2-e8k2.toml --against experiments/bench/s2-dense.toml
  switchyard bench step experiments/bench/s2-e8k2.toml --set train.precision.compute=bf16 \
    --against-set train.precision.compute=f32
  switchyard bench layer experiments/bench/s3-e8.toml
  mpirun -n 4 switchyard bench comm

Times are wall-clock times of the median repetition, beside the machine's own rate of matrix products in the same \
process. On a busy machine compare ratios within one run only.";

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Time training steps (forward, backward, clipping, update) and forward passes of a
    /// configuration
    Step(BenchStepArgs),
    /// Time one feed-forward layer, dense or a mixture, described by a small file of its own; a
    /// mixture takes turns with the dense layer of equal active FLOPs
    Layer(BenchLayerArgs),
    /// Time messages between the processes that an MPI launcher started, for `plan --link`
    Comm {
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct BenchStepArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Another configuration, changed by --set too, whose steps take turns with these: the ratio is
    /// right on a machine that changes its speed
    #[arg(long, value_name = "FILE")]
    pub(crate) against: Option<PathBuf>,
    /// Change a key of the other configuration alone, after --set; repeatable. Without --against the
    /// other configuration is FILE itself
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) against_set: Vec<String>,
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
