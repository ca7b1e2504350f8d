//! From documents to the files of a prepared folder.

mod split_writer;

use std::collections::HashSet;
use std::path::Path;

use crate::bpe::{self, WordCounts};
use crate::config::{DataConfig, TokenizerConfig};
use crate::error::DatasetError;
use crate::manifest::{Repeats, SplitManifest};
use crate::overlap::{OverlapMeter, Overlaps};
use crate::progress::Progress;
use crate::remarks::Remarks;
use crate::source::{Content, Document, Source};
use crate::split::{Part, Split, SplitKind, SplitRule, Splitter};
use crate::tokenizer::Tokenizer;
use crate::unfinished::{note, noted};
use split_writer::SplitWriter;

/// Text that is gathered before all cores work on it.
const BATCH_BYTES: u64 = 8 << 20;
/// Names of the notes in a folder in the making; those of shards have the names of splits.
const OVERLAP_NOTE: &str = "overlap";
const TOKENIZER_NOTE: &str = "tokenizer";
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
/// from now on what has too much of it. Noted in `folder`, so that it is measured once.
pub(crate) fn measure_overlap(
    source: &Source,
    survey: &mut Survey,
    folder: &Path,
    progress: &Progress,
) -> Result<Overlaps, DatasetError> {
    if let Some(overlaps) = noted::<Overlaps>(folder, OVERLAP_NOTE) {
        survey.left_out.clone_from(&overlaps.left_out);
        return Ok(overlaps);
    }
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
    note(folder, OVERLAP_NOTE, &overlaps)?;
    Ok(overlaps)
}

/// The tokenizer that `config` asks for; a trained one sees the training split only, and is noted in
/// `folder`, so that it is trained once.
pub(crate) fn make_tokenizer(
    config: &DataConfig,
    source: &Source,
    survey: &Survey,
    folder: &Path,
    progress: &Progress,
) -> Result<Tokenizer, DatasetError> {
    if let Source::Synthetic(_) = source {
        return Ok(Tokenizer::Ids { vocab_size: config.vocab_size()?, end_of_document: Some(0) });
    }
    match &config.tokenizer {
        Some(TokenizerConfig::Bpe(bpe)) => {
            let json = noted::<String>(folder, TOKENIZER_NOTE);
            if let Some(Ok(tokenizer)) = json.map(|json| Tokenizer::from_json(json.into_bytes())) {
                return Ok(tokenizer.with_vocab_size(bpe.vocab_size));
            }
            let mut counts = WordCounts::default();
            count_words(source, survey, &mut counts, progress)?;
            let tokenizer = train_tokenizer(counts, bpe.vocab_size, progress)?;
            note(folder, TOKENIZER_NOTE, &String::from_utf8_lossy(&tokenizer.to_json()))?;
            Ok(tokenizer)
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

/// What is put around documents.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Marks {
    pub(crate) begin: Option<u32>,
    pub(crate) end: Option<u32>,
}

/// Facts about what has been written.
pub(crate) struct Written {
    pub(crate) train: SplitManifest,
    pub(crate) validation: SplitManifest,
    /// `None` if the rule makes no such split.
    pub(crate) test: Option<SplitManifest>,
    pub(crate) repeats: Repeats,
}

/// Writes the shards of all splits to `folder`; returns the facts about them. Shards that an
/// interrupted preparation has finished there are checked and kept.
///
/// `marks` are put around the documents of text that begin and end in their split; ids bring their
/// own.
pub(crate) fn write_shards(
    source: &Source,
    survey: &Survey,
    tokenizer: &Tokenizer,
    marks: Marks,
    folder: &Path,
    progress: &Progress,
) -> Result<Written, DatasetError> {
    let num_domains = source.domain_names().len();
    let writer = |split: &Split| SplitWriter::open(folder, *split, tokenizer, num_domains, progress);
    let mut writers = survey.rule.splits().iter().map(writer).collect::<Result<Vec<_>, _>>()?;
    let mut seen = Seen::default();
    let stage = progress.stage("tokenizing", Some(survey.total_len));
    for_each_batch(source, survey, &mut |batch| {
        batch.iter().filter(|part| part.is_whole).for_each(|part| seen.add(part));
        for writer in &mut writers {
            let parts: Vec<&Part> = batch.iter().filter(|part| part.split == writer.split()).collect();
            writer.add(&parts, tokenizer, marks, &stage)?;
        }
        Ok(())
    })?;
    stage.finish();
    let mut manifests = Vec::new();
    for writer in writers {
        let split = writer.split();
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
