//! Each operation against an oracle in plain f64 loops that shares no code with it: values directly, gradients by
//! central differences of the oracle.
//!
//! Tolerances: the operations work in f32 (relative rounding 6e-8) over sums of at most a few dozen terms
//! of size one, hence 1e-5 for values. Central differences in f64 with a step of 1e-5 are good to about 1e-9, so
//! gradients are held to the same 1e-5, scaled by the gradient's size.

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use switchyard_kernels::{
    AdamWState, AdamWStep, CausalMask, RotaryTable, adamw_update, causal_attention, cross_entropy,
    layer_norm, rms_norm,
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

/// Values of `y` against the oracle's, and the gradients of each leaf against differences of the oracle.
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
fn cross_entropy_agrees_with_its_oracle() {
    // One row; fewer columns than a vector has lanes; whole vectors and a rest.
    for (t, v) in [(1, 1), (5, 7), (3, 37)] {
        let targets: Vec<usize> = (0..t).map(|i| (3 + 5 * i) % v).collect();
        let oracle = |i: &[Vec<f64>]| {
            let losses = i[0]
                .chunks(v)
                .zip(&targets)
                .map(|(row, &target)| row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[target]);
            vec![losses.sum::<f64>() / t as f64]
        };
        let inputs = [random(4, t * v)];
        let logits = tensor(&inputs[0], [t, v]);
        let ids: Vec<i32> = targets.iter().map(|&id| id as i32).collect();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [t]), &Device::flex().autodiff());
        let y = cross_entropy(logits.clone(), ids);
        check("cross_entropy", y, |g| vec![values(logits.grad(g).unwrap())], &oracle, &inputs);
    }
}

#[test]
fn cross_entropy_of_huge_logits_is_finite() {
    let ids = Tensor::<1, Int>::from_data([0i32, 1], &Device::flex());
    let logits = Tensor::<2>::from_data([[1e4f32, -1e4], [1e4, -1e4]], &Device::flex());
    let loss = values(cross_entropy(logits, ids))[0];
    assert_eq!(loss, 1e4, "mean of 0 and 2e4");
}

/// One query head at a time, one position at a time.
fn attention_oracle(
    [b, h, g, s, d]: [usize; 5],
    q: &[f64],
    k: &[f64],
    v: &[f64],
    may_see: &dyn Fn(usize, usize, usize) -> bool,
) -> Vec<f64> {
    let mut out = vec![0.0; b * h * s * d];
    for batch in 0..b {
        for head in 0..h {
            let kv = batch * g + head / (h / g);
            for i in 0..s {
                let query = &q[((batch * h + head) * s + i) * d..][..d];
                let visible: Vec<usize> = (0..s).filter(|&j| may_see(batch, i, j)).collect();
                let weight_of = |j: usize| {
                    let key = &k[(kv * s + j) * d..][..d];
                    (query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>() / (d as f64).sqrt()).exp()
                };
                let total: f64 = visible.iter().map(|&j| weight_of(j)).sum();
                for &j in &visible {
                    for c in 0..d {
                        out[((batch * h + head) * s + i) * d + c] +=
                            weight_of(j) / total * v[(kv * s + j) * d + c];
                    }
                }
            }
        }
    }
    out
}

