//! From a configuration to tokens on disk, once: later runs with the same data find what the first
//! one made.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use switchyard_ground::key_error::KeyError;
use switchyard_ground::regular_file;

use crate::bpe::WordCounts;
use crate::build::{self, Marks, Survey};
use crate::cache::{self, CacheEntry};
use crate::config::{DataConfig, MixtureSourceConfig, SourceConfig, TokenizerConfig};
use crate::dataset::Dataset;
use crate::error::DatasetError;
use crate::hub_paths::with_local_paths;
use crate::join;
use crate::manifest::{
    FORMAT_VERSION, MANIFEST_NAME, Manifest, ShardManifest, SplitManifest, StoredTokenizer,
};
use crate::notes;
use crate::progress::Progress;
use crate::shard::{TokenFile, parse_checksum};
use crate::source::{CratesSource, Source, SyntheticSource, TextSource};
use crate::split::{Split, SplitRule};
use crate::store::TokenStore;
use crate::token_files;
use crate::tokenizer::Tokenizer;
use crate::unfinished;
use switchyard_ground::digest::hex;

const TOKENIZER_NAME: &str = "tokenizer.json";
/// Far more than a `tokenizer.json` has.
const MAX_TOKENIZER_BYTES: u64 = 1 << 30;

/// The corpus that `config` describes; prepared now, or found in the cache.
///
/// The cache is keyed by all that determines the tokens: the content of the source, the tokenizer,
/// the split and the rules by which they are applied. What is in the corpus, and what was passed
/// over on the way, is said through `progress` each time. Preparation happens in a temporary folder
/// that is renamed when complete, so an interrupted one leaves no corpus; the next preparation of the
/// same corpus goes on after the shards that it finished. Of two processes that want the same corpus
/// one prepares it while the other waits.
///
/// # Errors
/// An invalid configuration, input that is missing or damaged, a damaged prepared corpus, a full
/// disk, or the stop flag.
pub fn prepare(config: &DataConfig, progress: &Progress) -> Result<Dataset, DatasetError> {
    config.validate().map_err(DatasetError::of_key)?;
    let config = &with_local_paths(config)?;
    if let SourceConfig::Mixture(sources) = &config.source {
        return prepare_mixture(config, sources, progress);
    }
    let (dataset, remarks) = match OpenSource::new(config, progress)? {
        Some(source) => (source.prepare(None, progress)?, source.source.remarks().sentences()),
        None => (open_token_files(config, progress)?, Vec::new()),
    };
    Ok(announced(dataset.of_one_source(config.source.name()), &remarks, progress))
}

/// The corpora of several sources as one.
fn prepare_mixture(
    config: &DataConfig,
    sources: &[MixtureSourceConfig],
    progress: &Progress,
) -> Result<Dataset, DatasetError> {
    let alone: Vec<DataConfig> = sources.iter().map(|source| source.alone(config)).collect();
    let named = |index: usize| move |error: DatasetError| error.in_source(&sources[index].name);
    let opened =
        alone.iter().enumerate().map(|(index, alone)| OpenSource::new(alone, progress).map_err(named(index)));
    let opened: Vec<Option<OpenSource<'_>>> = opened.collect::<Result<_, _>>()?;
    let tokenizer = shared_tokenizer(config, &opened, progress)?;
    let (mut corpora, mut remarks) = (Vec::new(), Vec::new());
    for (index, (source, alone)) in opened.iter().zip(&alone).enumerate() {
        progress.line(&format!("source {}:", sources[index].name));
        let corpus = match source {
            Some(source) => source.prepare(tokenizer.as_ref(), progress),
            None => open_token_files(alone, progress),
        };
        corpora.push(corpus.map_err(named(index))?);
        let of_source = source.iter().flat_map(|source| source.source.remarks().sentences());
        remarks.extend(of_source.map(|remark| format!("{}: {remark}", sources[index].name)));
    }
    require_same_ids(sources, &corpora)?;
    let with_text = sources.iter().position(|source| !source.source.is_of_ids()).unwrap_or(0);
    let tokenizer = corpora[with_text].tokenizer.clone();
    Ok(announced(join::joined(sources, corpora, tokenizer), &remarks, progress))
}

/// Nothing, if all corpora have the same number of ids: a `tokenizer.json` says its own only now.
fn require_same_ids(sources: &[MixtureSourceConfig], corpora: &[Dataset]) -> Result<(), DatasetError> {
    let with_text = sources.iter().position(|source| !source.source.is_of_ids()).unwrap_or(0);
    let expected = corpora[with_text].manifest.vocab_size;
    let other = corpora.iter().position(|corpus| corpus.manifest.vocab_size != expected);
    other.map_or(Ok(()), |index| {
        let path = format!("sources[{index}].{}.vocab_size", sources[index].source.name());
        let vocab_size = corpora[index].manifest.vocab_size;
        let problem = format!("is {vocab_size}, but the tokenizer of the others has {expected} ids");
        let remedy = "use the ids of one tokenizer in all sources";
        Err(DatasetError::of_key(KeyError::new(path, problem, remedy)))
    })
}

