//! Checkpoints: a folder that holds everything a run needs to go on, bit for bit.
//!
//! | file | holds |
//! |---|---|
//! | `model.safetensors` | parameters, under their paths in the model |
//! | `optimizer.safetensors` | both AdamW moments of each |
//! | `state.json` | [`TrainingState`]: step, data cursor, counters, random-number state |
//! | `config.toml`, `plan.json` | the configuration as resolved, and what it resolved to |
//! | `tokenizer.json` | the tokenizer, so that the checkpoint generates text on its own |
//! | `manifest.json` | size and SHA-256 of each of these |

mod manifest;
mod store;
mod tensors;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use switchyard_datasets::{Dataset, Tokenizer};

pub use manifest::{CheckpointManifest, FileRecord, MANIFEST_FILE};
pub(crate) use store::steps_in;
pub use store::{CheckpointStore, find_checkpoint};

use crate::config::RunConfig;
use crate::flight::FlightState;
use crate::model::Transformer;
use crate::optimizer::AdamW;
use crate::parameters::{parameter_data, update_parameters};
use crate::plan::RunPlan;

const MODEL_FILE: &str = "model.safetensors";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const STATE_FILE: &str = "state.json";
const CONFIG_FILE: &str = "config.toml";
const PLAN_FILE: &str = "plan.json";
const TOKENIZER_FILE: &str = "tokenizer.json";

/// A checkpoint that cannot be written, read or used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Nothing of ours.
    #[error(
        "{path}: not a checkpoint: {reason}. Name a run folder, or a folder `step-<n>` of its `checkpoints`"
    )]
    NotACheckpoint {
        /// Path as given.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// Not what was written.
    #[error(
        "{path}: the checkpoint is damaged: {reason}. Remove the folder {folder} to go on from the checkpoint before it"
    )]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// The checkpoint's folder.
        folder: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Of another version of the program.
    #[error(
        "{path}: the checkpoint has format version {found}, this program reads version {supported}: use the \
             version of switchyard that wrote it"
    )]
    FormatVersion {
        /// The checkpoint's folder.
        path: PathBuf,
        /// Version found.
        found: u32,
        /// Version supported.
        supported: u32,
    },
    /// Of another run.
    #[error("{path}: the checkpoint belongs to another run: {reason}")]
    Mismatch {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// Not worth keeping.
    #[error(
        "{path}: not written, because `{parameter}` is not finite: the run has diverged. Earlier checkpoints are \
             intact; start a new run with a lower `train.adamw.learning_rate`, or with `train.max_grad_norm` set"
    )]
    NonFinite {
        /// Where it was to go.
        path: PathBuf,
        /// The first parameter or moment with a NaN or an infinity.
        parameter: String,
    },
    /// Could not be written.
    #[error(
        "{path}: cannot write the checkpoint: {reason}. Earlier checkpoints are intact; free space or fix the \
             permissions, then start again with --resume"
    )]
    Write {
        /// Where it was to go.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
}

impl CheckpointError {
    fn damaged(path: &Path, reason: String) -> Self {
        Self::Damaged { path: path.into(), folder: path.parent().unwrap_or(path).into(), reason }
    }

    fn write(path: &Path, error: &io::Error) -> Self {
        Self::Write { path: path.into(), reason: error.to_string() }
    }
}

/// Where a run is, apart from parameters and moments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingState {
    /// Updates done.
    pub step: u64,
    /// Training tokens seen.
    pub tokens_seen: u64,
    /// Index of the next training sample.
    pub data_cursor: u64,
    /// Content hash of the prepared data.
    pub data_hash: String,
    /// Active training FLOPs spent.
    pub active_flops: f64,
    /// Seconds spent training, over all processes of the run.
    pub train_secs: f64,
    /// State of the random numbers.
    pub rng: RngState,
    /// Best evaluation so far, as early stopping counts it.
    pub best: Option<LoggedEvaluation>,
    /// Best evaluation after which a checkpoint was written, which stays on disk.
    pub best_checkpoint: Option<LoggedEvaluation>,
    /// Latest evaluation between steps, if it covered the whole split: at the end of the run it need not be repeated.
    pub whole_split: Option<LoggedEvaluation>,
    /// Evaluations in a row without improvement, for early stopping.
    pub evals_without_improvement: u32,
    /// What the flight recorder remembers; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flight: Option<FlightState>,
}

