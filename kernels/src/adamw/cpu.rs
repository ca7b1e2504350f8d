//! The update on the CPU, in place where nobody else holds the tensors.

use burn::backend::{Flex, flex::FlexTensor};
use switchyard_kernels_cpu::adamw::{AdamWStep, State, update};

use super::{AdamW, stock};
use crate::slices::{InPlaceTensor, all_f32, contiguous, elements};

impl AdamW for Flex {
    fn adamw(
        value_n: FlexTensor,
        moment1_n: FlexTensor,
        moment2_n: FlexTensor,
        gradient_n: FlexTensor,
        step: AdamWStep,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        if !all_f32(&[&value_n, &moment1_n, &moment2_n, &gradient_n]) {
            return stock::update::<Flex>(value_n, moment1_n, moment2_n, gradient_n, step);
        }
        let gradient_n = contiguous(gradient_n);
        let [mut value_n, mut moment1_n, mut moment2_n] =
            [value_n, moment1_n, moment2_n].map(InPlaceTensor::new);
        let state =
            State { value: value_n.elements(), moment1: moment1_n.elements(), moment2: moment2_n.elements() };
        update(state, elements(&gradient_n), &step);
        (value_n.finish(), moment1_n.finish(), moment2_n.finish())
    }
}
