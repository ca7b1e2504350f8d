//! Matrices of plain f64: what the oracles compute with.

use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

/// Row-major values.
#[derive(Debug, Clone)]
pub(crate) struct Matrix {
    pub(crate) num_rows: usize,
    pub(crate) num_columns: usize,
    pub(crate) values: Vec<f64>,
}

impl Matrix {
    pub(crate) fn zeros(num_rows: usize, num_columns: usize) -> Self {
        Self { num_rows, num_columns, values: vec![0.0; num_rows * num_columns] }
    }

    /// Uniform values in [-1, 1) that f32 represents too.
    pub(crate) fn random(num_rows: usize, num_columns: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let values = (0..num_rows * num_columns).map(|_| f64::from(rng.random_range(-1.0_f32..1.0)));
        Self { num_rows, num_columns, values: values.collect() }
    }

    pub(crate) fn at(&self, row: usize, column: usize) -> f64 {
        self.values[row * self.num_columns + column]
    }

    pub(crate) fn add(&mut self, row: usize, column: usize, value: f64) {
        self.values[row * self.num_columns + column] += value;
    }

    pub(crate) fn tensor<const D: usize>(&self, shape: [usize; D], dtype: DType) -> Tensor<D> {
        let device = Device::flex().autodiff();
        Tensor::from_data(TensorData::new(self.values.clone(), shape), (&device, dtype))
    }

    pub(crate) fn leaf(&self, dtype: DType) -> Tensor<2> {
        self.tensor([self.num_rows, self.num_columns], dtype).require_grad()
    }
}

pub(crate) fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    tensor.to_data().iter::<f64>().collect()
}

pub(crate) fn bits<const D: usize>(tensor: &Tensor<D>) -> Vec<u32> {
    assert_eq!(tensor.dtype(), DType::F32);
    tensor.to_data().iter::<f32>().map(f32::to_bits).collect()
}

pub(crate) fn gradient<const D: usize>(leaf: &Tensor<D>, gradients: &Gradients) -> Tensor<D> {
    leaf.grad(gradients).unwrap_or_else(|| panic!("a leaf of shape {:?} has no gradient", leaf.dims()))
}

/// The tests compare in f64, where both sides sum at most a few hundred products of size 1: 1e-12 is a thousand
/// roundings.
#[track_caller]
pub(crate) fn assert_close(actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len());
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((a - e).abs() < 1e-12, "element {i}: {a} instead of {e}");
    }
}