impl TrainingState {
    /// The state of a run that has done nothing.
    pub fn initial(seed: u64, data_hash: &str) -> Self {
        Self {
            step: 0,
            tokens_seen: 0,
            data_cursor: 0,
            data_hash: data_hash.to_string(),
            active_flops: 0.0,
            train_secs: 0.0,
            rng: RngState { seed, next_step: 0 },
            best: None,
            best_checkpoint: None,
            whole_split: None,
            evals_without_improvement: 0,
            flight: None,
        }
    }
}

/// State of the random numbers: each is a pure function of the seed, the step and its place in the model, so these two
/// numbers are all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {
    /// Seed of the run.
    pub seed: u64,
    /// Step whose numbers come next, counted from 0.
    pub next_step: u64,
}

/// The counters of the checkpoint in `folder`, without its tensors.
///
/// # Errors
/// As [`Checkpoint::read`].
pub fn read_state(folder: &Path) -> Result<TrainingState, CheckpointError> {
    let manifest = CheckpointManifest::read(folder)?;
    serde_json::from_slice(&manifest.read_file(folder, STATE_FILE)?)
        .map_err(|error| CheckpointError::damaged(&folder.join(STATE_FILE), error.to_string()))
}

/// An evaluation between steps, as the log has it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LoggedEvaluation {
    /// Updates done.
    pub step: u64,
    /// Validation cross-entropy, in nats.
    pub cross_entropy_nats: f64,
}

/// Everything that a checkpoint is written from.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot<'a> {
    /// The network.
    pub model: &'a Transformer,
    /// The optimizer with its moments.
    pub optimizer: &'a AdamW,
    /// Counters.
    pub state: &'a TrainingState,
    /// The configuration.
    pub config: &'a RunConfig,
    /// The plan.
    pub plan: &'a RunPlan,
    /// The tokenizer.
    pub tokenizer: &'a Tokenizer,
}

impl Snapshot<'_> {
    fn files(&self, path: &Path) -> Result<Vec<(&'static str, Vec<u8>)>, CheckpointError> {
        let json = |value: serde_json::Result<Vec<u8>>| {
            value.map_err(|error| CheckpointError::write(path, &io::Error::other(error)))
        };
        let (parameters, moments) = (parameter_data(self.model), self.optimizer.moments_data());
        if let Some(bad) = parameters.iter().chain(&moments).find(|tensor| !is_finite(&tensor.value)) {
            return Err(CheckpointError::NonFinite { path: path.into(), parameter: bad.path.clone() });
        }
        Ok(vec![
            (MODEL_FILE, tensors::serialize(path, &parameters)?),
            (OPTIMIZER_FILE, tensors::serialize(path, &moments)?),
            (STATE_FILE, json(serde_json::to_vec_pretty(self.state))?),
            (CONFIG_FILE, crate::config_file::to_toml(self.config).into_bytes()),
            (PLAN_FILE, json(serde_json::to_vec_pretty(self.plan))?),
            (TOKENIZER_FILE, self.tokenizer.to_json()),
        ])
    }
}

fn is_finite(data: &TensorData) -> bool {
    data.iter::<f32>().all(f32::is_finite)
}

/// A checkpoint read from disk, every file verified.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// Counters.
    pub state: TrainingState,
    /// The plan it was written under.
    pub plan: RunPlan,
    /// The configuration it was written under.
    pub config: RunConfig,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    parameters: BTreeMap<String, TensorData>,
    moments: BTreeMap<String, TensorData>,
}

