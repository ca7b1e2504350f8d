//! Files of token ids as nanoGPT, llm.c and Megatron-LM write them: nothing to prepare, read where
//! they lie.

mod check;
mod id_file;
mod id_files;
mod layout;
mod megatron;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use sha2::{Digest, Sha256};
use switchyard_ground::digest::hex;

use crate::config::TokensConfig;
use crate::dataset::Dataset;
use crate::error::DatasetError;
use crate::manifest::{FORMAT_VERSION, Manifest, Repeats};
use crate::progress::Progress;
use crate::split::{Split, SplitRule};
use crate::tokenizer::Tokenizer;
use id_files::IdFiles;

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
    let open = |path: &Path| IdFiles::open(path, tokens, progress);
    let train = open(train_path)?;
    let validation = validation_path.as_deref().map(open).transpose()?;
    let test = test_path.as_deref().map(open).transpose()?;
    let key = key(tokens, rule, &train, [validation.as_ref(), test.as_ref()]);
    let splits = [Some(&train), validation.as_ref(), test.as_ref()];
    let files = splits.into_iter().flatten().flat_map(|split| &split.files);
    let mut notes: Vec<String> = files.filter_map(|file| file.note.clone()).collect();
    notes.extend(shared_files(&splits));

    let spans = Spans::new(rule, &train, validation.as_ref(), test.as_ref());
    let store = |split, (file, span): (&IdFiles, Range<usize>)| file.store(split, span, *vocab_size);
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
    Ok(Dataset { train, validation, test, tokenizer, manifest, folder: None, sources: Vec::new() })
}

/// A word on each file whose content an earlier split has too.
fn shared_files(splits: &[Option<&IdFiles>]) -> Vec<String> {
    let (mut notes, mut seen) = (Vec::new(), BTreeMap::new());
    for (name, split) in ["train", "validation", "test"].into_iter().zip(splits) {
        let files = || split.iter().flat_map(|files| &files.files);
        for file in files() {
            notes.extend(seen.get(&file.sha256).map(|other| {
                let path = file.path.display();
                format!("`{path}` of the {name} split is in the {other} split too: its loss is of text already seen")
            }));
        }
        seen.extend(files().map(|file| (file.sha256, name)));
    }
    notes
}

