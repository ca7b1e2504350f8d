//! Operations row by row, or element by element.
//!
//! Shape letters: n rows, t tokens, d width, e experts, k experts per token, v vocabulary.

use switchyard_kernels_cpu::adamw::{self, AdamWStep, State};
use switchyard_kernels_cpu::bf16::Compute;
use switchyard_kernels_cpu::blocks::{BLOCK_LEN, InPlace};
use switchyard_kernels_cpu::norm::{self, Measure};
use switchyard_kernels_cpu::routing::{self, Chosen, GateSoftmax, RouterLoss};
use switchyard_kernels_cpu::{embedding, square_sum};

use crate::{Computed, assert_close, check, doubles, irregular};

fn normalize(inputs: &[Vec<f64>], centred: bool, epsilon: f64) -> Vec<f64> {
    let [x, scale, bias] = inputs else { panic!("rows, scale and bias") };
    let d = scale.len();
    let row = |x: &[f64]| {
        let mean = if centred { x.iter().sum::<f64>() / d as f64 } else { 0.0 };
        let variance = x.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / d as f64;
        let element = |i: usize| (x[i] - mean) / (variance + epsilon).sqrt() * scale[i] + bias[i];
        (0..d).map(element).collect::<Vec<_>>()
    };
    x.chunks(d).flat_map(row).collect()
}

#[test]
fn norms_are_their_definition() {
    for (n, d) in [(1, 3), (3, 5), (2, 37)] {
        for centred in [false, true] {
            let measure = Measure { centred, epsilon: 1e-3 };
            let [x, dy] = [1, 2].map(|seed| irregular(seed, n * d));
            let [scale, bias] = [3, 4].map(|seed| irregular(seed, d));
            let y = norm::normalize(&x, &scale, Some(&bias), measure);
            let (dx, dscale) = norm::gradients(&x, &scale, &dy, measure);
            let gradients = [dx, dscale, norm::sum_rows(&dy, d)];
            let computed = Computed { compute: Compute::F32, y: &y, dy: &dy, gradients: &gradients };
            check(&format!("{n} x {d}, centred: {centred}"), computed, &[&x, &scale, &bias], |inputs| {
                normalize(inputs, centred, f64::from(measure.epsilon))
            });
        }
    }
}

#[test]
fn rows_of_a_table_are_those_that_the_ids_name() {
    let (d, v, ids) = (3, 5, [4, 0, 4, 2, 4, 0]);
    let (table, dy) = (irregular(1, v * d), irregular(2, ids.len() * d));
    let y = embedding::rows(&table, d, &ids);
    let gradients = [embedding::gradient(&ids, &dy, d, v)];
    check(
        "embedding",
        Computed { compute: Compute::F32, y: &y, dy: &dy, gradients: &gradients },
        &[&table],
        |inputs| ids.iter().flat_map(|&id| inputs[0][id as usize * d..][..d].to_vec()).collect(),
    );
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
    logits.iter().map(|logit| logit.exp() / sum).collect()
}

#[test]
fn gates_are_their_definition() {
    for [t, e, k] in [[1, 1, 1], [3, 4, 2], [2, 37, 5]] {
        for softmax_over in [GateSoftmax::OverChosen, GateSoftmax::OverAll] {
            let (logits, dgates) = (irregular(1, t * e), irregular(2, t * k));
            let ids: Vec<u32> = (0..t * k).map(|i| ((i / k * 7 + i % k) % e) as u32).collect();
            let chosen =
                Chosen { logits: &logits, expert_ids: &ids, num_experts: e, top_k: k, softmax: softmax_over };
            let gates = routing::gates(chosen);
            let gradients = [routing::gates_gradient(chosen, &gates, &dgates)];
            let computed = Computed { compute: Compute::F32, y: &gates, dy: &dgates, gradients: &gradients };
            check(&format!("{t} x {e}, {k}, {softmax_over:?}"), computed, &[&logits], |inputs| {
                let token = |(logits, ids): (&[f64], &[u32])| {
                    let of = |values: &[f64]| ids.iter().map(|&id| values[id as usize]).collect::<Vec<_>>();
                    match softmax_over {
                        GateSoftmax::OverChosen => softmax(&of(logits)),
                        GateSoftmax::OverAll => of(&softmax(logits)),
                    }
                };
                inputs[0].chunks(e).zip(ids.chunks(k)).flat_map(token).collect()
            });
        }
    }
}

