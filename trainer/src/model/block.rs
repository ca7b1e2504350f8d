//! One Transformer block: attention, then a feed-forward block, each on a normalised residual stream.

mod provenance;

use burn::module::Module;
use burn::tensor::Tensor;
use switchyard_experts::{
    BlockSparseConfig, BlockSparseFfn, BlockSparseWeights, DenseFfn, DenseFfnWeights, Experts,
    ExpertsWeights, MoeAux, MoeConfig, MoeInput, MoeLayer, MoeOutput,
};
use switchyard_kernels::{CausalMask, RotaryTable};
use switchyard_router::{
    BalanceCount, CosineWeights, GateWeights, Router, RouterConfig, RouterPass, RouterSource, Selection,
};

use super::{Attention, LayerKind, ModelSpec, Norm, ParameterSource, Pass};

/// The feed-forward half of a block.
#[derive(Module, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one per layer, and burn derives modules of plain variants only"
)]
pub enum FeedForward {
    /// One block for every token.
    Dense(DenseFfn),
    /// A mixture of experts.
    Moe(MoeLayer),
    /// One block for every token, with block-sparse matrices.
    BlockSparse(BlockSparseFfn),
}

/// One pre-norm Transformer block (arXiv:2002.04745, figure 1b).
#[derive(Module, Debug)]
pub struct Block {
    attention_norm: Norm,
    attention: Attention,
    ffn_norm: Norm,
    ffn: FeedForward,
    #[module(skip)]
    dropout: f64,
    #[module(skip)]
    layer: usize,
    #[module(skip)]
    key: String,
}

/// What every block of one forward pass reads beside the residual stream.
#[derive(Debug, Clone, Copy)]
pub struct BlockContext<'a> {
    /// Rotary positions, if the model has them.
    pub rotary: Option<&'a RotaryTable>,
    /// Who may look at whom.
    pub mask: &'a CausalMask,
    /// `[batch * seq]` token ids.
    pub token_ids_t: &'a [u32],
    /// Tokens of one sequence.
    pub seq_len: usize,
    /// What the pass is for.
    pub pass: Pass<'a>,
}

impl FeedForward {
    /// The feed-forward block of layer `layer`, its values drawn under `key`.
    pub fn new(spec: &ModelSpec, layer: usize, key: &str, source: &ParameterSource) -> Self {
        if let (LayerKind::BlockSparse, Some(config)) = (spec.layers[layer], &spec.block_sparse) {
            return Self::BlockSparse(block_sparse_ffn(spec, config, layer, key, source));
        }
        match (spec.layers[layer], &spec.moe, spec.d_ff) {
            (LayerKind::Moe, Some(moe), _) => {
                Self::Moe(moe_layer(spec, moe, moe.router_of(layer), key, source))
            }
            (LayerKind::Dense, _, Some(d_ff)) => {
                Self::Dense(dense_ffn(spec, d_ff, spec.ffn_bias, key, source))
            }
            (kind, _, _) => unreachable!("a resolved spec has the widths of its {kind:?} layers"),
        }
    }
}

impl Block {
    /// Block number `layer`, counted from 0.
    pub fn new(spec: &ModelSpec, layer: usize, source: &ParameterSource) -> Self {
        let key = format!("blocks.{layer}");
        let ffn = FeedForward::new(spec, layer, &format!("{key}.ffn"), source);
        Self {
            attention_norm: Norm::new(spec.norm, spec.d_model, source),
            attention: Attention::new(spec, &format!("{key}.attention"), source),
            ffn_norm: Norm::new(spec.norm, spec.d_model, source),
            ffn,
            dropout: spec.dropout,
            layer,
            key,
        }
    }

    /// The residual stream after this block, and what the mixture learned, if there is one.
    ///
    /// # Shapes
    /// - `x_td`: `[batch * seq, d_model]`; returns the same
    pub fn forward(&self, x_td: Tensor<2>, context: &BlockContext<'_>) -> (Tensor<2>, Option<MoeAux>) {
        let pass = context.pass;
        let normed_td = self.attention_norm.forward(x_td.clone());
        let mixed_td = self.attention.forward(normed_td, context.rotary, context.mask);
        let x_td = x_td + self.drop_out("attention", mixed_td, pass);

        let normed_td = self.ffn_norm.forward(x_td.clone());
        let (hidden_td, aux) = match &self.ffn {
            FeedForward::Dense(ffn) => (ffn.forward(normed_td), None),
            FeedForward::BlockSparse(ffn) => (ffn.forward(normed_td), None),
            FeedForward::Moe(moe) => {
                let output = self.forward_moe(moe, x_td.clone(), normed_td, context);
                (output.hidden_td, Some(output.aux))
            }
        };
        (x_td + self.drop_out("ffn", hidden_td, pass), aux)
    }

    fn forward_moe(
        &self,
        moe: &MoeLayer,
        residual_td: Tensor<2>,
        normed_td: Tensor<2>,
        context: &BlockContext<'_>,
    ) -> MoeOutput {
        let earlier_statistics = match context.pass {
            Pass::Training { earlier, .. } => earlier.iter().find(|(layer, _)| *layer == self.layer),
            Pass::Evaluation | Pass::Generation => None,
        };
        let earlier = earlier_statistics.map(|(_, statistics)| statistics.tokens_per_expert());
        let pass = match context.pass {
            Pass::Training { noise, .. } => RouterPass::Training {
                noise: noise.of_router(&format!("{}.router", self.key)),
                earlier_tokens_per_expert: earlier.unwrap_or_default(),
            },
            Pass::Evaluation => RouterPass::Evaluation,
            Pass::Generation => RouterPass::Generation,
        };
        let reads_residual = moe.router.config().input == RouterSource::Residual;
        moe.forward(MoeInput {
            x_td: normed_td,
            router_x_td: reads_residual.then_some(residual_td),
            token_ids_t: context.token_ids_t,
            seq_len: context.seq_len,
            pass,
        })
    }

