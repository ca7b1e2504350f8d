//! Gradients against central differences, and against the closed forms where the loss holds
//! something constant.

use burn::module::Param;
use burn::tensor::{DType, Gradients, Tensor};
use switchyard_router::{AuxLossKind, Router, RouterPass, Routing};

use crate::case::{D, Kind, Values, kind, kinds, route_with, router, tensor, training, values};
use crate::noisy::{importance_loss_and_gradient, load_loss_and_gradient};
use crate::oracle::product;

/// Step of the differences: truncation and rounding each leave about 1e-10 of numbers of size 1.
const STEP: f64 = 1e-5;

/// One number out of every gate that counts and every loss. The load loss is left out: its
/// thresholds move with the parameters but are constants of its gradient.
fn objective(routing: &Routing) -> Tensor<1> {
    let [t, k] = routing.gates_tk.dims();
    let kept = |slot: usize| routing.choice.keep_tk.as_ref().is_none_or(|keep_tk| keep_tk[slot]);
    let factors: Vec<f64> =
        (0..t * k).map(|slot| if kept(slot) { (1.0 + slot as f64).sin() } else { 0.0 }).collect();
    let gates = (routing.gates_tk.clone() * tensor(&factors, [t, k], DType::F64)).sum();
    let losses = routing.losses.iter().filter(|loss| loss.kind != AuxLossKind::Load);
    losses.fold(gates, |sum, loss| sum + loss.value_1.clone().mul_scalar(loss.weight))
}

/// Loads of earlier micro-batches, for the loss that counts them.
const EARLIER: [u64; 8] = [5, 0, 3, 1, 9, 2, 2, 4];

fn pass() -> RouterPass<'static> {
    let RouterPass::Training { noise, .. } = training(21) else { panic!("a training pass") };
    RouterPass::Training { noise, earlier_tokens_per_expert: &EARLIER }
}

fn forward(kind: &Kind, values: &Values) -> (Router, Tensor<2>, Routing) {
    let router = router(kind, values, DType::F64);
    let x_td = values.x_td(DType::F64).require_grad();
    let routing = route_with(&router, values, x_td.clone(), pass());
    (router, x_td, routing)
}

fn gradient<const R: usize>(leaf: &Tensor<R>, gradients: &Gradients) -> Vec<f64> {
    leaf.grad(gradients).map_or_else(|| vec![0.0; leaf.shape().num_elements()], |gradient| values(&gradient))
}

fn param_gradient<const R: usize>(
    param: Option<&Param<Tensor<R>>>,
    gradients: &Gradients,
) -> Option<Vec<f64>> {
    param.map(|param| gradient(&param.val(), gradients))
}

/// In the order of [`Values::leaves_mut`]; `None` where the router has no such parameter.
fn gradients(router: &Router, x_td: &Tensor<2>, gradients: &Gradients) -> [Option<Vec<f64>>; 6] {
    let cosine = router.cosine.as_ref();
    [
        Some(gradient(x_td, gradients)),
        param_gradient(router.weight_de.as_ref(), gradients),
        param_gradient(router.noise_weight_de.as_ref(), gradients),
        param_gradient(cosine.map(|cosine| &cosine.projection_dc), gradients),
        param_gradient(cosine.map(|cosine| &cosine.directions_ce), gradients),
        param_gradient(cosine.map(|cosine| &cosine.log_scale_1), gradients),
    ]
}

/// Central differences of the objective for one leaf.
///
/// # Panics
/// If a choice flips on the way: the point would lie at a tie, where there is no gradient.
fn differences(kind: &Kind, values: &Values, leaf: usize) -> Vec<f64> {
    let (_, _, unshifted) = forward(kind, values);
    let objective_at = |i: usize, by: f64| {
        let mut shifted = values.clone();
        shifted.leaves_mut()[leaf].1[i] += by;
        let (_, _, routing) = forward(kind, &shifted);
        assert_eq!(routing.choice, unshifted.choice, "{}: a tie", kind.name);
        objective(&routing).into_scalar::<f64>()
    };
    let len = values.clone().leaves_mut()[leaf].1.len();
    (0..len).map(|i| (objective_at(i, STEP) - objective_at(i, -STEP)) / (2.0 * STEP)).collect()
}

