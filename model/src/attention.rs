//! Causal self-attention: heads of queries on shared heads of keys and values, projected directly
//! or through a latent vector.
//!
//! Shape letters: b batch, s sequence, t = b * s tokens, d model width, h query heads, q all query
//! heads, g all key heads, v all value heads.

mod cache;
mod latent;
mod logits;
mod projection;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use switchyard_kernels::{Alibi, CausalMask, Compute, Heads, KeyValueCache, RotaryTable, causal_attention};

use crate::{
    Affine, AttentionPart, AttentionSpec, BlockContext, ModelSpec, ParameterSource, PositionKind, QkNorm,
    Role,
};
use logits::max_logits;
use projection::{Projection, normalise};

pub(crate) use cache::{AttentionCache, CachedSequence};
pub(crate) use latent::LatentAttention;

/// Attention of one layer.
#[derive(Module, Debug)]
pub enum Attention {
    /// Queries, keys and values by a projection each.
    Direct(DirectAttention),
    /// Through latent vectors.
    Latent(LatentAttention),
}

/// A projection each for queries, keys and values, optionally normalised and clamped.
#[derive(Module, Debug)]
pub struct DirectAttention {
    query: Projection,
    key: Projection,
    value: Projection,
    output: Projection,
    query_norm_k: Option<Param<Tensor<1>>>,
    key_norm_k: Option<Param<Tensor<1>>>,
    /// A score of each head that has no value, `[h]`.
    sinks_h: Option<Param<Tensor<1>>>,
    #[module(skip)]
    heads: Heads,
    #[module(skip)]
    qk_norm: QkNorm,
    #[module(skip)]
    clip: Option<f64>,
}

impl Attention {
    /// The attention `spec` of one layer of `model`; `key` is its place there, such as
    /// `blocks.0.attention`.
    pub fn new(spec: &AttentionSpec, model: &ModelSpec, key: &str, source: &ParameterSource) -> Self {
        let heads = heads(spec, model);
        match &spec.latent {
            Some(latent) => Self::Latent(LatentAttention::new((spec, latent), heads, model, key, source)),
            None => Self::Direct(DirectAttention::new(spec, heads, model, key, source)),
        }
    }

    /// What each token takes from the tokens that the context's mask lets it see, and the largest
    /// logit of each head, if the pass measures them.
    ///
    /// # Shapes
    /// - `x_td`: `[batch * seq, d_model]`; returns the same, and `[num_heads]`
    pub fn forward(&self, x_td: Tensor<2>, context: &BlockContext<'_>) -> (Tensor<2>, Option<Tensor<1>>) {
        match self {
            Self::Direct(direct) => direct.forward(x_td, context),
            Self::Latent(latent) => latent.forward(x_td, context),
        }
    }

    /// As [`Attention::forward`] of a single sequence, and what is kept of its tokens.
    ///
    /// # Panics
    /// If `cache` is not empty, or of other attention.
    pub(crate) fn forward_and_keep(
        &self,
        x_td: Tensor<2>,
        (rotary, mask): (Option<&RotaryTable>, &CausalMask),
        cache: AttentionCache,
    ) -> (Tensor<2>, AttentionCache) {
        match (self, cache) {
            (Self::Direct(direct), AttentionCache::Direct(cache)) => {
                let (y_td, cache) = direct.forward_and_keep(x_td, (rotary, mask), cache);
                (y_td, AttentionCache::Direct(cache))
            }
            (Self::Latent(latent), AttentionCache::Latent(cache)) => {
                let (y_td, cache) = latent.forward_and_keep(x_td, (rotary, mask), cache);
                (y_td, AttentionCache::Latent(cache))
            }
            _ => panic!("a cache of other attention"),
        }
    }

    /// What the next token of each sequence takes from those before it, and the caches with it.
    ///
    /// # Shapes
    /// - `x_bd`: `[sequences, d_model]`; returns the same
    ///
    /// # Panics
    /// If a cache is full, or of other attention.
    pub(crate) fn forward_cached(
        &self,
        x_bd: Tensor<2>,
        sequences: Vec<CachedSequence<'_>>,
    ) -> (Tensor<2>, Vec<AttentionCache>) {
        match self {
            Self::Direct(direct) => direct.forward_cached(x_bd, sequences),
            Self::Latent(latent) => latent.forward_cached(x_bd, sequences),
        }
    }
}

impl DirectAttention {
    fn new(
        spec: &AttentionSpec,
        heads: Heads,
        model: &ModelSpec,
        key: &str,
        source: &ParameterSource,
    ) -> Self {
        let (d, d_q, d_kv) = (model.d_model, spec.query_width(), spec.key_width());
        let projection = |name: &str, part, shape| {
            let std = model.initial_std(Role::Attention(part, Affine::Weight));
            Projection::new(&format!("{key}.{name}"), shape, std, spec.has_bias(part), source)
        };
        let scale = |width| match spec.qk_norm.scale_width(width, spec.d_head) {
            0 => None,
            width => Some(Param::from_tensor(source.ones(width))),
        };
        Self {
            query: projection("query", AttentionPart::Query, [d, d_q]),
            key: projection("key", AttentionPart::Key, [d, d_kv]),
            value: projection("value", AttentionPart::Value, [d, d_kv]),
            output: projection("output", AttentionPart::Output, [d_q, d]),
            query_norm_k: scale(d_q),
            key_norm_k: scale(d_kv),
            sinks_h: spec.sinks.then(|| Param::from_tensor(source.zeros(spec.num_heads))),
            heads,
            qk_norm: spec.qk_norm,
            clip: spec.clip_qkv,
        }
    }

