//! Laws of the network and of a whole run.

#![expect(clippy::unwrap_used, reason = "a test says what it expects by failing")]

mod counted_work;
#[cfg(feature = "wgpu")]
mod devices;
mod earlier_runs;
mod generation;
mod groups;
mod held_out;
mod keeping;
mod model;
mod moments;
mod muon;
mod padding;
mod parametrisation;
mod precision;
mod qk_clip;
mod ranks;
mod recompute;
mod recurrent;
mod resume;
mod router_overrides;
mod routers;
mod scores;
mod sources;
mod spikes;
mod tiny;
mod untrusted;
