//! Each operation against an oracle in plain f64 loops that shares no code with it: values
//! directly, gradients by central differences of the oracle.
//!
//! Tolerances: the operations work in f32 (relative rounding 6e-8) over sums of at most a few dozen
//! terms of size one, hence 1e-5 for values. Central differences in f64 with a step of 1e-5 are
//! good to about 1e-9, so gradients are held to the same 1e-5, scaled by the gradient's size.

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use switchyard_kernels::{
    AdamWState, AdamWStep, Alibi, CausalMask, Compute, GateSoftmax, HeadLossOptions, Heads, RotaryTable,
    adamw_update, causal_attention, embedding, head_loss, layer_norm, rms_norm, top_k_gates,
};

const TOLERANCE: f64 = 1e-5;

fn random(seed: u64, count: usize) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Rounded to f32 first, so that both sides read the same numbers.
    (0..count).map(|_| f64::from((rng.random::<f32>() - 0.5) * 4.0)).collect()
}

fn tensor<const D: usize>(values: &[f64], shape: [usize; D]) -> Tensor<D> {
    let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff()).require_grad()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f32>().map(f64::from).collect()
}

fn assert_close(what: &str, actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    let scale = expected.iter().fold(1.0f64, |scale, e| scale.max(e.abs()));
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((a - e).abs() <= TOLERANCE * scale, "{what}[{i}]: {a} is not {e} (scale {scale})");
    }
}

/// Gradient of `sum(weights * f(inputs))` with respect to input `index`, by central differences.
fn numeric_gradient(
    f: &dyn Fn(&[Vec<f64>]) -> Vec<f64>,
    inputs: &[Vec<f64>],
    index: usize,
    weights: &[f64],
) -> Vec<f64> {
    let step = 1e-5;
    let loss = |inputs: &[Vec<f64>]| f(inputs).iter().zip(weights).map(|(y, w)| y * w).sum::<f64>();
    (0..inputs[index].len())
        .map(|i| {
            let moved = |delta: f64| {
                let mut inputs = inputs.to_vec();
                inputs[index][i] += delta;
                loss(&inputs)
            };
            (moved(step) - moved(-step)) / (2.0 * step)
        })
        .collect()
}

/// Values of `y` against the oracle's, and the gradients of each leaf against differences of the
/// oracle.
fn check<const D: usize>(
    what: &str,
    y: Tensor<D>,
    leaf_gradients: impl FnOnce(&burn::tensor::Gradients) -> Vec<Vec<f64>>,
    oracle: &dyn Fn(&[Vec<f64>]) -> Vec<f64>,
    inputs: &[Vec<f64>],
) {
    let expected = oracle(inputs);
    let weights = random(99, expected.len());
    let shape = y.dims();
    assert_close(what, &values(y.clone()), &expected);
    let gradients = (y * tensor(&weights, shape).detach()).sum().backward();
    for (index, actual) in leaf_gradients(&gradients).into_iter().enumerate() {
        let expected = numeric_gradient(oracle, inputs, index, &weights);
        assert_close(&format!("{what}: gradient of input {index}"), &actual, &expected);
    }
}

fn rms_norm_oracle(x: &[f64], scale: &[f64], epsilon: f64) -> Vec<f64> {
    x.chunks(scale.len())
        .flat_map(|row| {
            let mean_square = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
            row.iter()
                .zip(scale)
                .map(move |(v, s)| v / (mean_square + epsilon).sqrt() * s)
                .collect::<Vec<_>>()
        })
        .collect()
}

fn layer_norm_oracle(x: &[f64], scale: &[f64], bias: &[f64], epsilon: f64) -> Vec<f64> {
    let mut out = Vec::new();
    for row in x.chunks(scale.len()) {
        let mean = row.iter().sum::<f64>() / row.len() as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / row.len() as f64;
        for i in 0..row.len() {
            out.push((row[i] - mean) / (variance + epsilon).sqrt() * scale[i] + bias[i]);
        }
    }
    out
}

