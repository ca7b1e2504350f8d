//! Experts over ranks against all experts in one process, bit for bit.

mod case;
mod laws;
mod ranks;
