//! The largest logits of a pass, for QK-clip.
//!
//! Shape letters: t places, h query heads, q all query heads, g all key heads.

use burn::tensor::Tensor;
use switchyard_kernels::{Heads, RotaryTable, max_attention_logits};

use crate::BlockContext;

/// The largest logit of each head, `[h]`, from queries, `[t, q]`, and keys, `[t, g]`, if the pass
/// measures them. Padding does not count.
pub(super) fn max_logits(
    [q_tq, k_tg]: [&Tensor<2>; 2],
    heads: Heads,
    context: &BlockContext<'_>,
    rotary: Option<&RotaryTable>,
) -> Option<Tensor<1>> {
    if !context.pass.measures_logits() {
        return None;
    }
    let [q_tq, k_tg] = [q_tq, k_tg].map(|x| x.clone().detach());
    // The queries of padding become zeros, whose logits are none that would be clipped.
    let q_tq = match context.real_places {
        Some(places) => {
            let num_places = q_tq.dims()[0];
            places.spread(places.gathered(q_tq), num_places)
        }
        None => q_tq,
    };
    Some(max_attention_logits(q_tq, k_tg, heads, context.mask, rotary))
}