#[test]
fn gradients_are_those_of_the_gates_and_losses() {
    for kind in kinds() {
        let values = Values::random(&kind, 3, 31);
        let (router, x_td, routing) = forward(&kind, &values);
        if !kind.config.learns() {
            assert!(!routing.gates_tk.is_require_grad(), "{}", kind.name);
            continue;
        }
        let all = gradients(&router, &x_td, &objective(&routing).backward());
        for (leaf, actual) in all.iter().enumerate().filter_map(|(leaf, g)| Some((leaf, g.as_ref()?))) {
            let expected = differences(&kind, &values, leaf);
            let name = values.clone().leaves_mut()[leaf].0;
            assert_eq!(actual.len(), expected.len(), "{}, {name}", kind.name);
            for (a, e) in actual.iter().zip(&expected) {
                assert!((a - e).abs() < 1e-7, "{}, {name}: {a} instead of {e}", kind.name);
            }
        }
        assert!(all[0].iter().flatten().any(|g| g.abs() > 1e-3), "{}: no gradient to speak of", kind.name);
    }
}

#[test]
fn no_gradient_reaches_a_bias() {
    for kind in kinds().iter().filter(|kind| kind.config.bias.is_some()) {
        let values = Values::random(kind, 3, 32);
        let (router, _, routing) = forward(kind, &values);
        let gradients = objective(&routing).backward();
        assert!(router.bias_e.unwrap().val().grad(&gradients).is_none(), "{}", kind.name);
    }
}

fn loss(routing: &Routing, kind: AuxLossKind) -> Tensor<1> {
    routing.losses.iter().find(|loss| loss.kind == kind).unwrap().value_1.clone()
}

/// Sum over tokens of `x^T gradient`: the gradient of a matrix from that of its product.
fn matrix_gradient(x_td: &[f64], gradient_te: &[f64], num_experts: usize) -> Vec<f64> {
    let mut sum = vec![0.0; D * num_experts];
    for (x, gradient) in x_td.chunks(D).zip(gradient_te.chunks(num_experts)) {
        for (i, x) in x.iter().enumerate() {
            for (j, g) in gradient.iter().enumerate() {
                sum[i * num_experts + j] += x * g;
            }
        }
    }
    sum
}

#[track_caller]
fn assert_close(what: &str, actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (a, e) in actual.iter().zip(expected) {
        // burn's and the closed form's normal distribution agree to 1e-13 or so; the gradients
        // divide by noise of 0.3.
        assert!((a - e).abs() < 1e-11, "{what}: {a} instead of {e}");
    }
}

#[test]
fn the_load_loss_and_its_gradients_are_the_closed_form() {
    for (name, top_k) in [("noisy_top_k", 2), ("noisy_top_1", 1)] {
        let kind = kind(name);
        let values_ = Values::random(&kind, 6, 33);
        let (router, x_td, routing) = forward(&kind, &values_);
        let by_matrix = |matrix: &[f64]| -> Vec<f64> {
            values_.x_td.chunks(D).flat_map(|x| product(x, matrix, kind.num_experts)).collect()
        };
        let (clean, raw) = (by_matrix(&values_.weight_de), by_matrix(&values_.noise_weight_de));
        let std: Vec<f64> = raw.iter().map(|size| size.exp().ln_1p() + 0.01).collect();
        let noisy = values(&routing.logits_te.clone().unwrap());
        let expected = load_loss_and_gradient(&clean, &std, &noisy, kind.num_experts, top_k);

        let load = loss(&routing, AuxLossKind::Load);
        assert_close("loss", &values(&load), &[expected.loss]);
        let [_, weight, noise_weight, ..] = gradients(&router, &x_td, &load.backward());
        let of_clean = &expected.clean_logits_gradient_te;
        assert_close("weight", &weight.unwrap(), &matrix_gradient(&values_.x_td, of_clean, kind.num_experts));
        // The slope of softplus is the sigmoid.
        let of_raw: Vec<f64> = expected
            .noise_std_gradient_te
            .iter()
            .zip(&raw)
            .map(|(gradient, raw)| gradient / (1.0 + (-raw).exp()))
            .collect();
        let expected = matrix_gradient(&values_.x_td, &of_raw, kind.num_experts);
        assert_close("noise weight", &noise_weight.unwrap(), &expected);
    }
}

#[test]
fn the_importance_loss_is_the_closed_form_of_the_gates() {
    for name in ["noisy_top_k", "noisy_top_1"] {
        let kind = kind(name);
        let values_ = Values::random(&kind, 6, 34);
        let (_, _, routing) = forward(&kind, &values_);
        let mut gates_te = vec![0.0; values_.num_tokens() * kind.num_experts];
        let k = routing.choice.slots_per_token;
        for (slot, gate) in values(&routing.gates_tk).iter().enumerate() {
            gates_te[slot / k * kind.num_experts + routing.choice.expert_ids_tk[slot] as usize] = *gate;
        }
        let (expected, _) = importance_loss_and_gradient(&gates_te, kind.num_experts);
        assert_close(name, &values(&loss(&routing, AuxLossKind::Importance)), &[expected]);
    }
}
