//! What is prepared once: reuse, interruption, two processes at the same time, damage.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use switchyard_datasets::{
    BpeTokenizerConfig, DataConfig, Dataset, DatasetError, DatasetStatistics, FileTokenizerConfig, Progress,
    SplitConfig, SplitFraction, SyntheticConfig, TextConfig, TokenStore, TokenizerConfig, TokensConfig,
    prepare,
};

const CHILD_CACHE: &str = "SWITCHYARD_DATASETS_TEST_CACHE";

fn synthetic(cache: &Path, num_documents: u64) -> DataConfig {
    let synthetic = SyntheticConfig {
        num_domains: 4,
        vocab_size: 300,
        num_documents,
        document_tokens: 100,
        branching: 4,
        seed: 1,
    };
    DataConfig { cache_dir: Some(cache.to_path_buf()), synthetic: Some(synthetic), ..DataConfig::default() }
}

fn text(cache: &Path, path: &Path) -> DataConfig {
    let text = TextConfig { path: path.to_path_buf(), jsonl_key: None };
    DataConfig { cache_dir: Some(cache.to_path_buf()), text: Some(text), ..DataConfig::default() }
}

fn tail(validation_fraction: f64) -> SplitConfig {
    SplitConfig { tail: Some(SplitFraction { validation_fraction }), ..SplitConfig::default() }
}

fn silent(config: &DataConfig) -> Result<Dataset, DatasetError> {
    prepare(config, &Progress::silent())
}

fn ids(store: &TokenStore) -> Vec<i32> {
    let mut ids = vec![0; store.len()];
    store.read(0, &mut ids);
    ids
}

/// Names in the cache folder that end in `suffix`.
fn names(cache: &Path, suffix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(cache).expect("the cache folder exists");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(suffix)).collect()
}

/// Past the capture of passing tests' output: a skip is seen.
fn report_skip(reason: &str) {
    writeln!(std::io::stderr(), "SKIPPED: {reason}").expect("standard error is open");
}

fn spawn_child(cache: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this test's path"))
        .args(["--exact", "child_prepares", "--ignored"])
        .env(CHILD_CACHE, cache)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the child starts")
}

/// Long enough to be killed in the middle, short enough to finish.
const CHILD_DOCUMENTS: u64 = 60_000;

#[test]
#[ignore = "started by the tests that need a second process"]
fn child_prepares() {
    let cache = std::env::var_os(CHILD_CACHE).expect("started by another test");
    silent(&synthetic(Path::new(&cache), CHILD_DOCUMENTS)).unwrap();
}

#[test]
fn what_was_prepared_is_found_again_and_other_settings_are_other_data() {
    let cache = tempfile::tempdir().unwrap();
    let first = silent(&synthetic(cache.path(), 500)).unwrap();
    let folder = first.folder.clone().unwrap();
    let made = std::fs::metadata(folder.join("manifest.json")).unwrap().modified().unwrap();
    let again = silent(&synthetic(cache.path(), 500)).unwrap();
    assert_eq!(std::fs::metadata(folder.join("manifest.json")).unwrap().modified().unwrap(), made);
    assert_eq!(again.manifest, first.manifest);
    assert_eq!(ids(&again.train), ids(&first.train));
    let other = silent(&synthetic(cache.path(), 501)).unwrap();
    assert_ne!(other.folder, first.folder);
    assert!(names(cache.path(), ".tmp").is_empty());
}

#[test]
fn the_manifest_counts_what_the_store_holds() {
    let cache = tempfile::tempdir().unwrap();
    let dataset = silent(&synthetic(cache.path(), 2000)).unwrap();
    let manifest = &dataset.manifest;
    for (split, store) in [(&manifest.train, &dataset.train), (&manifest.validation, &dataset.validation)] {
        assert_eq!(split.num_tokens, store.len() as u64);
        assert_eq!(split.num_documents, store.num_documents() as u64);
        assert_eq!(split.tokens_per_domain.iter().sum::<u64>(), split.num_tokens);
        let ends = ids(store).iter().filter(|id| **id == 0).count();
        assert_eq!(ends, store.num_documents(), "each document ends with its mark");
    }
    assert_eq!(manifest.train.num_documents + manifest.validation.num_documents, 2000);
    let floor = manifest.entropy_floor_nats.unwrap();
    let statistics = DatasetStatistics::compute(&dataset).unwrap();
    assert!(floor > 0.5 && floor < statistics.unigram_entropy_nats, "{floor}");
    assert_eq!(
        statistics.top_tokens[0].count,
        statistics.top_tokens.iter().map(|token| token.count).max().unwrap()
    );
}

