//! What is prepared once: reuse, interruption, two processes at the same time, damage.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use switchyard_datasets::{
    BpeTokenizerConfig, DataConfig, Dataset, DatasetError, DatasetStatistics, EvaluationWindows,
    FileTokenizerConfig, Loader, LoaderConfig, OnTrouble, Packing, Progress, SourceConfig, SplitConfig,
    SplitFractions, SyntheticConfig, TextConfig, TokenName, TokenStore, TokenizerConfig, TokensConfig,
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
    cached(cache, SourceConfig::Synthetic(synthetic))
}

fn text(cache: &Path, path: &Path) -> DataConfig {
    cached(cache, SourceConfig::Text(TextConfig::new(path)))
}

fn cached(cache: &Path, source: SourceConfig) -> DataConfig {
    DataConfig { cache_dir: Some(cache.to_path_buf()), ..DataConfig::new(source) }
}

fn tokens_with_tail(tokens: TokensConfig, validation_fraction: f64) -> DataConfig {
    DataConfig { split: tail(validation_fraction), ..DataConfig::new(SourceConfig::Tokens(tokens)) }
}

fn tail(validation_fraction: f64) -> Option<SplitConfig> {
    Some(SplitConfig::Tail(SplitFractions::of_validation(validation_fraction)))
}

fn silent(config: &DataConfig) -> Result<Dataset, DatasetError> {
    prepare(config, &Progress::silent())
}

fn ids(store: &TokenStore) -> Vec<i32> {
    let mut ids = vec![0; store.len()];
    store.read(0, &mut ids).expect("prepared tokens are read");
    ids
}

/// Names in the cache folder that end in `suffix`.
fn names(cache: &Path, suffix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(cache).expect("the cache folder exists");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(suffix)).collect()
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
    let tokenizer = Some(TokenizerConfig::Bpe(BpeTokenizerConfig { vocab_size: 300 }));
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
    let again = silent(&with_tokenizer(config, FileTokenizerConfig::new(path))).unwrap();
    assert_eq!(ids(&again.train), ids(&dataset.train));
    assert_ne!(again.manifest.key, dataset.manifest.key);
}

#[test]
fn a_test_split_is_taken_from_what_trained_and_the_validation_split_stays() {
    let folder = tempfile::tempdir().unwrap();
    let split = |validation_fraction, test_fraction| SplitFractions {
        test_fraction,
        ..SplitFractions::of_validation(validation_fraction)
    };
    let by_hash = |test| DataConfig {
        split: Some(SplitConfig::ByDocumentHash(split(0.1, test))),
        ..synthetic(folder.path(), 500)
    };
    let (without, with) = (silent(&by_hash(0.0)).unwrap(), silent(&by_hash(0.2)).unwrap());
    assert!(without.test.is_none());
    assert_eq!(ids(&with.validation), ids(&without.validation));
    let test = with.test.unwrap();
    assert!((70..130).contains(&test.num_documents()), "{}", test.num_documents());
    assert_eq!(test.len() + with.train.len(), without.train.len());
    assert_eq!(with.manifest.test.unwrap().num_tokens as usize, test.len());

    let train = folder.path().join("train.bin");
    std::fs::write(&train, (0..100_u16).flat_map(u16::to_le_bytes).collect::<Vec<u8>>()).unwrap();
    let tokens = TokensConfig { train, validation: None, test: None, vocab_size: 100, dtype: None };
    let config = DataConfig {
        split: Some(SplitConfig::Tail(split(0.1, 0.05))),
        ..DataConfig::new(SourceConfig::Tokens(tokens))
    };
    let dataset = silent(&config).unwrap();
    assert_eq!([ids(&dataset.train).len(), ids(&dataset.validation).len()], [85, 10]);
    assert_eq!(ids(&dataset.test.unwrap()), [95, 96, 97, 98, 99]);
}

