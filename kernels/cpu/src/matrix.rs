//! Strided matrices in slices, and the product of such of f32 on the calling thread.
//!
//! Operations cut their work into products that do not depend on the number of threads and run each
//! one on one thread: that keeps results the same bit for bit, and is faster than sharing one
//! product among threads.

use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use crate::bf16::Bf16;
use crate::simd::prefetch;

/// Bytes of one cache line.
const LINE_BYTES: usize = 64;

/// A matrix that is read. Every element lies within its slice.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T = f32> {
    elements: &'a [T],
    shape: [usize; 2],
    /// Of rows and of columns.
    steps: [Step<'a>; 2],
}

/// Where the rows of a matrix begin, or its columns: what row i and column j add up to is the place
/// of element (i, j).
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

impl<T> fmt::Debug for Matrix<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [rows, columns] = self.shape;
        write!(f, "{rows} x {columns} in {} elements by {:?}", self.elements.len(), self.steps)
    }
}

impl<'a, T: Copy> Matrix<'a, T> {
    /// The matrix of `num_columns` columns whose rows follow one another in `elements`.
    ///
    /// # Panics
    /// If the last row is not whole.
    pub fn row_major(elements: &'a [T], num_columns: usize) -> Self {
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
    /// If its last element lies outside `elements`, or its place is too large a number.
    pub fn strided(elements: &'a [T], shape: [usize; 2], strides: [usize; 2]) -> Self {
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
    /// If a row ends outside `elements`, or its end is too large a number.
    pub(crate) fn of_rows_at(elements: &'a [T], num_columns: usize, offsets: &'a [usize]) -> Self {
        let last = offsets.iter().max().copied().unwrap_or(0);
        assert!(
            offsets.is_empty() || last.checked_add(num_columns).is_some_and(|end| end <= elements.len()),
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

    /// Rows and columns.
    pub(crate) fn shape(&self) -> [usize; 2] {
        self.shape
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
    pub(crate) fn row(&self, row: usize) -> &'a [T] {
        assert!(row < self.shape[0] && self.has_contiguous_rows(), "row {row} of {self:?}");
        &self.elements[self.steps[0].to(row)..][..self.shape[1]]
    }

    /// The elements from a row on, and how many lie between the beginnings of two rows, of a matrix
    /// whose columns lie next to each other and whose rows lie equally far apart.
    ///
    /// # Panics
    /// If there is none, or they lie otherwise.
    #[cfg(any(test, target_arch = "x86_64"))]
    #[inline(always)]
    pub(crate) fn rows_from(&self, row: usize) -> (&'a [T], usize) {
        let [Step::Stride(stride), Step::Stride(1)] = self.steps else { panic!("strided rows of {self:?}") };
        assert!(row < self.shape[0], "row {row} of {self:?}");
        (&self.elements[row * stride..], stride)
    }

    /// Starts to bring a row into the second-level cache, if there is one: rows that lie apart are
    /// not fetched ahead by the CPU itself.
    #[inline(always)]
    pub(crate) fn prefetch_row(&self, row: usize) {
        if row < self.shape[0] {
            self.row(row).chunks(LINE_BYTES / size_of::<T>()).for_each(|line| prefetch(&line[0]));
        }
    }

    /// The elements from a row on, of a matrix whose rows lie next to each other, and its columns'
    /// step: element (i, p) of what is left lies i behind the place of column p.
    ///
    /// # Panics
    /// If there is none, or rows lie apart.
    #[inline(always)]
    pub(crate) fn columns_from_row(&self, row: usize) -> (&'a [T], Step<'a>) {
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
            // Where there are elements, the product lies within them. Where there are none, a
            // stride may be any.
            Step::Stride(stride) => (rows.start.saturating_mul(stride), Step::Stride(stride)),
            Step::Offsets(offsets) => (0, Step::Offsets(&offsets[rows])),
        };
        // What is left of a matrix lies where it lay; one without elements may begin behind the
        // last.
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

    /// The strides of a matrix that has some, as offsets of pointers.
    ///
    /// # Panics
    /// If rows or columns lie anywhere, or a stride is larger than memory, as that of a single row
    /// may be.
    fn strides(&self) -> [isize; 2] {
        self.steps.map(|step| match step {
            Step::Stride(stride) => match isize::try_from(stride) {
                Ok(stride) => stride,
                Err(_) => panic!("{self:?} has a stride larger than memory"),
            },
            Step::Offsets(_) => panic!("{self:?} has no strides"),
        })
    }
}

impl<'a> Matrix<'a, Bf16> {
    /// The same memory with two columns in the bits of one f32; `None` if columns lie apart or
    /// pairs of them are not whole, or not aligned.
    pub(crate) fn as_pairs(self) -> Option<Matrix<'a>> {
        let ([rows, columns], [Step::Stride(row_stride), Step::Stride(1)]) = (self.shape, self.steps) else {
            return None;
        };
        // SAFETY: two bf16 are as large as one f32, and all bits are an f32's.
        let (before, pairs, _) = unsafe { self.elements.align_to::<f32>() };
        let is_even = [columns, row_stride].iter().all(|len| len.is_multiple_of(2));
        let is_whole =
            is_even && before.is_empty() && fits(pairs.len(), [rows, columns / 2], [row_stride / 2, 1]);
        is_whole.then(|| Matrix::strided(pairs, [rows, columns / 2], [row_stride / 2, 1]))
    }
}

/// A row-major matrix that is written, of values or of elements that have none yet.
#[derive(Debug)]
pub(crate) struct MatrixMut<'a, T = f32> {
    start: *mut T,
    shape: [usize; 2],
    row_stride: usize,
    elements: PhantomData<&'a mut [T]>,
}

// SAFETY: a `MatrixMut` is the only way to its elements while it lives, like the `&mut` slice that
// it was made from.
unsafe impl<T: Send> Send for MatrixMut<'_, T> {}

impl<'a, T> MatrixMut<'a, T> {
    /// Rows of `num_columns` elements that follow one another.
    ///
    /// # Panics
    /// If the last row is not whole.
    pub(crate) fn row_major(elements: &'a mut [T], num_columns: usize) -> Self {
        let len = elements.len();
        assert!(len.is_multiple_of(num_columns), "{len} elements in rows of {num_columns}");
        Self {
            start: elements.as_mut_ptr(),
            shape: [len / num_columns, num_columns],
            row_stride: num_columns,
            elements: PhantomData,
        }
    }

    /// Rows and columns.
    pub(crate) fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The matrix cut into blocks of `num_rows` by `num_columns`: all blocks of the first rows from
    /// left to right, then those of the next.
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
            Self { start, shape: [num_rows, num_columns], ..self }
        };
        let columns = |row| (0..columns).step_by(num_columns).map(move |column| (row, column));
        (0..rows).step_by(num_rows).flat_map(columns).map(|(row, column)| block(row, column)).collect()
    }

