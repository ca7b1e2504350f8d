//! Rows of a table, chosen by ids.
//!
//! Shape letters: t tokens, d width, v vocabulary.

use std::mem::MaybeUninit;

use crate::blocks::BLOCK_LEN;
use crate::dispatch::DispatchPlan;
use crate::row_tiles::add;
use crate::unwritten::{Unwritten, write_zeros};

/// The rows of `table`, `[v, d]`, that `ids` name: `[t, d]`.
///
/// # Panics
/// If `d` is 0, or an id is not below v.
pub fn rows(table: &[f32], d: usize, ids: &[u32]) -> Vec<f32> {
    let mut y = Unwritten::new(ids.len() * d);
    y.whole().fill_chunks(d, BLOCK_LEN.div_ceil(d), |token, y| {
        y.write_copy_of_slice(&table[ids[token] as usize * d..][..d])
    });
    y.into_values()
}

/// The gradient of the table, `[v, d]`, from that of the rows, `dy`, `[t, d]`: the sums, in the
/// order of the tokens, of what arrives at each row. Rows without a token cost nothing but their
/// zeros.
///
/// # Panics
/// If `d` is 0, an id is not below `vocab_size`, or `dy` does not hold a row for each id.
pub fn gradient(ids: &[u32], dy: &[f32], d: usize, vocab_size: usize) -> Vec<f32> {
    let tokens_by_id = DispatchPlan::new(ids, None, vocab_size, 1);
    let mut dtable = Unwritten::new(vocab_size * d);
    dtable.whole().fill_chunks(d, BLOCK_LEN.div_ceil(d), |id, row| {
        let tokens = &tokens_by_id.slots.slot_of_row()[tokens_by_id.groups.rows(id)];
        sum_of_tokens(row, tokens.iter().map(|&token| &dy[token as usize * d..][..d]))
    });
    dtable.into_values()
}

/// Fills `target` with the sum of `rows`, from the first to the last, and returns it; zeros if
/// there are none.
fn sum_of_tokens<'a, 't>(
    target: &'t mut [MaybeUninit<f32>],
    mut rows: impl Iterator<Item = &'a [f32]>,
) -> &'t mut [f32] {
    let Some(first) = rows.next() else {
        return write_zeros(target);
    };
    let sum = target.write_copy_of_slice(first);
    rows.for_each(|row| add(sum, row));
    sum
}
