//! Pairs of terms, by plain loops.

use std::mem::MaybeUninit;

use crate::bf16::Element;

pub(super) fn pair_along<E: Element>(to: &mut [MaybeUninit<f32>], row: &[E]) {
    for (to, terms) in to.iter_mut().zip(row.chunks(2)) {
        to.write(pair(terms[0], terms.get(1).copied().unwrap_or_default()));
    }
}

pub(super) fn pair_across<E: Element>(to: &mut [MaybeUninit<f32>], rows: [Option<&[E]>; 2]) {
    for (i, to) in to.iter_mut().enumerate() {
        let [first, second] = rows.map(|row| row.map_or(E::default(), |row| row[i]));
        to.write(pair(first, second));
    }
}

fn pair<E: Element>(first: E, second: E) -> f32 {
    let [first, second] = [first, second].map(|term| u32::from(term.to_bf16().to_bits()));
    f32::from_bits(second << 16 | first)
}
