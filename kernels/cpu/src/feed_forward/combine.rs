//! From rows back to tokens: sums in the order of the slots.

use crate::dispatch::SlotMap;
use crate::simd::{multiply_add, vectorised};
use crate::unwritten::{Unwritten, write_zeros};

/// Tokens of one task.
const TASK_TOKENS: usize = 64;

/// Each token's sum of gate times row, `[t, d]`; zeros for a token without rows.
pub fn weighted_sums(rows: &[f32], gates_tk: &[f32], slots: &SlotMap, d: usize) -> Vec<f32> {
    sums_of_tokens(rows, slots, d, |slot| gates_tk[slot])
}

/// Each token's sum of rows, `[t, d]`; zeros for a token without rows.
pub fn sums(rows: &[f32], slots: &SlotMap, d: usize) -> Vec<f32> {
    sums_of_tokens(rows, slots, d, |_| 1.0)
}

/// The row's value for each slot, `[t, k]`; zero for a slot without a row.
pub fn by_slot(values: &[f32], slots: &SlotMap) -> Vec<f32> {
    slots.row_of_slot().iter().map(|row| row.map_or(0.0, |row| values[row as usize])).collect()
}

fn sums_of_tokens(
    rows: &[f32],
    slots: &SlotMap,
    d: usize,
    weight_of: impl Fn(usize) -> f32 + Sync,
) -> Vec<f32> {
    let top_k = slots.top_k();
    let mut sums = Unwritten::new(slots.num_tokens() * d);
    sums.whole().fill_chunks(TASK_TOKENS * d, 1, |task, sums| {
        let sums = write_zeros(sums);
        for (i, sum) in sums.chunks_exact_mut(d).enumerate() {
            let first_slot = (task * TASK_TOKENS + i) * top_k;
            let slots_with_rows = (first_slot..first_slot + top_k)
                .filter_map(|slot| slots.row_of_slot()[slot].map(|row| (slot, row as usize)));
            for (i, (slot, row)) in slots_with_rows.enumerate() {
                let row = &rows[row * d..][..d];
                // The first term is written: added to zero, -0 would become 0, unlike in a dense
                // block.
                if i == 0 { scale(sum, row, weight_of(slot)) } else { add_scaled(sum, row, weight_of(slot)) }
            }
        }
        sums
    });
    sums.into_values()
}

vectorised! {
    /// `sum = factor * row`.
    fn scale(sum: &mut [f32], row: &[f32], factor: f32) = scale_each;
}

#[inline(always)]
fn scale_each<const FUSED: bool>(sum: &mut [f32], row: &[f32], factor: f32) {
    for (sum, &row) in sum.iter_mut().zip(row) {
        *sum = factor * row;
    }
}

vectorised! {
    /// `sum = sum + factor * row`.
    fn add_scaled(sum: &mut [f32], row: &[f32], factor: f32) = add_scaled_each;
}

#[inline(always)]
fn add_scaled_each<const FUSED: bool>(sum: &mut [f32], row: &[f32], factor: f32) {
    for (sum, &row) in sum.iter_mut().zip(row) {
        *sum = multiply_add::<FUSED>(factor, row, *sum);
    }
}