    /// The same matrix for a shorter time, to be written more than once.
    pub(crate) fn reborrow(&mut self) -> MatrixMut<'_, T> {
        MatrixMut { elements: PhantomData, ..*self }
    }

    /// The first `num_rows` rows, and the others.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn split_rows_at(self, num_rows: usize) -> (Self, Self) {
        let [rows, columns] = self.shape;
        assert!(num_rows <= rows, "{num_rows} rows of {rows}");
        let others = if num_rows == rows {
            self.start
        } else {
            // SAFETY: the row lies within the matrix.
            unsafe { self.start.add(num_rows * self.row_stride) }
        };
        let first = Self { shape: [num_rows, columns], ..self };
        (first, Self { start: others, shape: [rows - num_rows, columns], ..self })
    }

    /// One row.
    ///
    /// # Panics
    /// If there is none.
    #[inline(always)]
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.shape[0], "row {row} of {}", self.shape[0]);
        // SAFETY: the row lies within the matrix, which is borrowed for as long as the row is.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.row_stride), self.shape[1]) }
    }
}

/// Whether the last element of a matrix lies within `len` elements, and with it all others.
fn fits(len: usize, [rows, columns]: [usize; 2], [row_stride, column_stride]: [usize; 2]) -> bool {
    if rows == 0 || columns == 0 {
        return true;
    }
    let last_row = (rows - 1).checked_mul(row_stride);
    let last_column = (columns - 1).checked_mul(column_stride);
    let last = last_row.zip(last_column).and_then(|(row, column)| row.checked_add(column));
    last.is_some_and(|last| last < len)
}

/// `c = a b`.
///
/// # Panics
/// If the shapes do not fit, or `a` or `b` has no strides.
pub(crate) fn multiply(mut c: MatrixMut<'_>, a: Matrix<'_>, b: Matrix<'_>) {
    // SAFETY: nothing is added.
    unsafe { product(&mut c, a, b, false) };
}

