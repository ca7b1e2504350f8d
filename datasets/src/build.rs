//! From documents to the files of a prepared folder.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::bpe::{self, WordCounts};
use crate::config::{DataConfig, TokenizerConfig};
use crate::encoded::Encoded;
use crate::error::DatasetError;
use crate::manifest::{Repeats, ShardManifest, SplitManifest};
use crate::overlap::{OverlapMeter, Overlaps};
use crate::pieces::{TextPiece, pieces};
use crate::progress::{Progress, Stage};
use crate::remarks::Remarks;
use crate::shard::{MAX_SHARD_TOKENS, ShardWriter};
use crate::source::{Content, Document, Source};
use crate::split::{Part, Split, SplitKind, SplitRule, Splitter};
use crate::tokenizer::Tokenizer;
use switchyard_ground::digest::hex;

/// Text that is gathered before all cores work on it.
const BATCH_BYTES: u64 = 8 << 20;
/// Pieces of text whose ids are in memory at a time.
const BATCH_PIECES: usize = 512;
/// Merges between two looks at the stop flag.
const MERGES_PER_CHECK: usize = 64;
/// Different documents that are remembered while repeats are counted: half a gigabyte at most.
const MAX_REMEMBERED_DOCUMENTS: usize = 1 << 24;

/// What a first look at all documents found.
#[derive(Debug, Clone)]
pub(crate) struct Survey {
    pub(crate) num_documents: u64,
    /// Bytes of text, or number of ids.
    pub(crate) total_len: u64,
    /// The part of it that does not train.
    held_out_len: u64,
    /// What was passed over or is odd in the documents.
    pub(crate) remarks: Remarks,
    pub(crate) rule: SplitRule,
    /// Numbers of the documents whose held-out parts are left out.
    left_out: HashSet<u64>,
}

impl Survey {
    /// Counts the documents of `source` and makes sure that every split will have some.
    pub(crate) fn of(source: &Source, rule: SplitRule, progress: &Progress) -> Result<Self, DatasetError> {
        let stage = progress.stage("reading documents", None);
        let (mut num_documents, mut total_len) = (0, 0);
        let mut remarks = Remarks::default();
        // Documents of each split, and their length.
        let (mut counts, mut lens) = ([0; 3], [0; 3]);
        let mut by_hash = Splitter::new(rule, 0);
        source.for_each_with_remarks(&mut remarks, &mut |document| {
            num_documents += 1;
            total_len += document.len();
            if rule.kind == SplitKind::ByDocumentHash {
                let len = document.len();
                for part in by_hash.assign(document) {
                    counts[part.split as usize] += 1;
                    lens[part.split as usize] += len;
                }
            }
            stage.advance(0)
        })?;
        stage.finish();
        if num_documents == 0 {
            let mut skipped = source.remarks().sentences();
            skipped.extend(remarks.sentences());
            return Err(DatasetError::NoDocuments {
                description: source.description(),
                skipped,
                advice: source.advice_when_empty(),
            });
        }
        if rule.kind == SplitKind::Tail {
            (counts, lens) = (rule.tail_lens(total_len), rule.tail_lens(total_len));
        }
        let held_out_len = total_len - lens[Split::Train as usize];
        let left_out = HashSet::new();
        let survey = Self { num_documents, total_len, held_out_len, remarks, rule, left_out };
        match rule.splits().iter().find(|split| counts[**split as usize] == 0) {
            Some(split) => Err(survey.empty_split(*split)),
            None => Ok(survey),
        }
    }

    fn splitter(&self) -> Splitter {
        Splitter::new(self.rule, self.total_len)
    }

    fn empty_split(&self, split: Split) -> DatasetError {
        DatasetError::EmptySplit {
            split: split.name(),
            left_out: self.left_out.len(),
            num_documents: self.num_documents,
            rule: self.rule.description(),
        }
    }
}

