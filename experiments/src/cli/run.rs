//! Arguments of the commands that make and use a model: `train`, `upcycle`, `eval`, `generate`,
//! `plan` and `data`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use switchyard_comm::link::Link;

use super::ConfigArgs;

pub(super) const TRAIN_HELP: &str = "\
Examples:
  switchyard train experiments/quickstart.toml
  switchyard train experiments/quickstart.toml --set train.num_steps=50 --out runs/short
  switchyard train experiments/quickstart.toml --resume

Ctrl-C finishes the step, writes a checkpoint and exits with 130; --resume goes on from there, bit for bit. So do SIGTERM, \
with 143, and a terminal that closes, with 129; a run started by nohup goes on. A second Ctrl-C stops at once. Once a run \
has begun, its own config.toml holds what --set has changed: `--resume` with that file needs no --set. Data that has moved \
is named by --set data.text.path=PATH; its content must be the same.";

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

pub(super) const UPCYCLE_HELP: &str = "\
Example:
  switchyard train dense.toml --out runs/dense
  switchyard upcycle runs/dense moe.toml --out runs/moe
  switchyard train runs/moe/config.toml --out runs/moe --resume

The optimizer, the schedule and the data start anew. With copy and granular_split the first validation loss is the dense \
model's wherever a token's gates add up to one number; the command says when they do not.";

#[derive(Debug, Args)]
pub(crate) struct UpcycleArgs {
    /// Folder of the dense model: of a run, a checkpoint, or a published model
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Run folder to begin [default: runs/NAME-HASH, after the name and a hash of the
    /// configuration]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Delete the run in the run folder first
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// How a dense block becomes experts
    #[arg(long, value_enum, default_value_t = UpcycleMethodArg::Copy)]
    pub(crate) method: UpcycleMethodArg,
    /// Share of each expert's hidden units that `--method drop` draws anew, in 0..=1 [default: 0.5]
    #[arg(long, value_name = "RATIO", allow_negative_numbers = true)]
    pub(crate) drop_ratio: Option<f64>,
    /// Seed of the routers and of what is drawn anew [default: the configuration's]
    #[arg(long, allow_negative_numbers = true)]
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

pub(super) const EVAL_HELP: &str = "\
The data is what the run was trained on, by the hash of its content, wherever it lies now. --other-data allows other data \
and says so in the result; --set then also takes the other keys of [data] but for the tokenizer, which is the model's.

Examples:
  switchyard eval runs/quickstart-1a2b3c4d
  switchyard eval runs/stories --set data.text.path=/mnt/new/stories.txt
  switchyard eval runs/stories --stride 64
  switchyard eval runs/stories --choices questions.jsonl --json
  switchyard eval runs/stories --other-data --set data.text.path=other.txt --set data.split.tail.validation_fraction=0.9

--stride N slides windows over the split, N tokens at a time, so that after the first window each token follows all but N \
of a window's tokens at least; every token but the first counts. --choices FILE answers questions instead, one a line: \
{\"context\": \"...\", \"choices\": [\"...\", \"...\"], \"answer\": 0}. Log-likelihoods, acc and acc_norm are those of \
lm-evaluation-harness.";

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// Run folder or checkpoint folder
    pub(crate) path: PathBuf,
    /// Say where the run's data lies now, such as data.text.path=PATH, or change device or threads;
    /// repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Evaluate on other data than the run's, with the model's tokenizer
    #[arg(long)]
    pub(crate) other_data: bool,
    /// Split to evaluate on
    #[arg(long, value_enum, default_value_t = HeldOutSplit::Validation)]
    pub(crate) split: HeldOutSplit,
    /// Evaluate on about this many tokens from the start of the split, in whole windows
    /// [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), allow_negative_numbers = true)]
    pub(crate) max_tokens: Option<u64>,
    /// Slide windows over the split, N tokens at a time [default: windows one after the other]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) stride: Option<usize>,
    /// Measure the mean of the run's newest N checkpoints
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..), allow_negative_numbers = true)]
    pub(crate) average: Option<u64>,
    /// Answer the multiple-choice questions of a JSON lines file instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["stride", "max_tokens", "split", "other_data"])]
    pub(crate) choices: Option<PathBuf>,
    /// What stands between the context and a choice
    #[arg(long, value_name = "TEXT", default_value = " ", allow_hyphen_values = true, requires = "choices")]
    pub(crate) delimiter: String,
    /// Device [default: the run's]
    #[arg(long)]
    pub(crate) device: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A split that the run did not train on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HeldOutSplit {
    /// What settings are chosen by
    Validation,
    /// What nothing was chosen by, as long as it is not looked at before
    Test,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// Run folder or checkpoint folder
    pub(crate) path: PathBuf,
    /// Change where the model computes: device or threads; repeatable. Paths of data are taken too,
    /// and not read
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Text to continue [default: the tokenizer's mark of a document's beginning, a line break, or
    /// the end-of-document mark of ids]
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) prompt: Option<String>,
    /// Texts to continue, one a line, each a JSON string or {"prompt": "..."}; prints a line of JSON
    /// for each, in their order
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub(crate) prompts: Option<PathBuf>,
    /// Texts of --prompts that are generated together; it changes none of them
    #[arg(
        long,
        value_name = "N",
        default_value_t = 8,
        value_parser = clap::value_parser!(u16).range(1..),
        allow_negative_numbers = true
    )]
    pub(crate) batch_size: u16,
    /// Tokens to generate
    #[arg(long, value_name = "N", default_value_t = 256, allow_negative_numbers = true)]
    pub(crate) num_tokens: usize,
    /// Divides the logits; 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.8, allow_negative_numbers = true)]
    pub(crate) temperature: f64,
    /// Sample among the K likeliest tokens only
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub(crate) top_k: Option<usize>,
    /// Sample among the smallest set of tokens whose probability reaches P
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f64>,
    /// Sample only among tokens at least P times as probable as the likeliest
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) min_p: Option<f64>,
    /// Divide positive logits of tokens that the text has already by F, multiply negative ones
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    pub(crate) repetition_penalty: Option<f64>,
    /// End the text before this string; repeatable
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
    /// Go on behind the mark that ends a document, where a text ends otherwise
    #[arg(long)]
    pub(crate) past_end: bool,
    /// Seed of the choice of tokens
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) seed: u64,
    /// Write the experts and gates of each token in each layer to this file, a line of JSON for a
    /// token
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Go over the whole context for each token: the same text, more slowly
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// How experts that choose their tokens are replaced, since they need the later ones [default:
    /// the run's]
    #[arg(long, value_name = "RULE")]
    pub(crate) routing: Option<RoutingArg>,
    /// Device [default: the run's]
    #[arg(long)]
    pub(crate) device: Option<String>,
}

