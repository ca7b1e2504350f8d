//! Which rank updates which parameters and keeps what the optimizer remembers of them: each a part
//! (ZeRO stage 1, arXiv:1910.02054, section 5.1).
//!
//! Small parameters make buckets, whose gradients travel together, a large one alone. A bucket is cut into as
//! many slices of about the same length as there are ranks, between blocks: the elements whose
//! squares make one addend of a norm, or, for Muon, the matrix whose update is one. So every number
//! that a rank finds of its slice is one that a process alone finds too.

use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use switchyard_comm::{Comm, CommError, Traffic, cost};
use switchyard_kernels::SQUARE_SUM_BLOCK;
use switchyard_model::{Named, ParameterName};

use crate::readings::{DeviceReadError, read_floats};

/// Elements from which on a bucket is closed: 16 MiB in f32, far above what a message costs by
/// itself.
const BUCKET_ELEMENTS: usize = 1 << 22;
/// Elements from which on a parameter is a bucket of its own, whose values need not be put together
/// and cut apart: 4 MiB in f32.
const LONE_ELEMENTS: usize = 1 << 20;

/// A parameter that learns, as it may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Divisible {
    pub(crate) name: ParameterName,
    pub(crate) num_elements: usize,
    /// Rows that have norms of their own: the experts of a stack, or 1.
    pub(crate) num_rows: usize,
    /// Rows are not cut: the update of an element depends on all of its row.
    pub(crate) keeps_rows_whole: bool,
}

/// The ranks of a run: replicas of a group, whose members have some experts each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Ranks of the run.
    pub(crate) num_ranks: usize,
    /// Ranks of a group, neighbours.
    pub(crate) group_len: usize,
    /// This rank.
    pub(crate) rank: usize,
}

/// The parameters that learn, spread over ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sharding {
    layout: Layout,
    buckets: Vec<Bucket>,
}

/// Parameters whose values travel together, between their holders: the ranks that have the same
/// elements of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bucket {
    parameters: Vec<Divisible>,
    /// Parts of each parameter, of which a rank of a group has one; 1 if each has all.
    num_parts: usize,
    /// What each holder updates, of the elements that it has, the parameters one after another.
    slices: Vec<Range<usize>>,
}

/// The groups of ranks between which values travel.
#[derive(Debug, Clone)]
pub(crate) struct Groups {
    /// All.
    pub(crate) all: Comm,
    /// Those that have the experts that this rank has.
    pub(crate) replicas: Comm,
}

/// Consecutive elements of one parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) of: Divisible,
    pub(crate) elements: Range<usize>,
}

/// Values of a piece.
#[derive(Debug)]
pub(crate) struct PieceValues {
    pub(crate) piece: Piece,
    pub(crate) values_n: Tensor<1>,
}

/// Gradients of one update of the parameters that a rank updates.
#[derive(Debug)]
pub(crate) struct ShardGradients {
    pub(crate) sharding: Sharding,
    pub(crate) pieces: Vec<PieceValues>,
    /// The update multiplies every gradient by it.
    pub(crate) scale: f64,
}

/// What a rank sends in a step, other than numbers about it and tokens to experts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTraffic {
    /// To add the gradients of all ranks.
    pub gradients: Traffic,
    /// To have all parameters after each rank has updated some.
    pub parameters: Traffic,
}

/// Why values did not travel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShardingError {
    #[error(transparent)]
    Comm(#[from] CommError),
    #[error(transparent)]
    Device(#[from] DeviceReadError),
}

impl Divisible {
    pub(crate) fn row_len(&self) -> usize {
        self.num_elements / self.num_rows
    }

    /// Where the first block that is not cut begins from `element` on; the end if none does.
    fn next_block_start(self, element: usize) -> usize {
        let row_len = self.row_len();
        let step = if self.keeps_rows_whole { row_len } else { SQUARE_SUM_BLOCK };
        let row_start = element / row_len * row_len;
        row_start + (element - row_start).next_multiple_of(step).min(row_len)
    }
}

impl Piece {
    /// The row that it begins in.
    pub(crate) fn first_row(&self) -> usize {
        self.elements.start / self.of.row_len()
    }

    /// Its parts row by row, within the piece.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Range<usize>> {
        let Range { start, end } = self.elements;
        let row_len = self.of.row_len();
        (start / row_len..end.div_ceil(row_len))
            .map(move |row| (row * row_len).max(start) - start..((row + 1) * row_len).min(end) - start)
    }
}

