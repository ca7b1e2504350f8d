//! `[start]`: what a run begins with, and which parameters it trains.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use switchyard_ground::regular_file;
use switchyard_hub::{PublishedModel, published_folder};

/// Bytes that the configuration of a run may have.
const MAX_BYTES: u64 = 1 << 20;

/// `[start]`: a model to begin with, and parameters that stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StartConfig {
    /// Folder of a published model, of a run or of a checkpoint, whose parameters the run begins
    /// with; absent draws them. `[model]` may be left out: it is the model's own, then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// Parameters that are not trained: `embedding`, `head`, `norms`, `attention`, `lstm`, `dense`,
    /// `router`, `experts`, `shared_experts`, or names with `*` for any text, such as `blocks.0.*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<String>,
}

impl StartConfig {
    /// Whether nothing is asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Puts the model's own `[model]` into the table of a configuration that begins with a model and has
/// none.
///
/// # Errors
/// What is wrong with the model.
pub(crate) fn fill_model(table: &mut toml::Table) -> Result<(), String> {
    let from = table.get("start").and_then(|start| start.get("from")).and_then(toml::Value::as_str);
    let Some(folder) = from.map(Path::new).filter(|_| !table.contains_key("model")) else { return Ok(()) };
    let model = match published_folder(folder).map_err(|error| error.to_string())? {
        Some(folder) => {
            let published = PublishedModel::open(&folder).map_err(|error| error.to_string())?;
            toml::Value::try_from(&published.config).map_err(|error| error.to_string())?
        }
        None => model_of_run(folder)?,
    };
    table.insert("model".to_owned(), model);
    Ok(())
}

/// `[model]` of the run or the checkpoint in `folder`, both of which keep their configuration.
fn model_of_run(folder: &Path) -> Result<toml::Value, String> {
    let path = folder.join("config.toml");
    let text = regular_file::read_to_string(&path, MAX_BYTES).map_err(|error| {
        format!(
            "`start.from` is \"{}\", and cannot be read as a model, a run or a checkpoint ({}: {error}): name the folder of \
             one, or give `[model]`",
            folder.display(),
            path.display()
        )
    })?;
    let config: toml::Table =
        toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    config.get("model").cloned().ok_or_else(|| format!("{} has no `[model]`", path.display()))
}
