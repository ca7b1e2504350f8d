//! Tensors of attention heads, `[batch, heads, seq, d]`, read on the CPU in whatever order they lie in memory.

use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;

/// An f32 tensor `[batch, heads, seq, d]` whose rows of d elements are contiguous: swapping heads and positions, as
/// models do, costs no copy.
pub(crate) struct Heads {
    tensor: FlexTensor,
    strides: [usize; 3],
}

impl Heads {
    /// The tensor, copied if its rows are not contiguous.
    pub(crate) fn new(tensor: FlexTensor) -> Self {
        let readable = |tensor: &FlexTensor| {
            let strides = tensor.layout().strides();
            strides[3] == 1 && strides.iter().all(|&stride| stride >= 0)
        };
        let tensor = if readable(&tensor) { tensor } else { tensor.to_contiguous() };
        let strides = std::array::from_fn(|dim| tensor.layout().strides()[dim].unsigned_abs());
        Self { tensor, strides }
    }

    /// `[batch, heads, seq, d]`.
    pub(crate) fn dims(&self) -> [usize; 4] {
        self.tensor.shape().dims()
    }

    /// The d elements of one head at one position.
    pub(crate) fn row(&self, batch: usize, head: usize, position: usize) -> &[f32] {
        let [b_stride, h_stride, s_stride] = self.strides;
        let start = batch * b_stride + head * h_stride + position * s_stride;
        &self.tensor.storage()[self.tensor.layout().start_offset() + start..][..self.tensor.shape()[3]]
    }
}
