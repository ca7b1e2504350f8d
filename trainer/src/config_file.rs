//! Configuration files: reading with `--set` overrides, errors with their place, writing, hashing.
//!
//! A file and the overrides are merged as TOML and parsed once, by the same parser. serde decides
//! what is valid; the JSON schema, derived from the same types, explains what would have been.

mod explain;
mod keys;
mod origins;
mod overrides;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde_json::Value as Json;
use switchyard_ground::printable::excerpt;
use switchyard_ground::regular_file;

pub(crate) use self::explain::check_known;
pub(crate) use self::origins::{Origins, SourcePosition};
pub use self::overrides::Override;

use crate::config::{RunConfig, fill_model};
use crate::plan::RunPlan;
use switchyard_ground::digest::sha256_hex;

/// Bytes that a configuration may have, several hundred times the largest recipe: a wrong file is
/// refused at once.
const MAX_BYTES: u64 = 1 << 20;

/// A configuration that cannot be read: where, what, and what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration `{}`: {source}; name a TOML file", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{location}: not valid TOML: {message}")]
    Syntax {
        /// `file:line:column`.
        location: String,
        /// The parser's message.
        message: String,
    },
    /// A key is unknown or missing, or a value cannot be used.
    #[error("{location}: {message}")]
    Invalid {
        /// `file:line:column`, or the override.
        location: String,
        /// The key path, its value, and what is allowed.
        message: String,
    },
    /// An override is not of the form `key.path=value`.
    #[error("--set {argument}: {message}")]
    Override {
        /// As given.
        argument: String,
        /// What is wrong.
        message: String,
    },
}

/// A configuration, and where each of its keys was written.
#[derive(Debug, Clone)]
pub struct LoadedConfig {
    /// As written, overrides included.
    pub config: RunConfig,
    origins: Origins,
}

impl LoadedConfig {
    /// Where `key` was written: `file:line:column` or `--set key=value`; for a key that was not,
    /// where its table was.
    pub fn locate(&self, key: &str) -> String {
        self.origins.locate(key)
    }

    /// The plan of this configuration.
    ///
    /// # Errors
    /// The first value or combination that cannot be run, with its place.
    pub fn resolve(&self) -> Result<RunPlan, ConfigError> {
        RunPlan::resolve(&self.config).map_err(|error| ConfigError::Invalid {
            location: self.locate(&error.path),
            message: error.to_string(),
        })
    }
}

/// The configuration in `path`, with `overrides` applied in their order.
///
/// # Errors
/// The first mistake in reading, syntax, keys or types, with its place. Rules between keys are the
/// plan's to check.
pub fn load(path: &Path, overrides: &[Override]) -> Result<LoadedConfig, ConfigError> {
    parse(&read(path)?, path, overrides)
}

/// The text of the file at `path`.
///
/// # Errors
/// [`ConfigError::Read`], also for what is no regular file and for one of more than a megabyte.
pub fn read(path: &Path) -> Result<String, ConfigError> {
    regular_file::read_to_string(path, MAX_BYTES)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

/// `config`, which a run keeps in `path`, with `overrides` applied in their order.
///
/// # Errors
/// As [`load`].
pub(crate) fn change(
    config: &RunConfig,
    path: &Path,
    overrides: &[Override],
) -> Result<RunConfig, ConfigError> {
    Ok(parse(&to_toml(config), path, overrides)?.config)
}

fn parse(text: &str, path: &Path, overrides: &[Override]) -> Result<LoadedConfig, ConfigError> {
    let location = |error: &toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start);
        format!("{}:{}", path.display(), SourcePosition::of(text, start))
    };
    let origins = Origins::read(text, path, overrides).map_err(|error| ConfigError::Syntax {
        location: location(&error),
        message: syntax_message(text, &error),
    })?;
    // The syntax is right, so what remains to fail is a number that does not fit.
    let mut table: toml::Table = toml::from_str(text).map_err(|error| ConfigError::Invalid {
        location: location(&error),
        message: format!(
            "`{}` is out of range: use a number of 64 bits",
            excerpt(text.get(error.span().unwrap_or_default()).unwrap_or_default(), 60)
        ),
    })?;
    for an_override in overrides {
        an_override
            .apply(&mut table)
            .map_err(|message| ConfigError::Invalid { location: an_override.to_string(), message })?;
    }
    fill_model(&mut table)
        .map_err(|message| ConfigError::Invalid { location: origins.locate("start.from"), message })?;
    if let Some(mistake) = explain::list_for_table(&table) {
        let location = origins.locate(&mistake.key);
        return Err(ConfigError::Invalid { location, message: mistake.message });
    }
    match serde_path_to_error::deserialize(toml::Value::Table(table.clone())) {
        Ok(config) => Ok(LoadedConfig { config, origins }),
        Err(error) => {
            let path = error.path().to_string();
            let is_override = |key: &str| overrides.iter().any(|given| given.is_about(key));
            let mistake = explain::explain(&path, error.inner().message(), &table, is_override);
            Err(ConfigError::Invalid { location: origins.locate(&mistake.key), message: mistake.message })
        }
    }
}

