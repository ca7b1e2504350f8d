//! The flight recorder: what every router did, kept so that it can be asked later which expert in which layer
//! misbehaves, and since when. Host code on plain numbers; nothing here reads a device or changes a model.
//!
//! | question | module |
//! |---|---|
//! | what is on disk, in which format | [`columns`] |
//! | which measures of one routing are worth keeping | [`probe`] |
//! | what is wrong now | [`alarms`] |
//! | which expert misbehaves since which step | [`diagnosis`] |
//! | where two runs part | [`divergence`] |
//! | what another capacity or `top_k` would have done | [`whatif`] |

pub mod alarms;
pub mod columns;
pub mod diagnosis;
pub mod divergence;
mod history;
pub mod probe;
pub mod whatif;

pub use history::{LayerLoad, RunStep};
