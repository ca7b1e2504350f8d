//! Data that lies elsewhere than when its run was trained.
//!
//! A path says where the data is, its content hash what it is: whoever uses a run may change the
//! one, and the other decides whether it is still the run's data.

use std::io::ErrorKind;
use std::path::Path;

use switchyard_datasets::{DataConfig, Dataset, DatasetError, Progress, SourceConfig, TokenizerConfig};

use crate::TrainError;
use crate::checkpoint::CheckpointError;
use crate::config::RunConfig;
use crate::config_file::{self, ConfigError, Override};

/// The keys whose values are paths of data.
pub const DATA_PATH_KEYS: [&str; 5] = [
    "data.text.path",
    "data.tokens.train",
    "data.tokens.validation",
    "data.tokens.test",
    "data.tokenizer.file.path",
];

/// Keys that say where else something is, or on what it is computed.
const OTHER_PLACES: [&str; 3] = ["data.cache_dir", "device", "threads"];

/// All keys that may always change.
fn places() -> impl Iterator<Item = &'static str> {
    DATA_PATH_KEYS.into_iter().chain(OTHER_PLACES)
}

/// What may change about a run that is used and not trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MayChange {
    /// Where its data lies, and what computes.
    Places,
    /// Also what its data is.
    Data,
}

/// The configuration of the run that was read from `path`, changed by `overrides`.
///
/// # Errors
/// A key that may not change, a mistake in a value.
pub fn changed_config(
    config: &RunConfig,
    path: &Path,
    overrides: &[Override],
    may_change: MayChange,
) -> Result<RunConfig, ConfigError> {
    let is_allowed =
        |key: &str| places().any(|place| place == key) || may_change == MayChange::Data && is_of_data(key);
    if let Some(refused) = overrides.iter().find(|given| !is_allowed(given.key())) {
        let hint = match may_change {
            MayChange::Places if is_of_data(refused.key()) => {
                ". Other data than the run's is evaluated by `switchyard eval --other-data`"
            }
            MayChange::Places | MayChange::Data => "",
        };
        let trained = || {
            let (key, places) = (refused.key(), places().collect::<Vec<_>>().join(", "));
            format!("`{key}` is part of what was trained and cannot be changed here: use {places}{hint}")
        };
        let message = config_file::check_known(refused.key()).err().unwrap_or_else(trained);
        return Err(ConfigError::Invalid { location: refused.to_string(), message });
    }
    let changed = config_file::change(config, path, overrides)?;
    let location = || overrides.last().map_or_else(|| path.display().to_string(), ToString::to_string);
    if changed.data.source.is_of_ids() && !config.data.source.is_of_ids() {
        let message =
            "the model was trained on text: ids of `data.tokens` or `data.synthetic` mean nothing to it";
        return Err(ConfigError::Invalid { location: location(), message: message.into() });
    }
    changed.data.validate().map_err(|error| ConfigError::Invalid {
        location: location(),
        message: error.under("data").to_string(),
    })?;
    Ok(changed)
}

/// Whether `key` says what the data is. The tokenizer is the model's: its ids mean nothing to
/// another one.
fn is_of_data(key: &str) -> bool {
    key.starts_with("data.") && !key.starts_with("data.tokenizer")
}

/// The paths that `data` is read from, and their keys.
fn data_paths(data: &DataConfig) -> Vec<(&'static str, &Path)> {
    let mut paths = source_paths(&data.source);
    if let Some(TokenizerConfig::File(file)) = &data.tokenizer {
        paths.push(("data.tokenizer.file.path", file.path.as_path()));
    }
    paths
}

/// The paths that `source` is read from, and their keys; those of a mixture are all in one array.
fn source_paths(source: &SourceConfig) -> Vec<(&'static str, &Path)> {
    match source {
        SourceConfig::Text(text) => vec![("data.text.path", text.path.as_path())],
        SourceConfig::Tokens(tokens) => {
            let train = [("data.tokens.train", tokens.train.as_path())];
            let validation = tokens.validation.as_deref().map(|path| ("data.tokens.validation", path));
            let test = tokens.test.as_deref().map(|path| ("data.tokens.test", path));
            train.into_iter().chain(validation).chain(test).collect()
        }
        SourceConfig::Mixture(sources) => {
            let paths = sources.iter().flat_map(|source| source_paths(&source.source));
            paths.map(|(_, path)| ("data.sources", path)).collect()
        }
        SourceConfig::Crates(_) | SourceConfig::Synthetic(_) => Vec::new(),
    }
}

