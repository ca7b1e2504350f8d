//! The hot differentiable operations, as functions on burn tensors.
//!
//! One operation is one file. Each is a backend extension: a trait whose default bodies are made of stock tensor
//! operations, so that it works on every backend and is the reference, and a hand-written backward. A faster body
//! for one backend overrides the default and touches nothing above this crate.

mod activation;
mod adamw;
mod attention;
mod cross_entropy;
mod exp;
mod grouped_matmul;
mod heads;
mod matrix;
mod norm;
mod permute;
mod rotary;
mod simd;
mod slices;
mod tiles;

pub use activation::{gelu, gelu_tanh, swiglu};
pub use adamw::{AdamWState, AdamWStep, adamw_update};
pub use attention::{CausalMask, causal_attention};
pub use cross_entropy::cross_entropy;
pub use grouped_matmul::{Groups, grouped_matmul};
pub use norm::{layer_norm, rms_norm};
pub use permute::{SlotMap, combine_rows, gather_rows};
pub use rotary::RotaryTable;
