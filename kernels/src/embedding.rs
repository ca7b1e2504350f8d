//! Rows of a table, chosen by ids.
//!
//! Shape letters: t tokens, d width, v vocabulary.

use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, TensorMetadata,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    backend_extension,
    flex::FlexTensor,
    ops::FloatTensorOps,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{IndexingUpdateOp, Int, Shape, Tensor};
use switchyard_kernels_cpu::embedding as on_slices;

use crate::slices::{all_f32, contiguous, elements, from_elements, host_integers};

/// The row of each id. Its gradient sums, in the order of the tokens, what arrives at each row; rows without a token cost
/// nothing but their zeros.
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
        stock_gradient::<Self>(ids_t, dy_td, vocab_size)
    }
}

/// The default body of [`Embed::embed_gradient`].
fn stock_gradient<B: Backend>(
    ids_t: IntTensor<B>,
    dy_td: FloatTensor<B>,
    vocab_size: usize,
) -> FloatTensor<B> {
    let shape_vd = Shape::new([vocab_size, dy_td.shape()[1]]);
    let zeros_vd = B::float_zeros(shape_vd, &dy_td.device(), dy_td.dtype().into());
    B::float_select_assign(zeros_vd, 0, ids_t, dy_td, IndexingUpdateOp::Add)
}

impl Embed for Flex {
    fn embed(table_vd: FlexTensor, ids_t: FlexTensor) -> FlexTensor {
        if !has_f32_rows(&table_vd) {
            return Self::float_select(table_vd, 0, ids_t);
        }
        let table_vd = contiguous(table_vd);
        let [v, d] = table_vd.shape().dims();
        let ids = row_indices(ids_t, v);
        let rows = on_slices::rows(elements(&table_vd), d, &ids);
        from_elements(rows, Shape::new([ids.len(), d]))
    }

    fn embed_gradient(ids_t: FlexTensor, dy_td: FlexTensor, vocab_size: usize) -> FlexTensor {
        if !has_f32_rows(&dy_td) {
            return stock_gradient::<Flex>(ids_t, dy_td, vocab_size);
        }
        let dy_td = contiguous(dy_td);
        let d = dy_td.shape()[1];
        let dtable = on_slices::gradient(&row_indices(ids_t, vocab_size), elements(&dy_td), d, vocab_size);
        from_elements(dtable, Shape::new([vocab_size, d]))
    }
}

/// Whether the row loops can run: f32 only, and no rows of width 0.
fn has_f32_rows(rows_nd: &FlexTensor) -> bool {
    all_f32(&[rows_nd]) && rows_nd.shape()[1] > 0
}

/// The ids as rows of a table.
///
/// # Panics
/// If one is not below `vocab_size`.
fn row_indices(ids_t: FlexTensor, vocab_size: usize) -> Vec<u32> {
    let index = |id: i64| match u32::try_from(id) {
        Ok(index) if (index as usize) < vocab_size => index,
        _ => panic!("id {id} lies outside a vocabulary of {vocab_size}"),
    };
    host_integers(ids_t).into_iter().map(index).collect()
}

#[cfg(feature = "cube")]
impl Embed for burn_cubecl::CubeBackend {}

impl<B: Embed, C: CheckpointStrategy> Embed for Autodiff<B, C> {
    fn embed(table_vd: FloatTensor<Self>, ids_t: IntTensor<Self>) -> FloatTensor<Self> {
        match EmbeddingBackward.prepare::<C>([table_vd.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let table_vd = table_vd.into_primitive();
                let state = SavedIds { ids_t: ids_t.clone(), vocab_size: table_vd.shape()[0] };
                prepared.finish(state, B::embed(table_vd, ids_t))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::embed(table_vd.into_primitive(), ids_t)),
        }
    }
}

#[derive(Debug)]
struct EmbeddingBackward;

/// What the backward pass reads again.
#[derive(Debug, Clone)]
struct SavedIds<B: Backend> {
    ids_t: IntTensor<B>,
    vocab_size: usize,
}

impl<B: Embed> Backward<B, 1> for EmbeddingBackward {
    type State = SavedIds<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy_td = grads.consume::<B>(&ops.node);
        let SavedIds { ids_t, vocab_size } = ops.state;
        let [table_node] = ops.parents;
        if let Some(node) = table_node {
            grads.register::<B>(node.id, B::embed_gradient(ids_t, dy_td, vocab_size));
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::slices::test_support::{assert_agree, bits_with_threads, random_flex};

    fn ids(ids: &[i32]) -> FlexTensor {
        FlexTensor::from_data(TensorData::new(ids.to_vec(), [ids.len()]))
    }

    /// Ids that leave some rows of the table without a token and give others many.
    fn uneven_ids(num_tokens: usize, vocab_size: usize) -> FlexTensor {
        let id = |token: usize| (token * token % 97 * vocab_size / 97) as i32;
        ids(&(0..num_tokens).map(id).collect::<Vec<_>>())
    }

    #[test]
    fn rows_and_their_gradient_agree_with_the_stock_operations() {
        for [t, d, v] in [[0, 3, 2], [1, 1, 1], [7, 5, 3], [300, 33, 200], [2000, 16, 97]] {
            let (table_vd, dy_td) = (random_flex(1, [v, d]), random_flex(2, [t, d]));
            let ids_t = uneven_ids(t, v);
            let rows_td = Flex::embed(table_vd.clone(), ids_t.clone());
            assert_agree("rows", &rows_td, &Flex::float_select(table_vd, 0, ids_t.clone()));
            let stock_vd = stock_gradient::<Flex>(ids_t.clone(), dy_td.clone(), v);
            assert_agree("gradient", &Flex::embed_gradient(ids_t, dy_td, v), &stock_vd);
        }
    }

    #[test]
    fn a_row_gets_its_tokens_in_order_and_a_row_without_any_zeros() {
        // In this order the first two cancel and the third remains; in any other it is lost to rounding.
        let dy_td = from_elements(vec![1e8, -1e8, 1.0, 7.0], Shape::new([4, 1]));
        let dtable_vd = Flex::embed_gradient(ids(&[2, 2, 2, 0]), dy_td, 4);
        assert_eq!(elements(&dtable_vd), [7.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn the_gradient_repeats_bit_for_bit_for_any_number_of_threads() {
        let compute = || vec![Flex::embed_gradient(uneven_ids(3000, 700), random_flex(2, [3000, 48]), 700)];
        assert_eq!(bits_with_threads(1, compute), bits_with_threads(2, compute));
    }

    #[test]
    fn tables_and_gradients_may_be_views() {
        let table_vd = random_flex(1, [5, 9]).transpose(0, 1);
        let stock_td = Flex::float_select(table_vd.clone(), 0, ids(&[8, 0]));
        assert_agree("rows", &Flex::embed(table_vd, ids(&[8, 0])), &stock_td);
        let dy_td = random_flex(2, [4, 2]).transpose(0, 1);
        let stock_vd = stock_gradient::<Flex>(ids(&[1, 1]), dy_td.clone(), 3);
        assert_agree("gradient", &Flex::embed_gradient(ids(&[1, 1]), dy_td, 3), &stock_vd);
    }

    #[test]
    #[should_panic(expected = "id 3 lies outside a vocabulary of 3")]
    fn an_id_outside_the_vocabulary_is_named() {
        Flex::embed(random_flex(1, [3, 2]), ids(&[0, 3]));
    }
}
