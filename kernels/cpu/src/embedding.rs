//! Rows of a table, chosen by ids.
//!
//! Shape letters: t tokens, d width, v vocabulary.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::blocks::BLOCK_LEN;
use crate::dispatch::DispatchPlan;
use crate::matrix::Unwritten;
use crate::row_tiles::add;

/// The rows of `table`, `[v, d]`, that `ids` name: `[t, d]`.
///
/// # Panics
/// If `d` is 0, or an id is not below v.
pub fn rows(table: &[f32], d: usize, ids: &[u32]) -> Vec<f32> {
    let mut y = Unwritten::new(ids.len() * d);
    let tokens = y.as_mut_slice().par_chunks_mut(d).zip(ids).with_min_len(BLOCK_LEN.div_ceil(d));
    tokens.for_each(|(y, &id)| {
        y.write_copy_of_slice(&table[id as usize * d..][..d]);
    });
    // SAFETY: each token has just written its row.
    unsafe { y.written() }
}

/// The gradient of the table, `[v, d]`, from that of the rows, `dy`, `[t, d]`: the sums, in the order of the tokens, of what
/// arrives at each row. Rows without a token cost nothing but their zeros.
///
/// # Panics
/// If `d` is 0, an id is not below `vocab_size`, or `dy` does not hold a row for each id.
pub fn gradient(ids: &[u32], dy: &[f32], d: usize, vocab_size: usize) -> Vec<f32> {
    let tokens_by_id = DispatchPlan::new(ids, None, vocab_size, 1);
    let mut dtable = Unwritten::new(vocab_size * d);
    let rows = dtable.as_mut_slice().par_chunks_mut(d).enumerate().with_min_len(BLOCK_LEN.div_ceil(d));
    rows.for_each(|(id, row)| {
        let tokens = &tokens_by_id.slots.slot_of_row()[tokens_by_id.groups.rows(id)];
        sum_of_tokens(row, tokens.iter().map(|&token| &dy[token as usize * d..][..d]));
    });
    // SAFETY: each row of the table has just been written.
    unsafe { dtable.written() }
}

/// Fills `target` with the sum of `rows`, from the first to the last; zeros if there are none.
fn sum_of_tokens<'a>(target: &mut [MaybeUninit<f32>], mut rows: impl Iterator<Item = &'a [f32]>) {
    let Some(first) = rows.next() else {
        target.fill(MaybeUninit::new(0.0));
        return;
    };
    let sum = target.write_copy_of_slice(first);
    rows.for_each(|row| add(sum, row));
}
