//! The network with nothing left open: what [`super::ModelConfig`] means once resolved.

use serde::{Deserialize, Serialize};
use switchyard_experts::{Activation, BlockSparseConfig, MoeConfig};
use switchyard_router::{RouterConfig, Selection};

use super::config::InitConfig;

/// A decoder-only Transformer, every default filled in and every rule checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Rows of the embedding and columns of the head.
    pub vocab_size: usize,
    /// Longest sequence the positions allow.
    pub max_seq_len: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub d_head: usize,
    /// RMS-normalise queries and keys.
    pub qk_norm: bool,
    /// Biases on the attention projections.
    pub attention_bias: bool,
    /// Kind of each layer's feed-forward block, first layer first.
    pub layers: Vec<LayerKind>,
    /// Non-linearity of the feed-forward blocks.
    pub activation: Activation,
    /// Hidden width of the dense feed-forward block; absent without dense layers.
    pub d_ff: Option<usize>,
    /// Biases on the dense feed-forward block.
    pub ffn_bias: bool,
    /// The mixture of the MoE layers, its granularity applied; absent in a dense model.
    pub moe: Option<MoeConfig>,
    /// The matrices of the block-sparse layers; absent in a model without.
    pub block_sparse: Option<BlockSparseConfig>,
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
}

impl ModelSpec {
    /// Number of Transformer blocks.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// How tokens of layer `layer` choose experts; none in a layer without.
    pub fn router_of(&self, layer: usize) -> Option<&RouterConfig> {
        let moe = self.moe.as_ref().filter(|_| self.layers[layer] == LayerKind::Moe)?;
        Some(moe.router_of(layer))
    }

    /// The routers that differ, each with its layers, in the order of their first layers; empty in a model without mixtures.
    /// Where a router is written does not matter: two equal ones are one.
    pub fn router_uses(&self) -> Vec<RouterUse<'_>> {
        let mut uses: Vec<RouterUse<'_>> = Vec::new();
        for layer in 0..self.num_layers() {
            let (Some(moe), Some(router)) = (&self.moe, self.router_of(layer)) else { continue };
            match uses.iter_mut().find(|known| known.router == router) {
                Some(known) => known.layers.push(layer),
                None => {
                    let key = format!("model.ffn.moe.{}", moe.router_key_of(layer));
                    uses.push(RouterUse { key, router, layers: vec![layer] });
                }
            }
        }
        uses
    }

    /// Slots of one expert per sequence under `router`, if it mixes tokens softly; as many as give the work of `top_k`
    /// experts per token unless configured.
    pub fn soft_slots_per_expert(&self, router: &RouterConfig) -> Option<usize> {
        let moe = self.moe.as_ref()?;
        let Selection::Soft(soft) = router.selection() else { return None };
        let equal_work = (router.top_k * self.max_seq_len).div_ceil(moe.num_experts);
        Some(soft.slots_per_expert.unwrap_or(equal_work))
    }

    /// Standard deviation of the projections that write to the residual stream.
    pub fn residual_std(&self) -> f64 {
        if self.init.scale_residual {
            self.init.std / (2.0 * self.num_layers() as f64).sqrt()
        } else {
            self.init.std
        }
    }
}

/// A router and the mixtures that it routes.
#[derive(Debug, Clone, PartialEq)]
pub struct RouterUse<'a> {
    /// The key that it is written under, such as `model.ffn.moe.router`.
    pub key: String,
    /// How tokens choose experts.
    pub router: &'a RouterConfig,
    /// These layers, counted from 0, ascending.
    pub layers: Vec<usize>,
}

impl RouterUse<'_> {
    /// `layer 1`, or `layers 0, 2, 3`.
    pub fn layers_in_words(&self) -> String {
        layers_in_words(&self.layers)
    }
}

/// `layer 1`, or `layers 0, 2, 3`.
pub(crate) fn layers_in_words(layers: &[usize]) -> String {
    let numbers: Vec<String> = layers.iter().map(usize::to_string).collect();
    format!("{} {}", if layers.len() == 1 { "layer" } else { "layers" }, numbers.join(", "))
}

/// Feed-forward block of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    /// One block for every token.
    Dense,
    /// A mixture of experts.
    Moe,
    /// One block for every token, with block-sparse matrices.
    BlockSparse,
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
}

/// Token order with its constants.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionKind {
    /// Rotary embedding.
    Rope {
        /// Base of the wavelengths.
        theta: f64,
    },
    /// One learned vector per position.
    Learned,
    /// Fixed sines and cosines.
    Sinusoidal,
    /// Scores that fall with the distance.
    Alibi,
}