pub(super) const SERVE_HELP: &str = "\
POST /v1/completions, GET /v1/models and GET /health, for programs on this machine alone. Ctrl-C ends the answers in work \
and the command.

Examples:
  switchyard serve runs/quickstart-1a2b3c4d
  switchyard export runs/stories --to exported
  lm_eval --model local-completions --tasks arc_easy \\
    --model_args base_url=http://127.0.0.1:8321/v1/completions,model=stories,tokenizer=exported,max_length=130";

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Run folder or checkpoint folder
    pub(crate) path: PathBuf,
    /// Change where the model computes: device or threads; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Port of 127.0.0.1; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8321)]
    pub(crate) port: u16,
    /// Requests that may wait; one more is refused
    #[arg(long, value_name = "N", default_value_t = 32, allow_negative_numbers = true)]
    pub(crate) queue: usize,
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
    /// Say also what each of so many ranks would hold and send
    #[arg(long, value_name = "N", value_parser = parse_ranks, allow_hyphen_values = true)]
    pub(crate) ranks: Option<usize>,
    /// Ranks over which the experts of each layer are spread [default: distributed.expert_parallel]
    #[arg(long, value_name = "M", requires = "ranks", value_parser = parse_ranks, allow_hyphen_values = true)]
    pub(crate) expert_parallel: Option<usize>,
    /// Start-up of a message in microseconds and its nanoseconds per byte, as `bench comm` measures
    /// them; without them no time is predicted
    #[arg(long, value_name = "ALPHA,BETA", requires = "ranks", value_parser = parse_link, allow_hyphen_values = true)]
    pub(crate) link: Option<Link>,
    /// Seconds of a step on one rank alone, as `bench step` measures them with the threads of a rank
    #[arg(long, value_name = "SECS", requires = "link", value_parser = parse_secs, allow_hyphen_values = true)]
    pub(crate) step_secs: Option<f64>,
    /// Print the plan as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// The time that a plan takes grows with the square: seconds at this number.
const MAX_RANKS: usize = 1 << 10;

fn parse_ranks(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=MAX_RANKS).contains(number));
    number.ok_or_else(|| format!("use a whole number in 1..={MAX_RANKS}"))
}

fn parse_secs(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| "use a number of seconds, such as 1.25".into())
}

fn parse_link(text: &str) -> Result<Link, String> {
    let number =
        |text: &str| text.trim().parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
    let (alpha_us, beta_ns) = text
        .split_once(',')
        .and_then(|(alpha, beta)| Some((number(alpha)?, number(beta)?)))
        .ok_or("use two numbers, microseconds and nanoseconds per byte, such as 25.0,0.5")?;
    Ok(Link { alpha_secs: alpha_us / 1e6, beta_secs_per_byte: beta_ns / 1e9 })
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
