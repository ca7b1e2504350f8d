//! One block: what mixes tokens (attention or an LSTM) and a feed-forward block, one after the other
//! or side by side.

mod provenance;

use burn::module::Module;
use burn::tensor::Tensor;
use switchyard_experts::{
    BlockSparseFfn, BlockSparseSpec, BlockSparseWeights, CapacityConfig, DenseFfn, DenseFfnWeights,
    DenseSpec, Experts, ExpertsSpec, ExpertsWeights, FfnSpec, MoeAux, MoeInput, MoeLayer, MoeOutput, MoeSpec,
    RouterSpec, SoftMoeSpec,
};
use switchyard_kernels::{ExpertBiases, RotaryTable};
use switchyard_router::{
    CosineWeights, GateWeights, Router, RouterConfig, RouterPass, RouterSource, Selection, Sequences,
};

use crate::mixer::{MixerCache, MixerOutput};
use crate::{
    BlockContext, CosinePart, FfnMatrix, LstmState, Mixer, ModelSpec, Norm, ParameterSource, Pass, Residual,
    Role, RouterPart,
};

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

/// One block: what mixes tokens and a feed-forward block, joined to the residual stream as
/// [`Residual`] says.
#[derive(Module, Debug)]
pub struct Block {
    /// `None` in a model without norms.
    attention_norm: Option<Norm>,
    mixer: Mixer,
    /// `None` also if the feed-forward block reads what the mixer reads.
    ffn_norm: Option<Norm>,
    /// `None` if the mixer is all of the block.
    ffn: Option<FeedForward>,
    #[module(skip)]
    residual: Residual,
    /// Factor on what each half adds.
    #[module(skip)]
    multiplier: f64,
    #[module(skip)]
    dropout: f64,
    #[module(skip)]
    layer: usize,
    #[module(skip)]
    key: String,
}

/// What a block has once its mixer is done.
struct FfnInput {
    /// The residual stream with what the mixer added.
    x_td: Tensor<2>,
    /// The residual stream that the feed-forward block belongs to.
    residual_td: Tensor<2>,
    /// What the feed-forward block works on.
    normed_td: Tensor<2>,
}

impl FfnInput {
    /// For a block that works on the stream as it is.
    fn of_stream(x_td: Tensor<2>) -> Self {
        Self { residual_td: x_td.clone(), normed_td: x_td.clone(), x_td }
    }
}

/// What the mixer read and gave.
struct Mixed {
    read_td: Tensor<2>,
    mixed_td: Tensor<2>,
}

/// What a block gives.
#[derive(Debug)]
pub struct BlockOutput {
    /// The residual stream behind it, `[batch * seq, d_model]`.
    pub x_td: Tensor<2>,
    /// What the mixture learned, if there is one.
    pub aux: Option<MoeAux>,
    /// What a recurrent layer hands to the tokens that come next.
    pub state: Option<LstmState>,
    /// The largest logit of each attention head, `[num_heads]`, if the pass measures them.
    pub max_logits_h: Option<Tensor<1>>,
}

impl FeedForward {
    /// The feed-forward block of layer `layer`, its values drawn under `key`; `None` if it has none.
    pub fn new(spec: &ModelSpec, layer: usize, key: &str, source: &ParameterSource) -> Option<Self> {
        Some(match &spec.layers[layer].ffn {
            FfnSpec::Absent => return None,
            FfnSpec::Dense(dense) => Self::Dense(dense_ffn((spec, Role::Dense), dense, key, source)),
            FfnSpec::BlockSparse(sparse) => {
                Self::BlockSparse(block_sparse_ffn(spec, sparse, layer, key, source))
            }
            FfnSpec::Moe(moe) => {
                let MoeSpec { experts, router, capacity } = moe;
                let columns = experts.num_experts;
                Self::Moe(moe_layer(spec, experts, (router, columns), capacity.as_ref(), key, source))
            }
            FfnSpec::SoftMoe(soft) => {
                let SoftMoeSpec { experts, router, .. } = soft;
                let columns = soft.num_slots() as usize;
                Self::Moe(moe_layer(spec, experts, (router, columns), None, key, source))
            }
        })
    }
}

