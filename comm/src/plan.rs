//! Who sends what to whom: what the collectives do and [`crate::cost`] predicts.

use std::ops::Range;

/// Whether sums go by halves in the rounds of [`rounds`]. Two ranks have one message each either
/// way, and the direct exchange copies less.
pub(crate) fn goes_by_halves(size: usize) -> bool {
    size > 2 && size.is_power_of_two()
}

/// The rank at `position` when the numbers are sorted by their binary digits read backwards, and the
/// position of the rank of this number. Among 8 the ranks stand 0 4 2 6 1 5 3 7.
pub(crate) fn reversed(position: usize, size: usize) -> usize {
    position.reverse_bits() >> (usize::BITS - size.ilog2())
}

/// One exchange of a sum by halves, with one other rank. Both hold the slices of a run of positions
/// (see [`reversed`]), and each sends the half where the other stands.
#[derive(Debug, Clone)]
pub(crate) struct Round {
    pub(crate) partner: usize,
    /// Positions whose slices this rank sends.
    pub(crate) given: Range<usize>,
    /// Positions whose slices it keeps, its own among them.
    pub(crate) kept: Range<usize>,
}

/// The rounds of `rank` among `size` ranks: with the nearest rank first, where the messages are
/// longest. Before the round of digit `l` a rank holds the sums over its block of level `l` of
/// [`crate::tree`], and its partner those over the other half of the next block.
pub(crate) fn rounds(rank: usize, size: usize) -> impl DoubleEndedIterator<Item = Round> + ExactSizeIterator {
    (0..size.ilog2() as usize).map(move |digit| {
        let half = |rank: usize| {
            let len = size >> (digit + 1);
            let start = reversed(rank, size) / len * len;
            start..start + len
        };
        let partner = rank ^ (1 << digit);
        Round { partner, given: half(partner), kept: half(rank) }
    })
}

/// Those to whom a broadcast's rank hands on, the one with the most to do first; ranks are numbered
/// from the root. They form a binary tree: each serves those that its number's free digits reach.
pub(crate) fn children(number: usize, size: usize) -> impl Iterator<Item = usize> {
    let free_digits = if number == 0 { usize::BITS } else { number.trailing_zeros() };
    (0..free_digits)
        .rev()
        .filter_map(move |digit| 1_usize.checked_shl(digit)?.checked_add(number))
        .filter(move |&child| child < size)
}

/// From whom a broadcast's rank has it; `None` for the root.
pub(crate) fn parent(number: usize) -> Option<usize> {
    (number > 0).then(|| number & (number - 1))
}

/// The ranks other than `rank`, in order.
pub(crate) fn others(rank: usize, size: usize) -> impl Iterator<Item = usize> {
    (0..size).filter(move |&other| other != rank)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slice_leaves_a_rank_once_and_never_its_own() {
        for size in [4, 8, 16] {
            for rank in 0..size {
                let sent = rounds(rank, size).flat_map(|round| round.given);
                let mut sent: Vec<usize> = sent.map(|position| reversed(position, size)).collect();
                sent.sort_unstable();
                assert_eq!(sent, others(rank, size).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn partners_name_each_other_and_keep_what_the_other_gives() {
        for rank in 0..16 {
            for (index, round) in rounds(rank, 16).enumerate() {
                let theirs = rounds(round.partner, 16).nth(index).unwrap();
                assert_eq!((theirs.partner, theirs.given, theirs.kept), (rank, round.kept, round.given));
            }
        }
    }
}