impl Checkpoint {
    /// The checkpoint in `folder`.
    ///
    /// # Errors
    /// [`CheckpointError`] if it is no checkpoint, damaged, or of another version.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let manifest = CheckpointManifest::read(folder)?;
        let file = |name: &str| manifest.read_file(folder, name);
        let damaged = |name: &str, error: String| CheckpointError::damaged(&folder.join(name), error);
        let text =
            |name: &str| String::from_utf8(file(name)?).map_err(|error| damaged(name, error.to_string()));
        let tensors = |name: &str| tensors::deserialize(&folder.join(name), &file(name)?);
        let plan: RunPlan = serde_json::from_slice(&file(PLAN_FILE)?)
            .map_err(|error| damaged(PLAN_FILE, error.to_string()))?;
        let tokenizer = Tokenizer::from_json(file(TOKENIZER_FILE)?)
            .map_err(|problem| damaged(TOKENIZER_FILE, problem))?;
        Ok(Self {
            path: folder.into(),
            state: read_state(folder)?,
            config: toml::from_str(&text(CONFIG_FILE)?)
                .map_err(|error| damaged(CONFIG_FILE, error.to_string()))?,
            // A vocabulary with fewer merges than asked for still leaves the model its ids.
            tokenizer: tokenizer.with_vocab_size(plan.model.vocab_size),
            plan,
            parameters: tensors(MODEL_FILE)?,
            moments: tensors(OPTIMIZER_FILE)?,
        })
    }

    /// The network with this checkpoint's parameters, on `device`.
    ///
    /// # Errors
    /// [`CheckpointError::Mismatch`] if parameters are missing, left over or of another shape.
    pub fn model(&self, device: &Device) -> Result<Transformer, CheckpointError> {
        let mismatch = |reason: String| CheckpointError::Mismatch { path: self.path.clone(), reason };
        let mut unused = self.parameters.clone();
        let mut problem = None;
        let model = update_parameters(
            Transformer::new(&self.plan.model, self.config.seed, device),
            |path, shape, initial_n| match unused.remove(path) {
                Some(data) if data.shape().as_slice() == shape => {
                    let (bytes, _, dtype) = data.into_parts();
                    let flat = TensorData::from_bytes(bytes, initial_n.dims(), dtype);
                    Tensor::from_data(flat, &initial_n.device())
                }
                Some(data) => {
                    let found = data.shape().as_slice();
                    problem.get_or_insert(format!("`{path}` has shape {found:?}, the model needs {shape:?}"));
                    initial_n
                }
                None => {
                    problem.get_or_insert(format!("`{path}` is missing"));
                    initial_n
                }
            },
        );
        match (problem, unused.keys().next()) {
            (Some(reason), _) => Err(mismatch(reason)),
            (None, Some(path)) => Err(mismatch(format!("`{path}` is no parameter of the model"))),
            (None, None) => Ok(model),
        }
    }

    /// The parameters by their paths.
    pub fn parameters(&self) -> &BTreeMap<String, TensorData> {
        &self.parameters
    }

    /// Ok if `dataset` is what this checkpoint was trained on.
    ///
    /// # Errors
    /// [`CheckpointError::Mismatch`] if a source has changed since.
    pub fn check_data(&self, dataset: &Dataset) -> Result<(), CheckpointError> {
        let (then, now) = (&self.state.data_hash, &dataset.manifest.key);
        if then == now {
            return Ok(());
        }
        let reason = format!(
            "it was trained on data {then}, but `data` now gives {now}: a source file has changed since; restore it, \
             or start a new run"
        );
        Err(CheckpointError::Mismatch { path: self.path.clone(), reason })
    }

    /// The optimizer with this checkpoint's moments, on `device`.
    pub fn optimizer(&self, device: &Device) -> AdamW {
        AdamW::restore(&self.config.train.adamw, self.state.step, self.moments.clone(), device)
    }
}
