//! The whole network: embedding, blocks, final norm, head. Also that of LSTM layers: what mixes
//! tokens is a matter of the blocks.

mod backward;
mod cached;
mod provenance;

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use switchyard_experts::{MoeAux, MoeLayer};
use switchyard_kernels::{CausalMask, Compute, HeadLoss, HeadLossOptions, RotaryTable, head_loss, linear};
use switchyard_router::{BalanceCount, PooledBalance};

use crate::{
    Block, BlockContext, BlockOutput, Embedding, MixerSpec, ModelInput, ModelSpec, ModelState, Norm,
    ParameterSource, Pass, PositionKind, Role, rope_scaling::frequencies,
};

/// A target that does not count: of padding.
pub const IGNORED_TARGET: i32 = -1;

pub use backward::{Streams, Tape};
pub use cached::{CachedOutput, SequenceCache};

/// What a forward pass returns; nothing else leaves the model.
#[derive(Debug)]
pub struct ModelOutput {
    /// `[batch * seq, d_model]` what the head reads, see [`Transformer::logits`] and
    /// [`Transformer::head_loss`].
    pub hidden_td: Tensor<2>,
    /// Losses and statistics of each MoE layer, with the layer's index.
    pub moe_layers: Vec<(usize, MoeAux)>,
    /// What the tokens leave to those that come next, detached; `None` unless the model is recurrent.
    pub state: Option<ModelState>,
    /// The largest logit of each attention head, `[num_heads]`, with the layer's index; empty unless
    /// the pass measures them.
    pub max_logits: Vec<(usize, Tensor<1>)>,
}

/// A decoder-only Transformer language model, or one of LSTM layers.
#[derive(Module, Debug)]
pub struct Transformer {
    embedding: Embedding,
    blocks: Vec<Block>,
    /// `None` where each block ends with a norm, or nothing has norms.
    final_norm: Option<Norm>,
    head_dv: Option<Param<Tensor<2>>>,
    /// Bias of the head's scores, `[v]`.
    head_bias_v: Option<Param<Tensor<1>>>,
    #[module(skip)]
    spec: ModelSpec,
}

impl Transformer {
    /// The network at its initial values, a pure function of `seed` and `spec`.
    pub fn new(spec: &ModelSpec, seed: u64, device: &Device) -> Self {
        Self::with_parameters_of(spec, &ParameterSource::new(seed, device))
    }

    /// The network's parameters by name and shape, see [`ParameterSource::outline`]: for questions
    /// about models of any size, not for passes.
    pub fn outline(spec: &ModelSpec) -> Self {
        Self::with_parameters_of(spec, &ParameterSource::outline())
    }

    fn with_parameters_of(spec: &ModelSpec, source: &ParameterSource) -> Self {
        let head = || {
            let shape = [spec.d_model, spec.vocab_size];
            Param::from_tensor(source.normal("head", shape, spec.initial_std(Role::Head)))
        };
        Self {
            embedding: Embedding::new(spec, source),
            blocks: (0..spec.num_layers()).map(|layer| Block::new(spec, layer, source)).collect(),
            final_norm: spec.has_final_norm().then(|| Norm::new(spec.norm, spec.d_model, source)).flatten(),
            head_dv: (!spec.tie_embeddings).then(head),
            head_bias_v: spec.head_bias.then(|| Param::from_tensor(source.zeros(spec.vocab_size))),
            spec: spec.clone(),
        }
    }

    /// The specification that the network was made from.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The normalised hidden rows at every position, with the MoE layers' losses and statistics.
    ///
    /// # Panics
    /// If the sequence is longer than the positions allow.
    pub fn forward(&self, input: &ModelInput, pass: Pass) -> ModelOutput {
        self.run(input, pass, |_| ()).0
    }

    /// As [`Transformer::forward`], and the residual stream before each block and after the last.
    ///
    /// # Panics
    /// As [`Transformer::forward`].
    pub fn forward_with_streams(&self, input: &ModelInput, pass: Pass) -> (Vec<Tensor<2>>, ModelOutput) {
        let mut streams = Vec::with_capacity(self.blocks.len() + 1);
        let (output, _) = self.run(input, pass, |x_td| streams.push(x_td.clone()));
        (streams, output)
    }

