//! Sums over the ranks in one order, and their slices gathered.
//!
//! Among 4, 8, 16 ... ranks a rank sends one message for each doubling, else one to each other
//! rank. The bytes are as many, and the additions are the same.

use std::borrow::Cow;
use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};

use crate::CommError;
use crate::collectives::Comm;
use crate::plan::{self, Round};
use crate::transport::{Call, Incoming, Outgoing};
use crate::tree::tree_sum;

const SUM: &str = "ordered_sum";
const GATHER: &str = "all_gather";

impl Comm {
    /// The slice `slices[rank]` of the sum of every rank's `values`, by the tree of
    /// [`crate::tree`] over the ranks. With slices of one length it holds as much again as they have
    /// together.
    ///
    /// # Errors
    /// [`CommError`].
    ///
    /// # Panics
    /// If there is not a slice for each rank, or one lies outside the values.
    pub fn ordered_sum_slices(&self, values: &[f32], slices: &[Range<usize>]) -> Result<Vec<f32>, CommError> {
        assert!(slices.len() == self.size(), "{} slices for {} ranks", slices.len(), self.size());
        if plan::goes_by_halves(self.size()) {
            self.sum_by_halves(values, slices)
        } else {
            self.sum_where_owned(values, slices)
        }
    }

    /// Each rank has the elements of its slice; afterwards all have all. Holds as much again as the
    /// values while it works, or nothing where each rank sends to each other.
    ///
    /// # Errors
    /// [`CommError`].
    ///
    /// # Panics
    /// If the slices are not one for each rank, one after another from the first element to the
    /// last.
    pub fn all_gather_slices(&self, values: &mut [f32], slices: &[Range<usize>]) -> Result<(), CommError> {
        let end = slices.iter().try_fold(0, |end, slice| (end == slice.start).then_some(slice.end));
        assert!(
            slices.len() == self.size() && end == Some(values.len()),
            "{slices:?} of {} elements for {} ranks",
            values.len(),
            self.size()
        );
        if plan::goes_by_halves(self.size()) {
            self.gather_by_doubling(values, slices)
        } else {
            self.gather_from_owners(values, slices)
        }
    }

    /// `values` become the sum of every rank's, by the tree of [`crate::tree`] over the ranks: the
    /// same bits on each. Holds as much again while it works.
    ///
    /// # Errors
    /// [`CommError`].
    pub fn ordered_sum(&self, values: &mut [f32]) -> Result<(), CommError> {
        if self.size() == 1 {
            return Ok(());
        }
        let slices = even_slices(values.len(), self.size());
        let sum = self.ordered_sum_slices(values, &slices)?;
        values[slices[self.rank()].clone()].copy_from_slice(&sum);
        drop(sum);
        self.all_gather_slices(values, &slices)
    }

    fn sum_by_halves(&self, values: &[f32], slices: &[Range<usize>]) -> Result<Vec<f32>, CommError> {
        let packed = Packed::new(slices);
        let mut rounds = plan::rounds(self.rank(), self.size()).enumerate();
        let Some((index, Round { partner, given, kept: held })) = rounds.next() else {
            return self.sum_where_owned(values, slices);
        };
        let mut buffer = Vec::with_capacity(packed.place(given.clone()).len());
        given.for_each(|position| buffer.extend_from_slice(&values[packed.slice(position)]));
        let mut sums = vec![0.0; packed.place(held.clone()).len()];
        self.swap(self.call_of_round(SUM, index), partner, &buffer, &mut sums)?;
        // Where slices lie in `sums`, which has those of `held` alone.
        let start = packed.starts[held.start];
        let place = |positions: Range<usize>| {
            let place = packed.place(positions);
            place.start - start..place.end - start
        };
        for position in held {
            add(&values[packed.slice(position)], &mut sums[place(position..position + 1)]);
        }
        let mut own = 0..sums.len();
        for (index, Round { partner, given, kept }) in rounds {
            own = place(kept);
            buffer.resize(own.len(), 0.0);
            self.swap(self.call_of_round(SUM, index), partner, &sums[place(given)], &mut buffer)?;
            add(&buffer, &mut sums[own.clone()]);
        }
        drop(buffer);
        Ok(sums[own].to_vec())
    }