impl Bucket {
    fn new(parameters: Vec<Divisible>, num_parts: usize, num_holders: usize) -> Self {
        let of_part = |parameter: &Divisible| parameter.num_elements / num_parts;
        let num_elements: usize = parameters.iter().map(of_part).sum();
        let mut borders = vec![0];
        let mut first = 0;
        for parameter in &parameters {
            let end = first + of_part(parameter);
            // A block belongs to the holder in whose even share it begins.
            while borders.len() < num_holders {
                let share = (borders.len() as u128 * num_elements as u128).div_ceil(num_holders as u128);
                let start = first + parameter.next_block_start((share as usize).max(first) - first);
                if start >= end {
                    break;
                }
                borders.push(start);
            }
            first = end;
        }
        borders.resize(num_holders, num_elements);
        borders.push(num_elements);
        Self { parameters, num_parts, slices: borders.windows(2).map(|pair| pair[0]..pair[1]).collect() }
    }

    /// Elements that each holder has.
    fn num_elements(&self) -> usize {
        self.slices.last().map_or(0, |slice| slice.end)
    }

    /// Nothing travels then.
    fn has_one_holder(&self) -> bool {
        self.slices.len() == 1
    }

    /// Which holder a rank is, and of which part.
    fn holder(&self, rank: usize) -> (usize, usize) {
        (rank / self.num_parts, rank % self.num_parts)
    }

    /// The ranks, those of the first part first.
    fn ranks(&self) -> impl Iterator<Item = usize> {
        let (num_parts, num_holders) = (self.num_parts, self.slices.len());
        (0..num_parts).flat_map(move |part| (0..num_holders).map(move |holder| holder * num_parts + part))
    }

    fn comm<'a>(&self, groups: &'a Groups) -> &'a Comm {
        if self.num_parts == 1 { &groups.all } else { &groups.replicas }
    }

    /// The pieces of all ranks, and whose they are: of one parameter in order.
    pub(crate) fn all_pieces(&self) -> impl Iterator<Item = (usize, Piece)> {
        self.ranks().flat_map(|rank| self.pieces(rank).into_iter().map(move |piece| (rank, piece)))
    }

    /// What a rank updates of each parameter, in order.
    fn pieces(&self, rank: usize) -> Vec<Piece> {
        let (holder, part) = self.holder(rank);
        let slice = &self.slices[holder];
        let mut first = 0;
        let mut pieces = Vec::new();
        for parameter in &self.parameters {
            let len = parameter.num_elements / self.num_parts;
            let within = |border: usize| border.clamp(first, first + len) - first + part * len;
            let elements = within(slice.start)..within(slice.end);
            if !elements.is_empty() {
                pieces.push(Piece { of: *parameter, elements });
            }
            first += len;
        }
        pieces
    }
}

impl Sharding {
    /// `parameters` spread over all ranks, and then `of_experts`, of which each rank of a group has a
    /// part, over the ranks that have the same.
    pub(crate) fn new(parameters: &[Divisible], of_experts: &[Divisible], layout: Layout) -> Self {
        let Layout { num_ranks, group_len, .. } = layout;
        let mut buckets = cut_into_buckets(parameters, 1, num_ranks);
        buckets.extend(cut_into_buckets(of_experts, group_len, num_ranks / group_len));
        Self { layout, buckets }
    }

    /// The pieces of all ranks, and whose they are, bucket by bucket: of one parameter in order.
    pub(crate) fn all_pieces(&self) -> impl Iterator<Item = (usize, Piece)> {
        self.buckets.iter().flat_map(Bucket::all_pieces)
    }

    /// What travels together, in order.
    pub(crate) fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// The pieces of this rank in a bucket, in order.
    pub(crate) fn own_pieces_of(&self, bucket: &Bucket) -> Vec<Piece> {
        bucket.pieces(self.layout.rank)
    }

    /// The pieces of this rank, in order.
    pub(crate) fn own_pieces(&self) -> impl Iterator<Item = Piece> {
        self.buckets.iter().flat_map(|bucket| bucket.pieces(self.layout.rank))
    }

    /// The first element of a parameter that this rank has.
    pub(crate) fn first_element(&self, of: &Divisible) -> usize {
        let bucket = self.buckets.iter().find(|bucket| bucket.parameters.contains(of));
        bucket.map_or(0, |bucket| {
            let (_, part) = bucket.holder(self.layout.rank);
            part * (of.num_elements / bucket.num_parts)
        })
    }

    /// The ranks that the parameters are spread over.
    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// What each rank sends in [`Self::sum`] and in [`Self::all_gather`] of all buckets.
    pub(crate) fn traffic(&self) -> Vec<StepTraffic> {
        let mut of_ranks = vec![StepTraffic::default(); self.layout.num_ranks];
        for bucket in &self.buckets {
            let lens: Vec<usize> = bucket.slices.iter().map(ExactSizeIterator::len).collect();
            for (rank, traffic) in of_ranks.iter_mut().enumerate() {
                let (holder, _) = bucket.holder(rank);
                traffic.gradients = traffic.gradients + cost::ordered_sum_slices(holder, &lens);
                traffic.parameters = traffic.parameters + cost::all_gather_slices(holder, &lens);
            }
        }
        of_ranks
    }