#[test]
fn attention_agrees_with_its_oracle_causal_grouped_and_masked_by_document() {
    let segments = [[0usize, 0, 0, 1, 1], [0, 1, 1, 1, 2]];
    for (h, g, masked) in [(2, 2, false), (4, 2, false), (3, 1, true)] {
        let (b, s, d) = (2, 5, 4);
        let inputs = [random(5, b * h * s * d), random(6, b * g * s * d), random(7, b * g * s * d)];
        let may_see = |batch: usize, i: usize, j: usize| {
            j <= i && (!masked || segments[batch][i] == segments[batch][j])
        };
        let oracle = |i: &[Vec<f64>]| attention_oracle([b, h, g, s, d], &i[0], &i[1], &i[2], &may_see);
        let device = Device::flex().autodiff();
        let mask = if masked {
            let ids: Vec<i32> = segments.iter().flatten().map(|&id| id as i32).collect();
            CausalMask::within_documents(Tensor::from_data(TensorData::new(ids, [b, s]), &device))
        } else {
            CausalMask::new(s, &device)
        };
        let (q, k, v) = (
            tensor(&inputs[0], [b, h, s, d]),
            tensor(&inputs[1], [b, g, s, d]),
            tensor(&inputs[2], [b, g, s, d]),
        );
        let y = causal_attention(q.clone(), k.clone(), v.clone(), &mask);
        let gradients =
            |t: &_| vec![values(q.grad(t).unwrap()), values(k.grad(t).unwrap()), values(v.grad(t).unwrap())];
        check(&format!("attention {h}/{g}"), y, gradients, &oracle, &inputs);
    }
}

#[test]
fn attention_over_more_than_one_block_of_queries_agrees_with_its_oracle() {
    let (b, h, g, s, d) = (1, 2, 1, 19, 3);
    let inputs = [random(5, b * h * s * d), random(6, b * g * s * d), random(7, b * g * s * d)];
    let oracle = |i: &[Vec<f64>]| attention_oracle([b, h, g, s, d], &i[0], &i[1], &i[2], &|_, i, j| j <= i);
    let (q, k, v) = (
        tensor(&inputs[0], [b, h, s, d]),
        tensor(&inputs[1], [b, g, s, d]),
        tensor(&inputs[2], [b, g, s, d]),
    );
    let mask = CausalMask::new(s, &Device::flex().autodiff());
    let y = causal_attention(q.clone(), k.clone(), v.clone(), &mask);
    let gradients =
        |t: &_| vec![values(q.grad(t).unwrap()), values(k.grad(t).unwrap()), values(v.grad(t).unwrap())];
    check("attention of 19 positions", y, gradients, &oracle, &inputs);
}

#[test]
fn rotation_turns_each_pair_by_its_angle() {
    let (h, s, d, theta) = (2, 4, 6, 100.0f64);
    let inputs = [random(8, h * s * d)];
    let oracle = |i: &[Vec<f64>]| {
        let mut out = i[0].clone();
        for head in 0..h {
            for p in 0..s {
                for pair in 0..d / 2 {
                    let (a, b) = ((head * s + p) * d + pair, (head * s + p) * d + pair + d / 2);
                    let angle = p as f64 / theta.powf(2.0 * pair as f64 / d as f64);
                    // Multiplication of complex numbers.
                    out[a] = i[0][a] * angle.cos() - i[0][b] * angle.sin();
                    out[b] = i[0][a] * angle.sin() + i[0][b] * angle.cos();
                }
            }
        }
        out
    };
    let x = tensor(&inputs[0], [1, h, s, d]);
    // A longer table than the sequence: positions start at zero all the same.
    let y = RotaryTable::new(s + 3, d, theta, &Device::flex().autodiff()).rotate(x.clone());
    check("rotate", y, |g| vec![values(x.grad(g).unwrap())], &oracle, &inputs);
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
            m[i] = beta1 * m[i] + (1.0 - beta1) * gradient[i];
            v[i] = beta2 * v[i] + (1.0 - beta2) * gradient[i] * gradient[i];
            let m_hat = m[i] / (1.0 - beta1.powi(step as i32));
            let v_hat = v[i] / (1.0 - beta2.powi(step as i32));
            value[i] -= learning_rate * (m_hat / (v_hat.sqrt() + epsilon) + weight_decay * value[i]);
        }
        let constants = AdamWStep { learning_rate, beta1, beta2, epsilon, weight_decay, step };
        state = adamw_update(state, plain(&gradient), &constants);
        assert_close("value", &values(state.value_n.clone()), &value);
        assert_close("moment1", &values(state.moment1_n.clone()), &m);
        assert_close("moment2", &values(state.moment2_n.clone()), &v);
    }
}
