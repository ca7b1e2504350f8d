//! The definition, one number at a time; gradients by central differences of it.

use crate::case::{Case, Inputs};
use switchyard_kernels::Activation;

fn activation(activation: Activation, up: f64, gate: f64) -> f64 {
    match activation {
        Activation::Swiglu => up * gate / (1.0 + (-gate).exp()),
        Activation::ClampedSwiglu { alpha, limit } => {
            let gate = gate.min(limit);
            gate / (1.0 + (-alpha * gate).exp()) * (up.max(-limit).min(limit) + 1.0)
        }
        Activation::Gelu => up * normal_distribution(up),
        Activation::GeluTanh => {
            0.5 * up * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (up + 0.044715 * up.powi(3))).tanh())
        }
        Activation::Relu => up.max(0.0),
    }
}

/// The normal distribution function by Simpson's rule on its density from 0.
fn normal_distribution(x: f64) -> f64 {
    let intervals = 400;
    let width = x / f64::from(intervals);
    let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let inner = |i| density(f64::from(i) * width) * if i % 2 == 1 { 4.0 } else { 2.0 };
    0.5 + (density(0.0) + (1..intervals).map(inner).sum::<f64>() + density(x)) * width / 3.0
}

/// What `group` makes of one token.
fn block(case: &Case, inputs: &Inputs, group: usize, token: usize) -> Vec<f64> {
    let (d, f) = (case.d, case.f);
    let x = |i: usize| inputs.x[token * d + i];
    let project = |w: &[f64], b: &[f64], j: usize| {
        let bias = if b.is_empty() { 0.0 } else { b[group * f + j] };
        (0..d).map(|i| x(i) * w[(group * d + i) * f + j]).sum::<f64>() + bias
    };
    let hidden = |j: usize| {
        let gate = if inputs.gate.is_empty() { 0.0 } else { project(&inputs.gate, &inputs.gate_bias, j) };
        activation(case.activation, project(&inputs.up, &inputs.up_bias, j), gate)
    };
    let hidden: Vec<f64> = (0..f).map(hidden).collect();
    let output = |i: usize| {
        let bias = if inputs.down_bias.is_empty() { 0.0 } else { inputs.down_bias[group * d + i] };
        (0..f).map(|j| hidden[j] * inputs.down[(group * f + j) * d + i]).sum::<f64>() + bias
    };
    (0..d).map(output).collect()
}

/// The output, `[t, d]`.
pub(crate) fn forward(case: &Case, inputs: &Inputs) -> Vec<f64> {
    let mut y = vec![0.0; case.t * case.d];
    for token in 0..case.t {
        let choices: Vec<(usize, f64)> = match &case.plan {
            None => vec![(0, 1.0)],
            Some(plan) => {
                let k = plan.slots.top_k();
                let group_of = |row: usize| {
                    (0..case.e)
                        .find(|&group| plan.groups.rows(group).contains(&row))
                        .expect("a row has a group")
                };
                let slots = token * k..(token + 1) * k;
                slots
                    .filter_map(|slot| {
                        let row = plan.slots.row_of_slot()[slot]? as usize;
                        Some((group_of(row), inputs.gates[slot]))
                    })
                    .collect()
            }
        };
        for (group, gate) in choices {
            for (y, value) in y[token * case.d..].iter_mut().zip(block(case, inputs, group, token)) {
                *y += gate * value;
            }
        }
    }
    y
}

/// Gradients of `sum(c * y)` for all inputs, in their order.
pub(crate) fn gradients(case: &Case, inputs: &Inputs, c: &[f64]) -> Vec<Vec<f64>> {
    let step = 1e-5;
    let loss = |inputs: &Inputs| forward(case, inputs).iter().zip(c).map(|(y, c)| y * c).sum::<f64>();
    let gradient = |tensor: usize| {
        let derivative = |i: usize| {
            let shifted = |by: f64| {
                let mut inputs = inputs.clone();
                inputs.tensors_mut()[tensor][i] += by;
                loss(&inputs)
            };
            (shifted(step) - shifted(-step)) / (2.0 * step)
        };
        (0..inputs.clone().tensors_mut()[tensor].len()).map(derivative).collect()
    };
    (0..8).map(gradient).collect()
}