    /// This rank's pieces of the sums of all ranks' `gradients` of the elements that each has, by the
    /// tree over the ranks.
    ///
    /// # Errors
    /// [`ShardingError`].
    ///
    /// # Panics
    /// If the gradients are of other parameters.
    pub(crate) fn sum(
        &self,
        gradients: Vec<Named<Tensor<1>>>,
        groups: &Groups,
    ) -> Result<Vec<PieceValues>, ShardingError> {
        let mut gradients: BTreeMap<ParameterName, Tensor<1>> =
            gradients.into_iter().map(|gradient| (gradient.name, gradient.value)).collect();
        let mut sums = Vec::new();
        for bucket in &self.buckets {
            let mut of_bucket = Vec::with_capacity(bucket.parameters.len());
            let mut device = Device::flex();
            for Divisible { name, .. } in &bucket.parameters {
                let gradient = gradients.remove(name).unwrap_or_else(|| panic!("no gradient of `{name}`"));
                device = gradient.device();
                of_bucket.push(read_floats(gradient)?);
            }
            let values = if of_bucket.len() == 1 { of_bucket.remove(0) } else { of_bucket.concat() };
            let slice = match bucket.has_one_holder() {
                true => values,
                false => bucket.comm(groups).ordered_sum_slices(&values, &bucket.slices)?,
            };
            sums.extend(cut(slice, bucket.pieces(self.layout.rank), &device));
        }
        Ok(sums)
    }

    /// The elements that this rank has of the parameters of a bucket, from its pieces in order and
    /// those of the others.
    ///
    /// # Errors
    /// [`ShardingError`].
    pub(crate) fn all_gather(
        &self,
        bucket: &Bucket,
        own: Vec<PieceValues>,
        groups: &Groups,
    ) -> Result<BTreeMap<ParameterName, Tensor<1>>, ShardingError> {
        let named = |all: PieceValues| (all.piece.of.name, all.values_n);
        if bucket.has_one_holder() {
            return Ok(own.into_iter().map(named).collect());
        }
        let mut values = vec![0.0; bucket.num_elements()];
        let (holder, _) = bucket.holder(self.layout.rank);
        let (mut place, mut device) = (bucket.slices[holder].start, Device::flex());
        for PieceValues { values_n, .. } in own {
            device = values_n.device();
            let of_piece = read_floats(values_n)?;
            values[place..][..of_piece.len()].copy_from_slice(&of_piece);
            place += of_piece.len();
        }
        bucket.comm(groups).all_gather_slices(&mut values, &bucket.slices)?;
        let all_that_it_has = |parameter: &Divisible| {
            let len = parameter.num_elements / bucket.num_parts;
            Piece { of: *parameter, elements: 0..len }
        };
        let pieces = bucket.parameters.iter().map(all_that_it_has).collect();
        Ok(cut(values, pieces, &device).into_iter().map(named).collect())
    }
}

/// Parameters of so many parts, spread over the holders of each part: first each large one, then the
/// others together.
fn cut_into_buckets(parameters: &[Divisible], num_parts: usize, num_holders: usize) -> Vec<Bucket> {
    let (large, small): (Vec<_>, Vec<_>) =
        parameters.iter().partition(|parameter| parameter.num_elements / num_parts >= LONE_ELEMENTS);
    let alone = |parameter| Bucket::new(vec![parameter], num_parts, num_holders);
    let mut buckets: Vec<Bucket> = large.into_iter().map(alone).collect();
    let mut open = Vec::new();
    let mut num_elements = 0;
    for parameter in small {
        num_elements += parameter.num_elements / num_parts;
        open.push(parameter);
        if num_elements >= BUCKET_ELEMENTS {
            buckets.push(Bucket::new(std::mem::take(&mut open), num_parts, num_holders));
            num_elements = 0;
        }
    }
    if !open.is_empty() {
        buckets.push(Bucket::new(open, num_parts, num_holders));
    }
    buckets
}

