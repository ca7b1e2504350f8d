//! Queries, keys and values through latent vectors (multi-head latent attention, DeepSeek-V2,
//! arXiv:2405.04434, section 2.1).
//!
//! Shape letters: b batch, s sequence, t = b * s tokens, d model width, h heads, l width of a latent
//! vector, n channels of a head that are not turned, r those that are, v width of a head of values.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use switchyard_kernels::{CausalMask, Heads, RotaryTable, causal_attention};

use super::projection::{Projection, normalise};
use crate::{AttentionPart, AttentionSpec, LatentConfig, ModelSpec, ParameterSource};

/// Added to the mean square of latent vectors, whatever the model's other norms have.
const EPSILON: f64 = 1e-6;

/// Attention of which keys and values are made of a narrow latent vector.
#[derive(Module, Debug)]
pub struct LatentAttention {
    query_latent: Option<Projection>,
    query_latent_norm_l: Option<Param<Tensor<1>>>,
    query: Projection,
    key_value_latent: Projection,
    key_value_latent_norm_l: Param<Tensor<1>>,
    key_value: Projection,
    output: Projection,
    /// A score of each head that has no value, `[h]`.
    sinks_h: Option<Param<Tensor<1>>>,
    #[module(skip)]
    heads: Heads,
    #[module(skip)]
    d_head: usize,
    #[module(skip)]
    widths: LatentConfig,
}

impl LatentAttention {
    pub(super) fn new(
        (spec, widths): (&AttentionSpec, &LatentConfig),
        heads: Heads,
        model: &ModelSpec,
        key: &str,
        source: &ParameterSource,
    ) -> Self {
        let LatentConfig { d_query, d_key_value, d_rope, d_value } = *widths;
        let (d, h, std) = (model.d_model, spec.num_heads, model.init.std);
        let projection =
            |name: &str, shape, bias| Projection::new(&format!("{key}.{name}"), shape, std, bias, source);
        let (bias_query, bias_kv) =
            (spec.has_bias(AttentionPart::QueryLatent), spec.has_bias(AttentionPart::KeyValueLatent));
        Self {
            query_latent: d_query.map(|l| projection("query_latent", [d, l], bias_query)),
            query_latent_norm_l: d_query.map(|l| Param::from_tensor(source.ones(l))),
            query: projection("query", [d_query.unwrap_or(d), spec.query_width()], false),
            key_value_latent: projection("key_value_latent", [d, d_key_value + d_rope], bias_kv),
            key_value_latent_norm_l: Param::from_tensor(source.ones(d_key_value)),
            key_value: projection("key_value", [d_key_value, h * (spec.d_head - d_rope + d_value)], false),
            output: Projection::new(
                &format!("{key}.output"),
                [spec.mixed_width(), d],
                model.residual_std(),
                spec.has_bias(AttentionPart::Output),
                source,
            ),
            sinks_h: spec.sinks.then(|| Param::from_tensor(source.zeros(h))),
            heads,
            d_head: spec.d_head,
            widths: widths.clone(),
        }
    }

    pub(super) fn forward(
        &self,
        x_td: Tensor<2>,
        rotary: Option<&RotaryTable>,
        mask: &CausalMask,
    ) -> Tensor<2> {
        let [q_tq, k_tg, v_tv] = self.queries_keys_values(x_td, rotary, mask.seq_len());
        let sinks_h = self.sinks_h.as_ref().map(Param::val);
        // They are turned already: only some of their channels are.
        self.output.forward(causal_attention(q_tq, k_tg, v_tv, sinks_h, self.heads, mask, None))
    }

    /// Queries and keys, `[t, h * (n + r)]`, turned, and values, `[t, h * v]`.
    fn queries_keys_values(
        &self,
        x_td: Tensor<2>,
        rotary: Option<&RotaryTable>,
        seq_len: usize,
    ) -> [Tensor<2>; 3] {
        let LatentConfig { d_key_value: l, d_rope: r, d_value: v, .. } = self.widths;
        let ([t, _], h, n) = (x_td.dims(), self.heads.num_heads, self.d_head - self.widths.d_rope);
        let turned = |x_thr: Tensor<3>| match rotary {
            Some(table) => table.turn(x_thr, seq_len),
            None => x_thr,
        };
        let q_thc = self.queries(x_td.clone()).reshape([t, h, n + r]);
        let q_thr = turned(q_thc.clone().narrow(2, n, r));
        let q_thc = Tensor::cat(vec![q_thc.narrow(2, 0, n), q_thr], 2);

        let compressed = self.key_value_latent.forward(x_td);
        let k_t1r = turned(compressed.clone().narrow(1, l, r).reshape([t, 1, r]));
        let latent_tl = normalise(compressed.narrow(1, 0, l), self.key_value_latent_norm_l.val(), EPSILON);
        let kv_thc = self.key_value.forward(latent_tl).reshape([t, h, n + v]);
        let k_thc = Tensor::cat(vec![kv_thc.clone().narrow(2, 0, n), k_t1r.expand([t, h, r])], 2);
        let v_thc = kv_thc.narrow(2, n, v);
        [q_thc.reshape([t, h * (n + r)]), k_thc.reshape([t, h * (n + r)]), v_thc.reshape([t, h * v])]
    }

    fn queries(&self, x_td: Tensor<2>) -> Tensor<2> {
        match (&self.query_latent, &self.query_latent_norm_l) {
            (Some(latent), Some(norm_l)) => {
                self.query.forward(normalise(latent.forward(x_td), norm_l.val(), EPSILON))
            }
            _ => self.query.forward(x_td),
        }
    }
}
