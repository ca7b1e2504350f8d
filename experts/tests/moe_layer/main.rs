//! The mixture-of-experts layer against a slow oracle, against the dense block, and against itself.

#![expect(clippy::unwrap_used, reason = "functions of a test fail as the test does")]

mod case;
mod dense_law;
mod dropping;
mod oracle;
mod oracle_parity;
mod over_ranks;
#[path = "../../../kernels/tests/expert_parallel/ranks.rs"]
mod ranks;
mod repeatability;
mod selections;
mod soft_mixing;
