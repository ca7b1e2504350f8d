//! Tokens to packed rows and back.

use burn::backend::{
    Backend, TensorMetadata,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{Shape, Slice, TensorData};

use switchyard_kernels_cpu::dispatch::SlotMap;

/// Packed rows of the tokens: `[n, d]`.
pub(super) fn gather_rows<B: Backend>(x_td: FloatTensor<B>, slots: &SlotMap) -> FloatTensor<B> {
    let token_of_row = slots.slot_of_row().iter().map(|&slot| slot as usize / slots.top_k());
    let indices = upload_indices::<B>(token_of_row, &x_td);
    B::float_select(x_td, 0, indices)
}

/// The sum of each token's rows, `[t, d]`: the gradient of [`gather_rows`].
pub(super) fn sum_slots<B: Backend>(dy_nd: FloatTensor<B>, slots: &SlotMap) -> FloatTensor<B> {
    let padded_nd = pad_for_dropped::<B>(dy_nd, slots);
    sum_in_slot_order::<B>(slots, |slot| rows_of_slot::<B>(&padded_nd, slots, slot))
}

/// Weighted sum of each token's rows: `[t, d]`.
pub(super) fn combine_rows<B: Backend>(
    y_nd: FloatTensor<B>,
    gates_tk: FloatTensor<B>,
    slots: &SlotMap,
) -> FloatTensor<B> {
    let padded_nd = pad_for_dropped::<B>(y_nd, slots);
    sum_in_slot_order::<B>(slots, |slot| {
        let gate_t1 = B::float_slice(gates_tk.clone(), &[Slice::full(), Slice::from(slot..slot + 1)]);
        B::float_mul(rows_of_slot::<B>(&padded_nd, slots, slot), gate_t1)
    })
}

/// Gradient of the rows of [`combine_rows`]: gate times the token's gradient, `[n, d]`.
pub(super) fn row_gradient<B: Backend>(
    dy_td: FloatTensor<B>,
    gates_tk: FloatTensor<B>,
    slots: &SlotMap,
) -> FloatTensor<B> {
    let num_slots = slots.num_tokens() * slots.top_k();
    let gates_n1 = B::float_reshape(gates_tk, Shape::new([num_slots, 1]));
    let slot_of_row = slots.slot_of_row().iter().map(|&slot| slot as usize);
    let indices = upload_indices::<B>(slot_of_row, &gates_n1);
    let gate_of_row_n1 = B::float_select(gates_n1, 0, indices);
    B::float_mul(gather_rows::<B>(dy_td, slots), gate_of_row_n1)
}

/// Gradient of the gates of [`combine_rows`]: row times the token's gradient, `[t, k]`.
pub(super) fn gate_gradient<B: Backend>(
    dy_td: FloatTensor<B>,
    y_nd: FloatTensor<B>,
    slots: &SlotMap,
) -> FloatTensor<B> {
    let padded_nd = pad_for_dropped::<B>(y_nd, slots);
    let gradient_of = |slot| {
        let y_td = rows_of_slot::<B>(&padded_nd, slots, slot);
        B::float_sum_dim(B::float_mul(y_td, dy_td.clone()), 1)
    };
    B::float_cat((0..slots.top_k()).map(gradient_of).collect(), 1)
}

/// `y_nd` with a row of zeros at the end, for dropped slots to read; unchanged if none was dropped.
fn pad_for_dropped<B: Backend>(y_nd: FloatTensor<B>, slots: &SlotMap) -> FloatTensor<B> {
    if !slots.drops_slots() {
        return y_nd;
    }
    let zeros_1d = B::float_zeros(Shape::new([1, y_nd.shape()[1]]), &y_nd.device(), y_nd.dtype().into());
    B::float_cat(vec![y_nd, zeros_1d], 0)
}

/// Row of every token's slot number `slot`: `[t, d]`.
fn rows_of_slot<B: Backend>(padded_nd: &FloatTensor<B>, slots: &SlotMap, slot: usize) -> FloatTensor<B> {
    let rows = slots.row_of_slot().iter().skip(slot).step_by(slots.top_k());
    let rows = rows.map(|row| row.map_or(slots.num_rows(), |row| row as usize));
    B::float_select(padded_nd.clone(), 0, upload_indices::<B>(rows, padded_nd))
}

/// `term(0) + term(1) + ...` over a token's slots, starting from the first term: adding to zero
/// would turn -0 into 0.
fn sum_in_slot_order<B: Backend>(slots: &SlotMap, term: impl Fn(usize) -> FloatTensor<B>) -> FloatTensor<B> {
    (1..slots.top_k()).fold(term(0), |sum, slot| B::float_add(sum, term(slot)))
}

fn upload_indices<B: Backend>(indices: impl Iterator<Item = usize>, like: &FloatTensor<B>) -> IntTensor<B> {
    let indices: Vec<i32> = indices.map(|index| index as i32).collect();
    let shape = [indices.len()];
    B::int_from_data(TensorData::new(indices, shape), &like.device())
}
