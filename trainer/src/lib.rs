//! A run: from a configuration file to a trained Transformer, with its logs and checkpoints.
//!
//! | question | module |
//! |---|---|
//! | what did the user write | [`config`], read by [`config_file`] |
//! | what will happen | [`plan`], with its arithmetic in [`schedule`] |
//! | the network | the crate `model` |
//! | one step | [`step`]: [`batch`], [`loss`], [`optimizer`]; which steps are not taken, [`spikes`] |
//! | what a run begins with, and what it trains how | [`config::StartConfig`], [`config::ParameterGroupConfig`] |
//! | how likely given text is, and which of some answers | [`token_scores`], [`choices`] |
//! | the mean of several checkpoints | [`average`] |
//! | the run around the steps | [`train`], [`evaluate`], [`generate`], [`completion`] |
//! | a dense model made the beginning of a mixture | [`upcycle`] |
//! | a published model made a network, held to its reference, and the way back | [`import`], [`parity`], [`export`] |
//! | what is on disk | [`run_folder`], [`checkpoint`], [`metrics`] |
//! | where the data lies, if it has moved | [`moved_data`] |
//! | what every expert did, and what went wrong since when | [`flight`] |
//! | where it runs, and what that takes | [`device`], [`host`], [`available_memory`], [`throughput`], [`energy`] |
//! | how large activations are after a few steps | [`coordinates`] |
//! | how fast it runs | [`benchmark`] |
//! | the same run on several ranks | `ranks`, and who updates what, `sharding` |

pub mod available_memory;
pub mod average;
mod balancing_bound;
pub mod batch;
pub mod benchmark;
pub mod checkpoint;
pub mod choices;
pub mod completion;
pub mod config;
pub mod config_file;
pub mod coordinates;
pub mod device;
pub mod energy;
mod error;
pub mod evaluate;
pub mod export;
pub mod flight;
pub mod generate;
pub mod host;
pub mod import;
pub mod loss;
pub mod memory;
pub mod metrics;
mod model_ids;
pub mod moved_data;
mod moving_parts;
pub mod norms;
mod observers;
pub mod optimizer;
mod parameter_groups;
pub mod parity;
pub mod plan;
pub mod products;
mod provenance;
mod qk_clip;
mod ranks;
mod readings;
mod replaceable;
mod resume;
mod routed_pass;
pub mod run_folder;
pub mod sampling;
pub mod schedule;
mod sharding;
pub mod spikes;
mod start;
pub mod step;
mod step_zero;
pub mod throughput;
pub mod token_scores;
pub mod train;
pub mod upcycle;

pub use error::TrainError;
pub use ranks::{RankForecast, RanksForecast, TokenForecast};
pub use readings::DeviceReadError;
pub use sharding::StepTraffic;
