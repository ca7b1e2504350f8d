//! The network with nothing left open: what [`crate::ModelConfig`] means once resolved.

use serde::{Deserialize, Serialize};
use switchyard_experts::{ExpertsSpec, FfnSpec, RouterSpec};

use crate::{
    AttentionBias, AttentionPart, InitConfig, LatentConfig, MultipliersConfig, Parametrisation, QkNorm,
    Residual, Role, RoleFactors, RopeScaling,
};

/// A language model that reads from left to right, every default filled in and every rule checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Rows of the embedding and columns of the head.
    pub vocab_size: usize,
    /// Tokens of the longest training sequence, and the positions unless there are more.
    pub max_seq_len: usize,
    /// Tokens of the longest sequence that the positions allow, where they are more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_positions: Option<usize>,
    /// Width of the residual stream.
    pub d_model: usize,
    /// The blocks, first layer first.
    pub layers: Vec<LayerSpec>,
    /// Normalisation.
    pub norm: NormKind,
    /// Token order.
    pub position: PositionKind,
    /// Head shares its matrix with the embedding.
    pub tie_embeddings: bool,
    /// Probability of zeroing an element while training.
    pub dropout: f64,
    /// Initial parameter values.
    pub init: InitConfig,
    /// Fixed factors, those of the parametrisation included.
    #[serde(default)]
    pub multipliers: MultipliersConfig,
    /// Sizes over those of the shape that the learning rate is transferred from; `None` takes the rate
    /// as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parametrisation: Option<Parametrisation>,
    /// Bias on the head's scores.
    #[serde(default)]
    pub head_bias: bool,
    /// Row of the embedding that lookups do not move.
    #[serde(default)]
    pub padding_id: Option<usize>,
}

/// One Transformer block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerSpec {
    /// What carries information between tokens.
    pub mixer: MixerSpec,
    /// What works on each token.
    pub ffn: FfnSpec,
    /// How both are joined to the residual stream.
    #[serde(default)]
    pub residual: Residual,
}

/// The half of a block that carries information between tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MixerSpec {
    /// Causal self-attention.
    Attention(AttentionSpec),
    /// A long short-term memory.
    Lstm(LstmSpec),
}

/// A long short-term memory: cells that are read and written by gates, step by step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LstmSpec {
    /// Cells. If they are as many as the model is wide, what they give is the layer's output;
    /// otherwise it is projected to the model's width (arXiv:1402.1128, section 2).
    pub d_hidden: usize,
    /// Initial bias of the forget gate.
    pub forget_bias: f64,
}

impl LstmSpec {
    /// Whether what the cells give is projected to the model's width.
    pub fn has_projection(&self, d_model: usize) -> bool {
        self.d_hidden != d_model
    }
}

/// Causal self-attention with grouped key/value heads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttentionSpec {
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub d_head: usize,
    /// Normalisation of queries and keys.
    pub qk_norm: QkNorm,
    /// Biases on the projections.
    pub bias: AttentionBias,
    /// Tokens that a token sees, itself included; `None` sees all earlier ones.
    #[serde(default)]
    pub window: Option<usize>,
    /// A learned score of each head that has no value.
    #[serde(default)]
    pub sinks: bool,
    /// Largest magnitude of queries, keys and values.
    #[serde(default)]
    pub clip_qkv: Option<f64>,
    /// Factor of the scores; `None` is `1 / sqrt(d_head)`.
    #[serde(default)]
    pub scale: Option<f64>,
    /// Keys and values made of a latent vector; `None` projects them directly.
    #[serde(default)]
    pub latent: Option<LatentConfig>,
}

impl LayerSpec {
    /// Norms of the block's width, in a model that has norms.
    pub fn num_norms(&self) -> u64 {
        if self.has_ffn_norm() { 2 } else { 1 }
    }

    /// Whether the feed-forward block has a norm of its own, in a model that has norms.
    pub fn has_ffn_norm(&self) -> bool {
        self.ffn != FfnSpec::Absent && self.residual != Residual::Parallel
    }
}

impl AttentionSpec {
    /// Heads that see all earlier tokens, and nothing else.
    pub fn new(num_heads: usize, num_kv_heads: usize, d_head: usize) -> Self {
        Self {
            num_heads,
            num_kv_heads,
            d_head,
            qk_norm: QkNorm::Off,
            bias: AttentionBias::Off,
            window: None,
            sinks: false,
            clip_qkv: None,
            scale: None,
            latent: None,
        }
    }

    /// Whether this projection has a bias. Of latent attention, those from and to the model have.
    pub fn has_bias(&self, part: AttentionPart) -> bool {
        let is_inside = matches!(part, AttentionPart::Query | AttentionPart::KeyValue);
        self.bias.is_on(part) && !(self.latent.is_some() && is_inside)
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.num_heads * self.d_head
    }

    /// Width of all key heads together.
    pub fn key_width(&self) -> usize {
        self.num_kv_heads * self.d_head
    }

    /// Width of one head of the values.
    pub fn d_value(&self) -> usize {
        self.latent.as_ref().map_or(self.d_head, |latent| latent.d_value)
    }

    /// Width of all value heads together.
    pub fn value_width(&self) -> usize {
        self.num_kv_heads * self.d_value()
    }

    /// Width of what the output projection reads.
    pub fn mixed_width(&self) -> usize {
        self.num_heads * self.d_value()
    }

