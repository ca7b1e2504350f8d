//! Token files: written once, checked when they are opened, then read piece by piece.
//!
//! Reads are positioned (`pread`): they share no cursor, so threads need no lock, and a file that
//! somebody cuts or overwrites meanwhile is an error with its name, where a memory map would end
//! the process.
//!
//! # Layout of a shard, little-endian
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 8 | magic `SWYDSHRD` |
//! | 8 | 4 | format version |
//! | 12 | 4 | bytes per token: 1, 2 or 4, the least that hold the vocabulary |
//! | 16 | 8 | number of tokens |
//! | 24 | 8 | number of documents |
//! | 32 | 8 | vocabulary size |
//! | 40 | 32 | sha256 of the tokenizer's file |
//! | 72 | 32 | sha256 of everything from offset 128 on, then of bytes 0 to 72 |
//! | 104 | 24 | zeros |
//! | 128 | | tokens; zeros up to a multiple of 8; per document its first token (8 bytes); per document its domain (2 bytes) |

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use switchyard_ground::regular_file;

use crate::error::DatasetError;
use crate::hash::for_each_block;
use crate::progress::Progress;
use crate::token_width::TokenWidth;

const MAGIC: &[u8; 8] = b"SWYDSHRD";
pub(crate) const SHARD_VERSION: u32 = 1;
const HEADER_BYTES: usize = 128;
/// Part of the header that the checksum covers.
const CHECKED_HEADER_BYTES: usize = 72;

/// A shard is closed at the first document border after this many tokens.
// So many tokens at most are encoded again after an interruption. Tests close them early.
pub(crate) const MAX_SHARD_TOKENS: u64 = if cfg!(test) { 1 << 12 } else { 1 << 27 };

/// Writes one shard. The file has its name only once it is complete and on disk.
pub(crate) struct ShardWriter {
    path: PathBuf,
    partial: PathBuf,
    file: BufWriter<File>,
    width: TokenWidth,
    vocab_size: u64,
    tokenizer_hash: [u8; 32],
    hasher: Sha256,
    num_tokens: u64,
    document_starts: Vec<u64>,
    domains: Vec<u16>,
    bytes: Vec<u8>,
}

/// What was written.
pub(crate) struct FinishedShard {
    pub(crate) num_tokens: u64,
    pub(crate) checksum: [u8; 32],
}

impl ShardWriter {
    pub(crate) fn create(
        path: &Path,
        vocab_size: u64,
        tokenizer_hash: [u8; 32],
    ) -> Result<Self, DatasetError> {
        let partial = path.with_extension("partial");
        let mut file = BufWriter::new(File::create(&partial).map_err(DatasetError::io("create", &partial))?);
        file.write_all(&[0; HEADER_BYTES]).map_err(DatasetError::io("write", &partial))?;
        Ok(Self {
            path: path.to_path_buf(),
            partial,
            file,
            width: TokenWidth::for_vocabulary(vocab_size),
            vocab_size,
            tokenizer_hash,
            hasher: Sha256::new(),
            num_tokens: 0,
            document_starts: Vec::new(),
            domains: Vec::new(),
            bytes: Vec::new(),
        })
    }

    pub(crate) fn num_tokens(&self) -> u64 {
        self.num_tokens
    }

    /// Starts a document; what [`ShardWriter::append`] adds from now on belongs to it.
    pub(crate) fn begin_document(&mut self, domain: u16) {
        self.document_starts.push(self.num_tokens);
        self.domains.push(domain);
    }

