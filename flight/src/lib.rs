//! What the flight recorder leaves, read and judged: host code on plain numbers.
//!
//! | question | module |
//! |---|---|
//! | what large files are there, in which format | [`columns`] (Parquet) |
//! | which measures of one routing are worth keeping | [`probe`] |
//! | what is wrong now | [`alarms`] |
//! | which expert misbehaves since which step | [`diagnosis`] |
//! | where two runs part | [`divergence`] |
//! | what another capacity or `top_k` would have done | [`whatif`] |
//!
//! The recorder itself, which watches a run, is in `trainer`.

pub mod alarms;
pub mod columns;
pub mod diagnosis;
pub mod divergence;
mod history;
pub mod probe;
pub mod whatif;

pub use history::{LayerLoad, RunStep};