#[test]
fn an_interrupted_preparation_keeps_nothing_and_starts_clean() {
    let cache = tempfile::tempdir().unwrap();
    let stop = Arc::new(AtomicBool::new(true));
    let error = prepare(&synthetic(cache.path(), 500), &Progress::silent().with_stop(stop)).unwrap_err();
    assert!(error.to_string().starts_with("interrupted"), "{error}");
    assert!(names(cache.path(), ".tmp").is_empty());
    assert!(silent(&synthetic(cache.path(), 500)).is_ok());
}

#[test]
fn a_killed_preparation_leaves_nothing_behind() {
    let cache = tempfile::tempdir().unwrap();
    let mut child = spawn_child(cache.path());
    let deadline = Instant::now() + Duration::from_secs(30);
    while names(cache.path(), ".tmp").is_empty() {
        assert!(Instant::now() < deadline, "the child never began");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(names(cache.path(), ".tmp").len(), 1, "the child was killed in the middle");
    let dataset = silent(&synthetic(cache.path(), CHILD_DOCUMENTS)).unwrap();
    assert!(names(cache.path(), ".tmp").is_empty());
    let elsewhere = tempfile::tempdir().unwrap();
    assert_eq!(dataset.manifest, silent(&synthetic(elsewhere.path(), CHILD_DOCUMENTS)).unwrap().manifest);
}

#[test]
fn two_processes_that_want_the_same_data_both_get_it() {
    let cache = tempfile::tempdir().unwrap();
    let mut children = [spawn_child(cache.path()), spawn_child(cache.path())];
    let here = silent(&synthetic(cache.path(), CHILD_DOCUMENTS)).unwrap();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(silent(&synthetic(cache.path(), CHILD_DOCUMENTS)).unwrap().manifest, here.manifest);
    assert!(names(cache.path(), ".tmp").is_empty());
}

#[test]
fn damage_to_any_prepared_file_is_refused_with_path_and_remedy() {
    let cache = tempfile::tempdir().unwrap();
    let config = synthetic(cache.path(), 300);
    let folder = silent(&config).unwrap().folder.unwrap();
    for name in ["train-00000.shard", "validation-00000.shard", "manifest.json", "tokenizer.json"] {
        let path = folder.join(name);
        let sound = std::fs::read(&path).unwrap();
        for damaged in [sound[..sound.len() / 2].to_vec(), {
            let mut bytes = sound.clone();
            bytes[sound.len() / 2] ^= 4;
            bytes
        }] {
            std::fs::write(&path, &damaged).unwrap();
            let message = silent(&config).unwrap_err().to_string();
            assert!(message.contains(name) || message.contains("manifest"), "{name}: {message}");
        }
        std::fs::write(&path, &sound).unwrap();
    }
    std::fs::remove_file(folder.join("train-00000.shard")).unwrap();
    let message = silent(&config).unwrap_err().to_string();
    assert!(message.contains("train-00000.shard") && message.contains("check the path"), "{message}");
    // Half-deleted folders are made anew.
    std::fs::remove_file(folder.join("manifest.json")).unwrap();
    assert!(silent(&config).is_ok());
}

#[test]
fn a_changed_file_is_another_corpus() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, path) = (folder.path().join("cache"), folder.path().join("a.txt"));
    let config = DataConfig { split: tail(0.25), ..text(&cache, &path) };
    std::fs::write(&path, "abcdefgh").unwrap();
    let first = silent(&config).unwrap();
    std::fs::write(&path, "abcdefgH").unwrap();
    let second = silent(&config).unwrap();
    assert_eq!((ids(&first.validation), ids(&second.validation)), (vec![103, 104], vec![103, 72]));
}