/// The tokenizer that is trained on the training splits of several sources of text; `None` where
/// none is, or a single one of them is text.
fn shared_tokenizer(
    config: &DataConfig,
    opened: &[Option<OpenSource<'_>>],
    progress: &Progress,
) -> Result<Option<Tokenizer>, DatasetError> {
    let Some(TokenizerConfig::Bpe(bpe)) = &config.tokenizer else { return Ok(None) };
    let texts: Vec<&OpenSource<'_>> = opened.iter().flatten().filter(|source| source.is_text()).collect();
    if texts.len() < 2 {
        return Ok(None);
    }
    let mut hasher = Sha256::new();
    // The number is that of the rules by which such a tokenizer is trained.
    hasher.update(format!("switchyard tokenizer of several sources, format 1\nbpe {}\n", bpe.vocab_size));
    for text in &texts {
        hasher.update(text.identity.clone().finalize());
        hasher.update(format!("split {}\n", text.rule().key()));
    }
    let key = hex(&hasher.finalize());
    let entry = CacheEntry::new(&cache::cache_dir(config.cache_dir.as_deref())?, &key);
    let folder = prepared(entry, progress, |temporary| {
        let mut counts = WordCounts::default();
        for text in &texts {
            let survey = Survey::of(&text.source, text.rule(), progress)?;
            build::count_words(&text.source, &survey, &mut counts, progress)?;
        }
        let tokenizer = build::train_tokenizer(counts, bpe.vocab_size, progress)?;
        tokenizer.save(&temporary.join(TOKENIZER_NAME))?;
        StoredTokenizer { key: key.clone(), tokenizer_hash: tokenizer.hash() }.write(temporary)
    })?;
    let stored = StoredTokenizer::read(&folder, &key)?;
    Ok(Some(open_tokenizer(&folder, &stored.tokenizer_hash)?.with_vocab_size(bpe.vocab_size)))
}

/// The files of ids that `config` names, which are not prepared.
fn open_token_files(config: &DataConfig, progress: &Progress) -> Result<Dataset, DatasetError> {
    let SourceConfig::Tokens(tokens) = &config.source else {
        unreachable!("every source but files of ids is opened as one")
    };
    token_files::open(tokens, SplitRule::new(config.split.as_ref()), progress)
}

/// The dataset, once `progress` has said what is in it and what was remarked on the way.
fn announced(dataset: Dataset, remarks: &[String], progress: &Progress) -> Dataset {
    progress.line(&notes::summary(&dataset.manifest));
    for note in remarks.iter().chain(&dataset.manifest.notes) {
        progress.line(&format!("note: {note}"));
    }
    dataset
}

/// A single source that is prepared, with its configuration.
struct OpenSource<'a> {
    config: &'a DataConfig,
    source: Source,
    /// Hash of what determines its documents, still open.
    identity: Sha256,
}

impl<'a> OpenSource<'a> {
    /// The source that `config` names; `None` for files of ids, which are read where they lie.
    fn new(config: &'a DataConfig, progress: &Progress) -> Result<Option<Self>, DatasetError> {
        let source = match &config.source {
            SourceConfig::Crates(crates) => Source::Crates(CratesSource::open(crates)?),
            SourceConfig::Text(text) => Source::Text(TextSource::open(text, progress)?),
            SourceConfig::Synthetic(synthetic) => Source::Synthetic(SyntheticSource::new(synthetic)),
            SourceConfig::Tokens(_) | SourceConfig::Mixture(_) => return Ok(None),
        };
        let mut identity = Sha256::new();
        // The number is that of the rules for all sources: order of documents, split, marks, trained
        // tokenizers.
        identity.update("switchyard dataset, format 1\n");
        source.identify(&mut identity, progress)?;
        Ok(Some(Self { config, source, identity }))
    }

    fn is_text(&self) -> bool {
        !self.config.source.is_of_ids()
    }

    fn rule(&self) -> SplitRule {
        SplitRule::new(self.config.split.as_ref())
    }

    /// The corpus, from the cache or prepared now; with `shared` as the tokenizer where it is given
    /// and the source is text.
    fn prepare(&self, shared: Option<&Tokenizer>, progress: &Progress) -> Result<Dataset, DatasetError> {
        let shared = shared.filter(|_| self.is_text());
        let key = self.cache_key(shared)?;
        let entry = CacheEntry::new(&cache::cache_dir(self.config.cache_dir.as_deref())?, &key);
        let folder = prepared(entry, progress, |temporary| self.build(shared, &key, temporary, progress))?;
        open(&folder, &key, progress)
    }

