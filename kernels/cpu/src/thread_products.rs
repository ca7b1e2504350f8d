//! One matrix product per thread: the most arithmetic that a machine's cores reach together.
//!
//! Shape letters: m, k, n of a product `[m, k] x [k, n]`.

use rayon::prelude::*;

use crate::bf16::{Bf16, Compute};
use crate::matrix::{Matrix, MatrixMut, multiply};
use crate::panel_product::write_product;
use crate::rounding::rounded;

/// The same product by every thread of the pool, of the same two matrices.
#[derive(Debug)]
pub struct ThreadProducts {
    shape_mkn: [usize; 3],
    factors: Factors,
    /// One for each thread.
    c_mn: Vec<Vec<f32>>,
}

/// `[m, k]` and `[k, n]`.
#[derive(Debug)]
enum Factors {
    F32([Vec<f32>; 2]),
    Bf16([Vec<Bf16>; 2]),
}

impl ThreadProducts {
    /// Products of `[m, k]` by `[k, n]`, as many as the current pool has threads.
    ///
    /// # Panics
    /// If a size is 0.
    pub fn new(shape_mkn: [usize; 3], compute: Compute) -> Self {
        let [m, k, n] = shape_mkn;
        assert!(m * k * n > 0, "a product of shape {shape_mkn:?}");
        let factors = [vec![0.5; m * k], vec![0.25; k * n]];
        Self {
            shape_mkn,
            factors: match compute {
                Compute::F32 => Factors::F32(factors),
                Compute::Bf16 => Factors::Bf16(factors.map(|values| rounded(&values).into_owned())),
            },
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
        let products = self.c_mn.par_iter_mut().with_max_len(1);
        match &self.factors {
            Factors::F32([a_mk, b_kn]) => {
                let (a, b) = (Matrix::row_major(a_mk, k), Matrix::row_major(b_kn, n));
                products.for_each(|c_mn| multiply(MatrixMut::row_major(c_mn, n), a, b));
            }
            Factors::Bf16([a_mk, b_kn]) => {
                let (a, b) = (Matrix::row_major(a_mk, k), Matrix::row_major(b_kn, n));
                products.for_each(|c_mn| write_product(c_mn, a, b, Compute::Bf16));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_computes_the_whole_product() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        pool.install(|| {
            for compute in [Compute::F32, Compute::Bf16] {
                let mut products = ThreadProducts::new([2, 5, 4], compute);
                products.compute();
                assert_eq!(products.flops(), 3.0 * 2.0 * 40.0);
                // 0.5 * 0.25 five times.
                assert_eq!(products.c_mn, vec![vec![0.625; 8]; 3]);
            }
        });
    }
}
