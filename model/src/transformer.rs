//! The whole network: embedding, blocks, final norm, head.

mod provenance;

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use switchyard_experts::{MoeAux, MoeLayer};
use switchyard_kernels::{CausalMask, HeadLoss, HeadLossOptions, RotaryTable, head_loss};
use switchyard_router::BalanceCount;

use crate::{
    Block, BlockContext, Embedding, MixerSpec, ModelInput, ModelSpec, Norm, ParameterSource, Pass,
    PositionKind,
};

/// What a forward pass returns; nothing else leaves the model.
#[derive(Debug)]
pub struct ModelOutput {
    /// `[batch * seq, d_model]` what the head reads, see [`Transformer::logits`] and
    /// [`Transformer::head_loss`].
    pub hidden_td: Tensor<2>,
    /// Losses and statistics of each MoE layer, with the layer's index.
    pub moe_layers: Vec<(usize, MoeAux)>,
}

/// A decoder-only Transformer language model.
#[derive(Module, Debug)]
pub struct Transformer {
    embedding: Embedding,
    blocks: Vec<Block>,
    final_norm: Norm,
    head_dv: Option<Param<Tensor<2>>>,
    #[module(skip)]
    spec: ModelSpec,
}

impl Transformer {
    /// The network at its initial values, a pure function of `seed` and `spec`.
    pub fn new(spec: &ModelSpec, seed: u64, device: &Device) -> Self {
        let source = ParameterSource::new(seed, device);
        let head =
            || Param::from_tensor(source.normal("head", [spec.d_model, spec.vocab_size], spec.init.std));
        Self {
            embedding: Embedding::new(spec, &source),
            blocks: (0..spec.num_layers()).map(|layer| Block::new(spec, layer, &source)).collect(),
            final_norm: Norm::new(spec.norm, spec.d_model, &source),
            head_dv: (!spec.tie_embeddings).then(head),
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
    /// If the sequence is longer than `max_seq_len`.
    pub fn forward(&self, input: &ModelInput, pass: Pass) -> ModelOutput {
        self.in_context(input, pass, |context| {
            let mut x_td = self.embed(input, pass);
            let mut moe_layers = Vec::new();
            for (layer, block) in self.blocks.iter().enumerate() {
                let (next_td, aux) = block.forward(x_td, context);
                x_td = next_td;
                moe_layers.extend(aux.map(|aux| (layer, aux)));
            }
            ModelOutput { hidden_td: self.final_norm.forward(x_td), moe_layers }
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
        let max = self.spec.max_seq_len;
        assert!(seq_len <= max, "a sequence of {seq_len} tokens, but the model's positions end at {max}");
        let device = input.input_ids_bs.device();
        let mask = match &input.segment_ids_bs {
            Some(segment_ids_bs) => CausalMask::within_documents(segment_ids_bs.clone()),
            None => CausalMask::new(seq_len, &device),
        };
        let rotary = self.rotary_table(seq_len, &device);

        work(&BlockContext {
            rotary: rotary.as_ref(),
            mask: &mask,
            token_ids_t: &input.token_ids_t,
            seq_len,
            pass,
        })
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
        let rebalanced = |(layer, block): (usize, Block)| match balance.get(&layer) {
            Some(count) => block.with_balanced_router(count),
            None => block,
        };
        Self { blocks: self.blocks.into_iter().enumerate().map(rebalanced).collect(), ..self }
    }

    /// Scores of the token that comes next after each of these rows.
    ///
    /// # Shapes
    /// - `hidden_td`: `[num_rows, d_model]`, rows of [`ModelOutput::hidden_td`]; returns
    ///   `[num_rows, vocab_size]`
    pub fn logits(&self, hidden_td: Tensor<2>) -> Tensor<2> {
        hidden_td.matmul(self.head_matrix())
    }

    /// The loss of these rows' scores against the tokens that came next; the scores are not kept.
    ///
    /// # Shapes
    /// - `hidden_td`: `[num_rows, d_model]`; `target_ids_t`: `[num_rows]`
    ///
    /// # Panics
    /// If a target lies outside the vocabulary.
    pub fn head_loss(
        &self,
        hidden_td: Tensor<2>,
        target_ids_t: Tensor<1, Int>,
        z_loss_weight: Option<f64>,
    ) -> HeadLoss {
        let options = HeadLossOptions { ignored_target: None, z_loss_weight };
        head_loss(hidden_td, self.head_matrix(), target_ids_t, options)
    }

    fn head_matrix(&self) -> Tensor<2> {
        match &self.head_dv {
            Some(head_dv) => head_dv.val(),
            None => self.embedding.head_dv(),
        }
    }

    fn rotary_table(&self, seq_len: usize, device: &Device) -> Option<RotaryTable> {
        match self.spec.position {
            PositionKind::Rope { theta } => {
                // Every layer has heads of the same width: the configuration knows one.
                let MixerSpec::Attention(attention) = &self.spec.layers.first()?.mixer;
                Some(RotaryTable::new(seq_len, attention.d_head, theta, device))
            }
            PositionKind::Learned | PositionKind::Sinusoidal | PositionKind::Alibi => None,
        }
    }
}
