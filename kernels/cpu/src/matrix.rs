//! Strided f32 matrices in slices, and their product on the calling thread.
//!
//! Operations cut their work into products that do not depend on the number of threads and run each one on one thread:
//! that keeps results the same bit for bit, and is faster than sharing one product among threads.

use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use crate::simd::prefetch;

/// Elements of one cache line.
const LINE_LEN: usize = 16;

/// A matrix that is read. Every element lies within its slice.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    elements: &'a [f32],
    shape: [usize; 2],
    /// Of rows and of columns.
    steps: [Step<'a>; 2],
}

/// Where the rows of a matrix begin, or its columns: what row i and column j add up to is the place of element (i, j).
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step<'a> {
    /// Each as far behind the one before.
    Stride(usize),
    /// Anywhere.
    Offsets(&'a [usize]),
}

impl Step<'_> {
    #[inline(always)]
    fn to(self, index: usize) -> usize {
        match self {
            Self::Stride(stride) => index * stride,
            Self::Offsets(offsets) => offsets[index],
        }
    }
}

impl fmt::Debug for Matrix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [rows, columns] = self.shape;
        write!(f, "{rows} x {columns} in {} elements by {:?}", self.elements.len(), self.steps)
    }
}

impl<'a> Matrix<'a> {
    /// The matrix of `num_columns` columns whose rows follow one another in `elements`.
    ///
    /// # Panics
    /// If the last row is not whole.
    pub fn row_major(elements: &'a [f32], num_columns: usize) -> Self {
        assert!(
            elements.len().is_multiple_of(num_columns),
            "{} elements in rows of {num_columns}",
            elements.len()
        );
        Self::strided(elements, [elements.len() / num_columns, num_columns], [num_columns, 1])
    }

    /// The matrix with these strides.
    ///
    /// # Panics
    /// If its last element lies outside `elements`.
    pub fn strided(elements: &'a [f32], shape: [usize; 2], strides: [usize; 2]) -> Self {
        assert!(
            fits(elements.len(), shape, strides),
            "{shape:?} by {strides:?} in {} elements",
            elements.len()
        );
        Self { elements, shape, steps: strides.map(Step::Stride) }
    }

    /// The matrix of `num_columns` columns whose rows begin at these places, in this order.
    ///
    /// # Panics
    /// If a row ends outside `elements`.
    pub(crate) fn of_rows_at(elements: &'a [f32], num_columns: usize, offsets: &'a [usize]) -> Self {
        let last = offsets.iter().max().copied().unwrap_or(0);
        assert!(
            offsets.is_empty() || last + num_columns <= elements.len(),
            "{num_columns} elements from {last} of {}",
            elements.len()
        );
        Self {
            elements,
            shape: [offsets.len(), num_columns],
            steps: [Step::Offsets(offsets), Step::Stride(1)],
        }
    }

    /// Rows.
    pub fn num_rows(&self) -> usize {
        self.shape[0]
    }

    /// Columns.
    pub fn num_columns(&self) -> usize {
        self.shape[1]
    }

    /// Whether the elements of each row lie next to each other.
    pub(crate) fn has_contiguous_rows(&self) -> bool {
        matches!(self.steps[1], Step::Stride(1))
    }

    /// One row of a matrix whose columns lie next to each other.
    ///
    /// # Panics
    /// If there is none, or columns lie apart.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &'a [f32] {
        assert!(row < self.shape[0] && self.has_contiguous_rows(), "row {row} of {self:?}");
        &self.elements[self.steps[0].to(row)..][..self.shape[1]]
    }

    /// Starts to bring a row into the second-level cache, if there is one: rows that lie apart are not fetched ahead by the
    /// CPU itself.
    #[inline(always)]
    pub(crate) fn prefetch_row(&self, row: usize) {
        if row < self.shape[0] {
            self.row(row).chunks(LINE_LEN).for_each(|line| prefetch(&line[0]));
        }
    }

    /// The elements from a row on, of a matrix whose rows lie next to each other, and its columns' step: element (i, p) of
    /// what is left lies i behind the place of column p.
    ///
    /// # Panics
    /// If there is none, or rows lie apart.
    #[inline(always)]
    pub(crate) fn columns_from_row(&self, row: usize) -> (&'a [f32], Step<'a>) {
        assert!(row < self.shape[0] && matches!(self.steps[0], Step::Stride(1)), "row {row} of {self:?}");
        (&self.elements[row..], self.steps[1])
    }

    /// Rows as columns.
    pub fn transposed(self) -> Self {
        let ([rows, columns], [row_step, column_step]) = (self.shape, self.steps);
        Self { elements: self.elements, shape: [columns, rows], steps: [column_step, row_step] }
    }

    /// Only these rows.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn rows(self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.shape[0], "rows {rows:?} of {self:?}");
        let shape = [rows.len(), self.shape[1]];
        let (start, step) = match self.steps[0] {
            Step::Stride(stride) => (rows.start * stride, Step::Stride(stride)),
            Step::Offsets(offsets) => (0, Step::Offsets(&offsets[rows])),
        };
        // What is left of a matrix lies where it lay; one without elements may begin behind the last.
        let elements = &self.elements[start.min(self.elements.len())..];
        Self { elements, shape, steps: [step, self.steps[1]] }
    }

    /// Only these columns.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn columns(self, columns: Range<usize>) -> Self {
        self.transposed().rows(columns).transposed()
    }

    /// The strides of a matrix that has some.
    ///
    /// # Panics
    /// If rows or columns lie anywhere.
    fn strides(&self) -> [usize; 2] {
        self.steps.map(|step| match step {
            Step::Stride(stride) => stride,
            Step::Offsets(_) => panic!("{self:?} has no strides"),
        })
    }
}

