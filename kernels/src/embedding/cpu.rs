//! Rows and their gradient on the CPU.

use burn::backend::{Flex, TensorMetadata, flex::FlexTensor, ops::FloatTensorOps};
use burn::tensor::Shape;
use switchyard_kernels_cpu::embedding as on_slices;

use super::{Embed, stock};
use crate::slices::{all_f32, contiguous, elements, from_elements, host_integers};

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
            return stock::gradient::<Flex>(ids_t, dy_td, vocab_size);
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