#[test]
fn held_out_documents_that_train_too_are_counted_and_left_out_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    // Each text is there twice, with another end: near-duplicates, which the hash of the whole
    // document spreads over the splits.
    let word = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let passage = |index: u64| (0..40).map(move |n| format!("{} ", word(index * 40 + n)));
    let lines: String = (0..400)
        .map(|index| format!("{{\"text\": \"{}{index}\"}}\n", passage(index / 2).collect::<String>()))
        .collect();
    std::fs::write(&path, lines).unwrap();
    let config = |max_overlap| {
        let fractions = SplitFractions { max_overlap, ..SplitFractions::of_validation(0.1) };
        let split = Some(SplitConfig::ByDocumentHash(fractions));
        DataConfig { split, ..text(folder.path(), &path) }
    };
    let dataset = silent(&config(None)).unwrap();
    let overlap = dataset.manifest.validation.overlap.unwrap();
    assert_eq!(overlap.documents, dataset.manifest.validation.num_documents);
    // Nine of ten have their twin in the training split.
    assert!(overlap.near_duplicates * 10 > overlap.documents * 8, "{overlap:?}");
    assert!(overlap.share() > 0.8, "{overlap:?}");
    assert_eq!(dataset.manifest.train.overlap, None);

    let without = silent(&config(Some(0.5))).unwrap();
    let left_out = without.manifest.validation.overlap.unwrap().documents_left_out;
    assert_eq!(left_out, overlap.near_duplicates);
    assert_eq!(without.manifest.validation.num_documents, overlap.documents - left_out);
    assert_eq!(ids(&without.train), ids(&dataset.train), "training is untouched");

    // Nothing but near-duplicates: the key that leaves them out is what is named.
    let twin = passage(0).collect::<String>();
    let lines: String = (0..200).map(|index| format!("{{\"text\": \"{twin}{index}\"}}\n")).collect();
    std::fs::write(&path, lines).unwrap();
    let message = silent(&config(Some(0.5))).unwrap_err().to_string();
    assert!(message.contains("were left out because") && message.contains("`max_overlap`"), "{message}");
}

#[test]
fn token_files_are_read_where_they_lie() {
    let folder = tempfile::tempdir().unwrap();
    let train = folder.path().join("train.bin");
    let bytes: Vec<u8> = (0..100_u16).flat_map(|id| (id * 500).to_le_bytes()).collect();
    std::fs::write(&train, bytes).unwrap();
    let tokens = TokensConfig { train, validation: None, test: None, vocab_size: 50_257, dtype: None };
    let config = tokens_with_tail(tokens, 0.1);
    let dataset = silent(&config).unwrap();
    assert_eq!((dataset.train.len(), dataset.validation.len()), (90, 10));
    assert_eq!(ids(&dataset.validation)[..2], [45_000, 45_500]);
    assert_eq!(dataset.folder, None);
    let message = silent(&DataConfig { split: tail(0.999), ..config }).unwrap_err().to_string();
    assert!(message.ends_with(
        "train.bin` leaves the train split without tokens: name a larger file, or change the fraction"
    ));
}

#[test]
fn a_token_file_that_changes_while_it_is_read_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let train = folder.path().join("train.bin");
    std::fs::write(&train, (0..1000_u16).flat_map(u16::to_le_bytes).collect::<Vec<u8>>()).unwrap();
    let tokens =
        TokensConfig { train: train.clone(), validation: None, test: None, vocab_size: 1000, dtype: None };
    let config = tokens_with_tail(tokens, 0.5);
    let dataset = silent(&config).unwrap();
    let config = LoaderConfig {
        seq_len: 8,
        sequences_per_batch: 2,
        seed: 1,
        mask_documents: false,
        packing: Packing::default(),
        num_streams: None,
    };
    let file = std::fs::OpenOptions::new().write(true).open(&train).unwrap();
    (&file).write_all(&[0xff; 1000]).unwrap();
    let mut loader = Loader::new(dataset.train.clone(), config, 0).unwrap();
    let message = loader.next_batch().unwrap_err().to_string();
    assert!(message.contains("train.bin` holds id 65535 at position "), "{message}");
    assert!(matches!(loader.next_batch(), Err(DatasetError::LoaderStopped)), "nothing follows an error");
    file.set_len(1500).unwrap();
    let windows = EvaluationWindows::new(dataset.validation, 100).unwrap();
    let results: Vec<_> = windows.batches(1).collect();
    assert!(results[0].is_ok());
    let message = results.last().unwrap().as_ref().unwrap_err().to_string();
    assert!(message.contains("train.bin` ends before the last of its 500 tokens"), "{message}");
}

