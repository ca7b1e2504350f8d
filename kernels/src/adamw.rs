//! One AdamW update.

use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, autodiff::checkpoint::strategy::CheckpointStrategy, backend_extension,
    flex::FlexTensor, tensor::FloatTensor,
};
use burn::tensor::Tensor;
use switchyard_kernels_cpu::adamw::{Factors, State, update};

pub use switchyard_kernels_cpu::adamw::AdamWStep;

use crate::slices::{InPlaceTensor, all_f32, contiguous, elements};

/// A flattened parameter with its two moments.
#[derive(Debug, Clone)]
pub struct AdamWState {
    /// The parameter's values.
    pub value_n: Tensor<1>,
    /// Running mean of the gradient.
    pub moment1_n: Tensor<1>,
    /// Running mean of the squared gradient.
    pub moment2_n: Tensor<1>,
}

/// The parameter and its moments after one update with `gradient_n` (arXiv:1711.05101, algorithm 2; the decay is
/// multiplied by the learning rate, as in PyTorch). Nothing is differentiated: the results do not remember how they
/// were made.
///
/// # Panics
/// If the lengths differ.
pub fn adamw_update(state: AdamWState, gradient_n: Tensor<1>, step: &AdamWStep) -> AdamWState {
    let AdamWState { value_n, moment1_n, moment2_n } = state;
    let lengths = [&value_n, &moment1_n, &moment2_n, &gradient_n].map(|tensor| tensor.dims()[0]);
    assert!(
        lengths.iter().all(|length| *length == lengths[0]),
        "value, moments and gradient have the lengths {lengths:?}",
    );
    let (value_n, moment1_n, moment2_n) = Dispatch::adamw(
        value_n.into_dispatch(),
        moment1_n.into_dispatch(),
        moment2_n.into_dispatch(),
        gradient_n.into_dispatch(),
        *step,
    );
    AdamWState {
        value_n: Tensor::from_dispatch(value_n),
        moment1_n: Tensor::from_dispatch(moment1_n),
        moment2_n: Tensor::from_dispatch(moment2_n),
    }
}

/// The operation on one backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait AdamW: Backend {
    /// The value and its first and second moment after the update, each `[n]`.
    fn adamw(
        value_n: FloatTensor<Self>,
        moment1_n: FloatTensor<Self>,
        moment2_n: FloatTensor<Self>,
        gradient_n: FloatTensor<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        stock_adamw::<Self>(value_n, moment1_n, moment2_n, gradient_n, step)
    }
}

/// The default body of [`AdamW::adamw`].
fn stock_adamw<B: Backend>(
    value_n: FloatTensor<B>,
    moment1_n: FloatTensor<B>,
    moment2_n: FloatTensor<B>,
    gradient_n: FloatTensor<B>,
    step: AdamWStep,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let factors = Factors::new(&step);
    let scaled = |tensor: FloatTensor<B>, factor: f64| B::float_mul_scalar(tensor, factor.into());
    let gradient_n = scaled(gradient_n, factors.gradient_scale);
    let square_n = B::float_mul(gradient_n.clone(), gradient_n.clone());
    let moment1_n = B::float_add(scaled(moment1_n, factors.keep1), scaled(gradient_n, factors.add1));
    let moment2_n = B::float_add(scaled(moment2_n, factors.keep2), scaled(square_n, factors.add2));
    let root_n = scaled(B::float_sqrt(moment2_n.clone()), factors.root_correction);
    let denominator_n = B::float_add_scalar(root_n, factors.epsilon.into());
    let update_n = B::float_div(scaled(moment1_n.clone(), factors.rate), denominator_n);
    (B::float_sub(scaled(value_n, factors.decay), update_n), moment1_n, moment2_n)
}

