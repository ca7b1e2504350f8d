//! Several sources in one run: each prepared alone, drawn in the shares of their weights.

use std::path::Path;

use switchyard_datasets::{
    BpeTokenizerConfig, DataConfig, Dataset, DatasetError, EvaluationWindows, FileTokenizerConfig, Loader,
    LoaderConfig, MixtureSchedule, MixtureSourceConfig, Packing, Progress, SourceConfig, SourceWeights,
    SplitConfig, SplitFractions, TextConfig, TokenName, TokenStore, TokenizerConfig, TokensConfig,
    WeightChange, prepare,
};

const SEQ_LEN: usize = 16;

fn silent(config: &DataConfig) -> Result<Dataset, DatasetError> {
    prepare(config, &Progress::silent())
}

/// A file of documents of one letter each, so that a row shows its source.
fn write_letters(folder: &Path, letter: char) -> SourceConfig {
    let path = folder.join(format!("{letter}.jsonl"));
    let document = |n: usize| format!("{{\"text\": \"{} {n}\"}}\n", letter.to_string().repeat(40 + n % 7));
    std::fs::write(&path, (0..200).map(document).collect::<String>()).expect("a file is written");
    SourceConfig::Text(TextConfig::new(path))
}

fn config(folder: &Path, sources: Vec<MixtureSourceConfig>) -> DataConfig {
    DataConfig {
        cache_dir: Some(folder.join("cache")),
        split: Some(SplitConfig::ByDocumentHash(SplitFractions::of_validation(0.2))),
        ..DataConfig::new(SourceConfig::Mixture(sources))
    }
}

fn two(folder: &Path) -> Vec<MixtureSourceConfig> {
    let mut a = MixtureSourceConfig::new("a", 3.0, write_letters(folder, 'a'));
    a.weights.changes = vec![WeightChange { from_step: 10, weight: 0.5 }];
    vec![a, MixtureSourceConfig::new("b", 1.0, write_letters(folder, 'b'))]
}

fn loader_config(sequences_per_batch: usize) -> LoaderConfig {
    LoaderConfig {
        seq_len: SEQ_LEN,
        sequences_per_batch,
        seed: 5,
        mask_documents: true,
        packing: Packing::default(),
        num_streams: None,
    }
}

fn ids(store: &TokenStore) -> Vec<i32> {
    let mut ids = vec![0; store.len()];
    store.read(0, &mut ids).expect("prepared tokens are read");
    ids
}

#[test]
fn each_source_is_the_corpus_that_it_is_alone() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), two(folder.path()));
    let dataset = silent(&config).unwrap();
    let SourceConfig::Mixture(sources) = &config.source else { panic!("a mixture") };
    let mut joined = Vec::new();
    for (of, part) in sources.iter().zip(&dataset.sources) {
        let alone = silent(&DataConfig { source: of.source.clone(), ..config.clone() }).unwrap();
        assert_eq!((&part.name, &part.folder), (&of.name, &alone.folder), "the same folder of the cache");
        assert_eq!(part.manifest, alone.manifest);
        assert_eq!(ids(&part.validation), ids(&alone.validation));
        joined.extend(ids(&alone.validation));
        EvaluationWindows::new(part.validation.clone(), SEQ_LEN).unwrap();
    }
    assert_eq!(ids(&dataset.validation), joined, "of the whole corpus: one source after the other");
    assert_eq!(dataset.manifest.domain_names, ["a/a.jsonl", "b/b.jsonl"]);
    assert_eq!(dataset.manifest.train.num_tokens as usize, dataset.train.len());
    assert_eq!(dataset.sources[1].train.domain(0), 1);
    assert_eq!(dataset.manifest.train.tokens_per_domain.len(), 2);
}

#[test]
fn rows_follow_the_schedule_and_a_resumed_loader_continues_with_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = silent(&config(folder.path(), two(folder.path()))).unwrap();
    let weights: Vec<SourceWeights> = dataset.sources.iter().map(|source| source.weights.clone()).collect();
    let schedule = MixtureSchedule::new(&weights, 6, 5);
    let open = |cursor| Loader::of_sources(&dataset.sources, loader_config(3), 6, cursor).unwrap();
    let mut loader = open(0);
    let mut counts = [0_u64; 2];
    for batch_index in 0..60_u64 {
        let cursor = loader.cursor();
        let batch = loader.next_batch().unwrap();
        if batch_index % 7 == 0 {
            let mut resumed = open(cursor);
            assert_eq!(resumed.sequences_per_source(), counts);
            assert_eq!(resumed.next_batch().unwrap(), batch);
        }
        for row in 0..3 {
            let source = usize::from(batch.source_ids_b[row]);
            assert_eq!(source, schedule.draw(cursor + row as u64).source);
            assert_eq!(usize::from(batch.domains[row]), source);
            let other = [b'b', b'a'][source];
            assert!(!batch.input_ids[row * SEQ_LEN..][..SEQ_LEN].contains(&i32::from(other)));
            counts[source] += 1;
        }
    }
    assert_eq!(loader.sequences_per_source(), counts);
    // 60 sequences at 3 : 1, then 120 at 1 : 2; two sources are never off by a whole one.
    assert!((44..=46).contains(&schedule.drawn_before(60)[0]));
    assert!((84..=86).contains(&counts[0]), "{counts:?}");
}