impl Block {
    /// Block number `layer`, counted from 0.
    pub fn new(spec: &ModelSpec, layer: usize, source: &ParameterSource) -> Self {
        let key = format!("blocks.{layer}");
        let mixer = Mixer::new(spec, layer, &key, source);
        let ffn = FeedForward::new(spec, layer, &format!("{key}.ffn"), source);
        let norm = || Norm::new(spec.norm, spec.d_model, source);
        Self {
            attention_norm: norm(),
            mixer,
            ffn_norm: spec.layers[layer].has_ffn_norm().then(norm).flatten(),
            ffn,
            residual: spec.layers[layer].residual,
            multiplier: spec.multipliers.residual,
            dropout: spec.dropout,
            layer,
            key,
        }
    }

    /// The residual stream after this block, what the mixture learned, and the layer's state.
    ///
    /// # Shapes
    /// - `x_td`: `[batch * seq, d_model]`; returns the same
    pub fn forward(&self, x_td: Tensor<2>, context: &BlockContext<'_>) -> BlockOutput {
        let read_td = self.mixer_input(x_td.clone());
        let MixerOutput { y_td: mixed_td, state, max_logits_h } =
            self.mixer.forward(read_td.clone(), self.layer, context);
        let (x_td, aux) = self.feed_forward(x_td, Mixed { read_td, mixed_td }, context);
        BlockOutput { x_td, aux, state, max_logits_h }
    }

    /// As [`Block::forward`] of a single sequence, and what is kept of its tokens.
    pub(crate) fn forward_and_keep(
        &self,
        x_td: Tensor<2>,
        context: &BlockContext<'_>,
        cache: MixerCache,
    ) -> (Tensor<2>, Option<MoeAux>, MixerCache) {
        let read_td = self.mixer_input(x_td.clone());
        let (mixed_td, cache) = self.mixer.forward_and_keep(read_td.clone(), context, cache);
        let (x_td, aux) = self.feed_forward(x_td, Mixed { read_td, mixed_td }, context);
        (x_td, aux, cache)
    }

    /// As [`Block::forward`] of the next token of each sequence, which sees those before it by what
    /// was kept of them. Each has a table of angles for all its positions, if the model has angles.
    ///
    /// # Shapes
    /// - `x_bd`: `[sequences, d_model]`; returns the same
    pub(crate) fn forward_cached(
        &self,
        x_bd: Tensor<2>,
        context: &BlockContext<'_>,
        caches: Vec<MixerCache>,
        rotary: &[Option<&RotaryTable>],
    ) -> (Tensor<2>, Option<MoeAux>, Vec<MixerCache>) {
        let read_td = self.mixer_input(x_bd.clone());
        let (mixed_td, caches) = self.mixer.forward_cached(read_td.clone(), caches, rotary);
        let (x_bd, aux) = self.feed_forward(x_bd, Mixed { read_td, mixed_td }, context);
        (x_bd, aux, caches)
    }

    /// The residual stream after the block, once the mixer is done.
    fn feed_forward(
        &self,
        x_td: Tensor<2>,
        mixed: Mixed,
        context: &BlockContext<'_>,
    ) -> (Tensor<2>, Option<MoeAux>) {
        let input = self.ffn_input(x_td, mixed, context.pass);
        let (hidden_td, aux) = match &self.ffn {
            None => return (input.x_td, None),
            Some(FeedForward::Dense(ffn)) => (ffn.forward(input.normed_td, context.pass.ffn_options()), None),
            Some(FeedForward::BlockSparse(ffn)) => (ffn.forward(input.normed_td), None),
            Some(FeedForward::Moe(moe)) => {
                let output = self.forward_moe(moe, input.residual_td, input.normed_td, context);
                (output.hidden_td, Some(output.aux))
            }
        };
        (self.add_ffn(input.x_td, hidden_td, context.pass), aux)
    }

    /// What the mixer reads of the residual stream.
    fn mixer_input(&self, x_td: Tensor<2>) -> Tensor<2> {
        match self.residual {
            Residual::Sequential | Residual::Parallel | Residual::ParallelNorms => {
                normed(self.attention_norm.as_ref(), x_td)
            }
            Residual::OutputNorm | Residual::PostNorm => x_td,
        }
    }

