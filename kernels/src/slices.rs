//! Flex tensors as f32 slices and matrices.

use std::marker::PhantomData;

use burn::backend::TensorMetadata;
use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Shape};
use switchyard_kernels_cpu::bf16::Bf16;
use switchyard_kernels_cpu::blocks::InPlace;
use switchyard_kernels_cpu::matrix::Matrix;

/// Whether all of `tensors` are of the type that the slice loops are written for.
pub(crate) fn all_f32(tensors: &[&FlexTensor]) -> bool {
    tensors.iter().all(|tensor| tensor.dtype() == DType::F32)
}

/// The tensor, copied if its elements do not lie one after another.
pub(crate) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// The elements of a contiguous f32 tensor.
///
/// # Panics
/// If the tensor is not a contiguous one of f32.
pub(crate) fn elements(tensor: &FlexTensor) -> &[f32] {
    match tensor.as_slice() {
        Some(elements) => elements,
        None => panic!("a {:?} tensor with layout {:?} has no f32 slice", tensor.dtype(), tensor.layout()),
    }
}

/// The matrix of a contiguous f32 tensor of two dimensions.
///
/// # Panics
/// If the tensor is not one.
pub(crate) fn matrix(tensor: &FlexTensor) -> Matrix<'_> {
    let [rows, columns] = tensor.shape().dims();
    Matrix::strided(elements(tensor), [rows, columns], [columns, 1])
}

/// A tensor of `elements` in row-major order.
pub(crate) fn from_elements(elements: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(elements), Layout::contiguous(shape), DType::F32)
}

/// As [`from_elements`], in f64.
pub(crate) fn from_doubles(elements: Vec<f64>, shape: Shape) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(elements), Layout::contiguous(shape), DType::F64)
}

/// The elements of an integer tensor of any width, in row-major order.
pub(crate) fn host_integers(tensor: FlexTensor) -> Vec<i64> {
    tensor.into_data().iter::<i64>().collect()
}

/// Elements that slice loops read from a tensor and write to it.
pub(crate) trait Stored: Copy {
    /// The type of such a tensor.
    const DTYPE: DType;

    /// A tensor of `elements` in row-major order.
    fn tensor(elements: Vec<Self>, shape: Shape) -> FlexTensor;

    /// The elements of a contiguous tensor.
    ///
    /// # Panics
    /// If the tensor is not a contiguous one of this type.
    fn elements(tensor: &FlexTensor) -> &[Self];

    /// The elements of a tensor that covers its buffer.
    ///
    /// # Panics
    /// If the tensor is not of this type.
    fn elements_mut(tensor: &mut FlexTensor) -> &mut [Self];
}

impl Stored for f32 {
    const DTYPE: DType = DType::F32;

    fn tensor(elements: Vec<Self>, shape: Shape) -> FlexTensor {
        from_elements(elements, shape)
    }

    fn elements(tensor: &FlexTensor) -> &[Self] {
        elements(tensor)
    }

    fn elements_mut(tensor: &mut FlexTensor) -> &mut [Self] {
        tensor.storage_mut()
    }
}

/// As integers of their bits, which no stock operation computes with.
impl Stored for Bf16 {
    const DTYPE: DType = DType::U16;

    fn tensor(elements: Vec<Self>, shape: Shape) -> FlexTensor {
        let bits = Bytes::from_elems(Bf16::into_bits(elements));
        FlexTensor::new(bits, Layout::contiguous(shape), DType::U16)
    }

    fn elements(tensor: &FlexTensor) -> &[Self] {
        match tensor.as_slice() {
            Some(bits) => Bf16::slice_of_bits(bits),
            None => panic!("a {:?} tensor with layout {:?} has no bits", tensor.dtype(), tensor.layout()),
        }
    }

    fn elements_mut(tensor: &mut FlexTensor) -> &mut [Self] {
        Bf16::slice_of_bits_mut(tensor.storage_mut())
    }
}

/// The same buffer as a tensor of another type whose elements are as large.
pub(crate) fn relabelled(tensor: FlexTensor, dtype: DType) -> FlexTensor {
    FlexTensor::from_arc(tensor.data_arc(), tensor.layout().clone(), dtype)
}

/// A tensor to be updated in place: its own buffer if nobody else holds it, else a new one beside
/// the source to copy from.
pub(crate) struct InPlaceTensor<E> {
    target: FlexTensor,
    source: Option<FlexTensor>,
    elements: PhantomData<E>,
}

impl<E: Stored> InPlaceTensor<E> {
    /// The tensor `tensor` of such elements, to be updated.
    pub(crate) fn new(tensor: FlexTensor) -> Self {
        let tensor = contiguous(tensor);
        let shape = tensor.shape();
        let covers_buffer = tensor.bytes().len() == shape.num_elements() * size_of::<E>();
        if tensor.is_unique() && covers_buffer {
            return Self { target: tensor, source: None, elements: PhantomData };
        }
        let target = FlexTensor::empty(shape, E::DTYPE);
        Self { target, source: Some(tensor), elements: PhantomData }
    }

    /// The elements to update.
    pub(crate) fn elements(&mut self) -> InPlace<'_, E> {
        InPlace { target: E::elements_mut(&mut self.target), source: self.source.as_ref().map(E::elements) }
    }

    /// The updated tensor.
    pub(crate) fn finish(self) -> FlexTensor {
        self.target
    }
}

#[cfg(test)]
pub(crate) mod test_support {
    use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

    use super::*;

    /// Values between -4 and 4.
    pub(crate) fn random_flex(seed: u64, shape: impl Into<Shape>) -> FlexTensor {
        let shape = shape.into();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let values = (0..shape.num_elements()).map(|_| (rng.random::<f32>() - 0.5) * 8.0).collect();
        from_elements(values, shape)
    }

    /// Both sides round in f32, over sums of thousands of terms at most, in another order.
    pub(crate) fn assert_agree(what: &str, actual: &FlexTensor, expected: &FlexTensor) {
        assert_eq!(actual.shape(), expected.shape(), "{what}");
        let expected = contiguous(expected.clone());
        let scale = elements(&expected).iter().fold(1.0f32, |scale, value| scale.max(value.abs()));
        for (i, (a, e)) in elements(actual).iter().zip(elements(&expected)).enumerate() {
            assert!((a - e).abs() <= 3e-6 * scale, "{what}[{i}]: {a} is not {e} (scale {scale})");
        }
    }

    /// The bits of what `compute` returns in a pool of `num_threads`.
    pub(crate) fn bits_with_threads(
        num_threads: usize,
        compute: impl Fn() -> Vec<FlexTensor> + Send + Sync,
    ) -> Vec<Vec<u32>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
        let tensors = pool.install(compute);
        tensors.iter().map(|tensor| elements(tensor).iter().map(|value| value.to_bits()).collect()).collect()
    }
}