/// A row-major matrix that is written.
#[derive(Debug)]
pub(crate) struct MatrixMut<'a> {
    start: *mut MaybeUninit<f32>,
    shape: [usize; 2],
    row_stride: usize,
    has_values: bool,
    elements: PhantomData<&'a mut [MaybeUninit<f32>]>,
}

// SAFETY: a `MatrixMut` is the only way to its elements while it lives, like the `&mut` slice that it was made from.
unsafe impl Send for MatrixMut<'_> {}

impl<'a> MatrixMut<'a> {
    /// Rows of `num_columns` elements that follow one another.
    ///
    /// # Panics
    /// If the last row is not whole.
    pub(crate) fn row_major(elements: &'a mut [f32], num_columns: usize) -> Self {
        // SAFETY: the same layout, and only values are ever written through a `MatrixMut`.
        let elements = unsafe { &mut *(std::ptr::from_mut(elements) as *mut [MaybeUninit<f32>]) };
        Self { has_values: true, ..Self::uninit(elements, num_columns) }
    }

    /// As [`MatrixMut::row_major`], of elements that have no values yet.
    pub(crate) fn uninit(elements: &'a mut [MaybeUninit<f32>], num_columns: usize) -> Self {
        let len = elements.len();
        assert!(len.is_multiple_of(num_columns), "{len} elements in rows of {num_columns}");
        Self {
            start: elements.as_mut_ptr(),
            shape: [len / num_columns, num_columns],
            row_stride: num_columns,
            has_values: false,
            elements: PhantomData,
        }
    }

    /// The matrix cut into blocks of `num_rows` by `num_columns`: all blocks of the first rows from left to right, then
    /// those of the next.
    ///
    /// # Panics
    /// If the last row or column of blocks is not whole.
    pub(crate) fn into_blocks(self, num_rows: usize, num_columns: usize) -> Vec<Self> {
        let [rows, columns] = self.shape;
        assert!(
            rows.is_multiple_of(num_rows) && columns.is_multiple_of(num_columns),
            "{rows} x {columns} in blocks of {num_rows} x {num_columns}"
        );
        let block = |row: usize, column: usize| {
            // SAFETY: the block begins within the matrix, and blocks do not overlap.
            let start = unsafe { self.start.add(row * self.row_stride + column) };
            Self { start, shape: [num_rows, num_columns], elements: PhantomData, ..self }
        };
        let columns = |row| (0..columns).step_by(num_columns).map(move |column| (row, column));
        (0..rows).step_by(num_rows).flat_map(columns).map(|(row, column)| block(row, column)).collect()
    }

    /// The same matrix for a shorter time, to be written more than once.
    pub(crate) fn reborrow(&mut self) -> MatrixMut<'_> {
        MatrixMut { elements: PhantomData, ..*self }
    }

    /// Only these rows, to be written more than once.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn rows(&mut self, rows: Range<usize>) -> MatrixMut<'_> {
        assert!(rows.start <= rows.end && rows.end <= self.shape[0], "rows {rows:?} of {}", self.shape[0]);
        // SAFETY: the rows lie within the matrix.
        let start = unsafe { self.start.add(rows.start * self.row_stride) };
        MatrixMut { start, shape: [rows.len(), self.shape[1]], elements: PhantomData, ..*self }
    }

    /// One row.
    ///
    /// # Panics
    /// If there is none.
    #[inline(always)]
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [MaybeUninit<f32>] {
        assert!(row < self.shape[0], "row {row} of {}", self.shape[0]);
        // SAFETY: the row lies within the matrix, which is borrowed for as long as the row is.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.row_stride), self.shape[1]) }
    }
}

fn fits(len: usize, [rows, columns]: [usize; 2], [row_stride, column_stride]: [usize; 2]) -> bool {
    rows == 0 || columns == 0 || (rows - 1) * row_stride + (columns - 1) * column_stride < len
}

/// `c = a b`.
///
/// # Panics
/// If the shapes do not fit.
pub(crate) fn multiply(c: MatrixMut<'_>, a: Matrix<'_>, b: Matrix<'_>) {
    product(c, a, b, false);
}

/// `c = c + a b`.
///
/// # Panics
/// If the shapes do not fit, or `c` has no values.
pub(crate) fn add_multiplied(c: MatrixMut<'_>, a: Matrix<'_>, b: Matrix<'_>) {
    assert!(c.has_values, "a product is added to elements without values");
    product(c, a, b, true);
}

