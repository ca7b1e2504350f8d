//! Data that is named by its place on the Hugging Face hub: `hf://datasets/OWNER/NAME/...`.

use std::path::PathBuf;

use switchyard_ground::hub_path::{HubPathError, local};

use crate::config::{DataConfig, SourceConfig, TokenizerConfig, is_megatron_index};
use crate::source::is_text_name;

/// The same data with every name on the hub replaced by the file or folder here that it was fetched
/// to.
///
/// # Errors
/// If something cannot be fetched.
pub(crate) fn with_local_paths(config: &DataConfig) -> Result<DataConfig, HubPathError> {
    let mut config = config.clone();
    fetch_source(&mut config.source)?;
    if let Some(TokenizerConfig::File(file)) = &mut config.tokenizer {
        fetch(&mut file.path)?;
    }
    Ok(config)
}

fn fetch_source(source: &mut SourceConfig) -> Result<(), HubPathError> {
    match source {
        SourceConfig::Crates(_) | SourceConfig::Synthetic(_) => Ok(()),
        SourceConfig::Text(text) => fetch(&mut text.path),
        SourceConfig::Tokens(tokens) => {
            let held_out = [&mut tokens.validation, &mut tokens.test].into_iter().flatten();
            [&mut tokens.train].into_iter().chain(held_out).try_for_each(fetch_ids)
        }
        SourceConfig::Mixture(sources) => {
            sources.iter_mut().try_for_each(|source| fetch_source(&mut source.source))
        }
    }
}

fn fetch(path: &mut PathBuf) -> Result<(), HubPathError> {
    *path = local(path, |_, name| is_text_name(name))?;
    Ok(())
}

/// Ids, and what lies beside the index of a Megatron dataset.
fn fetch_ids(path: &mut PathBuf) -> Result<(), HubPathError> {
    if is_megatron_index(path) {
        local(&path.with_extension("bin"), |_, _| false)?;
    }
    *path = local(path, |_, _| false)?;
    Ok(())
}
