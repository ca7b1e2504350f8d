//! Parameters, FLOPs and memory of a model, by arithmetic alone: nothing is allocated.
//!
//! Letters in formulas: d model width, q = query heads * head width, g = key/value heads * head width, s sequence
//! length, v vocabulary, f hidden width, e experts, k experts per token, m matrices of a feed-forward block (3 if
//! gated, else 2).

use serde::{Deserialize, Serialize};
use switchyard_experts::{BlockSparseConfig, MoeConfig};
use switchyard_router::{RouterConfig, Selection, expert_capacity};

use crate::model::{LayerKind, ModelSpec, NormKind, PositionKind};

/// Bytes of one f32, the type of parameters, gradients and moments.
const F32_BYTES: f64 = 4.0;

/// Size and cost of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCounts {
    /// All parameters.
    pub total_params: u64,
    /// Parameters that take part in one token's forward pass: all but the routed experts that the token is not
    /// sent to. Where experts choose tokens, the mean over the tokens of a micro-batch; where tokens are mixed softly, all,
    /// since every expert's output enters every token. The embedding counts in full, as in the published figures of
    /// Mixtral, OLMoE and Qwen3.
    pub active_params: u64,
    /// All parameters, by component.
    pub params: ParameterBreakdown,
    /// Floating-point operations of one token's forward pass; see [`ForwardFlops`].
    pub forward_flops_per_token: u64,
    /// Forward and backward: three times the forward pass, as the backward pass multiplies each matrix product's
    /// operands twice (arXiv:2001.08361, section 2.1).
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
    /// Projections, their biases and QK-norms: per layer 2 d q + 2 d g, with biases
    /// q + 2 g + d more, with QK-norm two head widths more.
    pub attention: u64,
    /// Two norms per layer and the one before the head.
    pub norm: u64,
    /// Dense feed-forward blocks: m d f, with biases.
    pub dense_ffn: u64,
    /// Block-sparse feed-forward blocks: m n b b for n blocks of side b.
    #[serde(default)]
    pub block_sparse_ffn: u64,
    /// Routers: d e for a linear gate, twice that with learned noise, d e p for p soft slots per expert, d c + c e + 1 for
    /// a cosine gate of width c, nothing where nothing is learned; with a gated shared expert d more. An expert bias, which is
    /// not learned, is not counted.
    pub router: u64,
    /// Routed experts: e m d f.
    pub routed_experts: u64,
    /// Shared experts: m d f.
    pub shared_experts: u64,
    /// Untied head: d v; 0 if tied.
    pub head: u64,
}

/// Floating-point operations of one token's forward pass, a multiply and an add counted as two.
///
/// Counted: matrix products of a training pass over one micro-batch of whole sequences. Not counted: element-wise work
/// (norms, softmax, activations, residuals, the gates' weighted sum of experts) and the embedding, which is a look-up.
/// Attention is counted as causal: a position sees (s + 1) / 2 positions on average, so its scores and their weighted sum
/// cost 2 q (s + 1) per layer: the convention of arXiv:2001.08361, table 1, and about half of PaLM's (arXiv:2204.02311,
/// appendix B), which counts the masked half too.
///
/// An expert counts as often as a token, or a slot of mixed tokens, is given to it. Assignments that are dropped over a
/// capacity, or because a random second expert is not kept, are counted as if they stayed, and a document mask saves
/// nothing: both depend on the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardFlops {
    /// Query, key, value and output projections.
    pub attention_projections: u64,
    /// Scores and weighted sum.
    pub attention_mixing: u64,
    /// Dense feed-forward blocks.
    pub dense_ffn: u64,
    /// Block-sparse feed-forward blocks.
    #[serde(default)]
    pub block_sparse_ffn: u64,
    /// Routers.
    pub router: u64,
    /// Routed experts: 2 m d f for each of the experts that compute for the token.
    pub routed_experts: u64,
    /// The two products of soft mixing, tokens to slots and slots back to tokens: 4 d per slot of the token's sequence.
    #[serde(default)]
    pub soft_mixing: u64,
    /// Shared experts.
    pub shared_experts: u64,
    /// Logits over the vocabulary.
    pub head: u64,
}

