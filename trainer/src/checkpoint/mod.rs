//! Checkpoints: a folder that holds everything a run needs to go on, bit for bit.
//!
//! | file | holds |
//! |---|---|
//! | `model.safetensors` | parameters, under their paths in the model |
//! | `optimizer.safetensors` | both AdamW moments of each, or Muon's momentum |
//! | `recurrent.safetensors` | the state that a recurrent model carries to the next step; only where one is carried |
//! | `state.json` | [`TrainingState`]: step, data cursor, counters, random-number state, what the log holds |
//! | `config.toml`, `plan.json` | the configuration as resolved, and what it resolved to |
//! | `tokenizer.json` | the tokenizer, so that the checkpoint generates text on its own |
//! | `manifest.json` | size and SHA-256 of each of these |
//!
//! Tensors are written and read one at a time. A checkpoint that is written while the run goes on
//! keeps the weights and moments of its step in memory until it is written.

mod error;
mod manifest;
mod reading;
mod snapshot;
mod state;
mod step_name;
mod store;
mod tensors;
mod writer;

pub use error::CheckpointError;
pub use manifest::{CheckpointManifest, FileRecord, MANIFEST_FILE};
pub use reading::{Checkpoint, read_state};
pub(crate) use snapshot::HeldSnapshot;
pub use snapshot::Snapshot;
pub use state::{LoggedEvaluation, RngState, TrainingState};
pub use step_name::step_name;
pub(crate) use step_name::step_of;
pub use store::{CheckpointStore, LATEST, find_checkpoint, steps_in};
pub(crate) use store::{is_temporary, remove_checkpoint_files};
pub(crate) use writer::{CheckpointWriter, Outcome};

const MODEL_FILE: &str = "model.safetensors";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const RECURRENT_FILE: &str = "recurrent.safetensors";
const STATE_FILE: &str = "state.json";
const CONFIG_FILE: &str = "config.toml";
const PLAN_FILE: &str = "plan.json";
const TOKENIZER_FILE: &str = "tokenizer.json";

/// The files that a manifest may list.
const FILES: [&str; 7] =
    [MODEL_FILE, OPTIMIZER_FILE, RECURRENT_FILE, STATE_FILE, CONFIG_FILE, PLAN_FILE, TOKENIZER_FILE];