    /// Adds tokens to the current document.
    ///
    /// # Panics
    /// If an id is not below the vocabulary size.
    pub(crate) fn append(&mut self, ids: &[u32]) -> Result<(), DatasetError> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        for id in ids {
            assert!(u64::from(*id) < self.vocab_size, "id {id} in a vocabulary of {}", self.vocab_size);
            self.width.push(*id, &mut bytes);
        }
        self.write(&bytes)?;
        self.num_tokens += ids.len() as u64;
        self.bytes = bytes;
        Ok(())
    }

    /// Completes the file: tables, header, flush to disk, rename.
    pub(crate) fn finish(mut self) -> Result<FinishedShard, DatasetError> {
        let token_bytes = self.num_tokens as usize * self.width.bytes();
        let mut tables = vec![0; token_bytes.next_multiple_of(8) - token_bytes];
        self.document_starts.iter().for_each(|start| tables.extend_from_slice(&start.to_le_bytes()));
        self.domains.iter().for_each(|domain| tables.extend_from_slice(&domain.to_le_bytes()));
        self.write(&tables)?;

        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&SHARD_VERSION.to_le_bytes());
        header.extend_from_slice(&(self.width.bytes() as u32).to_le_bytes());
        for number in [self.num_tokens, self.document_starts.len() as u64, self.vocab_size] {
            header.extend_from_slice(&number.to_le_bytes());
        }
        header.extend_from_slice(&self.tokenizer_hash);
        self.hasher.update(&header);
        let checksum: [u8; 32] = self.hasher.finalize().into();
        header.extend_from_slice(&checksum);

        let failed = |error| DatasetError::io("write", &self.partial)(error);
        self.file.seek(SeekFrom::Start(0)).map_err(failed)?;
        self.file.write_all(&header).map_err(failed)?;
        let file = self.file.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)?;
        std::fs::rename(&self.partial, &self.path).map_err(DatasetError::io("create", &self.path))?;
        Ok(FinishedShard { num_tokens: self.num_tokens, checksum })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DatasetError> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(DatasetError::io("write", &self.partial))
    }
}

/// The checksum that `text` writes in hexadecimal; `None` if it writes none.
pub(crate) fn parse_checksum(text: &str) -> Option<[u8; 32]> {
    let digits: Option<Vec<u8>> = text.chars().map(|digit| Some(digit.to_digit(16)? as u8)).collect();
    let bytes: Vec<u8> = digits?.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).collect();
    bytes.try_into().ok()
}

/// Tokens in a file that stays open: a shard, or a span of raw ids without documents.
#[derive(Debug)]
pub(crate) struct TokenFile {
    file: File,
    path: PathBuf,
    width: TokenWidth,
    vocab_size: u64,
    /// Where the tokens begin.
    offset: u64,
    num_tokens: usize,
    documents: Option<DocumentTable>,
}

#[derive(Debug)]
struct DocumentTable {
    /// First token of each document.
    starts: Vec<u64>,
    domains: Vec<u16>,
}

/// The facts in a shard's header.
struct Header {
    width: TokenWidth,
    num_tokens: u64,
    num_documents: u64,
    vocab_size: u64,
    /// Where the document table begins, and where the file ends.
    table: Range<u64>,
    checksum: [u8; 32],
}

impl TokenFile {
    /// The shard at `path`, after its whole content has been compared with its checksum: reading
    /// everything once is quick beside training on it, and finds damage before the run rather than
    /// in its loss.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, of a newer version, or not the one with `checksum`.
    pub(crate) fn open_shard(
        path: &Path,
        checksum: &[u8; 32],
        progress: &Progress,
    ) -> Result<Self, DatasetError> {
        let damaged = |problem: String| DatasetError::damaged(path, problem);
        let mut file = regular_file::open(path).map_err(DatasetError::io("read", path))?;
        let mut head = Vec::with_capacity(HEADER_BYTES);
        let mut header = None;
        let (mut hasher, mut table, mut position) = (Sha256::new(), Vec::new(), 0_u64);
        for_each_block(&mut file, path, progress, &mut |mut block| {
            if head.len() < HEADER_BYTES {
                let (part, after) = block.split_at(block.len().min(HEADER_BYTES - head.len()));
                head.extend_from_slice(part);
                position += part.len() as u64;
                block = after;
                if head.len() == HEADER_BYTES {
                    header = Some(Header::parse(&head).map_err(damaged)?);
                }
            }
            if let Some(header) = &header {
                hasher.update(block);
                // The table is what is kept of the file.
                let skipped = header.table.start.saturating_sub(position).min(block.len() as u64) as usize;
                if position < header.table.end {
                    table.extend_from_slice(&block[skipped..]);
                }
                position += block.len() as u64;
            }
            Ok(())
        })?;
        let Some(header) = header else {
            return Err(damaged(format!("has {position} bytes, less than a header")));
        };
        if position != header.table.end {
            return Err(damaged(format!("has {position} bytes, its header promises {}", header.table.end)));
        }
        hasher.update(&head[..CHECKED_HEADER_BYTES]);
        let actual: [u8; 32] = hasher.finalize().into();
        if actual != header.checksum {
            return Err(damaged("does not match its checksum".to_owned()));
        }
        if actual != *checksum {
            return Err(damaged("is not the shard that its manifest names".to_owned()));
        }
        let documents = Some(DocumentTable::parse(&table, header.num_documents as usize));
        Ok(Self {
            file,
            path: path.to_path_buf(),
            width: header.width,
            vocab_size: header.vocab_size,
            offset: HEADER_BYTES as u64,
            num_tokens: header.num_tokens as usize,
            documents,
        })
    }

