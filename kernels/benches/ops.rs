//! Each operation at the sizes of a step of `experiments/bench/s2-*.toml`: forward, and forward
//! with backward.
//!
//!     cargo bench --workspace --bench ops [-- NAME]
//!
//! Items are floating-point operations of matrix products, the backward pass counted as twice the
//! forward pass; bytes are those of the operands and the result, read or written once per pass.
//! Memory is allocated as in the program, whose allocator keeps what is freed.
//!
//! Shape letters: t tokens, d model width, b batch, h heads, s sequence, v vocabulary, f hidden
//! width, n rows.

use std::hint::black_box;
use std::process::{Command, ExitCode};

use burn::tensor::{Device, Int, Tensor, TensorData};
use divan::Bencher;
use divan::counter::{BytesCount, IntoCounter, ItemsCount};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use switchyard_kernels as ops;

const NUM_SEQUENCES: usize = 8;
const SEQ_LEN: usize = 256;
const NUM_TOKENS: usize = NUM_SEQUENCES * SEQ_LEN;
const D_MODEL: usize = 256;
const NUM_HEADS: usize = 8;
const D_HEAD: usize = D_MODEL / NUM_HEADS;
const VOCAB_SIZE: usize = 4096;
const D_FF: usize = 1024;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What mimalloc reads before `main`: after how many milliseconds freed memory goes back to the
/// operating system.
const PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";
const NEVER: &str = "-1";

