//! The ids of a split: one file, or shards one after the other.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use switchyard_ground::pattern::{ANY_TEXT, fits};

use super::id_file::IdFile;
use crate::config::{TokensConfig, is_megatron_index};
use crate::error::DatasetError;
use crate::manifest::SplitManifest;
use crate::progress::Progress;
use crate::split::Split;
use crate::store::TokenStore;

/// Files of ids, all of them looked at, in the order of their names.
pub(super) struct IdFiles {
    /// As configured: a file, a folder, or a pattern of names.
    path: PathBuf,
    pub(super) files: Vec<IdFile>,
    pub(super) num_tokens: usize,
}

impl IdFiles {
    /// The ids that `path` names: one file, the `.bin` or `.idx` files of a folder, or the files
    /// whose names fit one with `*` in it.
    ///
    /// # Errors
    /// If there is no such file, or one cannot be read as [`IdFile::open`] says.
    pub(super) fn open(
        path: &Path,
        tokens: &TokensConfig,
        progress: &Progress,
    ) -> Result<Self, DatasetError> {
        let paths = shards(path)?;
        let open = |path: &PathBuf| IdFile::open(path, tokens, progress);
        let files = paths.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let num_tokens = files.iter().map(|file| file.num_tokens).sum();
        Ok(Self { path: path.to_path_buf(), files, num_tokens })
    }

    /// The ids in `span` as a split.
    ///
    /// # Errors
    /// If there are none, or a file cannot be opened again.
    pub(super) fn store(
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
        let mut facts = SplitManifest { num_tokens: span.len() as u64, ..SplitManifest::default() };
        let (mut parts, mut file_start) = (Vec::new(), 0);
        for file in &self.files {
            let inside = |position: usize| position.saturating_sub(file_start).min(file.num_tokens);
            let in_file = inside(span.start)..inside(span.end);
            file_start += file.num_tokens;
            if !in_file.is_empty() {
                let (part, documents) = file.part(in_file, vocab_size)?;
                facts.num_documents += documents.count;
                facts.largest_document_tokens = facts.largest_document_tokens.max(documents.largest_tokens);
                parts.push(part);
            }
        }
        Ok((Arc::new(TokenStore::new(split, parts)), facts))
    }
}

/// The files that `path` names, at least one.
fn shards(path: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let broken =
        |problem: &str| DatasetError::TokenFile { path: path.to_path_buf(), problem: problem.to_owned() };
    let pattern = path.file_name().and_then(|name| name.to_str()).filter(|name| name.contains(ANY_TEXT));
    let (folder, pattern) = match (path.is_dir(), pattern) {
        (true, _) => (path, None),
        (false, Some(pattern)) if !path.exists() => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            (parent.unwrap_or(Path::new(".")), Some(pattern))
        }
        _ => return Ok(vec![path.to_path_buf()]),
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(DatasetError::io("read", folder))? {
        let file = entry.map_err(DatasetError::io("read", folder))?.path();
        let Some(name) = file.file_name().and_then(|name| name.to_str()) else { continue };
        let is_wanted = match pattern {
            Some(pattern) => fits(pattern, name),
            None => !name.starts_with('.') && (name.ends_with(".bin") || is_megatron_index(&file)),
        };
        if is_wanted {
            found.push(file);
        }
    }
    found.sort();
    // The data of an index is not a file of its own.
    let (indices, data): (Vec<_>, Vec<_>) = found.into_iter().partition(|file| is_megatron_index(file));
    let raw: Vec<PathBuf> =
        data.into_iter().filter(|file| !indices.contains(&file.with_extension("idx"))).collect();
    match (indices.is_empty(), raw.is_empty()) {
        (true, true) => Err(broken(
            "names no files of ids: name a file, a folder of .bin or .idx files, or names with `*`",
        )),
        (false, false) => Err(broken(
            "names Megatron datasets beside files without an index: keep them in folders of their own, each a source",
        )),
        (true, false) => Ok(raw),
        (false, true) => Ok(indices),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_one_array_in_the_order_of_their_names_and_can_be_cut_anywhere() {
        let folder = tempfile::tempdir().unwrap();
        let ids: Vec<u16> = (0..10).collect();
        for (name, part) in [("c.bin", 7..10), ("a.bin", 0..3), ("b.bin", 3..7)] {
            let bytes: Vec<u8> = ids[part].iter().flat_map(|id| id.to_le_bytes()).collect();
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        std::fs::write(folder.path().join("README.md"), "no ids").unwrap();
        let open = |path: PathBuf| {
            let tokens = TokensConfig {
                train: path.clone(),
                validation: None,
                test: None,
                vocab_size: 10,
                dtype: None,
            };
            IdFiles::open(&path, &tokens, &Progress::silent())
        };
        for path in [folder.path().to_path_buf(), folder.path().join("*.bin")] {
            let files = open(path).unwrap();
            assert_eq!(files.num_tokens, 10);
            for span in [0..10, 2..4, 3..7, 6..9, 9..10] {
                let (store, facts) = files.store(Split::Train, span.clone(), 10).unwrap();
                let mut read = vec![0; store.len()];
                store.read(0, &mut read).unwrap();
                assert_eq!(read, span.clone().map(|id| id as i32).collect::<Vec<_>>());
                assert_eq!(facts.num_tokens, span.len() as u64);
            }
            assert!(files.store(Split::Test, 4..4, 10).unwrap_err().to_string().contains("the test split"));
        }
        let none = open(folder.path().join("x*")).map(|_| ()).unwrap_err().to_string();
        assert!(none.contains("names no files of ids"), "{none}");
        std::fs::write(folder.path().join("d.idx"), "").unwrap();
        let mixed = open(folder.path().to_path_buf()).map(|_| ()).unwrap_err().to_string();
        assert!(mixed.contains("beside files without an index"), "{mixed}");
    }
}