    /// The block with its router's bias updated by what a step's tokens said.
    pub(super) fn with_balanced_router(self, count: &BalanceCount) -> Self {
        let ffn = match self.ffn {
            FeedForward::Moe(moe) => FeedForward::Moe(moe.rebalanced(count)),
            other @ (FeedForward::Dense(_) | FeedForward::BlockSparse(_)) => other,
        };
        Self { ffn, ..self }
    }

    /// The mixture, if this block has one.
    pub fn moe(&self) -> Option<&MoeLayer> {
        match &self.ffn {
            FeedForward::Moe(moe) => Some(moe),
            FeedForward::Dense(_) | FeedForward::BlockSparse(_) => None,
        }
    }

    fn drop_out(&self, site: &str, x_td: Tensor<2>, pass: Pass<'_>) -> Tensor<2> {
        match pass.noise() {
            Some(noise) => noise.dropout(&format!("{}.{site}", self.key), x_td, self.dropout),
            None => x_td,
        }
    }
}

fn dense_ffn(spec: &ModelSpec, d_ff: usize, bias: bool, key: &str, source: &ParameterSource) -> DenseFfn {
    let (d, std, gated) = (spec.d_model, spec.init.std, spec.activation.is_gated());
    let weights = DenseFfnWeights {
        w_gate_df: gated.then(|| source.normal(&format!("{key}.gate"), [d, d_ff], std)),
        w_up_df: source.normal(&format!("{key}.up"), [d, d_ff], std),
        w_down_fd: source.normal(&format!("{key}.down"), [d_ff, d], spec.residual_std()),
        b_gate_f: (bias && gated).then(|| source.zeros(d_ff)),
        b_up_f: bias.then(|| source.zeros(d_ff)),
        b_down_d: bias.then(|| source.zeros(d)),
    };
    DenseFfn::new(weights, spec.activation)
}

fn block_sparse_ffn(
    spec: &ModelSpec,
    config: &BlockSparseConfig,
    layer: usize,
    key: &str,
    source: &ParameterSource,
) -> BlockSparseFfn {
    let shape = [config.num_blocks(spec.d_model), config.block, config.block];
    let blocks = |name: &str, std: f64| source.normal(&format!("{key}.{name}"), shape, std);
    let weights = BlockSparseWeights {
        gate_nbb: spec.activation.is_gated().then(|| blocks("gate", spec.init.std)),
        up_nbb: blocks("up", spec.init.std),
        down_nbb: blocks("down", spec.residual_std()),
    };
    BlockSparseFfn::new(weights, config.topologies(spec.d_model, layer), spec.activation)
}

fn moe_layer(
    spec: &ModelSpec,
    moe: &MoeConfig,
    router_config: &RouterConfig,
    key: &str,
    source: &ParameterSource,
) -> MoeLayer {
    let (d, std, e, f) = (spec.d_model, spec.init.std, moe.num_experts, moe.d_expert);
    let gated = spec.activation.is_gated();
    let router = router(router_config, [d, e], spec, &format!("{key}.router"), source);
    let weights = ExpertsWeights {
        w_gate_edf: gated.then(|| source.normal_per_expert(&format!("{key}.gate"), [e, d, f], std)),
        w_up_edf: source.normal_per_expert(&format!("{key}.up"), [e, d, f], std),
        w_down_efd: source.normal_per_expert(&format!("{key}.down"), [e, f, d], spec.residual_std()),
    };
    let shared_expert = moe
        .d_shared_expert
        .map(|width| dense_ffn(spec, width, false, &format!("{key}.shared_expert"), source));
    let layer =
        MoeLayer::new(router, Experts::new(weights, spec.activation), shared_expert, moe.capacity.clone());
    match moe.shared_expert_gate {
        true => layer.with_shared_gate(source.normal(&format!("{key}.shared_gate"), [d, 1], std)),
        false => layer,
    }
}

/// A router at its initial values. The noise's gate starts at zero (arXiv:1701.06538, appendix A), the bias too.
fn router(
    config: &RouterConfig,
    [d, e]: [usize; 2],
    spec: &ModelSpec,
    key: &str,
    source: &ParameterSource,
) -> Router {
    let std = spec.init.std * config.init_scale;
    let num_columns = match config.selection() {
        Selection::Soft(_) => e * spec.soft_slots_per_expert(config).unwrap_or(1),
        _ => e,
    };
    let weights = GateWeights {
        weight_de: (config.learns() && config.cosine.is_none())
            .then(|| source.normal(key, [d, num_columns], std)),
        noise_weight_de: matches!(config.selection(), Selection::Noisy(_))
            .then(|| Tensor::zeros([d, e], source.device())),
        cosine: config.cosine.as_ref().map(|cosine| CosineWeights {
            projection_dc: source.normal(&format!("{key}.projection"), [d, cosine.d_projection], std),
            directions_ce: source.normal(&format!("{key}.directions"), [cosine.d_projection, e], std),
            log_scale_1: source.zeros(1) - cosine.temperature.ln(),
        }),
        bias_e: config.bias.as_ref().map(|_| source.zeros(e)),
    };
    config.init(e, weights)
}
