//! Columns that lie one after another, side by side.

use std::mem::MaybeUninit;

/// Columns that are interleaved at once; the width of a panel is a multiple.
pub(super) const EIGHT: usize = 8;

/// Writes row p of the matrix of these columns to `target[p * stride..][..8]`.
///
/// # Panics
/// If the columns differ in length or do not fit into `target`.
pub(super) fn interleave(target: &mut [MaybeUninit<f32>], stride: usize, columns: [&[f32]; EIGHT]) {
    let depth = columns[0].len();
    let fits = depth == 0
        || (depth - 1)
            .checked_mul(stride)
            .and_then(|last| last.checked_add(EIGHT))
            .is_some_and(|end| end <= target.len());
    assert!(
        columns.iter().all(|column| column.len() == depth) && fits,
        "{depth} rows, {stride} apart, in {} elements",
        target.len()
    );
    for p in interleave_squares(target, stride, columns)..depth {
        for (target, column) in target[p * stride..][..EIGHT].iter_mut().zip(columns) {
            target.write(column[p]);
        }
    }
}

/// Does part of [`interleave`], checked there, in whole registers. Returns the number of rows done.
fn interleave_squares(target: &mut [MaybeUninit<f32>], stride: usize, columns: [&[f32]; EIGHT]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx") {
        // SAFETY: the CPU has AVX. The columns are of equal length and fit into `target`, as the
        // caller has checked.
        return unsafe { avx::interleave_squares(target, stride, columns) };
    }
    let _ = (target, stride, columns);
    0
}

#[cfg(target_arch = "x86_64")]
mod avx {
    use std::arch::x86_64::{
        __m256, _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_shuffle_ps, _mm256_storeu_ps,
        _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };

    use super::{EIGHT, MaybeUninit};

    /// As [`super::interleave_squares`].
    ///
    /// # Safety
    /// The columns are of equal length, and that many rows fit into `target`.
    #[target_feature(enable = "avx")]
    pub(super) unsafe fn interleave_squares(
        target: &mut [MaybeUninit<f32>],
        stride: usize,
        columns: [&[f32]; EIGHT],
    ) -> usize {
        let depth = columns[0].len() / EIGHT * EIGHT;
        for p in (0..depth).step_by(EIGHT) {
            // SAFETY: each column has eight elements from `p` on.
            let square = columns.map(|column| unsafe { _mm256_loadu_ps(column.as_ptr().add(p)) });
            for (i, row) in transposed(square).into_iter().enumerate() {
                // SAFETY: `target` has eight elements from there on, for each row below `depth`.
                unsafe { _mm256_storeu_ps(target.as_mut_ptr().add((p + i) * stride).cast(), row) };
            }
        }
        depth
    }

    /// Rows as columns: pairs of rows are interleaved, then pairs of pairs, then halves are
    /// exchanged.
    #[target_feature(enable = "avx")]
    fn transposed([r0, r1, r2, r3, r4, r5, r6, r7]: [__m256; EIGHT]) -> [__m256; EIGHT] {
        let [a, b] = [quads([r0, r1, r2, r3]), quads([r4, r5, r6, r7])];
        [
            _mm256_permute2f128_ps::<0x20>(a[0], b[0]),
            _mm256_permute2f128_ps::<0x20>(a[1], b[1]),
            _mm256_permute2f128_ps::<0x20>(a[2], b[2]),
            _mm256_permute2f128_ps::<0x20>(a[3], b[3]),
            _mm256_permute2f128_ps::<0x31>(a[0], b[0]),
            _mm256_permute2f128_ps::<0x31>(a[1], b[1]),
            _mm256_permute2f128_ps::<0x31>(a[2], b[2]),
            _mm256_permute2f128_ps::<0x31>(a[3], b[3]),
        ]
    }

    /// Column j of the left halves of four rows in the left half of element j, the same on the
    /// right.
    #[target_feature(enable = "avx")]
    fn quads([r0, r1, r2, r3]: [__m256; 4]) -> [__m256; 4] {
        let [low_01, high_01] = [_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1)];
        let [low_23, high_23] = [_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3)];
        [
            _mm256_shuffle_ps::<0x44>(low_01, low_23),
            _mm256_shuffle_ps::<0xee>(low_01, low_23),
            _mm256_shuffle_ps::<0x44>(high_01, high_23),
            _mm256_shuffle_ps::<0xee>(high_01, high_23),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_interleaved_columns_are_the_rows_of_their_matrix() {
        for (depth, stride) in [(0, 8), (1, 8), (8, 16), (19, 8), (32, 11)] {
            let values: Vec<f32> = (0..EIGHT * depth).map(|i| i as f32).collect();
            let columns = std::array::from_fn(|j| &values[j * depth..][..depth]);
            let mut target = vec![MaybeUninit::new(-1.0); depth * stride];
            interleave(&mut target, stride, columns);
            for (i, value) in target.iter().enumerate() {
                let (p, j) = (i / stride, i % stride);
                let expected = if j < EIGHT { columns[j][p] } else { -1.0 };
                // SAFETY: all elements were made with values.
                assert_eq!(unsafe { value.assume_init() }, expected, "row {p}, column {j}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "9 rows, 8 apart, in 71 elements")]
    fn rows_that_do_not_fit_are_not_written() {
        interleave(&mut [MaybeUninit::new(0.0); 71], 8, [&[1.0; 9]; EIGHT]);
    }
}
