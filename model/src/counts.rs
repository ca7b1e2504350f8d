//! Parameters and FLOPs of a model, by arithmetic alone: nothing is allocated.
//!
//! Sums over what the blocks of the layers count for themselves.
//!
//! Letters in formulas: d model width, q = query heads * head width, g = key/value heads * head
//! width, h cells of an LSTM, s sequence length, v vocabulary.

use serde::{Deserialize, Serialize};
use switchyard_experts::{FfnParams, PassSize};

use crate::{
    AttentionPart, AttentionSpec, LatentConfig, LayerSpec, LstmSpec, MixerSpec, ModelSpec, NormKind,
    PositionKind,
};

/// Size and cost of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCounts {
    /// All parameters.
    pub total_params: u64,
    /// Parameters that take part in one token's forward pass: all but the routed experts that the
    /// token is not sent to. Where experts choose tokens, the mean over the tokens of a
    /// micro-batch; where tokens are mixed softly, all, since every expert's output enters every
    /// token. The embedding counts in full, as in the published figures of Mixtral, OLMoE and
    /// Qwen3.
    pub active_params: u64,
    /// All parameters, by component.
    pub params: ParameterBreakdown,
    /// Floating-point operations of one token's forward pass; see [`ForwardFlops`].
    pub forward_flops_per_token: u64,
    /// Forward and backward: three times the forward pass, as the backward pass multiplies each
    /// matrix product's operands twice (arXiv:2001.08361, section 2.1).
    pub training_flops_per_token: u64,
    /// The forward pass, by component.
    pub forward_flops: ForwardFlops,
}

/// Parameters by component, over all layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterBreakdown {
    /// Token embedding: v d.
    pub embedding: u64,
    /// Learned positions: s d.
    pub position: u64,
    /// Projections, their biases and QK-norms: per layer 2 d q + 2 d g, with biases q + 2 g + d
    /// more, with QK-norm of each head two head widths, of whole projections q + g more.
    pub attention: u64,
    /// LSTMs: per layer 8 d h of the gates' matrices and 4 h of their biases, and d h of a
    /// projection.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lstm: u64,
    /// One or two norms per layer and the one before the head.
    pub norm: u64,
    /// Dense feed-forward blocks; this and the next four as in [`FfnParams`].
    pub dense_ffn: u64,
    /// Block-sparse feed-forward blocks.
    #[serde(default)]
    pub block_sparse_ffn: u64,
    /// Routers and their shared experts' gates.
    pub router: u64,
    /// Routed experts.
    pub routed_experts: u64,
    /// Shared experts.
    pub shared_experts: u64,
    /// Untied head: d v; 0 if tied.
    pub head: u64,
}

/// Floating-point operations of one token's forward pass, a multiply and an add counted as two.
///
/// Counted: matrix products of a training pass over one micro-batch of whole sequences. Not
/// counted: element-wise work (norms, softmax, activations, residuals, the gates' weighted sum of
/// experts) and the embedding, which is a look-up. Attention is counted as causal: a position sees
/// (s + 1) / 2 positions on average, so its scores and their weighted sum cost 2 q (s + 1) per
/// layer: the convention of arXiv:2001.08361, table 1, and about half of PaLM's (arXiv:2204.02311,
/// appendix B), which counts the masked half too.
///
/// An expert counts as often as a token, or a slot of mixed tokens, is given to it. Assignments
/// that are dropped over a capacity, or because a random second expert is not kept, are counted as
/// if they stayed, and a document mask saves nothing: both depend on the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardFlops {
    /// Query, key, value and output projections.
    pub attention_projections: u64,
    /// Scores and weighted sum.
    pub attention_mixing: u64,
    /// Gates and projections of LSTMs.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lstm: u64,
    /// Dense feed-forward blocks.
    pub dense_ffn: u64,
    /// Block-sparse feed-forward blocks.
    #[serde(default)]
    pub block_sparse_ffn: u64,
    /// Routers.
    pub router: u64,
    /// Routed experts: 2 m d f for each of the experts that compute for the token.
    pub routed_experts: u64,
    /// The two products of soft mixing, tokens to slots and slots back to tokens: 4 d per slot of
    /// the token's sequence.
    #[serde(default)]
    pub soft_mixing: u64,
    /// Shared experts.
    pub shared_experts: u64,
    /// Logits over the vocabulary.
    pub head: u64,
}

