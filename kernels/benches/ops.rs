//! Each operation at the sizes of a step of `experiments/bench/s2-*.toml`: forward, and forward with backward.
//!
//!     cargo bench --workspace --bench ops [-- NAME]
//!
//! Items are floating-point operations of matrix products, the backward pass counted as twice the forward pass; bytes are
//! those of the operands and the result, read or written once per pass. The system's allocator serves these benchmarks, not the
//! program's own.
//!
//! Shape letters: t tokens, d model width, b batch, h heads, s sequence, v vocabulary, f hidden width, n rows.

use std::hint::black_box;

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

fn main() {
    divan::main();
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
fn swiglu(bencher: Bencher, pass: Pass) {
    let (up_tf, gate_tf) = (pass.input([NUM_TOKENS, D_FF]), pass.input([NUM_TOKENS, D_FF]));
    let work = pass.bytes(3 * NUM_TOKENS * D_FF);
    pass.time(bencher, work, || ops::swiglu(up_tf.clone(), gate_tf.clone()));
}

#[divan::bench(args = PASSES)]
fn gelu(bencher: Bencher, pass: Pass) {
    let x_tf = pass.input([NUM_TOKENS, D_FF]);
    pass.time(bencher, pass.bytes(2 * NUM_TOKENS * D_FF), || ops::gelu(x_tf.clone()));
}

#[divan::bench(args = PASSES)]
fn gelu_tanh(bencher: Bencher, pass: Pass) {
    let x_tf = pass.input([NUM_TOKENS, D_FF]);
    pass.time(bencher, pass.bytes(2 * NUM_TOKENS * D_FF), || ops::gelu_tanh(x_tf.clone()));
}

#[divan::bench(args = PASSES)]
fn causal_attention(bencher: Bencher, pass: Pass) {
    let heads = || pass.input([NUM_SEQUENCES, NUM_HEADS, SEQ_LEN, D_HEAD]);
    let (q_bhsd, k_bhsd, v_bhsd) = (heads(), heads(), heads());
    let mask = ops::CausalMask::new(SEQ_LEN, &pass.device());
    // A position sees (s + 1) / 2 others on average, for the scores and for their weighted sum.
    let work = pass.flops(2 * NUM_TOKENS * D_MODEL * (SEQ_LEN + 1));
    pass.time(bencher, work, || ops::causal_attention(q_bhsd.clone(), k_bhsd.clone(), v_bhsd.clone(), &mask));
}

#[divan::bench(args = PASSES)]
fn rotate(bencher: Bencher, pass: Pass) {
    let x_bhsd = pass.input([NUM_SEQUENCES, NUM_HEADS, SEQ_LEN, D_HEAD]);
    let table = ops::RotaryTable::new(SEQ_LEN, D_HEAD, 10_000.0, &pass.device());
    pass.time(bencher, pass.bytes(2 * NUM_TOKENS * D_MODEL), || table.rotate(x_bhsd.clone()));
}

#[divan::bench(args = PASSES)]
fn cross_entropy(bencher: Bencher, pass: Pass) {
    let logits_tv = pass.input([NUM_TOKENS, VOCAB_SIZE]);
    let target_ids_t = ids([NUM_TOKENS], VOCAB_SIZE, &pass.device());
    let work = pass.bytes(NUM_TOKENS * VOCAB_SIZE);
    pass.time(bencher, work, || ops::cross_entropy(logits_tv.clone(), target_ids_t.clone()));
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

/// Rows packed by expert, of 8 experts and 2 per token.
mod packed_rows {
    use super::*;

    const NUM_EXPERTS: usize = 8;
    const TOP_K: usize = 2;
    const NUM_ROWS: usize = NUM_TOKENS * TOP_K;
    const D_EXPERT: usize = D_FF / TOP_K;

    /// Slots in an order that mixes the tokens.
    fn slots() -> ops::SlotMap {
        // An odd factor permutes the powers of two.
        let slot_of_row: Vec<u32> = (0..NUM_ROWS).map(|row| (row * 1_237 % NUM_ROWS) as u32).collect();
        ops::SlotMap::new(slot_of_row, NUM_TOKENS, TOP_K)
    }

    #[divan::bench(args = PASSES)]
    fn gather_rows(bencher: Bencher, pass: Pass) {
        let (x_td, slots) = (pass.input([NUM_TOKENS, D_MODEL]), slots());
        let work = pass.bytes((NUM_TOKENS + NUM_ROWS) * D_MODEL);
        pass.time(bencher, work, || ops::gather_rows(x_td.clone(), &slots));
    }

    #[divan::bench(args = PASSES)]
    fn combine_rows(bencher: Bencher, pass: Pass) {
        let (y_nd, gates_tk, slots) =
            (pass.input([NUM_ROWS, D_MODEL]), pass.input([NUM_TOKENS, TOP_K]), slots());
        let work = pass.bytes((NUM_TOKENS + NUM_ROWS) * D_MODEL);
        pass.time(bencher, work, || ops::combine_rows(y_nd.clone(), gates_tk.clone(), &slots));
    }

    #[divan::bench(args = PASSES)]
    fn grouped_matmul(bencher: Bencher, pass: Pass) {
        let (x_nd, w_edf) = (pass.input([NUM_ROWS, D_MODEL]), pass.input([NUM_EXPERTS, D_MODEL, D_EXPERT]));
        let rows_per_expert = NUM_ROWS / NUM_EXPERTS;
        let groups = ops::Groups::new((0..=NUM_EXPERTS).map(|e| e * rows_per_expert).collect::<Vec<_>>());
        let work = pass.flops(2 * NUM_ROWS * D_MODEL * D_EXPERT);
        pass.time(bencher, work, || ops::grouped_matmul(x_nd.clone(), w_edf.clone(), &groups));
    }
}
