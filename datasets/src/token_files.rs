//! Files of token ids as nanoGPT writes them: nothing to prepare, mapped where they lie.

use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::config::TokensConfig;
use crate::error::DatasetError;
use crate::hash::{hex, sha256_of_file};
use crate::manifest::{FORMAT_VERSION, Manifest, SplitManifest};
use crate::prepare::Dataset;
use crate::shard::TokenFile;
use crate::split::SplitRule;
use crate::store::TokenStore;
use crate::tokenizer::Tokenizer;

/// The corpus in the files of `tokens`; every id is compared with the vocabulary size.
///
/// # Errors
/// If a file cannot be read, holds an unknown id, or leaves a split empty.
pub(crate) fn open(tokens: &TokensConfig, rule: SplitRule) -> Result<Dataset, DatasetError> {
    let TokensConfig { train: train_path, validation, vocab_size } = tokens;
    let validation_path = validation.as_ref().unwrap_or(train_path);
    let train_len = |num_tokens: usize| match rule {
        SplitRule::Tail(fraction) => SplitRule::tail_train_len(fraction, num_tokens as u64) as usize,
        SplitRule::ByDocumentHash(_) => num_tokens,
    };
    let train = TokenFile::open_raw(train_path, *vocab_size, |len| 0..train_len(len))?;
    let validation_start = |len| if validation.is_some() { 0 } else { train_len(len) };
    let validation_file =
        TokenFile::open_raw(validation_path, *vocab_size, |len| validation_start(len)..len)?;
    let (train, train_facts) = store(train, train_path)?;
    let (validation_store, validation_facts) = store(validation_file, validation_path)?;

    let tokenizer = Tokenizer::Ids { vocab_size: *vocab_size, end_of_document: None };
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        key: key(tokens, rule)?,
        source: format!("ids in `{}`", train_path.display()),
        split: validation.as_ref().map_or_else(|| rule.description(), |path| format!("`{}`", path.display())),
        tokenizer: tokenizer.kind().to_owned(),
        tokenizer_hash: tokenizer.hash(),
        vocab_size: *vocab_size,
        end_of_document: None,
        entropy_floor_nats: None,
        domain_uncertainty_nats: None,
        domain_names: Vec::new(),
        train: train_facts,
        validation: validation_facts,
    };
    Ok(Dataset { train, validation: validation_store, tokenizer, manifest, folder: None })
}

fn store(file: TokenFile, path: &Path) -> Result<(Arc<TokenStore>, SplitManifest), DatasetError> {
    if file.num_tokens() == 0 {
        let problem = "leaves a split without tokens: name a larger file, or change the fraction".to_owned();
        return Err(DatasetError::TokenFile { path: path.to_path_buf(), problem });
    }
    let facts = SplitManifest { num_tokens: file.num_tokens() as u64, ..SplitManifest::default() };
    Ok((Arc::new(TokenStore::new(vec![file])), facts))
}

fn key(tokens: &TokensConfig, rule: SplitRule) -> Result<String, DatasetError> {
    let mut hasher = Sha256::new();
    hasher.update(format!("tokens vocab_size={} {rule:?}\n", tokens.vocab_size));
    for path in [Some(&tokens.train), tokens.validation.as_ref()].into_iter().flatten() {
        hasher.update(sha256_of_file(path)?);
    }
    Ok(hex(&hasher.finalize()))
}