#[test]
fn rms_norm_agrees_with_its_oracle() {
    for (n, d) in [(1, 1), (3, 5), (4, 8), (2, 37)] {
        let inputs = [random(1, n * d), random(2, d)];
        let (x, scale) = (tensor(&inputs[0], [n, d]), tensor(&inputs[1], [d]));
        let y = rms_norm(x.clone(), scale.clone(), 1e-3);
        let gradients = |g: &_| vec![values(x.grad(g).unwrap()), values(scale.grad(g).unwrap())];
        check("rms_norm", y, gradients, &|i| rms_norm_oracle(&i[0], &i[1], 1e-3), &inputs);
    }
}

#[test]
fn layer_norm_agrees_with_its_oracle() {
    for (n, d) in [(1, 3), (3, 5), (4, 8), (2, 37)] {
        let inputs = [random(1, n * d), random(2, d), random(3, d)];
        let (x, scale, bias) = (tensor(&inputs[0], [n, d]), tensor(&inputs[1], [d]), tensor(&inputs[2], [d]));
        let y = layer_norm(x.clone(), scale.clone(), Some(bias.clone()), 1e-3);
        let gradients = |g: &_| {
            vec![values(x.grad(g).unwrap()), values(scale.grad(g).unwrap()), values(bias.grad(g).unwrap())]
        };
        check("layer_norm", y, gradients, &|i| layer_norm_oracle(&i[0], &i[1], &i[2], 1e-3), &inputs);
    }
}

#[test]
fn layer_norm_without_bias_agrees_with_its_oracle() {
    let (n, d) = (3, 21);
    let inputs = [random(1, n * d), random(2, d)];
    let (x, scale) = (tensor(&inputs[0], [n, d]), tensor(&inputs[1], [d]));
    let y = layer_norm(x.clone(), scale.clone(), None, 1e-3);
    let gradients = |g: &_| vec![values(x.grad(g).unwrap()), values(scale.grad(g).unwrap())];
    let oracle = |i: &[Vec<f64>]| layer_norm_oracle(&i[0], &i[1], &vec![0.0; d], 1e-3);
    check("layer_norm", y, gradients, &oracle, &inputs);
}

#[test]
fn a_frozen_scale_gets_no_gradient_and_the_rows_keep_theirs() {
    let inputs = [random(1, 10), random(2, 5)];
    let (x, scale) = (tensor(&inputs[0], [2, 5]), tensor(&inputs[1], [5]).detach());
    let y = rms_norm(x.clone(), scale, 1e-3);
    let oracle = |i: &[Vec<f64>]| rms_norm_oracle(&i[0], &inputs[1], 1e-3);
    check("rms_norm", y, |g| vec![values(x.grad(g).unwrap())], &oracle, &inputs[..1]);
}

#[test]
fn head_loss_agrees_with_its_oracle() {
    // One row; fewer columns than a vector has lanes; whole vectors and a rest.
    for (t, d, v, z_loss_weight) in [(1, 1, 1, None), (5, 2, 7, Some(0.5)), (4, 3, 37, None)] {
        let targets: Vec<usize> = (0..t).map(|i| (3 + 5 * i) % v).collect();
        let options = HeadLossOptions { ignored_target: Some(-100), z_loss_weight, compute: Compute::F32 };
        // The last of several tokens is ignored.
        let num_counted = if t == 1 { 1 } else { t - 1 };
        let oracle = |i: &[Vec<f64>]| {
            let logit = |token: usize, column: usize| -> f64 {
                (0..d).map(|j| i[0][token * d + j] * i[1][j * v + column]).sum()
            };
            let loss = |token: usize| {
                let log_partition = (0..v).map(|column| logit(token, column).exp()).sum::<f64>().ln();
                log_partition - logit(token, targets[token])
                    + z_loss_weight.unwrap_or(0.0) * log_partition.powi(2)
            };
            vec![(0..num_counted).map(loss).sum::<f64>() / num_counted as f64]
        };
        let inputs = [random(4, t * d), random(5, d * v)];
        let (x, w) = (tensor(&inputs[0], [t, d]), tensor(&inputs[1], [d, v]));
        let id = |token: usize| if token < num_counted { targets[token] as i32 } else { -100 };
        let ids: Vec<i32> = (0..t).map(id).collect();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [t]), &Device::flex().autodiff());
        let loss = head_loss(x.clone(), w.clone(), ids, options).total_1;
        let gradients = |g: &_| vec![values(x.grad(g).unwrap()), values(w.grad(g).unwrap())];
        check("head_loss", loss, gradients, &oracle, &inputs);
    }
}

