//! The default corpus, from cargo's real cache.

use std::io::Write;

use switchyard_datasets::{
    BpeTokenizerConfig, CratesConfig, DataConfig, Dataset, DatasetError, Progress, SourceConfig,
    TokenizerConfig, prepare,
};

fn corpus(
    cache: &std::path::Path,
    max_bytes: Option<u64>,
    tokenizer: Option<TokenizerConfig>,
) -> Result<Dataset, DatasetError> {
    let config = DataConfig {
        cache_dir: Some(cache.to_path_buf()),
        tokenizer,
        ..DataConfig::new(SourceConfig::Crates(CratesConfig { max_bytes }))
    };
    prepare(&config, &Progress::silent())
}

/// The result, or a printed skip where cargo keeps no archives (a vendored build).
fn unless_missing(result: Result<Dataset, DatasetError>) -> Option<Dataset> {
    match result {
        Err(error @ DatasetError::MissingArchives { .. }) => {
            // Past the capture of passing tests' output: a skip is seen.
            writeln!(std::io::stderr(), "SKIPPED: {error}").expect("standard error is open");
            None
        }
        other => Some(other.expect("archives that are present can be read")),
    }
}

/// A binomial share of several hundred documents: four deviations of sqrt(0.05 * 0.95 / n).
fn assert_validation_share(dataset: &Dataset) {
    let num_validation = dataset.manifest.validation.num_documents as f64;
    let num_documents = num_validation + dataset.manifest.train.num_documents as f64;
    let deviation = (0.05 * 0.95 / num_documents).sqrt();
    assert!(
        (num_validation / num_documents - 0.05).abs() < 4.0 * deviation,
        "{num_validation} of {num_documents}"
    );
}

#[test]
fn the_default_corpus_is_megabytes_of_text_from_every_crate() {
    let cache = tempfile::tempdir().unwrap();
    let Some(dataset) = unless_missing(corpus(cache.path(), None, None)) else {
        return;
    };
    let manifest = &dataset.manifest;
    let num_bytes = manifest.train.num_bytes + manifest.validation.num_bytes;
    let num_documents = manifest.train.num_documents + manifest.validation.num_documents;
    switchyard_ground::say!("default corpus: {num_bytes} bytes in {num_documents} documents");
    assert!((10_000_000..25_000_000).contains(&num_bytes));
    assert!(manifest.train.tokens_per_domain.iter().all(|tokens| *tokens > 0));
    assert_validation_share(&dataset);
    assert_eq!(manifest.end_of_document, Some(0));
}

#[test]
fn a_limit_takes_a_fair_mixture_and_repeats_exactly() {
    let cache = tempfile::tempdir().unwrap();
    let tokenizer = || Some(TokenizerConfig::Bpe(BpeTokenizerConfig { vocab_size: 1000 }));
    let Some(dataset) = unless_missing(corpus(cache.path(), Some(2_000_000), tokenizer())) else { return };
    let manifest = &dataset.manifest;
    let num_bytes = manifest.train.num_bytes + manifest.validation.num_bytes;
    // Documents are chosen by their hash too: that must not decide which split they fall into.
    assert_validation_share(&dataset);
    assert!((1_600_000..=2_000_000).contains(&num_bytes), "{num_bytes}");
    let num_crates = manifest.train.tokens_per_domain.iter().filter(|tokens| **tokens > 0).count();
    assert!(num_crates > 40, "{num_crates} crates are left");
    assert!(manifest.train.bytes_per_token().unwrap() > 2.0);
    let elsewhere = tempfile::tempdir().unwrap();
    let again = corpus(elsewhere.path(), Some(2_000_000), tokenizer()).unwrap();
    assert_eq!(again.manifest, dataset.manifest);
}