#[test]
fn one_document_cannot_be_split_by_its_hash() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.txt");
    std::fs::write(&path, "one single document").unwrap();
    let message = silent(&text(folder.path(), &path)).unwrap_err().to_string();
    assert!(
        message.contains("split is empty: 1 document(s) split by document hash (5 % validation)"),
        "{message}"
    );
    assert!(message.contains("[data.split.tail]"), "{message}");
}

#[test]
fn several_documents_are_marked_and_a_trained_tokenizer_restores_them() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, corpus) = (folder.path().join("cache"), folder.path().join("corpus"));
    std::fs::create_dir(&corpus).unwrap();
    let document = |index: usize| format!("Document {index} of many documents.\n").repeat(20);
    for index in 0..30 {
        std::fs::write(corpus.join(format!("{index:02}.txt")), document(index)).unwrap();
    }
    let tokenizer =
        TokenizerConfig { bpe: Some(BpeTokenizerConfig { vocab_size: 300 }), ..TokenizerConfig::default() };
    let config = DataConfig { split: tail(0.5), tokenizer, ..text(&cache, &corpus) };
    let dataset = silent(&config).unwrap();
    assert_eq!(dataset.manifest.vocab_size, config.vocab_size().unwrap());
    let end = dataset.manifest.end_of_document.unwrap() as i32;
    let decode = |store: &TokenStore| {
        let all = ids(store);
        let mut texts = Vec::new();
        for document in all.split(|id| *id == end) {
            let ids: Vec<u32> = document.iter().map(|id| *id as u32).collect();
            texts.push(dataset.tokenizer.decode(&ids).unwrap());
        }
        texts.join("")
    };
    let whole: String = (0..30).map(document).collect();
    assert_eq!(decode(&dataset.train) + &decode(&dataset.validation), whole);
    assert!(dataset.manifest.train.bytes_per_token().unwrap() > 2.0);

    // The stored tokenizer, given as a file, yields the same ids.
    let path = dataset.folder.clone().unwrap().join("tokenizer.json");
    let tokenizer =
        TokenizerConfig { file: Some(FileTokenizerConfig { path }), ..TokenizerConfig::default() };
    let again = silent(&DataConfig { tokenizer, ..config }).unwrap();
    assert_eq!(ids(&again.train), ids(&dataset.train));
    assert_ne!(again.manifest.key, dataset.manifest.key);
}

#[test]
fn token_files_are_read_where_they_lie() {
    let folder = tempfile::tempdir().unwrap();
    let train = folder.path().join("train.bin");
    let bytes: Vec<u8> = (0..100_u16).flat_map(|id| (id * 500).to_le_bytes()).collect();
    std::fs::write(&train, bytes).unwrap();
    let tokens = TokensConfig { train, validation: None, vocab_size: 50_257 };
    let config = DataConfig { tokens: Some(tokens), split: tail(0.1), ..DataConfig::default() };
    let dataset = silent(&config).unwrap();
    assert_eq!((dataset.train.len(), dataset.validation.len()), (90, 10));
    assert_eq!(ids(&dataset.validation)[..2], [45_000, 45_500]);
    assert_eq!(dataset.folder, None);
    let message = silent(&DataConfig { split: tail(0.999), ..config }).unwrap_err().to_string();
    assert!(
        message.ends_with(
            "train.bin` leaves a split without tokens: name a larger file, or change the fraction"
        )
    );
}

/// nanoGPT's character-level preparation of this text: the first 90 % trains, rounded down.
#[test]
fn tiny_shakespeare_is_split_as_nanogpt_splits_it() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/tinyshakespeare.txt"));
    if !path.is_file() {
        report_skip("tinyshakespeare.txt is not in the shared data folder");
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let dataset = silent(&DataConfig { split: tail(0.1), ..text(cache.path(), path) }).unwrap();
    assert_eq!((dataset.train.len(), dataset.validation.len()), (1_003_854, 111_540));
    assert_eq!(dataset.manifest.end_of_document, None);
    let windows = switchyard_datasets::EvaluationWindows::new(dataset.validation.clone(), 64).unwrap();
    assert_eq!(windows.num_windows(), 1742);
    let text: Vec<u8> =
        [ids(&dataset.train), ids(&dataset.validation)].concat().iter().map(|id| *id as u8).collect();
    assert!(text == std::fs::read(path).unwrap(), "the tokens are the bytes of the file");
}
