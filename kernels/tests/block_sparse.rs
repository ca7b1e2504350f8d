//! Block-sparse projections against a dense matrix with zeros, in plain f64 loops; and a dropless
//! mixture of experts as a block-diagonal matrix.
//!
//! Tolerances: f32 rounding (6e-8) over sums of at most a few hundred terms of size one.

#![expect(clippy::unwrap_used, reason = "functions of a test fail as the test does")]

use burn::tensor::{Device, Gradients, Tensor, TensorData};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use switchyard_kernels::{
    Activation, BlockTopology, DispatchPlan, ExpertMatrices, FfnOptions, block_sparse_linear, expert_ffn,
};

const TOLERANCE: f64 = 1e-5;

fn random(seed: u64, count: usize) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| f64::from(rng.random_range(-1.0_f32..1.0))).collect()
}

fn tensor<const D: usize>(values: &[f64], shape: [usize; D]) -> Tensor<D> {
    let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff()).require_grad()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f32>().map(f64::from).collect()
}

fn gradient<const D: usize>(leaf: &Tensor<D>, gradients: &Gradients) -> Vec<f64> {
    values(leaf.grad(gradients).unwrap())
}

fn assert_close(what: &str, actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    let scale = expected.iter().fold(1.0_f64, |scale, value| scale.max(value.abs()));
    for (index, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((a - e).abs() <= TOLERANCE * scale, "{what}[{index}]: {a} is not {e}");
    }
}

/// `a b` with `a` of `rows` rows, `inner` columns.
fn matmul(a: &[f64], b: &[f64], [rows, inner, columns]: [usize; 3]) -> Vec<f64> {
    let mut c = vec![0.0; rows * columns];
    for i in 0..rows {
        for k in 0..inner {
            for j in 0..columns {
                c[i * columns + j] += a[i * inner + k] * b[k * columns + j];
            }
        }
    }
    c
}

fn transposed(a: &[f64], [rows, columns]: [usize; 2]) -> Vec<f64> {
    (0..columns).flat_map(|j| (0..rows).map(move |i| a[i * columns + j])).collect()
}

/// The whole matrix, zeros included.
fn dense(blocks: &[f64], topology: &BlockTopology) -> Vec<f64> {
    let (b, f) = (topology.block(), topology.d_output());
    let mut w = vec![0.0; topology.d_input() * f];
    for (index, [row, column]) in topology.places().iter().enumerate() {
        for i in 0..b {
            for j in 0..b {
                w[(row * b + i) * f + column * b + j] = blocks[(index * b + i) * b + j];
            }
        }
    }
    w
}

/// The elements of a dense matrix that lie in blocks, in the blocks' order.
fn in_blocks(w: &[f64], topology: &BlockTopology) -> Vec<f64> {
    let (b, f) = (topology.block(), topology.d_output());
    let element =
        |row: usize, column: usize, place: usize| w[(row * b + place / b) * f + column * b + place % b];
    let places = topology.places().iter();
    places.flat_map(|&[row, column]| (0..b * b).map(move |place| element(row, column, place))).collect()
}

fn topologies() -> Vec<BlockTopology> {
    let all = |rows: usize, columns: usize| {
        (0..rows).flat_map(move |row| (0..columns).map(move |column| [row, column])).collect::<Vec<_>>()
    };
    let mut without_lines = all(3, 4);
    without_lines.retain(|[row, column]| *row != 0 && *column != 3);
    vec![
        BlockTopology::new(1, [1, 1], all(1, 1)),
        BlockTopology::new(4, [2, 3], all(2, 3)),
        BlockTopology::new(3, [3, 3], vec![[0, 1], [1, 0], [2, 1]]),
        BlockTopology::new(5, [3, 4], without_lines),
        BlockTopology::new(8, [1, 5], vec![[0, 4]]),
    ]
}

#[test]
fn products_and_gradients_are_those_of_the_dense_matrix_with_zeros() {
    for topology in topologies() {
        for t in [1, 7, 130] {
            let (d, f, b, n) =
                (topology.d_input(), topology.d_output(), topology.block(), topology.num_blocks());
            let (x, blocks, dy) = (random(1, t * d), random(2, n * b * b), random(3, t * f));
            let w = dense(&blocks, &topology);
            let (x_td, blocks_nbb) = (tensor(&x, [t, d]), tensor(&blocks, [n, b, b]));
            let y_tf = block_sparse_linear(x_td.clone(), blocks_nbb.clone(), &topology);
            assert_close("product", &values(y_tf.clone()), &matmul(&x, &w, [t, d, f]));
            let gradients = (y_tf * tensor(&dy, [t, f]).detach()).sum().backward();
            let dx = matmul(&dy, &transposed(&w, [d, f]), [t, f, d]);
            assert_close("gradient of the rows", &gradient(&x_td, &gradients), &dx);
            let dw = matmul(&transposed(&x, [t, d]), &dy, [d, t, f]);
            assert_close(
                "gradient of the blocks",
                &gradient(&blocks_nbb, &gradients),
                &in_blocks(&dw, &topology),
            );
        }
    }
}

