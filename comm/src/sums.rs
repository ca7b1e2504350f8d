//! Sums over the ranks in one order, and their slices gathered.
//!
//! Among 4, 8, 16 ... ranks a rank sends one message for each doubling, else one to each other rank.
//! The bytes are as many, and so are the additions.

use std::borrow::Cow;
use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};

use crate::collectives::Comm;
use crate::transport::{Call, Incoming, Outgoing};
use crate::tree::tree_sum;
use crate::{CommError, plan};

const SUM: &str = "ordered_sum";
const GATHER: &str = "all_gather";

impl Comm {
    /// The slice `slices[rank]` of the sum of every rank's `values`, by the tree of
    /// [`crate::tree`] over the ranks. Holds as much again as the slices have together.
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

    /// Each rank has the elements of its slice; afterwards all have all. Holds at most as much again
    /// as the values.
    ///
    /// # Errors
    /// [`CommError`].
    ///
    /// # Panics
    /// If the slices are not one for each rank, one after another from the first element to the last.
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
    /// same bits on each. Holds at most as much again.
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

    /// Each round adds to the slices that this rank keeps those of the other half of a block.
    fn sum_by_halves(&self, values: &[f32], slices: &[Range<usize>]) -> Result<Vec<f32>, CommError> {
        let mut held = Cow::Borrowed(values);
        // Where each rank's slice lies in `held`; of those that have been sent, where it lay.
        let mut places = slices.to_vec();
        for (index, round) in plan::rounds(self.rank(), self.size()).enumerate() {
            let given = packed(&held, round.alike(round.partner).map(|rank| &places[rank]));
            let mut sums = vec![0.0; round.alike(self.rank()).map(|rank| places[rank].len()).sum()];
            self.swap(self.call_of_round(SUM, index), round.partner, &given, &mut sums)?;
            let mut start = 0;
            for rank in round.alike(self.rank()) {
                let own = &held[places[rank].clone()];
                places[rank] = start..start + own.len();
                start += own.len();
                add(own, &mut sums[places[rank].clone()]);
            }
            held = Cow::Owned(sums);
        }
        Ok(held.into_owned())
    }

    /// The rounds of [`Self::sum_by_halves`] backwards: the most goes to the nearest rank here too.
    fn gather_by_doubling(&self, values: &mut [f32], slices: &[Range<usize>]) -> Result<(), CommError> {
        for (index, round) in plan::rounds(self.rank(), self.size()).rev().enumerate() {
            let own = packed(values, round.alike(self.rank()).map(|rank| &slices[rank]));
            let mut theirs = vec![0.0; round.alike(round.partner).map(|rank| slices[rank].len()).sum()];
            self.swap(self.call_of_round(GATHER, index), round.partner, &own, &mut theirs)?;
            let mut rest = theirs.as_slice();
            for rank in round.alike(round.partner) {
                let (part, behind) = rest.split_at(slices[rank].len());
                values[slices[rank].clone()].copy_from_slice(part);
                rest = behind;
            }
        }
        Ok(())
    }

    fn swap(&self, call: Call, partner: usize, given: &[f32], taken: &mut [f32]) -> Result<(), CommError> {
        let partner = self.members[partner];
        let send = Outgoing { to: partner, bytes: cast_slice(given) };
        self.run(&[send], vec![Incoming { from: partner, bytes: cast_slice_mut(taken) }], call)
    }

    fn sum_where_owned(&self, values: &[f32], slices: &[Range<usize>]) -> Result<Vec<f32>, CommError> {
        let parts: Vec<&[u8]> = slices.iter().map(|slice| cast_slice(&values[slice.clone()])).collect();
        let own_len = slices[self.rank()].len();
        let mut received = vec![vec![0.0_f32; own_len]; self.size()];
        let mut targets: Vec<&mut [u8]> =
            received.iter_mut().map(|part| cast_slice_mut(part.as_mut_slice())).collect();
        self.exchange_into(SUM, &parts, &mut targets)?;
        let sum = tree_sum(received, |mut left, right| {
            add(&right, &mut left);
            left
        });
        Ok(sum.unwrap_or_default())
    }

    fn gather_from_owners(&self, values: &mut [f32], slices: &[Range<usize>]) -> Result<(), CommError> {
        let own = values[slices[self.rank()].clone()].to_vec();
        let parts = vec![cast_slice(&own); self.size()];
        let mut rest = values;
        let mut targets: Vec<&mut [u8]> = Vec::with_capacity(slices.len());
        for slice in slices {
            let (part, behind) = rest.split_at_mut(slice.len());
            targets.push(cast_slice_mut(part));
            rest = behind;
        }
        self.exchange_into(GATHER, &parts, &mut targets)
    }
}

/// The elements at `places`, one after another.
fn packed<'a>(values: &[f32], places: impl Iterator<Item = &'a Range<usize>> + Clone) -> Vec<f32> {
    let mut packed = Vec::with_capacity(places.clone().map(Range::len).sum());
    places.for_each(|place| packed.extend_from_slice(&values[place.clone()]));
    packed
}

/// `sums` become the sums with `others`. An addition has the same bits either way round (but for the
/// payload of a NaN, which Rust leaves open), so which of them is left in the tree does not matter.
fn add(others: &[f32], sums: &mut [f32]) {
    sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
}

/// `len` elements cut into `num` slices, as equal as can be, the longer ones first.
pub fn even_slices(len: usize, num: usize) -> Vec<Range<usize>> {
    let (short, num_longer) = (len / num, len % num);
    let start = |slice: usize| slice * short + slice.min(num_longer);
    (0..num).map(|slice| start(slice)..start(slice + 1)).collect()
}
