//! One matrix product per thread: the most arithmetic that a machine's cores reach together.
//!
//! Shape letters: m, k, n of a product `[m, k] x [k, n]`.

use rayon::prelude::*;

use crate::matrix::{Matrix, MatrixMut, multiply};

/// One f32 product of the same shape for every thread of the pool, each on its own matrices.
#[derive(Debug)]
pub struct ThreadProducts {
    shape_mkn: [usize; 3],
    operands: Vec<Operands>,
}

#[derive(Debug)]
struct Operands {
    a_mk: Vec<f32>,
    b_kn: Vec<f32>,
    c_mn: Vec<f32>,
}

impl ThreadProducts {
    /// Products of `[m, k]` by `[k, n]`, as many as the current pool has threads.
    ///
    /// # Panics
    /// If a size is 0.
    pub fn new(shape_mkn: [usize; 3]) -> Self {
        let [m, k, n] = shape_mkn;
        assert!(m * k * n > 0, "a product of shape {shape_mkn:?}");
        let operands =
            || Operands { a_mk: vec![0.5; m * k], b_kn: vec![0.25; k * n], c_mn: vec![0.0; m * n] };
        Self {
            shape_mkn,
            operands: std::iter::repeat_with(operands).take(rayon::current_num_threads()).collect(),
        }
    }

    /// Multiplies and adds of all products together.
    pub fn flops(&self) -> f64 {
        let [m, k, n] = self.shape_mkn.map(|size| size as f64);
        2.0 * m * k * n * self.operands.len() as f64
    }

    /// Compute all products, one single-threaded product per thread.
    pub fn compute(&mut self) {
        let [_, k, n] = self.shape_mkn;
        self.operands.par_iter_mut().with_max_len(1).for_each(|Operands { a_mk, b_kn, c_mn }| {
            multiply(MatrixMut::row_major(c_mn, n), Matrix::row_major(a_mk, k), Matrix::row_major(b_kn, n));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_has_a_product_of_its_own() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        pool.install(|| {
            let mut products = ThreadProducts::new([2, 5, 4]);
            products.compute();
            assert_eq!(products.flops(), 3.0 * 2.0 * 40.0);
            assert_eq!(products.operands.len(), 3);
            // 0.5 * 0.25 five times.
            assert!(products.operands.iter().all(|operands| operands.c_mn == [0.625; 8]));
        });
    }
}