impl ModelCounts {
    /// Size and cost of the model described by `spec`, at its full sequence length, in passes over
    /// `micro_batch_tokens` tokens, which experts that choose their tokens share.
    pub fn of(spec: &ModelSpec, micro_batch_tokens: usize) -> Self {
        let pass = PassSize { micro_batch_tokens, seq_len: spec.max_seq_len };
        let of_blocks = ffn_params(spec, pass);
        let params = ParameterBreakdown::of(spec, &of_blocks);
        let total_params = params.total();
        let forward_flops = ForwardFlops::of(spec, pass);
        let forward_flops_per_token = forward_flops.total();
        let idle_params = of_blocks.routed_experts - of_blocks.active_experts;
        Self {
            total_params,
            active_params: total_params - idle_params,
            params,
            forward_flops_per_token,
            training_flops_per_token: forward_flops_per_token.saturating_mul(3),
            forward_flops,
        }
    }

    /// Active parameters as a share of all, in `0..=1`; 1 for a dense model.
    pub fn active_fraction(&self) -> f64 {
        self.active_params as f64 / self.total_params as f64
    }
}

impl ParameterBreakdown {
    fn of(spec: &ModelSpec, of_blocks: &FfnParams) -> Self {
        let (d, v) = (spec.d_model as u64, spec.vocab_size as u64);
        let norm_params = match spec.norm {
            NormKind::Rms { .. } | NormKind::Layer { bias: false, .. } => d,
            NormKind::Layer { bias: true, .. } => 2 * d,
            NormKind::Off => 0,
        };
        let num_norms =
            spec.layers.iter().map(LayerSpec::num_norms).sum::<u64>() + u64::from(spec.has_final_norm());
        let head_bias = if spec.head_bias { v } else { 0 };
        Self {
            embedding: v * d,
            position: if matches!(spec.position, PositionKind::Learned) {
                spec.num_positions() as u64 * d
            } else {
                0
            },
            attention: attentions(spec).map(|attention| attention_params(attention, d)).sum(),
            lstm: lstms(spec).map(|lstm| lstm_params(lstm, d)).sum(),
            norm: num_norms * norm_params,
            dense_ffn: of_blocks.dense,
            block_sparse_ffn: of_blocks.block_sparse,
            router: of_blocks.router,
            routed_experts: of_blocks.routed_experts,
            shared_experts: of_blocks.shared_experts,
            head: if spec.tie_embeddings { head_bias } else { d * v + head_bias },
        }
    }

    fn total(&self) -> u64 {
        self.embedding
            + self.position
            + self.attention
            + self.lstm
            + self.norm
            + self.dense_ffn
            + self.block_sparse_ffn
            + self.router
            + self.routed_experts
            + self.shared_experts
            + self.head
    }
}

impl ForwardFlops {
    fn of(spec: &ModelSpec, pass: PassSize) -> Self {
        let (d, v, s) = (spec.d_model as u64, spec.vocab_size as u64, spec.max_seq_len as u64);
        let mut flops = Self {
            attention_projections: attentions(spec).map(|it| 2 * projection_params(it, d)).sum(),
            attention_mixing: attentions(spec).map(|it| mixing_flops(it, s)).sum(),
            lstm: lstms(spec).map(|it| 2 * lstm_matrix_params(it, d)).sum(),
            dense_ffn: 0,
            block_sparse_ffn: 0,
            router: 0,
            routed_experts: 0,
            soft_mixing: 0,
            shared_experts: 0,
            head: 2 * d * v,
        };
        for layer in &spec.layers {
            let of_block = layer.ffn.forward_flops(spec.d_model, pass);
            flops.dense_ffn += of_block.dense;
            flops.block_sparse_ffn += of_block.block_sparse;
            flops.router += of_block.router;
            flops.routed_experts = flops.routed_experts.saturating_add(of_block.routed_experts);
            flops.soft_mixing += of_block.soft_mixing;
            flops.shared_experts += of_block.shared_experts;
        }
        flops
    }

