//! The half of a block that carries information between tokens, of either kind.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use switchyard_kernels::RotaryTable;

use crate::attention::{AttentionCache, CachedSequence};
use crate::{Attention, BlockContext, Lstm, LstmState, MixerSpec, ModelSpec, ParameterSource};

/// The half of a block that carries information between tokens.
#[derive(Module, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one per layer, and burn derives modules of plain variants only"
)]
pub enum Mixer {
    /// Causal self-attention.
    Attention(Attention),
    /// A long short-term memory.
    Lstm(Lstm),
}

/// What one layer keeps of one sequence's tokens.
#[derive(Debug, Clone)]
pub(crate) enum MixerCache {
    Attention(AttentionCache),
    /// `None` before the first token.
    Lstm(Option<LstmState>),
}

impl MixerCache {
    /// Room for `capacity` tokens.
    pub(crate) fn new(spec: &MixerSpec, capacity: usize, device: &Device) -> Self {
        match spec {
            MixerSpec::Attention(attention) => {
                Self::Attention(AttentionCache::new(attention, capacity, device))
            }
            MixerSpec::Lstm(_) => Self::Lstm(None),
        }
    }
}

/// What the mixer of one layer gives.
pub(crate) struct MixerOutput {
    /// What each token takes from those before it, `[batch * seq, d_model]`.
    pub(crate) y_td: Tensor<2>,
    /// The state behind the last tokens, where the layer has a state.
    pub(crate) state: Option<LstmState>,
    /// The largest logit of each attention head, `[num_heads]`, if the pass measures them.
    pub(crate) max_logits_h: Option<Tensor<1>>,
}

impl Mixer {
    /// That of layer number `layer`; `key` is the layer's place, such as `blocks.0`.
    pub fn new(spec: &ModelSpec, layer: usize, key: &str, source: &ParameterSource) -> Self {
        match &spec.layers[layer].mixer {
            MixerSpec::Attention(attention) => {
                Self::Attention(Attention::new(attention, spec, &format!("{key}.attention"), source))
            }
            MixerSpec::Lstm(lstm) => Self::Lstm(Lstm::new(lstm, spec, &format!("{key}.lstm"), source)),
        }
    }

    /// The word for its kind.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Attention(_) => "attention",
            Self::Lstm(_) => "lstm",
        }
    }

    /// What each token takes from those before it, the state behind the last ones, and what was
    /// measured. The state begins with that of `layer` in the context.
    ///
    /// # Shapes
    /// - `x_td`: `[batch * seq, d_model]`; returns the same
    pub(crate) fn forward(&self, x_td: Tensor<2>, layer: usize, context: &BlockContext<'_>) -> MixerOutput {
        match self {
            Self::Attention(attention) => {
                let (y_td, max_logits_h) = attention.forward(x_td, context);
                MixerOutput { y_td, state: None, max_logits_h }
            }
            Self::Lstm(lstm) => {
                let state = context.state.map(|state| state.layers[layer].clone());
                let (y_td, state) = lstm.forward(x_td, context.seq_len, state, context.segment_ids_bs);
                MixerOutput { y_td, state: Some(state), max_logits_h: None }
            }
        }
    }

    /// As [`Mixer::forward`] of a single sequence from its beginning on, and what is kept of its
    /// tokens.
    ///
    /// # Panics
    /// If `cache` is not empty, or of another kind.
    pub(crate) fn forward_and_keep(
        &self,
        x_td: Tensor<2>,
        context: &BlockContext<'_>,
        cache: MixerCache,
    ) -> (Tensor<2>, MixerCache) {
        match (self, cache) {
            (Self::Attention(attention), MixerCache::Attention(cache)) => {
                let seen = (context.rotary, context.mask);
                let (y_td, cache) = attention.forward_and_keep(x_td, seen, cache);
                (y_td, MixerCache::Attention(cache))
            }
            (Self::Lstm(lstm), MixerCache::Lstm(None)) => {
                let (y_td, state) = lstm.forward(x_td, context.seq_len, None, None);
                (y_td, MixerCache::Lstm(Some(state)))
            }
            _ => panic!("a cache that is not empty, or of another layer"),
        }
    }

    /// What the next token of each sequence takes from those before it, and the caches with it.
    ///
    /// # Shapes
    /// - `x_bd`: `[sequences, d_model]`; returns the same
    ///
    /// # Panics
    /// If a cache is full, empty, or of another kind.
    pub(crate) fn forward_cached(
        &self,
        x_bd: Tensor<2>,
        caches: Vec<MixerCache>,
        rotary: &[Option<&RotaryTable>],
    ) -> (Tensor<2>, Vec<MixerCache>) {
        match self {
            Self::Attention(attention) => {
                let sequence = |(cache, rotary): (MixerCache, &Option<_>)| match cache {
                    MixerCache::Attention(cache) => CachedSequence { cache, rotary: *rotary },
                    MixerCache::Lstm(_) => panic!("a cache of another layer"),
                };
                let sequences = caches.into_iter().zip(rotary).map(sequence).collect();
                let (y_bd, caches) = attention.forward_cached(x_bd, sequences);
                (y_bd, caches.into_iter().map(MixerCache::Attention).collect())
            }
            Self::Lstm(lstm) => {
                let state = |cache: MixerCache| match cache {
                    MixerCache::Lstm(Some(state)) => state,
                    _ => panic!("a cache that is empty, or of another layer"),
                };
                let (y_bd, states) = lstm.forward_next(x_bd, caches.into_iter().map(state).collect());
                (y_bd, states.into_iter().map(|state| MixerCache::Lstm(Some(state))).collect())
            }
        }
    }
}