/// The paths of `data` as a message names them.
pub(crate) fn data_path_words(data: &DataConfig) -> String {
    let words: Vec<String> =
        data_paths(data).iter().map(|(key, path)| format!("`{key}` = `{}`", path.display())).collect();
    if words.is_empty() { "`data`".into() } else { words.join(" and ") }
}

/// The corpus that `data` describes, as [`switchyard_datasets::prepare`]; a path where nothing lies
/// is an error that says how to name another.
///
/// # Errors
/// [`TrainError::MissingData`], [`TrainError::Data`].
pub fn prepare(data: &DataConfig, progress: &Progress) -> Result<Dataset, TrainError> {
    switchyard_datasets::prepare(data, progress).map_err(|error| with_missing_path(error.into(), data))
}

/// `error`; if it is that a path of `data` is missing, with where it was looked for and how to say
/// where it is.
pub fn with_missing_path(error: TrainError, data: &DataConfig) -> TrainError {
    let TrainError::Data(source) = error else { return error };
    let missing = match &source {
        DatasetError::Io { path, source, .. } if source.kind() == ErrorKind::NotFound => {
            data_paths(data).into_iter().find(|(_, configured)| configured == path)
        }
        _ => None,
    };
    let Some((key, path)) = missing else { return TrainError::Data(source) };
    let place = match std::env::current_dir() {
        Ok(here) if path.is_relative() => format!("It was looked for from the folder `{}`. ", here.display()),
        _ => String::new(),
    };
    TrainError::MissingData { source, place, key }
}

/// Ok if `dataset`, which was read as `data` says, has the content hash `then` of what the run or
/// the checkpoint in `owner` was trained on.
///
/// # Errors
/// [`CheckpointError::Mismatch`] with both content hashes, and with the paths.
pub fn check_same_data(
    owner: &Path,
    then: &str,
    data: &DataConfig,
    dataset: &Dataset,
) -> Result<(), CheckpointError> {
    let now = &dataset.manifest.key;
    if then == now {
        return Ok(());
    }
    let place = data_path_words(data);
    let key = data_paths(data).first().map_or("data.text.path", |(key, _)| *key);
    let reason = match then {
        "" => "it is an imported model and was trained on no data here: begin a run from it with `[start]`, or measure \
               it with `eval --other-data`"
            .to_owned(),
        _ => format!(
            "it was trained on data {then}, but {place} gives {now}: the content has changed, or it is another file. Name \
             the run's data with `--set`, as in `--set {key}=PATH`"
        ),
    };
    Err(CheckpointError::Mismatch { path: owner.into(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_path_says_where_it_was_looked_for_and_how_to_name_another() {
        let data: DataConfig = toml::from_str("text.path = \"no such corpus.txt\"").unwrap();
        let message = prepare(&data, &Progress::silent()).unwrap_err().to_string();
        let here = std::env::current_dir().unwrap();
        assert!(message.contains("`no such corpus.txt`"), "{message}");
        assert!(message.contains(&format!("`{}`", here.display())), "{message}");
        assert!(message.contains("--set data.text.path="), "{message}");
        let absolute: DataConfig = toml::from_str(
            "tokens = { train = \"/no/such.bin\", vocab_size = 9 }\nsplit.tail.validation_fraction = 0.1",
        )
        .unwrap();
        let message = prepare(&absolute, &Progress::silent()).unwrap_err().to_string();
        assert!(message.contains("--set data.tokens.train=") && !message.contains("looked for"), "{message}");
    }

    #[test]
    fn every_key_of_a_path_is_listed() {
        let texts = [
            "text.path = \"a\"\ntokenizer.file.path = \"d\"",
            "tokens = { train = \"b\", validation = \"c\", test = \"e\", vocab_size = 9 }",
        ];
        let data = texts.map(|text| toml::from_str::<DataConfig>(text).unwrap());
        let mut keys: Vec<&str> = data.iter().flat_map(data_paths).map(|(key, _)| key).collect();
        keys.sort_by_key(|key| DATA_PATH_KEYS.iter().position(|known| known == key));
        assert_eq!(keys, DATA_PATH_KEYS);
    }
}