    fn total(&self) -> u64 {
        let parts = [
            self.attention_projections,
            self.attention_mixing,
            self.lstm,
            self.dense_ffn,
            self.block_sparse_ffn,
            self.router,
            self.routed_experts,
            self.soft_mixing,
            self.shared_experts,
            self.head,
        ];
        parts.into_iter().fold(0, u64::saturating_add)
    }
}

/// The attention of each layer.
fn attentions(spec: &ModelSpec) -> impl Iterator<Item = &AttentionSpec> {
    spec.layers.iter().filter_map(|layer| match &layer.mixer {
        MixerSpec::Attention(attention) => Some(attention),
        MixerSpec::Lstm(_) => None,
    })
}

/// The LSTM of each layer.
fn lstms(spec: &ModelSpec) -> impl Iterator<Item = &LstmSpec> {
    spec.layers.iter().filter_map(|layer| match &layer.mixer {
        MixerSpec::Attention(_) => None,
        MixerSpec::Lstm(lstm) => Some(lstm),
    })
}

/// Parameters of what mixes tokens in a layer.
pub(crate) fn mixer_params(mixer: &MixerSpec, d: u64) -> u64 {
    match mixer {
        MixerSpec::Attention(attention) => attention_params(attention, d),
        MixerSpec::Lstm(lstm) => lstm_params(lstm, d),
    }
}

fn lstm_params(lstm: &LstmSpec, d: u64) -> u64 {
    lstm_matrix_params(lstm, d) + 4 * lstm.d_hidden as u64
}