    /// `num_tokens` ids of `width` from byte `offset` of the open file on; none has been looked at
    /// yet.
    pub(crate) fn raw(
        (file, path): (File, &Path),
        width: TokenWidth,
        vocab_size: usize,
        offset: u64,
        num_tokens: usize,
    ) -> Self {
        let path = path.to_path_buf();
        Self { file, path, width, vocab_size: vocab_size as u64, offset, num_tokens, documents: None }
    }

    /// The same, with documents that begin at these tokens, of no known domain.
    pub(crate) fn with_documents(self, starts: Vec<u64>) -> Self {
        Self { documents: Some(DocumentTable { starts, domains: Vec::new() }), ..self }
    }

    pub(crate) fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// The bound below which all its ids are.
    pub(crate) fn vocab_size(&self) -> u64 {
        self.vocab_size
    }

    pub(crate) fn num_documents(&self) -> usize {
        self.documents.as_ref().map_or(0, |table| table.starts.len())
    }

    /// Copies the tokens from `start` on into `out`.
    ///
    /// # Errors
    /// If the file cannot be read, was cut since it was opened, or holds an id that is not below
    /// the vocabulary size.
    ///
    /// # Panics
    /// If that leaves the file.
    pub(crate) fn read(&self, start: usize, out: &mut [i32]) -> Result<(), DatasetError> {
        let end = start + out.len();
        assert!(end <= self.num_tokens, "tokens {start}..{end} of a file with {}", self.num_tokens);
        let width = self.width.bytes();
        let mut bytes = vec![0; out.len() * width];
        let at = self.offset + (start * width) as u64;
        read_exact_at(&self.file, &mut bytes, at).map_err(|error| self.read_error(error))?;
        self.width.read(&bytes, out);
        match out.iter().position(|id| *id < 0 || *id as u64 >= self.vocab_size) {
            None => Ok(()),
            Some(index) => Err(self.broken(format!(
                "holds id {} at position {}, which is not below the vocabulary's size {}: the file was changed since it \
                 was opened. Restore it, or start again with the new one",
                out[index] as u32,
                start + index,
                self.vocab_size
            ))),
        }
    }

    fn read_error(&self, error: io::Error) -> DatasetError {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return self.broken(format!(
                "ends before the last of its {} tokens: it was cut since it was opened. Restore it, or start again",
                self.num_tokens
            ));
        }
        DatasetError::io("read", &self.path)(error)
    }

    fn broken(&self, problem: String) -> DatasetError {
        DatasetError::TokenFile { path: self.path.clone(), problem }
    }

    /// Index of the document that holds the token at `position`; `None` without a table.
    pub(crate) fn document_at(&self, position: usize) -> Option<usize> {
        let table = self.documents.as_ref()?;
        table.starts.partition_point(|start| *start <= position as u64).checked_sub(1)
    }

    /// First token of the document with this index, or the number of tokens if there is no such
    /// document.
    pub(crate) fn document_start(&self, index: usize) -> usize {
        let start = self.documents.as_ref().and_then(|table| table.starts.get(index));
        start.map_or(self.num_tokens, |start| *start as usize)
    }

    /// Domain of the document with this index; 0 without a table.
    pub(crate) fn domain(&self, document: usize) -> u16 {
        let domain = self.documents.as_ref().and_then(|table| table.domains.get(document));
        domain.copied().unwrap_or(0)
    }
}

