//! Arguments of the commands that speak to other people's tools: `import`, `export` and `parity`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

pub(super) const IMPORT_HELP: &str = "\
Example:
  switchyard import models/Mixtral-8x7B

Reads config.json and the tensors beside it (safetensors, one file or shards with an index, or PyTorch's .bin), and says \
what the model is. Every tensor must have its place and every parameter its tensor: what is missing, superfluous, of \
another shape or no finite number is an error, and so is a key that no model here can have.";

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
}

pub(super) const PARITY_HELP: &str = "\
Example:
  switchyard parity models/tiny-mixtral --json

The folder holds io.safetensors with `input_ids` [batch, seq] and what a reference computes of them: `logits`, `hidden.N`, \
`router_logits.N`, `topk_index.N`; and perhaps train.safetensors with its `loss`, gradients `grad.NAME`, and `loss_after` \
one step of AdamW (rate 0.01, decay 0.1). Exit code 2 if a difference is above its limit.";

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
