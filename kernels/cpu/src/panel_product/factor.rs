//! A factor of a product, of elements of either type.

use std::ops::Range;

use crate::bf16::Bf16;
use crate::matrix::Matrix;

/// A matrix to multiply, as it lies in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Factor<'a> {
    /// Of f32, rounded on the way if products are computed in bf16.
    F32(Matrix<'a>),
    /// Of bf16: only where products are computed in bf16.
    Bf16(Matrix<'a, Bf16>),
}

/// Does the same with the matrix of either type.
macro_rules! of_either {
    ($factor:expr, $matrix:ident => $does:expr) => {
        match $factor {
            $crate::panel_product::Factor::F32($matrix) => $does,
            $crate::panel_product::Factor::Bf16($matrix) => $does,
        }
    };
}
pub(super) use of_either;

impl<'a> From<Matrix<'a>> for Factor<'a> {
    fn from(matrix: Matrix<'a>) -> Self {
        Self::F32(matrix)
    }
}

impl<'a> From<Matrix<'a, Bf16>> for Factor<'a> {
    fn from(matrix: Matrix<'a, Bf16>) -> Self {
        Self::Bf16(matrix)
    }
}

impl<'a> Factor<'a> {
    /// Rows.
    pub(crate) fn num_rows(&self) -> usize {
        of_either!(self, matrix => matrix.num_rows())
    }

    /// Columns.
    pub(crate) fn num_columns(&self) -> usize {
        of_either!(self, matrix => matrix.num_columns())
    }

    pub(super) fn has_contiguous_rows(&self) -> bool {
        of_either!(self, matrix => matrix.has_contiguous_rows())
    }

    #[inline(always)]
    pub(super) fn prefetch_row(&self, row: usize) {
        of_either!(self, matrix => matrix.prefetch_row(row));
    }

    /// Rows as columns.
    pub(crate) fn transposed(self) -> Self {
        of_either!(self, matrix => matrix.transposed().into())
    }

    /// Only these rows.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn rows(self, rows: Range<usize>) -> Self {
        of_either!(self, matrix => matrix.rows(rows).into())
    }

    /// Only these columns.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn columns(self, columns: Range<usize>) -> Self {
        of_either!(self, matrix => matrix.columns(columns).into())
    }

    /// The matrix of f32.
    ///
    /// # Panics
    /// If it is of bf16.
    pub(super) fn f32(self) -> Matrix<'a> {
        match self {
            Self::F32(matrix) => matrix,
            Self::Bf16(matrix) => panic!("{matrix:?} of bf16 in a product of f32"),
        }
    }
}
