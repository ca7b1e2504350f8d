//! Files of token ids as nanoGPT and llm.c write them: nothing to prepare, read where they lie.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use switchyard_ground::regular_file;

use crate::config::{TokenDtype, TokensConfig};
use crate::dataset::Dataset;
use crate::error::DatasetError;
use crate::hash::for_each_block;
use crate::manifest::{FORMAT_VERSION, Manifest, Repeats, SplitManifest};
use crate::progress::Progress;
use crate::shard::TokenFile;
use crate::split::{Split, SplitRule};
use crate::store::TokenStore;
use crate::token_width::TokenWidth;
use crate::tokenizer::Tokenizer;
use switchyard_ground::digest::hex;

/// The header that llm.c and those who took its format over write: 256 numbers of 32 bits.
const LLM_C_HEADER_BYTES: u64 = 1024;
/// Its first number says how wide the ids are.
const LLM_C_MAGIC_16_BIT: u32 = 20_240_520;
const LLM_C_MAGIC_32_BIT: u32 = 20_240_801;

const NUMPY_MAGIC: &[u8] = b"\x93NUMPY";

/// Ids below which nothing is concluded from how they look.
const MIN_TELLING_IDS: usize = 16;
/// The upper half of a 32-bit id is at most this in any vocabulary of half a million.
const MAX_UPPER_HALF: u32 = 7;

/// The corpus in the files of `tokens`; every id is compared with the vocabulary size.
///
/// # Errors
/// If a file cannot be read, holds an unknown id or is of another format, or leaves a split empty.
pub(crate) fn open(
    tokens: &TokensConfig,
    rule: SplitRule,
    progress: &Progress,
) -> Result<Dataset, DatasetError> {
    let TokensConfig { train: train_path, validation: validation_path, test: test_path, vocab_size, .. } =
        tokens;
    let open = |path: &Path| IdFile::open(path, tokens, progress);
    let train = open(train_path)?;
    let validation = validation_path.as_deref().map(open).transpose()?;
    let test = test_path.as_deref().map(open).transpose()?;
    let key = key(tokens, rule, &train, [validation.as_ref(), test.as_ref()]);
    let files = [Some(&train), validation.as_ref(), test.as_ref()];
    let notes = files.into_iter().flatten().filter_map(|file| file.note.clone()).collect();

    let spans = Spans::new(rule, &train, validation.as_ref(), test.as_ref());
    let store = |split, (file, span): (&IdFile, Range<usize>)| file.store(split, span, *vocab_size);
    let (train_store, train_facts) = store(Split::Train, spans.train)?;
    let (validation_store, validation_facts) = store(Split::Validation, spans.validation)?;
    let test = spans.test.map(|span| store(Split::Test, span)).transpose()?;
    let (test_store, test_facts) = test.unzip();

    let tokenizer = Tokenizer::Ids { vocab_size: *vocab_size, end_of_document: None };
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        key,
        source: format!("ids in `{}`", train_path.display()),
        split: validation_path
            .as_ref()
            .map_or_else(|| rule.description(), |path| format!("`{}`", path.display())),
        tokenizer: tokenizer.kind().to_owned(),
        tokenizer_hash: tokenizer.hash(),
        vocab_size: *vocab_size,
        begin_of_document: None,
        end_of_document: None,
        entropy_floor_nats: None,
        domain_uncertainty_nats: None,
        domain_names: Vec::new(),
        train: train_facts,
        validation: validation_facts,
        test: test_facts,
        repeats: Repeats::default(),
        notes,
    };
    let (train, validation, test) = (train_store, validation_store, test_store);
    Ok(Dataset { train, validation, test, tokenizer, manifest, folder: None })
}

