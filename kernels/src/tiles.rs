//! Products of small matrices that stay in the cache, for operations that are made of many of them.

use crate::simd::{LANES, multiply_add, vectorised};

/// One vector of consecutive columns.
pub(crate) type Lanes = [f32; LANES];

/// Rows of a product that are summed at once in registers.
const ROWS: usize = 8;

/// A row-major matrix of whole vectors: the number of rows and of columns are multiples of [`LANES`].
#[derive(Debug, Clone)]
pub(crate) struct Tiles {
    lanes: Vec<Lanes>,
    lanes_per_row: usize,
}

impl Tiles {
    /// Zeros, with both sizes rounded up to whole vectors.
    pub(crate) fn zeros(num_rows: usize, num_columns: usize) -> Self {
        let lanes_per_row = num_columns.div_ceil(LANES);
        Self { lanes: vec![[0.0; LANES]; num_rows.next_multiple_of(LANES) * lanes_per_row], lanes_per_row }
    }

    /// Back to zeros.
    pub(crate) fn clear(&mut self) {
        self.lanes.fill([0.0; LANES]);
    }

    /// Row `i`, padding included.
    pub(crate) fn row(&self, i: usize) -> &[f32] {
        self.lanes[i * self.lanes_per_row..][..self.lanes_per_row].as_flattened()
    }

    /// Row `i`, padding included.
    pub(crate) fn row_mut(&mut self, i: usize) -> &mut [f32] {
        self.lanes[i * self.lanes_per_row..][..self.lanes_per_row].as_flattened_mut()
    }

    /// All vectors, row by row.
    pub(crate) fn lanes(&self) -> &[Lanes] {
        &self.lanes
    }

    /// All vectors, row by row.
    pub(crate) fn lanes_mut(&mut self) -> &mut [Lanes] {
        &mut self.lanes
    }

    /// Adds `sums` to vector `j` of the rows from `i`.
    #[inline(always)]
    fn add(&mut self, i: usize, j: usize, sums: [Lanes; ROWS]) {
        let column = self.lanes[i * self.lanes_per_row + j..].chunks_mut(self.lanes_per_row);
        for (target, sums) in column.zip(sums) {
            for (target, sum) in target[0].iter_mut().zip(sums) {
                *target += sum;
            }
        }
    }
}

vectorised! {
    /// Adds to the first `num_rows` rows of `c`, a multiple of [`LANES`], those of `a` times `b`: as many columns of
    /// `a` as `b` has rows up to `inner`.
    pub(crate) fn add_product(c: &mut Tiles, a: &Tiles, b: &Tiles, num_rows: usize, inner: usize) = product;
}

vectorised! {
    /// Adds to `c` the transpose of the first `inner` rows of `a` times those of `b`.
    pub(crate) fn add_transposed_product(c: &mut Tiles, a: &Tiles, b: &Tiles, inner: usize) = transposed_product;
}

/// Sums `$a[r] * $b` over `$terms` into one vector per row r. A macro with a name for each vector, because the
/// optimiser keeps an array of vectors, or a closure's captures, in memory (measured: 10 times slower).
macro_rules! sum_rows {
    ($fused:ident, for $pattern:pat in $terms:expr => $b:expr, [$($sum:ident: $a:expr),*]) => {{
        $(let mut $sum = [0.0; LANES];)*
        for $pattern in $terms {
            let b: &Lanes = $b;
            $(add_scaled::<$fused>(&mut $sum, $a, b);)*
        }
        [$($sum),*]
    }};
}

#[inline(always)]
fn add_scaled<const FUSED: bool>(sum: &mut Lanes, a: f32, b: &Lanes) {
    for (sum, b) in sum.iter_mut().zip(b) {
        *sum = multiply_add::<FUSED>(a, *b, *sum);
    }
}

#[inline(always)]
fn product<const FUSED: bool>(c: &mut Tiles, a: &Tiles, b: &Tiles, num_rows: usize, inner: usize) {
    for i in (0..num_rows).step_by(ROWS) {
        let [a0, a1, a2, a3, a4, a5, a6, a7]: [&[f32]; ROWS] =
            std::array::from_fn(|r| &a.row(i + r)[..inner]);
        for j in 0..b.lanes_per_row {
            let b_rows = b.lanes[j..].chunks(b.lanes_per_row);
            let sums = sum_rows!(FUSED, for (p, b) in (0..inner).zip(b_rows) => &b[0], [
                s0: a0[p], s1: a1[p], s2: a2[p], s3: a3[p], s4: a4[p], s5: a5[p], s6: a6[p], s7: a7[p]
            ]);
            c.add(i, j, sums);
        }
    }
}

#[inline(always)]
fn transposed_product<const FUSED: bool>(c: &mut Tiles, a: &Tiles, b: &Tiles, inner: usize) {
    let num_rows = a.lanes_per_row * LANES;
    for i in (0..num_rows).step_by(ROWS) {
        let half = i % LANES / ROWS;
        for j in 0..b.lanes_per_row {
            let a_rows = a.lanes[i / LANES..].chunks(a.lanes_per_row);
            let b_rows = b.lanes[j..].chunks(b.lanes_per_row);
            let terms = a_rows.zip(b_rows).take(inner);
            let sums = sum_rows!(FUSED, for (a, b) in terms => &b[0], [
                s0: a[0].as_chunks::<ROWS>().0[half][0], s1: a[0].as_chunks::<ROWS>().0[half][1],
                s2: a[0].as_chunks::<ROWS>().0[half][2], s3: a[0].as_chunks::<ROWS>().0[half][3],
                s4: a[0].as_chunks::<ROWS>().0[half][4], s5: a[0].as_chunks::<ROWS>().0[half][5],
                s6: a[0].as_chunks::<ROWS>().0[half][6], s7: a[0].as_chunks::<ROWS>().0[half][7]
            ]);
            c.add(i, j, sums);
        }
    }
}
