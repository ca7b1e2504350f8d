//! The update on the CPU, in place where nobody else holds the tensors.

use burn::backend::{Flex, flex::FlexTensor};
use burn::tensor::DType;
use switchyard_kernels_cpu::adamw::{AdamWStep, Moment, State, update};
use switchyard_kernels_cpu::bf16::Bf16;

use super::{AdamW, stock};
use crate::slices::{InPlaceTensor, Stored, all_f32, contiguous, elements, relabelled};

impl AdamW for Flex {
    fn adamw(
        value_n: FlexTensor,
        moment1_n: FlexTensor,
        moment2_n: FlexTensor,
        gradient_n: FlexTensor,
        step: AdamWStep,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        if !all_f32(&[&value_n, &gradient_n]) {
            return stock::update::<Flex>(value_n, moment1_n, moment2_n, gradient_n, step);
        }
        match [moment1_n.dtype(), moment2_n.dtype()] {
            [DType::F32, DType::F32] => {
                let (value_n, [moment1_n, moment2_n]) =
                    updated::<f32>(value_n, [moment1_n, moment2_n], gradient_n, &step);
                (value_n, moment1_n, moment2_n)
            }
            [DType::BF16, DType::BF16] => {
                let as_bits = [moment1_n, moment2_n].map(|moment_n| relabelled(moment_n, Bf16::DTYPE));
                let (value_n, moments) = updated::<Bf16>(value_n, as_bits, gradient_n, &step);
                let [moment1_n, moment2_n] = moments.map(|moment_n| relabelled(moment_n, DType::BF16));
                (value_n, moment1_n, moment2_n)
            }
            _ => stock::update::<Flex>(value_n, moment1_n, moment2_n, gradient_n, step),
        }
    }
}

/// The value and both moments after the update.
fn updated<M: Moment + Stored>(
    value_n: FlexTensor,
    moments: [FlexTensor; 2],
    gradient_n: FlexTensor,
    step: &AdamWStep,
) -> (FlexTensor, [FlexTensor; 2]) {
    let gradient_n = contiguous(gradient_n);
    let mut value_n = InPlaceTensor::new(value_n);
    let [mut moment1_n, mut moment2_n] = moments.map(InPlaceTensor::<M>::new);
    let state =
        State { value: value_n.elements(), moment1: moment1_n.elements(), moment2: moment2_n.elements() };
    update(state, elements(&gradient_n), step);
    (value_n.finish(), [moment1_n.finish(), moment2_n.finish()])
}
