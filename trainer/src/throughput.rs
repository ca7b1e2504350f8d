//! The device's own speed, against which utilisation is stated.

use std::time::Instant;

use burn::tensor::{Device, Tensor};

use crate::TrainError;
use crate::step::read_scalar;

const MATRIX_SIZE: usize = 768;
const MAX_SECS: f64 = 0.25;

/// Highest f32 rate seen while multiplying square matrices for a quarter of a second, in FLOP/s: the peak that
/// model FLOP utilisation (MFU, arXiv:2204.02311, appendix B) is stated against.
///
/// # Errors
/// [`TrainError::Device`] if the device cannot be read.
pub fn measure_matmul_peak_flops(device: &Device) -> Result<f64, TrainError> {
    let a = Tensor::<2>::ones([MATRIX_SIZE, MATRIX_SIZE], device).mul_scalar(0.5);
    let b = Tensor::<2>::ones([MATRIX_SIZE, MATRIX_SIZE], device).mul_scalar(0.25);
    let flops = 2.0 * (MATRIX_SIZE as f64).powi(3);
    let started = Instant::now();
    let mut best_secs = f64::INFINITY;
    // The first product pays for page faults and, on a GPU, for compilation: the minimum leaves it out.
    while started.elapsed().as_secs_f64() < MAX_SECS || best_secs.is_infinite() {
        let product_started = Instant::now();
        let product = a.clone().matmul(b.clone());
        read_scalar(&product.narrow(0, 0, 1).narrow(1, 0, 1).flatten(0, 1))?;
        best_secs = best_secs.min(product_started.elapsed().as_secs_f64());
    }
    Ok(flops / best_secs)
}
