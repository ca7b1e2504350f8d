//! The shards of one split, written once: what is finished survives an interruption.

use std::path::{Path, PathBuf};

use switchyard_ground::digest::hex;

use super::Marks;
use crate::encoded::Encoded;
use crate::error::DatasetError;
use crate::manifest::{ShardManifest, SplitManifest};
use crate::pieces::TextPiece;
use crate::progress::{Progress, Stage};
use crate::shard::{MAX_SHARD_TOKENS, ShardWriter, TokenFile, parse_checksum};
use crate::source::Content;
use crate::split::{Part, Split};
use crate::tokenizer::Tokenizer;
use crate::unfinished::{note, noted};

/// Pieces of text whose ids are in memory at a time.
const BATCH_PIECES: usize = 512;
/// Writes one split, and goes on where an interrupted preparation has stopped.
///
/// With each shard that is finished, the facts about the split so far are noted beside it. A later
/// preparation in the same folder checks these shards and passes over the documents in them: they are
/// read once more, but not encoded.
pub(super) struct SplitWriter {
    folder: PathBuf,
    split: Split,
    vocab_size: u64,
    tokenizer_hash: [u8; 32],
    shard: Option<ShardWriter>,
    /// The id that stands for text which the vocabulary cannot spell.
    unknown_id: Option<u32>,
    /// Tokens of the current document.
    document_tokens: u64,
    /// Documents to come that are in finished shards already.
    num_kept: u64,
    manifest: SplitManifest,
}

impl SplitWriter {
    /// A writer of `split`, after the shards in `folder` that are finished.
    ///
    /// # Errors
    /// If the stop flag is set.
    pub(super) fn open(
        folder: &Path,
        split: Split,
        tokenizer: &Tokenizer,
        num_domains: usize,
        progress: &Progress,
    ) -> Result<Self, DatasetError> {
        let nothing = SplitManifest { tokens_per_domain: vec![0; num_domains], ..SplitManifest::default() };
        let manifest = finished(folder, split, num_domains, progress)?.unwrap_or(nothing);
        if !manifest.shards.is_empty() {
            progress.line(&format!(
                "going on after {} finished shard(s) of the {} split",
                manifest.shards.len(),
                split.name()
            ));
        }
        Ok(Self {
            folder: folder.to_path_buf(),
            split,
            vocab_size: tokenizer.vocab_size() as u64,
            tokenizer_hash: tokenizer.hash_bytes(),
            shard: None,
            unknown_id: tokenizer.unknown_id(),
            document_tokens: 0,
            num_kept: manifest.num_documents,
            manifest,
        })
    }

    pub(super) fn split(&self) -> Split {
        self.split
    }