    /// Everything that determines the tokens, as one sha256 in hexadecimal.
    fn cache_key(&self, shared: Option<&Tokenizer>) -> Result<String, DatasetError> {
        let mut hasher = self.identity.clone();
        hasher.update(format!("\nsplit {}\n", self.rule().key()));
        match (&self.config.tokenizer, shared) {
            (_, Some(shared)) => {
                hasher.update("of several sources\n");
                hasher.update(shared.to_json());
            }
            (Some(TokenizerConfig::Bpe(bpe)), None) => hasher.update(format!("bpe {}\n", bpe.vocab_size)),
            (Some(TokenizerConfig::File(file)), None) => {
                let tokenizer = Tokenizer::of_config(file)?;
                let rules = tokenizer.rules();
                let on_unknown_text = file.on_unknown_text.unwrap_or_default();
                hasher.update(format!("file {rules} on_unknown_text={on_unknown_text:?}\n"));
                hasher.update(tokenizer.to_json());
            }
            (Some(TokenizerConfig::Bytes {}) | None, None) => hasher.update("bytes or ids\n"),
        }
        Ok(hex(&hasher.finalize()))
    }

    /// Fills `folder` with the corpus; the manifest comes last.
    fn build(
        &self,
        shared: Option<&Tokenizer>,
        key: &str,
        folder: &Path,
        progress: &Progress,
    ) -> Result<(), DatasetError> {
        let Self { config, source, .. } = self;
        let rule = self.rule();
        let mut survey = Survey::of(source, rule, progress)?;
        let overlaps = build::measure_overlap(source, &mut survey, folder, progress)?;
        let tokenizer = match shared {
            Some(shared) => shared.clone(),
            None => build::make_tokenizer(config, source, &survey, folder, progress)?,
        };
        // A single text has no end that matters: its bytes are its tokens, nothing more, unless asked
        // for.
        let has_end = survey.num_documents > 1 || tokenizer.is_end_named();
        let end = if has_end { tokenizer.end_of_document() } else { None };
        let marks = Marks { begin: tokenizer.begin_of_document(), end };
        let mut written = build::write_shards(source, &survey, &tokenizer, marks, folder, progress)?;
        written.validation.overlap = Some(overlaps.validation);
        if let Some(test) = &mut written.test {
            test.overlap = Some(overlaps.test);
        }
        tokenizer.save(&folder.join(TOKENIZER_NAME))?;
        unfinished::remove_notes(folder)?;
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
}

/// The folder of `entry`, once it is complete: found, or filled by `build`.
fn prepared(
    entry: CacheEntry,
    progress: &Progress,
    build: impl FnOnce(&Path) -> Result<(), DatasetError>,
) -> Result<PathBuf, DatasetError> {
    if entry.is_complete()? {
        return Ok(entry.folder());
    }
    let locked = entry.lock(progress)?;
    // The process that was waited for may have done the work.
    if !locked.entry.is_complete()? {
        let built = locked.start().and_then(|temporary| {
            build(&temporary)?;
            locked.commit()
        });
        if let Err(error) = built {
            // After a stop or trouble with the disk the same input is prepared again.
            if !matches!(error, DatasetError::Interrupted | DatasetError::Io { .. }) {
                locked.discard();
            }
            locked.discard_unfinished();
            return Err(error);
        }
    }
    Ok(locked.entry.folder())
}

/// The complete corpus in `folder`, with every file checked.
fn open(folder: &Path, key: &str, progress: &Progress) -> Result<Dataset, DatasetError> {
    let manifest = Manifest::read(folder, key)?;
    let tokenizer = open_tokenizer(folder, &manifest.tokenizer_hash)?.with_vocab_size(manifest.vocab_size);
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
    let (folder, sources) = (Some(folder.to_path_buf()), Vec::new());
    Ok(Dataset { train, validation, test, tokenizer, manifest, folder, sources })
}

/// The tokenizer in `folder`, which has this hash.
fn open_tokenizer(folder: &Path, hash: &str) -> Result<Tokenizer, DatasetError> {
    let path = folder.join(TOKENIZER_NAME);
    let json = regular_file::read(&path, MAX_TOKENIZER_BYTES).map_err(DatasetError::io("read", &path))?;
    if hex(&Sha256::digest(&json)) != hash {
        return Err(DatasetError::damaged(&path, "is not the tokenizer that the manifest names"));
    }
    Tokenizer::from_json(json).map_err(|problem| DatasetError::Tokenizer { path: Some(path), problem })
}