/// Texts of `lens` lines below `folder`.
fn write_texts(folder: &Path, lens: impl IntoIterator<Item = usize>) {
    std::fs::create_dir_all(folder).expect("a folder is made");
    for (index, len) in lens.into_iter().enumerate() {
        let text = format!("line of document {index}\n").repeat(len);
        std::fs::write(folder.join(format!("{index:03}.txt")), text).expect("a file is written");
    }
}

/// A `tokenizer.json` with a token for each of `letters`; `change` alters its model.
fn letters_tokenizer(path: &Path, letters: &str, change: impl FnOnce(&mut serde_json::Value)) {
    let vocab: serde_json::Map<String, serde_json::Value> =
        letters.chars().enumerate().map(|(id, letter)| (letter.to_string(), id.into())).collect();
    let mut model = serde_json::json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
        "merges": [],
    });
    change(&mut model);
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": model,
    });
    std::fs::write(path, tokenizer.to_string()).expect("a file is written");
}

fn with_tokenizer(config: DataConfig, file: FileTokenizerConfig) -> DataConfig {
    DataConfig { tokenizer: Some(TokenizerConfig::File(file)), ..config }
}

#[test]
fn notes_are_kept_with_the_corpus() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, corpus) = (folder.path().join("cache"), folder.path().join("corpus"));
    write_texts(&corpus, [5; 30]);
    std::fs::write(corpus.join("blank.txt"), " \n\t ").unwrap();
    std::fs::copy(corpus.join("003.txt"), corpus.join("copy.txt")).unwrap();
    let config = DataConfig { split: tail(0.1), ..text(&cache, &corpus) };
    let first = silent(&config).unwrap();
    let notes = &first.manifest.notes;
    assert!(notes[0].starts_with("1 document of nothing but white space passed over: `"), "{notes:?}");
    assert!(
        notes[1].starts_with("1 of 31 documents (3.1 % of the text) repeat an earlier one: 1 valid"),
        "{notes:?}"
    );
    assert!(notes[2].starts_with("the validation split has 4 documents, and the largest is"), "{notes:?}");
    assert!(
        notes[3].contains("% of the validation text is in the train split too, word for word"),
        "{notes:?}"
    );
    assert!(notes[4].starts_with("the splits part within a document"), "{notes:?}");
    assert_eq!(notes.len(), 5);
    assert_eq!(silent(&config).unwrap().manifest.notes, *notes);
    let statistics = DatasetStatistics::compute(&first).unwrap();
    assert_eq!((statistics.repeats.documents, statistics.repeats.held_out_documents_in_train), (1, 1));
    assert_eq!(
        first.manifest.train.num_documents + first.manifest.validation.num_documents,
        32,
        "one is cut"
    );
}

#[test]
fn copies_of_a_document_are_in_one_split_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    let lines: String =
        (0..1000).map(|index| format!("{{\"text\": \"number {}\"}}\n", index % 900)).collect();
    std::fs::write(&path, lines).unwrap();
    let dataset = silent(&text(folder.path(), &path)).unwrap();
    let repeats = dataset.manifest.repeats;
    assert_eq!((repeats.documents, repeats.held_out_documents_in_train), (100, 0));
    let notes = &dataset.manifest.notes;
    assert!(
        notes[0].starts_with("100 of 1000 documents (9.1 % of the text) repeat an earlier one: all cop"),
        "{notes:?}"
    );
}

#[test]
fn a_validation_split_of_many_documents_needs_no_note() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = folder.path().join("corpus");
    write_texts(&corpus, [2; 200]);
    let split = Some(SplitConfig::ByDocumentHash(SplitFractions::of_validation(0.5)));
    let config = DataConfig { split, ..text(&folder.path().join("cache"), &corpus) };
    assert_eq!(silent(&config).unwrap().manifest.notes, [""; 0]);
}

