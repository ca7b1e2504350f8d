//! The largest logit of each head, without a gradient.
//!
//! Shape letters: b batch, s sequence, t = b * s tokens, h query heads, g key/value heads, d width of
//! a head of queries and keys.

mod autodiff;
mod cpu;
mod stock;
#[cfg(test)]
mod tests;

use burn::backend::{
    Backend, Dispatch, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::Tensor;

use super::{CausalMask, Heads};
use crate::rotary::RotaryTable;
use crate::tensor_list::TensorList;

/// The largest logit of each head over all tokens, `Q K^T / sqrt(d)` where `mask` and the heads'
/// window let a query see a key (Kimi K2, arXiv:2507.20534, section 2.1). What positions add to
/// scores, and sinks, are left out: queries and keys do not decide them. Nothing is differentiated.
///
/// # Shapes
/// - as of [`causal_attention`](super::causal_attention); returns `[num_heads]`
///
/// # Panics
/// If the shapes do not fit each other, `heads`, `mask` or `rotary`.
pub fn max_attention_logits(
    q_tq: Tensor<2>,
    k_tg: Tensor<2>,
    heads: Heads,
    mask: &CausalMask,
    rotary: Option<&RotaryTable>,
) -> Tensor<1> {
    let Heads { num_heads: h, num_kv_heads: g, .. } = heads;
    assert!(g > 0 && h.is_multiple_of(g), "{h} query heads cannot share {g} key/value heads");
    let ([t, q], [mask_b, s]) = (q_tq.dims(), mask.segment_ids_bs.dims());
    let d = q / h;
    assert!(
        q == h * d
            && k_tg.dims() == [t, g * d]
            && t.is_multiple_of(s)
            && (mask_b == 1 || mask_b * s == t)
            && rotary.is_none_or(|table| {
                let [table_len, half] = table.cos_sp.dims();
                s <= table_len && d == 2 * half
            }),
        "queries {:?}, keys {:?}, {h} and {g} heads, a mask of {mask_b} x {s} and a table of {:?} do not fit each other",
        q_tq.dims(),
        k_tg.dims(),
        rotary.map(|table| table.cos_sp.dims()),
    );
    let tables = rotary.into_iter().flat_map(|table| [&table.cos_sp, &table.sin_sp]);
    let tables = tables.map(|table_sp| table_sp.clone().into_dispatch());
    let inputs = [q_tq.into_dispatch(), k_tg.into_dispatch()].into_iter().chain(tables).collect();
    Tensor::from_dispatch(Dispatch::max_logits(
        TensorList::from_vec(inputs),
        mask.segment_ids_bs.clone().into_dispatch(),
        heads,
    ))
}

/// The operation on one backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait MaxLogits: Backend {
    /// The largest logit of each head, `[h]`, from queries, keys and, if they are to be turned, the
    /// rotary table's cosines and sines.
    fn max_logits(
        #[extension_type] inputs: TensorList<Self>,
        segment_ids_bs: IntTensor<Self>,
        heads: Heads,
    ) -> FloatTensor<Self> {
        stock::max_logits::<Self>(inputs, segment_ids_bs, heads)
    }
}

#[cfg(feature = "cube")]
impl MaxLogits for burn_cubecl::CubeBackend {}

/// Queries, keys, and what they are turned by.
struct Split<T> {
    q: T,
    k: T,
    rotation: Option<[T; 2]>,
}

impl<T> Split<T> {
    /// Of a list that [`max_attention_logits`] made.
    fn of(tensors: Vec<T>) -> Self {
        let mut tensors = tensors.into_iter();
        let mut next = || tensors.next().expect("queries and keys");
        let (q, k) = (next(), next());
        Self { q, k, rotation: tensors.next().zip(tensors.next()).map(<[T; 2]>::from) }
    }
}