fn product(c: MatrixMut<'_>, a: Matrix<'_>, b: Matrix<'_>, add: bool) {
    let ([m, n], [_, k]) = (c.shape, a.shape);
    let (a_strides, b_strides) = (a.strides(), b.strides());
    assert!(a.shape == [m, k] && b.shape == [k, n], "{:?} times {:?} into {:?}", a.shape, b.shape, c.shape);
    // SAFETY: every address that the strides reach lies in its slice, as the constructors checked; `c` borrows its
    // elements alone, so it overlaps neither `a` nor `b`; and unless it has values it is not read.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.start.cast::<f32>(),
            1,
            c.row_stride as isize,
            add,
            a.elements.as_ptr(),
            a_strides[1] as isize,
            a_strides[0] as isize,
            b.elements.as_ptr(),
            b_strides[1] as isize,
            b_strides[0] as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Elements to be written, each exactly once, before they are read.
#[derive(Debug)]
pub(crate) struct Unwritten {
    elements: Vec<MaybeUninit<f32>>,
}

impl Unwritten {
    /// Room for `len` elements. Their memory is not touched: filling a large buffer with zeros costs as much as a pass
    /// of the operation that overwrites them.
    pub(crate) fn new(len: usize) -> Self {
        let mut elements = Vec::with_capacity(len);
        // SAFETY: `MaybeUninit` needs no value, and the capacity is there.
        unsafe { elements.set_len(len) };
        Self { elements }
    }

    /// The elements, to be written.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [MaybeUninit<f32>] {
        &mut self.elements
    }

    /// The values.
    ///
    /// # Safety
    /// Every element has been written.
    pub(crate) unsafe fn written(self) -> Vec<f32> {
        let mut elements = std::mem::ManuallyDrop::new(self.elements);
        // SAFETY: the same layout and allocation, given up by the vector above; the caller vouches for the values.
        unsafe { Vec::from_raw_parts(elements.as_mut_ptr().cast(), elements.len(), elements.capacity()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn products_are_those_of_the_definition(m in 0_usize..40, k in 0_usize..40, n in 1_usize..40, flip: [bool; 2]) {
            let value = |i: usize| ((i * 7919 % 31) as f32 - 15.0) / 8.0;
            let a: Vec<f32> = (0..m * k).map(value).collect();
            let b: Vec<f32> = (0..k * n).map(|i| value(i + 5)).collect();
            let a_at = |i: usize, p: usize| if flip[0] { a[p * m + i] } else { a[i * k + p] };
            let b_at = |p: usize, j: usize| if flip[1] { b[j * k + p] } else { b[p * n + j] };
            let oriented = |x, [rows, columns]: [usize; 2], flip| match flip {
                true => Matrix::strided(x, [columns, rows], [rows.max(1), 1]).transposed(),
                false => Matrix::strided(x, [rows, columns], [columns.max(1), 1]),
            };
            let mut c: Vec<f32> = (0..m * n).map(|i| value(i + 11)).collect();
            let before = c.clone();
            add_multiplied(MatrixMut::row_major(&mut c, n), oriented(&a, [m, k], flip[0]), oriented(&b, [k, n], flip[1]));
            for i in 0..m {
                for j in 0..n {
                    // Multiples of 1/64 below 2^24 of them: every order of summation is exact.
                    let expected = before[i * n + j] + (0..k).map(|p| a_at(i, p) * b_at(p, j)).sum::<f32>();
                    prop_assert_eq!(c[i * n + j], expected);
                }
            }
        }
    }

    #[test]
    fn some_rows_and_columns_are_multiplied_alone() {
        let a = Matrix::row_major(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3);
        let b = Matrix::row_major(&[1.0, 10.0], 1);
        let mut c = [0.0; 2];
        multiply(MatrixMut::row_major(&mut c, 1), a.columns(1..3), b);
        assert_eq!(c, [32.0, 65.0]);
        multiply(MatrixMut::row_major(&mut c[..1], 1), a.rows(1..2).columns(0..2), b);
        assert_eq!(c, [54.0, 65.0]);
    }

    #[test]
    #[should_panic(expected = "3 elements from 4 of 6")]
    fn rows_that_end_outside_the_elements_are_refused() {
        Matrix::of_rows_at(&[0.0; 6], 3, &[0, 4, 2]);
    }

    #[test]
    fn blocks_are_written_where_they_lie() {
        let mut c = [0.0; 12];
        let one = Matrix::row_major(&[1.0, 2.0], 1);
        for (index, mut block) in MatrixMut::row_major(&mut c, 3).into_blocks(2, 1).into_iter().enumerate() {
            block.row_mut(1)[0].write(index as f32);
            if index == 5 {
                multiply(block, one, Matrix::row_major(&[7.0], 1));
            }
        }
        assert_eq!(c, [0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 7.0, 3.0, 4.0, 14.0]);
    }

    #[test]
    #[should_panic(expected = "without values")]
    fn nothing_is_added_to_what_has_no_value() {
        let mut c = Unwritten::new(1);
        let one = Matrix::row_major(&[1.0], 1);
        add_multiplied(MatrixMut::uninit(c.as_mut_slice(), 1), one, one);
    }
}
