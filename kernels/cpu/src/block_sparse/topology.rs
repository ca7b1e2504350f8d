//! Which blocks of a matrix are there.

use std::ops::Range;
use std::sync::Arc;

/// The blocks of a matrix that are not zero, in the order of their rows and within a row of their
/// columns. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockTopology {
    block: usize,
    shape: [usize; 2],
    places: Arc<[[usize; 2]]>,
    /// Block row r holds blocks `row_offsets[r]..row_offsets[r + 1]`.
    row_offsets: Arc<[usize]>,
    /// Blocks in the order of their columns: column c holds those at
    /// `column_offsets[c]..column_offsets[c + 1]`.
    by_column: Arc<[usize]>,
    column_offsets: Arc<[usize]>,
}

impl BlockTopology {
    /// Blocks of side `block` at `places`, each `[block row, block column]`, of a matrix of `shape`
    /// blocks.
    ///
    /// # Panics
    /// If `block` is 0, there is no block, or a place lies outside the matrix or is named twice.
    pub fn new(block: usize, shape: [usize; 2], mut places: Vec<[usize; 2]>) -> Self {
        let [num_rows, num_columns] = shape;
        places.sort_unstable();
        assert!(block > 0 && !places.is_empty(), "{} blocks of side {block}", places.len());
        assert!(
            places.iter().all(|[row, column]| *row < num_rows && *column < num_columns),
            "blocks outside {num_rows} x {num_columns}: {places:?}"
        );
        assert!(places.windows(2).all(|pair| pair[0] != pair[1]), "a block is named twice: {places:?}");
        let mut by_column: Vec<usize> = (0..places.len()).collect();
        by_column.sort_by_key(|&index| places[index][1]);
        Self {
            block,
            shape,
            row_offsets: offsets(num_rows, places.iter().map(|place| place[0])),
            column_offsets: offsets(num_columns, places.iter().map(|place| place[1])),
            by_column: by_column.into(),
            places: places.into(),
        }
    }

    /// Side of a block.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Rows and columns of blocks, those that are zero included.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Blocks that are there.
    pub fn num_blocks(&self) -> usize {
        self.places.len()
    }

    /// `[block row, block column]` of each block.
    pub fn places(&self) -> &[[usize; 2]] {
        &self.places
    }

    /// Rows of the matrix.
    pub fn d_input(&self) -> usize {
        self.shape[0] * self.block
    }

    /// Columns of the matrix.
    pub fn d_output(&self) -> usize {
        self.shape[1] * self.block
    }

    /// Blocks that are there, as a share of all.
    pub fn density(&self) -> f64 {
        self.places.len() as f64 / (self.shape[0] * self.shape[1]) as f64
    }

    /// The blocks of one row of blocks, in the order of their columns.
    pub fn in_row(&self, row: usize) -> Range<usize> {
        self.row_offsets[row]..self.row_offsets[row + 1]
    }

    /// The blocks of one column of blocks, in the order of their rows.
    pub fn in_column(&self, column: usize) -> &[usize] {
        &self.by_column[self.column_offsets[column]..self.column_offsets[column + 1]]
    }

    /// The rows or columns that block number `index` spans along `axis`.
    pub fn span(&self, index: usize, axis: usize) -> Range<usize> {
        let start = self.places[index][axis] * self.block;
        start..start + self.block
    }
}

/// Where the blocks of each line begin, counted from the line that each block is in.
fn offsets(num_lines: usize, line_of_blocks: impl Iterator<Item = usize>) -> Arc<[usize]> {
    let mut offsets = vec![0; num_lines + 1];
    for line in line_of_blocks {
        offsets[line + 1] += 1;
    }
    for line in 0..num_lines {
        offsets[line + 1] += offsets[line];
    }
    offsets.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_hold_each_block_once_empty_ones_none() {
        let topology = BlockTopology::new(2, [3, 3], vec![[2, 0], [0, 2], [2, 2]]);
        assert_eq!(topology.places(), [[0, 2], [2, 0], [2, 2]]);
        assert_eq!([0, 1, 2].map(|row| topology.in_row(row)), [0..1, 1..1, 1..3]);
        assert_eq!([0, 1, 2].map(|column| topology.in_column(column)), [&[1][..], &[], &[0, 2]]);
        assert_eq!((topology.d_input(), topology.d_output()), (6, 6));
        assert_eq!(topology.density(), 1.0 / 3.0);
    }
}
