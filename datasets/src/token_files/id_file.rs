//! One file of ids, with all of them looked at.

use std::ffi::OsString;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use switchyard_ground::digest::hex;
use switchyard_ground::regular_file;

use super::check::Check;
use super::layout::{Layout, head_of, layout};
use super::megatron::MegatronIndex;
use crate::config::{TokenDtype, TokensConfig, is_megatron_index};
use crate::error::DatasetError;
use crate::hash::{for_each_block, sha256_of_file};
use crate::progress::Progress;
use crate::shard::TokenFile;
use crate::token_width::TokenWidth;

/// A file of ids, all of them looked at.
pub(super) struct IdFile {
    pub(super) path: PathBuf,
    header_bytes: u64,
    width: TokenWidth,
    pub(super) num_tokens: usize,
    /// First token of each document; `None` where no borders are known.
    document_starts: Option<Vec<u64>>,
    pub(super) sha256: [u8; 32],
    /// What tells its ids from those of another file of the same bytes; empty for raw 16-bit ids.
    pub(super) layout_key: String,
    /// What was found out about it.
    pub(super) note: Option<String>,
}

/// The documents of which a part of a file has some; none where no borders are known.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Documents {
    pub(super) count: u64,
    pub(super) largest_tokens: u64,
}

impl IdFile {
    /// The ids that `path` names: a file of ids, or the index of a Megatron dataset.
    ///
    /// # Errors
    /// If a file cannot be read, is of another format, or holds an id that `tokens` does not have.
    pub(super) fn open(
        path: &Path,
        tokens: &TokensConfig,
        progress: &Progress,
    ) -> Result<Self, DatasetError> {
        if is_megatron_index(path) {
            return Self::of_index(path, tokens, progress);
        }
        if !path.exists() && with_ending(path, ".idx").exists() {
            let problem =
                "is not there, but a Megatron dataset of that name is: name its `.idx` file".to_owned();
            return Err(DatasetError::TokenFile { path: path.to_path_buf(), problem });
        }
        let broken = |problem: String| DatasetError::TokenFile { path: path.to_path_buf(), problem };
        let mut file = regular_file::open(path).map_err(DatasetError::io("read", path))?;
        let (head, num_bytes) = head_of(&mut file).map_err(DatasetError::io("read", path))?;
        let (layout, note) = layout(&head, num_bytes, tokens.dtype).map_err(broken)?;
        let has_index =
            path.extension().is_some_and(|ending| ending == "bin") && path.with_extension("idx").exists();
        let words = note.or_else(|| {
            has_index.then(|| {
                "is read as raw ids without documents: name the `.idx` beside it to have both".to_owned()
            })
        });
        let layout_key = if layout == Layout::default() { String::new() } else { format!("{layout:?}\n") };
        let ids = Self {
            path: path.to_path_buf(),
            header_bytes: layout.header_bytes,
            width: layout.dtype.width(),
            num_tokens: 0,
            document_starts: None,
            sha256: [0; 32],
            layout_key,
            note: words.map(|words| format!("`{}` {words}", path.display())),
        };
        ids.checked(&mut file, tokens.dtype, tokens.vocab_size, progress)
    }

    /// The ids of the Megatron dataset with the index at `path`.
    fn of_index(path: &Path, tokens: &TokensConfig, progress: &Progress) -> Result<Self, DatasetError> {
        let data_path = path.with_extension("bin");
        let mut file = regular_file::open(&data_path).map_err(DatasetError::io("read", &data_path))?;
        let num_bytes = file.metadata().map_err(DatasetError::io("read", &data_path))?.len();
        let index = MegatronIndex::read(path, num_bytes, progress)?;
        let is_width = |dtype: TokenDtype| dtype.width() == index.width;
        if tokens.dtype.is_some_and(|dtype| !is_width(dtype)) {
            let bits = 8 * index.width.bytes();
            let problem = format!("says that its ids have {bits} bits: remove `data.tokens.dtype`");
            return Err(DatasetError::TokenFile { path: path.to_path_buf(), problem });
        }
        let ids = Self {
            path: data_path,
            header_bytes: 0,
            width: index.width,
            num_tokens: 0,
            document_starts: Some(index.document_starts),
            sha256: [0; 32],
            layout_key: format!("Megatron {}\n", hex(&sha256_of_file(path, progress)?)),
            note: None,
        };
        // The index has told the width, so nothing is concluded from how the ids look.
        ids.checked(&mut file, tokens.dtype, tokens.vocab_size, progress)
    }

    /// The same, once every id in `file` has been looked at.
    fn checked(
        self,
        file: &mut File,
        configured: Option<TokenDtype>,
        vocab_size: usize,
        progress: &Progress,
    ) -> Result<Self, DatasetError> {
        let broken = |problem: String| DatasetError::TokenFile { path: self.path.clone(), problem };
        let is_told = self.header_bytes > 0 || self.document_starts.is_some();
        let mut check = Check::new(self.width, is_told, vocab_size);
        let (mut hasher, mut to_skip) = (Sha256::new(), self.header_bytes as usize);
        for_each_block(file, &self.path, progress, &mut |block| {
            hasher.update(block);
            let header_len = to_skip.min(block.len());
            to_skip -= header_len;
            check.add(&block[header_len..]).map_err(broken)
        })?;
        check.finish(configured).map_err(broken)?;
        Ok(Self { num_tokens: check.position, sha256: hasher.finalize().into(), ..self })
    }

    /// The ids in `span`, which holds some.
    ///
    /// # Errors
    /// If the file cannot be opened again.
    pub(super) fn part(
        &self,
        span: Range<usize>,
        vocab_size: usize,
    ) -> Result<(TokenFile, Documents), DatasetError> {
        let file = regular_file::open(&self.path).map_err(DatasetError::io("read", &self.path))?;
        let offset = self.header_bytes + (span.start * self.width.bytes()) as u64;
        let file = TokenFile::raw((file, &self.path), self.width, vocab_size, offset, span.len());
        let Some(starts) = self.documents_in(&span) else { return Ok((file, Documents::default())) };
        let ends = starts.iter().skip(1).copied().chain([span.len() as u64]);
        let documents = Documents {
            count: starts.len() as u64,
            largest_tokens: ends.zip(&starts).map(|(end, start)| end - start).max().unwrap_or(0),
        };
        Ok((file.with_documents(starts), documents))
    }

    /// First token of each document that has some in `span`, counted from its start; `None` where no
    /// borders are known.
    fn documents_in(&self, span: &Range<usize>) -> Option<Vec<u64>> {
        let starts = self.document_starts.as_ref()?;
        let (start, end) = (span.start as u64, span.end as u64);
        let first = starts.partition_point(|at| *at <= start).saturating_sub(1);
        let inside = starts[first..].iter().take_while(|at| **at < end);
        let mut inside: Vec<u64> = inside.map(|at| at.saturating_sub(start)).collect();
        // Of several that begin at the same token all but the last are empty.
        inside.dedup();
        Some(inside)
    }
}

/// `path` with `ending` behind its name.
fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}
