//! Work on many rows, cut into single-threaded matrix products that do not depend on the number of
//! threads.

use std::ops::Range;

use rayon::prelude::*;

use crate::bf16::{Compute, Element};
use crate::dispatch::Groups;
use crate::matrix::Matrix;
use crate::panel_product::{Factor, fill_with_product};
use crate::simd::{multiply_add, vectorised};
use crate::unwritten::{Part, Unwritten};

/// Rows of one tile, or up to half as many more. Each product brings its matrix into order first:
/// the more rows share that, the better. But a tile is a task, and with few rows there must be
/// enough of them.
const TILE_ROWS: usize = 256;
/// With fewer rows in all, tiles have half as many.
const MANY_ROWS: usize = 2048;
/// About the multiplications of one task of a weight gradient: a millisecond's work.
const TASK_MULTIPLICATIONS: usize = 1 << 26;
/// Rows of one task of a weight gradient are a multiple of this: with fewer, a product spends a
/// tenth of its time on bringing its operands into order.
const TASK_ROWS: usize = 128;
/// Columns of one task that sums over rows.
const SUM_COLUMNS: usize = 64;

/// Most rows of a tile.
pub const MAX_TILE_ROWS: usize = TILE_ROWS * 3 / 2;

/// Some rows of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowTile {
    pub(crate) group: usize,
    pub(crate) rows: Range<usize>,
}

impl RowTile {
    /// Every group's rows in tiles of nearly equal size, in order.
    pub(crate) fn of(groups: &Groups) -> Vec<Self> {
        let tile_rows = if groups.num_rows() < MANY_ROWS { TILE_ROWS / 2 } else { TILE_ROWS };
        let tiles_of = |(group, rows): (usize, Range<usize>)| {
            // To the nearest: experts of a few rows more than a tile would else be halved.
            let num_tiles = ((rows.len() + tile_rows / 2) / tile_rows).max(1);
            (0..num_tiles).map(move |tile| {
                let at = |tile: usize| rows.start + rows.len() * tile / num_tiles;
                Self { group, rows: at(tile)..at(tile + 1) }
            })
        };
        groups.occupied().flat_map(tiles_of).collect()
    }

    /// `elements`, rows of `num_columns`, cut where the tiles are cut.
    ///
    /// # Panics
    /// If `tiles` are not those of as many rows.
    pub(crate) fn cut<E: Elements>(tiles: &[Self], elements: E, num_columns: usize) -> Vec<E> {
        let (mut parts, mut rest) = (Vec::with_capacity(tiles.len()), elements);
        for tile in tiles {
            let (part, behind) = rest.cut_at(tile.rows.len() * num_columns);
            parts.push(part);
            rest = behind;
        }
        assert!(rest.num_elements() == 0, "{} elements lie behind the last tile", rest.num_elements());
        parts
    }
}

/// What is cut where tiles are cut: values, or elements to be written.
pub(crate) trait Elements: Sized {
    fn num_elements(&self) -> usize;

    /// The first `len` elements, and the others.
    fn cut_at(self, len: usize) -> (Self, Self);
}

impl<T> Elements for &mut [T] {
    fn num_elements(&self) -> usize {
        self.len()
    }

    fn cut_at(self, len: usize) -> (Self, Self) {
        self.split_at_mut(len)
    }
}

impl<T: Copy + Send + Sync> Elements for Part<'_, T> {
    fn num_elements(&self) -> usize {
        self.len()
    }

    fn cut_at(self, len: usize) -> (Self, Self) {
        self.split_at(len)
    }
}

/// The gradient of one stack of matrices: per group, the transposed rows of `x` times those of
/// `dy`.
pub(crate) struct WeightGradient<'a> {
    pub(crate) groups: &'a Groups,
    /// `[n, d]`.
    pub(crate) x: Factor<'a>,
    /// `[n, f]`.
    pub(crate) dy: Factor<'a>,
}

/// The stacks `[groups, d, f]` of several gradients, computed together so that no thread waits
/// between them. Groups without rows get zeros.
pub(crate) fn weight_gradients(gradients: &[WeightGradient<'_>], compute: Compute) -> Vec<Vec<f32>> {
    let len_of = |gradient: &WeightGradient<'_>| {
        gradient.groups.num_groups() * gradient.x.num_columns() * gradient.dy.num_columns()
    };
    let mut stacks: Vec<_> = gradients.iter().map(|gradient| Unwritten::new(len_of(gradient))).collect();
    let tasks: Vec<_> = gradients
        .iter()
        .zip(&mut stacks)
        .flat_map(|(gradient, stack)| gradient.tasks(stack.whole()))
        .collect();
    tasks.into_par_iter().for_each(|task| task.run(compute));
    stacks.into_iter().map(Unwritten::into_values).collect()
}

