//! Buffers that many tasks write, each its own part, before anything is read.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use crate::matrix::{Matrix, MatrixMut};

/// Elements to be written in parts. Their memory is not touched before: filling a large buffer with
/// zeros costs as much as a pass of the operation that overwrites them.
#[derive(Debug)]
pub(crate) struct Unwritten<T = f32> {
    /// Empty, with room for the elements.
    elements: Vec<T>,
    len: usize,
    num_written: AtomicUsize,
}

impl<T: Copy + Send + Sync> Unwritten<T> {
    /// Room for `len` elements.
    pub(crate) fn new(len: usize) -> Self {
        Self { elements: Vec::with_capacity(len), len, num_written: AtomicUsize::new(0) }
    }

    /// All elements, to be cut into parts and written.
    pub(crate) fn whole(&mut self) -> Part<'_, T> {
        // Counted from the beginning: an element that was written before is written again.
        *self.num_written.get_mut() = 0;
        let elements = &mut self.elements.spare_capacity_mut()[..self.len];
        Part { elements, num_written: &self.num_written }
    }

    /// The values.
    ///
    /// # Panics
    /// If a part has not been written.
    pub(crate) fn into_values(mut self) -> Vec<T> {
        let (num_written, len) = (*self.num_written.get_mut(), self.len);
        assert!(num_written == len, "{num_written} of {len} elements are written");
        // SAFETY: the capacity is there. Parts are disjoint, and each is counted once, by the
        // function that has written it: as many elements as there are have values.
        unsafe { self.elements.set_len(len) };
        self.elements
    }
}

/// Some elements of an [`Unwritten`], which no other part has.
#[derive(Debug)]
pub(crate) struct Part<'a, T = f32> {
    elements: &'a mut [MaybeUninit<T>],
    num_written: &'a AtomicUsize,
}

impl<'a, T: Copy + Send + Sync> Part<'a, T> {
    pub(crate) fn len(&self) -> usize {
        self.elements.len()
    }

    /// The first `len` elements, and the others.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn split_at(self, len: usize) -> (Self, Self) {
        let (first, others) = self.elements.split_at_mut(len);
        let part = |elements| Self { elements, num_written: self.num_written };
        (part(first), part(others))
    }

    /// Parts of `len` elements, the last one of as many as are left.
    ///
    /// # Panics
    /// If `len` is 0.
    pub(crate) fn chunks(self, len: usize) -> impl Iterator<Item = Self> {
        let num_written = self.num_written;
        self.elements.chunks_mut(len).map(move |elements| Self { elements, num_written })
    }

    /// Has `write` write the part; returns the values.
    ///
    /// # Panics
    /// If `write` does not return the elements that it was given.
    pub(crate) fn fill(self, write: impl FnOnce(&'a mut [MaybeUninit<T>]) -> &'a mut [T]) -> &'a mut [T] {
        let values = write_whole(self.elements, write);
        self.num_written.fetch_add(values.len(), Ordering::Relaxed);
        values
    }

    /// Has `write` write the part in chunks of `len` elements, the last one of as many as are left,
    /// in tasks of at least `min_chunks`. `write` gets the number of the chunk.
    ///
    /// # Panics
    /// If `len` is 0, or `write` does not return the elements that it was given.
    pub(crate) fn fill_chunks(
        self,
        len: usize,
        min_chunks: usize,
        write: impl for<'c> Fn(usize, &'c mut [MaybeUninit<T>]) -> &'c mut [T] + Sync,
    ) {
        let total = self.elements.len();
        self.elements.par_chunks_mut(len).enumerate().with_min_len(min_chunks).for_each(|(index, chunk)| {
            write_whole(chunk, |chunk| write(index, chunk));
        });
        self.num_written.fetch_add(total, Ordering::Relaxed);
    }
}

impl<'a> Part<'a> {
    /// The part as rows of `num_columns`.
    ///
    /// # Panics
    /// If the last row is not whole.
    pub(crate) fn into_matrix(self, num_columns: usize) -> UnwrittenMatrix<'a> {
        UnwrittenMatrix {
            matrix: MatrixMut::row_major(self.elements, num_columns),
            num_written: self.num_written,
        }
    }
}

/// Has `write` write `elements`; returns the values.
///
/// # Panics
/// If `write` returns others.
fn write_whole<'a, T>(
    elements: &'a mut [MaybeUninit<T>],
    write: impl FnOnce(&'a mut [MaybeUninit<T>]) -> &'a mut [T],
) -> &'a mut [T] {
    let (start, len) = (elements.as_ptr().cast::<T>(), elements.len());
    let values = write(elements);
    assert!(
        values.len() == len && (len == 0 || std::ptr::eq(values.as_ptr(), start)),
        "other elements are written than were to be: {} instead of {len}",
        values.len()
    );
    values
}

/// Fills `target` with zeros; returns it.
pub(crate) fn write_zeros(target: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    target.fill(MaybeUninit::new(0.0));
    // SAFETY: every element has just been written.
    unsafe { target.assume_init_mut() }
}

/// Some elements of an [`Unwritten`] as a matrix, which no other part has.
#[derive(Debug)]
pub(crate) struct UnwrittenMatrix<'a> {
    matrix: MatrixMut<'a, MaybeUninit<f32>>,
    num_written: &'a AtomicUsize,
}

