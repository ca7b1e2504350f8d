//! The device's own speed, against which utilisation is stated.

use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor};
use switchyard_kernels::{Compute, ThreadProducts};

use crate::readings::{DeviceReadError, read_scalar};

/// Rows, inner size and columns of the products tried, the cheapest first: square ones, and a tall
/// one that reads its right factor from the cache.
const SHAPES_MKN: [[usize; 3]; 3] = [[768, 768, 768], [2048, 1024, 256], [1024, 1024, 1024]];
const MAX_SECS: f64 = 0.3;

/// Bytes that [`measure_matmul_peak_flops`] holds at a time on the CPU: whatever the number of
/// threads, and for each thread. Both kinds of product have factors of their own; the one that is
/// shared by all threads has a result too, which is gone before the next one.
pub(crate) fn probe_bytes() -> (u64, u64) {
    let bytes = |elements: usize| 4 * elements as u64;
    let factors = SHAPES_MKN.iter().map(|[m, k, n]| bytes(2 * (m * k + k * n))).sum();
    (factors, SHAPES_MKN.iter().map(|[m, _, n]| bytes(m * n)).sum())
}

/// Highest rate seen in 0.3 seconds of matrix products with factors of `compute`, in FLOP/s: the peak
/// that model FLOP utilisation (MFU, arXiv:2204.02311, appendix B) is stated against. On the CPU the better of
/// burn's product, shared by all threads, and of one single-threaded product on each of them.
///
/// # Errors
/// [`DeviceReadError`] if the device cannot be read.
pub fn measure_matmul_peak_flops(device: &Device, compute: Compute) -> Result<f64, DeviceReadError> {
    Ok(MatmulCeiling::measure(device, compute)?.peak_flops())
}

/// The matrix products that were the fastest of several kinds.
pub struct MatmulCeiling {
    fastest: Box<dyn Candidate>,
    peak_flops: f64,
    compute: Compute,
}

impl MatmulCeiling {
    /// Tries all kinds in turn; see [`measure_matmul_peak_flops`].
    ///
    /// # Errors
    /// [`DeviceReadError`] if the device cannot be read.
    pub fn measure(device: &Device, compute: Compute) -> Result<Self, DeviceReadError> {
        let mut candidates: Vec<Box<dyn Candidate>> = Vec::new();
        for shape_mkn in SHAPES_MKN {
            // Other devices' products, and burn's own, are f32.
            if compute == Compute::F32 {
                candidates.push(Box::new(SharedProduct::new(shape_mkn, device)));
            }
            if *device == Device::flex() {
                candidates.push(Box::new(ThreadProducts::new(shape_mkn, compute)));
            }
        }
        let deadline = Instant::now() + Duration::from_secs_f64(MAX_SECS);
        let (mut fastest, mut peak_flops) = (0, 0.0);
        // A candidate's first product pays for page faults and, on a GPU, for compilation: the best
        // leaves it out. A process that was held up past the deadline still has one product to
        // state a rate of.
        while peak_flops == 0.0 || Instant::now() < deadline {
            for (index, candidate) in candidates.iter_mut().enumerate() {
                let started = Instant::now();
                candidate.compute()?;
                let flops = candidate.flops() / started.elapsed().as_secs_f64();
                if flops > peak_flops {
                    (fastest, peak_flops) = (index, flops);
                }
                if Instant::now() >= deadline {
                    break;
                }
            }
        }
        Ok(Self { fastest: candidates.swap_remove(fastest), peak_flops, compute })
    }

    /// What the factors of the products are rounded to.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// The highest rate seen, in FLOP/s.
    pub fn peak_flops(&self) -> f64 {
        self.peak_flops
    }

    /// Multiplies and adds of one of the fastest products.
    pub fn product_flops(&self) -> f64 {
        self.fastest.flops()
    }

    /// So many of the fastest products, one after another.
    ///
    /// # Errors
    /// [`DeviceReadError`] if the device cannot be read.
    pub fn multiply(&mut self, times: u64) -> Result<(), DeviceReadError> {
        (0..times).try_for_each(|_| self.fastest.compute())
    }
}

/// Work that may reach the peak.
trait Candidate {
    /// Multiplies and adds of one round.
    fn flops(&self) -> f64;

    /// One round, finished when this returns.
    fn compute(&mut self) -> Result<(), DeviceReadError>;
}

/// One product by the device's own means.
struct SharedProduct {
    a_mk: Tensor<2>,
    b_kn: Tensor<2>,
}

impl SharedProduct {
    fn new([m, k, n]: [usize; 3], device: &Device) -> Self {
        Self {
            a_mk: Tensor::ones([m, k], device).mul_scalar(0.5),
            b_kn: Tensor::ones([k, n], device).mul_scalar(0.25),
        }
    }
}

impl Candidate for SharedProduct {
    fn flops(&self) -> f64 {
        let ([m, k], [_, n]) = (self.a_mk.dims(), self.b_kn.dims());
        2.0 * (m * k * n) as f64
    }

    fn compute(&mut self) -> Result<(), DeviceReadError> {
        let product = self.a_mk.clone().matmul(self.b_kn.clone());
        read_scalar(&product.narrow(0, 0, 1).narrow(1, 0, 1).flatten(0, 1)).map(drop)
    }
}

impl Candidate for ThreadProducts {
    fn flops(&self) -> f64 {
        ThreadProducts::flops(self)
    }

    fn compute(&mut self) -> Result<(), DeviceReadError> {
        ThreadProducts::compute(self);
        Ok(())
    }
}
