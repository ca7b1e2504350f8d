//! A checkpoint read from disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, TensorData};
use serde::Deserialize;
use switchyard_datasets::{DataConfig, Dataset, Tokenizer, TokenizerConfig};
use switchyard_model::{
    ModelSpec, ModelState, ParameterName, Transformer, parameter_data, parameter_tensors, update_parameters,
};

use super::tensors::TensorFile;
use super::{
    CONFIG_FILE, CheckpointError, CheckpointManifest, MODEL_FILE, OPTIMIZER_FILE, PLAN_FILE, RECURRENT_FILE,
    STATE_FILE, TOKENIZER_FILE, TrainingState,
};
use crate::config::RunConfig;
use crate::moved_data::check_same_data;
use crate::optimizer::{Moments, Optimizer, moment_dtype, moment_names};
use crate::plan::RunPlan;

/// Far more than the state, the plan or the configuration of any run have.
const MAX_JSON_BYTES: u64 = 1 << 26;
/// A vocabulary of a million words has a tenth of it.
const MAX_TOKENIZER_BYTES: u64 = 1 << 30;

/// A checkpoint read from disk: all of it but the tensors, which are read when they are asked for.
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
    manifest: CheckpointManifest,
}

/// The part of `plan.json` that parameters depend on.
#[derive(Deserialize)]
struct WrittenPlan {
    model: serde_json::Value,
}

/// The counters of the checkpoint in `folder`, without its tensors.
///
/// # Errors
/// As [`Checkpoint::read`].
pub fn read_state(folder: &Path) -> Result<TrainingState, CheckpointError> {
    state_of(folder, &CheckpointManifest::read(folder)?)
}

fn state_of(folder: &Path, manifest: &CheckpointManifest) -> Result<TrainingState, CheckpointError> {
    let damaged = |reason: String| CheckpointError::damaged(&folder.join(STATE_FILE), reason);
    let state: TrainingState =
        serde_json::from_slice(&manifest.read_file(folder, STATE_FILE, MAX_JSON_BYTES)?)
            .map_err(|error| damaged(error.to_string()))?;
    if state.step != manifest.step {
        return Err(damaged(format!("it is of step {}, the manifest of step {}", state.step, manifest.step)));
    }
    Ok(state)
}

