//! The mixture-of-experts layer against a slow oracle, against the dense block, and against itself.

mod case;
mod dense_law;
mod dropping;
mod oracle;
mod oracle_parity;
mod repeatability;
mod selections;
mod soft_mixing;
