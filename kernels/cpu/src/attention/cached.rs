//! Attention of the last token of a sequence to keys and values that are kept from before.
//!
//! The sums are those of the whole pass, [`super::forward`], term by term: their bits are the same
//! (see the laws of `switchyard-model`).
//!
//! Shape letters: n tokens so far, c tokens that there is room for, h query heads, g key/value
//! heads, d width of a head of queries and keys, v of one of values.

use rayon::prelude::*;

use super::softmax::{exponentials_of_seen, write_divided};
use super::visibility::Visibility;
use super::{Heads, QueryBlock};
use crate::bf16::Compute;
use crate::matrix::Matrix;
use crate::panel_product::{Triangle, write_triangular_product};
use crate::rotary::{Rotation, write_rotated};
use crate::unwritten::{Unwritten, UnwrittenMatrix};

/// Where kept keys and values lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// g.
    pub num_kv_heads: usize,
    /// c.
    pub capacity: usize,
    /// d.
    pub d_head: usize,
    /// v.
    pub d_value: usize,
}

/// What the last token's attention is computed from.
#[derive(Debug, Clone, Copy)]
pub struct CachedInputs<'a> {
    /// The last token's queries, `[h * d]`, not turned.
    pub q: &'a [f32],
    /// Keys, turned, `[g, d, c]`: the keys of one channel lie next to each other.
    pub keys: &'a [f32],
    /// Values, `[g, c, v]`.
    pub values: &'a [f32],
    /// A score of each head without a key, `[h]`.
    pub sinks: Option<&'a [f32]>,
    /// Angles of the positions from 0 on.
    pub rotation: Option<Rotation<'a>>,
    /// n, the last token included.
    pub num_tokens: usize,
    /// Sizes of keys and values.
    pub shape: CacheShape,
    /// How queries are cut.
    pub heads: Heads,
}

/// Keeps the keys, `[t, g * d]`, turned by their positions from `first` on, and values,
/// `[t, g * v]`, of t tokens.
///
/// # Panics
/// If the lengths do not fit each other, or there is no room.
pub fn append(
    [keys, values]: [&mut [f32]; 2],
    [k, v]: [&[f32]; 2],
    rotation: Option<Rotation<'_>>,
    first: usize,
    shape: CacheShape,
) {
    let CacheShape { num_kv_heads: g, capacity: c, d_head: d, d_value } = shape;
    let t = k.len() / (g * d);
    assert!(
        k.len() == t * g * d && v.len() == t * g * d_value && first + t <= c,
        "{} elements of keys and {} of values at {first} in {shape:?}",
        k.len(),
        v.len()
    );
    let rotation = rotation.map(|rotation| from_position(rotation, first, d));
    for head in 0..g {
        let mut turned = Unwritten::new(t * d);
        let of_head = Matrix::strided(&k[head * d..], [t, d], [g * d, 1]);
        write_rotated(turned.whole().into_matrix(d), of_head, rotation, 1.0, 1.0);
        let turned = turned.into_values();
        for (channel, kept) in keys[head * d * c..][..d * c].chunks_exact_mut(c).enumerate() {
            for (kept, key) in kept[first..first + t].iter_mut().zip(turned.chunks_exact(d)) {
                *kept = key[channel];
            }
        }
        let kept = values[head * c * d_value..][first * d_value..][..t * d_value].chunks_exact_mut(d_value);
        for (token, kept) in kept.enumerate() {
            kept.copy_from_slice(&v[(token * g + head) * d_value..][..d_value]);
        }
    }
}

/// The angles of the positions from `first` on, of heads of width `d`.
fn from_position(Rotation { cos, sin }: Rotation<'_>, first: usize, d: usize) -> Rotation<'_> {
    let start = first * (d / 2);
    Rotation { cos: &cos[start..], sin: &sin[start..] }
}

/// The output of the last token, `[h * v]`, which sees itself and what precedes it.
///
/// # Panics
/// If there is no token, or the lengths do not fit each other.
pub fn forward(inputs: CachedInputs<'_>) -> Vec<f32> {
    let CachedInputs { q, num_tokens: n, shape, heads, .. } = inputs;
    let CacheShape { num_kv_heads: g, capacity: c, d_head: d, d_value } = shape;
    assert!(
        q.len() == heads.num_heads * d && heads.num_heads.is_multiple_of(g) && (1..=c).contains(&n),
        "{} elements of queries for {n} tokens of {heads:?} in {shape:?}",
        q.len()
    );
    let visibility = Visibility::new(heads, &[0], 1, d);
    let block_len = QueryBlock::len(n, heads.window);
    let first_key = visibility.first_key((n - 1) / block_len * block_len);
    let mut y = Unwritten::new(heads.num_heads * d_value);
    let heads_of_y = y.whole().into_matrix(heads.num_heads * d_value).into_blocks(1, d_value);
    heads_of_y.into_par_iter().enumerate().for_each(|(head, y)| {
        attend(&inputs, &visibility, first_key, head, y);
    });
    y.into_values()
}

/// One head.
fn attend(
    inputs: &CachedInputs<'_>,
    visibility: &Visibility,
    first_key: usize,
    head: usize,
    y: UnwrittenMatrix<'_>,
) {
    let CachedInputs { q, keys, values, sinks, rotation, num_tokens: n, shape, heads } = *inputs;
    let CacheShape { num_kv_heads: g, capacity: c, d_head: d, d_value } = shape;
    let kv_head = head / (heads.num_heads / g);
    let (query, num_keys) = (n - 1, n - first_key);
    let mut turned = Unwritten::new(d);
    let of_head = Matrix::row_major(&q[head * d..][..d], d);
    let rotation = rotation.map(|rotation| from_position(rotation, query, d));
    write_rotated(turned.whole().into_matrix(d), of_head, rotation, 1.0, heads.scale_of(d));
    let turned = turned.into_values();
    let keys = Matrix::strided(&keys[kv_head * d * c + first_key..], [d, num_keys], [c, 1]);
    let mut scores = vec![0.0; num_keys];
    write_triangular_product(
        &mut scores,
        Matrix::row_major(&turned, d),
        keys,
        Triangle::Nowhere,
        Compute::F32,
    );
    visibility.apply([0, head], query, first_key..n, &mut scores);
    let (_, sum) = exponentials_of_seen(&mut scores, num_keys, sinks.map(|sinks| sinks[head]));
    let values = &values[(kv_head * c + first_key) * d_value..][..num_keys * d_value];
    let mut mixed = vec![0.0; d_value];
    let weights = Matrix::row_major(&scores, num_keys);
    write_triangular_product(
        &mut mixed,
        weights,
        Matrix::row_major(values, d_value),
        Triangle::Nowhere,
        Compute::F32,
    );
    write_divided(y, Matrix::row_major(&mixed, d_value), &[sum]);
}
