//! Causal attention.
//!
//! Shape letters: b batch, s sequence, h query heads, g key/value heads, d head width.

use switchyard_kernels_cpu::attention::{self, Alibi, Gradients, Heads, Inputs, Results, alibi_slopes};
use switchyard_kernels_cpu::bf16::Compute;
use switchyard_kernels_cpu::rotary::Rotation;

use crate::{ALL, Computed, check, irregular};

/// Angles of the positions, `[s, d / 2]`.
fn angles(s: usize, d: usize) -> Vec<f64> {
    (0..s * d / 2).map(|i| (i / (d / 2)) as f64 * 0.3 + (i % (d / 2)) as f64).collect()
}

fn turned(x: &[f64], angles: &[f64]) -> Vec<f64> {
    let half = x.len() / 2;
    let element = |i: usize| {
        let (sin, cos) = angles[i % half].sin_cos();
        if i < half { x[i] * cos - x[i + half] * sin } else { x[i] * cos + x[i - half] * sin }
    };
    (0..x.len()).map(element).collect()
}

fn oracle(
    inputs: &[Vec<f64>],
    [b, s, d]: [usize; 3],
    heads: Heads,
    ids: &[i64],
    angles: Option<&[f64]>,
) -> Vec<f64> {
    let (h, g) = (heads.num_heads, heads.num_kv_heads);
    let mut y = vec![0.0; b * s * h * d];
    for (batch, head, query) in (0..b * h * s).map(|i| (i / (h * s), i / s % h, i % s)) {
        let row = |input: usize, num_heads: usize, head: usize, position: usize| {
            let row = inputs[input][((batch * s + position) * num_heads + head) * d..][..d].to_vec();
            match angles {
                Some(angles) if input < 2 => turned(&row, &angles[position * d / 2..][..d / 2]),
                _ => row,
            }
        };
        let (kv_head, q) = (head / (h / g), row(0, h, head, query));
        let slope = heads.alibi.map_or(0.0, |_| f64::from(alibi_slopes(h)[head]));
        let seen = (0..=query).filter(|&key| {
            let is_near = heads.window.is_none_or(|window| query - key < window);
            is_near && ids[batch * s + key] == ids[batch * s + query]
        });
        let weight = |key: usize| {
            let k = row(1, g, kv_head, key);
            let score = q.iter().zip(&k).map(|(q, k)| q * k).sum::<f64>() / (d as f64).sqrt();
            (score - slope * (query - key) as f64).exp()
        };
        let weights: Vec<(usize, f64)> = seen.map(|key| (key, weight(key))).collect();
        let total = weights.iter().map(|(_, weight)| weight).sum::<f64>() + inputs[3][head].exp();
        for (key, weight) in weights {
            for (i, v) in row(2, g, kv_head, key).iter().enumerate() {
                y[((batch * s + query) * h + head) * d + i] += weight / total * v;
            }
        }
    }
    y
}

#[test]
fn attention_is_its_definition() {
    for ([b, s, d], [h, g], alibi, turns) in [
        ([1, 1, 1], [1, 1], false, false),
        ([2, 5, 4], [2, 1], false, true),
        ([1, 7, 34], [1, 1], true, true),
        ([1, 19, 2], [2, 2], true, false),
    ] {
        let alibi = alibi.then_some(Alibi::Distance);
        let heads = Heads { alibi, window: turns.then_some(3), ..Heads::new(h, g) };
        let sinks = irregular(5, h);
        let ids: Vec<i64> = (0..b * s).map(|i| (i / 4) as i64).collect();
        let angles = turns.then(|| angles(s, d));
        let table = |of: fn(f64) -> f64| -> Vec<f32> {
            angles.iter().flatten().map(|&angle| of(angle) as f32).collect()
        };
        let (cos, sin) = (table(f64::cos), table(f64::sin));
        let [q, k, v] = [(1, h), (2, g), (3, g)].map(|(seed, heads)| irregular(seed, b * s * heads * d));
        let dy = irregular(4, q.len());
        let inputs = Inputs {
            q: &q,
            k: &k,
            v: &v,
            sinks: Some(&sinks),
            rotation: turns.then_some(Rotation { cos: &cos, sin: &sin }),
            segment_ids: &ids,
            seq_len: s,
            d_head: d,
            d_value: d,
            heads,
            compute: Compute::F32,
        };
        for compute in ALL {
            let inputs = Inputs { compute, ..inputs };
            let (y, log_partition) = attention::forward(inputs);
            let results = Results { y: &y, dy: &dy, log_partition: &log_partition };
            let Gradients { q: dq, k: dk, v: dv, sinks: dsinks } = attention::gradients(inputs, results);
            let gradients = [dq, dk, dv, dsinks.unwrap_or_default()];
            let computed = Computed { compute, y: &y, dy: &dy, gradients: &gradients };
            check(&format!("{heads:?}, {s} positions"), computed, &[&q, &k, &v, &sinks], |inputs| {
                oracle(inputs, [b, s, d], heads, &ids, angles.as_deref())
            });
        }
    }
}
