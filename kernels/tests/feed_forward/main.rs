//! Feed-forward blocks, forward and gradient, against loops in plain f64 that share no code with
//! them.

mod case;
mod laws;
mod oracle;
mod tensors;
