//! What attention keeps of a sequence's tokens.
//!
//! Shape letters: n tokens so far, l width of a latent vector, r channels of a head that are turned.

use burn::tensor::{Device, Tensor};
use switchyard_kernels::{KeyValueCache, RotaryTable};

use crate::AttentionSpec;

/// What one layer keeps of one sequence.
#[derive(Debug, Clone)]
pub(crate) enum AttentionCache {
    /// Keys and values.
    Direct(KeyValueCache),
    /// What keys and values are made of.
    Latent(LatentCache),
}

impl AttentionCache {
    /// Room for `capacity` tokens.
    pub(crate) fn new(spec: &AttentionSpec, capacity: usize, device: &Device) -> Self {
        match &spec.latent {
            Some(_) => Self::Latent(LatentCache::default()),
            None => {
                let widths = [spec.d_head, spec.d_head];
                Self::Direct(KeyValueCache::new(spec.num_kv_heads, widths, capacity, device))
            }
        }
    }
}

/// Latent vectors, normalised, and the channels of keys that all heads share, turned.
#[derive(Debug, Clone, Default)]
pub(crate) struct LatentCache {
    /// `[n, l]` and `[n, r]`; `None` before the first token.
    rows: Option<[Tensor<2>; 2]>,
}

impl LatentCache {
    /// Tokens that are kept.
    pub(super) fn num_tokens(&self) -> usize {
        self.rows.as_ref().map_or(0, |[latent_nl, _]| latent_nl.dims()[0])
    }

    /// The cache with the rows of the next tokens, and all of them.
    pub(super) fn append(self, new: [Tensor<2>; 2]) -> (Self, [Tensor<2>; 2]) {
        let rows = match self.rows {
            Some([latent_nl, key_nr]) => {
                let [latent_tl, key_tr] = new;
                [Tensor::cat(vec![latent_nl, latent_tl], 0), Tensor::cat(vec![key_nr, key_tr], 0)]
            }
            None => new,
        };
        (Self { rows: Some(rows.clone()) }, rows)
    }
}

/// One sequence of those whose next tokens go through a layer together.
#[derive(Debug)]
pub(crate) struct CachedSequence<'a> {
    pub(crate) cache: AttentionCache,
    /// Angles of all its positions.
    pub(crate) rotary: Option<&'a RotaryTable>,
}
