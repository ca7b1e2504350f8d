//! The loss of the next token with the model's head, and its gradients, without the matrix of all
//! logits.
//!
//! Rows come in chunks. The logits of a chunk turn in place into their gradient, tile by tile, and
//! the chunk adds its part to the gradient of the matrix. So each logit is computed once, also for
//! training.
//!
//! Shape letters: t tokens, d model width, v vocabulary.

mod rows;

use std::ops::Range;

use rayon::prelude::*;

use crate::bf16::Compute;
use crate::blocks::InPlace;
use crate::matrix::Matrix;
use crate::panel_product::{add_product, fill_with_product};
use crate::unwritten::{Part, Unwritten};

/// Rows of one task.
const TILE_ROWS: usize = 128;
/// Fewest rows of a chunk: each chunk passes over the gradient of the matrix, which must be worth
/// its while.
const MIN_CHUNK_ROWS: usize = 512;
/// About the logits of a chunk, if it may have more rows: they stay in the last-level cache.
const CHUNK_LEN: usize = 1 << 21;
/// Rows of the gradient of the matrix that one task computes, in the matrix's own memory order.
const GRADIENT_ROWS: usize = 128;

/// The operands.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// `[t, d]`.
    pub x: Matrix<'a>,
    /// `[d, v]`.
    pub w: Matrix<'a>,
    /// The column that each token should have chosen; `None` where it does not count.
    pub targets: &'a [Option<usize>],
    /// Weight of the mean squared log-partition, 0 for none.
    pub z_loss_weight: f64,
    /// What the factors of products are rounded to.
    pub compute: Compute,
}

/// Gradients of the mean loss.
#[derive(Debug)]
pub struct Gradients {
    /// Row-major `[t, d]`.
    pub dx: Vec<f32>,
    /// Rows of the matrix, or its columns if it was asked for by columns, one after another.
    pub dw: Vec<f32>,
}

/// Sums over tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sums {
    cross_entropy: f64,
    square_log_partition: f64,
}

/// Means over the tokens that count; zeros if none does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Means {
    /// Cross-entropy plus the weighted squared log-partition.
    pub total: f64,
    /// `logsumexp(logits) - logits[target]`, in nats.
    pub cross_entropy: f64,
    /// `logsumexp(logits)^2`, unweighted.
    pub square_log_partition: f64,
}

/// Rows whose logits exist at a time, with a vocabulary of `vocab_size`.
pub fn chunk_rows(vocab_size: usize) -> usize {
    (CHUNK_LEN / vocab_size).next_multiple_of(TILE_ROWS).max(MIN_CHUNK_ROWS)
}

impl Head<'_> {
    /// The losses alone.
    ///
    /// # Panics
    /// If the shapes do not fit, one of them is empty, or a target is not below v.
    pub fn losses(self) -> Means {
        let num_tiles = self.num_rows().div_ceil(TILE_ROWS);
        let sums: Vec<Sums> = (0..num_tiles)
            .into_par_iter()
            .map(|tile| {
                let first = tile * TILE_ROWS;
                let rows = first..(first + TILE_ROWS).min(self.num_rows());
                let mut logits = Unwritten::new(rows.len() * self.w.num_columns());
                self.logits_to_gradient(rows, logits.whole()).1
            })
            .collect();
        self.means(&sums)
    }

    /// The losses with their gradients; that of the matrix by its columns if `by_columns`.
    ///
    /// # Panics
    /// As [`Head::losses`].
    pub fn losses_and_gradients(self, by_columns: bool) -> (Means, Gradients) {
        let (d, v) = (self.w.num_rows(), self.w.num_columns());
        let chunk_rows = chunk_rows(v);
        let (mut dx, mut sums) = (Unwritten::new(self.num_rows() * d), Vec::new());
        let mut dw = MatrixGradient::Unwritten(Unwritten::new(d * v));
        for (chunk, dx) in dx.whole().chunks(chunk_rows * d).enumerate() {
            let first = chunk * chunk_rows;
            let rows = first..first + dx.len() / d;
            let (dlogits, sums_of_tiles) = self.chunk(rows.clone(), dx);
            sums.extend(sums_of_tiles);
            let (x, dlogits) = (self.x.rows(rows), Matrix::row_major(&dlogits, v));
            dw = match by_columns {
                true => dw.plus(dlogits.transposed(), x, self.compute),
                false => dw.plus(x.transposed(), dlogits, self.compute),
            };
        }
        (self.means(&sums), Gradients { dx: dx.into_values(), dw: dw.finish() })
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

    /// The gradient of the logits of `rows`, and each tile's sums. Fills `dx` with the gradient of
    /// the rows.
    fn chunk(&self, rows: Range<usize>, dx: Part<'_>) -> (Vec<f32>, Vec<Sums>) {
        let (d, v) = (self.w.num_rows(), self.w.num_columns());
        let mut dlogits = Unwritten::new(rows.len() * v);
        let tiles: Vec<_> = dlogits.whole().chunks(TILE_ROWS * v).zip(dx.chunks(TILE_ROWS * d)).collect();
        let sums = tiles
            .into_par_iter()
            .enumerate()
            .map(|(tile, (dlogits, dx))| {
                let first = rows.start + tile * TILE_ROWS;
                let (dlogits, sums) = self.logits_to_gradient(first..first + dx.len() / d, dlogits);
                let dlogits = Matrix::row_major(dlogits, v);
                dx.fill(|dx| fill_with_product(dx, dlogits, self.w.transposed(), self.compute));
                sums
            })
            .collect();
        (dlogits.into_values(), sums)
    }

    /// Fills `logits` with the gradient of the logits of `rows`, and returns it with the rows'
    /// sums.
    fn logits_to_gradient<'l>(&self, rows: Range<usize>, logits: Part<'l>) -> (&'l mut [f32], Sums) {
        let share = 1.0 / self.num_counted() as f64;
        let x = self.x.rows(rows.clone());
        let logits = logits.fill(|logits| fill_with_product(logits, x, self.w, self.compute));
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

/// The sum of products that is the gradient of the matrix. The first product writes it: zeros to
/// add to would cost a pass over all of it.
enum MatrixGradient {
    Unwritten(Unwritten),
    Sum(Vec<f32>),
}

impl MatrixGradient {
    fn plus(self, a: Matrix<'_>, b: Matrix<'_>, compute: Compute) -> Self {
        let n = b.num_columns();
        let rows_of = |task: usize, len: usize| {
            let first = task * GRADIENT_ROWS;
            a.rows(first..first + len / n)
        };
        match self {
            Self::Unwritten(mut sum) => {
                sum.whole().fill_chunks(GRADIENT_ROWS * n, 1, |task, c| {
                    let rows = rows_of(task, c.len());
                    fill_with_product(c, rows, b, compute)
                });
                Self::Sum(sum.into_values())
            }
            Self::Sum(mut sum) => {
                let blocks = sum.par_chunks_mut(GRADIENT_ROWS * n).enumerate();
                blocks.for_each(|(task, c)| {
                    let rows = rows_of(task, c.len());
                    add_product(c, rows, b, compute);
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

/// `gradient = factor * gradient`.
///
/// # Panics
/// If there are fewer source elements.
pub fn scale(gradient: InPlace<'_>, factor: f32) {
    gradient.par_blocks().for_each(|block| rows::scale(block, factor));
}
