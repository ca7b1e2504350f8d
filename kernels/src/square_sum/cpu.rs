//! Sums of squares on the CPU.

use burn::backend::{Flex, flex::FlexTensor};
use burn::tensor::Shape;
use switchyard_kernels_cpu::square_sum as on_slices;

use super::{SquareSums, stock};
use crate::slices::{all_f32, contiguous, elements, from_doubles};

impl SquareSums for Flex {
    fn square_sums(x_n: FlexTensor, num_rows: usize) -> FlexTensor {
        if !all_f32(&[&x_n]) {
            return stock::square_sums::<Flex>(x_n, num_rows);
        }
        let x_n = contiguous(x_n);
        let sums = on_slices::square_sums(elements(&x_n), num_rows);
        let num_parts = sums.len();
        from_doubles(sums, Shape::new([num_parts]))
    }
}