    /// What is there once the mixer is done.
    ///
    /// # Shapes
    /// - all: `[batch * seq, d_model]`
    fn ffn_input(&self, x_td: Tensor<2>, mixed: Mixed, pass: Pass<'_>) -> FfnInput {
        let Mixed { read_td, mixed_td } = mixed;
        let added = |mixed_td| self.scaled(self.drop_out(self.mixer.name(), mixed_td, pass));
        let mixer_normed = |x_td| normed(self.attention_norm.as_ref(), x_td);
        let ffn_normed = |x_td| normed(self.ffn_norm.as_ref(), x_td);
        match self.residual {
            Residual::Sequential => {
                let x_td = x_td + added(mixed_td);
                FfnInput { residual_td: x_td.clone(), normed_td: ffn_normed(x_td.clone()), x_td }
            }
            Residual::Parallel => {
                FfnInput { x_td: x_td.clone() + added(mixed_td), residual_td: x_td, normed_td: read_td }
            }
            Residual::ParallelNorms => FfnInput {
                normed_td: ffn_normed(x_td.clone()),
                x_td: x_td.clone() + added(mixed_td),
                residual_td: x_td,
            },
            Residual::OutputNorm => FfnInput::of_stream(x_td + added(mixer_normed(mixed_td))),
            Residual::PostNorm => FfnInput::of_stream(mixer_normed(x_td + added(mixed_td))),
        }
    }

    /// The residual stream with what the feed-forward block gives.
    fn add_ffn(&self, x_td: Tensor<2>, hidden_td: Tensor<2>, pass: Pass<'_>) -> Tensor<2> {
        let added = |hidden_td| self.scaled(self.drop_out("ffn", hidden_td, pass));
        match (self.residual, &self.ffn_norm) {
            (Residual::OutputNorm, Some(norm)) => x_td + added(norm.forward(hidden_td)),
            (Residual::PostNorm, Some(norm)) => norm.forward(x_td + added(hidden_td)),
            _ => x_td + added(hidden_td),
        }
    }

    fn scaled(&self, x_td: Tensor<2>) -> Tensor<2> {
        if self.multiplier == 1.0 { x_td } else { x_td.mul_scalar(self.multiplier) }
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
        let options = context.pass.ffn_options();
        let reads_residual = moe.router.config().input == RouterSource::Residual;
        let router_x_td = reads_residual.then_some(residual_td);
        let Some(places) = context.real_places else {
            let (token_ids_t, sequences) = (context.token_ids_t, Sequences::OfLen(context.seq_len));
            return moe.forward(MoeInput {
                x_td: normed_td,
                router_x_td,
                token_ids_t,
                sequences,
                pass,
                options,
            });
        };
        let [num_places, _] = normed_td.dims();
        let output = moe.forward(MoeInput {
            x_td: places.gathered(normed_td),
            router_x_td: router_x_td.map(|x_td| places.gathered(x_td)),
            token_ids_t: places.token_ids(),
            sequences: Sequences::OfLens(places.seq_lens()),
            pass,
            options,
        });
        MoeOutput { hidden_td: places.spread(output.hidden_td, num_places), ..output }
    }

    /// The block with its mixture replaced, if it has one.
    pub(super) fn with_moe(self, replaced: impl FnOnce(MoeLayer) -> MoeLayer) -> Self {
        let ffn = self.ffn.map(|ffn| match ffn {
            FeedForward::Moe(moe) => FeedForward::Moe(replaced(moe)),
            other @ (FeedForward::Dense(_) | FeedForward::BlockSparse(_)) => other,
        });
        Self { ffn, ..self }
    }