#[test]
fn head_loss_of_huge_logits_is_finite() {
    let plain = |rows| Tensor::<2>::from_data(rows, &Device::flex());
    let ids = Tensor::<1, Int>::from_data([0i32, 1], &Device::flex());
    let (x, w) = (plain([[1e4f32, -1e4], [1e4, -1e4]]), plain([[1.0, 0.0], [0.0, 1.0]]));
    let loss = head_loss(x, w, ids, HeadLossOptions::default());
    assert_eq!(values(loss.cross_entropy_1)[0], 1e4, "mean of 0 and 2e4");
}

#[test]
fn gates_agree_with_their_oracle() {
    let (t, e, k) = (3, 5, 2);
    let ids: [u32; 6] = [4, 1, 0, 2, 3, 0];
    for softmax in [GateSoftmax::OverChosen, GateSoftmax::OverAll] {
        let oracle = |i: &[Vec<f64>]| {
            let gate = |slot: usize| {
                let logit = |expert: usize| i[0][slot / k * e + expert].exp();
                let rivals: f64 = match softmax {
                    GateSoftmax::OverChosen => {
                        ids[slot / k * k..][..k].iter().map(|&expert| logit(expert as usize)).sum()
                    }
                    GateSoftmax::OverAll => (0..e).map(logit).sum(),
                };
                logit(ids[slot] as usize) / rivals
            };
            (0..t * k).map(gate).collect()
        };
        let inputs = [random(6, t * e)];
        let logits = tensor(&inputs[0], [t, e]);
        let gates = top_k_gates(logits.clone(), ids, softmax);
        check("gates", gates, |g| vec![values(logits.grad(g).unwrap())], &oracle, &inputs);
    }
}

/// What one test of attention runs on.
struct AttentionCase {
    b: usize,
    s: usize,
    d: usize,
    /// Width of a head of the values.
    v: usize,
    heads: Heads,
    /// Whether heads have a score without a key.
    sinks: bool,
    /// Document of each position of each sequence.
    segments: Option<Vec<usize>>,
    /// Base of the rotary angles.
    theta: Option<f64>,
}

impl AttentionCase {
    /// Vector `head` of position `position` of `batch` in rows of `num_heads`, turned by its
    /// position: pairs (i, i + d/2) as complex numbers times e^(i angle).
    fn vector(&self, rows: &[f64], num_heads: usize, [batch, position, head]: [usize; 3]) -> Vec<f64> {
        let d = self.d;
        let x = &rows[((batch * self.s + position) * num_heads + head) * d..][..d];
        let Some(theta) = self.theta else { return x.to_vec() };
        let mut turned = vec![0.0; d];
        for pair in 0..d / 2 {
            let angle = position as f64 / theta.powf(2.0 * pair as f64 / d as f64);
            let (a, b) = (x[pair], x[pair + d / 2]);
            turned[pair] = a * angle.cos() - b * angle.sin();
            turned[pair + d / 2] = a * angle.sin() + b * angle.cos();
        }
        turned
    }