/// Runs the benchmarks in a process that begins with the allocator's option set.
fn main() -> std::io::Result<ExitCode> {
    if std::env::var(PURGE_DELAY).is_ok_and(|delay| delay == NEVER) {
        divan::main();
        return Ok(ExitCode::SUCCESS);
    }
    let mut again = Command::new(std::env::current_exe()?);
    let status = again.args(std::env::args_os().skip(1)).env(PURGE_DELAY, NEVER).status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What of an operation is timed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Pass {
    Forward,
    ForwardBackward,
}

const PASSES: [Pass; 2] = [Pass::Forward, Pass::ForwardBackward];

impl Pass {
    fn device(self) -> Device {
        match self {
            Self::Forward => Device::flex(),
            Self::ForwardBackward => Device::flex().autodiff(),
        }
    }

    /// Values between -1 and 1, with a gradient if there is a backward pass.
    fn input<const D: usize>(self, shape: [usize; D]) -> Tensor<D> {
        let mut rng = ChaCha8Rng::seed_from_u64(shape.iter().sum::<usize>() as u64);
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect();
        let input = Tensor::from_data(TensorData::new(values, shape), &self.device());
        if self == Self::ForwardBackward { input.require_grad() } else { input }
    }

    /// Time `op`, whose result has a gradient of ones.
    fn time<const D: usize>(self, bencher: Bencher, work: impl IntoCounter, op: impl Fn() -> Tensor<D>) {
        let bencher = bencher.counter(work);
        match self {
            Self::Forward => bencher.bench_local(op),
            Self::ForwardBackward => bencher.bench_local(|| black_box(op().backward())),
        }
    }

    /// Operations of matrix products that take `forward_flops` in the forward pass.
    fn flops(self, forward_flops: usize) -> ItemsCount {
        ItemsCount::new(if self == Self::Forward { forward_flops } else { 3 * forward_flops })
    }

    /// Bytes of `num_elements` operands and results, and of as many gradients.
    fn bytes(self, num_elements: usize) -> BytesCount {
        BytesCount::of_many::<f32>(if self == Self::Forward { num_elements } else { 2 * num_elements })
    }
}

fn ids<const D: usize>(shape: [usize; D], below: usize, device: &Device) -> Tensor<D, Int> {
    let mut rng = ChaCha8Rng::seed_from_u64(below as u64);
    let values: Vec<i32> = (0..shape.iter().product()).map(|_| rng.random_range(0..below as i32)).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[divan::bench(args = PASSES)]
fn rms_norm(bencher: Bencher, pass: Pass) {
    let (x_td, scale_d) = (pass.input([NUM_TOKENS, D_MODEL]), pass.input([D_MODEL]));
    let work = pass.bytes(2 * NUM_TOKENS * D_MODEL);
    pass.time(bencher, work, || ops::rms_norm(x_td.clone(), scale_d.clone(), 1e-5));
}

#[divan::bench(args = PASSES)]
fn layer_norm(bencher: Bencher, pass: Pass) {
    let (x_td, scale_d, bias_d) =
        (pass.input([NUM_TOKENS, D_MODEL]), pass.input([D_MODEL]), pass.input([D_MODEL]));
    let work = pass.bytes(2 * NUM_TOKENS * D_MODEL);
    pass.time(bencher, work, || ops::layer_norm(x_td.clone(), scale_d.clone(), Some(bias_d.clone()), 1e-5));
}

#[divan::bench(args = PASSES)]
fn linear(bencher: Bencher, pass: Pass) {
    let (x_td, w_df) = (pass.input([NUM_TOKENS, D_MODEL]), pass.input([D_MODEL, D_MODEL]));
    let work = pass.flops(2 * NUM_TOKENS * D_MODEL * D_MODEL);
    pass.time(bencher, work, || ops::linear(x_td.clone(), w_df.clone(), None, ops::Compute::F32));
}

/// As many tokens in short sequences and in one long one.
#[divan::bench(args = PASSES, consts = [SEQ_LEN, NUM_TOKENS])]
fn causal_attention<const SEQ_LEN: usize>(bencher: Bencher, pass: Pass) {
    let rows = || pass.input([NUM_TOKENS, D_MODEL]);
    let (q_tq, k_tg, v_tg) = (rows(), rows(), rows());
    let heads = ops::Heads::new(NUM_HEADS, NUM_HEADS);
    let mask = ops::CausalMask::new(SEQ_LEN, &pass.device());
    let frequencies: Vec<f64> =
        (0..D_HEAD / 2).map(|pair| 10_000f64.powf(-2.0 * pair as f64 / D_HEAD as f64)).collect();
    let table = ops::RotaryTable::new(SEQ_LEN, &frequencies, 1.0, &pass.device());
    // A position sees (s + 1) / 2 others on average, for the scores and for their weighted sum.
    let work = pass.flops(2 * NUM_TOKENS * D_MODEL * (SEQ_LEN + 1));
    pass.time(bencher, work, || {
        ops::causal_attention(
            q_tq.clone(),
            k_tg.clone(),
            v_tg.clone(),
            None,
            heads,
            &mask,
            Some(&table),
            ops::Compute::F32,
        )
    });
}

#[divan::bench(args = PASSES)]
fn dense_ffn(bencher: Bencher, pass: Pass) {
    let x_td = pass.input([NUM_TOKENS, D_MODEL]);
    let matrices = ops::DenseMatrices {
        w_gate_df: Some(pass.input([D_MODEL, D_FF])),
        w_up_df: pass.input([D_MODEL, D_FF]),
        w_down_fd: pass.input([D_FF, D_MODEL]),
        biases: None,
    };
    let work = pass.flops(6 * NUM_TOKENS * D_MODEL * D_FF);
    pass.time(bencher, work, || {
        ops::dense_ffn(x_td.clone(), matrices.clone(), ops::Activation::Swiglu, ops::FfnOptions::default())
    });
}

/// As much work as the dense block, shared by `[experts, experts per token]`.
#[divan::bench(args = [[8, 2], [32, 4], [64, 8]])]
fn expert_ffn(bencher: Bencher, [num_experts, top_k]: [usize; 2]) {
    let pass = Pass::ForwardBackward;
    let d_expert = D_FF / top_k;
    let x_td = pass.input([NUM_TOKENS, D_MODEL]);
    let gates_tk = pass.input([NUM_TOKENS, top_k]);
    let matrices = ops::ExpertMatrices {
        w_gate_edf: Some(pass.input([num_experts, D_MODEL, d_expert])),
        w_up_edf: pass.input([num_experts, D_MODEL, d_expert]),
        w_down_efd: pass.input([num_experts, d_expert, D_MODEL]),
        biases: None,
    };
    // An odd factor permutes the powers of two: balanced, and neighbours go to different experts.
    let ids: Vec<u32> = (0..NUM_TOKENS * top_k).map(|slot| (slot * 1_237 % num_experts) as u32).collect();
    let plan = ops::DispatchPlan::new(&ids, None, num_experts, top_k);
    let work = pass.flops(6 * NUM_TOKENS * D_MODEL * D_FF);
    pass.time(bencher, work, || {
        ops::expert_ffn(
            x_td.clone(),
            gates_tk.clone(),
            matrices.clone(),
            ops::Activation::Swiglu,
            &plan,
            ops::FfnOptions::default(),
        )
    });
}

/// One block in `one_in` of a projection, evenly spread, forward and backward: the items are those
/// of the blocks that are there, so a rate that stays says that time is proportional to them.
/// Beside it `dense_projection`, the whole matrix.
#[divan::bench(args = [1, 2, 4, 8])]
fn block_sparse_linear(bencher: Bencher, one_in: usize) {
    const BLOCK: usize = 32;
    let pass = Pass::ForwardBackward;
    let shape = [D_MODEL / BLOCK, D_FF / BLOCK];
    let all = (0..shape[0]).flat_map(|row| (0..shape[1]).map(move |column| [row, column]));
    let places: Vec<_> = all.filter(|[row, column]| (row + column) % one_in == 0).collect();
    let topology = ops::BlockTopology::new(BLOCK, shape, places);
    let x_td = pass.input([NUM_TOKENS, D_MODEL]);
    let blocks_nbb = pass.input([topology.num_blocks(), BLOCK, BLOCK]);
    let work = pass.flops(2 * NUM_TOKENS * topology.num_blocks() * BLOCK * BLOCK);
    pass.time(bencher, work, || ops::block_sparse_linear(x_td.clone(), blocks_nbb.clone(), &topology));
}

#[divan::bench]
fn dense_projection(bencher: Bencher) {
    let pass = Pass::ForwardBackward;
    let (x_td, w_df) = (pass.input([NUM_TOKENS, D_MODEL]), pass.input([D_MODEL, D_FF]));
    let work = pass.flops(2 * NUM_TOKENS * D_MODEL * D_FF);
    pass.time(bencher, work, || ops::linear(x_td.clone(), w_df.clone(), None, ops::Compute::F32));
}

#[divan::bench(args = PASSES)]
fn top_k_gates(bencher: Bencher, pass: Pass) {
    const NUM_EXPERTS: usize = 64;
    const TOP_K: usize = 8;
    let logits_te = pass.input([NUM_TOKENS, NUM_EXPERTS]);
    let ids: Vec<u32> = (0..NUM_TOKENS * TOP_K).map(|slot| (slot % NUM_EXPERTS) as u32).collect();
    let work = pass.bytes(NUM_TOKENS * (NUM_EXPERTS + TOP_K));
    pass.time(bencher, work, || {
        ops::top_k_gates(logits_te.clone(), ids.as_slice(), ops::GateSoftmax::OverChosen)
    });
}

#[divan::bench(args = PASSES)]
fn expected_load(bencher: Bencher, pass: Pass) {
    const NUM_EXPERTS: usize = 64;
    let logits_te = pass.input([NUM_TOKENS, NUM_EXPERTS]);
    let work = pass.bytes(NUM_TOKENS * NUM_EXPERTS);
    pass.time(bencher, work, || ops::expected_load(logits_te.clone(), &[1.0; NUM_EXPERTS]));
}

#[divan::bench(args = PASSES)]
fn mean_square_log_partition(bencher: Bencher, pass: Pass) {
    let logits_te = pass.input([NUM_TOKENS, 64]);
    let work = pass.bytes(NUM_TOKENS * 64);
    pass.time(bencher, work, || ops::mean_square_log_partition(logits_te.clone()));
}

#[divan::bench(args = PASSES)]
fn head_loss(bencher: Bencher, pass: Pass) {
    let (x_td, w_dv) = (pass.input([NUM_TOKENS, D_MODEL]), pass.input([D_MODEL, VOCAB_SIZE]));
    let target_ids_t = ids([NUM_TOKENS], VOCAB_SIZE, &pass.device());
    let work = pass.flops(2 * NUM_TOKENS * D_MODEL * VOCAB_SIZE);
    pass.time(bencher, work, || {
        ops::head_loss(x_td.clone(), w_dv.clone(), target_ids_t.clone(), ops::HeadLossOptions::default())
            .total_1
    });
}

/// As many tokens as half the vocabulary, each with a random id.
#[divan::bench(args = PASSES)]
fn embedding(bencher: Bencher, pass: Pass) {
    let table_vd = pass.input([VOCAB_SIZE, D_MODEL]);
    let ids_t = ids([NUM_TOKENS], VOCAB_SIZE, &pass.device());
    // Forward, the rows are read and written; backward, the gradient of the table is written too.
    let table_len = if pass == Pass::Forward { 0 } else { VOCAB_SIZE * D_MODEL };
    let work = BytesCount::of_many::<f32>(2 * NUM_TOKENS * D_MODEL + table_len);
    pass.time(bencher, work, || ops::embedding(table_vd.clone(), ids_t.clone()));
}

/// One projection of 8 experts of half the width; there is nothing to differentiate.
#[divan::bench]
fn muon_update(bencher: Bencher) {
    const SHAPE: [usize; 3] = [8, D_MODEL, D_FF / 2];
    let [number, rows, columns] = SHAPE;
    let len = number * rows * columns;
    let step = ops::MuonStep {
        learning_rate: 1e-3,
        momentum: 0.95,
        nesterov: true,
        newton_schulz_steps: 5,
        weight_decay: 0.1,
        gradient_scale: 1.0,
    };
    let input = || Pass::Forward.input([len]);
    let gradient_n = input();
    let state = || ops::MuonState { value_n: input(), momentum_n: input() };
    // Both symmetric products as the half that they are, then that with the matrix.
    let flops = rows * rows * columns + rows * rows * rows + 2 * rows * rows * columns;
    bencher
        .counter(ItemsCount::new(step.newton_schulz_steps * number * flops))
        .with_inputs(state)
        .bench_local_values(|state| ops::muon_update(state, gradient_n.clone(), SHAPE, &step));
}

/// All parameters of the dense model at once; there is nothing to differentiate.
#[divan::bench]
fn adamw_update(bencher: Bencher) {
    const NUM_PARAMS: usize = 8_391_936;
    let step = ops::AdamWStep {
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step: 1,
        gradient_scale: 1.0,
        rounding_key: 0,
        first_element: 0,
    };
    let input = || Pass::Forward.input([NUM_PARAMS]);
    let gradient_n = input();
    let state = || ops::AdamWState { value_n: input(), moment1_n: input().abs(), moment2_n: input().abs() };
    // Read four arrays, write three.
    let work = BytesCount::of_many::<f32>(7 * NUM_PARAMS);
    // A state that nobody else holds, as in training, is updated in place.
    bencher
        .counter(work)
        .with_inputs(state)
        .bench_local_values(|state| ops::adamw_update(state, gradient_n.clone(), &step));
}