impl<'a> UnwrittenMatrix<'a> {
    /// Rows and columns.
    pub(crate) fn shape(&self) -> [usize; 2] {
        self.matrix.shape()
    }

    /// As [`MatrixMut::into_blocks`].
    ///
    /// # Panics
    /// If the last row or column of blocks is not whole.
    pub(crate) fn into_blocks(self, num_rows: usize, num_columns: usize) -> Vec<Self> {
        let num_written = self.num_written;
        let blocks = self.matrix.into_blocks(num_rows, num_columns).into_iter();
        blocks.map(|matrix| Self { matrix, num_written }).collect()
    }

    /// The first `num_rows` rows, and the others.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn split_rows_at(self, num_rows: usize) -> (Self, Self) {
        let num_written = self.num_written;
        let (first, others) = self.matrix.split_rows_at(num_rows);
        (Self { matrix: first, num_written }, Self { matrix: others, num_written })
    }

    /// One row, to be written.
    ///
    /// # Panics
    /// If there is none.
    #[inline(always)]
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [MaybeUninit<f32>] {
        self.matrix.row_mut(row)
    }

    /// Counts the matrix as written.
    ///
    /// # Safety
    /// Every element of every row has been written.
    #[inline(always)]
    pub(crate) unsafe fn assume_written(self) {
        let [rows, columns] = self.shape();
        self.num_written.fetch_add(rows * columns, Ordering::Relaxed);
    }

    /// Fills the matrix with the elements of `from`.
    ///
    /// # Panics
    /// If the shapes differ, or columns of `from` lie apart.
    pub(crate) fn copy_from(mut self, from: Matrix<'_>) {
        assert!(self.shape() == from.shape(), "{from:?} into {:?}", self.shape());
        for row in 0..from.num_rows() {
            self.row_mut(row).write_copy_of_slice(from.row(row));
        }
        // SAFETY: the loop has written each row.
        unsafe { self.assume_written() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(first: usize) -> impl FnOnce(&mut [MaybeUninit<f32>]) -> &mut [f32] {
        move |target| {
            let values: Vec<f32> = (first..first + target.len()).map(|i| i as f32).collect();
            target.write_copy_of_slice(&values)
        }
    }

    #[test]
    fn parts_are_written_where_they_lie() {
        let mut buffer = Unwritten::new(10);
        let (head, rest) = buffer.whole().split_at(3);
        let mut chunks: Vec<_> = rest.chunks(4).collect();
        chunks.pop().unwrap().fill(numbers(7));
        chunks.pop().unwrap().fill(numbers(3));
        assert_eq!(head.fill(numbers(0)), [0.0, 1.0, 2.0]);
        assert_eq!(buffer.into_values(), (0..10).map(|i| i as f32).collect::<Vec<_>>());
    }

    #[test]
    fn chunks_are_written_in_parallel() {
        let mut buffer = Unwritten::new(1003);
        buffer.whole().fill_chunks(10, 2, |index, chunk| {
            let value = vec![index as f32; chunk.len()];
            chunk.write_copy_of_slice(&value)
        });
        assert_eq!(buffer.into_values(), (0..1003).map(|i| (i / 10) as f32).collect::<Vec<_>>());
    }

    #[test]
    fn blocks_of_a_matrix_are_written_where_they_lie() {
        let mut buffer = Unwritten::new(12);
        let source = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        for (index, block) in buffer.whole().into_matrix(4).into_blocks(3, 2).into_iter().enumerate() {
            let (top, bottom) = block.split_rows_at(1);
            let from = Matrix::row_major(&source, 2);
            bottom.copy_from(from.rows(1..3));
            top.copy_from(if index == 0 { from.rows(0..1) } else { from.rows(2..3) });
        }
        assert_eq!(buffer.into_values(), [1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 3.0, 4.0, 5.0, 6.0, 5.0, 6.0]);
    }

    #[test]
    fn nothing_at_all_is_written() {
        assert_eq!(Unwritten::<f32>::new(0).into_values(), [0.0; 0]);
        let mut buffer = Unwritten::new(0);
        buffer.whole().fill(write_zeros);
        assert_eq!(buffer.into_values(), [0.0; 0]);
    }

    #[test]
    #[should_panic(expected = "3 of 5 elements are written")]
    fn a_part_that_was_forgotten_is_not_read() {
        let mut buffer = Unwritten::new(5);
        buffer.whole().split_at(3).0.fill(write_zeros);
        buffer.into_values();
    }

    #[test]
    #[should_panic(expected = "2 of 4 elements are written")]
    fn a_part_that_is_written_twice_counts_once() {
        let mut buffer = Unwritten::new(4);
        for _ in 0..2 {
            buffer.whole().split_at(2).0.fill(write_zeros);
        }
        buffer.into_values();
    }

    #[test]
    #[should_panic(expected = "1 instead of 2")]
    fn a_part_of_which_less_is_written_is_refused() {
        Unwritten::new(2).whole().fill(|target| write_zeros(&mut target[..1]));
    }

    #[test]
    #[should_panic(expected = "other elements are written")]
    fn a_part_in_place_of_which_another_is_written_is_refused() {
        Unwritten::new(2).whole().fill(|_| vec![0.0; 2].leak());
    }
}