/// Parameters of the matrices.
fn lstm_matrix_params(lstm: &LstmSpec, d: u64) -> u64 {
    let h = lstm.d_hidden as u64;
    let projection = if lstm.has_projection(d as usize) { h * d } else { 0 };
    2 * d * 4 * h + projection
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn attention_params(attention: &AttentionSpec, d: u64) -> u64 {
    let projections = projections(attention, d);
    let biases = projections.iter().filter(|(part, _)| attention.has_bias(*part));
    let biases: u64 = biases.map(|(_, [_, output])| output).sum();
    let scale_width = |width: usize| attention.qk_norm.scale_width(width, attention.d_head) as u64;
    let scales = match &attention.latent {
        Some(latent) => (latent.d_query.unwrap_or(0) + latent.d_key_value) as u64,
        None => scale_width(attention.query_width()) + scale_width(attention.key_width()),
    };
    let sinks = if attention.sinks { attention.num_heads as u64 } else { 0 };
    projection_params(attention, d) + biases + scales + sinks
}

/// Parameters of the matrices.
fn projection_params(attention: &AttentionSpec, d: u64) -> u64 {
    projections(attention, d).iter().map(|(_, [input, output])| input * output).sum()
}

/// Input and output width of each projection.
pub(crate) fn projections(attention: &AttentionSpec, d: u64) -> Vec<(AttentionPart, [u64; 2])> {
    let (q, g) = (attention.query_width() as u64, attention.key_width() as u64);
    let output = (AttentionPart::Output, [attention.mixed_width() as u64, d]);
    let Some(latent) = &attention.latent else {
        let direct = [AttentionPart::Query, AttentionPart::Key, AttentionPart::Value];
        let direct = direct.into_iter().zip([q, g, g]).map(|(part, width)| (part, [d, width]));
        return direct.chain([output]).collect();
    };
    let LatentConfig { d_query, d_key_value: l, d_rope: r, .. } = *latent;
    let (l, r) = (l as u64, r as u64);
    let heads = g - attention.num_kv_heads as u64 * r + attention.value_width() as u64;
    let query_latent = d_query.map(|width| (AttentionPart::QueryLatent, [d, width as u64]));
    let others = [
        (AttentionPart::Query, [d_query.map_or(d, |width| width as u64), q]),
        (AttentionPart::KeyValueLatent, [d, l + r]),
        (AttentionPart::KeyValue, [l, heads]),
        output,
    ];
    query_latent.into_iter().chain(others).collect()
}

/// Scores and mixture of a token, the mean over a sequence of s: each sees itself and those before
/// it, or those in its window.
fn mixing_flops(attention: &AttentionSpec, s: u64) -> u64 {
    let window = attention.window.map_or(s, |window| s.min(window as u64));
    // The first `window` tokens see 1, 2, ... of them, the others `window`; twice the mean, so that
    // it is whole without a window.
    let twice_seen = window * (window + 1) + 2 * (s - window) * window;
    let widths = (attention.query_width() + attention.mixed_width()) as u64;
    (u128::from(twice_seen) * u128::from(widths) / u128::from(s)) as u64
}

/// Parameters of all feed-forward blocks.
fn ffn_params(spec: &ModelSpec, pass: PassSize) -> FfnParams {
    let of_blocks = spec.layers.iter().map(|layer| layer.ffn.params(spec.d_model, pass));
    of_blocks.fold(FfnParams::default(), |sum, block| FfnParams {
        dense: sum.dense + block.dense,
        block_sparse: sum.block_sparse + block.block_sparse,
        router: sum.router + block.router,
        routed_experts: sum.routed_experts + block.routed_experts,
        active_experts: sum.active_experts + block.active_experts,
        shared_experts: sum.shared_experts + block.shared_experts,
    })
}

#[cfg(test)]
mod tests {
    use switchyard_experts::{
        Activation, BlockSparseConfig, BlockSparseSpec, DenseSpec, ExpertsSpec, FfnSpec, MoeSpec, RouterSpec,
        SharedExpertSpec,
    };
    use switchyard_router::RouterConfig;

    use super::*;
    use crate::{AttentionBias, InitConfig, MultipliersConfig, QkNorm, QkNormConfig, Residual};

    fn with_layers(layers: impl IntoIterator<Item = FfnSpec>) -> ModelSpec {
        let attention = AttentionSpec::new(1, 1, 2);
        let mixer = MixerSpec::Attention(attention);
        let layers = layers
            .into_iter()
            .map(|ffn| LayerSpec { mixer: mixer.clone(), ffn, residual: Residual::Sequential })
            .collect();
        ModelSpec {
            vocab_size: 5,
            max_seq_len: 3,
            d_model: 2,
            layers,
            norm: NormKind::Rms { epsilon: 1e-5 },
            position: PositionKind::Sinusoidal,
            tie_embeddings: false,
            dropout: 0.0,
            init: InitConfig::default(),
            num_positions: None,
            multipliers: MultipliersConfig::default(),
            parametrisation: None,
            head_bias: false,
            padding_id: None,
        }
    }

    fn dense_block(bias: bool) -> FfnSpec {
        FfnSpec::Dense(DenseSpec { activation: Activation::Relu, d_ff: 3, bias })
    }

    /// One layer of width 2 with one head on sequences of 3 tokens, hidden width 3, 5 ids.
    fn dense() -> ModelSpec {
        with_layers([dense_block(false)])
    }

    /// 4 gated experts of width 3, of which `top_k` are used, and a shared one of width 1.
    fn mixture(top_k: usize) -> FfnSpec {
        let experts = ExpertsSpec {
            activation: Activation::Swiglu,
            num_experts: 4,
            d_expert: 3,
            granularity: None,
            bias: false,
            shared: Some(SharedExpertSpec { d_expert: 1, is_gated: false, bias: false }),
        };
        let router = RouterSpec { key: "model.ffn.moe.router".into(), config: RouterConfig::top_k(top_k) };
        FfnSpec::Moe(MoeSpec { experts, router, capacity: None })
    }

    #[test]
    fn a_dense_layer_counted_by_hand() {
        let counts = ModelCounts::of(&dense(), 6);
        // Embedding 5*2, four 2x2 projections, three norms, 2x3 and 3x2, head 2*5.
        assert_eq!(counts.total_params, 10 + 16 + 6 + 12 + 10);
        assert_eq!(counts.active_params, counts.total_params);
        // Each of the 3 tokens: 16 + 12 + 10 multiply-adds. The tokens see 1, 2 and 3 positions,
        // each for 2 elements of a score and 2 of the sum.
        let mixing = 2 * (1 + 2 + 3) * (2 + 2) / 3;
        assert_eq!(counts.forward_flops_per_token, 2 * (16 + 12 + 10) + mixing);
        assert_eq!(counts.training_flops_per_token, 3 * counts.forward_flops_per_token);
    }

    #[test]
    fn a_sparse_layer_counted_by_hand() {
        let (dense, sparse) = (ModelCounts::of(&dense(), 6), ModelCounts::of(&with_layers([mixture(2)]), 6));
        // In place of 12: a 2x4 router, 4 experts of three 2x3 matrices, a shared one of three 2x1.
        assert_eq!(sparse.total_params, dense.total_params - 12 + 8 + 72 + 6);
        assert_eq!(sparse.active_params, dense.total_params - 12 + 8 + 36 + 6);
        assert_eq!(sparse.forward_flops_per_token, dense.forward_flops_per_token + 2 * (8 + 36 + 6 - 12));
    }

    #[test]
    fn an_lstm_counted_by_hand() {
        let of_width = |d_hidden: usize| {
            let mut spec = with_layers([FfnSpec::Absent]);
            spec.layers[0].mixer = MixerSpec::Lstm(LstmSpec { d_hidden, forget_bias: 1.0 });
            (spec.norm, spec.position) = (NormKind::Off, PositionKind::Absent);
            ModelCounts::of(&spec, 6)
        };
        // Embedding 5*2, head 2*5; two matrices of 2x8 and a bias of 8.
        let counts = of_width(2);
        assert_eq!(counts.total_params, 10 + 10 + 2 * 16 + 8);
        assert_eq!(counts.active_params, counts.total_params);
        assert_eq!(counts.forward_flops_per_token, 2 * (2 * 16 + 10));
        // Two matrices of 2x12, a bias of 12, a projection of 3x2.
        let projected = of_width(3);
        assert_eq!(projected.params.lstm, 2 * 24 + 12 + 6);
        assert_eq!(projected.forward_flops.lstm, 2 * (2 * 24 + 6));
    }

    #[test]
    fn a_block_sparse_layer_counted_by_hand() {
        let matrices = BlockSparseConfig { block: 1, d_ff: 6, density: 0.5, seed: 0, topology: None };
        let block = BlockSparseSpec { activation: Activation::Relu, matrices };
        let spec = with_layers([FfnSpec::BlockSparse(block)]);
        let (counts, dense) = (ModelCounts::of(&spec, 6), ModelCounts::of(&dense(), 6));
        // Two matrices of 2x6 elements, of which every second one is there, in place of 2x3 and
        // 3x2.
        assert_eq!(counts.total_params, dense.total_params);
        assert_eq!(counts.active_params, counts.total_params);
        assert_eq!(counts.forward_flops_per_token, dense.forward_flops_per_token);
    }

    #[test]
    fn a_layer_with_its_own_router_counts_the_experts_that_its_tokens_use() {
        let same = ModelCounts::of(&with_layers([mixture(2), mixture(2)]), 6);
        let counts = ModelCounts::of(&with_layers([mixture(2), mixture(3)]), 6);
        // In layer 1 one more expert of three 2x3 matrices.
        assert_eq!(counts.active_params, same.active_params + 18);
        assert_eq!(counts.total_params, same.total_params);
        assert_eq!(counts.forward_flops_per_token, same.forward_flops_per_token + 2 * 18);
    }

    #[test]
    fn biases_positions_and_norms_counted_by_hand() {
        let mut layers = with_layers([dense_block(true)]).layers;
        let MixerSpec::Attention(attention) = &mut layers[0].mixer else { panic!("attention") };
        (attention.bias, attention.qk_norm) = (AttentionBias::All, QkNorm::On(QkNormConfig::default()));
        let spec = ModelSpec {
            layers,
            tie_embeddings: true,
            norm: NormKind::Layer { epsilon: 1e-5, bias: true },
            position: PositionKind::Learned,
            ..dense()
        };
        let params = ModelCounts::of(&spec, 6).params;
        assert_eq!(params.attention, 16 + 4 * 2 + 2 * 2);
        assert_eq!(params.dense_ffn, 12 + 3 + 2);
        assert_eq!((params.norm, params.position, params.head), (3 * 4, 3 * 2, 0));
        let alibi = ModelSpec { position: PositionKind::Alibi, ..dense() };
        assert_eq!(ModelCounts::of(&alibi, 6), ModelCounts::of(&dense(), 6));
    }
}
