//! The activations; the blocks themselves are held to their definition in `tests/feed_forward`.

use std::mem::MaybeUninit;

use burn::backend::Flex;
use switchyard_kernels_cpu::activation::{Activation, activate, backward};

use super::stock::activation as stock;
use crate::slices::test_support::{assert_agree, random_flex};
use crate::slices::{elements, from_elements};

const CLAMPED: Activation = Activation::ClampedSwiglu { alpha: 1.702, limit: 0.25 };
const ALL: [Activation; 5] =
    [Activation::Swiglu, CLAMPED, Activation::Gelu, Activation::GeluTanh, Activation::Relu];

#[test]
fn loops_agree_with_the_stock_operations() {
    for (activation, len) in
        ALL.into_iter().flat_map(|activation| [1, 7, 16, 1203].map(|len| (activation, len)))
    {
        let [up, gate, dhidden] = [1, 2, 3].map(|seed| random_flex(seed, [1, len]));
        let gate = activation.is_gated().then_some(gate);
        let stock_hidden = stock::activate::<Flex>(activation, up.clone(), gate.clone());
        let (stock_dup, stock_dgate) =
            stock::gradients::<Flex>(activation, up.clone(), gate.clone(), dhidden.clone());

        let tensor = |values: &[f32]| from_elements(values.to_vec(), [1, len].into());
        let mut hidden = vec![MaybeUninit::uninit(); len];
        let gate_elements = gate.as_ref().map(elements);
        let hidden = activate(activation, &mut hidden, elements(&up), gate_elements);
        assert_agree("hidden", &tensor(hidden), &stock_hidden);

        let weight = 0.5;
        let mut dup = elements(&up).to_vec();
        let mut dgate = gate.as_ref().map(|gate| elements(gate).to_vec());
        let mut weighted = elements(&dhidden).to_vec();
        let dweight = backward(activation, &mut dup, dgate.as_deref_mut(), &mut weighted, weight);
        let doubled = |values: &[f32]| tensor(&values.iter().map(|value| value / weight).collect::<Vec<_>>());
        assert_agree("gradient of up", &doubled(&dup), &stock_dup);
        if let (Some(dgate), Some(stock_dgate)) = (dgate, stock_dgate) {
            assert_agree("gradient of gate", &doubled(&dgate), &stock_dgate);
        }
        assert_agree("weighted hidden", &doubled(&weighted), &stock_hidden);
        let expected: f64 =
            elements(&dhidden).iter().zip(&*hidden).map(|(&d, &h)| f64::from(d) * f64::from(h)).sum();
        let size: f64 =
            elements(&dhidden).iter().zip(&*hidden).map(|(&d, &h)| f64::from((d * h).abs())).sum();
        assert!((f64::from(dweight) - expected).abs() <= 1e-6 * size, "{dweight}, not {expected}");
    }
}
