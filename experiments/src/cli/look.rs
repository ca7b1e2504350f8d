//! Arguments of the commands that look at runs: `inspect`, `runs`, `diff`, `watch`, `replay`,
//! `bisect` and `whatif`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

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

pub(super) const RUNS_HELP: &str = "\
Keys are the columns (name, status, steps, tokens, total_params, active_params, final_loss, best_loss, bits_per_byte, seconds, \
tokens_per_sec, alarms, started_at, path), dotted keys of the configuration and of run.json. Losses are validation losses \
in nats per token; tokens per second are those of the whole run, evaluations included. A run is `killed` if it says \
`running` but no process holds its lock.

Examples:
  switchyard runs
  switchyard runs --filter status=finished --sort final_loss --limit 10
  switchyard runs experiments --filter 'model.ffn.moe.num_experts>8' --filter name~quick --json";

#[derive(Debug, Args)]
pub(crate) struct RunsArgs {
    /// Folder whose run folders are listed, at any depth
    #[arg(default_value = "runs")]
    pub(crate) folder: PathBuf,
    /// Only runs with KEY=VALUE, KEY<VALUE, KEY>VALUE or, as a part of the text, KEY~TEXT;
    /// repeatable
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

pub(super) const DIFF_HELP: &str = "\
Configurations are compared key by key with every default filled in, then what they resolve to. Two runs are also compared \
in their results, their alarms by kind, and in what program ran on what machine. Percentages are of A.

Examples:
  switchyard diff runs/monday runs/tuesday
  switchyard diff experiments/quickstart-dense.toml experiments/quickstart.toml --json";

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

pub(super) const WATCH_HELP: &str = "\
Reads what the run writes and changes nothing; any number of watchers may look. Ends when the run has ended. Where standard \
output is no terminal, one frame is printed.

Examples:
  switchyard watch runs/quickstart-1a2b3c4d
  switchyard watch runs/quickstart-1a2b3c4d --once
  switchyard watch runs/quickstart-1a2b3c4d --serve 8080";

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
    /// Serve a page for a browser on this machine instead, until Ctrl-C [default port: any free
    /// one]
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "0", conflicts_with_all = ["every", "once"])]
    pub(crate) serve: Option<u16>,
}

/// A pause: below a tenth of a second the looking would slow the run down.
fn parse_secs(text: &str) -> Result<Duration, String> {
    let secs = text.parse::<f64>().ok().filter(|secs| (0.1..=86_400.0).contains(secs));
    secs.map(Duration::from_secs_f64)
        .ok_or_else(|| "use a number of seconds between 0.1 and 86400".to_string())
}

pub(super) const REPLAY_HELP: &str = "\
Reads the checkpoint, repeats the steps after it without writing into the run, and compares each with the recorded row \
bit for bit. Exit code 1 if a step came out differently, or the run never recorded it. Data that has moved is named by \
--set data.text.path=PATH; its content must be the same.

Example:
  switchyard replay runs/quickstart-1a2b3c4d --step 120";

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// Run folder
    pub(crate) run: PathBuf,
    /// Step to repeat, counted from 1
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) step: u64,
    /// Say where the run's data lies now, such as data.text.path=PATH, or change device or threads;
    /// repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Device [default: the run's]; another one than the run's gives other last bits
    #[arg(long)]
    pub(crate) device: Option<String>,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(super) const BISECT_HELP: &str = "\
Compares loss, gradient norm and every expert's load by their bits, over the steps that both runs recorded.

Example:
  switchyard bisect runs/monday runs/tuesday";

#[derive(Debug, Args)]
pub(crate) struct BisectArgs {
    /// Run folder A
    pub(crate) run_a: PathBuf,
    /// Run folder B
    pub(crate) run_b: PathBuf,
}

pub(super) const WHATIF_HELP: &str = "\
What is not asked about stays as it was in the run. Scores are recorded every train.flight_recorder.scores_every_steps \
steps. Each layer is asked alone, with the scores it had: another setting would have changed the scores of later layers \
too, so a rerun of the step shows the answer of the first mixture exactly and those above it nearly. Training with the \
setting from the start would have led elsewhere.

Examples:
  switchyard whatif runs/quickstart-1a2b3c4d --capacity-factor 1.25
  switchyard whatif runs/quickstart-1a2b3c4d --step 300 --top-k 1 --dropless --json";

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
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

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