/// The values, cut into pieces that lie one after another in them.
fn cut(mut values: Vec<f32>, pieces: Vec<Piece>, device: &Device) -> Vec<PieceValues> {
    // From the end, so that the last cut leaves the first piece where it is.
    let mut cut: Vec<PieceValues> = pieces
        .into_iter()
        .rev()
        .map(|piece| {
            let of_piece = values.split_off(values.len() - piece.elements.len());
            let shape = [of_piece.len()];
            PieceValues { piece, values_n: Tensor::from_data(TensorData::new(of_piece, shape), device) }
        })
        .collect();
    cut.reverse();
    cut
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parameter(layer: usize, num_rows: usize, row_len: usize, keeps_rows_whole: bool) -> Divisible {
        let name = format!("blocks.{layer}.ffn.experts.up");
        let name = ParameterName::parse(&name).unwrap_or_else(|| panic!("no parameter `{name}`"));
        Divisible { name, num_elements: num_rows * row_len, num_rows, keeps_rows_whole }
    }

    fn sharding(layout: Layout, shapes: &[(usize, usize, bool)]) -> (Sharding, Vec<Divisible>) {
        let all: Vec<Divisible> = shapes
            .iter()
            .enumerate()
            .map(|(layer, (rows, len, whole))| parameter(layer, rows * layout.group_len, *len, *whole))
            .collect();
        let (on_all, of_experts) = all.split_at(all.len() / 2);
        (Sharding::new(on_all, of_experts, layout), all)
    }

    /// The definition: block by block.
    fn borders(parameters: &[Divisible], num_parts: usize, num_holders: usize) -> Vec<usize> {
        let num_elements: usize = parameters.iter().map(|of| of.num_elements / num_parts).sum();
        let (mut first, mut borders) = (0, vec![0]);
        for of in parameters {
            let row_len = of.row_len();
            let step = if of.keeps_rows_whole { row_len } else { SQUARE_SUM_BLOCK };
            for row in 0..of.num_rows / num_parts {
                for start in (0..row_len).step_by(step).map(|start| first + row * row_len + start) {
                    while borders.len() < num_holders && start * num_holders >= borders.len() * num_elements {
                        borders.push(start);
                    }
                }
            }
            first += of.num_elements / num_parts;
        }
        borders.resize(num_holders, num_elements);
        borders.push(num_elements);
        borders
    }

    proptest! {
        #[test]
        fn a_slice_begins_at_the_first_block_of_its_even_share(
            num_parts in 1_usize..4, num_holders in 1_usize..9,
            shapes in prop::collection::vec((1_usize..4, 1_usize..40_000, any::<bool>()), 1..8),
        ) {
            let parameters: Vec<Divisible> = shapes
                .iter()
                .enumerate()
                .map(|(layer, (rows, len, whole))| parameter(layer, rows * num_parts, *len, *whole))
                .collect();
            let expected = borders(&parameters, num_parts, num_holders);
            let bucket = Bucket::new(parameters, num_parts, num_holders);
            let found: Vec<_> = bucket.slices.iter().map(|slice| slice.start..slice.end).collect();
            let expected: Vec<_> = expected.windows(2).map(|pair| pair[0]..pair[1]).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn every_element_has_one_rank_and_no_block_has_two(
            level in 0_u32..3, replicas in 1_usize..5,
            shapes in prop::collection::vec((1_usize..4, 1_usize..40_000, any::<bool>()), 1..8),
        ) {
            let group_len = 1 << level;
            let layout = Layout { num_ranks: group_len * replicas, group_len, rank: 0 };
            let (sharding, all) = sharding(layout, &shapes);
            for of in all {
                let pieces: Vec<_> = sharding.all_pieces().filter(|(_, piece)| piece.of == of).collect();
                let mut end = 0;
                for (_, Piece { elements, .. }) in pieces {
                    prop_assert_eq!(elements.start, end);
                    let within_row = elements.start % of.row_len();
                    let block = if of.keeps_rows_whole { of.row_len() } else { SQUARE_SUM_BLOCK };
                    prop_assert_eq!(within_row % block, 0);
                    end = elements.end;
                }
                prop_assert_eq!(end, of.num_elements);
            }
        }

        #[test]
        fn ranks_have_even_shares_but_for_a_block(
            num_ranks in 1_usize..9, lens in prop::collection::vec(1_usize..90_000, 1..8),
        ) {
            let parameters: Vec<_> =
                lens.iter().enumerate().map(|(layer, len)| parameter(layer, 1, *len, false)).collect();
            let total: usize = lens.iter().sum();
            for rank in 0..num_ranks {
                let sharding = Sharding::new(&parameters, &[], Layout { num_ranks, group_len: 1, rank });
                let own: usize = sharding.own_pieces().map(|piece| piece.elements.len()).sum();
                let share = total / num_ranks;
                prop_assert!(own.abs_diff(share) <= SQUARE_SUM_BLOCK + 1, "{} instead of {}", own, share);
            }
        }
    }
}