#[test]
fn a_single_source_has_the_batches_that_it_always_had() {
    let folder = tempfile::tempdir().unwrap();
    let config =
        DataConfig { source: write_letters(folder.path(), 'a'), ..config(folder.path(), Vec::new()) };
    let dataset = silent(&config).unwrap();
    assert_eq!((dataset.sources.len(), dataset.sources[0].name.as_str()), (1, "text"));
    let mut plain = Loader::new(dataset.train.clone(), loader_config(4), 0).unwrap();
    let mut of_sources = Loader::of_sources(&dataset.sources, loader_config(4), 8, 0).unwrap();
    for _ in 0..30 {
        assert_eq!(plain.next_batch().unwrap(), of_sources.next_batch().unwrap());
    }
    assert_eq!(of_sources.sequences_per_source(), [120]);
}

#[test]
fn one_tokenizer_is_trained_on_the_training_splits_of_all_and_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = Some(TokenizerConfig::Bpe(BpeTokenizerConfig { vocab_size: 266 }));
    let config = DataConfig { tokenizer, ..config(folder.path(), two(folder.path())) };
    let dataset = silent(&config).unwrap();
    for letter in ["a", "b"] {
        let text = letter.repeat(32);
        assert!(dataset.tokenizer.encode(&text).unwrap().len() < 16, "merges of both letters are known");
    }
    let hashes: Vec<&str> =
        dataset.sources.iter().map(|source| source.manifest.tokenizer_hash.as_str()).collect();
    assert_eq!(hashes, [&dataset.manifest.tokenizer_hash; 2]);
    let folders = || std::fs::read_dir(folder.path().join("cache")).unwrap().count();
    let before = folders();
    let again = silent(&config).unwrap();
    assert_eq!((again.manifest, folders()), (dataset.manifest, before));
    // Other text in one source is another tokenizer, and so another corpus of each source.
    let mut other = two(folder.path());
    other.push(MixtureSourceConfig::new("c", 1.0, write_letters(folder.path(), 'c')));
    let other = silent(&DataConfig { source: SourceConfig::Mixture(other), ..config }).unwrap();
    assert_ne!(other.sources[0].manifest.key, again.sources[0].manifest.key);
}

#[test]
fn documents_of_all_sources_have_the_marks_that_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let bpe = Some(TokenizerConfig::Bpe(BpeTokenizerConfig { vocab_size: 266 }));
    let trained =
        silent(&DataConfig { tokenizer: bpe, ..config(folder.path(), two(folder.path())) }).unwrap();
    let path = folder.path().join("tokenizer.json");
    trained.tokenizer.save(&path).unwrap();
    // A single document has no mark that is not named.
    std::fs::write(folder.path().join("c.txt"), "c is a text of one document\n".repeat(60)).unwrap();
    let mut sources = two(folder.path());
    let single = SourceConfig::Text(TextConfig::new(folder.path().join("c.txt")));
    let tail = SplitConfig::Tail(SplitFractions::of_validation(0.2));
    sources.push(MixtureSourceConfig { split: Some(tail), ..MixtureSourceConfig::new("c", 1.0, single) });
    let (begin, end) = (trained.tokenizer.encode("^").unwrap()[0], trained.tokenizer.encode("$").unwrap()[0]);
    let named = FileTokenizerConfig {
        begin_of_document: Some(TokenName::Id(begin)),
        end_of_document: Some("$".into()),
        ..FileTokenizerConfig::new(&path)
    };
    let of = |file: FileTokenizerConfig| {
        let tokenizer = Some(TokenizerConfig::File(file));
        silent(&DataConfig { tokenizer, ..config(folder.path(), sources.clone()) }).unwrap()
    };
    let marked = of(named);
    let corpora = marked.sources.iter().map(|source| &source.manifest).chain([&marked.manifest]);
    for manifest in corpora {
        assert_eq!((manifest.begin_of_document, manifest.end_of_document), (Some(begin), Some(end)));
        assert_eq!(manifest.tokenizer_hash, marked.tokenizer.hash());
    }
    let tokens = ids(&marked.train);
    let mark = |position: usize| tokens[position];
    for document in 0..marked.train.num_documents() {
        let span = marked.train.document_span(document);
        assert_eq!(mark(span.start), begin as i32);
        // That of the single document ends in the validation split.
        let is_cut = document + 1 == marked.train.num_documents();
        assert_eq!(mark(span.end - 1) == end as i32, !is_cut);
    }
    let is_mark = |id: &&i32| [begin as i32, end as i32].contains(id);
    assert_eq!(tokens.iter().filter(is_mark).count(), 2 * marked.train.num_documents() - 1);
    assert_eq!(ids(&marked.validation).last(), Some(&(end as i32)));
    let plain = of(FileTokenizerConfig::new(&path));
    let ends: Vec<_> = plain.sources.iter().map(|source| source.manifest.end_of_document).collect();
    let usual = trained.tokenizer.end_of_document();
    assert_eq!(ends, [usual, usual, None]);
    assert_eq!((plain.manifest.begin_of_document, plain.manifest.end_of_document), (None, None));
    for (plain, marked) in plain.sources.iter().zip(&marked.sources) {
        assert_ne!(plain.manifest.key, marked.manifest.key);
    }
}

