//! Data that lies elsewhere than when its run was trained.
//!
//! A path says where the data is, its content hash what it is: whoever uses a run may change the
//! one, and the other decides whether it is still the run's data.

use std::io::ErrorKind;
use std::path::Path;

use switchyard_datasets::{
    DataConfig, Dataset, DatasetError, MixtureSourceConfig, Progress, SourceConfig, TokenizerConfig,
};

use crate::TrainError;
use crate::checkpoint::CheckpointError;
use crate::config::RunConfig;
use crate::config_file::{self, ConfigError, Override};

/// The keys whose values are paths of data.
const DATA_PATH_KEYS: [&str; 5] = [
    "data.text.path",
    "data.tokens.train",
    "data.tokens.validation",
    "data.tokens.test",
    "data.tokenizer.file.path",
];

/// Keys that say where else something is, or on what it is computed.
const OTHER_PLACES: [&str; 3] = ["data.cache_dir", "device", "threads"];

/// Whether the value of `key` is a path of data, that of a source in `data.sources` included, whichever
/// way its entry is named: `data.sources.code.text.path`, `data.sources[0].text.path`.
pub fn is_data_path(key: &str) -> bool {
    let of_entry = |rest: &str| {
        let (_, of_source) = rest.strip_prefix(['.', '['])?.split_once('.')?;
        Some(DATA_PATH_KEYS.iter().any(|key| key.strip_prefix("data.") == Some(of_source)))
    };
    DATA_PATH_KEYS.contains(&key)
        || key.strip_prefix("data.sources").and_then(of_entry).unwrap_or_default()
            && !key.contains(".tokenizer.")
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
    let is_allowed = |key: &str| {
        is_data_path(key) || OTHER_PLACES.contains(&key) || may_change == MayChange::Data && is_of_data(key)
    };
    if let Some(refused) = overrides.iter().find(|given| !is_allowed(given.key())) {
        let hint = match may_change {
            MayChange::Places if is_of_data(refused.key()) => {
                ". Other data than the run's is evaluated by `switchyard eval --other-data`"
            }
            MayChange::Places | MayChange::Data => "",
        };
        let trained = || {
            let key = refused.key();
            let places = [&DATA_PATH_KEYS[..], &OTHER_PLACES].concat().join(", ");
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
fn data_paths(data: &DataConfig) -> Vec<(String, &Path)> {
    let mut paths = source_paths("data", &data.source);
    if let Some(TokenizerConfig::File(file)) = &data.tokenizer {
        paths.push(("data.tokenizer.file.path".into(), file.path.as_path()));
    }
    paths
}

/// The paths that `source`, the table `key`, is read from, and their keys.
fn source_paths<'a>(key: &str, source: &'a SourceConfig) -> Vec<(String, &'a Path)> {
    match source {
        SourceConfig::Text(text) => vec![(format!("{key}.text.path"), text.path.as_path())],
        SourceConfig::Tokens(tokens) => {
            let train = [("train", tokens.train.as_path())];
            let validation = tokens.validation.as_deref().map(|path| ("validation", path));
            let test = tokens.test.as_deref().map(|path| ("test", path));
            let paths = train.into_iter().chain(validation).chain(test);
            paths.map(|(split, path)| (format!("{key}.tokens.{split}"), path)).collect()
        }
        SourceConfig::Mixture(sources) => {
            let paths_of = |source: &'a MixtureSourceConfig| {
                source_paths(&format!("{key}.sources.{}", source.name), &source.source)
            };
            sources.iter().flat_map(paths_of).collect()
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
    let innermost = match &source {
        DatasetError::OfSource { error, .. } => error,
        error => error,
    };
    let missing = match innermost {
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
    check_has_data(owner, then)?;
    let place = data_path_words(data);
    let key = data_paths(data).into_iter().next().map_or("data.text.path".to_owned(), |(key, _)| key);
    let reason = format!(
        "it was trained on data {then}, but {place} gives {now}: the content has changed, or it is another file. Name \
         the run's data with `--set`, as in `--set {key}=PATH`"
    );
    Err(CheckpointError::Mismatch { path: owner.into(), reason })
}

/// Ok if the run or the checkpoint in `owner` was trained on data here, of the content hash `then`.
///
/// # Errors
/// [`CheckpointError::Mismatch`]: an imported model has none.
pub fn check_has_data(owner: &Path, then: &str) -> Result<(), CheckpointError> {
    if then.is_empty() {
        let reason = "it is an imported model and was trained on no data here: begin a run from it with `[start]`, or measure \
                      it with `eval --other-data`";
        return Err(CheckpointError::Mismatch { path: owner.into(), reason: reason.into() });
    }
    Ok(())
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
        let mut keys: Vec<String> = data.iter().flat_map(data_paths).map(|(key, _)| key).collect();
        keys.sort_by_key(|key| DATA_PATH_KEYS.iter().position(|known| known == key));
        assert_eq!(keys, DATA_PATH_KEYS);
        let mixture = "[[sources]]\nname = \"code\"\nweight = 1\ntext.path = \"a\"\n[[sources]]\nname = \"ids\"\nweight = 1\n\
                       tokens = { train = \"b\", vocab_size = 9 }";
        let mixture = toml::from_str::<DataConfig>(mixture).unwrap();
        let keys: Vec<String> = data_paths(&mixture).into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["data.sources.code.text.path", "data.sources.ids.tokens.train"]);
        assert!(keys.iter().all(|key| is_data_path(key)) && is_data_path("data.sources[1].tokens.train"));
        for other in [
            "data.sources",
            "data.sources.code",
            "data.sources.code.weight",
            "data.sources[0].text.jsonl_key",
        ] {
            assert!(!is_data_path(other), "{other}");
        }
    }
}
