//! From a configuration to tokens on disk, once: later runs with the same data find what the first
//! one made.

use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use switchyard_ground::regular_file;

use crate::build::{self, Marks, Survey};
use crate::cache::{self, CacheEntry};
use crate::config::{DataConfig, SourceConfig, TokenizerConfig};
use crate::dataset::Dataset;
use crate::error::DatasetError;
use crate::manifest::{FORMAT_VERSION, MANIFEST_NAME, Manifest, ShardManifest, SplitManifest};
use crate::notes;
use crate::progress::Progress;
use crate::shard::TokenFile;
use crate::source::{CratesSource, Source, SyntheticSource, TextSource};
use crate::split::{Split, SplitRule};
use crate::store::TokenStore;
use crate::token_files;
use crate::tokenizer::Tokenizer;
use switchyard_ground::digest::hex;

const TOKENIZER_NAME: &str = "tokenizer.json";
/// Far more than a `tokenizer.json` has.
const MAX_TOKENIZER_BYTES: u64 = 1 << 30;

/// The corpus that `config` describes; prepared now, or found in the cache.
///
/// The cache is keyed by all that determines the tokens: the content of the source, the tokenizer,
/// the split and the rules by which they are applied. What is in the corpus, and what was passed
/// over on the way, is said through `progress` each time. Preparation happens in a temporary folder
/// that is renamed when complete, so an interrupted one leaves no corpus, and the next start
/// removes what it left. Of two processes that want the same corpus one prepares it while the other
/// waits.
///
/// # Errors
/// An invalid configuration, input that is missing or damaged, a damaged prepared corpus, a full
/// disk, or the stop flag.
pub fn prepare(config: &DataConfig, progress: &Progress) -> Result<Dataset, DatasetError> {
    config.validate().map_err(DatasetError::of_key)?;
    let source = match &config.source {
        SourceConfig::Crates(crates) => Source::Crates(CratesSource::open(crates)?),
        SourceConfig::Text(text) => Source::Text(TextSource::open(text, progress)?),
        SourceConfig::Synthetic(synthetic) => Source::Synthetic(SyntheticSource::new(synthetic)),
        SourceConfig::Tokens(tokens) => {
            let dataset = token_files::open(tokens, SplitRule::new(config.split.as_ref()), progress)?;
            return Ok(announced(dataset, &[], progress));
        }
    };
    let dataset = from_source(config, &source, progress)?;
    Ok(announced(dataset, &source.remarks().sentences(), progress))
}

/// The dataset, once `progress` has said what is in it and what was remarked on the way.
fn announced(dataset: Dataset, remarks: &[String], progress: &Progress) -> Dataset {
    progress.line(&notes::summary(&dataset.manifest));
    for note in remarks.iter().chain(&dataset.manifest.notes) {
        progress.line(&format!("note: {note}"));
    }
    dataset
}

/// The corpus of `source`, from the cache or prepared now.
fn from_source(config: &DataConfig, source: &Source, progress: &Progress) -> Result<Dataset, DatasetError> {
    let key = cache_key(config, source, progress)?;
    let entry = CacheEntry::new(&cache::cache_dir(config.cache_dir.as_deref())?, &key);
    if entry.is_complete()? {
        return open(&entry.folder(), &key, progress);
    }
    let locked = entry.lock(progress)?;
    let folder = locked.entry.folder();
    // The process that was waited for may have done the work.
    if !locked.entry.is_complete()? {
        let built = locked.start().and_then(|temporary| {
            build(config, source, &key, &temporary, progress)?;
            locked.commit()
        });
        if let Err(error) = built {
            locked.discard();
            return Err(error);
        }
    }
    open(&folder, &key, progress)
}

