//! Rows of a table, chosen by ids.
//!
//! Shape letters: t tokens, d width, v vocabulary.

mod autodiff;
mod cpu;
mod stock;
#[cfg(test)]
mod tests;

use burn::backend::{
    Backend, Dispatch, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{Int, Tensor};

/// The row of each id. Its gradient sums, in the order of the tokens, what arrives at each row;
/// rows without a token cost nothing but their zeros.
///
/// # Shapes
/// - `table_vd`: `[vocab_size, d]`; `ids_t`: `[num_tokens]`; returns `[num_tokens, d]`
///
/// # Panics
/// On the CPU, if an id is not below `vocab_size`.
pub fn embedding(table_vd: Tensor<2>, ids_t: Tensor<1, Int>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::embed(table_vd.into_dispatch(), ids_t.into_dispatch()))
}

/// The operation and its gradient on one backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait Embed: Backend {
    /// The rows of `table_vd` that `ids_t` names: `[t, d]`.
    fn embed(table_vd: FloatTensor<Self>, ids_t: IntTensor<Self>) -> FloatTensor<Self> {
        Self::float_select(table_vd, 0, ids_t)
    }

    /// Gradient of the table, `[v, d]`, from that of the rows, `[t, d]`.
    fn embed_gradient(
        ids_t: IntTensor<Self>,
        dy_td: FloatTensor<Self>,
        vocab_size: usize,
    ) -> FloatTensor<Self> {
        stock::gradient::<Self>(ids_t, dy_td, vocab_size)
    }
}

#[cfg(feature = "cube")]
impl Embed for burn_cubecl::CubeBackend {}