    /// One query head at a time, one position at a time.
    fn oracle(&self, inputs: &[Vec<f64>]) -> Vec<f64> {
        let Self { b, s, d, v, heads, .. } = *self;
        let (h, g) = (heads.num_heads, heads.num_kv_heads);
        let scale = heads.scale.map_or(1.0 / (d as f64).sqrt(), f64::from);
        let mut out = vec![0.0; b * s * h * v];
        for (batch, head, i) in (0..b * h * s).map(|n| (n / (h * s), n / s % h, n % s)) {
            let kv = head / (h / g);
            let query = self.vector(&inputs[0], h, [batch, i, head]);
            let sees =
                |j: &usize| self.segments.as_ref().is_none_or(|ids| ids[batch * s + i] == ids[batch * s + j]);
            let is_near = |j: &usize| heads.window.is_none_or(|window| i - j < window);
            let visible: Vec<usize> = (0..=i).filter(sees).filter(is_near).collect();
            let weight_of = |j: usize| {
                let key = self.vector(&inputs[1], g, [batch, j, kv]);
                let score = query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>() * scale;
                // Heads are 1, 2 or 4 wherever ALiBi is on: slopes 2^(-8/h), 2^(-16/h), ...
                let slope =
                    if heads.alibi.is_some() { 2f64.powf(-8.0 * (head + 1) as f64 / h as f64) } else { 0.0 };
                (score - slope * (i - j) as f64).exp()
            };
            let sink = if self.sinks { inputs[3][head].exp() } else { 0.0 };
            let total = visible.iter().map(|&j| weight_of(j)).sum::<f64>() + sink;
            for &j in &visible {
                for c in 0..v {
                    out[((batch * s + i) * h + head) * v + c] +=
                        weight_of(j) / total * inputs[2][((batch * s + j) * g + kv) * v + c];
                }
            }
        }
        out
    }

    fn check(&self, what: &str) {
        let Self { b, s, d, v: d_value, heads, .. } = *self;
        let device = Device::flex().autodiff();
        let (h, g) = (heads.num_heads, heads.num_kv_heads);
        let shapes = [h * d, g * d, g * d_value].map(|width| [b * s, width]);
        let mut inputs: Vec<Vec<f64>> =
            (5..).zip(shapes).map(|(seed, [t, width])| random(seed, t * width)).collect();
        let [q, k, v] = [0, 1, 2].map(|i| tensor(&inputs[i], shapes[i]));
        let sinks = self.sinks.then(|| random(9, h));
        let sinks_h = sinks.as_ref().map(|sinks| tensor(sinks, [h]));
        inputs.extend(sinks);
        let mask = match &self.segments {
            Some(ids) => {
                let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
                CausalMask::within_documents(Tensor::from_data(TensorData::new(ids, [b, s]), &device))
            }
            None => CausalMask::new(s, &device),
        };
        // A longer table than the sequence: positions start at zero all the same.
        let frequencies =
            |theta: f64| (0..d / 2).map(|pair| theta.powf(-2.0 * pair as f64 / d as f64)).collect();
        let rotary = self.theta.map(|theta| {
            let frequencies: Vec<f64> = frequencies(theta);
            RotaryTable::new(s + 3, &frequencies, 1.0, &device)
        });
        let [q_leaf, k_leaf, v_leaf] = [&q, &k, &v].map(Clone::clone);
        let y = causal_attention(
            q_leaf,
            k_leaf,
            v_leaf,
            sinks_h.clone(),
            heads,
            &mask,
            rotary.as_ref(),
            Compute::F32,
        );
        let gradients = |t: &_| {
            let of_sinks = sinks_h.as_ref().map(|leaf| values(leaf.grad(t).expect("a leaf has a gradient")));
            let of_rows = [&q, &k, &v].map(|leaf| values(leaf.grad(t).expect("a leaf has a gradient")));
            of_rows.into_iter().chain(of_sinks).collect()
        };
        check(what, y, gradients, &|inputs| self.oracle(inputs), &inputs);
    }
}

fn heads(num_heads: usize, num_kv_heads: usize, alibi: bool) -> Heads {
    Heads { alibi: alibi.then_some(Alibi::Distance), ..Heads::new(num_heads, num_kv_heads) }
}

#[test]
fn attention_agrees_with_its_oracle_causal_grouped_and_masked_by_document() {
    let segments = vec![0, 0, 0, 1, 1, 0, 1, 1, 1, 2];
    for (heads, segments) in
        [(heads(2, 2, false), None), (heads(4, 2, false), None), (heads(3, 1, false), Some(segments))]
    {
        AttentionCase { b: 2, s: 5, d: 4, v: 4, heads, sinks: false, segments, theta: None }
            .check(&format!("{heads:?}"));
    }
}

