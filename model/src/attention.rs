//! Grouped-query causal self-attention.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use switchyard_kernels::{CausalMask, Heads, RotaryTable, causal_attention, linear, rms_norm};

use crate::{AttentionSpec, ModelSpec, ParameterSource, PositionKind, QkNorm};

/// A projection `x W + b`.
#[derive(Module, Debug)]
struct Projection {
    weight_io: Param<Tensor<2>>,
    bias_o: Option<Param<Tensor<1>>>,
}

impl Projection {
    fn new(key: &str, shape: [usize; 2], std: f64, bias: bool, source: &ParameterSource) -> Self {
        Self {
            weight_io: Param::from_tensor(source.normal(key, shape, std)),
            bias_o: bias.then(|| Param::from_tensor(source.zeros(shape[1]))),
        }
    }

    fn forward(&self, x_ti: Tensor<2>) -> Tensor<2> {
        linear(x_ti, self.weight_io.val(), self.bias_o.as_ref().map(Param::val))
    }
}

/// Multi-head attention with grouped key/value heads, optional QK-norm and rotary positions.
#[derive(Module, Debug)]
pub struct Attention {
    query: Projection,
    key: Projection,
    value: Projection,
    output: Projection,
    query_norm_k: Option<Param<Tensor<1>>>,
    key_norm_k: Option<Param<Tensor<1>>>,
    #[module(skip)]
    heads: Heads,
    #[module(skip)]
    qk_norm: QkNorm,
}

impl Attention {
    /// The attention `spec` of one layer of `model`; `key` is its place there, such as
    /// `blocks.0.attention`.
    pub fn new(spec: &AttentionSpec, model: &ModelSpec, key: &str, source: &ParameterSource) -> Self {
        let (d, d_q, d_kv) = (model.d_model, spec.query_width(), spec.key_width());
        let projection =
            |name: &str, shape, std| Projection::new(&format!("{key}.{name}"), shape, std, spec.bias, source);
        let scale = |width| match spec.qk_norm.scale_width(width, spec.d_head) {
            0 => None,
            width => Some(Param::from_tensor(source.ones(width))),
        };
        Self {
            query: projection("query", [d, d_q], model.init.std),
            key: projection("key", [d, d_kv], model.init.std),
            value: projection("value", [d, d_kv], model.init.std),
            output: projection("output", [d_q, d], model.residual_std()),
            query_norm_k: scale(d_q),
            key_norm_k: scale(d_kv),
            heads: Heads {
                num_heads: spec.num_heads,
                num_kv_heads: spec.num_kv_heads,
                alibi: matches!(model.position, PositionKind::Alibi),
            },
            qk_norm: spec.qk_norm,
        }
    }

    /// What each token takes from the tokens that `mask` lets it see.
    ///
    /// # Shapes
    /// - `x_td`: `[batch * seq, d_model]`; returns the same
    pub fn forward(&self, x_td: Tensor<2>, rotary: Option<&RotaryTable>, mask: &CausalMask) -> Tensor<2> {
        let normalised = |x_to: Tensor<2>, scale_k: Option<&Param<Tensor<1>>>| match scale_k {
            Some(scale_k) => self.normalise(x_to, scale_k.val()),
            None => x_to,
        };
        let q_tq = normalised(self.query.forward(x_td.clone()), self.query_norm_k.as_ref());
        let k_tg = normalised(self.key.forward(x_td.clone()), self.key_norm_k.as_ref());
        let v_tg = self.value.forward(x_td);
        self.output.forward(causal_attention(q_tq, k_tg, v_tg, self.heads, mask, rotary))
    }

    /// Each row, in pieces as wide as the scale, RMS-normalised.
    fn normalise(&self, x_to: Tensor<2>, scale_k: Tensor<1>) -> Tensor<2> {
        let Some(settings) = self.qk_norm.settings() else { return x_to };
        let ([t, width], [piece]) = (x_to.dims(), scale_k.dims());
        let pieces = x_to.reshape([t * width / piece, piece]);
        rms_norm(pieces, scale_k, settings.epsilon).reshape([t, width])
    }
}
