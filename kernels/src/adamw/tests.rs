use burn::backend::ops::FloatTensorOps;
use burn::backend::{Flex, flex::FlexTensor};
use burn::tensor::{DType, FloatDType};

use super::{AdamW, AdamWStep, stock};
use crate::slices::elements;
use crate::slices::test_support::{assert_agree, bits_with_threads, random_flex};

const STEP: AdamWStep = AdamWStep {
    learning_rate: 0.01,
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weight_decay: 0.1,
    step: 3,
    gradient_scale: 0.5,
    rounding_key: 0,
    first_element: 0,
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
            stock::update::<Flex>(value.clone(), moment1.clone(), moment2.clone(), gradient.clone(), STEP);
        let shared =
            <Flex as AdamW>::adamw(value.clone(), moment1.clone(), moment2.clone(), gradient.clone(), STEP);
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

/// In place or not, the value is that of f32 moments, and the moments are theirs, rounded.
#[test]
fn bf16_moments_stay_bf16_and_round_those_in_f32() {
    let [value, moment1, moment2, gradient] = inputs(40_001);
    let as_bf16 = |tensor: FlexTensor| Flex::float_cast(tensor, FloatDType::BF16);
    let as_f32 = |tensor: FlexTensor| Flex::float_cast(tensor, FloatDType::F32);
    let rounded = [moment1, moment2].map(as_bf16);
    let [moment1, moment2] = rounded.clone().map(as_f32);
    let exact = <Flex as AdamW>::adamw(value.clone(), moment1, moment2, gradient.clone(), STEP);
    let [moment1, moment2] = rounded.clone();
    let shared = <Flex as AdamW>::adamw(value.clone(), moment1, moment2, gradient.clone(), STEP);
    let [moment1, moment2] = rounded;
    let owned = <Flex as AdamW>::adamw(value, moment1, moment2, gradient, STEP);
    for found in [shared, owned] {
        assert_eq!(elements(&found.0), elements(&exact.0));
        for (found, exact) in [(found.1, &exact.1), (found.2, &exact.2)] {
            assert_eq!(found.dtype(), DType::BF16);
            for (found, exact) in elements(&as_f32(found)).iter().zip(elements(exact)) {
                // Two neighbours differ by at most 2^-7 of either.
                assert!((found - exact).abs() <= exact.abs() / 128.0, "{found} is not beside {exact}");
            }
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
    let stock = stock::update::<Flex>(view.clone(), moment1.clone(), moment2.clone(), gradient.clone(), STEP);
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