/// Where the ids of each split lie: in a file each, or one after the other in that of `train`.
struct Spans<'a> {
    train: (&'a IdFile, Range<usize>),
    validation: (&'a IdFile, Range<usize>),
    test: Option<(&'a IdFile, Range<usize>)>,
}

impl<'a> Spans<'a> {
    fn new(
        rule: SplitRule,
        train: &'a IdFile,
        validation: Option<&'a IdFile>,
        test: Option<&'a IdFile>,
    ) -> Self {
        let all = |file: &'a IdFile| (file, 0..file.num_tokens);
        if let Some(validation) = validation {
            return Self { train: all(train), validation: all(validation), test: test.map(all) };
        }
        let [train_len, validation_len, _] = rule.tail_lens(train.num_tokens as u64).map(|len| len as usize);
        let test_start = train_len + validation_len;
        let has_test = rule.splits().contains(&Split::Test);
        Self {
            train: (train, 0..train_len),
            validation: (train, train_len..test_start),
            test: has_test.then_some((train, test_start..train.num_tokens)),
        }
    }
}

/// Everything that determines the tokens, as one sha256 in hexadecimal.
fn key(tokens: &TokensConfig, rule: SplitRule, train: &IdFile, held_out: [Option<&IdFile>; 2]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(format!("tokens vocab_size={} {}\n", tokens.vocab_size, rule.key()));
    for file in [Some(train)].into_iter().chain(held_out).flatten() {
        hasher.update(file.sha256);
        if file.layout != Layout::default() {
            hasher.update(format!("{:?}\n", file.layout));
        }
    }
    hex(&hasher.finalize())
}

/// Where and how wide the ids in a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    header_bytes: u64,
    dtype: TokenDtype,
}

impl Default for Layout {
    /// nanoGPT's.
    fn default() -> Self {
        Self { header_bytes: 0, dtype: TokenDtype::U16 }
    }
}

impl TokenDtype {
    fn width(self) -> TokenWidth {
        match self {
            Self::U16 => TokenWidth::Two,
            Self::U32 => TokenWidth::Four,
        }
    }

    fn num_bytes(self) -> u64 {
        self.width().bytes() as u64
    }

    fn num_bits(self) -> u64 {
        8 * self.num_bytes()
    }
}

/// A file of ids, all of them looked at.
struct IdFile {
    path: PathBuf,
    layout: Layout,
    num_tokens: usize,
    sha256: [u8; 32],
    /// What was found out about it.
    note: Option<String>,
}

impl IdFile {
    fn open(path: &Path, tokens: &TokensConfig, progress: &Progress) -> Result<Self, DatasetError> {
        let broken = |problem: String| DatasetError::TokenFile { path: path.to_path_buf(), problem };
        let mut file = regular_file::open(path).map_err(DatasetError::io("read", path))?;
        let (head, num_bytes) = head_of(&mut file).map_err(DatasetError::io("read", path))?;
        let (layout, note) = layout(&head, num_bytes, tokens.dtype).map_err(broken)?;
        let mut check = Check { layout, vocab_size: tokens.vocab_size, position: 0, ..Check::default() };
        let (mut hasher, mut to_skip) = (Sha256::new(), layout.header_bytes as usize);
        for_each_block(&mut file, path, progress, &mut |block| {
            hasher.update(block);
            let header_len = to_skip.min(block.len());
            to_skip -= header_len;
            check.add(&block[header_len..]).map_err(broken)
        })?;
        check.finish(tokens.dtype).map_err(broken)?;
        let note = note.map(|note| format!("`{}` {note}", path.display()));
        Ok(Self {
            path: path.to_path_buf(),
            layout,
            num_tokens: check.position,
            sha256: hasher.finalize().into(),
            note,
        })
    }

    /// The ids in `span` as a split.
    fn store(
        &self,
        split: Split,
        span: Range<usize>,
        vocab_size: usize,
    ) -> Result<(Arc<TokenStore>, SplitManifest), DatasetError> {
        if span.is_empty() {
            let problem = format!(
                "leaves the {} split without tokens: name a larger file, or change the fraction",
                split.name()
            );
            return Err(DatasetError::TokenFile { path: self.path.clone(), problem });
        }
        let file = regular_file::open(&self.path).map_err(DatasetError::io("read", &self.path))?;
        let offset = self.layout.header_bytes + span.start as u64 * self.layout.dtype.num_bytes();
        let file =
            TokenFile::raw((file, &self.path), self.layout.dtype.width(), vocab_size, offset, span.len());
        let facts = SplitManifest { num_tokens: span.len() as u64, ..SplitManifest::default() };
        Ok((Arc::new(TokenStore::new(split, vec![file])), facts))
    }
}

/// The first bytes of `file`, as many as a header has, and its size; reading goes on from the
/// start.
fn head_of(file: &mut File) -> std::io::Result<(Vec<u8>, u64)> {
    let mut head = Vec::new();
    file.by_ref().take(LLM_C_HEADER_BYTES).read_to_end(&mut head)?;
    file.seek(SeekFrom::Start(0))?;
    Ok((head, file.metadata()?.len()))
}

/// The layout of a file of `num_bytes` that begins with `head`, with what there is to say about it.
fn layout(
    head: &[u8],
    num_bytes: u64,
    configured: Option<TokenDtype>,
) -> Result<(Layout, Option<String>), String> {
    if head.starts_with(NUMPY_MAGIC) {
        return Err("is a file of NumPy's own format: write the ids alone, as by \
                    `array.astype('uint16').tofile(path)`"
            .to_owned());
    }
    let number = |index: usize| head.as_chunks::<4>().0.get(index).map(|bytes| u32::from_le_bytes(*bytes));
    let dtype = match number(0) {
        Some(LLM_C_MAGIC_16_BIT) => TokenDtype::U16,
        Some(LLM_C_MAGIC_32_BIT) => TokenDtype::U32,
        _ => {
            let layout = Layout { header_bytes: 0, dtype: configured.unwrap_or(TokenDtype::U16) };
            return Ok((layout, None));
        }
    };
    let num_tokens = u64::from(number(2).unwrap_or(0));
    if num_bytes != LLM_C_HEADER_BYTES + num_tokens * dtype.num_bytes() {
        return match configured {
            // Two ids can happen to look like the first number of a header.
            Some(dtype) => Ok((Layout { header_bytes: 0, dtype }, None)),
            None => Err(format!(
                "begins like a file of llm.c, whose header promises {num_tokens} ids of {} bits, but has {num_bytes} bytes: it \
                 is cut or damaged. If it has no header, say so with `data.tokens.dtype = \"u16\"` or \"u32\"",
                dtype.num_bits()
            )),
        };
    }
    if configured.is_some_and(|configured| configured != dtype) {
        return Err(format!(
            "has the header of llm.c for ids of {} bits: remove `data.tokens.dtype`",
            dtype.num_bits()
        ));
    }
    let note =
        format!("has the header of llm.c: read as {num_tokens} ids of {} bits after it", dtype.num_bits());
    Ok((Layout { header_bytes: LLM_C_HEADER_BYTES, dtype }, Some(note)))
}

/// Looks at every id of a file.
#[derive(Default)]
struct Check {
    layout: Layout,
    vocab_size: usize,
    /// Ids seen.
    position: usize,
    /// The bytes of an id of which a block held only the first.
    rest: Vec<u8>,
    /// Largest id at even and at odd positions.
    largest: [u32; 2],
}

impl Check {
    fn add(&mut self, block: &[u8]) -> Result<(), String> {
        let width = self.layout.dtype.width().bytes();
        let num_missing = if self.rest.is_empty() { 0 } else { width - self.rest.len() };
        let (first, block) = block.split_at(num_missing.min(block.len()));
        self.rest.extend_from_slice(first);
        if self.rest.len() == width {
            let first = std::mem::take(&mut self.rest);
            self.ids(&first)?;
        }
        let (whole, rest) = block.split_at(block.len() - block.len() % width);
        self.rest.extend_from_slice(rest);
        self.ids(whole)
    }

    /// Looks at `bytes`, which are whole ids.
    fn ids(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut ids = vec![0; bytes.len() / self.layout.dtype.width().bytes()];
        self.layout.dtype.width().read(bytes, &mut ids);
        for id in ids {
            let id = id as u32;
            if id as usize >= self.vocab_size {
                return Err(format!(
                    "holds id {id} at position {}, not below `data.tokens.vocab_size` = {}: raise it, or name a file of raw \
                     little-endian {}-bit ids{}",
                    self.position,
                    self.vocab_size,
                    self.layout.dtype.num_bits(),
                    self.guess().map_or(String::new(), |guess| format!(". {guess}"))
                ));
            }
            let largest = &mut self.largest[self.position % 2];
            *largest = id.max(*largest);
            self.position += 1;
        }
        Ok(())
    }

    fn finish(&self, configured: Option<TokenDtype>) -> Result<(), String> {
        if !self.rest.is_empty() {
            return Err(match self.layout.dtype {
                TokenDtype::U16 => "has an odd number of bytes: 16-bit ids are expected".to_owned(),
                TokenDtype::U32 => {
                    "has a number of bytes that is no multiple of 4: 32-bit ids are expected".to_owned()
                }
            });
        }
        match self.guess() {
            Some(guess) if configured.is_none() || self.layout.dtype == TokenDtype::U32 => {
                Err(format!("does not look like {}-bit ids. {guess}", self.layout.dtype.num_bits()))
            }
            _ => Ok(()),
        }
    }

    /// What the ids look like instead; nothing if they look right.
    fn guess(&self) -> Option<&'static str> {
        let [even, odd] = self.largest;
        let are_halves = self.layout.header_bytes == 0
            && self.position >= MIN_TELLING_IDS
            && even > 0
            && (odd == 0 || odd <= MAX_UPPER_HALF && even > 0xff);
        match self.layout.dtype {
            _ if !are_halves => None,
            TokenDtype::U16 => Some(
                "Every second number is (nearly) zero, as in a file of 32-bit ids: set `data.tokens.dtype = \"u32\"`, or \
                 \"u16\" if it is right as it is",
            ),
            TokenDtype::U32 if odd == 0 => Some(
                "Every second number is zero, as in a file of 64-bit ids, which are not read: write them with \
                 `array.astype('uint32').tofile(path)`",
            ),
            TokenDtype::U32 => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_bytes(
        bytes: &[u8],
        vocab_size: usize,
        dtype: Option<TokenDtype>,
    ) -> Result<(IdFile, Vec<i32>), String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.bin");
        std::fs::write(&path, bytes).unwrap();
        let tokens = TokensConfig { train: path.clone(), validation: None, test: None, vocab_size, dtype };
        let file = IdFile::open(&path, &tokens, &Progress::silent()).map_err(|error| error.to_string())?;
        let (store, _) = file.store(Split::Train, 0..file.num_tokens, vocab_size).unwrap();
        let mut ids = vec![0; store.len()];
        store.read(0, &mut ids).unwrap();
        Ok((file, ids))
    }

    fn u16s(ids: impl IntoIterator<Item = u16>) -> Vec<u8> {
        ids.into_iter().flat_map(u16::to_le_bytes).collect()
    }

    fn u32s(ids: impl IntoIterator<Item = u32>) -> Vec<u8> {
        ids.into_iter().flat_map(u32::to_le_bytes).collect()
    }

    fn header(magic: u32, num_tokens: u32) -> Vec<u8> {
        let mut header = u32s([magic, 1, num_tokens]);
        header.resize(LLM_C_HEADER_BYTES as usize, 0);
        header
    }

    #[test]
    fn raw_ids_are_checked_against_the_vocabulary() {
        let bytes = [1, 0, 2, 1, 9, 0];
        assert_eq!(open_bytes(&bytes, 300, None).unwrap().1, [1, 258, 9]);
        let message = open_bytes(&bytes, 258, None).map(|_| ()).unwrap_err();
        assert!(
            message.contains("holds id 258 at position 1, not below `data.tokens.vocab_size` = 258"),
            "{message}"
        );
        let message = open_bytes(&bytes[..3], 258, None).map(|_| ()).unwrap_err();
        assert!(message.contains("has an odd number of bytes"), "{message}");
    }

    #[test]
    fn wider_ids_are_told_from_narrow_ones_and_read_on_request() {
        let ids: Vec<u32> = (0..100_000_u32).map(|index| index * 7919 % 50_000).collect();
        let large: Vec<u32> = ids.iter().map(|id| id * 3).collect();
        for ids in [&ids, &large, &ids.iter().map(|id| id % 200).collect()] {
            let message = open_bytes(&u32s(ids.iter().copied()), 1 << 18, None).map(|_| ()).unwrap_err();
            assert!(message.contains("set `data.tokens.dtype = \"u32\"`"), "{message}");
            let (_, read) = open_bytes(&u32s(ids.iter().copied()), 1 << 18, Some(TokenDtype::U32)).unwrap();
            assert!(read.iter().zip(ids).all(|(read, id)| *read as u32 == *id));
        }
        let wide: Vec<u8> = ids.iter().flat_map(|id| u64::from(*id).to_le_bytes()).collect();
        let message = open_bytes(&wide, 1 << 18, Some(TokenDtype::U32)).map(|_| ()).unwrap_err();
        assert!(message.contains("64-bit ids"), "{message}");
        // Narrow ids may be small, or zero now and then; and whoever names their width is believed.
        assert!(open_bytes(&u16s((0..1000).map(|index| index % 8)), 8, None).is_ok());
        let odd_ones = u16s((0..1000).map(|index| if index % 2 == 0 { index } else { 0 }));
        assert!(open_bytes(&odd_ones, 1000, None).is_err());
        assert_eq!(open_bytes(&odd_ones, 1000, Some(TokenDtype::U16)).unwrap().1.len(), 1000);
    }

    #[test]
    fn the_header_of_llm_c_is_read_and_not_taken_for_ids() {
        let narrow = [header(LLM_C_MAGIC_16_BIT, 3), u16s([5, 6, 50_256])].concat();
        let (file, ids) = open_bytes(&narrow, 50_257, None).unwrap();
        assert_eq!(ids, [5, 6, 50_256]);
        assert!(file.note.unwrap().ends_with("has the header of llm.c: read as 3 ids of 16 bits after it"));
        let wide = [header(LLM_C_MAGIC_32_BIT, 2), u32s([5, 128_000])].concat();
        assert_eq!(open_bytes(&wide, 128_256, None).unwrap().1, [5, 128_000]);
        let message = open_bytes(&wide, 60_000, Some(TokenDtype::U16)).map(|_| ()).unwrap_err();
        assert!(message.contains("remove `data.tokens.dtype`"), "{message}");
        let cut = &narrow[..narrow.len() - 2];
        let message = open_bytes(cut, 1 << 16, None).map(|_| ()).unwrap_err();
        assert!(message.contains("whose header promises 3 ids of 16 bits, but has 1028 bytes"), "{message}");
        assert_eq!(open_bytes(cut, 1 << 16, Some(TokenDtype::U16)).unwrap().1.len(), 514);
        assert!(
            open_bytes(b"\x93NUMPY\x01\x00v\x00", 1 << 16, None).map(|_| ()).unwrap_err().contains("NumPy")
        );
    }

    #[test]
    fn blocks_may_end_within_an_id() {
        let bytes = u32s([1, 70_000, 3, 4]);
        for split in 0..bytes.len() {
            let layout = Layout { header_bytes: 0, dtype: TokenDtype::U32 };
            let mut check = Check { layout, vocab_size: 70_001, ..Check::default() };
            let (head, tail) = bytes.split_at(split);
            let (middle, tail) = tail.split_at(tail.len().min(1));
            [head, middle, tail].iter().for_each(|block| check.add(block).unwrap());
            check.finish(None).unwrap();
            assert_eq!((check.position, check.largest), (4, [3, 70_000]));
        }
    }
}
