//! From documents to the files of a prepared folder.

use std::path::{Path, PathBuf};

use crate::bpe::{self, WordCounts};
use crate::config::DataConfig;
use crate::error::DatasetError;
use crate::hash::hex;
use crate::manifest::{ShardManifest, SplitManifest};
use crate::progress::{Progress, Stage};
use crate::shard::{MAX_SHARD_TOKENS, ShardWriter};
use crate::source::{Content, Document, Source};
use crate::split::{Part, Split, SplitRule, Splitter};
use crate::tokenizer::{Tokenizer, pieces};

/// Text that is gathered before all cores work on it.
const BATCH_BYTES: u64 = 8 << 20;
/// Pieces of text whose ids are in memory at a time.
const BATCH_PIECES: usize = 512;
/// Merges between two looks at the stop flag.
const MERGES_PER_CHECK: usize = 64;

/// What a first look at all documents found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Survey {
    pub(crate) num_documents: u64,
    /// Bytes of text, or number of ids.
    pub(crate) total_len: u64,
    rule: SplitRule,
}

impl Survey {
    /// Counts the documents of `source` and makes sure that both splits will have some.
    pub(crate) fn of(source: &Source, rule: SplitRule, progress: &Progress) -> Result<Self, DatasetError> {
        let stage = progress.stage("reading documents", None);
        let mut survey = Self { num_documents: 0, total_len: 0, rule };
        let mut by_hash = Splitter::new(rule, 0);
        let mut num_validation = 0;
        source.for_each(&mut |document| {
            survey.num_documents += 1;
            survey.total_len += document.len();
            if let SplitRule::ByDocumentHash(_) = rule {
                num_validation += u64::from(by_hash.assign(document)[0].split == Split::Validation);
            }
            stage.advance(0)
        })?;
        stage.finish();
        if survey.num_documents == 0 {
            return Err(DatasetError::NoDocuments {
                description: source.description(),
                advice: source.advice_when_empty(),
            });
        }
        let (num_train, num_all) = match rule {
            SplitRule::ByDocumentHash(_) => (survey.num_documents - num_validation, survey.num_documents),
            SplitRule::Tail(fraction) => {
                (SplitRule::tail_train_len(fraction, survey.total_len), survey.total_len)
            }
        };
        if num_train == 0 {
            return Err(survey.empty_split(Split::Train));
        }
        if num_train == num_all {
            return Err(survey.empty_split(Split::Validation));
        }
        Ok(survey)
    }

    fn splitter(&self) -> Splitter {
        Splitter::new(self.rule, self.total_len)
    }

    fn empty_split(&self, split: Split) -> DatasetError {
        DatasetError::EmptySplit {
            split: split.name(),
            num_documents: self.num_documents,
            rule: self.rule.description(),
        }
    }
}

/// The tokenizer that `config` asks for; a trained one sees the training split only.
pub(crate) fn make_tokenizer(
    config: &DataConfig,
    source: &Source,
    survey: &Survey,
    progress: &Progress,
) -> Result<Tokenizer, DatasetError> {
    if let Source::Synthetic(_) = source {
        return Ok(Tokenizer::Ids { vocab_size: config.vocab_size()?, end_of_document: Some(0) });
    }
    if let Some(file) = &config.tokenizer.file {
        return Tokenizer::load(&file.path);
    }
    let Some(bpe) = &config.tokenizer.bpe else { return Ok(Tokenizer::Bytes) };

    let stage = progress.stage("counting words", Some(survey.total_len));
    let mut counts = WordCounts::default();
    for_each_batch(source, survey, &mut |batch| {
        let texts = batch.iter().filter(|part| part.split == Split::Train).map(|part| &part.document.content);
        counts.add(texts.filter_map(|content| match content {
            Content::Text(text) => Some(text.as_str()),
            Content::Ids(_) => None,
        }))?;
        stage.advance(batch.iter().map(|part| part.document.len()).sum())
    })?;
    stage.finish();

    let stage = progress.stage("training the tokenizer", None);
    let mut num_merges = 0;
    let tokenizer = bpe::train_on_words(counts, bpe.vocab_size, &mut || {
        num_merges += 1;
        if num_merges % MERGES_PER_CHECK == 0 { stage.advance(0) } else { Ok(()) }
    })?;
    stage.finish();
    Ok(tokenizer)
}

/// Writes the shards of both splits to `folder`; returns the facts about train and validation.
///
/// `end_mark` follows each document of text that ends in its split; ids bring their own.
pub(crate) fn write_shards(
    source: &Source,
    survey: &Survey,
    tokenizer: &Tokenizer,
    end_mark: Option<u32>,
    folder: &Path,
    progress: &Progress,
) -> Result<(SplitManifest, SplitManifest), DatasetError> {
    let num_domains = source.domain_names().len();
    let mut train = SplitWriter::new(folder, Split::Train, tokenizer, num_domains);
    let mut validation = SplitWriter::new(folder, Split::Validation, tokenizer, num_domains);
    let stage = progress.stage("tokenizing", Some(survey.total_len));
    for_each_batch(source, survey, &mut |batch| {
        for split in [Split::Train, Split::Validation] {
            let writer = if split == Split::Train { &mut train } else { &mut validation };
            let parts: Vec<&Part> = batch.iter().filter(|part| part.split == split).collect();
            writer.add(&parts, tokenizer, end_mark, &stage)?;
        }
        Ok(())
    })?;
    stage.finish();
    let (train, validation) = (train.finish()?, validation.finish()?);
    for (split, manifest) in [(Split::Train, &train), (Split::Validation, &validation)] {
        if manifest.num_tokens == 0 {
            return Err(survey.empty_split(split));
        }
    }
    Ok((train, validation))
}

