//! Queries, keys and values through latent vectors (multi-head latent attention, DeepSeek-V2,
//! arXiv:2405.04434, section 2.1).
//!
//! Shape letters: b batch, s sequence, t = b * s tokens, d model width, h heads, l width of a latent
//! vector, n channels of a head that are not turned, r those that are, v width of a head of values.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use switchyard_kernels::{CausalMask, Compute, Heads, KeyValueCache, RotaryTable, causal_attention};

use super::cache::{AttentionCache, CachedSequence, LatentCache};
use super::logits::max_logits;
use super::projection::{Projection, normalise};
use crate::{
    Affine, AttentionPart, AttentionSpec, BlockContext, LatentConfig, ModelSpec, ParameterSource, Role,
};

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
        let (d, h) = (model.d_model, spec.num_heads);
        let projection = |name: &str, part, shape| {
            let std = model.initial_std(Role::Attention(part, Affine::Weight));
            Projection::new(&format!("{key}.{name}"), shape, std, spec.has_bias(part), source)
        };
        Self {
            query_latent: d_query.map(|l| projection("query_latent", AttentionPart::QueryLatent, [d, l])),
            query_latent_norm_l: d_query.map(|l| Param::from_tensor(source.ones(l))),
            query: projection("query", AttentionPart::Query, [d_query.unwrap_or(d), spec.query_width()]),
            key_value_latent: projection(
                "key_value_latent",
                AttentionPart::KeyValueLatent,
                [d, d_key_value + d_rope],
            ),
            key_value_latent_norm_l: Param::from_tensor(source.ones(d_key_value)),
            key_value: projection(
                "key_value",
                AttentionPart::KeyValue,
                [d_key_value, h * (spec.d_head - d_rope + d_value)],
            ),
            output: projection("output", AttentionPart::Output, [spec.mixed_width(), d]),
            sinks_h: spec.sinks.then(|| Param::from_tensor(source.zeros(h))),
            heads,
            d_head: spec.d_head,
            widths: widths.clone(),
        }
    }

    pub(super) fn forward(
        &self,
        x_td: Tensor<2>,
        context: &BlockContext<'_>,
    ) -> (Tensor<2>, Option<Tensor<1>>) {
        let BlockContext { rotary, mask, pass, .. } = *context;
        let compute = pass.compute();
        let compressed = self.compress(x_td.clone(), rotary, [0, mask.seq_len()], compute);
        let q_tq = self.turned_queries(x_td, rotary, [0, mask.seq_len()], compute);
        let [k_tg, v_tv] = self.expand(compressed, compute);
        // They are turned already.
        let max_logits_h = max_logits([&q_tq, &k_tg], self.heads, context, None);
        (self.attend([q_tq, k_tg, v_tv], mask, compute), max_logits_h)
    }

    pub(super) fn forward_and_keep(
        &self,
        x_td: Tensor<2>,
        (rotary, mask): (Option<&RotaryTable>, &CausalMask),
        cache: LatentCache,
    ) -> (Tensor<2>, LatentCache) {
        let new = self.compress(x_td.clone(), rotary, [0, mask.seq_len()], Compute::F32);
        let (cache, compressed) = cache.append(new);
        let q_tq = self.turned_queries(x_td, rotary, [0, mask.seq_len()], Compute::F32);
        let [k_tg, v_tv] = self.expand(compressed, Compute::F32);
        (self.attend([q_tq, k_tg, v_tv], mask, Compute::F32), cache)
    }

    pub(super) fn forward_cached(
        &self,
        x_bd: Tensor<2>,
        sequences: Vec<CachedSequence<'_>>,
    ) -> (Tensor<2>, Vec<AttentionCache>) {
        let attend = |(row, CachedSequence { cache, rotary }): (usize, CachedSequence<'_>)| {
            let AttentionCache::Latent(cache) = cache else { panic!("a cache of keys and values") };
            let (mixed_1v, cache) = self.attend_last(x_bd.clone().narrow(0, row, 1), rotary, cache);
            (mixed_1v, AttentionCache::Latent(cache))
        };
        let (mixed, caches) = sequences.into_iter().enumerate().map(attend).unzip();
        (self.output.forward(Tensor::cat(mixed, 0), Compute::F32), caches)
    }

    /// What the last token takes from all, `[1, h * v]`. Keys and values of all tokens are made
    /// anew.
    fn attend_last(
        &self,
        x_1d: Tensor<2>,
        rotary: Option<&RotaryTable>,
        cache: LatentCache,
    ) -> (Tensor<2>, LatentCache) {
        let position = cache.num_tokens();
        let new = self.compress(x_1d.clone(), rotary, [position, 1], Compute::F32);
        let (cache, compressed) = cache.append(new);
        let [k_ng, v_nv] = self.expand(compressed, Compute::F32);
        let q_1q = self.turned_queries(x_1d, rotary, [position, 1], Compute::F32);
        let (h, device) = (self.heads.num_heads, k_ng.device());
        let key_values = KeyValueCache::new(h, [self.d_head, self.widths.d_value], position + 1, &device);
        // They are turned already.
        let key_values = key_values.append(k_ng, v_nv, None);
        let sinks_h = self.sinks_h.as_ref().map(Param::val);
        (key_values.attend(q_1q, sinks_h, self.heads, None), cache)
    }

    /// The output from queries, keys and values.
    fn attend(&self, [q_tq, k_tg, v_tv]: [Tensor<2>; 3], mask: &CausalMask, compute: Compute) -> Tensor<2> {
        let sinks_h = self.sinks_h.as_ref().map(Param::val);
        // They are turned already: only some of their channels are.
        let mixed_tv = causal_attention(q_tq, k_tg, v_tv, sinks_h, self.heads, mask, None, compute);
        self.output.forward(mixed_tv, compute)
    }

    /// Queries, `[t, h * (n + r)]`, of sequences of `seq_len` tokens from position `first` on.
    fn turned_queries(
        &self,
        x_td: Tensor<2>,
        rotary: Option<&RotaryTable>,
        [first, seq_len]: [usize; 2],
        compute: Compute,
    ) -> Tensor<2> {
        let ([t, _], h, r) = (x_td.dims(), self.heads.num_heads, self.widths.d_rope);
        let n = self.d_head - r;
        let q_thc = self.queries(x_td, compute).reshape([t, h, n + r]);
        let q_thr = turned(q_thc.clone().narrow(2, n, r), rotary, [first, seq_len]);
        Tensor::cat(vec![q_thc.narrow(2, 0, n), q_thr], 2).reshape([t, h * (n + r)])
    }

    /// Latent vectors, `[t, l]`, normalised, and the shared channels of keys, `[t, r]`, turned.
    fn compress(
        &self,
        x_td: Tensor<2>,
        rotary: Option<&RotaryTable>,
        [first, seq_len]: [usize; 2],
        compute: Compute,
    ) -> [Tensor<2>; 2] {
        let ([t, _], &LatentConfig { d_key_value: l, d_rope: r, .. }) = (x_td.dims(), &self.widths);
        let compressed = self.key_value_latent.forward(x_td, compute);
        let k_t1r = turned(compressed.clone().narrow(1, l, r).reshape([t, 1, r]), rotary, [first, seq_len]);
        let latent_tl = normalise(compressed.narrow(1, 0, l), self.key_value_latent_norm_l.val(), EPSILON);
        [latent_tl, k_t1r.reshape([t, r])]
    }

    /// Keys, `[t, h * (n + r)]`, and values, `[t, h * v]`.
    fn expand(&self, [latent_tl, k_tr]: [Tensor<2>; 2], compute: Compute) -> [Tensor<2>; 2] {
        let LatentConfig { d_rope: r, d_value: v, .. } = self.widths;
        let ([t, _], h, n) = (latent_tl.dims(), self.heads.num_heads, self.d_head - r);
        let kv_thc = self.key_value.forward(latent_tl, compute).reshape([t, h, n + v]);
        let k_thr = k_tr.reshape([t, 1, r]).expand([t, h, r]);
        let k_thc = Tensor::cat(vec![kv_thc.clone().narrow(2, 0, n), k_thr], 2);
        let v_thc = kv_thc.narrow(2, n, v);
        [k_thc.reshape([t, h * (n + r)]), v_thc.reshape([t, h * v])]
    }

    fn queries(&self, x_td: Tensor<2>, compute: Compute) -> Tensor<2> {
        match (&self.query_latent, &self.query_latent_norm_l) {
            (Some(latent), Some(norm_l)) => {
                self.query.forward(normalise(latent.forward(x_td, compute), norm_l.val(), EPSILON), compute)
            }
            _ => self.query.forward(x_td, compute),
        }
    }
}

/// Every head turned by the position of its token, in sequences of `seq_len` tokens from position
/// `first` on.
fn turned(x_thr: Tensor<3>, rotary: Option<&RotaryTable>, [first, seq_len]: [usize; 2]) -> Tensor<3> {
    match rotary {
        Some(table) => table.turn_from(x_thr, first, seq_len),
        None => x_thr,
    }
}
