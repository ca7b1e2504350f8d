//! What tells a run from every other: its configuration, its data and the program that ran it.

use std::collections::HashMap;
use std::fs;

use anyhow::Context;
use sha2::{Digest, Sha256};
use switchyard_datasets::{DataConfig, Progress, prepare};
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::config_file::config_hash;

use crate::failure::Failure;

/// SHA-256 of `bytes` in hexadecimal.
pub(crate) fn sha256_hex(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The program that is running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CodeIdentity(String);

impl CodeIdentity {
    /// That of this process: a hash of the program file, which no uncommitted change, other compiler or other dependency
    /// leaves as it is. Machines that share a study must run copies of one file.
    ///
    /// # Errors
    /// If the program cannot read itself.
    pub(crate) fn of_this_program() -> Result<Self, Failure> {
        let path = std::env::current_exe().context("cannot find the program file").map_err(Failure::Fault)?;
        let bytes = fs::read(&path)
            .with_context(|| format!("cannot read the program file {}", path.display()))
            .map_err(Failure::Fault)?;
        Ok(Self(sha256_hex(bytes)))
    }

    /// In hexadecimal.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Identities of prepared corpora, each prepared once.
#[derive(Debug, Default)]
pub(crate) struct DataIdentities(HashMap<String, String>);

impl DataIdentities {
    /// The hash of the tokens that `data` describes: of the source's content, the tokenizer and the split.
    ///
    /// # Errors
    /// As for a run.
    pub(crate) fn of(&mut self, data: &DataConfig) -> Result<String, Failure> {
        let written = serde_json::to_string(data)?;
        if let Some(known) = self.0.get(&written) {
            return Ok(known.clone());
        }
        let key = prepare(data, &Progress::stderr())?.manifest.key;
        self.0.insert(written, key.clone());
        Ok(key)
    }
}

/// The identity of a run. Its machine-dependent keys are left out: where the corpus is cached decides nothing.
pub(crate) fn run_identity(config: &RunConfig, data: &str, code: &CodeIdentity) -> String {
    let mut config = config.clone();
    config.data.cache_dir = None;
    sha256_hex([config_hash(&config).as_str(), data, code.0.as_str()].join(" "))
}
