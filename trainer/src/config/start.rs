//! `[start]`: what a run begins with, and which parameters it trains.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use switchyard_hub::{PublishedModel, published_folder};

/// `[start]`: a model to begin with, and parameters that stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StartConfig {
    /// Folder of a published model, of a run or of a checkpoint, whose parameters the run begins
    /// with; absent draws them. With a published model `[model]` may be left out: it is the model's
    /// own, then.
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

/// Puts the model's own `[model]` into the table of a configuration that begins with a published
/// model and has none.
///
/// # Errors
/// What is wrong with the model.
pub(crate) fn fill_model(table: &mut toml::Table) -> Result<(), String> {
    let from = table.get("start").and_then(|start| start.get("from")).and_then(toml::Value::as_str);
    let Some(folder) = from.map(Path::new).filter(|_| !table.contains_key("model")) else { return Ok(()) };
    let Some(folder) = published_folder(folder).map_err(|error| error.to_string())? else { return Ok(()) };
    let published = PublishedModel::open(&folder).map_err(|error| error.to_string())?;
    let model = toml::Value::try_from(&published.config).map_err(|error| error.to_string())?;
    table.insert("model".to_owned(), model);
    Ok(())
}
