//! One matrix product per thread: the most arithmetic that a machine's cores reach together.
//!
//! Shape letters: m, k, n of a product `[m, k] x [k, n]`.

use rayon::prelude::*;

use crate::matrix::{Matrix, MatrixMut, multiply};

/// The same f32 product by every thread of the pool, of the same two matrices.
#[derive(Debug)]
pub struct ThreadProducts {
    shape_mkn: [usize; 3],
    a_mk: Vec<f32>,
    b_kn: Vec<f32>,
    /// One for each thread.
    c_mn: Vec<Vec<f32>>,
}

impl ThreadProducts {
    /// Products of `[m, k]` by `[k, n]`, as many as the current pool has threads.
    ///
    /// # Panics
    /// If a size is 0.
    pub fn new(shape_mkn: [usize; 3]) -> Self {
        let [m, k, n] = shape_mkn;
        assert!(m * k * n > 0, "a product of shape {shape_mkn:?}");
        Self {
            shape_mkn,
            a_mk: vec![0.5; m * k],
            b_kn: vec![0.25; k * n],
            c_mn: vec![vec![0.0; m * n]; rayon::current_num_threads()],
        }
    }

    /// Multiplies and adds of all products together.
    pub fn flops(&self) -> f64 {
        let [m, k, n] = self.shape_mkn.map(|size| size as f64);
        2.0 * m * k * n * self.c_mn.len() as f64
    }

    /// Compute all products, one single-threaded product per thread.
    pub fn compute(&mut self) {
        let [_, k, n] = self.shape_mkn;
        let (a, b) = (Matrix::row_major(&self.a_mk, k), Matrix::row_major(&self.b_kn, n));
        self.c_mn
            .par_iter_mut()
            .with_max_len(1)
            .for_each(|c_mn| multiply(MatrixMut::row_major(c_mn, n), a, b));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_computes_the_whole_product() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        pool.install(|| {
            let mut products = ThreadProducts::new([2, 5, 4]);
            products.compute();
            assert_eq!(products.flops(), 3.0 * 2.0 * 40.0);
            // 0.5 * 0.25 five times.
            assert_eq!(products.c_mn, vec![vec![0.625; 8]; 3]);
        });
    }
}