const NUM_EXPERTS: usize = 3;
const TOP_K: usize = 2;
const NUM_TOKENS: usize = 11;
const D_MODEL: usize = 8;
const D_EXPERT: usize = 12;
const BLOCK: usize = 4;

/// Expert `e`'s matrix of `rows` x `columns` blocks as the e-th square of a diagonal.
fn block_diagonal([rows, columns]: [usize; 2]) -> BlockTopology {
    let of_expert = |e: usize| {
        (0..rows).flat_map(move |row| (0..columns).map(move |column| [e * rows + row, e * columns + column]))
    };
    BlockTopology::new(
        BLOCK,
        [NUM_EXPERTS * rows, NUM_EXPERTS * columns],
        (0..NUM_EXPERTS).flat_map(of_expert).collect(),
    )
}

/// A stack of matrices `[e, rows, columns]` as the blocks of their diagonal.
fn diagonal_blocks(stack: &[f64], topology: &BlockTopology) -> Vec<f64> {
    let [d, f] = [topology.d_input() / NUM_EXPERTS, topology.d_output() / NUM_EXPERTS];
    let mut w = vec![0.0; topology.d_input() * topology.d_output()];
    for (index, value) in stack.iter().enumerate() {
        let (e, row, column) = (index / (d * f), index / f % d, index % f);
        w[(e * d + row) * topology.d_output() + e * f + column] = *value;
    }
    in_blocks(&w, topology)
}

#[test]
fn a_dropless_mixture_is_a_block_diagonal_layer() {
    // MegaBlocks, arXiv:2211.15841, figure 3: rows sorted by expert, each in the columns of its
    // expert.
    let ids: Vec<u32> =
        (0..NUM_TOKENS).flat_map(|t| [(t * t % 3) as u32, ((t * t + 1) % 3) as u32]).collect();
    let plan = DispatchPlan::new(&ids, None, NUM_EXPERTS, TOP_K);
    let (x, gates) = (random(1, NUM_TOKENS * D_MODEL), random(2, NUM_TOKENS * TOP_K));
    let ups = random(3, NUM_EXPERTS * D_MODEL * D_EXPERT);
    let downs = random(4, NUM_EXPERTS * D_EXPERT * D_MODEL);
    let mixture_td = expert_ffn(
        tensor(&x, [NUM_TOKENS, D_MODEL]),
        tensor(&gates, [NUM_TOKENS, TOP_K]),
        ExpertMatrices {
            w_gate_edf: None,
            w_up_edf: tensor(&ups, [NUM_EXPERTS, D_MODEL, D_EXPERT]),
            w_down_efd: tensor(&downs, [NUM_EXPERTS, D_EXPERT, D_MODEL]),
            biases: None,
        },
        Activation::Relu,
        &plan,
        FfnOptions::default(),
    );

    let mut slots: Vec<usize> = (0..ids.len()).collect();
    slots.sort_by_key(|&slot| (ids[slot], slot));
    let width = NUM_EXPERTS * D_MODEL;
    let mut placed = vec![0.0; slots.len() * width];
    for (row, &slot) in slots.iter().enumerate() {
        let (token, first) = (slot / TOP_K, row * width + ids[slot] as usize * D_MODEL);
        placed[first..first + D_MODEL].copy_from_slice(&x[token * D_MODEL..(token + 1) * D_MODEL]);
    }
    let up = block_diagonal([D_MODEL / BLOCK, D_EXPERT / BLOCK]);
    let down = block_diagonal([D_EXPERT / BLOCK, D_MODEL / BLOCK]);
    let blocks = |stack: &[f64], topology: &BlockTopology| {
        tensor(&diagonal_blocks(stack, topology), [topology.num_blocks(), BLOCK, BLOCK])
    };
    let hidden = block_sparse_linear(tensor(&placed, [slots.len(), width]), blocks(&ups, &up), &up);
    let hidden = burn::tensor::activation::relu(hidden);
    let rows = values(block_sparse_linear(hidden, blocks(&downs, &down), &down));

    let mut expected = vec![0.0; NUM_TOKENS * D_MODEL];
    for (row, &slot) in slots.iter().enumerate() {
        let first = row * width + ids[slot] as usize * D_MODEL;
        for (j, value) in rows[first..first + D_MODEL].iter().enumerate() {
            expected[slot / TOP_K * D_MODEL + j] += gates[slot] * value;
        }
    }
    assert_close("mixture", &values(mixture_td), &expected);
}
