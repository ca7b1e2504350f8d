//! Token files: written once, then read through a memory map.
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
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::error::DatasetError;

const MAGIC: &[u8; 8] = b"SWYDSHRD";
pub(crate) const SHARD_VERSION: u32 = 1;
const HEADER_BYTES: usize = 128;
/// Part of the header that the checksum covers.
const CHECKED_HEADER_BYTES: usize = 72;

/// A shard is closed at the first document border after this many tokens.
pub(crate) const MAX_SHARD_TOKENS: u64 = 1 << 27;

/// Width of a stored token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenWidth {
    One,
    Two,
    Four,
}

impl TokenWidth {
    fn for_vocabulary(vocab_size: u64) -> Self {
        match vocab_size {
            0..=0x100 => Self::One,
            0x101..=0x1_0000 => Self::Two,
            _ => Self::Four,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
        }
    }

    fn push(self, id: u32, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&id.to_le_bytes()[..self.bytes()]);
    }

    fn read(self, bytes: &[u8], out: &mut [i32]) {
        match self {
            Self::One => out.iter_mut().zip(bytes).for_each(|(id, byte)| *id = i32::from(*byte)),
            Self::Two => {
                let pairs = bytes.as_chunks::<2>().0;
                out.iter_mut().zip(pairs).for_each(|(id, pair)| *id = i32::from(u16::from_le_bytes(*pair)));
            }
            Self::Four => {
                let quads = bytes.as_chunks::<4>().0;
                out.iter_mut().zip(quads).for_each(|(id, quad)| *id = i32::from_le_bytes(*quad));
            }
        }
    }
}

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

/// Tokens in a memory-mapped file: a shard, or a span of raw ids without documents.
#[derive(Debug)]
pub(crate) struct TokenFile {
    map: Mmap,
    width: TokenWidth,
    /// Where the tokens begin.
    offset: usize,
    num_tokens: usize,
    documents: Option<DocumentTable>,
}

#[derive(Debug)]
struct DocumentTable {
    starts_offset: usize,
    domains_offset: usize,
    num_documents: usize,
}

impl TokenFile {
    /// The shard at `path`, after its whole content has been compared with its checksum: reading everything once is
    /// quick beside training on it, and finds damage before the run rather than in its loss.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, of a newer version, or not the one with `checksum`.
    pub(crate) fn open_shard(path: &Path, checksum: &[u8; 32]) -> Result<Self, DatasetError> {
        let damaged = |problem: String| DatasetError::damaged(path, problem);
        let map = map(path)?;
        let Some((header, _)) = map.split_first_chunk::<HEADER_BYTES>() else {
            return Err(damaged(format!("has {} bytes, less than a header", map.len())));
        };
        if &header[..8] != MAGIC {
            return Err(damaged("is not a shard of tokens (wrong magic number)".to_owned()));
        }
        let version = u32_at(header, 8);
        if version != SHARD_VERSION {
            return Err(damaged(format!("has format version {version}, this program reads {SHARD_VERSION}")));
        }
        let width = match u32_at(header, 12) {
            1 => TokenWidth::One,
            2 => TokenWidth::Two,
            4 => TokenWidth::Four,
            other => return Err(damaged(format!("has tokens of {other} bytes, expected 1, 2 or 4"))),
        };
        let (num_tokens, num_documents) = (u64_at(header, 16), u64_at(header, 24));
        let Some((starts_offset, end)) = table_span(num_tokens, num_documents, width) else {
            return Err(damaged(format!("claims {num_tokens} tokens in {num_documents} documents")));
        };
        if end != map.len() {
            return Err(damaged(format!("has {} bytes, its header promises {end}", map.len())));
        }
        let mut hasher = Sha256::new();
        hasher.update(&map[HEADER_BYTES..]);
        hasher.update(&header[..CHECKED_HEADER_BYTES]);
        let actual: [u8; 32] = hasher.finalize().into();
        if actual != header[CHECKED_HEADER_BYTES..CHECKED_HEADER_BYTES + 32] {
            return Err(damaged("does not match its checksum".to_owned()));
        }
        if actual != *checksum {
            return Err(damaged("is not the shard that its manifest names".to_owned()));
        }
        let num_documents = num_documents as usize;
        let documents =
            DocumentTable { starts_offset, domains_offset: starts_offset + 8 * num_documents, num_documents };
        let num_tokens = num_tokens as usize;
        Ok(Self { map, width, offset: HEADER_BYTES, num_tokens, documents: Some(documents) })
    }

