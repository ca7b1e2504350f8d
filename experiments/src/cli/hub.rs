//! Arguments of the commands that speak to other people's tools: `import`, `export` and `parity`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

pub(super) const IMPORT_HELP: &str = "\
Examples:
  switchyard import models/Mixtral-8x7B
  switchyard import models/Llama-2-7b --out runs/llama && switchyard serve runs/llama

Reads config.json and the tensors beside it (safetensors, one file or shards with an index, or PyTorch's .bin), and says \
what the model is. Every tensor must have its place and every parameter its tensor: what is missing, superfluous, of \
another shape or no finite number is an error, and so is a key that no model here can have. With --out the model becomes a run that has done no step, for \
generate, serve, export, and eval --other-data; to train it, [start] in a configuration names the folder itself.";

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Folder of a published model, with config.json
    pub(crate) dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Print the `[model]` that it is, to be changed and trained
    #[arg(long, conflicts_with = "json")]
    pub(crate) toml: bool,
    /// Run folder to write the model to
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Tokens of the longest sequence of that run; default is the model's own positions, up to 2048
    #[arg(long, requires = "out")]
    pub(crate) seq_len: Option<usize>,
    /// Replace the run in --out
    #[arg(long, requires = "out")]
    pub(crate) overwrite: bool,
}

pub(super) const PARITY_HELP: &str = "\
Example:
  switchyard parity models/tiny-mixtral --json

The folder holds io.safetensors with `input_ids` [batch, seq] and what a reference computes of them: `logits`, `hidden.N`, \
`router_logits.N`, `topk_index.N`, `topk_weight.N`; and perhaps train.safetensors with its `loss`, gradients `grad.NAME`, \
and `loss_after` one step of AdamW (rate 0.01, decay 0.1). Exit code 2 if a difference is above its limit.";

#[derive(Debug, Args)]
pub(crate) struct ParityArgs {
    /// Folder of a published model, with config.json and io.safetensors
    pub(crate) dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(super) const EXPORT_HELP: &str = "\
Example:
  switchyard export runs/moe --to models/my-moe --dtype bf16

Writes config.json, generation_config.json, the tensors under the names of the family that computes the same, the \
tokenizer, a model card and parity.json: how far the written model is from the checkpoint.";

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Run folder or checkpoint folder
    pub(crate) path: PathBuf,
    /// Folder to write, new or empty
    #[arg(long, value_name = "DIR")]
    pub(crate) to: PathBuf,
    /// Type of the numbers
    #[arg(long, value_enum, default_value_t = DtypeArg::F32)]
    pub(crate) dtype: DtypeArg,
    /// A tensor for each expert, or one stack of all
    #[arg(long, value_enum, default_value_t = ExpertsArg::PerExpert)]
    pub(crate) experts: ExpertsArg,
    /// Family to write it as, by its `model_type` [default: the first that computes the same]
    #[arg(long, value_name = "NAME")]
    pub(crate) family: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub(crate) enum DtypeArg {
    /// 32 bits
    F32,
    /// 16 bits, 11 of them significant
    F16,
    /// 16 bits, 8 of them significant
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
#[value(rename_all = "kebab-case")]
pub(crate) enum ExpertsArg {
    /// As most families are published
    PerExpert,
    /// Stacked in one tensor, where the family knows that form
    Fused,
}