/// `c = c + a b`.
///
/// # Panics
/// As [`multiply`].
pub(crate) fn add_multiplied(mut c: MatrixMut<'_>, a: Matrix<'_>, b: Matrix<'_>) {
    // SAFETY: `c` is a matrix of values.
    unsafe { product(&mut c, a, b, true) };
}

/// Fills `target` with the rows of `a b`, and returns them.
///
/// # Panics
/// As [`multiply`].
pub(crate) fn fill_with_multiplied<'c>(
    target: &'c mut [MaybeUninit<f32>],
    a: Matrix<'_>,
    b: Matrix<'_>,
) -> &'c mut [f32] {
    let mut c = MatrixMut::row_major(&mut *target, b.num_columns());
    // SAFETY: nothing is added.
    unsafe { product(&mut c, a, b, false) };
    // SAFETY: the product has written every element, also that of no terms, which is zero.
    unsafe { target.assume_init_mut() }
}

/// `c = a b`, or with `add` `c = c + a b`; nothing but values is written.
///
/// # Safety
/// With `add`, the elements of `c` have values. `T` is `f32`, or that without a value.
unsafe fn product<T>(c: &mut MatrixMut<'_, T>, a: Matrix<'_>, b: Matrix<'_>, add: bool) {
    let ([m, n], [_, k]) = (c.shape, a.shape);
    let (a_strides, b_strides) = (a.strides(), b.strides());
    assert!(a.shape == [m, k] && b.shape == [k, n], "{:?} times {:?} into {:?}", a.shape, b.shape, c.shape);
    // SAFETY: every address that the strides reach lies in its slice, as the constructors checked;
    // `c` borrows its elements alone, so it overlaps neither `a` nor `b`; and it is read only with
    // `add`, when it has values.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.start.cast::<f32>(),
            1,
            // A stride within a slice.
            c.row_stride as isize,
            add,
            a.elements.as_ptr(),
            a_strides[1],
            a_strides[0],
            b.elements.as_ptr(),
            b_strides[1],
            b_strides[0],
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
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
            block.row_mut(1)[0] = index as f32;
            if index == 5 {
                multiply(block, one, Matrix::row_major(&[7.0], 1));
            }
        }
        assert_eq!(c, [0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 7.0, 3.0, 4.0, 14.0]);
    }

    #[test]
    fn a_product_without_terms_is_zero() {
        let (a, b) = (Matrix::strided(&[], [2, 0], [1, 1]), Matrix::strided(&[], [0, 3], [3, 1]));
        let mut c = [MaybeUninit::new(7.0); 6];
        assert_eq!(fill_with_multiplied(&mut c, a, b), [0.0; 6]);
    }

    #[test]
    fn the_first_rows_and_the_others_are_written_where_they_lie() {
        let mut c = [0.0; 6];
        let (mut first, mut others) = MatrixMut::row_major(&mut c, 2).split_rows_at(1);
        first.row_mut(0).fill(1.0);
        others.row_mut(1).fill(3.0);
        let (all, none) = others.split_rows_at(2);
        assert_eq!((all.shape(), none.shape()), ([2, 2], [0, 2]));
        assert_eq!(c, [1.0, 1.0, 0.0, 0.0, 3.0, 3.0]);
    }

    /// A place that is too large for a number wraps around to a small one, at which there is an
    /// element.
    #[test]
    fn places_that_overflow_are_refused() {
        let refused = |matrix: fn() -> Matrix<'static>| std::panic::catch_unwind(matrix).is_err();
        assert!(refused(|| Matrix::strided(&[0.0; 4], [3, 1], [1 << 63, 1])), "a product");
        assert!(refused(|| Matrix::strided(&[0.0; 4], [2, 2], [usize::MAX, 1])), "a sum");
        assert!(refused(|| Matrix::of_rows_at(&[0.0; 4], 2, &[usize::MAX])), "the end of a row");
        assert!(refused(|| Matrix::of_rows_at(&[0.0; 4], usize::MAX, &[1])), "a row");
    }

    #[test]
    fn a_matrix_without_elements_may_have_any_stride() {
        let matrix = Matrix::<f32>::strided(&[], [5, 0], [usize::MAX, 1]);
        assert_eq!(matrix.rows(3..5).shape(), [2, 0]);
    }

    #[test]
    #[should_panic(expected = "a stride larger than memory")]
    fn a_stride_that_is_no_offset_of_a_pointer_is_refused() {
        let mut c = [0.0];
        let one = Matrix::row_major(&[1.0], 1);
        multiply(MatrixMut::row_major(&mut c, 1), Matrix::strided(&[1.0], [1, 1], [usize::MAX, 1]), one);
    }
}