impl Checkpoint {
    /// The checkpoint in `folder`. Its plan is made anew from its configuration: what `plan.json`
    /// says of the model has to agree.
    ///
    /// # Errors
    /// [`CheckpointError`] if it is no checkpoint, damaged, of another version, or cannot be read
    /// just now.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let manifest = CheckpointManifest::read(folder)?;
        let damaged = |name: &str, error: String| CheckpointError::damaged(&folder.join(name), error);
        let file = |name: &str| manifest.read_file(folder, name, MAX_JSON_BYTES);
        let text =
            String::from_utf8(file(CONFIG_FILE)?).map_err(|error| damaged(CONFIG_FILE, error.to_string()))?;
        let config: RunConfig =
            toml::from_str(&text).map_err(|error| damaged(CONFIG_FILE, error.to_string()))?;
        let written: WrittenPlan = serde_json::from_slice(&file(PLAN_FILE)?)
            .map_err(|error| damaged(PLAN_FILE, error.to_string()))?;
        let tokenizer =
            Tokenizer::from_json(manifest.read_file(folder, TOKENIZER_FILE, MAX_TOKENIZER_BYTES)?)
                .map_err(|problem| damaged(TOKENIZER_FILE, problem))?;
        let plan = plan_of(folder, &config).map_err(|problem| damaged(CONFIG_FILE, problem))?;
        // Older checkpoints describe it in other words, and the names and shapes of their tensors
        // say enough.
        if manifest.describes_layers()
            && serde_json::from_value::<ModelSpec>(written.model).ok().as_ref() != Some(&plan.model)
        {
            return Err(damaged(PLAN_FILE, format!("its `model` is not what `{CONFIG_FILE}` gives")));
        }
        let (num_ids, num_rows) = (tokenizer.vocab_size(), plan.model.vocab_size);
        if num_ids > num_rows {
            return Err(damaged(TOKENIZER_FILE, format!("it has {num_ids} ids, the model {num_rows}")));
        }
        let state = state_of(folder, &manifest)?;
        Ok(Self {
            path: folder.into(),
            state,
            config,
            // A vocabulary with fewer merges than asked for still leaves the model its ids.
            tokenizer: tokenizer.with_vocab_size(plan.model.vocab_size),
            plan,
            manifest,
        })
    }

    /// The network with this checkpoint's parameters, on `device`. They are read one at a time,
    /// after their names and shapes are known to be those of the model.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] if parameters are missing, left over, of another shape, or no
    /// finite numbers; [`CheckpointError::Unreadable`].
    pub fn model(&self, device: &Device) -> Result<Transformer, CheckpointError> {
        let mut file = self.tensors(MODEL_FILE)?;
        let (found, needed) = (file.num_elements(), self.plan.counts.total_params);
        // Before the model is made: a configuration may ask for more memory than there is.
        if found < needed {
            let reason = format!("it has {found} parameters, the model needs {needed}");
            return Err(self.damaged(MODEL_FILE, reason));
        }
        let initial = Transformer::new(&self.plan.model, self.config.seed, device);
        let mut wanted: BTreeMap<String, Vec<usize>> = parameter_tensors(&initial)
            .into_iter()
            .map(|parameter| (self.manifest.name_of(parameter.name), parameter.value.shape))
            .collect();
        for (path, found) in file.shapes() {
            match wanted.remove(path) {
                Some(wanted) if wanted == found => {}
                Some(wanted) => {
                    let reason = format!("`{path}` has shape {found:?}, the model needs {wanted:?}");
                    return Err(self.damaged(MODEL_FILE, reason));
                }
                None => {
                    return Err(self.damaged(MODEL_FILE, format!("`{path}` is no parameter of the model")));
                }
            }
        }
        if let Some(path) = wanted.keys().next() {
            return Err(self.damaged(MODEL_FILE, format!("`{path}` is missing")));
        }
        let mut problem = None;
        let model = update_parameters(initial, |name, _, initial_n| {
            match file.read(&self.manifest.name_of(name), DType::F32, &initial_n.device()) {
                _ if problem.is_some() => initial_n,
                Ok(values_n) => values_n,
                Err(error) => {
                    problem = Some(error);
                    initial_n
                }
            }
        });
        problem.map_or(Ok(model), Err)
    }

    /// The parameters by their names.
    ///
    /// # Errors
    /// As [`Checkpoint::model`].
    pub fn parameters(&self) -> Result<BTreeMap<ParameterName, TensorData>, CheckpointError> {
        let model = self.model(&Device::flex())?;
        Ok(parameter_data(&model).into_iter().map(|parameter| (parameter.name, parameter.value)).collect())
    }

    /// The optimizer with this checkpoint's moments, for training to go on with `model`, whose
    /// parameters that get gradients must all have theirs, from counters that are known to be
    /// right.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] if moments are missing, left over, of another size, or no
    /// finite numbers, or counters do not agree; [`CheckpointError::Unreadable`].
    pub fn optimizer(&self, model: &Transformer) -> Result<Optimizer, CheckpointError> {
        let counted = self.state.check(&self.config, &self.plan);
        counted.map_err(|problem| self.damaged(STATE_FILE, problem))?;
        let train = &self.config.train;
        let mut file = self.tensors(OPTIMIZER_FILE)?;
        let damaged = |reason: String| self.damaged(OPTIMIZER_FILE, reason);
        let sizes: BTreeMap<String, Vec<usize>> =
            file.shapes().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect();
        let mut unused: Vec<&String> = sizes.keys().collect();
        let mut moments = BTreeMap::new();
        for parameter in parameter_tensors(model) {
            let prefixes = moment_names(train.muon.as_ref(), parameter.name.role).iter();
            let names: Vec<String> = prefixes
                .map(|prefix| format!("{prefix}.{}", self.manifest.name_of(parameter.name)))
                .collect();
            let wanted = parameter.value.shape.iter().product::<usize>();
            let found = names.iter().filter_map(|name| sizes.get(name)).collect::<Vec<_>>();
            if found.is_empty() && (self.state.step == 0 || !parameter.value.learns) {
                continue;
            }
            if found.len() < names.len() {
                return Err(damaged(format!("a moment of `{}` is missing", parameter.name)));
            }
            if let Some(shape) = found.iter().find(|shape| ***shape != [wanted]) {
                let reason = format!("a moment of `{}` has shape {shape:?}, not [{wanted}]", parameter.name);
                return Err(damaged(reason));
            }
            unused.retain(|name| !names.contains(name));
            let dtype = moment_dtype(&train.adamw, train.muon.as_ref(), parameter.name.role);
            let device = parameter.value.values_n.device();
            let tensors = names.iter().map(|name| file.read(name, dtype, &device));
            moments.insert(parameter.name, tensors.collect::<Result<Moments, _>>()?);
        }
        if let Some(name) = unused.first() {
            return Err(damaged(format!("`{name}` is no moment of a parameter of the model")));
        }
        Ok(Optimizer::restore((train, &self.plan.model), self.state.updates(), moments))
    }

    /// The state that a recurrent network carries to the next step, on `device`; `None` where none is
    /// carried, and before the first step.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] if tensors are missing, left over, of another shape, or no finite
    /// numbers; [`CheckpointError::Unreadable`].
    pub fn carried_state(&self, device: &Device) -> Result<Option<ModelState>, CheckpointError> {
        let damaged = |reason: String| Err(self.damaged(RECURRENT_FILE, reason));
        let is_there = self.manifest.files.contains_key(RECURRENT_FILE);
        match (is_there, self.plan.carries_state && self.state.step > 0) {
            (false, false) => return Ok(None),
            (true, false) => return damaged("the run carries no state".into()),
            (_, true) => {}
        }
        let mut file = self.tensors(RECURRENT_FILE)?;
        let num_sequences = self.plan.sequences_per_step();
        let parts = self.plan.model.state_parts();
        let mut wanted: BTreeMap<&str, usize> =
            parts.iter().map(|(name, width)| (name.as_str(), *width)).collect();
        for (name, shape) in file.shapes() {
            match wanted.remove(name) {
                Some(width) if [num_sequences, width] == shape => {}
                Some(width) => {
                    let wanted = [num_sequences, width];
                    return damaged(format!("`{name}` has shape {shape:?}, the run needs {wanted:?}"));
                }
                None => return damaged(format!("`{name}` is no part of the model's state")),
            }
        }
        if let Some(name) = wanted.keys().next() {
            return damaged(format!("`{name}` is missing"));
        }
        let part = |(name, width): &(String, usize)| {
            Ok(file.read(name, DType::F32, device)?.reshape([num_sequences, *width]))
        };
        let values = parts.iter().map(part).collect::<Result<_, CheckpointError>>()?;
        Ok(Some(self.plan.model.state_of(values)))
    }

    /// Ok if `dataset` is what this checkpoint was trained on.
    ///
    /// # Errors
    /// [`CheckpointError::Mismatch`] if a source has changed since.
    pub fn check_data(&self, dataset: &Dataset) -> Result<(), CheckpointError> {
        self.check_data_of(&self.config.data, dataset)
    }

    /// As [`Checkpoint::check_data`], where `dataset` is what `data` gives, which may have other
    /// paths than the checkpoint's own configuration.
    ///
    /// # Errors
    /// [`CheckpointError::Mismatch`] with the path and both content keys.
    pub fn check_data_of(&self, data: &DataConfig, dataset: &Dataset) -> Result<(), CheckpointError> {
        check_same_data(&self.path, &self.state.data_hash, data, dataset)
    }

    /// The tensors in file `name`, whose bytes are known to be what was written.
    fn tensors(&self, name: &str) -> Result<TensorFile, CheckpointError> {
        TensorFile::open(&self.path.join(name), self.manifest.open_verified(&self.path, name)?)
    }

    fn damaged(&self, name: &str, reason: String) -> CheckpointError {
        CheckpointError::damaged(&self.path.join(name), reason)
    }
}

/// The plan of the configuration in `folder`, whose tokenizer lies beside it, wherever that came
/// from.
fn plan_of(folder: &Path, config: &RunConfig) -> Result<RunPlan, String> {
    let mut config = config.clone();
    if let Some(TokenizerConfig::File(file)) = &mut config.data.tokenizer {
        file.path = folder.join(TOKENIZER_FILE);
    }
    RunPlan::resolve(&config).map_err(|error| error.to_string())
}