/// Where the ids of each split lie: in files of its own, or one after the other in those of `train`.
struct Spans<'a> {
    train: (&'a IdFiles, Range<usize>),
    validation: (&'a IdFiles, Range<usize>),
    test: Option<(&'a IdFiles, Range<usize>)>,
}

impl<'a> Spans<'a> {
    fn new(
        rule: SplitRule,
        train: &'a IdFiles,
        validation: Option<&'a IdFiles>,
        test: Option<&'a IdFiles>,
    ) -> Self {
        let all = |file: &'a IdFiles| (file, 0..file.num_tokens);
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
fn key(tokens: &TokensConfig, rule: SplitRule, train: &IdFiles, held_out: [Option<&IdFiles>; 2]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(format!("tokens vocab_size={} {}\n", tokens.vocab_size, rule.key()));
    let splits = [Some(train)].into_iter().chain(held_out).flatten();
    for file in splits.flat_map(|split| &split.files) {
        hasher.update(file.sha256);
        hasher.update(&file.layout_key);
    }
    hex(&hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::layout::{LLM_C_HEADER_BYTES, LLM_C_MAGIC_16_BIT, LLM_C_MAGIC_32_BIT};
    use super::*;
    use crate::config::TokenDtype;

    #[test]
    fn a_file_that_is_in_two_splits_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for (name, first) in [("a.bin", 1_u8), ("b.bin", 2)] {
            std::fs::write(path(name), [first, 0, 3, 0, 1, 0, 2, 0]).unwrap();
        }
        std::fs::copy(path("a.bin"), path("copy.bin")).unwrap();
        let notes = |validation: &str| {
            let (train, validation) = (path("a.bin"), Some(path(validation)));
            let tokens = TokensConfig { train, validation, test: None, vocab_size: 9, dtype: None };
            open(&tokens, SplitRule::new(None), &Progress::silent()).unwrap().manifest.notes
        };
        assert!(notes("copy.bin")[0].contains("copy.bin` of the validation split is in the train split too"));
        assert!(notes("b.bin").is_empty());
    }

    fn open_bytes(
        bytes: &[u8],
        vocab_size: usize,
        dtype: Option<TokenDtype>,
    ) -> Result<(IdFiles, Vec<i32>), String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.bin");
        std::fs::write(&path, bytes).unwrap();
        let tokens = TokensConfig { train: path.clone(), validation: None, test: None, vocab_size, dtype };
        let file = IdFiles::open(&path, &tokens, &Progress::silent()).map_err(|error| error.to_string())?;
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
        assert!(
            file.files[0]
                .note
                .as_ref()
                .unwrap()
                .ends_with("has the header of llm.c: read as 3 ids of 16 bits after it")
        );
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

    /// A Megatron dataset of one sequence for each document, after its published layout.
    fn write_megatron(stem: &Path, dtype: (u8, usize), documents: &[&[u32]]) {
        let mut index = b"MMIDIDX\0\0\x01\0\0\0\0\0\0\0".to_vec();
        index.push(dtype.0);
        let num_documents = documents.len() as u64;
        index.extend([num_documents, num_documents + 1].map(u64::to_le_bytes).concat());
        documents.iter().for_each(|ids| index.extend((ids.len() as i32).to_le_bytes()));
        let mut pointer = 0;
        for ids in documents {
            index.extend(i64::to_le_bytes(pointer));
            pointer += (ids.len() * dtype.1) as i64;
        }
        (0..=num_documents).for_each(|border| index.extend(border.to_le_bytes()));
        let ids = documents.iter().flat_map(|ids| ids.iter());
        let data: Vec<u8> = ids.flat_map(|id| id.to_le_bytes()[..dtype.1].to_vec()).collect();
        std::fs::write(stem.with_extension("idx"), index).unwrap();
        std::fs::write(stem.with_extension("bin"), data).unwrap();
    }

    #[test]
    fn a_megatron_dataset_is_read_with_its_documents_and_cut_between_splits() {
        let folder = tempfile::tempdir().unwrap();
        let stem = folder.path().join("corpus_text_document");
        let documents: [&[u32]; 4] = [&[1, 2, 3, 0], &[4, 5, 0], &[], &[6, 7, 0]];
        let path = stem.with_extension("idx");
        let mut tokens =
            TokensConfig { train: path, validation: None, test: None, vocab_size: 8, dtype: None };
        let rule = SplitRule::new(Some(&crate::config::SplitConfig::Tail(
            crate::config::SplitFractions::of_validation(0.5),
        )));
        let mut keys = Vec::new();
        for dtype in [(1, 1), (8, 2), (4, 4)] {
            write_megatron(&stem, dtype, &documents);
            let dataset = open(&tokens, rule, &Progress::silent()).unwrap();
            let (train, validation) = (&dataset.train, &dataset.validation);
            let mut ids = vec![0; 5];
            train.read(0, &mut ids).unwrap();
            assert_eq!(ids, [1, 2, 3, 0, 4]);
            validation.read(0, &mut ids).unwrap();
            assert_eq!(ids, [5, 0, 6, 7, 0]);
            assert_eq!(train.documents_of(0, 5).unwrap(), [(0, 4), (1, 1)]);
            assert_eq!(validation.documents_of(0, 5).unwrap(), [(0, 2), (1, 3)]);
            assert_eq!(dataset.manifest.train.largest_document_tokens, 4);
            keys.push(dataset.manifest.key);
        }
        let error = |tokens: &TokensConfig| open(tokens, rule, &Progress::silent()).unwrap_err().to_string();
        tokens.vocab_size = 7;
        assert!(
            error(&tokens).contains("corpus_text_document.bin` holds id 7 at position 8"),
            "{}",
            error(&tokens)
        );
        tokens.dtype = Some(TokenDtype::U16);
        assert!(error(&tokens).ends_with("says that its ids have 32 bits: remove `data.tokens.dtype`"));
        tokens.train = stem.clone();
        assert!(error(&tokens).contains("name its `.idx` file"), "{}", error(&tokens));
        keys.dedup();
        assert_eq!(keys.len(), 3, "other files, other keys");
    }
}
