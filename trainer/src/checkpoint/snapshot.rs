//! What a checkpoint is written from, and the writing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use switchyard_datasets::Tokenizer;
use switchyard_ground::durable;
use switchyard_model::{ModelState, ParameterTensor, StateTensor, Transformer, parameter_tensors};

use super::manifest::{FileRecord, HashingWriter};
use super::tensors::NamedTensor;
use super::{
    CONFIG_FILE, CheckpointManifest, MANIFEST_FILE, MODEL_FILE, OPTIMIZER_FILE, PLAN_FILE, RECURRENT_FILE,
    STATE_FILE, TOKENIZER_FILE, TrainingState, tensors,
};
use crate::config::RunConfig;
use crate::optimizer::Optimizer;
use crate::plan::RunPlan;

/// Everything that a checkpoint is written from.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot<'a> {
    /// The network.
    pub model: &'a Transformer,
    /// The optimizer with its moments.
    pub optimizer: &'a Optimizer,
    /// What a recurrent network carries to the next step; `None` if nothing is carried.
    pub carried: Option<&'a ModelState>,
    /// Counters.
    pub state: &'a TrainingState,
    /// The configuration.
    pub config: &'a RunConfig,
    /// The plan.
    pub plan: &'a RunPlan,
    /// The tokenizer.
    pub tokenizer: &'a Tokenizer,
}

/// The same, kept while the run goes on. Parameters and moments are those of the run, in the same
/// memory, until it updates them: then it takes new memory, and leaves this as it was.
#[derive(Debug, Clone)]
pub(crate) struct HeldSnapshot {
    pub(crate) model: Transformer,
    pub(crate) optimizer: Optimizer,
    pub(crate) carried: Option<ModelState>,
    pub(crate) state: TrainingState,
    pub(crate) config: Arc<RunConfig>,
    pub(crate) plan: Arc<RunPlan>,
    pub(crate) tokenizer: Arc<Tokenizer>,
}

impl HeldSnapshot {
    /// The step that it is of.
    pub(crate) fn step(&self) -> u64 {
        self.state.step
    }

    pub(super) fn view(&self) -> Snapshot<'_> {
        let Self { model, optimizer, carried, state, config, plan, tokenizer } = self;
        Snapshot { model, optimizer, carried: carried.as_ref(), state, config, plan, tokenizer }
    }
}

/// Why a folder was not written.
pub(super) enum NotWritten {
    /// The system's reason.
    Io(io::Error),
    /// This parameter or moment has a NaN or an infinity.
    NonFinite(String),
}

impl From<io::Error> for NotWritten {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Snapshot<'_> {
    /// Writes the new folder `folder`, every file of it and itself forced to the disk, its manifest
    /// last.
    pub(super) fn write(&self, folder: &Path) -> Result<(), NotWritten> {
        fs::create_dir(folder)?;
        let tensors = |name: &'static str, tensors: Vec<NamedTensor>| {
            write_hashed(folder, name, |out| tensors::write(tensors, out))
        };
        let file = |name: &'static str, bytes: Vec<u8>| {
            write_hashed(folder, name, |out| out.write_all(&bytes).map(|()| None))
        };
        let json = |value: serde_json::Result<Vec<u8>>| value.map_err(io::Error::other);
        let parameters = parameter_tensors(self.model).into_iter();
        let mut records = vec![
            tensors(MODEL_FILE, parameters.map(|it| (it.name.to_string(), it.value)).collect())?,
            tensors(OPTIMIZER_FILE, self.optimizer.moments())?,
            file(STATE_FILE, json(serde_json::to_vec_pretty(self.state))?)?,
            file(CONFIG_FILE, crate::config_file::to_toml(self.config).into_bytes())?,
            file(PLAN_FILE, json(serde_json::to_vec_pretty(self.plan))?)?,
            file(TOKENIZER_FILE, self.tokenizer.to_json())?,
        ];
        if let Some(carried) = self.carried {
            records.push(tensors(RECURRENT_FILE, state_tensors(carried))?);
        }
        let manifest = CheckpointManifest::new(self.state.step, BTreeMap::from_iter(records));
        let path = folder.join(MANIFEST_FILE);
        durable::write_synced(&path, &json(serde_json::to_vec_pretty(&manifest))?)?;
        Ok(durable::sync_parent(&path)?)
    }
}

fn state_tensors(state: &ModelState) -> Vec<NamedTensor> {
    let named = |part: StateTensor| {
        let shape = part.values_bw.dims().to_vec();
        (part.name, ParameterTensor { shape, values_n: part.values_bw.inner().flatten(0, 1), learns: false })
    };
    state.tensors().into_iter().map(named).collect()
}

/// Writes a file of `folder` by `write`, which returns the name of what is not finite, and hashes
/// it on the way.
fn write_hashed(
    folder: &Path,
    name: &str,
    write: impl FnOnce(&mut HashingWriter<&mut fs::File>) -> io::Result<Option<String>>,
) -> Result<(String, FileRecord), NotWritten> {
    let written = durable::write_synced_by(&folder.join(name), |file| {
        let mut out = HashingWriter::new(file);
        Ok(match write(&mut out)? {
            Some(parameter) => Err(parameter),
            None => Ok(out.finish()),
        })
    });
    match written? {
        Ok(record) => Ok((name.to_string(), record)),
        Err(parameter) => Err(NotWritten::NonFinite(parameter)),
    }
}
