//! Which rank updates which parameters and keeps what the optimizer remembers of them: each a part
//! (ZeRO stage 1, arXiv:1910.02054, section 5.1).
//!
//! Consecutive parameters make a bucket, whose gradients travel together. A bucket is cut into as
//! many slices of about the same length as there are ranks, between blocks: the elements whose
//! squares make one addend of a norm, or, for Muon, the matrix whose update is one. So every number
//! that a rank finds of its slice is one that a process alone finds too.

use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};
use switchyard_comm::{Comm, CommError};
use switchyard_kernels::SQUARE_SUM_BLOCK;
use switchyard_model::{Named, ParameterName};

use crate::readings::{DeviceReadError, read_floats};

/// Elements from which on a bucket is closed: 16 MiB in f32, far above what a message costs by
/// itself.
const BUCKET_ELEMENTS: usize = 1 << 22;

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

/// The parameters that learn, spread over ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sharding {
    rank: usize,
    buckets: Vec<Bucket>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Bucket {
    parameters: Vec<Divisible>,
    /// Elements of each rank, of the parameters one after another.
    slices: Vec<Range<usize>>,
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

    /// Where the blocks begin that are not cut.
    fn block_starts(self) -> impl Iterator<Item = usize> {
        let row_len = self.row_len();
        let step = if self.keeps_rows_whole { row_len } else { SQUARE_SUM_BLOCK };
        let of_row = move |row: usize| (0..row_len).step_by(step).map(move |start| row * row_len + start);
        (0..self.num_rows).flat_map(of_row)
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
    fn new(parameters: Vec<Divisible>, num_ranks: usize) -> Self {
        let num_elements: usize = parameters.iter().map(|parameter| parameter.num_elements).sum();
        let mut first = 0;
        let mut borders = vec![0];
        for parameter in &parameters {
            for start in parameter.block_starts().map(|start| first + start) {
                // The block belongs to the rank in whose even share it begins.
                while borders.len() < num_ranks && start * num_ranks >= borders.len() * num_elements {
                    borders.push(start);
                }
            }
            first += parameter.num_elements;
        }
        borders.resize(num_ranks, num_elements);
        borders.push(num_elements);
        Self { parameters, slices: borders.windows(2).map(|pair| pair[0]..pair[1]).collect() }
    }

    fn num_elements(&self) -> usize {
        self.slices.last().map_or(0, |slice| slice.end)
    }

    /// What a rank has of each parameter, in order.
    fn pieces(&self, rank: usize) -> Vec<Piece> {
        let slice = &self.slices[rank];
        let mut first = 0;
        let mut pieces = Vec::new();
        for parameter in &self.parameters {
            let elements = slice.start.clamp(first, first + parameter.num_elements) - first
                ..slice.end.clamp(first, first + parameter.num_elements) - first;
            if !elements.is_empty() {
                pieces.push(Piece { of: *parameter, elements });
            }
            first += parameter.num_elements;
        }
        pieces
    }
}

impl Sharding {
    /// `parameters` spread over the ranks of `comm`.
    pub(crate) fn new(parameters: &[Divisible], comm: &Comm) -> Self {
        let mut buckets = Vec::new();
        let mut open = Vec::new();
        let mut num_elements = 0;
        for parameter in parameters {
            open.push(*parameter);
            num_elements += parameter.num_elements;
            if num_elements >= BUCKET_ELEMENTS {
                buckets.push(Bucket::new(std::mem::take(&mut open), comm.size()));
                num_elements = 0;
            }
        }
        if !open.is_empty() {
            buckets.push(Bucket::new(open, comm.size()));
        }
        Self { rank: comm.rank(), buckets }
    }

    /// The pieces of all ranks, bucket by bucket: one parameter's come in order.
    pub(crate) fn all_pieces(&self) -> impl Iterator<Item = (usize, Piece)> {
        self.buckets.iter().flat_map(|bucket| {
            (0..bucket.slices.len())
                .flat_map(|rank| bucket.pieces(rank).into_iter().map(move |piece| (rank, piece)))
        })
    }

    /// The pieces of this rank, in order.
    pub(crate) fn own_pieces(&self) -> impl Iterator<Item = Piece> {
        self.buckets.iter().flat_map(|bucket| bucket.pieces(self.rank))
    }

    /// This rank's pieces of the sums of all ranks' `gradients`, by the tree over the ranks.
    ///
    /// # Errors
    /// [`ShardingError`].
    ///
    /// # Panics
    /// If the gradients are of other parameters.
    pub(crate) fn sum(
        &self,
        gradients: Vec<Named<Tensor<1>>>,
        comm: &Comm,
    ) -> Result<Vec<PieceValues>, ShardingError> {
        let mut gradients = gradients.into_iter();
        let mut sums = Vec::new();
        for bucket in &self.buckets {
            let mut values = Vec::new();
            let mut device = Device::flex();
            for parameter in &bucket.parameters {
                let gradient =
                    gradients.next().unwrap_or_else(|| panic!("no gradient of `{}`", parameter.name));
                assert_eq!(gradient.name, parameter.name, "gradients of other parameters");
                device = gradient.value.device();
                let of_parameter = read_floats(gradient.value)?;
                // A bucket of one parameter is not copied.
                if values.is_empty() { values = of_parameter } else { values.extend(of_parameter) }
            }
            let slice = comm.ordered_sum_slices(&values, &bucket.slices)?;
            drop(values);
            sums.extend(cut(slice, bucket.pieces(self.rank), &device));
        }
        Ok(sums)
    }

    /// Every parameter, from this rank's pieces in order and those of the others.
    ///
    /// # Errors
    /// [`ShardingError`].
    pub(crate) fn all_gather(
        &self,
        own: Vec<PieceValues>,
        comm: &Comm,
    ) -> Result<BTreeMap<ParameterName, Tensor<1>>, ShardingError> {
        let mut own = own.into_iter();
        let mut parameters = BTreeMap::new();
        for bucket in &self.buckets {
            let mut values = vec![0.0; bucket.num_elements()];
            let (mut place, mut device) = (bucket.slices[self.rank].start, Device::flex());
            for piece in bucket.pieces(self.rank) {
                let PieceValues { values_n, .. } =
                    own.next().unwrap_or_else(|| panic!("no values of {piece:?}"));
                device = values_n.device();
                let of_piece = read_floats(values_n)?;
                values[place..][..of_piece.len()].copy_from_slice(&of_piece);
                place += of_piece.len();
            }
            comm.all_gather_slices(&mut values, &bucket.slices)?;
            let whole = |parameter: &Divisible| Piece { of: *parameter, elements: 0..parameter.num_elements };
            let wholes = bucket.parameters.iter().map(whole).collect();
            let named = cut(values, wholes, &device).into_iter().map(|all| (all.piece.of.name, all.values_n));
            parameters.extend(named);
        }
        Ok(parameters)
    }
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
