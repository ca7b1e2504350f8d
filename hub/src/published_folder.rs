//! Where a published model lies: in a folder here, or on the Hugging Face hub.

use std::path::{Path, PathBuf};

use switchyard_ground::hub_path::{HubPath, local};

use crate::HubError;

/// The folder of the published model at `path`, which may be a name on the hub
/// ([`switchyard_ground::hub_path`]) and is fetched then; `None` for what is no published model.
///
/// # Errors
/// If the model cannot be fetched.
pub fn published_folder(path: &Path) -> Result<Option<PathBuf>, HubError> {
    if HubPath::parse(path)?.is_some() {
        return Ok(Some(local(path, is_of_model)?));
    }
    Ok(path.join("config.json").is_file().then(|| path.to_owned()))
}

/// Whether a file of a repository is one that a model is read from: of the tensors in several forms
/// one.
fn is_of_model(all: &[String], name: &str) -> bool {
    let has = |suffix: &str| all.iter().any(|other| !other.contains('/') && other.ends_with(suffix));
    let tensors = if has(".safetensors") { ".safetensors" } else { ".bin" };
    !name.contains('/') && (name.ends_with(".json") || name.ends_with(tensors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_its_configuration_tokenizer_and_one_form_of_its_tensors() {
        let all = ["README.md", "config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.json"];
        let all = all.map(str::to_owned);
        let wanted =
            |all: &[String]| all.iter().filter(|name| is_of_model(all, name)).cloned().collect::<Vec<_>>();
        assert_eq!(wanted(&all), ["config.json", "model.safetensors"]);
        assert_eq!(wanted(&[all[1].clone(), all[3].clone()]), ["config.json", "pytorch_model.bin"]);
    }
}