    fn forward(&self, x_td: Tensor<2>, context: &BlockContext<'_>) -> (Tensor<2>, Option<Tensor<1>>) {
        let BlockContext { rotary, mask, pass, .. } = *context;
        let compute = pass.compute();
        let [q_tq, k_tg, v_tg] = self.queries_keys_values(x_td, compute);
        let max_logits_h = max_logits([&q_tq, &k_tg], self.heads, context, rotary);
        let sinks_h = self.sinks_h.as_ref().map(Param::val);
        let mixed_tq = causal_attention(q_tq, k_tg, v_tg, sinks_h, self.heads, mask, rotary, compute);
        (self.output.forward(mixed_tq, compute), max_logits_h)
    }

    fn forward_and_keep(
        &self,
        x_td: Tensor<2>,
        (rotary, mask): (Option<&RotaryTable>, &CausalMask),
        cache: KeyValueCache,
    ) -> (Tensor<2>, KeyValueCache) {
        let [q_tq, k_tg, v_tg] = self.queries_keys_values(x_td, Compute::F32);
        let sinks_h = self.sinks_h.as_ref().map(Param::val);
        let cache = cache.append(k_tg.clone(), v_tg.clone(), rotary);
        let mixed_tq = causal_attention(q_tq, k_tg, v_tg, sinks_h, self.heads, mask, rotary, Compute::F32);
        (self.output.forward(mixed_tq, Compute::F32), cache)
    }

    fn forward_cached(
        &self,
        x_bd: Tensor<2>,
        sequences: Vec<CachedSequence<'_>>,
    ) -> (Tensor<2>, Vec<AttentionCache>) {
        let rows = self.queries_keys_values(x_bd, Compute::F32);
        let attend = |(row, CachedSequence { cache, rotary }): (usize, CachedSequence<'_>)| {
            let AttentionCache::Direct(cache) = cache else { panic!("a cache of latent attention") };
            let [q_1q, k_1g, v_1g] = rows.each_ref().map(|rows| rows.clone().narrow(0, row, 1));
            let cache = cache.append(k_1g, v_1g, rotary);
            let mixed_1q = cache.attend(q_1q, self.sinks_h.as_ref().map(Param::val), self.heads, rotary);
            (mixed_1q, AttentionCache::Direct(cache))
        };
        let (mixed, caches) = sequences.into_iter().enumerate().map(attend).unzip();
        (self.output.forward(Tensor::cat(mixed, 0), Compute::F32), caches)
    }

    /// Queries, `[t, q]`, keys and values, `[t, g]`.
    fn queries_keys_values(&self, x_td: Tensor<2>, compute: Compute) -> [Tensor<2>; 3] {
        let epsilon = self.qk_norm.settings().map_or(0.0, |settings| settings.epsilon);
        let normalised = |x_to: Tensor<2>, scale_k: Option<&Param<Tensor<1>>>| match scale_k {
            Some(scale_k) => normalise(x_to, scale_k.val(), epsilon),
            None => x_to,
        };
        let clamped = |x_to: Tensor<2>| match self.clip {
            Some(clip) => x_to.clamp(-clip, clip),
            None => x_to,
        };
        let q_tq = normalised(self.query.forward(x_td.clone(), compute), self.query_norm_k.as_ref());
        let k_tg = normalised(self.key.forward(x_td.clone(), compute), self.key_norm_k.as_ref());
        let v_tg = self.value.forward(x_td, compute);
        [q_tq, k_tg, v_tg].map(clamped)
    }
}

fn heads(spec: &AttentionSpec, model: &ModelSpec) -> Heads {
    let alibi = match &model.position {
        PositionKind::FalconAlibi => Some(Alibi::Falcon),
        PositionKind::Alibi => Some(Alibi::Distance),
        PositionKind::Rope { .. }
        | PositionKind::Learned
        | PositionKind::Sinusoidal
        | PositionKind::Absent => None,
    };
    let scale = match (spec.scale, &model.position) {
        (Some(scale), _) => Some(scale),
        (None, PositionKind::Rope { scaling: Some(scaling), .. }) if spec.latent.is_some() => {
            Some(scaling.latent_score_factor() / (spec.d_head as f64).sqrt())
        }
        (None, _) => None,
    };
    Heads {
        num_heads: spec.num_heads,
        num_kv_heads: spec.num_kv_heads,
        alibi,
        window: spec.window,
        scale: scale.map(|scale| scale as f32),
    }
}