#[test]
fn text_that_a_tokenizer_cannot_spell_is_refused_with_file_and_character() {
    let folder = tempfile::tempdir().unwrap();
    let (corpus, path) = (folder.path().join("corpus"), folder.path().join("tokenizer.json"));
    write_texts(&corpus, [3; 30]);
    std::fs::write(corpus.join("015.txt"), "line of café\n").unwrap();
    letters_tokenizer(&path, "line ofdcumt0123456789\naé", |_| {});
    let config = DataConfig { split: tail(0.5), ..text(&folder.path().join("cache"), &corpus) };
    let sound = silent(&with_tokenizer(config.clone(), FileTokenizerConfig::new(&path))).unwrap();
    let notes = &sound.manifest.notes;
    assert!(
        notes[0].starts_with("the 30 documents follow each other without a mark between them"),
        "{notes:?}"
    );

    letters_tokenizer(&path, "line ofdcumt0123456789\na", |_| {});
    let message =
        silent(&with_tokenizer(config.clone(), FileTokenizerConfig::new(&path))).unwrap_err().to_string();
    assert!(
        message.contains("015.txt`: the vocabulary has no id for `é` (U+00E9), in `line of café"),
        "{message}"
    );
    assert!(names(&folder.path().join("cache"), ".tmp").is_empty(), "nothing is left of it");

    let lenient =
        FileTokenizerConfig { on_unknown_text: Some(OnTrouble::Skip), ..FileTokenizerConfig::new(&path) };
    let dataset = silent(&with_tokenizer(config.clone(), lenient)).unwrap();
    assert_eq!(dataset.manifest.train.lost_bytes + dataset.manifest.validation.lost_bytes, 2);
    let notes = &dataset.manifest.notes;
    assert!(notes[1].starts_with("2 bytes of text (0.1 %) have no id and were left out"), "{notes:?}");

    letters_tokenizer(&path, "line ofdcumt0123456789\na?$", |model| model["unk_token"] = "?".into());
    let marked = FileTokenizerConfig { end_of_document: Some("$".into()), ..FileTokenizerConfig::new(&path) };
    let dataset = silent(&with_tokenizer(config.clone(), marked.clone())).unwrap();
    assert_eq!(dataset.manifest.validation.unknown_tokens + dataset.manifest.train.unknown_tokens, 1);
    assert!(
        dataset.manifest.notes[0].starts_with("1 tokens (less than 0.1 %) stand for text"),
        "{:?}",
        dataset.manifest.notes
    );
    let end = dataset.manifest.end_of_document.unwrap();
    assert_eq!(dataset.tokenizer.end_of_document(), Some(end));
    let num_marks = |store: &TokenStore| ids(store).iter().filter(|id| **id == end as i32).count();
    assert_eq!(num_marks(&dataset.train) + num_marks(&dataset.validation), 30);
    let missing = FileTokenizerConfig { end_of_document: Some("[END]".into()), ..marked };
    let message = silent(&with_tokenizer(config, missing)).unwrap_err().to_string();
    assert!(message.contains("tokenizer.json`: it has no token `[END]`: set"), "{message}");
}

/// Documents of each split, by the borders that the shards keep.
fn documents(store: &TokenStore) -> Vec<Vec<i32>> {
    let mut documents: Vec<(usize, Vec<i32>)> = Vec::new();
    for (position, id) in ids(store).into_iter().enumerate() {
        let index = store.document_index(position).expect("text has documents");
        match documents.last_mut().filter(|(last, _)| *last == index) {
            Some((_, ids)) => ids.push(id),
            None => documents.push((index, vec![id])),
        }
    }
    documents.into_iter().map(|(_, ids)| ids).collect()
}

