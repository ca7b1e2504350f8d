use burn::backend::{Flex, flex::FlexTensor};

use super::{Muon, MuonStep, stock};
use crate::slices::elements;
use crate::slices::test_support::{bits_with_threads, random_flex};

const STEP: MuonStep = MuonStep {
    learning_rate: 0.01,
    momentum: 0.95,
    nesterov: true,
    newton_schulz_steps: 5,
    weight_decay: 0.1,
    gradient_scale: 0.5,
};

/// Stacks of one matrix and of several: square, wide, tall, of several tasks, and of one row.
const SHAPES: [[usize; 3]; 6] = [[1, 7, 7], [3, 5, 24], [3, 24, 5], [2, 150, 270], [1, 300, 140], [2, 1, 9]];

/// Value, momentum, gradient.
fn inputs(shape: [usize; 3]) -> [FlexTensor; 3] {
    let n: usize = shape.iter().product();
    [1, 2, 3].map(|seed| random_flex(seed, [n]))
}

/// The two bodies round differently in f32, and five iterations multiply a difference by up to
/// 3.4445 each: 500 roundings of values of size one, times the rate.
fn assert_agree(what: &str, actual: &FlexTensor, expected: &FlexTensor) {
    for (i, (a, e)) in elements(actual).iter().zip(elements(expected)).enumerate() {
        assert!((a - e).abs() <= 1e-5, "{what}[{i}]: {a} is not {e}");
    }
}

#[test]
fn fused_update_agrees_with_the_stock_body_in_place_or_not() {
    for shape in SHAPES {
        for nesterov in [true, false] {
            let step = MuonStep { nesterov, ..STEP };
            let [value, momentum, gradient] = inputs(shape);
            let stock = stock::update::<Flex>(value.clone(), momentum.clone(), gradient.clone(), shape, step);
            let shared = <Flex as Muon>::muon(value.clone(), momentum.clone(), gradient.clone(), shape, step);
            assert_eq!(elements(&value), elements(&inputs(shape)[0]), "a shared input stays as it was");
            let before = value.bytes().as_ptr();
            let owned = <Flex as Muon>::muon(value, momentum, gradient, shape, step);
            assert_eq!(owned.0.bytes().as_ptr(), before, "an unshared buffer is updated in place");
            for fused in [shared, owned] {
                assert_agree(&format!("value of {shape:?}"), &fused.0, &stock.0);
                assert_agree(&format!("momentum of {shape:?}"), &fused.1, &stock.1);
            }
        }
    }
}

#[test]
fn the_update_repeats_bit_for_bit_for_any_number_of_threads() {
    for shape in SHAPES {
        let compute = || {
            let [value, momentum, gradient] = inputs(shape);
            let (value, momentum) = <Flex as Muon>::muon(value, momentum, gradient, shape, STEP);
            vec![value, momentum]
        };
        let one = bits_with_threads(1, compute);
        assert_eq!(one, bits_with_threads(2, compute), "{shape:?}");
        assert_eq!(one, bits_with_threads(5, compute), "{shape:?}");
    }
}
