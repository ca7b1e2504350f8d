//! The ids of small corpora, pinned: runs are repeated by preparing their data again, so the same
//! text must give the same ids in every later version.

use std::path::Path;

use sha2::{Digest, Sha256};
use switchyard_datasets::{
    BpeTokenizerConfig, DataConfig, Progress, SourceConfig, SplitConfig, SplitFractions, SyntheticConfig,
    TextConfig, TokenStore, TokenizerConfig, prepare,
};

/// Hash of the ids of both splits, and of where their documents begin.
fn hash_of(config: &DataConfig) -> String {
    let dataset = prepare(config, &Progress::silent()).expect("a small corpus is prepared");
    let mut hasher = Sha256::new();
    for store in [&dataset.train, &dataset.validation] {
        hasher.update(bytes_of(store));
    }
    hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(store: &TokenStore) -> Vec<u8> {
    let mut ids = vec![0; store.len()];
    store.read(0, &mut ids).expect("prepared tokens are read");
    let documents =
        (0..store.len()).map(|position| store.document_index(position).unwrap_or(usize::MAX) as u32);
    let domains = (0..store.len()).map(|position| store.domain(position));
    ids.iter()
        .flat_map(|id| id.to_le_bytes())
        .chain(documents.flat_map(u32::to_le_bytes))
        .chain(domains.flat_map(u16::to_le_bytes))
        .collect()
}

/// A corpus of 40 files in 4 folders, of prose, code, other scripts and white space.
fn write_corpus(folder: &Path) {
    for index in 0..40 {
        let domain = folder.join(format!("domain-{}", index % 4));
        std::fs::create_dir_all(&domain).expect("a folder is made");
        let text: String = (0..60)
            .map(|line| {
                format!("{index} fn step_{line}() {{ it's  größer; }}\n\tДокумент {} 数据\r\n", line * index)
            })
            .collect();
        std::fs::write(domain.join(format!("{index:02}.txt")), text).expect("a file is written");
    }
}

fn text_config(folder: &Path, tokenizer: Option<TokenizerConfig>, split: SplitConfig) -> DataConfig {
    DataConfig {
        cache_dir: Some(folder.join("cache")),
        tokenizer,
        split: Some(split),
        ..DataConfig::new(SourceConfig::Text(TextConfig::new(folder.join("corpus"))))
    }
}

#[test]
fn the_ids_of_text_are_pinned() {
    let folder = tempfile::tempdir().unwrap();
    write_corpus(&folder.path().join("corpus"));
    let bpe = || Some(TokenizerConfig::Bpe(BpeTokenizerConfig { vocab_size: 600 }));
    let fraction = SplitFractions::of_validation(0.3);
    let by_hash = || SplitConfig::ByDocumentHash(fraction.clone());
    let tail = || SplitConfig::Tail(fraction.clone());
    let hashes = [
        hash_of(&text_config(folder.path(), None, by_hash())),
        hash_of(&text_config(folder.path(), None, tail())),
        hash_of(&text_config(folder.path(), bpe(), by_hash())),
        hash_of(&text_config(folder.path(), bpe(), tail())),
    ];
    assert_eq!(hashes, ["109eafbed82f541e", "4e2c004ccbd0894a", "176f214791770553", "d6b76901066d3401"]);
}

#[test]
fn the_ids_of_generated_documents_are_pinned() {
    let folder = tempfile::tempdir().unwrap();
    let synthetic = SyntheticConfig {
        num_domains: 4,
        vocab_size: 300,
        num_documents: 500,
        document_tokens: 40,
        branching: 4,
        seed: 1,
    };
    let config = DataConfig {
        cache_dir: Some(folder.path().to_path_buf()),
        ..DataConfig::new(SourceConfig::Synthetic(synthetic))
    };
    assert_eq!(hash_of(&config), "97905d74b6f9d6bf");
}
