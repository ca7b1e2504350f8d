//! The largest logit of each head against an oracle in plain f64 loops that shares no code with it.

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use switchyard_kernels::{CausalMask, Heads, RotaryTable, max_attention_logits};

fn random(seed: u64, count: usize) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Rounded to f32 first, so that both sides read the same numbers.
    (0..count).map(|_| f64::from((rng.random::<f32>() - 0.5) * 4.0)).collect()
}

fn tensor(values: &[f64], width: usize) -> Tensor<2> {
    let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    let shape = [values.len() / width, width];
    // As in training: the operation has to leave the graph alone.
    Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff()).require_grad()
}

/// The two halves of a head turned by angles that fall with the channel.
fn turned(head: &[f64], position: usize, frequencies: &[f64]) -> Vec<f64> {
    let half = head.len() / 2;
    let mut turned = head.to_vec();
    for (i, frequency) in frequencies.iter().enumerate() {
        let (sin, cos) = (position as f64 * frequency).sin_cos();
        turned[i] = head[i] * cos - head[half + i] * sin;
        turned[half + i] = head[half + i] * cos + head[i] * sin;
    }
    turned
}

#[test]
fn the_largest_logit_of_each_head_is_that_of_the_pairs_that_are_seen() {
    let ([b, s, h, g, d], frequencies) = ([2, 70, 4, 2, 6], [1.0, 0.3, 0.05]);
    let (q, k) = (random(1, b * s * h * d), random(2, b * s * g * d));
    let device = Device::flex().autodiff();
    let documents: Vec<i32> = (0..b * s).map(|at| (at % s / 11) as i32).collect();
    let table = RotaryTable::new(s, &frequencies, 1.0, &device);
    let mut seen_values = Vec::new();
    for (is_turned, is_masked, window, scale) in [
        (false, false, None, None),
        (true, false, None, None),
        (true, true, None, Some(0.9_f32)),
        (false, true, Some(5), None),
        (true, false, Some(13), None),
    ] {
        let heads = Heads { window, scale, ..Heads::new(h, g) };
        let mask = if is_masked {
            let ids = Tensor::<2, Int>::from_data(TensorData::new(documents.clone(), [b, s]), &device);
            CausalMask::within_documents(ids)
        } else {
            CausalMask::new(s, &device)
        };
        let (queries, keys) = (tensor(&q, h * d), tensor(&k, g * d));
        let found = max_attention_logits(queries, keys, heads, &mask, is_turned.then_some(&table));
        let found: Vec<f64> = found.into_data().iter::<f32>().map(f64::from).collect();
        let mut expected = vec![f64::NEG_INFINITY; h];
        for (at, query) in (0..b * s).flat_map(|at| (0..at % s + 1).map(move |key| (at, key))) {
            let (batch, position, key) = (at / s, at % s, query);
            let is_seen = window.is_none_or(|window| position - key < window)
                && (!is_masked || documents[at] == documents[batch * s + key]);
            for (head, largest) in expected.iter_mut().enumerate().filter(|_| is_seen) {
                let of = |x: &[f64], row: usize, width: usize, head: usize, position: usize| {
                    let head = &x[row * width + head * d..][..d];
                    if is_turned { turned(head, position, &frequencies) } else { head.to_vec() }
                };
                let q = of(&q, at, h * d, head, position);
                let k = of(&k, batch * s + key, g * d, head / (h / g), key);
                let product: f64 = q.iter().zip(&k).map(|(q, k)| q * k).sum();
                let factor = scale.map_or_else(|| 1.0 / (d as f64).sqrt(), f64::from);
                *largest = largest.max(product * factor);
            }
        }
        for (found, expected) in found.iter().zip(&expected) {
            // Sums of six products of f32, and angles of f32.
            assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
        }
        seen_values.push(expected);
    }
    // Otherwise a rule that is not kept would not show.
    assert!(seen_values.windows(2).all(|pair| pair[0] != pair[1]), "{seen_values:?}");
}