impl Header {
    /// The header in `bytes`, or what is wrong with it.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        if &bytes[..8] != MAGIC {
            return Err("is not a shard of tokens (wrong magic number)".to_owned());
        }
        let version = u32_at(bytes, 8);
        if version != SHARD_VERSION {
            return Err(format!("has format version {version}, this program reads {SHARD_VERSION}"));
        }
        let width = match u32_at(bytes, 12) {
            1 => TokenWidth::One,
            2 => TokenWidth::Two,
            4 => TokenWidth::Four,
            other => return Err(format!("has tokens of {other} bytes, expected 1, 2 or 4")),
        };
        let (num_tokens, num_documents) = (u64_at(bytes, 16), u64_at(bytes, 24));
        let Some(table) = table_span(num_tokens, num_documents, width) else {
            return Err(format!("claims {num_tokens} tokens in {num_documents} documents"));
        };
        let (checksum, zeros) = bytes[CHECKED_HEADER_BYTES..].split_at(32);
        if zeros.iter().any(|byte| *byte != 0) {
            return Err("has a header that does not end in zeros".to_owned());
        }
        let mut header = Self {
            width,
            num_tokens,
            num_documents,
            vocab_size: u64_at(bytes, 32),
            table,
            checksum: [0; 32],
        };
        header.checksum.copy_from_slice(checksum);
        Ok(header)
    }
}

impl DocumentTable {
    fn parse(bytes: &[u8], num_documents: usize) -> Self {
        let (starts, domains) = bytes.split_at(8 * num_documents);
        let starts = starts.as_chunks::<8>().0.iter().map(|start| u64::from_le_bytes(*start)).collect();
        let domains = domains.as_chunks::<2>().0.iter().map(|domain| u16::from_le_bytes(*domain)).collect();
        Self { starts, domains }
    }
}

/// Fills `out` from byte `at` of `file` on; a read that a signal interrupts is repeated.
#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, at)
}

/// Fills `out` from byte `at` of `file` on.
#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut at: u64) -> io::Result<()> {
    while !out.is_empty() {
        let num_read = std::os::windows::fs::FileExt::seek_read(file, out, at)?;
        if num_read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        out = &mut out[num_read..];
        at += num_read as u64;
    }
    Ok(())
}