#[test]
fn documents_begin_and_end_with_the_marks_that_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (corpus, path) = (folder.path().join("corpus"), folder.path().join("tokenizer.json"));
    write_texts(&corpus, [3; 30]);
    letters_tokenizer(&path, "line ofdcumt0123456789\na^$", |_| {});
    let config = DataConfig { split: tail(0.5), ..text(&folder.path().join("cache"), &corpus) };
    let by_text = FileTokenizerConfig {
        begin_of_document: Some("^".into()),
        end_of_document: Some("$".into()),
        ..FileTokenizerConfig::new(&path)
    };
    let dataset = silent(&with_tokenizer(config.clone(), by_text.clone())).unwrap();
    let (begin, end) =
        (dataset.manifest.begin_of_document.unwrap(), dataset.manifest.end_of_document.unwrap());
    assert_eq!(dataset.tokenizer.begin_of_document(), Some(begin));
    let (train, validation) = (documents(&dataset.train), documents(&dataset.validation));
    let (begin_id, end_id) = (begin as i32, end as i32);
    // The split parts within a document: its front has no end, and its rest no beginning.
    let (last, whole) = train.split_last().unwrap();
    assert_eq!((last[0], last.last() == Some(&end_id)), (begin_id, false));
    assert_eq!((validation[0][0] == begin_id, validation[0].last()), (false, Some(&end_id)));
    for document in whole.iter().chain(&validation[1..]) {
        assert_eq!((document[0], document.last()), (begin_id, Some(&end_id)));
        let inside = &document[1..document.len() - 1];
        assert!(!inside.contains(&begin_id) && !inside.contains(&end_id));
    }
    let by_id = FileTokenizerConfig {
        begin_of_document: Some(TokenName::Id(begin)),
        end_of_document: Some(TokenName::Id(end)),
        ..FileTokenizerConfig::new(&path)
    };
    let same = silent(&with_tokenizer(config.clone(), by_id)).unwrap();
    assert_eq!((ids(&same.train), ids(&same.validation)), (ids(&dataset.train), ids(&dataset.validation)));
    let without = silent(&with_tokenizer(config.clone(), FileTokenizerConfig::new(&path))).unwrap();
    assert_eq!((without.manifest.begin_of_document, without.manifest.end_of_document), (None, None));
    assert_ne!(without.manifest.key, dataset.manifest.key);
    for (missing, shown) in [(TokenName::from("[BEGIN]"), "[BEGIN]"), (TokenName::Id(500), "500")] {
        let named = FileTokenizerConfig { begin_of_document: Some(missing), ..by_text.clone() };
        let message = silent(&with_tokenizer(config.clone(), named)).unwrap_err().to_string();
        let expected = format!("it has no token `{shown}`: set `data.tokenizer.file.begin_of_document`");
        assert!(message.contains(&expected), "{message}");
    }
}

#[test]
fn a_single_document_gets_the_marks_that_are_named_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, path) = (folder.path().join("cache"), folder.path().join("tokenizer.json"));
    let file = folder.path().join("text.txt");
    std::fs::write(&file, "line of a document\n".repeat(40)).unwrap();
    letters_tokenizer(&path, "line ofdcumt\na^", |model| model["vocab"]["</s>"] = 100.into());
    let config = DataConfig { split: tail(0.5), ..text(&cache, &file) };
    let plain = silent(&with_tokenizer(config.clone(), FileTokenizerConfig::new(&path))).unwrap();
    assert_eq!(plain.tokenizer.end_of_document(), Some(100));
    assert!(!ids(&plain.validation).contains(&100));
    let named = FileTokenizerConfig {
        begin_of_document: Some("^".into()),
        end_of_document: Some("</s>".into()),
        ..FileTokenizerConfig::new(&path)
    };
    let marked = silent(&with_tokenizer(config, named)).unwrap();
    assert_eq!(ids(&marked.validation), [ids(&plain.validation), vec![100]].concat());
    assert_eq!(ids(&marked.train)[1..], ids(&plain.train));
}

#[test]
fn marks_are_written_as_a_text_or_an_id() {
    let parse = |text: &str| toml::from_str::<FileTokenizerConfig>(text);
    let config = parse("path = \"a\"\nbegin_of_document = \"<s>\"\nend_of_document = 2").unwrap();
    assert_eq!(config.begin_of_document, Some("<s>".into()));
    assert_eq!(config.end_of_document, Some(TokenName::Id(2)));
    let written = toml::to_string(&config).unwrap();
    assert_eq!(parse(&written).unwrap(), config);
    for odd in ["true", "-1", "[1]", "5000000000"] {
        let message = parse(&format!("path = \"a\"\nbegin_of_document = {odd}")).unwrap_err().to_string();
        assert!(message.contains("the text of a token or its id is expected"), "{message}");
    }
}