    /// The mixture, if this block has one.
    pub fn moe(&self) -> Option<&MoeLayer> {
        match self.ffn.as_ref()? {
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

/// The rows normalised, where there is a norm.
fn normed(norm: Option<&Norm>, x_td: Tensor<2>) -> Tensor<2> {
    match norm {
        Some(norm) => norm.forward(x_td),
        None => x_td,
    }
}

/// A block whose matrices have the roles that `role` gives.
fn dense_ffn(
    (model, role): (&ModelSpec, impl Fn(FfnMatrix) -> Role),
    spec: &DenseSpec,
    key: &str,
    source: &ParameterSource,
) -> DenseFfn {
    let DenseSpec { activation, d_ff, bias } = *spec;
    let (d, gated) = (model.d_model, activation.is_gated());
    let std = |matrix| model.initial_std(role(matrix));
    let weights = DenseFfnWeights {
        w_gate_df: gated.then(|| source.normal(&format!("{key}.gate"), [d, d_ff], std(FfnMatrix::Gate))),
        w_up_df: source.normal(&format!("{key}.up"), [d, d_ff], std(FfnMatrix::Up)),
        w_down_fd: source.normal(&format!("{key}.down"), [d_ff, d], std(FfnMatrix::Down)),
        b_gate_f: (bias && gated).then(|| source.zeros(d_ff)),
        b_up_f: bias.then(|| source.zeros(d_ff)),
        b_down_d: bias.then(|| source.zeros(d)),
    };
    DenseFfn::new(weights, activation)
}

fn block_sparse_ffn(
    model: &ModelSpec,
    spec: &BlockSparseSpec,
    layer: usize,
    key: &str,
    source: &ParameterSource,
) -> BlockSparseFfn {
    let BlockSparseSpec { activation, matrices } = spec;
    let shape = [matrices.num_blocks(model.d_model), matrices.block, matrices.block];
    let blocks = |name: &str, std: f64| source.normal(&format!("{key}.{name}"), shape, std);
    let weights = BlockSparseWeights {
        gate_nbb: activation.is_gated().then(|| blocks("gate", model.init.std)),
        up_nbb: blocks("up", model.init.std),
        down_nbb: blocks("down", model.residual_std()),
    };
    BlockSparseFfn::new(weights, matrices.topologies(model.d_model, layer), *activation)
}

/// A mixture of `experts`, whose gate has so many columns: one for each expert, or for each slot.
fn moe_layer(
    model: &ModelSpec,
    experts: &ExpertsSpec,
    (router_spec, num_columns): (&RouterSpec, usize),
    capacity: Option<&CapacityConfig>,
    key: &str,
    source: &ParameterSource,
) -> MoeLayer {
    let (d, e, f) = (model.d_model, experts.num_experts, experts.d_expert);
    let std = |matrix| model.initial_std(Role::Expert(matrix));
    let activation = experts.activation;
    let router = router(&router_spec.config, [d, e, num_columns], model, &format!("{key}.router"), source);
    let weights = ExpertsWeights {
        w_gate_edf: activation
            .is_gated()
            .then(|| source.normal_per_expert(&format!("{key}.gate"), [e, d, f], std(FfnMatrix::Gate))),
        w_up_edf: source.normal_per_expert(&format!("{key}.up"), [e, d, f], std(FfnMatrix::Up)),
        w_down_efd: source.normal_per_expert(&format!("{key}.down"), [e, f, d], std(FfnMatrix::Down)),
        biases: experts.bias.then(|| ExpertBiases {
            b_gate_ef: activation.is_gated().then(|| source.zeros_per_expert(e, f)),
            b_up_ef: source.zeros_per_expert(e, f),
            b_down_ed: source.zeros_per_expert(e, d),
        }),
    };
    let shared_expert = experts.shared.as_ref().map(|shared| {
        let dense = DenseSpec { activation, d_ff: shared.d_expert, bias: shared.bias };
        dense_ffn((model, Role::Shared), &dense, &format!("{key}.shared_expert"), source)
    });
    let layer = MoeLayer::new(router, Experts::new(weights, activation), shared_expert, capacity.cloned());
    match experts.shared.as_ref().is_some_and(|shared| shared.is_gated) {
        true => {
            let std = model.initial_std(Role::SharedGate);
            layer.with_shared_gate(source.normal(&format!("{key}.shared_gate"), [d, 1], std))
        }
        false => layer,
    }
}

/// A router at its initial values. The noise's gate starts at zero (arXiv:1701.06538, appendix A),
/// the bias too.
fn router(
    config: &RouterConfig,
    [d, e, num_columns]: [usize; 3],
    model: &ModelSpec,
    key: &str,
    source: &ParameterSource,
) -> Router {
    let std = |part| model.initial_std(Role::Router(part)) * config.init_scale;
    let weights = GateWeights {
        weight_de: (config.learns() && config.cosine.is_none())
            .then(|| source.normal(key, [d, num_columns], std(RouterPart::Weight))),
        logit_bias_e: config.gate_bias.then(|| source.zeros(e)),
        noise_weight_de: matches!(config.selection, Selection::Noisy(_))
            .then(|| Tensor::zeros([d, e], source.device())),
        cosine: config.cosine.as_ref().map(|cosine| CosineWeights {
            projection_dc: source.normal(
                &format!("{key}.projection"),
                [d, cosine.d_projection],
                std(RouterPart::Cosine(CosinePart::Projection)),
            ),
            directions_ce: source.normal(
                &format!("{key}.directions"),
                [cosine.d_projection, e],
                std(RouterPart::Cosine(CosinePart::Directions)),
            ),
            log_scale_1: source.zeros(1) - cosine.temperature.ln(),
        }),
        bias_e: config.bias.as_ref().map(|_| source.zeros(e)),
    };
    config.init(e, weights)
}
