//! One Transformer block: attention, then a feed-forward block, each on a normalised residual stream.

use burn::module::Module;
use burn::tensor::Tensor;
use switchyard_experts::{
    DenseFfn, DenseFfnWeights, Experts, ExpertsWeights, Mode, MoeAux, MoeConfig, MoeLayer, MoeOutput,
};
use switchyard_kernels::{CausalMask, RotaryTable};
use switchyard_router::jitter_noise;

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
    key: String,
}

impl FeedForward {
    /// The feed-forward block of layer `layer`, its values drawn under `key`.
    pub fn new(spec: &ModelSpec, layer: usize, key: &str, source: &ParameterSource) -> Self {
        match (spec.layers[layer], &spec.moe, spec.d_ff) {
            (LayerKind::Moe, Some(moe), _) => Self::Moe(moe_layer(spec, moe, key, source)),
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
            key,
        }
    }

    /// The residual stream after this block, and what the mixture learned, if there is one.
    ///
    /// # Shapes
    /// - `x_td`: `[batch * seq, d_model]`; returns the same
    pub fn forward(
        &self,
        x_td: Tensor<2>,
        rotary: Option<&RotaryTable>,
        mask: &CausalMask,
        pass: Pass,
    ) -> (Tensor<2>, Option<MoeAux>) {
        let normed_td = self.attention_norm.forward(x_td.clone());
        let mixed_td = self.attention.forward(normed_td, rotary, mask);
        let x_td = x_td + self.drop_out("attention", mixed_td, pass);

        let normed_td = self.ffn_norm.forward(x_td.clone());
        let (hidden_td, aux) = match &self.ffn {
            FeedForward::Dense(ffn) => (ffn.forward(normed_td), None),
            FeedForward::Moe(moe) => {
                let output = self.forward_moe(moe, normed_td, pass);
                (output.hidden_td, Some(output.aux))
            }
        };
        (x_td + self.drop_out("ffn", hidden_td, pass), aux)
    }

    fn forward_moe(&self, moe: &MoeLayer, x_td: Tensor<2>, pass: Pass) -> MoeOutput {
        let Pass::Training(noise) = pass else {
            return moe.forward(x_td, None, Mode::Evaluation);
        };
        let noise_td = moe.router.config().jitter.map(|jitter| {
            let mut generator = noise.generator(&format!("{}.router", self.key));
            jitter_noise(jitter, x_td.dims(), &mut generator, &x_td.device())
        });
        moe.forward(x_td, noise_td, Mode::Training)
    }

    fn drop_out(&self, site: &str, x_td: Tensor<2>, pass: Pass) -> Tensor<2> {
        match pass {
            Pass::Training(noise) => noise.dropout(&format!("{}.{site}", self.key), x_td, self.dropout),
            Pass::Evaluation => x_td,
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

fn moe_layer(spec: &ModelSpec, moe: &MoeConfig, key: &str, source: &ParameterSource) -> MoeLayer {
    let (d, std, e, f) = (spec.d_model, spec.init.std, moe.num_experts, moe.d_expert);
    let gated = spec.activation.is_gated();
    let router = moe.router.init(source.normal(&format!("{key}.router"), [d, e], std));
    let weights = ExpertsWeights {
        w_gate_edf: gated.then(|| source.normal_per_expert(&format!("{key}.gate"), [e, d, f], std)),
        w_up_edf: source.normal_per_expert(&format!("{key}.up"), [e, d, f], std),
        w_down_efd: source.normal_per_expert(&format!("{key}.down"), [e, f, d], spec.residual_std()),
    };
    let shared_expert = moe
        .d_shared_expert
        .map(|width| dense_ffn(spec, width, false, &format!("{key}.shared_expert"), source));
    MoeLayer::new(router, Experts::new(weights, spec.activation), shared_expert, moe.capacity.clone())
}