    /// The pass, each residual stream shown on the way, and the assignments of all layers together,
    /// where losses go by them.
    fn run(
        &self,
        input: &ModelInput,
        pass: Pass,
        mut show: impl FnMut(&Tensor<2>),
    ) -> (ModelOutput, Vec<u64>) {
        self.in_context(input, pass, |context| {
            let mut x_td = self.embed(input, pass);
            let (mut moe_layers, mut states, mut max_logits) = (Vec::new(), Vec::new(), Vec::new());
            for (layer, block) in self.blocks.iter().enumerate() {
                show(&x_td);
                let BlockOutput { x_td: next_td, aux, state, max_logits_h } = block.forward(x_td, context);
                x_td = next_td;
                moe_layers.extend(aux.map(|aux| (layer, aux)));
                states.extend(state);
                max_logits.extend(max_logits_h.map(|max_logits_h| (layer, max_logits_h)));
            }
            show(&x_td);
            let pooled_loads = balance_all_layers(&mut moe_layers);
            let state = self.spec.is_recurrent().then_some(ModelState { layers: states });
            (ModelOutput { hidden_td: self.head_input(x_td), moe_layers, state, max_logits }, pooled_loads)
        })
    }

    /// Calls `work` with the context that all blocks share.
    fn in_context<R>(
        &self,
        input: &ModelInput,
        pass: Pass<'_>,
        work: impl FnOnce(&BlockContext<'_>) -> R,
    ) -> R {
        let [_, seq_len] = input.input_ids_bs.dims();
        let max = self.spec.num_positions();
        assert!(seq_len <= max, "a sequence of {seq_len} tokens, but the model's positions end at {max}");
        let device = input.input_ids_bs.device();
        let mask = match &input.segment_ids_bs {
            Some(segment_ids_bs) => CausalMask::within_documents(segment_ids_bs.clone()),
            None => CausalMask::new(seq_len, &device),
        };
        let rotary = self.rotary_angles(seq_len).map(|angles| angles.table(seq_len, &device));

        work(&BlockContext {
            rotary: rotary.as_ref(),
            mask: &mask,
            state: input.state.as_ref(),
            segment_ids_bs: input.segment_ids_bs.as_ref(),
            token_ids_t: &input.token_ids_t,
            real_places: input.real_places.as_ref(),
            seq_len,
            pass,
        })
    }

    /// What the head reads of the residual stream.
    fn head_input(&self, x_td: Tensor<2>) -> Tensor<2> {
        match &self.final_norm {
            Some(norm) => norm.forward(x_td),
            None => x_td,
        }
    }

    fn embed(&self, input: &ModelInput, pass: Pass<'_>) -> Tensor<2> {
        let x_td = self.embedding.forward(input.input_ids_bs.clone());
        match pass.noise() {
            Some(noise) => noise.dropout("embedding", x_td, self.spec.dropout),
            None => x_td,
        }
    }

    /// The mixture of a layer; `None` if the layer is dense or does not exist.
    pub fn moe(&self, layer: usize) -> Option<&MoeLayer> {
        self.blocks.get(layer).and_then(Block::moe)
    }

    /// Every mixture with its layer's index.
    pub fn moe_layers(&self) -> impl Iterator<Item = (usize, &MoeLayer)> {
        self.blocks.iter().enumerate().filter_map(|(layer, block)| Some((layer, block.moe()?)))
    }

    /// The network with the expert biases updated by what a whole step's tokens said about each
    /// layer; to be called once per optimizer step. Routers without a bias stay as they are.
    pub fn with_balanced_routers(self, balance: &BTreeMap<usize, BalanceCount>) -> Self {
        if balance.is_empty() {
            return self;
        }
        self.with_mixtures(|layer, moe| match balance.get(&layer) {
            Some(count) => moe.rebalanced(count),
            None => moe,
        })
    }

    /// The network with each mixture replaced by what `replaced` makes of it and its layer's index.
    pub fn with_mixtures(self, mut replaced: impl FnMut(usize, MoeLayer) -> MoeLayer) -> Self {
        let block = |(layer, block): (usize, Block)| block.with_moe(|moe| replaced(layer, moe));
        Self { blocks: self.blocks.into_iter().enumerate().map(block).collect(), ..self }
    }

    /// Whether experts are spread over ranks: a forward pass is then a collective.
    pub fn is_over_ranks(&self) -> bool {
        self.moe_layers().any(|(_, moe)| moe.experts.ranks().is_some())
    }

    /// Scores of the token that comes next after each of these rows.
    ///
    /// # Shapes
    /// - `hidden_td`: `[num_rows, d_model]`, rows of [`ModelOutput::hidden_td`]; returns
    ///   `[num_rows, vocab_size]`
    pub fn logits(&self, hidden_td: Tensor<2>) -> Tensor<2> {
        let multiplier = self.spec.multipliers.logits;
        let scaled = |logits_tv: Tensor<2>| match multiplier {
            1.0 => logits_tv,
            _ => logits_tv.mul_scalar(multiplier),
        };
        let bias_v = self.head_bias_v.as_ref().map(Param::val);
        scaled(linear(hidden_td, self.head_matrix(), bias_v, Compute::F32))
    }

    /// The loss of these rows' scores against the tokens that came next; the scores are not kept.
    /// Products are computed in `compute`.
    ///
    /// # Shapes
    /// - `hidden_td`: `[num_rows, d_model]`; `target_ids_t`: `[num_rows]`, of which those that are
    ///   [`IGNORED_TARGET`] do not count
    ///
    /// # Panics
    /// If another target lies outside the vocabulary.
    pub fn head_loss(
        &self,
        hidden_td: Tensor<2>,
        target_ids_t: Tensor<1, Int>,
        z_loss_weight: Option<f64>,
        compute: Compute,
    ) -> HeadLoss {
        let options = HeadLossOptions { ignored_target: Some(IGNORED_TARGET.into()), z_loss_weight, compute };
        let (rows, matrix) = self.head_factors(hidden_td);
        head_loss(rows, matrix, target_ids_t, options)
    }

    /// Two factors whose product are the scores of these rows. A bias is one more row of the matrix,
    /// and one more column of ones.
    fn head_factors(&self, hidden_td: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        let matrix_dv = self.head_matrix();
        let ([t, _], [_, v]) = (hidden_td.dims(), matrix_dv.dims());
        let (rows, matrix) = match &self.head_bias_v {
            Some(bias_v) => {
                let ones_t1 = Tensor::ones([t, 1], (&hidden_td.device(), hidden_td.dtype()));
                let rows = Tensor::cat(vec![hidden_td, ones_t1], 1);
                (rows, Tensor::cat(vec![matrix_dv, bias_v.val().reshape([1, v])], 0))
            }
            None => (hidden_td, matrix_dv),
        };
        let multiplier = self.spec.multipliers.logits;
        (if multiplier == 1.0 { rows } else { rows.mul_scalar(multiplier) }, matrix)
    }

    fn head_matrix(&self) -> Tensor<2> {
        match &self.head_dv {
            Some(head_dv) => head_dv.val(),
            None => self.embedding.head_dv(),
        }
    }

    /// How heads are turned in a sequence of `seq_len` tokens; `None` without a rotary embedding.
    fn rotary_angles(&self, seq_len: usize) -> Option<RotaryAngles> {
        let PositionKind::Rope { theta, d_rotary, scaling } = &self.spec.position else { return None };
        // Every layer has heads of the same width: the configuration knows one.
        let MixerSpec::Attention(attention) = &self.spec.layers.first()?.mixer else { return None };
        let (all, theta) = (attention.d_rotary(), *theta);
        let turned = d_rotary.unwrap_or(all);
        let (mut frequencies, factor) = match scaling {
            Some(scaling) => (scaling.frequencies(turned, theta, seq_len), scaling.attention_factor(seq_len)),
            None => (frequencies(turned, theta), 1.0),
        };
        // The pairs that are not turned.
        frequencies.resize(all / 2, 0.0);
        Some(RotaryAngles { frequencies, factor })
    }
}

/// What a table of angles is made of.
#[derive(Debug, Clone, PartialEq)]
struct RotaryAngles {
    frequencies: Vec<f64>,
    factor: f64,
}

impl RotaryAngles {
    fn table(&self, num_positions: usize, device: &Device) -> RotaryTable {
        RotaryTable::new(num_positions, &self.frequencies, self.factor, device)
    }
}

/// Gives each mixture its loss against the loads of all, where the configuration asks for it; returns
/// these.
fn balance_all_layers(moe_layers: &mut [(usize, MoeAux)]) -> Vec<u64> {
    let of_layers = moe_layers.iter_mut().enumerate();
    let (indices, pooled): (Vec<usize>, Vec<PooledBalance>) =
        of_layers.filter_map(|(index, (_, aux))| Some((index, aux.pooled_balance.take()?))).unzip();
    let loads = PooledBalance::loads(&pooled);
    for (index, layer) in indices.into_iter().zip(pooled) {
        moe_layers[index].1.losses.push(layer.loss(&loads));
    }
    loads
}
