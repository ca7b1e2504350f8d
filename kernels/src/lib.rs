//! The hot differentiable operations, as functions on burn tensors.
//!
//! One operation is one folder, with the same rooms in each:
//!
//! - `mod`: the public function and the backend extension, a trait whose default bodies are those
//!   of `stock`;
//! - `stock`: bodies made of stock tensor operations, which work on every backend and are the
//!   reference;
//! - `cpu`: the bodies for the CPU, which turn tensors into slices for `switchyard-kernels-cpu`;
//! - `autodiff`: the hand-written gradient;
//! - `tests`: laws that compare all of them.
//!
//! A faster body for another backend is one more room, and touches nothing above this crate.

#![forbid(unsafe_code)]

mod adamw;
mod attention;
mod block_sparse;
mod embedding;
mod expert_parallel;
mod feed_forward;
mod head_loss;
mod linear;
mod muon;
mod norm;
mod rotary;
mod routing;
mod slices;
mod square_sum;
mod tensor_list;

pub use adamw::{AdamWState, AdamWStep, adamw_update};
pub use attention::{
    Alibi, CausalMask, Heads, KeyValueCache, attention_elements_per_thread, causal_attention,
    max_attention_logits,
};
pub use block_sparse::{BlockTopology, block_sparse_linear};
pub use embedding::embedding;
pub use expert_parallel::{
    ExpertGradientSink, ExpertGradients, ExpertParallel, RoutedTokens, RowExchange, expert_parallel_ffn,
};
pub use feed_forward::{
    Activation, DenseBiases, DenseMatrices, ExpertBiases, ExpertMatrices, FfnOptions, dense_ffn, expert_ffn,
    ffn_elements_per_thread,
};
pub use head_loss::{HeadLoss, HeadLossOptions, head_loss, num_logits_held};
pub use linear::linear;
pub use muon::{MuonState, MuonStep, muon_update};
pub use norm::{layer_norm, rms_norm};
pub use rotary::RotaryTable;
pub use routing::{GateSoftmax, expected_load, mean_square_log_partition, top_k_gates};
pub use square_sum::{SQUARE_SUM_BLOCK, square_sums, square_sums_of_rows};
pub use switchyard_kernels_cpu::Products;
pub use switchyard_kernels_cpu::bf16::Compute;
pub use switchyard_kernels_cpu::dispatch::{DispatchPlan, Groups, SlotMap};
pub use switchyard_kernels_cpu::thread_products::ThreadProducts;