/// Calls `work` with the parts of all documents, in order, some megabytes at a time.
fn for_each_batch(
    source: &Source,
    survey: &Survey,
    work: &mut dyn FnMut(&[Part]) -> Result<(), DatasetError>,
) -> Result<(), DatasetError> {
    let mut splitter = survey.splitter();
    let (mut batch, mut batch_len) = (Vec::new(), 0);
    source.for_each(&mut |document: Document| {
        batch_len += document.len();
        batch.extend(splitter.assign(document));
        if batch_len < BATCH_BYTES {
            return Ok(());
        }
        batch_len = 0;
        work(&std::mem::take(&mut batch))
    })?;
    work(&batch)
}

/// Writes one split.
struct SplitWriter {
    folder: PathBuf,
    split: Split,
    vocab_size: u64,
    tokenizer_hash: [u8; 32],
    shard: Option<ShardWriter>,
    manifest: SplitManifest,
}

impl SplitWriter {
    fn new(folder: &Path, split: Split, tokenizer: &Tokenizer, num_domains: usize) -> Self {
        Self {
            folder: folder.to_path_buf(),
            split,
            vocab_size: tokenizer.vocab_size() as u64,
            tokenizer_hash: tokenizer.hash_bytes(),
            shard: None,
            manifest: SplitManifest { tokens_per_domain: vec![0; num_domains], ..SplitManifest::default() },
        }
    }

    /// Adds documents: pieces of text are encoded on all cores, and written in order.
    fn add(
        &mut self,
        parts: &[&Part],
        tokenizer: &Tokenizer,
        end_mark: Option<u32>,
        stage: &Stage,
    ) -> Result<(), DatasetError> {
        let work: Vec<Piece<'_>> = parts.iter().flat_map(|part| split_into_pieces(part)).collect();
        for batch in work.chunks(BATCH_PIECES) {
            for (piece, ids) in batch.iter().zip(encode_all(batch, tokenizer, end_mark)?) {
                self.append(piece, &ids)?;
            }
            stage.advance(batch.iter().map(|piece| piece.content.len()).sum())?;
        }
        Ok(())
    }

    fn append(&mut self, piece: &Piece<'_>, ids: &[u32]) -> Result<(), DatasetError> {
        let domain = piece.part.document.domain;
        if piece.is_first {
            self.begin_document(domain)?;
        }
        if let Content::Text(_) = piece.part.document.content {
            self.manifest.num_bytes += piece.content.len();
        }
        self.manifest.num_tokens += ids.len() as u64;
        self.manifest.tokens_per_domain[usize::from(domain)] += ids.len() as u64;
        match &mut self.shard {
            Some(shard) => shard.append(ids),
            None => Ok(()),
        }
    }

    fn begin_document(&mut self, domain: u16) -> Result<(), DatasetError> {
        if self.shard.as_ref().is_some_and(|shard| shard.num_tokens() >= MAX_SHARD_TOKENS) {
            self.finish_shard()?;
        }
        if self.shard.is_none() {
            let path = self.folder.join(self.shard_name());
            self.shard = Some(ShardWriter::create(&path, self.vocab_size, self.tokenizer_hash)?);
        }
        if let Some(shard) = &mut self.shard {
            shard.begin_document(domain);
        }
        self.manifest.num_documents += 1;
        Ok(())
    }

    fn shard_name(&self) -> String {
        format!("{}-{:05}.shard", self.split.name(), self.manifest.shards.len())
    }

    fn finish_shard(&mut self) -> Result<(), DatasetError> {
        let file = self.shard_name();
        if let Some(shard) = self.shard.take() {
            let finished = shard.finish()?;
            self.manifest.shards.push(ShardManifest {
                file,
                num_tokens: finished.num_tokens,
                sha256: hex(&finished.checksum),
            });
        }
        Ok(())
    }

    fn finish(mut self) -> Result<SplitManifest, DatasetError> {
        self.finish_shard()?;
        Ok(self.manifest)
    }
}

/// What one core encodes at a time.
struct Piece<'a> {
    part: &'a Part,
    content: PieceContent<'a>,
    is_first: bool,
    is_last: bool,
}

enum PieceContent<'a> {
    Text(&'a str),
    Ids(&'a [u32]),
}

impl PieceContent<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Ids(ids) => ids.len() as u64,
        }
    }
}

impl<'a> Piece<'a> {
    /// The text, empty for ids.
    fn text(&self) -> &'a str {
        match self.content {
            PieceContent::Text(text) => text,
            PieceContent::Ids(_) => "",
        }
    }
}

/// Ids of each piece, with the end mark where a document of text ends.
fn encode_all(
    pieces: &[Piece<'_>],
    tokenizer: &Tokenizer,
    end_mark: Option<u32>,
) -> Result<Vec<Vec<u32>>, DatasetError> {
    let texts: Vec<&str> = pieces.iter().map(|piece| piece.text()).collect();
    let mut encoded = tokenizer.encode_all(&texts)?;
    for (piece, ids) in pieces.iter().zip(&mut encoded) {
        match piece.content {
            PieceContent::Ids(own) => ids.extend_from_slice(own),
            PieceContent::Text(_) if piece.is_last && piece.part.is_end => ids.extend(end_mark),
            PieceContent::Text(_) => {}
        }
    }
    Ok(encoded)
}

fn split_into_pieces(part: &Part) -> Vec<Piece<'_>> {
    let contents: Vec<PieceContent<'_>> = match &part.document.content {
        Content::Text(text) => pieces(text).map(PieceContent::Text).collect(),
        Content::Ids(ids) => vec![PieceContent::Ids(ids)],
    };
    let last = contents.len() - 1;
    let piece = |(index, content)| Piece { part, content, is_first: index == 0, is_last: index == last };
    contents.into_iter().enumerate().map(piece).collect()
}