    /// Channels of a head that can be turned by position.
    pub fn d_rotary(&self) -> usize {
        self.latent.as_ref().map_or(self.d_head, |latent| latent.d_rope)
    }
}

impl ModelSpec {
    /// Tokens of the longest sequence that the positions allow; without positions any length.
    pub fn num_positions(&self) -> usize {
        match self.position {
            PositionKind::Absent => usize::MAX,
            _ => self.num_positions.unwrap_or(self.max_seq_len),
        }
    }

    /// Whether the layers hand a state from token to token, and from one window to the next.
    pub fn is_recurrent(&self) -> bool {
        self.layers.iter().any(|layer| matches!(layer.mixer, MixerSpec::Lstm(_)))
    }

    /// Latest tokens of a text that generation looks at: all of them where a state holds them.
    pub fn max_context_len(&self) -> usize {
        if self.is_recurrent() { usize::MAX } else { self.max_seq_len }
    }

    /// Whether a norm stands before the head.
    pub fn has_final_norm(&self) -> bool {
        self.norm != NormKind::Off
            && self.layers.last().is_none_or(|layer| layer.residual != Residual::PostNorm)
    }

    /// Number of Transformer blocks.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// The feed-forward blocks that differ, each with its layers, in the order of their first
    /// layers. Where a router is written does not matter: two equal ones are one.
    pub fn ffn_uses(&self) -> Vec<FfnUse<'_>> {
        let mut uses: Vec<FfnUse<'_>> = Vec::new();
        for (layer, LayerSpec { ffn, .. }) in self.layers.iter().enumerate() {
            match uses.iter_mut().find(|known| known.ffn == ffn) {
                Some(known) => known.layers.push(layer),
                None => uses.push(FfnUse { ffn, layers: vec![layer] }),
            }
        }
        uses
    }

    /// The mixtures among [`ModelSpec::ffn_uses`].
    pub fn mixture_uses(&self) -> Vec<FfnUse<'_>> {
        self.ffn_uses().into_iter().filter(|used| used.ffn.router().is_some()).collect()
    }

    /// The router of each mixture, with its layer.
    pub fn routers(&self) -> impl Iterator<Item = (usize, &RouterSpec)> {
        self.layers.iter().enumerate().filter_map(|(layer, spec)| Some((layer, spec.ffn.router()?)))
    }

    /// The experts of the layer; `None` unless it is a mixture.
    pub fn experts_of(&self, layer: usize) -> Option<&ExpertsSpec> {
        self.layers.get(layer)?.ffn.routed().map(|(experts, _)| experts)
    }

    /// What holds for the parameters of `role`, over what holds without a parametrisation.
    pub fn factors(&self, role: Role) -> RoleFactors {
        self.parametrisation.map_or(RoleFactors::NONE, |parametrisation| parametrisation.factors(role))
    }

    /// Standard deviation of the initial values of a matrix of `role`.
    pub fn initial_std(&self, role: Role) -> f64 {
        let std = if role.writes_to_residual() { self.residual_std() } else { self.init.std };
        std * self.factors(role).std
    }

    /// Standard deviation of the projections that write to the residual stream. With a
    /// parametrisation the multiplier heeds the depth, and this only that of the base shape.
    pub fn residual_std(&self) -> f64 {
        let base = self.parametrisation.map(|parametrisation| parametrisation.base_num_layers);
        if self.init.scale_residual {
            self.init.std / (2.0 * base.unwrap_or(self.num_layers()) as f64).sqrt()
        } else {
            self.init.std
        }
    }
}

/// A feed-forward block and the layers that have it.
#[derive(Debug, Clone, PartialEq)]
pub struct FfnUse<'a> {
    /// The block.
    pub ffn: &'a FfnSpec,
    /// These layers, counted from 0, ascending.
    pub layers: Vec<usize>,
}

impl FfnUse<'_> {
    /// `layer 1`, or `layers 0, 2, 3`.
    pub fn layers_in_words(&self) -> String {
        layers_in_words(&self.layers)
    }
}

/// `layer 1`, or `layers 0, 2, 3`.
pub fn layers_in_words(layers: &[usize]) -> String {
    let numbers: Vec<String> = layers.iter().map(usize::to_string).collect();
    format!("{} {}", if layers.len() == 1 { "layer" } else { "layers" }, numbers.join(", "))
}

/// Normalisation with its constants.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Root-mean-square norm.
    Rms {
        /// Added to the mean square.
        epsilon: f64,
    },
    /// Layer norm.
    Layer {
        /// Added to the variance.
        epsilon: f64,
        /// Learned offset.
        bias: bool,
    },
    /// None.
    Off,
}

/// Token order with its constants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionKind {
    /// Rotary embedding.
    Rope {
        /// Base of the wavelengths.
        theta: f64,
        /// Channels of a head that are turned; `None` is all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        d_rotary: Option<usize>,
        /// How the angles are stretched.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scaling: Option<RopeScaling>,
    },
    /// One learned vector per position.
    Learned,
    /// Fixed sines and cosines.
    Sinusoidal,
    /// Scores that fall with the distance.
    Alibi,
    /// The same as Falcon's published code has it.
    FalconAlibi,
    /// None: the layers know it by going from token to token.
    Absent,
}

impl PositionKind {
    /// A rotary embedding of all channels.
    pub fn rope(theta: f64) -> Self {
        Self::Rope { theta, d_rotary: None, scaling: None }
    }
}
