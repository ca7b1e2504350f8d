//! From tokens to rows.

use std::ops::Range;

use rayon::prelude::*;

use crate::bf16::Element;
use crate::dispatch::SlotMap;
use crate::rounding::write_rounded;
use crate::row_tiles::Elements;
use crate::unwritten::Unwritten;

/// A copy of each of these rows' token, of `d` elements.
///
/// # Panics
/// If there are fewer rows, or `x_td` does not hold as many tokens.
pub fn rows(x_td: &[f32], slots: &SlotMap, rows: Range<usize>, d: usize) -> Vec<f32> {
    let mut copies = Vec::with_capacity(rows.len() * d);
    for token in slots.token_of_row().skip(rows.start).take(rows.len()) {
        copies.extend_from_slice(&x_td[token * d..][..d]);
    }
    copies
}

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
    let mut rest = joined.whole();
    let mut targets = Vec::with_capacity(parts.len());
    for part in parts {
        let (target, behind) = rest.cut_at(part.len());
        targets.push((target, part));
        rest = behind;
    }
    targets.into_par_iter().for_each(|(target, part)| {
        target.fill(|target| write_rounded(target, part));
    });
    joined.into_values()
}
