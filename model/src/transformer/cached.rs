//! Text token by token: what is kept of the tokens before the next one, so that only that one goes
//! through the network.
//!
//! On the CPU the rows are the same bits as those of the whole pass, whatever else is in the batch:
//! every sum has the same terms in the same order.
//!
//! Shape letters: b sequences, s tokens of a sequence, d model width.

use burn::tensor::{Device, Int, Tensor, TensorData};
use switchyard_experts::{FfnSpec, MoeAux};
use switchyard_kernels::{CausalMask, RotaryTable};
use switchyard_router::Selection;

use super::{RotaryAngles, Transformer};
use crate::mixer::MixerCache;
use crate::{BlockContext, ModelInput, ModelSpec, Pass};

/// What is kept of one sequence.
#[derive(Debug, Clone)]
pub struct SequenceCache {
    /// First layer first.
    layers: Vec<MixerCache>,
    rotary: Option<(RotaryAngles, RotaryTable)>,
    num_tokens: usize,
    capacity: usize,
}

impl SequenceCache {
    /// Tokens that are kept.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }
}

/// What a pass over tokens returns that are kept.
#[derive(Debug)]
pub struct CachedOutput {
    /// What the head reads: of the last token of each sequence, `[b, d]`.
    pub hidden_bd: Tensor<2>,
    /// What each mixture learnt, with its layer: of all tokens of the pass.
    pub moe_layers: Vec<(usize, MoeAux)>,
    /// The sequences with these tokens, in the same order.
    pub caches: Vec<SequenceCache>,
}

impl ModelSpec {
    /// Why a token's experts depend on which tokens it goes through the network with, so that
    /// nothing can be kept; `None` if they do not.
    pub fn cache_obstacle(&self) -> Option<String> {
        let obstacle = |(layer, spec): (usize, &crate::LayerSpec)| {
            let reason = match &spec.ffn {
                FfnSpec::Dense(_) | FfnSpec::BlockSparse(_) | FfnSpec::Absent => None,
                FfnSpec::SoftMoe(_) => Some("its experts mix all tokens of a sequence"),
                FfnSpec::Moe(moe) => match &moe.router.config.selection {
                    Selection::Random {} | Selection::ForcedUniform {} => {
                        Some("a token's experts depend on its place in the pass")
                    }
                    _ => moe
                        .capacity
                        .as_ref()
                        .and_then(|capacity| capacity.evaluation_factor)
                        .map(|_| "its capacity is shared by the tokens of a pass"),
                },
            };
            reason.map(|reason| format!("layer {layer}: {reason}"))
        };
        self.layers.iter().enumerate().find_map(obstacle)
    }
}

impl Transformer {
    /// A whole sequence for generation, and what is kept of it, with room for `capacity` tokens.
    ///
    /// # Panics
    /// If there is no token, there is no room, or the sequence is longer than the positions allow.
    pub fn prefill(&self, ids: &[u32], capacity: usize, device: &Device) -> CachedOutput {
        let seq_len = ids.len();
        assert!((1..=capacity).contains(&seq_len), "{seq_len} tokens in a cache for {capacity}");
        let upload = ids.iter().map(|&id| id as i32).collect();
        let input = ModelInput::upload(upload, None, [1, seq_len], device);
        let angles = self.rotary_angles(seq_len);
        let rotary = angles.map(|angles| {
            let table = angles.table(capacity, device);
            (angles, table)
        });
        let mut layers = Vec::with_capacity(self.blocks.len());
        let mut moe_layers = Vec::new();
        let x_td = self.in_context(&input, Pass::Generation, |context| {
            let table = rotary.as_ref().map(|(_, table)| table);
            let context = BlockContext { rotary: table, ..*context };
            let mut x_td = self.embed(&input, Pass::Generation);
            for (layer, block) in self.blocks.iter().enumerate() {
                let empty = MixerCache::new(&self.spec.layers[layer].mixer, capacity, device);
                let (next_td, aux, cache) = block.forward_and_keep(x_td, &context, empty);
                x_td = next_td;
                moe_layers.extend(aux.map(|aux| (layer, aux)));
                layers.push(cache);
            }
            x_td
        });
        let hidden_bd = self.head_input(x_td.narrow(0, seq_len - 1, 1));
        let cache = SequenceCache { layers, rotary, num_tokens: seq_len, capacity };
        CachedOutput { hidden_bd, moe_layers, caches: vec![cache] }
    }

    /// Whether one more token of the sequence gives what the whole pass gives: there is room, and
    /// the longer sequence has the angles of the shorter one. Rotary angles that change with the
    /// length (`dynamic`, `longrope`) do not.
    pub fn can_go_on(&self, cache: &SequenceCache) -> bool {
        let num_tokens = cache.num_tokens + 1;
        num_tokens <= cache.capacity.min(self.spec.num_positions())
            && self.rotary_angles(num_tokens).as_ref() == cache.rotary.as_ref().map(|(angles, _)| angles)
    }

    /// The next token of each sequence.
    ///
    /// # Panics
    /// If there are not as many ids as sequences, or one cannot go on ([`Transformer::can_go_on`]).
    pub fn decode(&self, ids: &[u32], caches: Vec<SequenceCache>) -> CachedOutput {
        assert!(
            ids.len() == caches.len() && !ids.is_empty(),
            "{} ids for {} caches",
            ids.len(),
            caches.len()
        );
        assert!(caches.iter().all(|cache| self.can_go_on(cache)), "a sequence that cannot go on");
        let device = self.embedding.head_dv().device();
        let positions: Vec<usize> = caches.iter().map(|cache| cache.num_tokens).collect();
        let upload: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        let ids_b = Tensor::<1, Int>::from_data(TensorData::new(upload, [ids.len()]), &device);
        // Each token alone: what precedes it is kept.
        let mask = CausalMask::new(1, &device);
        let context = BlockContext {
            rotary: None,
            mask: &mask,
            state: None,
            segment_ids_bs: None,
            token_ids_t: ids,
            real_places: None,
            seq_len: 1,
            pass: Pass::Generation,
        };
        let mut x_bd = self.embedding.forward_at(ids_b, &positions);
        let mut moe_layers = Vec::new();
        let (mut layers_of, shells): (Vec<_>, Vec<_>) = caches.into_iter().map(SequenceCache::open).unzip();
        let mut kept: Vec<Vec<MixerCache>> = layers_of.iter().map(|_| Vec::new()).collect();
        let rotary: Vec<_> =
            shells.iter().map(|shell| shell.rotary.as_ref().map(|(_, table)| table)).collect();
        for (layer, block) in self.blocks.iter().enumerate() {
            let of_layer = layers_of.iter_mut().map(|layers| layers.next().expect("a cache for each layer"));
            let (next_bd, aux, caches) = block.forward_cached(x_bd, &context, of_layer.collect(), &rotary);
            x_bd = next_bd;
            moe_layers.extend(aux.map(|aux| (layer, aux)));
            kept.iter_mut().zip(caches).for_each(|(kept, cache)| kept.push(cache));
        }
        let close = |(shell, layers): (SequenceCache, Vec<MixerCache>)| SequenceCache {
            layers,
            num_tokens: shell.num_tokens + 1,
            ..shell
        };
        let caches = shells.into_iter().zip(kept).map(close).collect();
        CachedOutput { hidden_bd: self.head_input(x_bd), moe_layers, caches }
    }
}

impl SequenceCache {
    /// The layers, and the cache without them.
    fn open(self) -> (std::vec::IntoIter<MixerCache>, Self) {
        (self.layers.into_iter(), Self { layers: Vec::new(), ..self })
    }
}