    /// Adds documents: pieces of text are encoded on all cores, and written in order.
    pub(super) fn add(
        &mut self,
        parts: &[&Part],
        tokenizer: &Tokenizer,
        marks: Marks,
        stage: &Stage,
    ) -> Result<(), DatasetError> {
        let (kept, parts) = parts.split_at(self.num_kept.min(parts.len() as u64) as usize);
        self.num_kept -= kept.len() as u64;
        stage.advance(kept.iter().map(|part| part.document.len()).sum())?;
        let work: Vec<Piece<'_>> = parts.iter().flat_map(|part| split_into_pieces(part, tokenizer)).collect();
        for batch in work.chunks(BATCH_PIECES) {
            for (piece, encoded) in batch.iter().zip(encode_all(batch, tokenizer, marks)?) {
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
            note(&self.folder, self.split.name(), &self.manifest)?;
        }
        Ok(())
    }

    /// Finishes the last shard; returns the facts about the split.
    pub(super) fn finish(mut self) -> Result<SplitManifest, DatasetError> {
        self.finish_shard()?;
        Ok(self.manifest)
    }
}

/// The facts about the shards of `split` that are finished in `folder`; `None` if there are none, or
/// one of them is not what was noted: then all are written anew.
fn finished(
    folder: &Path,
    split: Split,
    num_domains: usize,
    progress: &Progress,
) -> Result<Option<SplitManifest>, DatasetError> {
    let facts: Option<SplitManifest> = noted(folder, split.name());
    let Some(facts) = facts.filter(|facts| facts.tokens_per_domain.len() == num_domains) else {
        return Ok(None);
    };
    for shard in &facts.shards {
        let Some(checksum) = parse_checksum(&shard.sha256) else { return Ok(None) };
        match TokenFile::open_shard(&folder.join(&shard.file), &checksum, progress) {
            Ok(_) => {}
            Err(DatasetError::Interrupted) => return Err(DatasetError::Interrupted),
            Err(error) => {
                tracing::warn!("{error}");
                return Ok(None);
            }
        }
    }
    Ok(Some(facts))
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
            Self::Text(piece) => piece.text.len() as u64,
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

/// Ids of each piece, with the marks where a document of text begins and ends.
fn encode_all(
    pieces: &[Piece<'_>],
    tokenizer: &Tokenizer,
    marks: Marks,
) -> Result<Vec<Encoded>, DatasetError> {
    let texts: Vec<TextPiece<'_>> = pieces.iter().map(Piece::text).collect();
    let mut encoded = tokenizer.encode_all(&texts).map_err(|error| in_document(error, pieces, tokenizer))?;
    for (piece, Encoded { ids, .. }) in pieces.iter().zip(&mut encoded) {
        if let PieceContent::Ids(own) = piece.content {
            ids.extend_from_slice(own);
            continue;
        }
        if piece.is_first && piece.part.is_begin {
            ids.splice(..0, marks.begin);
        }
        if piece.is_last && piece.part.is_end {
            ids.extend(marks.end);
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

fn split_into_pieces<'a>(part: &'a Part, tokenizer: &Tokenizer) -> Vec<Piece<'a>> {
    let contents: Vec<PieceContent<'_>> = match &part.document.content {
        Content::Text(text) => tokenizer.pieces(text).into_iter().map(PieceContent::Text).collect(),
        Content::Ids(ids) => vec![PieceContent::Ids(ids)],
    };
    let last = contents.len().saturating_sub(1);
    let piece = |(index, content)| Piece { part, content, is_first: index == 0, is_last: index == last };
    contents.into_iter().enumerate().map(piece).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::{Survey, Written, write_shards};
    use super::*;
    use crate::config::SyntheticConfig;
    use crate::source::{Source, SyntheticSource};
    use crate::split::SplitRule;
    use crate::unfinished::{has_notes, remove_notes};

    fn source() -> Source {
        Source::Synthetic(SyntheticSource::new(&SyntheticConfig {
            num_domains: 3,
            vocab_size: 50,
            num_documents: 4000,
            document_tokens: 60,
            branching: 4,
            seed: 1,
        }))
    }

    fn write(folder: &Path, progress: &Progress) -> Result<Written, DatasetError> {
        let source = source();
        let survey = Survey::of(&source, SplitRule::new(None), &Progress::silent())?;
        let tokenizer = Tokenizer::Ids { vocab_size: 50, end_of_document: Some(0) };
        write_shards(&source, &survey, &tokenizer, Marks { begin: None, end: None }, folder, progress)
    }

    /// Contents and times of the shards in `folder`, by name.
    fn shards(folder: &Path) -> Vec<(String, Vec<u8>, std::time::SystemTime)> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut shards: Vec<_> = entries
            .filter(|path| path.extension().is_some_and(|ending| ending == "shard"))
            .map(|path| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                let time = std::fs::metadata(&path).unwrap().modified().unwrap();
                (name, std::fs::read(&path).unwrap(), time)
            })
            .collect();
        shards.sort();
        shards
    }

    fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
        shards(folder).into_iter().map(|(name, bytes, _)| (name, bytes)).collect()
    }

    /// A folder in which a preparation was stopped once it had finished some shards.
    fn stopped() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (path, of_watcher) = (folder.path().join("train-00003.shard"), stop.clone());
        let watcher = std::thread::spawn(move || {
            while !path.exists() {
                std::thread::yield_now();
            }
            of_watcher.store(true, Ordering::Relaxed);
        });
        let error = write(folder.path(), &Progress::silent().with_stop(stop)).map(drop).unwrap_err();
        assert!(matches!(error, DatasetError::Interrupted), "stopped in the middle: {error}");
        watcher.join().unwrap();
        folder
    }

    #[test]
    fn a_preparation_that_goes_on_keeps_finished_shards_and_ends_as_an_unbroken_one() {
        let whole = tempfile::tempdir().unwrap();
        let unbroken = write(whole.path(), &Progress::silent()).unwrap();
        assert!(unbroken.train.shards.len() > 20, "{}", unbroken.train.shards.len());
        let folder = stopped();
        assert!(has_notes(folder.path()));
        let kept = shards(folder.path());
        let resumed = write(folder.path(), &Progress::silent()).unwrap();
        assert_eq!((resumed.train, resumed.validation), (unbroken.train, unbroken.validation));
        assert_eq!(resumed.repeats, unbroken.repeats);
        assert_eq!(contents(folder.path()), contents(whole.path()));
        let now = shards(folder.path());
        let noted = kept.iter().filter(|shard| now.contains(shard)).count();
        // The one that was just renamed when the flag was set may not have been noted.
        assert!(noted + 1 >= kept.len() && noted >= 3, "{noted} of {}", kept.len());
        remove_notes(folder.path()).unwrap();
        assert!(!has_notes(folder.path()));
    }

    #[test]
    fn what_is_not_as_it_was_noted_is_written_anew() {
        let whole = tempfile::tempdir().unwrap();
        write(whole.path(), &Progress::silent()).unwrap();
        for name in ["train-00001.shard", "train.progress"] {
            let folder = stopped();
            let path = folder.path().join(name);
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] = 0xff;
            std::fs::write(&path, bytes).unwrap();
            write(folder.path(), &Progress::silent()).unwrap();
            assert_eq!(contents(folder.path()), contents(whole.path()), "{name}");
        }
    }
}
