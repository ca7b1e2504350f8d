//! The hot operations on the CPU: loops over slices of `f32`, and nothing that knows of tensors.
//!
//! This crate holds all `unsafe` code of the numerics: what reads or writes without bounds checks,
//! and what is compiled for one instruction set. Its functions are safe to call: whatever does not
//! fit panics.
//!
//! Every operation cuts its work into tasks by the shape alone, so results are the same bit for bit
//! for any number of threads.

#![expect(unsafe_code, reason = "here it is, so that it need be nowhere else")]

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod bf16;
pub mod block_sparse;
pub mod blocks;
pub mod dispatch;
pub mod embedding;
mod exp;
pub mod feed_forward;
pub mod head_loss;
pub mod linear;
pub mod matrix;
pub mod max_logits;
pub mod muon;
pub mod newton_schulz;
pub mod norm;
mod panel_product;
pub mod rotary;
mod rounding;
pub mod routing;
mod row_tiles;
mod simd;
pub mod square_sum;
pub mod thread_products;
mod unwritten;

pub use panel_product::Products;