impl AdamW for Flex {
    fn adamw(
        value_n: FlexTensor,
        moment1_n: FlexTensor,
        moment2_n: FlexTensor,
        gradient_n: FlexTensor,
        step: AdamWStep,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        if !all_f32(&[&value_n, &moment1_n, &moment2_n, &gradient_n]) {
            return stock_adamw::<Flex>(value_n, moment1_n, moment2_n, gradient_n, step);
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

#[cfg(feature = "cube")]
impl AdamW for burn_cubecl::CubeBackend {}

/// The update is no part of any graph: it is made on the inner tensors.
impl<B: AdamW, C: CheckpointStrategy> AdamW for Autodiff<B, C> {
    fn adamw(
        value_n: FloatTensor<Self>,
        moment1_n: FloatTensor<Self>,
        moment2_n: FloatTensor<Self>,
        gradient_n: FloatTensor<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (value_n, moment1_n, moment2_n) = B::adamw(
            value_n.into_primitive(),
            moment1_n.into_primitive(),
            moment2_n.into_primitive(),
            gradient_n.into_primitive(),
            step,
        );
        let untracked = FloatTensor::<Self>::new;
        (untracked(value_n), untracked(moment1_n), untracked(moment2_n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slices::test_support::{assert_agree, bits_with_threads, random_flex};

    const STEP: AdamWStep = AdamWStep {
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step: 3,
        gradient_scale: 0.5,
    };

    /// Value, first moment, second moment (not negative), gradient.
    fn inputs(n: usize) -> [FlexTensor; 4] {
        let [value, moment1, moment2, gradient] = [1, 2, 3, 4].map(|seed| random_flex(seed, [n]));
        let moment2 = elements(&moment2).iter().map(|value| value * value).collect();
        [value, moment1, crate::slices::from_elements(moment2, [n].into()), gradient]
    }

    #[test]
    fn fused_update_agrees_with_the_stock_body_in_place_or_not() {
        for n in [1, 13, 40_001] {
            let [value, moment1, moment2, gradient] = inputs(n);
            let stock =
                stock_adamw::<Flex>(value.clone(), moment1.clone(), moment2.clone(), gradient.clone(), STEP);
            let shared = <Flex as AdamW>::adamw(
                value.clone(),
                moment1.clone(),
                moment2.clone(),
                gradient.clone(),
                STEP,
            );
            let before = inputs(n);
            assert_eq!(elements(&value), elements(&before[0]), "a shared input stays as it was");
            let owned = <Flex as AdamW>::adamw(value, moment1, moment2, gradient, STEP);
            for fused in [shared, owned] {
                assert_agree("value", &fused.0, &stock.0);
                assert_agree("first moment", &fused.1, &stock.1);
                assert_agree("second moment", &fused.2, &stock.2);
            }
        }
    }

    #[test]
    fn an_unshared_buffer_is_updated_in_place() {
        let [value, moment1, moment2, gradient] = inputs(100);
        let before = value.bytes().as_ptr();
        let (value, _, _) = <Flex as AdamW>::adamw(value, moment1, moment2, gradient, STEP);
        assert_eq!(value.bytes().as_ptr(), before);
    }

    #[test]
    fn a_view_is_updated_without_its_surroundings() {
        let [_, moment1, moment2, gradient] = inputs(10);
        let whole = random_flex(7, [30]);
        let view = whole.narrow(0, 5, 10);
        let stock =
            stock_adamw::<Flex>(view.clone(), moment1.clone(), moment2.clone(), gradient.clone(), STEP);
        drop(whole);
        let (value, _, _) = <Flex as AdamW>::adamw(view, moment1, moment2, gradient, STEP);
        assert_agree("value", &value, &stock.0);
    }

    #[test]
    fn the_update_repeats_bit_for_bit_for_any_number_of_threads() {
        let compute = || {
            let [value, moment1, moment2, gradient] = inputs(40_001);
            let (value, moment1, moment2) = <Flex as AdamW>::adamw(value, moment1, moment2, gradient, STEP);
            vec![value, moment1, moment2]
        };
        assert_eq!(bits_with_threads(1, compute), bits_with_threads(2, compute));
    }
}