#[test]
fn attention_with_rotary_positions_and_with_alibi_agrees_with_its_oracle() {
    for (heads, theta) in
        [(heads(2, 1, false), Some(100.0)), (heads(4, 4, true), None), (heads(2, 2, true), Some(10_000.0))]
    {
        let segments = Some(vec![0, 0, 0, 0, 0, 1, 1]);
        AttentionCase { b: 1, s: 7, d: 6, v: 6, heads, sinks: false, segments, theta }
            .check(&format!("{heads:?} {theta:?}"));
    }
}

#[test]
fn attention_of_one_position_and_of_more_than_one_block_of_queries_agrees_with_its_oracle() {
    for s in [1, 2, 67] {
        let heads = heads(1, 1, false);
        AttentionCase { b: 1, s, d: 2, v: 2, heads, sinks: false, segments: None, theta: Some(10.0) }
            .check(&format!("{s} positions"));
    }
}

#[test]
fn attention_with_windows_sinks_a_scale_and_narrow_values_agrees_with_its_oracle() {
    for (window, sinks, scale, v) in [
        (Some(3), false, None, 4),
        (None, true, Some(0.3), 3),
        (Some(1), true, None, 6),
        (Some(70), true, None, 1),
    ] {
        let heads = Heads { window, scale, ..heads(4, 2, window == Some(3)) };
        let case = AttentionCase { b: 2, s: 6, d: 4, v, heads, sinks, segments: None, theta: Some(50.0) };
        case.check(&format!("{heads:?}, sinks {sinks}, values of width {v}"));
    }
}

#[test]
fn embedding_agrees_with_its_oracle() {
    let ([v, d], ids) = ([5, 3], [4usize, 0, 4, 2, 4, 0]);
    let inputs = [random(8, v * d)];
    let table = tensor(&inputs[0], [v, d]);
    let id_values: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let ids_t = Tensor::<1, Int>::from_data(TensorData::new(id_values, [6]), &Device::flex().autodiff());
    let y = embedding(table.clone(), ids_t);
    let oracle = |i: &[Vec<f64>]| ids.iter().flat_map(|id| i[0][id * d..][..d].to_vec()).collect();
    check("embedding", y, |g: &_| vec![values(table.grad(g).unwrap())], &oracle, &inputs);
}

#[test]
fn adamw_follows_the_algorithm_over_several_steps() {
    let n = 6;
    let (learning_rate, beta1, beta2, epsilon, weight_decay) = (0.01, 0.9, 0.99, 1e-8, 0.1);
    let mut value = random(10, n);
    let plain = |values: &[f64]| tensor(values, [n]).inner();
    let zeros = plain(&vec![0.0; n]);
    let mut state = AdamWState { value_n: plain(&value), moment1_n: zeros.clone(), moment2_n: zeros };
    let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
    for step in 1..=5u64 {
        let gradient = random(20 + step, n);
        for i in 0..n {
            let scaled = 0.5 * gradient[i];
            m[i] = beta1 * m[i] + (1.0 - beta1) * scaled;
            v[i] = beta2 * v[i] + (1.0 - beta2) * scaled * scaled;
            let m_hat = m[i] / (1.0 - beta1.powi(step as i32));
            let v_hat = v[i] / (1.0 - beta2.powi(step as i32));
            value[i] -= learning_rate * (m_hat / (v_hat.sqrt() + epsilon) + weight_decay * value[i]);
        }
        let constants = AdamWStep {
            learning_rate,
            beta1,
            beta2,
            epsilon,
            weight_decay,
            step,
            gradient_scale: 0.5,
            rounding_key: 0,
            first_element: 0,
        };
        state = adamw_update(state, plain(&gradient), &constants);
        assert_close("value", &values(state.value_n.clone()), &value);
        assert_close("moment1", &values(state.moment1_n.clone()), &m);
        assert_close("moment2", &values(state.moment2_n.clone()), &v);
    }
}