/// How much of the held-out text the training split has too; with `max_overlap`, `survey` leaves out
/// from now on what has too much of it.
pub(crate) fn measure_overlap(
    source: &Source,
    survey: &mut Survey,
    progress: &Progress,
) -> Result<Overlaps, DatasetError> {
    let stage = progress.stage("looking for text in two splits", Some(2 * survey.total_len));
    let max_overlap = survey.rule.max_overlap;
    let mut meter = OverlapMeter::new(survey.held_out_len, max_overlap.is_some());
    let (mut splitter, mut ordinal) = (survey.splitter(), 0);
    source.for_each(&mut |document| {
        let len = document.len();
        splitter.assign(document).into_iter().for_each(|part| meter.hold_out(ordinal, part));
        ordinal += 1;
        stage.advance(len)
    })?;
    for_each_batch(source, survey, &mut |parts| meter.look_through(parts, &stage))?;
    let overlaps = meter.finish(max_overlap);
    stage.finish();
    survey.left_out.clone_from(&overlaps.left_out);
    Ok(overlaps)
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
    match &config.tokenizer {
        Some(TokenizerConfig::Bpe(bpe)) => {
            let mut counts = WordCounts::default();
            count_words(source, survey, &mut counts, progress)?;
            train_tokenizer(counts, bpe.vocab_size, progress)
        }
        Some(TokenizerConfig::File(file)) => Tokenizer::of_config(file),
        Some(TokenizerConfig::Bytes {}) | None => Ok(Tokenizer::Bytes),
    }
}

/// Adds the words of the training split of `source` to `counts`.
pub(crate) fn count_words(
    source: &Source,
    survey: &Survey,
    counts: &mut WordCounts,
    progress: &Progress,
) -> Result<(), DatasetError> {
    let stage = progress.stage("counting words", Some(survey.total_len));
    for_each_batch(source, survey, &mut |batch| {
        let texts = batch.iter().filter(|part| part.split == Split::Train).map(|part| &part.document.content);
        counts.add(texts.filter_map(|content| match content {
            Content::Text(text) => Some(text.as_str()),
            Content::Ids(_) => None,
        }))?;
        stage.advance(batch.iter().map(|part| part.document.len()).sum())
    })?;
    stage.finish();
    Ok(())
}

/// A byte-pair encoding of `vocab_size` ids, trained on words that have been counted.
pub(crate) fn train_tokenizer(
    counts: WordCounts,
    vocab_size: usize,
    progress: &Progress,
) -> Result<Tokenizer, DatasetError> {
    let stage = progress.stage("training the tokenizer", None);
    let mut num_merges = 0;
    let tokenizer = bpe::train_on_words(counts, vocab_size, &mut || {
        num_merges += 1;
        if num_merges % MERGES_PER_CHECK == 0 { stage.advance(0) } else { Ok(()) }
    })?;
    stage.finish();
    Ok(tokenizer)
}

/// Facts about what has been written.
pub(crate) struct Written {
    pub(crate) train: SplitManifest,
    pub(crate) validation: SplitManifest,
    /// `None` if the rule makes no such split.
    pub(crate) test: Option<SplitManifest>,
    pub(crate) repeats: Repeats,
}

/// Writes the shards of all splits to `folder`; returns the facts about them.
///
/// `end_mark` follows each document of text that ends in its split; ids bring their own.
pub(crate) fn write_shards(
    source: &Source,
    survey: &Survey,
    tokenizer: &Tokenizer,
    end_mark: Option<u32>,
    folder: &Path,
    progress: &Progress,
) -> Result<Written, DatasetError> {
    let num_domains = source.domain_names().len();
    let writer = |split: &Split| SplitWriter::new(folder, *split, tokenizer, num_domains);
    let mut writers: Vec<SplitWriter> = survey.rule.splits().iter().map(writer).collect();
    let mut seen = Seen::default();
    let stage = progress.stage("tokenizing", Some(survey.total_len));
    for_each_batch(source, survey, &mut |batch| {
        batch.iter().filter(|part| part.is_whole).for_each(|part| seen.add(part));
        for writer in &mut writers {
            let parts: Vec<&Part> = batch.iter().filter(|part| part.split == writer.split).collect();
            writer.add(&parts, tokenizer, end_mark, &stage)?;
        }
        Ok(())
    })?;
    stage.finish();
    let mut manifests = Vec::new();
    for writer in writers {
        let split = writer.split;
        let manifest = writer.finish()?;
        if manifest.num_tokens == 0 {
            return Err(survey.empty_split(split));
        }
        manifests.push(manifest);
    }
    let mut manifests = manifests.into_iter();
    let mut next = || manifests.next();
    let (train, validation) = (next().unwrap_or_default(), next().unwrap_or_default());
    Ok(Written { train, validation, test: next(), repeats: seen.repeats })
}

/// Documents met so far, by the front of their hashes: two that differ share one in fewer than a
/// million corpora.
#[derive(Default)]
struct Seen {
    train: HashSet<u64>,
    held_out: HashSet<u64>,
    repeats: Repeats,
}

