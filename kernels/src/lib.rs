//! The hot differentiable operations, as functions on burn tensors.
//!
//! One operation is one file. Each is a backend extension: a trait whose default bodies are made of stock tensor
//! operations, so that it works on every backend and is the reference, and a hand-written backward. A faster body
//! for one backend overrides the default and touches nothing above this crate.

mod activation;
mod adamw;
mod allocator;
mod attention;
mod block_sparse;
mod dispatch;
mod embedding;
mod exp;
mod feed_forward;
mod head_loss;
mod linear;
mod matrix;
mod norm;
mod panel_product;
mod rotary;
mod routing;
mod row_tiles;
mod simd;
mod slices;
mod square_sum;
mod tensor_list;
mod thread_products;

pub use activation::Activation;
pub use adamw::{AdamWState, AdamWStep, adamw_update};
pub use allocator::keep_freed_memory;
pub use attention::{CausalMask, Heads, attention_elements_per_thread, causal_attention};
pub use block_sparse::{BlockTopology, block_sparse_linear};
pub use dispatch::{DispatchPlan, Groups, SlotMap};
pub use embedding::embedding;
pub use feed_forward::{
    DenseBiases, DenseMatrices, ExpertMatrices, dense_ffn, expert_ffn, ffn_elements_per_thread,
};
pub use head_loss::{HeadLoss, HeadLossOptions, head_loss, num_logits_held};
pub use linear::linear;
pub use norm::{layer_norm, rms_norm};
pub use rotary::RotaryTable;
pub use routing::{GateSoftmax, expected_load, mean_square_log_partition, top_k_gates};
pub use square_sum::{square_sums, square_sums_of_rows};
pub use thread_products::ThreadProducts;
