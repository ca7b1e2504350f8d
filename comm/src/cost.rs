//! What a rank sends in each collective, known without sending it.
//!
//! It is what [`Comm::traffic`](crate::Comm::traffic) counts. Lengths are in bytes, or in elements
//! of 4 bytes where the collective takes floats.

use std::ops::Range;

use crate::plan::{self, Round};
use crate::sums::even_slices;
use crate::transport::Traffic;

/// Of a length that goes ahead, in a message of its own, where the receiver does not know it.
const LEN_BYTES: usize = size_of::<u64>();
const FLOAT_BYTES: usize = size_of::<f32>();

/// What a rank of `size` sends in [`Comm::barrier`](crate::Comm::barrier).
pub fn barrier(size: usize) -> Traffic {
    to_each_other(size, 0)
}

/// What a rank of `size` sends in [`Comm::split`](crate::Comm::split).
pub fn split(size: usize) -> Traffic {
    all_gather(size, size_of::<u64>())
}

/// What `rank` of `size` sends in [`Comm::broadcast`](crate::Comm::broadcast) of `len` bytes from
/// the rank `root`.
///
/// # Panics
/// If there is no such rank.
pub fn broadcast(size: usize, rank: usize, root: usize, len: usize) -> Traffic {
    assert!(rank < size && root < size, "ranks {rank} and {root} of {size}");
    Traffic::of(plan::children((rank + size - root) % size, size).flat_map(|_| [LEN_BYTES, len]))
}

/// What a rank of `size` sends in [`Comm::all_gather`](crate::Comm::all_gather) if it gives `len`
/// bytes.
pub fn all_gather(size: usize, len: usize) -> Traffic {
    to_each_other(size, LEN_BYTES) + to_each_other(size, len)
}

/// What `rank` sends in [`Comm::all_to_all`](crate::Comm::all_to_all) if its parts for the ranks
/// have `part_lens` bytes.
pub fn all_to_all(rank: usize, part_lens: &[usize]) -> Traffic {
    let size = part_lens.len();
    to_each_other(size, LEN_BYTES) + Traffic::of(plan::others(rank, size).map(|other| part_lens[other]))
}

/// What `rank` sends in [`Comm::ordered_sum_slices`](crate::Comm::ordered_sum_slices) if the slices
/// of the ranks have `slice_lens` elements.
pub fn ordered_sum_slices(rank: usize, slice_lens: &[usize]) -> Traffic {
    let size = slice_lens.len();
    if plan::goes_by_halves(size) {
        by_halves(rank, slice_lens, |round| round.given)
    } else {
        Traffic::of(plan::others(rank, size).map(|other| slice_lens[other] * FLOAT_BYTES))
    }
}

/// What `rank` sends in [`Comm::all_gather_slices`](crate::Comm::all_gather_slices) if the slices
/// of the ranks have `slice_lens` elements.
pub fn all_gather_slices(rank: usize, slice_lens: &[usize]) -> Traffic {
    let size = slice_lens.len();
    if plan::goes_by_halves(size) {
        by_halves(rank, slice_lens, |round| round.kept)
    } else {
        to_each_other(size, slice_lens[rank] * FLOAT_BYTES)
    }
}

/// What `rank` of `size` sends in [`Comm::ordered_sum`](crate::Comm::ordered_sum) of `len`
/// elements.
pub fn ordered_sum(size: usize, rank: usize, len: usize) -> Traffic {
    let slice_lens: Vec<usize> = even_slices(len, size).iter().map(ExactSizeIterator::len).collect();
    ordered_sum_slices(rank, &slice_lens) + all_gather_slices(rank, &slice_lens)
}

fn to_each_other(size: usize, len: usize) -> Traffic {
    Traffic::of((1..size).map(|_| len))
}

/// One message a round, of the slices at `sent` of it.
fn by_halves(rank: usize, slice_lens: &[usize], sent: impl Fn(Round) -> Range<usize>) -> Traffic {
    let size = slice_lens.len();
    let bytes = |position| slice_lens[plan::reversed(position, size)] * FLOAT_BYTES;
    Traffic::of(plan::rounds(rank, size).map(|round| sent(round).map(bytes).sum()))
}
