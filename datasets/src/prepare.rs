//! From a configuration to tokens on disk, once: later runs with the same data find what the first one made.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::build::{self, Survey};
use crate::cache::{self, CacheEntry};
use crate::config::DataConfig;
use crate::error::DatasetError;
use crate::hash::hex;
use crate::manifest::{FORMAT_VERSION, Manifest, SplitManifest};
use crate::progress::Progress;
use crate::shard::TokenFile;
use crate::source::Source;
use crate::split::SplitRule;
use crate::store::TokenStore;
use crate::token_files;
use crate::tokenizer::Tokenizer;

const TOKENIZER_NAME: &str = "tokenizer.json";

/// A corpus ready to be read.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Tokens to train on.
    pub train: Arc<TokenStore>,
    /// Tokens to validate on.
    pub validation: Arc<TokenStore>,
    /// What turned the text into them.
    pub tokenizer: Tokenizer,
    /// Facts about them.
    pub manifest: Manifest,
    /// The prepared folder; none for files of ids, which are read where they lie.
    pub folder: Option<PathBuf>,
}

/// The corpus that `config` describes; prepared now, or found in the cache.
///
/// The cache is keyed by all that determines the tokens: the content of the source, the tokenizer, the split and the
/// format version. Preparation happens in a temporary folder that is renamed when complete, so an interrupted one
/// leaves no corpus, and the next start removes what it left. Of two processes that want the same corpus one prepares
/// it while the other waits.
///
/// # Errors
/// An invalid configuration, input that is missing or damaged, a damaged prepared corpus, a full disk, or the stop flag.
pub fn prepare(config: &DataConfig, progress: &Progress) -> Result<Dataset, DatasetError> {
    config.validate()?;
    let source = match (Source::open(config)?, &config.tokens) {
        (Some(source), _) => source,
        (None, Some(tokens)) => return token_files::open(tokens, SplitRule::new(&config.split)),
        (None, None) => unreachable!("a validated configuration names a source"),
    };
    let key = cache_key(config, &source)?;
    let entry = CacheEntry::new(&cache::cache_dir(config.cache_dir.as_deref())?, &key);
    if entry.is_complete() {
        return open(&entry.folder(), &key);
    }
    let locked = entry.lock(progress)?;
    let folder = locked.entry.folder();
    // The process that was waited for may have done the work.
    if !locked.entry.is_complete() {
        let built = locked.start().and_then(|temporary| build(config, &source, &key, &temporary, progress));
        if let Err(error) = built {
            locked.discard();
            return Err(error);
        }
        locked.commit()?;
    }
    open(&folder, &key)
}

/// Everything that determines the tokens, as one sha256 in hexadecimal.
fn cache_key(config: &DataConfig, source: &Source) -> Result<String, DatasetError> {
    let mut hasher = Sha256::new();
    hasher.update(format!("switchyard dataset, format {FORMAT_VERSION}\n"));
    source.identify(&mut hasher)?;
    hasher.update(format!("\nsplit {:?}\n", SplitRule::new(&config.split)));
    match (&config.tokenizer.bpe, &config.tokenizer.file) {
        (Some(bpe), _) => hasher.update(format!("bpe {}\n", bpe.vocab_size)),
        (None, Some(file)) => {
            let json = std::fs::read(&file.path).map_err(DatasetError::io("read", &file.path))?;
            hasher.update("file ");
            hasher.update(json);
        }
        (None, None) => hasher.update("bytes or ids\n"),
    }
    Ok(hex(&hasher.finalize()))
}

/// Fills the empty `folder` with the corpus; the manifest comes last.
fn build(
    config: &DataConfig,
    source: &Source,
    key: &str,
    folder: &Path,
    progress: &Progress,
) -> Result<(), DatasetError> {
    let rule = SplitRule::new(&config.split);
    let survey = Survey::of(source, rule, progress)?;
    let tokenizer = build::make_tokenizer(config, source, &survey, progress)?;
    // A single text has no end that matters: its bytes are its tokens, nothing more.
    let end_mark = if survey.num_documents > 1 { tokenizer.end_of_document() } else { None };
    let (train, validation) = build::write_shards(source, &survey, &tokenizer, end_mark, folder, progress)?;
    tokenizer.save(&folder.join(TOKENIZER_NAME))?;
    let (entropy_floor_nats, domain_uncertainty_nats) = match source {
        Source::Synthetic(source) => {
            (Some(source.entropy_floor_nats()), Some(source.domain_uncertainty_nats()))
        }
        Source::Crates(_) | Source::Text(_) => (None, None),
    };
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        key: key.to_owned(),
        source: source.description(),
        split: rule.description(),
        tokenizer: tokenizer.kind().to_owned(),
        tokenizer_hash: tokenizer.hash(),
        vocab_size: tokenizer.vocab_size(),
        end_of_document: end_mark,
        entropy_floor_nats,
        domain_uncertainty_nats,
        domain_names: source.domain_names(),
        train,
        validation,
    };
    manifest.write(folder)
}

/// The complete corpus in `folder`, with every file checked.
fn open(folder: &Path, key: &str) -> Result<Dataset, DatasetError> {
    let manifest = Manifest::read(folder, key)?;
    let path = folder.join(TOKENIZER_NAME);
    let tokenizer = Tokenizer::load(&path)?;
    if tokenizer.hash() != manifest.tokenizer_hash {
        return Err(DatasetError::damaged(&path, "is not the tokenizer that the manifest names"));
    }
    let tokenizer = tokenizer.with_vocab_size(manifest.vocab_size);
    let store = |split: &SplitManifest| {
        let open_shard = |shard: &crate::manifest::ShardManifest| {
            let checksum = parse_checksum(&shard.sha256).ok_or_else(|| {
                DatasetError::damaged(&folder.join(crate::manifest::MANIFEST_NAME), "has a malformed sha256")
            })?;
            TokenFile::open_shard(&folder.join(&shard.file), &checksum)
        };
        let files: Result<Vec<_>, _> = split.shards.iter().map(open_shard).collect();
        files.map(|files| Arc::new(TokenStore::new(files)))
    };
    let (train, validation) = (store(&manifest.train)?, store(&manifest.validation)?);
    Ok(Dataset { train, validation, tokenizer, manifest, folder: Some(folder.to_path_buf()) })
}

fn parse_checksum(text: &str) -> Option<[u8; 32]> {
    let digits: Option<Vec<u8>> = text.chars().map(|digit| Some(digit.to_digit(16)? as u8)).collect();
    let bytes: Vec<u8> = digits?.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect();
    bytes.try_into().ok()
}
