//! The loss and its gradients on the CPU, without the matrix of all logits.
//!
//! Rows come in chunks. The logits of a chunk turn in place into their gradient, tile by tile, and the chunk adds its part
//! to the gradient of the matrix. So each logit is computed once, also for training.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::rows;
use crate::matrix::{Matrix, Unwritten};
use crate::panel_product::{add_product, fill_with_product};

/// Rows of one task.
const TILE_ROWS: usize = 128;
/// Fewest rows of a chunk: each chunk passes over the gradient of the matrix, which must be worth its while.
const MIN_CHUNK_ROWS: usize = 512;
/// About the logits of a chunk, if it may have more rows: they stay in the last-level cache.
const CHUNK_LEN: usize = 1 << 21;
/// Rows of the gradient of the matrix that one task computes, in the matrix's own memory order.
const GRADIENT_ROWS: usize = 128;

/// The operands.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    /// `[t, d]`.
    pub(super) x: Matrix<'a>,
    /// `[d, v]`.
    pub(super) w: Matrix<'a>,
    /// The column that each token should have chosen; none where it does not count.
    pub(super) targets: &'a [Option<usize>],
    pub(super) z_loss_weight: f64,
}

/// Gradients of the mean loss.
pub(super) struct Gradients {
    /// Row-major `[t, d]`.
    pub(super) dx: Vec<f32>,
    /// Rows of the matrix, or its columns if it was asked for by columns, one after another.
    pub(super) dw: Vec<f32>,
}

/// Sums over tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sums {
    cross_entropy: f64,
    square_log_partition: f64,
}

/// Means over the tokens that count; zeros if none does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Means {
    pub(super) total: f64,
    pub(super) cross_entropy: f64,
    pub(super) square_log_partition: f64,
}

/// Rows whose logits exist at a time, with a vocabulary of `vocab_size`.
pub(super) fn chunk_rows(vocab_size: usize) -> usize {
    (CHUNK_LEN / vocab_size).next_multiple_of(TILE_ROWS).max(MIN_CHUNK_ROWS)
}