    /// The raw 16-bit ids at `path`, of which `span(number of ids)` is kept.
    ///
    /// # Errors
    /// If the file cannot be read, has an odd size, or an id that is not below `vocab_size`.
    pub(crate) fn open_raw(
        path: &Path,
        vocab_size: usize,
        span: impl Fn(usize) -> std::ops::Range<usize>,
    ) -> Result<Self, DatasetError> {
        let broken = |problem: String| DatasetError::TokenFile { path: path.to_path_buf(), problem };
        let map = map(path)?;
        let (pairs, rest) = map.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(broken(format!("has {} bytes, an odd number: 16-bit ids are expected", map.len())));
        }
        let is_unknown = |pair: &[u8; 2]| usize::from(u16::from_le_bytes(*pair)) >= vocab_size;
        if let Some(index) = pairs.iter().position(is_unknown) {
            let id = u16::from_le_bytes(pairs[index]);
            return Err(broken(format!(
                "holds id {id} at position {index}, not below `data.tokens.vocab_size` = {vocab_size}: raise it, or \
                 name a file of raw little-endian 16-bit ids"
            )));
        }
        let span = span(pairs.len());
        let (offset, num_tokens) = (2 * span.start, span.len());
        Ok(Self { map, width: TokenWidth::Two, offset, num_tokens, documents: None })
    }

    pub(crate) fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    pub(crate) fn num_documents(&self) -> usize {
        self.documents.as_ref().map_or(0, |table| table.num_documents)
    }

    /// Copies the tokens from `start` on into `out`.
    ///
    /// # Panics
    /// If that leaves the file.
    pub(crate) fn read(&self, start: usize, out: &mut [i32]) {
        let end = start + out.len();
        assert!(end <= self.num_tokens, "tokens {start}..{end} of a file with {}", self.num_tokens);
        let width = self.width.bytes();
        let tokens = &self.map[self.offset + start * width..self.offset + end * width];
        self.width.read(tokens, out);
    }

    /// Index of the document that holds the token at `position`; none without a table.
    pub(crate) fn document_at(&self, position: usize) -> Option<usize> {
        let table = self.documents.as_ref()?;
        let (mut low, mut high) = (0, table.num_documents);
        while low < high {
            let middle = low.midpoint(high);
            if u64_at(&self.map, table.starts_offset + 8 * middle) <= position as u64 {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low.checked_sub(1)
    }

    /// First token of the document with this index, or the number of tokens if there is no such document.
    pub(crate) fn document_start(&self, index: usize) -> usize {
        match &self.documents {
            Some(table) if index < table.num_documents => {
                u64_at(&self.map, table.starts_offset + 8 * index) as usize
            }
            _ => self.num_tokens,
        }
    }

    /// Domain of the document with this index; 0 without a table.
    pub(crate) fn domain(&self, document: usize) -> u16 {
        match &self.documents {
            Some(table) if document < table.num_documents => {
                let at = table.domains_offset + 2 * document;
                u16::from_le_bytes([self.map[at], self.map[at + 1]])
            }
            _ => 0,
        }
    }
}

/// Offset of the document table and of the end of a shard of these sizes; none if the sizes overflow.
fn table_span(num_tokens: u64, num_documents: u64, width: TokenWidth) -> Option<(usize, usize)> {
    let token_bytes = num_tokens.checked_mul(width.bytes() as u64)?.checked_next_multiple_of(8)?;
    let starts = token_bytes.checked_add(HEADER_BYTES as u64)?;
    let end = num_documents.checked_mul(10)?.checked_add(starts)?;
    Some((usize::try_from(starts).ok()?, usize::try_from(end).ok()?))
}

fn map(path: &Path) -> Result<Mmap, DatasetError> {
    let file = File::open(path).map_err(DatasetError::io("read", path))?;
    // SAFETY: the map is only read. Shards are written under another name and renamed when complete, and nothing in
    // Switchyard changes a file of tokens afterwards. A program that truncates the file while it is mapped ends
    // this one; one that overwrites it changes token values, each of which is a valid integer whatever its bytes.
    unsafe { Mmap::map(&file) }.map_err(DatasetError::io("map", path))
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
            let shard = TokenFile::open_shard(&path, &finished.checksum).unwrap();
            let all: Vec<i32> = documents.iter().flat_map(|(_, ids)| ids).map(|id| *id as i32).collect();
            let mut read = vec![0; all.len()];
            shard.read(0, &mut read);
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
            TokenFile::open_shard(&path, &finished.checksum)
        };
        assert!(open(&sound).is_ok());
        for at in (0..104).chain(HEADER_BYTES..sound.len()) {
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
        let message = TokenFile::open_shard(&path, &finished.checksum).unwrap_err().to_string();
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
        assert!(!path.exists());
    }

    #[test]
    fn raw_ids_are_checked_against_the_vocabulary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.bin");
        std::fs::write(&path, [1, 0, 2, 1, 9, 0]).unwrap();
        let file = TokenFile::open_raw(&path, 300, |len| 1..len).unwrap();
        let mut ids = [0; 2];
        file.read(0, &mut ids);
        assert_eq!((file.num_tokens(), ids), (2, [258, 9]));
        let message = TokenFile::open_raw(&path, 258, |len| 0..len).unwrap_err().to_string();
        assert!(
            message.contains("holds id 258 at position 1, not below `data.tokens.vocab_size` = 258"),
            "{message}"
        );
        std::fs::write(&path, [1, 0, 2]).unwrap();
        let message = TokenFile::open_raw(&path, 258, |len| 0..len).unwrap_err().to_string();
        assert!(message.contains("has 3 bytes, an odd number"), "{message}");
    }
}