/// The bytes of the document table, which ends a shard of these sizes; `None` if the sizes
/// overflow.
fn table_span(num_tokens: u64, num_documents: u64, width: TokenWidth) -> Option<Range<u64>> {
    let token_bytes = num_tokens.checked_mul(width.bytes() as u64)?.checked_next_multiple_of(8)?;
    let starts = token_bytes.checked_add(HEADER_BYTES as u64)?;
    let end = num_documents.checked_mul(10)?.checked_add(starts)?;
    // Positions are of type `usize`.
    usize::try_from(end).ok()?;
    Some(starts..end)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write(path: &Path, vocab_size: u64, documents: &[(u16, Vec<u32>)]) -> FinishedShard {
        let mut writer = ShardWriter::create(path, vocab_size, [7; 32]).unwrap();
        for (domain, ids) in documents {
            writer.begin_document(*domain);
            writer.append(ids).unwrap();
        }
        writer.finish().unwrap()
    }

    proptest! {
        #[test]
        fn a_shard_reads_as_it_was_written(
            lengths in proptest::collection::vec(1_usize..20, 1..12),
            vocab_size in prop_oneof![Just(256_u64), Just(300), Just(1 << 20)],
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.shard");
            let id = |document: usize, index: usize| ((document * 7919 + index * 104_729) as u64 % vocab_size) as u32;
            let documents: Vec<(u16, Vec<u32>)> = lengths.iter().enumerate()
                .map(|(document, len)| (document as u16 * 3, (0..*len).map(|index| id(document, index)).collect()))
                .collect();
            let finished = write(&path, vocab_size, &documents);
            let shard = TokenFile::open_shard(&path, &finished.checksum, &Progress::silent()).unwrap();
            let all: Vec<i32> = documents.iter().flat_map(|(_, ids)| ids).map(|id| *id as i32).collect();
            let mut read = vec![0; all.len()];
            shard.read(0, &mut read).unwrap();
            prop_assert_eq!(&read, &all);
            prop_assert_eq!(shard.num_documents(), documents.len());
            let owners = documents.iter().enumerate().flat_map(|(index, (_, ids))| vec![index; ids.len()]);
            for (position, owner) in owners.enumerate() {
                prop_assert_eq!(shard.document_at(position), Some(owner));
                prop_assert_eq!(shard.domain(owner), documents[owner].0);
                prop_assert!(shard.document_start(owner) <= position && position < shard.document_start(owner + 1));
            }
        }
    }

    #[test]
    fn each_damaged_byte_and_each_length_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.shard");
        let finished = write(&path, 300, &[(0, vec![1, 299, 5]), (1, vec![7])]);
        let sound = std::fs::read(&path).unwrap();
        let open = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            TokenFile::open_shard(&path, &finished.checksum, &Progress::silent())
        };
        assert!(open(&sound).is_ok());
        for at in 0..sound.len() {
            let mut damaged = sound.clone();
            damaged[at] ^= 1;
            assert!(matches!(open(&damaged), Err(DatasetError::Damaged { .. })), "byte {at}");
        }
        for len in 1..sound.len() {
            assert!(matches!(open(&sound[..len]), Err(DatasetError::Damaged { .. })), "length {len}");
        }
        let mut newer = sound.clone();
        newer[8] = 2;
        let message = open(&newer).unwrap_err().to_string();
        assert!(
            message.contains("has format version 2, this program reads 1: delete the folder"),
            "{message}"
        );
        let other = write(&path, 300, &[(0, vec![1, 299, 6]), (1, vec![7])]);
        assert_ne!(other.checksum, finished.checksum);
        let message =
            TokenFile::open_shard(&path, &finished.checksum, &Progress::silent()).unwrap_err().to_string();
        assert!(message.contains("is not the shard that its manifest names"), "{message}");
    }

    #[test]
    fn an_unfinished_shard_does_not_have_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.shard");
        let mut writer = ShardWriter::create(&path, 300, [0; 32]).unwrap();
        writer.begin_document(0);
        writer.append(&[1, 2, 3]).unwrap();
        drop(writer);
        // What is left has another name, goes with the folder that the cache makes it in, and is no
        // shard.
        let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [path.with_extension("partial")]);
        assert!(matches!(
            TokenFile::open_shard(&left[0], &[0; 32], &Progress::silent()),
            Err(DatasetError::Damaged { .. })
        ));
    }

    #[test]
    fn a_shard_that_changes_while_it_is_open_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.shard");
        let finished = write(&path, 300, &[(0, (0..200).collect())]);
        let shard = TokenFile::open_shard(&path, &finished.checksum, &Progress::silent()).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let mut ids = [0; 8];
        (&file).seek(SeekFrom::Start(HEADER_BYTES as u64 + 2 * 100)).unwrap();
        (&file).write_all(&[0xff, 0xff]).unwrap();
        assert!(shard.read(0, &mut ids).is_ok());
        let message = shard.read(98, &mut ids).unwrap_err().to_string();
        assert!(message.contains("a.shard` holds id 65535 at position 100, which is not below"), "{message}");
        file.set_len(HEADER_BYTES as u64 + 2 * 150).unwrap();
        assert!(shard.read(140, &mut ids).is_ok());
        let message = shard.read(145, &mut ids).unwrap_err().to_string();
        assert!(message.contains("a.shard` ends before the last of its 200 tokens"), "{message}");
    }
}