/// Some rows of one matrix of a stack.
struct GradientTask<'a> {
    x: Factor<'a>,
    dy: Factor<'a>,
    target: Part<'a>,
}

impl<'a> WeightGradient<'a> {
    fn tasks(&self, stack: Part<'a>) -> Vec<GradientTask<'a>> {
        let (groups, d, f) = (self.groups, self.x.num_columns(), self.dy.num_columns());
        let mut tasks = Vec::new();
        for (group, matrix) in stack.chunks((d * f).max(1)).enumerate() {
            let (x, dy) = (self.x.rows(groups.rows(group)), self.dy.rows(groups.rows(group)));
            let multiplications_per_row = (x.num_rows() * f).max(1);
            let num_rows =
                (TASK_MULTIPLICATIONS / multiplications_per_row).next_multiple_of(TASK_ROWS).max(TASK_ROWS);
            for (task, target) in matrix.chunks(num_rows * f).enumerate() {
                let first = task * num_rows;
                let columns = first..(first + num_rows).min(d);
                tasks.push(GradientTask { x: x.columns(columns), dy, target });
            }
        }
        tasks
    }
}

impl GradientTask<'_> {
    fn run(self, compute: Compute) {
        self.target.fill(|target| fill_with_product(target, self.x.transposed(), self.dy, compute));
    }
}

/// The sum of all rows of `x`, from the first to the last.
pub fn sum_rows(x: Matrix<'_>) -> Vec<f32> {
    sum_rows_by_group(&Groups::new([0, x.num_rows()]), x, None)
}

/// The sums of each group's rows of `x`, from the first to the last, one group after the other;
/// each row times its weight, if there are weights.
pub(crate) fn sum_rows_by_group<E: Element>(
    groups: &Groups,
    x: Matrix<'_, E>,
    weights: Option<&[f32]>,
) -> Vec<f32> {
    let width = x.num_columns();
    let mut sums = vec![0.0; groups.num_groups() * width];
    sums.par_chunks_mut(width.max(1)).enumerate().for_each(|(group, sums)| {
        sums.par_chunks_mut(SUM_COLUMNS).enumerate().for_each(|(block, sums)| {
            let first = block * SUM_COLUMNS;
            let x = x.columns(first..first + sums.len());
            for row in groups.rows(group) {
                match weights {
                    Some(weights) => add_scaled(sums, x.row(row), weights[row]),
                    None => add(sums, x.row(row)),
                }
            }
        });
    });
    sums
}

/// Adds `bias` to each row of as many elements.
pub(crate) fn add_bias<E: Element>(rows: &mut [E], bias: &[f32]) {
    for row in rows.chunks_mut(bias.len()) {
        add(row, bias);
    }
}

vectorised! {
    /// `y = y + x`.
    pub(crate) fn add<Y: Element, X: Element>(y: &mut [Y], x: &[X]) = add_each;
}

#[inline(always)]
fn add_each<Y: Element, X: Element, const FUSED: bool>(y: &mut [Y], x: &[X]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = Y::from_f32(y.to_f32() + x.to_f32());
    }
}

vectorised! {
    /// `y = y + factor x`.
    fn add_scaled<E: Element>(y: &mut [f32], x: &[E], factor: f32) = add_each_scaled;
}

#[inline(always)]
fn add_each_scaled<E: Element, const FUSED: bool>(y: &mut [f32], x: &[E], factor: f32) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = multiply_add::<FUSED>(factor, x.to_f32(), *y);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn tiles_cover_each_groups_rows_once_and_in_order(lens in prop::collection::vec(0_usize..600, 1..5)) {
            let mut offsets = vec![0];
            offsets.extend(lens.iter().scan(0, |end, len| { *end += len; Some(*end) }));
            let groups = Groups::new(offsets);
            let tiles = RowTile::of(&groups);
            let rows: Vec<usize> = tiles.iter().flat_map(|tile| tile.rows.clone()).collect();
            prop_assert_eq!(rows, (0..groups.num_rows()).collect::<Vec<_>>());
            for tile in tiles {
                prop_assert!((1..=MAX_TILE_ROWS).contains(&tile.rows.len()));
                let group = groups.rows(tile.group);
                prop_assert!(group.start <= tile.rows.start && tile.rows.end <= group.end);
            }
        }
    }
}