    /// The rounds of [`Self::sum_by_halves`] backwards: the most goes to the nearest rank here too.
    fn gather_by_doubling(&self, values: &mut [f32], slices: &[Range<usize>]) -> Result<(), CommError> {
        let packed = Packed::new(slices);
        let mut gathered = vec![0.0; values.len()];
        let own = plan::reversed(self.rank(), self.size());
        gathered[packed.place(own..own + 1)].copy_from_slice(&values[packed.slice(own)]);
        for (index, Round { partner, given, kept }) in
            plan::rounds(self.rank(), self.size()).rev().enumerate()
        {
            // They lie side by side.
            let (left, right) = gathered.split_at_mut(packed.starts[given.start.max(kept.start)]);
            let (own, theirs) = if kept.start < given.start {
                (&left[packed.starts[kept.start]..], &mut right[..packed.place(given).len()])
            } else {
                (&right[..packed.place(kept).len()], &mut left[packed.starts[given.start]..])
            };
            self.swap(self.call_of_round(GATHER, index), partner, own, theirs)?;
        }
        for position in 0..self.size() {
            values[packed.slice(position)].copy_from_slice(&gathered[packed.place(position..position + 1)]);
        }
        Ok(())
    }

    fn swap(&self, call: Call, partner: usize, given: &[f32], taken: &mut [f32]) -> Result<(), CommError> {
        let partner = self.members[partner];
        let send = Outgoing { to: partner, bytes: cast_slice(given) };
        self.run(&[send], vec![Incoming { from: partner, bytes: cast_slice_mut(taken) }], call)
    }

    fn sum_where_owned(&self, values: &[f32], slices: &[Range<usize>]) -> Result<Vec<f32>, CommError> {
        let own = &values[slices[self.rank()].clone()];
        let leaf = |rank| if rank == self.rank() { Cow::Borrowed(own) } else { vec![0.0; own.len()].into() };
        let mut leaves: Vec<Cow<'_, [f32]>> = (0..self.size()).map(leaf).collect();
        let targets = leaves.iter_mut().enumerate().filter_map(|(rank, leaf)| match leaf {
            Cow::Owned(received) => Some((rank, cast_slice_mut(received.as_mut_slice()))),
            Cow::Borrowed(_) => None,
        });
        self.exchange_with_others(SUM, |rank| cast_slice(&values[slices[rank].clone()]), targets)?;
        Ok(tree_sum(leaves, added).unwrap_or_default().into_owned())
    }

    fn gather_from_owners(&self, values: &mut [f32], slices: &[Range<usize>]) -> Result<(), CommError> {
        let (mut own, mut rest): (&[f32], _) = (&[], values);
        let mut targets: Vec<(usize, &mut [u8])> = Vec::with_capacity(slices.len());
        for (rank, slice) in slices.iter().enumerate() {
            let (part, behind) = rest.split_at_mut(slice.len());
            if rank == self.rank() {
                own = part
            } else {
                targets.push((rank, cast_slice_mut(part)))
            }
            rest = behind;
        }
        self.exchange_with_others(GATHER, |_| cast_slice(own), targets.into_iter())
    }
}

/// The slices one after another in the order of [`plan::reversed`], in which the messages of all
/// rounds are runs of elements and none has to be put together but the first.
struct Packed<'a> {
    slices: &'a [Range<usize>],
    /// Where the slice at each position begins, and the end.
    starts: Vec<usize>,
}

impl<'a> Packed<'a> {
    fn new(slices: &'a [Range<usize>]) -> Self {
        let mut packed = Self { slices, starts: vec![0] };
        let mut end = 0;
        for position in 0..slices.len() {
            end += packed.slice(position).len();
            packed.starts.push(end);
        }
        packed
    }

    /// The slice at `position`, of the values that are not packed.
    fn slice(&self, position: usize) -> Range<usize> {
        self.slices[plan::reversed(position, self.slices.len())].clone()
    }

    /// Where the slices at `positions` lie.
    fn place(&self, positions: Range<usize>) -> Range<usize> {
        self.starts[positions.start]..self.starts[positions.end]
    }
}

/// The sums of both, in the place of one of them, if one is a buffer of its own.
fn added<'a>(left: Cow<'a, [f32]>, right: Cow<'a, [f32]>) -> Cow<'a, [f32]> {
    let (sums, others) = if matches!(left, Cow::Owned(_)) { (left, right) } else { (right, left) };
    let mut sums = sums.into_owned();
    add(&others, &mut sums);
    sums.into()
}

/// `sums` become the sums with `others`. An addition has the same bits either way round (but for
/// the payload of a NaN, which Rust leaves open): it does not matter which is left in the tree.
fn add(others: &[f32], sums: &mut [f32]) {
    sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
}

/// `len` elements cut into `num` slices, as equal as can be, the longer ones first.
pub fn even_slices(len: usize, num: usize) -> Vec<Range<usize>> {
    let (short, num_longer) = (len / num, len % num);
    let start = |slice: usize| slice * short + slice.min(num_longer);
    (0..num).map(|slice| start(slice)..start(slice + 1)).collect()
}