impl ModelCounts {
    /// Size and cost of the model described by `spec`, at its full sequence length, in passes over `micro_batch_tokens`
    /// tokens, which experts that choose their tokens share.
    pub fn of(spec: &ModelSpec, micro_batch_tokens: usize) -> Self {
        let params = ParameterBreakdown::of(spec);
        let total_params = params.total();
        let forward_flops = ForwardFlops::of(spec, micro_batch_tokens);
        let forward_flops_per_token = forward_flops.total();
        let idle_params = params.routed_experts - active_expert_params(spec, micro_batch_tokens);
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
    fn of(spec: &ModelSpec) -> Self {
        let (d, v, s) = (spec.d_model as u64, spec.vocab_size as u64, spec.max_seq_len as u64);
        let layers = LayerNumbers::of(spec);
        let matrices = ffn_matrices(spec);
        let moe = |width: fn(&MoeConfig) -> usize| {
            layers.moe * spec.moe.as_ref().map_or(0, |moe| width(moe) as u64)
        };
        let norm_params = match spec.norm {
            NormKind::Rms { .. } | NormKind::Layer { bias: false, .. } => d,
            NormKind::Layer { bias: true, .. } => 2 * d,
        };
        let d_ff = spec.d_ff.unwrap_or(0) as u64;
        let ffn_bias = if spec.ffn_bias { (matrices - 1) * d_ff + d } else { 0 };
        Self {
            embedding: v * d,
            position: if matches!(spec.position, PositionKind::Learned) { s * d } else { 0 },
            attention: layers.all * attention_params(spec),
            norm: (2 * layers.all + 1) * norm_params,
            dense_ffn: layers.dense * (matrices * d * d_ff + ffn_bias),
            block_sparse_ffn: block_sparse_params(spec),
            router: moe_routers(spec).map(|router| router_params(spec, router)).sum(),
            routed_experts: matrices * d * moe(|moe| moe.num_experts * moe.d_expert),
            shared_experts: matrices * d * moe(|moe| moe.d_shared_expert.unwrap_or(0)),
            head: if spec.tie_embeddings { 0 } else { d * v },
        }
    }

    fn total(&self) -> u64 {
        self.embedding
            + self.position
            + self.attention
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
    fn of(spec: &ModelSpec, micro_batch_tokens: usize) -> Self {
        let (d, v, s) = (spec.d_model as u64, spec.vocab_size as u64, spec.max_seq_len as u64);
        let (d_query, d_kv) = attention_widths(spec);
        let layers = LayerNumbers::of(spec);
        let matrices = ffn_matrices(spec);
        let moe = |width: fn(&MoeConfig) -> usize| {
            layers.moe * spec.moe.as_ref().map_or(0, |moe| width(moe) as u64)
        };
        Self {
            attention_projections: layers.all * 2 * d * (2 * d_query + 2 * d_kv),
            attention_mixing: layers.all * 2 * d_query * (s + 1),
            dense_ffn: layers.dense * 2 * matrices * d * spec.d_ff.unwrap_or(0) as u64,
            block_sparse_ffn: 2 * block_sparse_params(spec),
            router: 2 * moe_routers(spec).map(|router| router_matrix_params(spec, router)).sum::<u64>(),
            routed_experts: routed_expert_flops(spec, micro_batch_tokens),
            soft_mixing: soft_mixing_flops(spec),
            shared_experts: 2 * matrices * d * moe(|moe| moe.d_shared_expert.unwrap_or(0)),
            head: 2 * d * v,
        }
    }

    fn total(&self) -> u64 {
        let parts = [
            self.attention_projections,
            self.attention_mixing,
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

/// Memory of training, in bytes; nothing is allocated to find it.
///
/// The first three are exact for f32. Activations are an estimate of what is kept from the forward pass for the
/// backward pass of one micro-batch: the allocator's overhead, temporaries and the data come on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEstimate {
    /// Parameters.
    pub weights_bytes: u64,
    /// One gradient per parameter.
    pub gradients_bytes: u64,
    /// AdamW's two moments per parameter.
    pub moments_bytes: u64,
    /// Kept for the backward pass.
    pub activations_bytes: u64,
}

impl MemoryEstimate {
    /// Memory of training the model with `micro_batch_tokens` tokens per pass.
    pub fn of(spec: &ModelSpec, counts: &ModelCounts, micro_batch_tokens: usize) -> Self {
        // Products in f64: an absurd configuration saturates instead of overflowing.
        let per_param = F32_BYTES * counts.total_params as f64;
        let kept = F32_BYTES * micro_batch_tokens as f64 * kept_values_per_token(spec, micro_batch_tokens);
        Self {
            weights_bytes: per_param as u64,
            gradients_bytes: per_param as u64,
            moments_bytes: (2.0 * per_param) as u64,
            activations_bytes: kept as u64,
        }
    }

    /// Sum of the parts.
    pub fn total_bytes(&self) -> u64 {
        self.weights_bytes
            .saturating_add(self.gradients_bytes)
            .saturating_add(self.moments_bytes)
            .saturating_add(self.activations_bytes)
    }
}

/// f32 values that the forward pass keeps per token: in each layer both residual sums, both norms' inputs and
/// outputs and both sub-blocks' outputs (6 d), queries, keys, values and their mixture (2 q + 2 g), the attention
/// weights (heads * s), a block's hidden values before and after the non-linearity (m f, for routed experts as often as a
/// token is worked on) and the router's probabilities (e); at the end the logits and their softmax (2 v).
fn kept_values_per_token(spec: &ModelSpec, micro_batch_tokens: usize) -> f64 {
    let (d_query, d_kv) = attention_widths(spec);
    let layers = LayerNumbers::of(spec);
    let hidden_copies = ffn_matrices(spec) as f64;
    let attention =
        6 * spec.d_model as u64 + 2 * (d_query + d_kv) + spec.num_heads as u64 * spec.max_seq_len as u64;
    let moe = |router: &RouterConfig| {
        let Some(moe) = &spec.moe else { return 0.0 };
        let routed = ExpertWork::of(spec, router, micro_batch_tokens).per_token() * moe.d_expert as f64;
        hidden_copies * (routed + moe.d_shared_expert.unwrap_or(0) as f64) + moe.num_experts as f64
    };
    let block_sparse_width = spec.block_sparse.as_ref().map_or(0, |config| config.d_ff);
    layers.all as f64 * attention as f64
        + layers.dense as f64 * hidden_copies * spec.d_ff.unwrap_or(0) as f64
        + moe_routers(spec).map(moe).sum::<f64>()
        + layers.block_sparse as f64 * hidden_copies * block_sparse_width as f64
        + 2.0 * spec.vocab_size as f64
}

/// How many layers of each kind.
struct LayerNumbers {
    all: u64,
    dense: u64,
    moe: u64,
    block_sparse: u64,
}

impl LayerNumbers {
    fn of(spec: &ModelSpec) -> Self {
        let all = spec.layers.len() as u64;
        let moe = spec.layers.iter().filter(|kind| **kind == LayerKind::Moe).count() as u64;
        let dense = spec.layers.iter().filter(|kind| **kind == LayerKind::Dense).count() as u64;
        let block_sparse = all - dense - moe;
        Self { all, dense, moe, block_sparse }
    }
}

/// Width of all query heads together, and of all key (or value) heads.
fn attention_widths(spec: &ModelSpec) -> (u64, u64) {
    ((spec.num_heads * spec.d_head) as u64, (spec.num_kv_heads * spec.d_head) as u64)
}

fn attention_params(spec: &ModelSpec) -> u64 {
    let d = spec.d_model as u64;
    let (d_query, d_kv) = attention_widths(spec);
    let biases = if spec.attention_bias { d_query + 2 * d_kv + d } else { 0 };
    let head_norms = if spec.qk_norm { 2 * spec.d_head as u64 } else { 0 };
    d * (2 * d_query + 2 * d_kv) + biases + head_norms
}

/// The router of each MoE layer.
fn moe_routers(spec: &ModelSpec) -> impl Iterator<Item = &RouterConfig> {
    (0..spec.num_layers()).filter_map(|layer| spec.router_of(layer))
}

/// Parameters of the matrices of one layer's router.
fn router_matrix_params(spec: &ModelSpec, router: &RouterConfig) -> u64 {
    let Some(moe) = &spec.moe else { return 0 };
    let (d, e) = (spec.d_model as u64, moe.num_experts as u64);
    let shared_gate = if moe.shared_expert_gate { d } else { 0 };
    let gate = match (router.selection(), &router.cosine) {
        (Selection::Hash(_) | Selection::Random | Selection::ForcedUniform, _) => 0,
        (Selection::Soft(_), _) => d * e * spec.soft_slots_per_expert(router).unwrap_or(1) as u64,
        (Selection::Noisy(_), None) => 2 * d * e,
        (_, None) => d * e,
        (selection, Some(cosine)) => {
            let noise = if matches!(selection, Selection::Noisy(_)) { d * e } else { 0 };
            (d + e) * cosine.d_projection as u64 + noise
        }
    };
    gate + shared_gate
}

/// Parameters of one layer's router.
fn router_params(spec: &ModelSpec, router: &RouterConfig) -> u64 {
    router_matrix_params(spec, router) + u64::from(router.cosine.is_some())
}

/// Parameters of the block-sparse layers: those of the blocks that are there.
fn block_sparse_params(spec: &ModelSpec) -> u64 {
    let params_of = |config: &BlockSparseConfig| {
        ffn_matrices(spec) * (config.num_blocks(spec.d_model) * config.block * config.block) as u64
    };
    LayerNumbers::of(spec).block_sparse * spec.block_sparse.as_ref().map_or(0, params_of)
}

fn ffn_matrices(spec: &ModelSpec) -> u64 {
    if spec.activation.is_gated() { 3 } else { 2 }
}

/// Rows that the routed experts of a layer multiply in a pass: the assignments, or the slots of mixed tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExpertWork {
    /// Rows of all experts together.
    pub(crate) rows: u64,
    /// For so many tokens.
    pub(crate) tokens: u64,
}

impl ExpertWork {
    /// The work of a layer with this router in a pass over `micro_batch_tokens` tokens.
    pub(crate) fn of(spec: &ModelSpec, router: &RouterConfig, micro_batch_tokens: usize) -> Self {
        let num_experts = spec.moe.as_ref().map_or(0, |moe| moe.num_experts);
        let (rows, tokens) = match router.selection() {
            Selection::ExpertChoice(config) => {
                let capacity =
                    expert_capacity(config.capacity_factor, router.top_k, micro_batch_tokens, num_experts);
                (num_experts * capacity.min(micro_batch_tokens), micro_batch_tokens)
            }
            Selection::Soft(_) => (soft_slots(spec, router), spec.max_seq_len),
            _ => (router.top_k, 1),
        };
        Self { rows: rows as u64, tokens: tokens as u64 }
    }

    /// Experts that work on one token, on average.
    pub(crate) fn per_token(self) -> f64 {
        self.rows as f64 / self.tokens as f64
    }

    /// What one token costs if a row costs `cost_of_row`, rounded to a whole number.
    fn cost_per_token(self, cost_of_row: u64) -> u64 {
        // In 128 bits: millions of slots for a sequence of one token are absurd, but no reason to wrap around.
        let cost = u128::from(self.rows) * u128::from(cost_of_row) + u128::from(self.tokens / 2);
        u64::try_from(cost / u128::from(self.tokens)).unwrap_or(u64::MAX)
    }
}

/// Slots of all experts of a layer per sequence; 0 unless it mixes tokens softly.
fn soft_slots(spec: &ModelSpec, router: &RouterConfig) -> usize {
    let num_experts = spec.moe.as_ref().map_or(0, |moe| moe.num_experts);
    num_experts * spec.soft_slots_per_expert(router).unwrap_or(0)
}

/// Parameters of one routed expert.
fn expert_params(spec: &ModelSpec) -> u64 {
    let d_expert = spec.moe.as_ref().map_or(0, |moe| moe.d_expert as u64);
    ffn_matrices(spec) * spec.d_model as u64 * d_expert
}

/// Parameters of the routed experts that take part in one token's pass, over all MoE layers.
fn active_expert_params(spec: &ModelSpec, micro_batch_tokens: usize) -> u64 {
    let active_params = |router: &RouterConfig| match (router.selection(), &spec.moe) {
        (Selection::Soft(_), Some(moe)) => moe.num_experts as u64 * expert_params(spec),
        _ => ExpertWork::of(spec, router, micro_batch_tokens).cost_per_token(expert_params(spec)),
    };
    moe_routers(spec).map(active_params).sum()
}

fn routed_expert_flops(spec: &ModelSpec, micro_batch_tokens: usize) -> u64 {
    let flops_of_row = 2 * expert_params(spec);
    moe_routers(spec)
        .map(|router| ExpertWork::of(spec, router, micro_batch_tokens).cost_per_token(flops_of_row))
        .fold(0, u64::saturating_add)
}

fn soft_mixing_flops(spec: &ModelSpec) -> u64 {
    moe_routers(spec).map(|router| 4 * spec.d_model as u64 * soft_slots(spec, router) as u64).sum()
}

#[cfg(test)]
mod tests {
    use switchyard_experts::{Activation, RouterOverride};

    use super::*;
    use crate::model::InitConfig;

    /// One layer of width 2 with one head on sequences of 3 tokens, hidden width 3, 5 ids.
    fn dense() -> ModelSpec {
        ModelSpec {
            vocab_size: 5,
            max_seq_len: 3,
            d_model: 2,
            num_heads: 1,
            num_kv_heads: 1,
            d_head: 2,
            qk_norm: false,
            attention_bias: false,
            layers: vec![LayerKind::Dense],
            activation: Activation::Relu,
            d_ff: Some(3),
            ffn_bias: false,
            moe: None,
            block_sparse: None,
            norm: NormKind::Rms { epsilon: 1e-5 },
            position: PositionKind::Sinusoidal,
            tie_embeddings: false,
            dropout: 0.0,
            init: InitConfig::default(),
        }
    }

    /// The same with 4 gated experts of width 3, of which 2 are used, and a shared one of width 1.
    fn sparse() -> ModelSpec {
        let router = RouterConfig::top_k(2);
        let moe = MoeConfig {
            num_experts: 4,
            d_expert: 3,
            granularity: None,
            d_shared_expert: Some(1),
            shared_expert_gate: false,
            router,
            router_overrides: Vec::new(),
            capacity: None,
            layers: None,
        };
        ModelSpec {
            layers: vec![LayerKind::Moe],
            activation: Activation::Swiglu,
            d_ff: None,
            moe: Some(moe),
            ..dense()
        }
    }

    #[test]
    fn a_dense_layer_counted_by_hand() {
        let counts = ModelCounts::of(&dense(), 6);
        // Embedding 5*2, four 2x2 projections, three norms, 2x3 and 3x2, head 2*5.
        assert_eq!(counts.total_params, 10 + 16 + 6 + 12 + 10);
        assert_eq!(counts.active_params, counts.total_params);
        // Each of the 3 tokens: 16 + 12 + 10 multiply-adds. The tokens see 1, 2 and 3 positions, each for 2 elements
        // of a score and 2 of the sum.
        let mixing = 2 * (1 + 2 + 3) * (2 + 2) / 3;
        assert_eq!(counts.forward_flops_per_token, 2 * (16 + 12 + 10) + mixing);
        assert_eq!(counts.training_flops_per_token, 3 * counts.forward_flops_per_token);
    }

    #[test]
    fn a_sparse_layer_counted_by_hand() {
        let (dense, sparse) = (ModelCounts::of(&dense(), 6), ModelCounts::of(&sparse(), 6));
        // In place of 12: a 2x4 router, 4 experts of three 2x3 matrices, a shared one of three 2x1.
        assert_eq!(sparse.total_params, dense.total_params - 12 + 8 + 72 + 6);
        assert_eq!(sparse.active_params, dense.total_params - 12 + 8 + 36 + 6);
        assert_eq!(sparse.forward_flops_per_token, dense.forward_flops_per_token + 2 * (8 + 36 + 6 - 12));
    }

    #[test]
    fn a_block_sparse_layer_counted_by_hand() {
        let config = BlockSparseConfig {
            block: 1,
            d_ff: 6,
            density: 0.5,
            seed: 0,
            topology: switchyard_experts::TopologyConfig::default(),
        };
        let spec = ModelSpec {
            layers: vec![LayerKind::BlockSparse],
            d_ff: None,
            block_sparse: Some(config),
            ..dense()
        };
        let (counts, dense) = (ModelCounts::of(&spec, 6), ModelCounts::of(&dense(), 6));
        // Two matrices of 2x6 elements, of which every second one is there, in place of 2x3 and 3x2.
        assert_eq!(counts.total_params, dense.total_params);
        assert_eq!(counts.active_params, counts.total_params);
        assert_eq!(counts.forward_flops_per_token, dense.forward_flops_per_token);
    }

    #[test]
    fn a_layer_with_its_own_router_counts_the_experts_that_its_tokens_use() {
        let mut spec = ModelSpec { layers: vec![LayerKind::Moe; 2], ..sparse() };
        let same = ModelCounts::of(&spec, 6);
        let other = RouterOverride { layers: vec![1], router: RouterConfig::top_k(3) };
        spec.moe.as_mut().unwrap().router_overrides = vec![other];
        let counts = ModelCounts::of(&spec, 6);
        // In layer 1 one more expert of three 2x3 matrices.
        assert_eq!(counts.active_params, same.active_params + 18);
        assert_eq!(counts.total_params, same.total_params);
        assert_eq!(counts.forward_flops_per_token, same.forward_flops_per_token + 2 * 18);
    }

    #[test]
    fn biases_positions_and_norms_counted_by_hand() {
        let spec = ModelSpec {
            attention_bias: true,
            ffn_bias: true,
            qk_norm: true,
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

    #[test]
    fn memory_is_sixteen_bytes_a_parameter_and_what_each_token_keeps() {
        let counts = ModelCounts::of(&dense(), 6);
        let memory = MemoryEstimate::of(&dense(), &counts, 7);
        let kept_per_token = 6 * 2 + (2 * 2 + 2 * 2) + 3 + 2 * 3 + 2 * 5;
        assert_eq!(memory.activations_bytes, 4 * 7 * kept_per_token);
        assert_eq!(memory.total_bytes(), 16 * counts.total_params + memory.activations_bytes);
    }
}
