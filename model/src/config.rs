//! What the user writes in `[model]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use switchyard_experts::{Activation, BlockSparseConfig, MoeConfig};
use switchyard_ground::open_choice::OpenChoice;

use crate::QkNorm;

/// A decoder-only Transformer language model. The vocabulary comes from the tokenizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Transformer blocks.
    pub num_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Attention and its heads.
    pub attention: AttentionConfig,
    /// Feed-forward block: dense, or a mixture of experts.
    pub ffn: FfnConfig,
    /// Normalisation before each sub-block and before the head; `rms` if none is given.
    #[serde(default, with = "switchyard_ground::open_choice")]
    #[schemars(with = "OpenChoice<NormConfig>")]
    pub norm: Option<NormConfig>,
    /// How the model knows token order; `rope` if none is given.
    #[serde(default, with = "switchyard_ground::open_choice")]
    #[schemars(with = "OpenChoice<PositionConfig>")]
    pub position: Option<PositionConfig>,
    /// Head shares its matrix with the embedding; default false.
    #[serde(default)]
    pub tie_embeddings: bool,
    /// Probability of zeroing an element of each sub-block's output and of the embedding, while
    /// training; default 0.
    #[serde(default)]
    pub dropout: f64,
    /// Whether attention and the feed-forward block work one after the other or side by side;
    /// default sequential.
    #[serde(default, skip_serializing_if = "Residual::is_sequential")]
    pub residual: Residual,
    /// Initial parameter values.
    #[serde(default)]
    pub init: InitConfig,
}

/// How the two halves of a block are joined to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Residual {
    /// Attention, then the feed-forward block on what attention made of the stream, each after a
    /// norm of its own.
    #[default]
    Sequential,
    /// Both on the same normalised stream (Falcon; GPT-J), with one norm.
    Parallel,
}

impl Residual {
    /// Whether the halves work one after the other.
    pub fn is_sequential(&self) -> bool {
        *self == Self::Sequential
    }
}

/// Causal self-attention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttentionConfig {
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads, a divisor of `num_heads` (grouped-query attention, arXiv:2305.13245);
    /// absent means `num_heads`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_kv_heads: Option<usize>,
    /// Width of one head; absent means `d_model / num_heads`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_head: Option<usize>,
    /// RMS-normalise queries and keys (arXiv:2010.04245): `true` is each head by itself, a table
    /// says more; default false.
    #[serde(default)]
    pub qk_norm: QkNorm,
    /// Biases on the four projections (GPT-2); default false.
    #[serde(default)]
    pub bias: bool,
}

/// Feed-forward blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FfnConfig {
    /// Non-linearity, of the dense block and of each expert.
    pub activation: Activation,
    /// Hidden width of the dense block; needed unless every layer is MoE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_ff: Option<usize>,
    /// Biases on the dense block's projections (GPT-2); default false. Experts have none.
    #[serde(default)]
    pub bias: bool,
    /// A mixture of experts in place of the dense block; absent is a dense model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moe: Option<MoeConfig>,
    /// Block-sparse matrices in place of the dense block's, in every layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_sparse: Option<BlockSparseConfig>,
}

/// Normalisation; `[model.norm]` holds at most one of the tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NormConfig {
    /// Root-mean-square norm, no mean, no bias (arXiv:1910.07467).
    Rms(RmsNormConfig),
    /// Layer norm (arXiv:1607.06450).
    Layer(LayerNormConfig),
}

impl Default for NormConfig {
    fn default() -> Self {
        Self::Rms(RmsNormConfig { epsilon: default_epsilon() })
    }
}

/// `[model.norm.rms]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RmsNormConfig {
    /// Added to the mean square before the root; default 1e-5.
    #[serde(default = "default_epsilon")]
    pub epsilon: f64,
}

/// `[model.norm.layer]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LayerNormConfig {
    /// Added to the variance before the root; default 1e-5.
    #[serde(default = "default_epsilon")]
    pub epsilon: f64,
    /// Learned offset beside the learned scale; default true.
    #[serde(default = "enabled")]
    pub bias: bool,
}

/// Token order; `[model.position]` holds at most one of the tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PositionConfig {
    /// Rotary embedding of queries and keys, rotate-half pairing (arXiv:2104.09864).
    Rope(RopeConfig),
    /// One learned vector per position up to `train.seq_len`, added to the embedding (GPT-2).
    Learned {},
    /// Fixed sines and cosines, added to the embedding (arXiv:1706.03762, section 3.5).
    Sinusoidal {},
    /// Subtract from each attention score the key's distance times the head's slope (ALiBi,
    /// arXiv:2108.12409, section 3): head i of n has the slope `2^(-8 i / n)`, for an n that is no
    /// power of two as in the authors' code.
    Alibi {},
}

impl Default for PositionConfig {
    fn default() -> Self {
        Self::Rope(RopeConfig { theta: default_theta() })
    }
}

/// `[model.position.rope]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RopeConfig {
    /// Base of the wavelengths; default 10000.
    #[serde(default = "default_theta")]
    pub theta: f64,
}

/// Initial parameter values: normal with mean 0; norms start at one and biases at zero.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InitConfig {
    /// Standard deviation; default 0.02.
    #[serde(default = "default_std")]
    pub std: f64,
    /// Divide the deviation of the projections that write to the residual stream by
    /// `sqrt(2 * num_layers)` (GPT-2); default true.
    #[serde(default = "enabled")]
    pub scale_residual: bool,
}

impl Default for InitConfig {
    fn default() -> Self {
        Self { std: default_std(), scale_residual: true }
    }
}

fn default_epsilon() -> f64 {
    1e-5
}

fn default_theta() -> f64 {
    10_000.0
}

fn default_std() -> f64 {
    0.02
}

fn enabled() -> bool {
    true
}
