//! Sizes that take many tasks: the same bits for any number of threads.

use rayon::ThreadPoolBuilder;
use switchyard_kernels_cpu::activation::Activation;
use switchyard_kernels_cpu::attention::{self, Alibi, Gradients, Heads, Inputs, Results};
use switchyard_kernels_cpu::bf16::Compute;
use switchyard_kernels_cpu::block_sparse::{self, BlockTopology, Direction};
use switchyard_kernels_cpu::dispatch::DispatchPlan;
use switchyard_kernels_cpu::feed_forward::{Block, FfnOptions, Operands, Parts};
use switchyard_kernels_cpu::head_loss::Head;
use switchyard_kernels_cpu::matrix::Matrix;
use switchyard_kernels_cpu::{embedding, linear};

use crate::feed_forward::there_and_back;
use crate::{ALL, irregular};

/// Fails unless `compute` returns the same bits in pools of 1 and of 3 threads, all of them
/// numbers.
#[track_caller]
fn assert_same(compute: impl Fn() -> Vec<Vec<f32>> + Sync) {
    let bits = |num_threads: usize| -> Vec<Vec<u32>> {
        let pool = ThreadPoolBuilder::new().num_threads(num_threads).build().expect("a pool of threads");
        let results = pool.install(&compute);
        assert!(results.iter().flatten().all(|value| value.is_finite()), "not a number");
        results.iter().map(|result| result.iter().map(|value| value.to_bits()).collect()).collect()
    };
    assert!(bits(1) == bits(3), "1 and 3 threads differ");
}

#[test]
fn projections_and_rows_do_not_depend_on_the_threads() {
    let [t, d, f] = [517, 70, 200];
    let (x, w, dy) = (irregular(1, t * d), irregular(2, d * f), irregular(3, t * f));
    let ids: Vec<u32> = (0..t).map(|token| (token * token % 300) as u32).collect();
    let [x_td, w_df, dy_tf] =
        [(&x, d), (&w, f), (&dy, f)].map(|(values, columns)| Matrix::row_major(values, columns));
    for compute in ALL {
        assert_same(|| {
            vec![
                linear::project(x_td, w_df, None, compute),
                linear::project(dy_tf, w_df.transposed(), None, compute),
                linear::weight_gradient(x_td, dy_tf, compute),
                linear::sum_rows(dy_tf),
                embedding::gradient(&ids, &x, d, 300),
            ]
        });
    }
}

#[test]
fn products_with_blocks_do_not_depend_on_the_threads() {
    let (t, b) = (517, 32);
    let topology = BlockTopology::new(b, [3, 4], vec![[0, 1], [0, 3], [2, 0], [2, 1]]);
    let (x, dy) = (irregular(1, t * topology.d_input()), irregular(2, t * topology.d_output()));
    let blocks = irregular(3, topology.num_blocks() * b * b);
    let (x_td, dy_tf) =
        (Matrix::row_major(&x, topology.d_input()), Matrix::row_major(&dy, topology.d_output()));
    assert_same(|| {
        vec![
            block_sparse::product(x_td, &blocks, &topology, Direction::Forward),
            block_sparse::product(dy_tf, &blocks, &topology, Direction::Backward),
            block_sparse::weight_gradient(x_td, dy_tf, &topology),
        ]
    });
}

#[test]
fn attention_does_not_depend_on_the_threads() {
    let [b, s, h, g, d] = [3, 137, 6, 2, 20];
    let [q, k, v] = [(1, h), (2, g), (3, g)].map(|(seed, heads)| irregular(seed, b * s * heads * d));
    let (dy, ids) = (irregular(4, q.len()), vec![0; s]);
    let heads = Heads { alibi: Some(Alibi::Distance), ..Heads::new(h, g) };
    let sinks = irregular(5, h);
    let inputs = Inputs {
        q: &q,
        k: &k,
        v: &v,
        sinks: Some(&sinks),
        rotation: None,
        segment_ids: &ids,
        seq_len: s,
        d_head: d,
        d_value: d,
        heads,
        compute: Compute::F32,
    };
    for compute in ALL {
        let inputs = Inputs { compute, ..inputs };
        assert_same(|| {
            let (y, log_partition) = attention::forward(inputs);
            let results = Results { y: &y, dy: &dy, log_partition: &log_partition };
            let Gradients { q, k, v, sinks } = attention::gradients(inputs, results);
            vec![y, log_partition, q, k, v, sinks.unwrap_or_default()]
        });
    }
}

#[test]
fn blocks_of_experts_do_not_depend_on_the_threads() {
    let (t, k, e, d, f) = (400, 2, 5, 40, 56);
    // Expert 2 has no tokens, and expert 0 half of them.
    let ids: Vec<u32> = (0..t * k).map(|i| if i % 2 == 0 { 0 } else { [1, 3, 4][i / 2 % 3] }).collect();
    let [x, dy] = [1, 2].map(|seed| irregular(seed, t * d));
    let [up, down, gate] = [3, 4, 5].map(|seed| irregular(seed, e * d * f));
    let gates = irregular(6, t * k);
    let operands = Operands {
        x: &x[..],
        up: &up,
        down: &down,
        gate: Some(&gate[..]),
        gates: Some(&gates),
        up_bias: None,
        down_bias: None,
        gate_bias: None,
    };
    let parts = Parts { gated: true, routed: true, biased: false };
    let plan = Some(DispatchPlan::new(&ids, None, e, k));
    for compute in ALL {
        let options = FfnOptions { compute, recompute: false };
        let block = Block { activation: Activation::Swiglu, parts, plan: plan.clone(), options };
        assert_same(|| {
            let (y, mut results) = there_and_back(operands, [t, d, f], &dy, &block);
            results.push(y);
            results
        });
    }
}

/// Several chunks, of which the last one is not whole.
#[test]
fn the_loss_of_the_head_does_not_depend_on_the_threads() {
    let [t, d, v] = [1100, 5, 4099];
    let (x, w) = (irregular(1, t * d), irregular(2, d * v));
    let targets: Vec<_> = (0..t).map(|i| (i % 3 != 1).then_some(i * 7919 % v)).collect();
    for w_dv in [Matrix::row_major(&w, v), Matrix::row_major(&w, d).transposed()] {
        for compute in ALL {
            let x_td = Matrix::row_major(&x, d);
            let head = Head { x: x_td, w: w_dv, targets: &targets, z_loss_weight: 0.125, compute };
            assert_same(|| {
                let (means, gradients) = head.losses_and_gradients(true);
                vec![vec![means.total as f32, means.cross_entropy as f32], gradients.dx, gradients.dw]
            });
        }
    }
}