#[test]
fn two_preparations_with_dropout_in_the_tokenizer_give_the_same_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let (corpus, path) = (folder.path().join("corpus"), folder.path().join("tokenizer.json"));
    write_texts(&corpus, [50; 20]);
    letters_tokenizer(&path, "line ofdcumt0123456789\na", |model| {
        for (id, token) in ["li", "ne", "do", "cu", "line", "docu"].iter().enumerate() {
            model["vocab"][token] = (100 + id).into();
        }
        model["merges"] =
            serde_json::json!([["l", "i"], ["n", "e"], ["d", "o"], ["c", "u"], ["li", "ne"], ["do", "cu"]]);
        model["dropout"] = 0.5.into();
    });
    let prepared = |cache: &str| {
        let config = DataConfig { split: tail(0.5), ..text(&folder.path().join(cache), &corpus) };
        silent(&with_tokenizer(config, FileTokenizerConfig::new(&path))).unwrap()
    };
    let (first, second) = (prepared("a"), prepared("b"));
    assert_eq!(first.manifest, second.manifest);
    assert_eq!(ids(&first.train), ids(&second.train));
}

#[test]
fn a_cut_tokenizer_file_is_the_users_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let (corpus, path) = (folder.path().join("corpus"), folder.path().join("tokenizer.json"));
    write_texts(&corpus, [5; 3]);
    letters_tokenizer(&path, "abc", |_| {});
    let whole = std::fs::read(&path).unwrap();
    for len in (0..whole.len()).step_by(7) {
        std::fs::write(&path, &whole[..len]).unwrap();
        let config = with_tokenizer(text(folder.path(), &corpus), FileTokenizerConfig::new(&path));
        let error = silent(&config).unwrap_err();
        assert!(error.is_users_mistake() && error.to_string().contains("it is not JSON"), "{len}: {error}");
    }
    let crafted = r#"{"switchyard_tokenizer":{"ids":{"vocab_size":9,"end_of_document":50}}}"#;
    std::fs::write(&path, crafted).unwrap();
    let config = with_tokenizer(text(folder.path(), &corpus), FileTokenizerConfig::new(&path));
    let message = silent(&config).unwrap_err().to_string();
    assert!(message.contains("an end mark below their number"), "{message}");
}

#[test]
fn every_flipped_byte_of_the_manifest_is_refused() {
    let cache = tempfile::tempdir().unwrap();
    let config = synthetic(cache.path(), 300);
    let path = silent(&config).unwrap().folder.unwrap().join("manifest.json");
    let sound = std::fs::read(&path).unwrap();
    for at in 0..sound.len() {
        let mut damaged = sound.clone();
        damaged[at] ^= 1 << (at % 7);
        std::fs::write(&path, &damaged).unwrap();
        let error = silent(&config).unwrap_err();
        assert!(matches!(error, DatasetError::Damaged { .. }), "byte {at}: {error}");
    }
    std::fs::write(&path, sound).unwrap();
    assert!(silent(&config).is_ok());
}

