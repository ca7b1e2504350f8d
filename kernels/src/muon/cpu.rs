//! The update on the CPU, in place where nobody else holds the tensors.

use burn::backend::{Flex, flex::FlexTensor};
use switchyard_kernels_cpu::muon::{MuonStep, State, update};

use super::{Muon, stock};
use crate::slices::{InPlaceTensor, all_f32, contiguous, elements};

impl Muon for Flex {
    fn muon(
        value_n: FlexTensor,
        momentum_n: FlexTensor,
        gradient_n: FlexTensor,
        shape: [usize; 3],
        step: MuonStep,
    ) -> (FlexTensor, FlexTensor) {
        if !all_f32(&[&value_n, &momentum_n, &gradient_n]) {
            return stock::update::<Flex>(value_n, momentum_n, gradient_n, shape, step);
        }
        let gradient_n = contiguous(gradient_n);
        let [mut value_n, mut momentum_n] = [value_n, momentum_n].map(InPlaceTensor::new);
        let state = State { value: value_n.elements(), momentum: momentum_n.elements() };
        update(state, elements(&gradient_n), shape, &step);
        (value_n.finish(), momentum_n.finish())
    }
}
