//! Each operation, forward and gradient, against loops in plain Rust that share no code with it.

mod grouped_matmul;
mod matrix;
mod permute;
