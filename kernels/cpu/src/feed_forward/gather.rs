//! From slots and from messages to packed rows.

use rayon::prelude::*;

use crate::bf16::Element;
use crate::blocks::BLOCK_LEN;
use crate::dispatch::SlotMap;
use crate::rounding::write_rounded;
use crate::unwritten::Unwritten;

/// The value of each row's slot, `[n]`.
///
/// # Panics
/// If there is not a value for each slot.
pub fn by_row(values_tk: &[f32], slots: &SlotMap) -> Vec<f32> {
    slots.slot_of_row().iter().map(|&slot| values_tk[slot as usize]).collect()
}

/// All values, one part behind the other, rounded unless the elements are f32.
pub fn joined<E: Element>(parts: &[&[f32]]) -> Vec<E> {
    let mut joined = Unwritten::new(parts.iter().map(|part| part.len()).sum());
    let (mut rest, mut targets) = (joined.whole(), Vec::with_capacity(parts.len()));
    for part in parts {
        let (target, behind) = rest.split_at(part.len());
        targets.push((target, part));
        rest = behind;
    }
    targets.into_par_iter().for_each(|(target, part)| {
        target.fill_chunks(BLOCK_LEN, 1, |block, to| {
            let from = &part[block * BLOCK_LEN..][..to.len()];
            write_rounded(to, from)
        });
    });
    joined.into_values()
}
