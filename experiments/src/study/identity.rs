//! What tells a run from every other: its configuration, its data and the code that trained it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use switchyard_datasets::{DataConfig, DatasetError, Progress, SourceConfig, TokenizerConfig, prepare};
use switchyard_ground::digest::sha256_hex;
use switchyard_trainer::TrainError;
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::config_file::config_hash;
use switchyard_trainer::host::training_code_sha256;
use switchyard_trainer::moved_data::with_missing_path;

use super::arms::Arm;
use super::result::HeldEqual;
use crate::failure::Failure;

/// The code that trains, in the program that is running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CodeIdentity(String);

impl CodeIdentity {
    /// That of this process: see [`training_code_sha256`].
    pub(crate) fn of_this_program() -> Self {
        Self(training_code_sha256().into())
    }
}

/// Identities of prepared corpora, each prepared once.
#[derive(Debug)]
pub(crate) struct DataIdentities {
    known: HashMap<String, String>,
    progress: Progress,
}

impl DataIdentities {
    /// None yet; what is prepared is given up once `stop` is set.
    pub(crate) fn new(stop: &Arc<AtomicBool>) -> Self {
        Self { known: HashMap::new(), progress: Progress::stderr().with_stop(stop.clone()) }
    }

    /// The hash of the tokens that `data` describes: of the source's content, the tokenizer and the
    /// split.
    ///
    /// # Errors
    /// As for a run.
    pub(crate) fn of(&mut self, data: &DataConfig) -> Result<String, Failure> {
        let written = serde_json::to_string(data)?;
        if let Some(known) = self.known.get(&written) {
            return Ok(known.clone());
        }
        let key = prepare(data, &self.progress).map_err(|error| with_advice(error, data))?.manifest.key;
        self.known.insert(written, key.clone());
        Ok(key)
    }
}

/// `error`; if a path of `data` is missing, with where a study says that it lies elsewhere.
fn with_advice(error: DatasetError, data: &DataConfig) -> Failure {
    match with_missing_path(error.into(), data) {
        TrainError::MissingData { source, place, key } => Failure::Mistake(format!(
            "{source}. {place}If it lies elsewhere now, write that into `{key}` of the recipe, or into the `set` of a study: runs \
             that were done on the same content count on"
        )),
        other => other.into(),
    }
}

/// The identity of a run. Where its data lies and where it is cached decides nothing: `data` stands
/// for the content.
pub(crate) fn run_identity(config: &RunConfig, data: &str, code: &CodeIdentity) -> String {
    sha256_hex([placeless_hash(config).as_str(), data, code.0.as_str()].join(" "))
}

/// Tells measurements of these arms by this program, for what is held equal, from any other. They are
/// kept, because they decide what the runs of a study are, and one that is continued must not change
/// its mind.
pub(super) fn hash_of_arms(arms: &[Arm], held_equal: HeldEqual, code: &CodeIdentity) -> String {
    let arms = arms.iter().map(|arm| format!("{} {}", arm.label, placeless_hash(&arm.config)));
    let lines: Vec<String> = arms.chain([format!("{held_equal:?}"), code.0.clone()]).collect();
    sha256_hex(lines.join("\n"))
}

/// Removes the paths that `source` is read from.
fn clear_places(source: &mut SourceConfig) {
    match source {
        SourceConfig::Text(text) => text.path = PathBuf::new(),
        SourceConfig::Tokens(tokens) => {
            tokens.train = PathBuf::new();
            tokens.validation = tokens.validation.as_ref().map(|_| PathBuf::new());
            tokens.test = tokens.test.as_ref().map(|_| PathBuf::new());
        }
        SourceConfig::Mixture(sources) => {
            sources.iter_mut().for_each(|source| clear_places(&mut source.source))
        }
        SourceConfig::Crates(_) | SourceConfig::Synthetic(_) => {}
    }
}

/// The hash of `config` without the places of its data.
pub(super) fn placeless_hash(config: &RunConfig) -> String {
    let mut config = config.clone();
    config.data.cache_dir = None;
    clear_places(&mut config.data.source);
    if let Some(TokenizerConfig::File(file)) = &mut config.data.tokenizer {
        file.path = PathBuf::new();
    }
    config_hash(&config)
}