impl Seen {
    fn add(&mut self, part: &Part) {
        let hash = part.document.hash();
        let front = hash[..8].iter().fold(0, |front, byte| front << 8 | u64::from(*byte));
        let in_train = self.train.contains(&front);
        if in_train || self.held_out.contains(&front) {
            self.repeats.documents += 1;
            self.repeats.len += part.document.len();
            self.repeats.held_out_documents_in_train += u64::from(in_train && part.split != Split::Train);
        } else if self.train.len() + self.held_out.len() < MAX_REMEMBERED_DOCUMENTS {
            let split = if part.split == Split::Train { &mut self.train } else { &mut self.held_out };
            split.insert(front);
        }
    }
}

/// Calls `work` with the parts of all documents, in order, some megabytes at a time; those that
/// `survey` leaves out are not among them.
fn for_each_batch(
    source: &Source,
    survey: &Survey,
    work: &mut dyn FnMut(&[Part]) -> Result<(), DatasetError>,
) -> Result<(), DatasetError> {
    let mut splitter = survey.splitter();
    let (mut batch, mut batch_len, mut ordinal) = (Vec::new(), 0, 0);
    source.for_each(&mut |document: Document| {
        batch_len += document.len();
        let is_left_out = survey.left_out.contains(&ordinal);
        let parts = splitter.assign(document).into_iter();
        batch.extend(parts.filter(|part| part.split == Split::Train || !is_left_out));
        ordinal += 1;
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
    /// The id that stands for text which the vocabulary cannot spell.
    unknown_id: Option<u32>,
    /// Tokens of the current document.
    document_tokens: u64,
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
            unknown_id: tokenizer.unknown_id(),
            document_tokens: 0,
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
            for (piece, encoded) in batch.iter().zip(encode_all(batch, tokenizer, end_mark)?) {
                self.append(piece, &encoded)?;
            }
            stage.advance(batch.iter().map(|piece| piece.content.len()).sum())?;
        }
        Ok(())
    }

    fn append(
        &mut self,
        piece: &Piece<'_>,
        Encoded { ids, lost_bytes }: &Encoded,
    ) -> Result<(), DatasetError> {
        let domain = piece.part.document.domain;
        if piece.is_first {
            self.begin_document(domain)?;
        }
        if let Content::Text(_) = piece.part.document.content {
            self.manifest.num_bytes += piece.content.len();
        }
        let facts = &mut self.manifest;
        facts.num_tokens += ids.len() as u64;
        facts.lost_bytes += lost_bytes;
        facts.unknown_tokens += ids.iter().filter(|id| Some(**id) == self.unknown_id).count() as u64;
        self.document_tokens += ids.len() as u64;
        facts.largest_document_tokens = facts.largest_document_tokens.max(self.document_tokens);
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
        self.document_tokens = 0;
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
    Text(TextPiece<'a>),
    Ids(&'a [u32]),
}

impl PieceContent<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Text(piece) => piece.text().len() as u64,
            Self::Ids(ids) => ids.len() as u64,
        }
    }
}

impl<'a> Piece<'a> {
    /// The text, empty for ids.
    fn text(&self) -> TextPiece<'a> {
        match self.content {
            PieceContent::Text(piece) => piece,
            PieceContent::Ids(_) => TextPiece::whole(""),
        }
    }
}

/// Ids of each piece, with the end mark where a document of text ends.
fn encode_all(
    pieces: &[Piece<'_>],
    tokenizer: &Tokenizer,
    end_mark: Option<u32>,
) -> Result<Vec<Encoded>, DatasetError> {
    let texts: Vec<TextPiece<'_>> = pieces.iter().map(Piece::text).collect();
    let mut encoded = tokenizer.encode_all(&texts).map_err(|error| in_document(error, pieces, tokenizer))?;
    for (piece, Encoded { ids, .. }) in pieces.iter().zip(&mut encoded) {
        match piece.content {
            PieceContent::Ids(own) => ids.extend_from_slice(own),
            PieceContent::Text(_) if piece.is_last && piece.part.is_end => ids.extend(end_mark),
            PieceContent::Text(_) => {}
        }
    }
    Ok(encoded)
}

/// `error` with the document that has the text in it: the words of many documents are encoded
/// together.
fn in_document(error: DatasetError, pieces: &[Piece<'_>], tokenizer: &Tokenizer) -> DatasetError {
    if !matches!(error, DatasetError::Unspellable { .. }) {
        return error;
    }
    let first = pieces.iter().find_map(|piece| match tokenizer.encode_all(&[piece.text()]) {
        Err(DatasetError::Unspellable { problem, .. }) => {
            let document = Some(piece.part.document.name.clone());
            Some(DatasetError::Unspellable { document, problem })
        }
        _ => None,
    });
    first.unwrap_or(error)
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