impl Head<'_> {
    /// The losses alone.
    pub(super) fn losses(self) -> Means {
        let num_tiles = self.num_rows().div_ceil(TILE_ROWS);
        let sums: Vec<Sums> = (0..num_tiles)
            .into_par_iter()
            .map(|tile| {
                let first = tile * TILE_ROWS;
                let rows = first..(first + TILE_ROWS).min(self.num_rows());
                let mut logits = Unwritten::new(rows.len() * self.w.num_columns());
                self.logits_to_gradient(rows, logits.as_mut_slice()).1
            })
            .collect();
        self.means(&sums)
    }

    /// The losses with their gradients; that of the matrix by its columns if `by_columns`.
    pub(super) fn losses_and_gradients(self, by_columns: bool) -> (Means, Gradients) {
        let (d, v) = (self.w.num_rows(), self.w.num_columns());
        let chunk_rows = chunk_rows(v);
        let (mut dx, mut sums) = (Unwritten::new(self.num_rows() * d), Vec::new());
        let mut dw = MatrixGradient::Unwritten(Unwritten::new(d * v));
        for (chunk, dx) in dx.as_mut_slice().chunks_mut(chunk_rows * d).enumerate() {
            let first = chunk * chunk_rows;
            let rows = first..first + dx.len() / d;
            let (dlogits, sums_of_tiles) = self.chunk(rows.clone(), dx);
            sums.extend(sums_of_tiles);
            let (x, dlogits) = (self.x.rows(rows), Matrix::row_major(&dlogits, v));
            dw = match by_columns {
                true => dw.plus(dlogits.transposed(), x),
                false => dw.plus(x.transposed(), dlogits),
            };
        }
        // SAFETY: the chunks cover all rows, and each writes all of its own.
        let dx = unsafe { dx.written() };
        (self.means(&sums), Gradients { dx, dw: dw.finish() })
    }

    fn num_rows(&self) -> usize {
        self.targets.len()
    }

    fn num_counted(&self) -> usize {
        self.targets.iter().flatten().count().max(1)
    }

    fn means(&self, sums: &[Sums]) -> Means {
        let num_counted = self.num_counted() as f64;
        let mean = |of: fn(&Sums) -> f64| sums.iter().map(of).sum::<f64>() / num_counted;
        let cross_entropy = mean(|sums| sums.cross_entropy);
        let square_log_partition = mean(|sums| sums.square_log_partition);
        let total = cross_entropy + self.z_loss_weight * square_log_partition;
        Means { total, cross_entropy, square_log_partition }
    }

    /// The gradient of the logits of `rows`, and each tile's sums. Fills `dx` with the gradient of the rows.
    fn chunk(&self, rows: Range<usize>, dx: &mut [MaybeUninit<f32>]) -> (Vec<f32>, Vec<Sums>) {
        let (d, v) = (self.w.num_rows(), self.w.num_columns());
        let mut dlogits = Unwritten::new(rows.len() * v);
        let tiles =
            dlogits.as_mut_slice().par_chunks_mut(TILE_ROWS * v).zip(dx.par_chunks_mut(TILE_ROWS * d));
        let sums = tiles
            .enumerate()
            .map(|(tile, (dlogits, dx))| {
                let first = rows.start + tile * TILE_ROWS;
                let (dlogits, sums) = self.logits_to_gradient(first..first + dx.len() / d, dlogits);
                fill_with_product(dx, Matrix::row_major(dlogits, v), self.w.transposed());
                sums
            })
            .collect();
        // SAFETY: the tiles cover all rows, and each writes all of its own.
        (unsafe { dlogits.written() }, sums)
    }

    /// Fills `logits` with the gradient of the logits of `rows`, and returns it with the rows' sums.
    fn logits_to_gradient<'l>(
        &self,
        rows: Range<usize>,
        logits: &'l mut [MaybeUninit<f32>],
    ) -> (&'l mut [f32], Sums) {
        let share = 1.0 / self.num_counted() as f64;
        let logits = fill_with_product(logits, self.x.rows(rows.clone()), self.w);
        let mut sums = Sums::default();
        for (row, &target) in logits.chunks_mut(self.w.num_columns()).zip(&self.targets[rows]) {
            let Some(target) = target else {
                row.fill(0.0);
                continue;
            };
            let target_logit = f64::from(row[target]);
            let (max, sum) = rows::exponentials(row);
            let log_partition = f64::from(sum).ln() + f64::from(max);
            sums.cross_entropy += log_partition - target_logit;
            sums.square_log_partition += log_partition * log_partition;
            let slope = 1.0 + 2.0 * self.z_loss_weight * log_partition;
            rows::scale(row, (share * slope / f64::from(sum)) as f32);
            row[target] -= share as f32;
        }
        (logits, sums)
    }
}

/// The sum of products that is the gradient of the matrix. The first product writes it: zeros to add to would cost a
/// pass over all of it.
enum MatrixGradient {
    Unwritten(Unwritten),
    Sum(Vec<f32>),
}

impl MatrixGradient {
    fn plus(self, a: Matrix<'_>, b: Matrix<'_>) -> Self {
        let n = b.num_columns();
        let rows_of = |task: usize, len: usize| {
            let first = task * GRADIENT_ROWS;
            a.rows(first..first + len / n)
        };
        match self {
            Self::Unwritten(mut sum) => {
                let blocks = sum.as_mut_slice().par_chunks_mut(GRADIENT_ROWS * n).enumerate();
                blocks.for_each(|(task, c)| {
                    let rows = rows_of(task, c.len());
                    fill_with_product(c, rows, b);
                });
                // SAFETY: the blocks cover all rows, and each writes all of its own.
                Self::Sum(unsafe { sum.written() })
            }
            Self::Sum(mut sum) => {
                let blocks = sum.par_chunks_mut(GRADIENT_ROWS * n).enumerate();
                blocks.for_each(|(task, c)| {
                    let rows = rows_of(task, c.len());
                    add_product(c, rows, b);
                });
                Self::Sum(sum)
            }
        }
    }

    /// The sum; empty if nothing was added.
    fn finish(self) -> Vec<f32> {
        match self {
            Self::Unwritten(_) => Vec::new(),
            Self::Sum(sum) => sum,
        }
    }
}