#[test]
fn losses_of_a_router_are_their_definition() {
    let (t, e) = (3, 19);
    let logits = irregular(1, t * e);
    let load: Vec<f64> = (0..e).map(|i| 0.3 + i as f64 / 10.0).collect();
    for loss in [RouterLoss::Load(load.clone().into()), RouterLoss::SquareLogPartition] {
        let mean = routing::loss(&logits, e, &loss) as f32;
        let gradients = [routing::loss_gradient(&logits, e, &loss, 0.75)];
        let computed = Computed { compute: Compute::F32, y: &[mean], dy: &[0.75], gradients: &gradients };
        check(&format!("{loss:?}"), computed, &[&logits], |inputs| {
            let term = |logits: &[f64]| match loss {
                RouterLoss::Load(_) => {
                    softmax(logits).iter().zip(&load).map(|(p, load)| p * load).sum::<f64>()
                }
                RouterLoss::SquareLogPartition => {
                    logits.iter().map(|logit| logit.exp()).sum::<f64>().ln().powi(2)
                }
            };
            vec![inputs[0].chunks(e).map(term).sum::<f64>() / t as f64]
        });
    }
}

#[test]
fn squares_are_summed_row_by_row() {
    for row_len in [1, 17, BLOCK_LEN + 3] {
        let x = irregular(1, 3 * row_len);
        let parts = square_sum::square_sums(&x, 3);
        for (parts, row) in parts.chunks(parts.len() / 3).zip(x.chunks(row_len)) {
            let expected: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
            assert!((parts.iter().sum::<f64>() - expected).abs() <= 1e-12 * expected, "{parts:?}");
        }
    }
}

/// In place, and from a source.
#[test]
fn an_update_follows_the_algorithm() {
    let constants = AdamWStep {
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
    let n = BLOCK_LEN + 13;
    let [value, moment1, moment2, gradient] = [1, 2, 3, 4].map(|seed| irregular(seed, n));
    let moment2: Vec<f32> = moment2.iter().map(|value| value * value).collect();
    let expected = {
        let AdamWStep { beta1, beta2, .. } = constants;
        let scaled: Vec<f64> = gradient.iter().map(|&g| 0.5 * f64::from(g)).collect();
        let mix = |old: &[f32], beta: f64, new: &dyn Fn(usize) -> f64| -> Vec<f64> {
            (0..n).map(|i| beta * f64::from(old[i]) + (1.0 - beta) * new(i)).collect()
        };
        let m = mix(&moment1, beta1, &|i| scaled[i]);
        let v = mix(&moment2, beta2, &|i| scaled[i] * scaled[i]);
        let value = doubles(&value);
        let updated = (0..n).map(|i| {
            let (m_hat, v_hat) = (m[i] / (1.0 - beta1.powi(3)), v[i] / (1.0 - beta2.powi(3)));
            value[i] - 0.01 * (m_hat / (v_hat.sqrt() + 1e-8) + 0.1 * value[i])
        });
        [updated.collect(), m, v]
    };
    let before = [&value, &moment1, &moment2];
    for copied in [false, true] {
        let mut after = before.map(|values| if copied { vec![f32::NAN; n] } else { values.clone() });
        let [value, moment1, moment2] = after.each_mut().map(|target| &mut target[..]);
        let in_place =
            |target, index: usize| InPlace { target, source: copied.then_some(&before[index][..]) };
        let state =
            State { value: in_place(value, 0), moment1: in_place(moment1, 1), moment2: in_place(moment2, 2) };
        adamw::update(state, &gradient, &constants);
        for (name, (after, expected)) in
            ["value", "moment 1", "moment 2"].into_iter().zip(after.iter().zip(&expected))
        {
            assert_close(&format!("{name}, copied: {copied}"), Compute::F32, after, expected);
        }
    }
}