#[cfg(unix)]
#[test]
fn a_prepared_corpus_that_cannot_be_read_is_not_called_damaged_and_not_made_anew() {
    use std::os::unix::fs::PermissionsExt;
    let cache = tempfile::tempdir().unwrap();
    let config = synthetic(cache.path(), 300);
    let folder = silent(&config).unwrap().folder.unwrap();
    let allow = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    // A whole corpus needs no writing, wherever it lies.
    for path in [cache.path(), &folder] {
        allow(path, 0o555);
    }
    assert!(silent(&config).is_ok());
    let shard = folder.join("train-00000.shard");
    for path in [&folder, &shard, &folder.join("manifest.json")] {
        allow(path, 0o000);
        // The administrator may read everything.
        if let Err(error) = silent(&config) {
            assert!(matches!(error, DatasetError::Io { .. }), "{error}");
            let message = error.to_string();
            assert!(message.starts_with("cannot read") && !message.contains("delete"), "{message}");
        }
        allow(path, 0o755);
    }
    allow(cache.path(), 0o755);
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_in_the_place_of_any_input_are_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.txt");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let plain = folder.path().join("a.txt");
    std::fs::write(&plain, "text").unwrap();
    for path in [pipe.as_path(), Path::new("/dev/zero"), folder.path()] {
        let tokens = TokensConfig {
            train: path.to_path_buf(),
            validation: None,
            test: None,
            vocab_size: 9,
            dtype: None,
        };
        let of_tokens = tokens_with_tail(tokens, 0.5);
        let of_tokenizer = with_tokenizer(text(folder.path(), &plain), FileTokenizerConfig::new(path));
        let of_text = text(folder.path(), path);
        for config in [of_tokens, of_tokenizer, of_text] {
            // Text and ids may be a folder's; a tokenizer may not.
            let takes_folder = match &config.source {
                SourceConfig::Text(text) => text.path == path,
                SourceConfig::Tokens(_) => true,
                _ => false,
            };
            if path == folder.path() && takes_folder {
                continue;
            }
            let error = silent(&config).unwrap_err();
            assert!(error.is_users_mistake(), "{error}");
            assert!(error.to_string().contains("not a regular file"), "{error}");
        }
    }
    // Prepared files can be replaced by pipes too.
    let config = synthetic(&folder.path().join("cache"), 300);
    let prepared = silent(&config).unwrap().folder.unwrap();
    for name in ["manifest.json", "tokenizer.json", "train-00000.shard"] {
        let (path, aside) = (prepared.join(name), folder.path().join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert!(silent(&config).unwrap_err().to_string().contains("not a regular file"));
        std::fs::rename(&aside, &path).unwrap();
    }
}

#[test]
fn the_stop_flag_ends_the_work_wherever_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = folder.path().join("corpus");
    write_texts(&corpus, [5; 30]);
    let bytes = vec![0; 1 << 20];
    let train = folder.path().join("train.bin");
    std::fs::write(&train, bytes).unwrap();
    let tokens = TokensConfig { train, validation: None, test: None, vocab_size: 9, dtype: None };
    let of_tokens = tokens_with_tail(tokens, 0.5);
    for config in [of_tokens, text(folder.path(), &corpus)] {
        let stop = Arc::new(AtomicBool::new(true));
        let error = prepare(&config, &Progress::silent().with_stop(stop)).unwrap_err();
        assert!(matches!(error, DatasetError::Interrupted), "{error}");
    }
}

#[test]
fn a_name_that_is_too_long_is_said_to_be_too_long() {
    let folder = tempfile::tempdir().unwrap();
    let error = silent(&text(folder.path(), &folder.path().join("x".repeat(300) + ".txt"))).unwrap_err();
    assert!(error.is_users_mistake());
    assert!(error.to_string().contains("the name is too long"), "{error}");
}

#[test]
fn too_short_a_split_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.txt");
    std::fs::write(&path, "x".repeat(1000)).unwrap();
    let dataset = silent(&DataConfig { split: tail(0.04), ..text(folder.path(), &path) }).unwrap();
    let message = EvaluationWindows::new(dataset.validation, 64).unwrap_err().to_string();
    assert!(
        message.starts_with(
            "the validation split has 40 tokens, but one sequence of 64 needs 65: use more data, a larger"
        ),
        "{message}"
    );
    let config = LoaderConfig {
        seq_len: 960,
        sequences_per_batch: 1,
        seed: 0,
        mask_documents: false,
        packing: Packing::default(),
        num_streams: None,
    };
    let message = Loader::new(dataset.train, config, 0).unwrap_err().to_string();
    assert!(
        message.starts_with("the train split has 960 tokens, but one sequence of 960 needs 961"),
        "{message}"
    );
}

/// nanoGPT's character-level preparation: the first 90 % of the bytes train, rounded down. The
/// length is that of its text, tiny Shakespeare, and its counts are the expected ones.
#[test]
fn bytes_are_split_as_nanogpt_splits_them() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, path) = (folder.path().join("cache"), folder.path().join("text.txt"));
    let written: Vec<u8> =
        (0..1_115_394_u32).map(|at| b"to be, or not to be\n"[at as usize * at as usize % 20]).collect();
    std::fs::write(&path, &written).unwrap();
    let dataset = silent(&DataConfig { split: tail(0.1), ..text(&cache, &path) }).unwrap();
    assert_eq!((dataset.train.len(), dataset.validation.len()), (1_003_854, 111_540));
    assert_eq!(dataset.manifest.end_of_document, None);
    let windows = EvaluationWindows::new(dataset.validation.clone(), 64).unwrap();
    assert_eq!((windows.num_windows(), windows.num_tokens()), (1742, 111_539));
    let read: Vec<u8> =
        [ids(&dataset.train), ids(&dataset.validation)].concat().iter().map(|id| *id as u8).collect();
    assert!(read == written, "the tokens are the bytes of the file");
}