#[test]
fn files_of_ids_and_text_mix_where_their_ids_are_of_one_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, len: usize| {
        let path = folder.path().join(name);
        std::fs::write(&path, vec![7_u16; len].iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>())
            .unwrap();
        path
    };
    let tokens = TokensConfig {
        train: write("train.bin", 500),
        validation: Some(write("validation.bin", 100)),
        test: None,
        vocab_size: 256,
        dtype: None,
    };
    let sources = vec![
        MixtureSourceConfig::new("ids", 1.0, SourceConfig::Tokens(tokens)),
        MixtureSourceConfig::new("text", 1.0, write_letters(folder.path(), 'a')),
    ];
    let dataset = silent(&config(folder.path(), sources)).unwrap();
    assert_eq!(dataset.sources[0].train.len(), 500);
    assert_eq!(dataset.manifest.train.bytes_per_token(), None, "the bytes of ids are not known");
    assert_eq!(dataset.tokenizer.decode(&[97]).unwrap(), "a");
    let config = LoaderConfig { mask_documents: false, ..loader_config(4) };
    let batch = Loader::of_sources(&dataset.sources, config, 4, 0).unwrap().next_batch().unwrap();
    for row in 0..4 {
        let is_of_ids = batch.input_ids[row * SEQ_LEN..][..SEQ_LEN].iter().all(|id| *id == 7);
        assert_eq!(is_of_ids, batch.source_ids_b[row] == 0);
    }
}

#[test]
fn errors_of_a_source_name_it() {
    let folder = tempfile::tempdir().unwrap();
    let missing = SourceConfig::Text(TextConfig::new(folder.path().join("none.jsonl")));
    let mut sources = two(folder.path());
    sources.push(MixtureSourceConfig::new("lost", 1.0, missing));
    let error = silent(&config(folder.path(), sources)).unwrap_err();
    assert!(error.is_users_mistake());
    assert!(error.to_string().starts_with("source `lost`: cannot read `"), "{error}");
    let dataset = silent(&config(folder.path(), two(folder.path()))).unwrap();
    let long = LoaderConfig { seq_len: 1 << 20, ..loader_config(1) };
    let message = Loader::of_sources(&dataset.sources, long, 1, 0).unwrap_err().to_string();
    assert!(message.starts_with("source `a`: the train split has"), "{message}");
}

#[test]
fn packed_sequences_resume_from_their_position_and_say_how_much_is_padding() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = silent(&config(folder.path(), two(folder.path()))).unwrap();
    let config = LoaderConfig { seq_len: 128, packing: Packing::BestFit, ..loader_config(3) };
    let open = |cursor| Loader::of_sources(&dataset.sources, config.clone(), 6, cursor).unwrap();
    let mut loader = open(0);
    let (mut counted, mut places) = (0, 0);
    for _ in 0..40 {
        let cursor = loader.cursor();
        let batch = loader.next_batch().unwrap();
        counted += batch.num_counted_targets();
        places += batch.num_tokens();
        assert_eq!(open(cursor).next_batch().unwrap(), batch);
        let (mask, segments) = (batch.target_mask.unwrap(), batch.segment_ids.unwrap());
        for row in 0..3 {
            let row = row * 128..(row + 1) * 128;
            let num_counted = mask[row.clone()].iter().filter(|counts| **counts).count();
            assert!(mask[row.clone()][..num_counted].iter().all(|counts| *counts), "padding is at the end");
            assert!(segments[row.clone()].is_sorted());
            // Each document ends with its mark, which is a target only.
            let marks = batch.target_ids[row.clone()][..num_counted].iter().filter(|id| **id == 0).count();
            assert_eq!(marks as i32, segments[row.clone()][num_counted - 1] + 1);
            assert!(!batch.input_ids[row][..num_counted].contains(&0));
        }
    }
    let facts: Vec<_> = loader.packing_per_source().into_iter().flatten().collect();
    let share = facts.iter().map(|facts| facts.padding_share).sum::<f64>() / 2.0;
    assert!((1.0 - counted as f64 / places as f64 - share).abs() < 0.1, "{facts:?}");
    assert_eq!(
        facts[0].num_targets,
        dataset.sources[0].manifest.train.num_tokens - facts_documents(&dataset)
    );
}

fn facts_documents(dataset: &Dataset) -> u64 {
    dataset.sources[0].manifest.train.num_documents
}
