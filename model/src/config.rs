//! What the user writes in `[model]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use switchyard_experts::{Activation, BlockSparseConfig, MoeConfig};
use switchyard_ground::open_choice::OpenChoice;

use crate::{AttentionBias, ParametrisationConfig, QkNorm, RopeScaling};

/// A language model: a decoder-only Transformer, or layers of LSTM. The vocabulary comes from the
/// tokenizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{ "required": ["attention"] }, { "required": ["lstm"] }]))]
pub struct ModelConfig {
    /// Layers: each mixes tokens, then has a feed-forward block.
    pub num_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Attention and its heads; this or `lstm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<AttentionConfig>,
    /// A long short-term memory in place of attention, in every layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lstm: Option<LstmConfig>,
    /// Feed-forward block: dense, or a mixture of experts.
    pub ffn: FfnConfig,
    /// Normalisation before each sub-block and before the head; `rms` if none is given.
    #[serde(default, with = "switchyard_ground::open_choice")]
    #[schemars(with = "OpenChoice<NormConfig>")]
    pub norm: Option<NormConfig>,
    /// How attention knows token order; `rope` if none is given.
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
    /// Rows of the embedding and columns of the head, at least as many as the tokenizer has ids;
    /// absent is as many. Published models often have more, for the sake of round numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<usize>,
    /// Tokens of the longest sequence that the positions allow, at least `train.seq_len`; absent is
    /// `train.seq_len`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_positions: Option<usize>,
    /// Fixed factors inside the network; each is 1 by default.
    #[serde(default, skip_serializing_if = "MultipliersConfig::is_default")]
    pub multipliers: MultipliersConfig,
    /// Transfer the learning rate of a smaller shape to this one; absent trains with the rate as it is
    /// written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parametrisation: Option<ParametrisationConfig>,
    /// Bias on the scores of the head; default false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub head_bias: bool,
    /// Id of the padding token, whose row of the embedding no lookup moves; absent is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub padding_id: Option<usize>,
}

impl ModelConfig {
    /// The attention of a model that is known to have it.
    ///
    /// # Panics
    /// If it has none.
    pub fn attention(&self) -> &AttentionConfig {
        self.attention.as_ref().unwrap_or_else(|| panic!("a model without attention"))
    }

    /// As [`ModelConfig::attention`], to be changed.
    ///
    /// # Panics
    /// If it has none.
    pub fn attention_mut(&mut self) -> &mut AttentionConfig {
        self.attention.as_mut().unwrap_or_else(|| panic!("a model without attention"))
    }
}

/// `[model.multipliers]`: fixed factors (Granite; arXiv:2408.13359, section 3).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MultipliersConfig {
    /// Factor on the embedding of tokens; the 2017 Transformer has the root of `d_model`.
    pub embedding: f64,
    /// Factor on what each half of a block adds to the residual stream.
    pub residual: f64,
    /// Factor on the scores of the head.
    pub logits: f64,
}

impl Default for MultipliersConfig {
    fn default() -> Self {
        Self { embedding: 1.0, residual: 1.0, logits: 1.0 }
    }
}

impl MultipliersConfig {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// How the two halves of a block are joined to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Residual {
    /// Attention, then the feed-forward block on what attention made of the stream, each after a
    /// norm of its own.
    #[default]
    Sequential,
    /// Both on the same normalised stream (Falcon-7B; GPT-J), with one norm.
    Parallel,
    /// Both on the same stream, each after a norm of its own (GPT-NeoX; Falcon-40B).
    ParallelNorms,
    /// One after the other on the stream as it is; what each gives is normalised before it is added
    /// (OLMo 2, arXiv:2501.00656, section 3.2).
    OutputNorm,
    /// One after the other; the stream itself is normalised after each addition (the 2017
    /// Transformer, arXiv:1706.03762, section 3.1). There is no norm before the head.
    PostNorm,
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
    /// Biases on the four projections (GPT-2), or `"qkv"`: on those of queries, keys and values
    /// (Qwen2); default false.
    #[serde(default)]
    pub bias: AttentionBias,
    /// See only the nearest tokens, in all layers or some; absent is all earlier tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowConfig>,
    /// A learned score per head that takes part in the softmax and has no value, so that a head
    /// need not look at anything (gpt-oss; arXiv:2309.17453, section 3.3); default false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub sinks: bool,
    /// Clamp queries, keys and values to this magnitude (OLMoE, `clip_qkv`); absent does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_qkv: Option<f64>,
    /// Factor of the scores; absent is `1 / sqrt(d_head)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// Divide the scores of layer l, counted from 1, by l (GPT-2's
    /// `scale_attn_by_inverse_layer_idx`); default false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub scale_by_layer: bool,
    /// Keys and values made of a narrow latent vector (multi-head latent attention,
    /// arXiv:2405.04434, section 2.1); absent projects them directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latent: Option<LatentConfig>,
}

/// `[model.lstm]`: a long short-term memory (Hochreiter and Schmidhuber, 1997) with the gates of
/// PyTorch's `nn.LSTM` and one bias.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LstmConfig {
    /// Cells of a layer; absent is `d_model`. Any other number is projected to `d_model`, which is
    /// then also what the next step sees (arXiv:1402.1128, section 2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_hidden: Option<usize>,
    /// Initial bias of the forget gate; default 1: cells that begin by remembering let gradients
    /// through (Jozefowicz, Zaremba and Sutskever, 2015).
    #[serde(default = "default_forget_bias")]
    pub forget_bias: f64,
}

/// `[model.attention.window]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WindowConfig {
    /// Tokens that a token sees, itself included.
    pub len: usize,
    /// In these layers, counted from 0; absent is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
}

/// `[model.attention.latent]`. A query head of `d_head` channels ends with `d_rope` of them that
/// are turned by position; all heads share the turned channels of their keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LatentConfig {
    /// Width of the latent vector of queries; absent projects queries directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_query: Option<usize>,
    /// Width of the latent vector of keys and values.
    pub d_key_value: usize,
    /// Channels of a head that are turned by position, an even number.
    pub d_rope: usize,
    /// Width of one head of the values.
    pub d_value: usize,
}

/// Feed-forward blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FfnConfig {
    /// Non-linearity, of the dense block and of each expert.
    pub activation: Activation,
    /// Hidden width of the dense block; needed unless every layer is MoE. Without it, layers of LSTM
    /// that are not MoE have no feed-forward block.
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
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NormConfig {
    /// Root-mean-square norm, no mean, no bias (arXiv:1910.07467).
    Rms(RmsNormConfig),
    /// Layer norm (arXiv:1607.06450).
    Layer(LayerNormConfig),
    /// No norm, neither in the layers nor before the head.
    Off {},
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
    Alibi(AlibiConfig),
}

impl Default for PositionConfig {
    fn default() -> Self {
        Self::Rope(RopeConfig { theta: default_theta(), d_rotary: None, scaling: None })
    }
}

/// `[model.position.alibi]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AlibiConfig {
    /// As Falcon's published code has it: what is added is divided by `sqrt(d_head)` and rounded to
    /// bfloat16; default false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub as_falcon: bool,
}

/// `[model.position.rope]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RopeConfig {
    /// Base of the wavelengths; default 10000.
    #[serde(default = "default_theta")]
    pub theta: f64,
    /// Channels of a head that are turned, an even number, from the first on (GPT-NeoX); absent is
    /// all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_rotary: Option<usize>,
    /// How the angles are changed for sequences longer than those of pre-training; absent leaves
    /// them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<RopeScaling>,
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

fn default_forget_bias() -> f64 {
    1.0
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