/// Everything that determines the tokens, as one sha256 in hexadecimal.
fn cache_key(config: &DataConfig, source: &Source, progress: &Progress) -> Result<String, DatasetError> {
    let mut hasher = Sha256::new();
    // The number is that of the rules for all sources: order of documents, split, marks, trained
    // tokenizers.
    hasher.update("switchyard dataset, format 1\n");
    source.identify(&mut hasher, progress)?;
    hasher.update(format!("\nsplit {}\n", SplitRule::new(config.split.as_ref()).key()));
    match &config.tokenizer {
        Some(TokenizerConfig::Bpe(bpe)) => hasher.update(format!("bpe {}\n", bpe.vocab_size)),
        Some(TokenizerConfig::File(file)) => {
            let tokenizer = Tokenizer::of_config(file)?;
            let rules = tokenizer.rules();
            let on_unknown_text = file.on_unknown_text.unwrap_or_default();
            hasher.update(format!("file {rules} on_unknown_text={on_unknown_text:?}\n"));
            hasher.update(tokenizer.to_json());
        }
        Some(TokenizerConfig::Bytes {}) | None => hasher.update("bytes or ids\n"),
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
    let rule = SplitRule::new(config.split.as_ref());
    let mut survey = Survey::of(source, rule, progress)?;
    let overlaps = build::measure_overlap(source, &mut survey, progress)?;
    let tokenizer = build::make_tokenizer(config, source, &survey, progress)?;
    // A single text has no end that matters: its bytes are its tokens, nothing more, unless asked for.
    let has_end = survey.num_documents > 1 || tokenizer.is_end_named();
    let end = if has_end { tokenizer.end_of_document() } else { None };
    let marks = Marks { begin: tokenizer.begin_of_document(), end };
    let mut written = build::write_shards(source, &survey, &tokenizer, marks, folder, progress)?;
    written.validation.overlap = Some(overlaps.validation);
    if let Some(test) = &mut written.test {
        test.overlap = Some(overlaps.test);
    }
    tokenizer.save(&folder.join(TOKENIZER_NAME))?;
    let (entropy_floor_nats, domain_uncertainty_nats) = match source {
        Source::Synthetic(source) => {
            (Some(source.entropy_floor_nats()), Some(source.domain_uncertainty_nats()))
        }
        Source::Crates(_) | Source::Text(_) => (None, None),
    };
    let mut manifest = Manifest {
        format_version: FORMAT_VERSION,
        key: key.to_owned(),
        source: source.description(),
        split: rule.description(),
        tokenizer: tokenizer.kind().to_owned(),
        tokenizer_hash: tokenizer.hash(),
        vocab_size: tokenizer.vocab_size(),
        begin_of_document: marks.begin,
        end_of_document: marks.end,
        entropy_floor_nats,
        domain_uncertainty_nats,
        domain_names: source.domain_names(),
        train: written.train,
        validation: written.validation,
        test: written.test,
        repeats: written.repeats,
        notes: Vec::new(),
    };
    manifest.notes = notes::of_corpus(&survey, &manifest);
    manifest.write(folder)
}

/// The complete corpus in `folder`, with every file checked.
fn open(folder: &Path, key: &str, progress: &Progress) -> Result<Dataset, DatasetError> {
    let manifest = Manifest::read(folder, key)?;
    let path = folder.join(TOKENIZER_NAME);
    let json = regular_file::read(&path, MAX_TOKENIZER_BYTES).map_err(DatasetError::io("read", &path))?;
    if hex(&Sha256::digest(&json)) != manifest.tokenizer_hash {
        return Err(DatasetError::damaged(&path, "is not the tokenizer that the manifest names"));
    }
    let tokenizer = Tokenizer::from_json(json)
        .map_err(|problem| DatasetError::Tokenizer { path: Some(path), problem })?
        .with_vocab_size(manifest.vocab_size);
    let store = |split: Split, facts: &SplitManifest| {
        let open_shard = |shard: &ShardManifest| {
            let checksum = parse_checksum(&shard.sha256).ok_or_else(|| {
                DatasetError::damaged(&folder.join(MANIFEST_NAME), "has a malformed sha256")
            })?;
            let path = folder.join(&shard.file);
            let file = TokenFile::open_shard(&path, &checksum, progress)?;
            if file.vocab_size() != manifest.vocab_size as u64 {
                return Err(DatasetError::damaged(&path, "has another vocabulary than its manifest"));
            }
            Ok(file)
        };
        let files: Result<Vec<_>, _> = facts.shards.iter().map(open_shard).collect();
        files.map(|files| Arc::new(TokenStore::new(split, files)))
    };
    let train = store(Split::Train, &manifest.train)?;
    let validation = store(Split::Validation, &manifest.validation)?;
    let test = manifest.test.as_ref().map(|test| store(Split::Test, test)).transpose()?;
    Ok(Dataset { train, validation, test, tokenizer, manifest, folder: Some(folder.to_path_buf()) })
}

fn parse_checksum(text: &str) -> Option<[u8; 32]> {
    let digits: Option<Vec<u8>> = text.chars().map(|digit| Some(digit.to_digit(16)? as u8)).collect();
    let bytes: Vec<u8> = digits?.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect();
    bytes.try_into().ok()
}