/// What is wrong with `text`, and how a number is written that TOML does not take.
fn syntax_message(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().trim().replace('\n', ", ");
    let start = error.span().map_or(0, |span| span.start);
    let Some((before, after)) = text.split_at_checked(start) else { return message };
    let before = before.rsplit('\n').next().unwrap_or_default();
    let value = before.rsplit_once('=').map_or("", |(_, value)| value).trim_start();
    let rest = after.split(['\n', '#', ',', ' ', '}', ']']).next().unwrap_or_default();
    match overrides::loose_float(&format!("{value}{rest}")) {
        Some(number) => format!("{message}: write `{number:?}`"),
        None => message,
    }
}

/// The configuration as TOML that [`load`] reads back as the same configuration.
///
/// # Panics
/// If the configuration cannot be written as TOML, which no configuration that came from TOML can
/// cause.
pub fn to_toml(config: &RunConfig) -> String {
    toml::to_string(config)
        .unwrap_or_else(|error| panic!("a configuration must be TOML, but {error}: {config:?}"))
}

/// SHA-256, in hexadecimal, of the configuration as JSON with sorted keys and no spaces. Comments,
/// order and the choice between file and `--set` make no difference; defaults written out or left
/// out make none either.
///
/// # Panics
/// If the configuration cannot be written as JSON, which no configuration that came from TOML can
/// cause.
pub fn config_hash(config: &RunConfig) -> String {
    let json = serde_json::to_value(config)
        .unwrap_or_else(|error| panic!("a configuration must be JSON, but {error}: {config:?}"));
    let mut canonical = String::new();
    write_canonical(&json, &mut canonical);
    sha256_hex(canonical)
}

/// JSON schema of the configuration file, for editors.
pub fn schema() -> &'static Json {
    static SCHEMA: LazyLock<Json> = LazyLock::new(|| {
        let mut schema = schemars::schema_for!(RunConfig).to_value();
        join_lines(&mut schema);
        schema
    });
    &SCHEMA
}

/// Makes each paragraph of a description one line: where a comment is wrapped says nothing.
fn join_lines(schema: &mut Json) {
    match schema {
        Json::Object(map) => {
            for (key, value) in map {
                match value {
                    Json::String(text) if key == "description" => {
                        let paragraphs: Vec<String> =
                            text.split("\n\n").map(|lines| lines.replace('\n', " ")).collect();
                        *text = paragraphs.join("\n\n");
                    }
                    value => join_lines(value),
                }
            }
        }
        Json::Array(elements) => elements.iter_mut().for_each(join_lines),
        _ => {}
    }
}

/// JSON without spaces and with sorted keys, whatever order serde_json's maps have in this build.
fn write_canonical(json: &Json, out: &mut String) {
    match json {
        Json::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            out.push('{');
            for (index, (key, value)) in entries.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                out.push_str(&Json::from(key.as_str()).to_string());
                out.push(':');
                write_canonical(value, out);
            }
            out.push('}');
        }
        Json::Array(values) => {
            out.push('[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_canonical(value, out);
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}
