//! What a run tells of each of several sources.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Device;
use switchyard_datasets::{DatasetSource, Progress, prepare};
use switchyard_trainer::checkpoint::{Checkpoint, find_checkpoint};
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::evaluate::{EvaluationSettings, evaluate};
use switchyard_trainer::metrics::{EvalRecord, StepRecord};
use switchyard_trainer::run_folder::OpenMode;
use tempfile::TempDir;

use crate::tiny;

/// A dense run on two texts, three parts of the one and one of the other, and more of the other from
/// the fourth step on.
fn mixed(folder: &Path) -> RunConfig {
    for (letter, num_documents) in [('a', 90), ('b', 60)] {
        let document =
            |n: usize| format!("{{\"text\": \"{} {n}\"}}\n", letter.to_string().repeat(30 + n % 7));
        let lines: String = (0..num_documents).map(document).collect();
        std::fs::write(folder.join(format!("{letter}.jsonl")), lines).unwrap();
    }
    let path = |letter: char| folder.join(format!("{letter}.jsonl")).display().to_string();
    let mut config = tiny::dense();
    let sources = format!(
        "[split.by_document_hash]\nvalidation_fraction = 0.2\n\
         [[sources]]\nname = \"a\"\nweight = 3.0\ntext = {{ path = {:?} }}\nweight_changes = [{{ from_step = 3, weight = 0.5 }}]\n\
         [[sources]]\nname = \"b\"\nweight = 1.0\ntext = {{ path = {:?} }}\n",
        path('a'),
        path('b')
    );
    config.data = toml::from_str(&sources).unwrap();
    config
}

fn steps(out: &Path) -> Vec<StepRecord> {
    tiny::rows(out).iter().filter_map(|row| row.as_step().cloned()).collect()
}

fn evals(out: &Path) -> Vec<EvalRecord> {
    tiny::rows(out).iter().filter_map(|row| row.as_eval().cloned()).collect()
}

#[test]
fn rows_tell_the_tokens_and_the_losses_of_each_source_and_a_resumed_run_the_same() {
    let folder = TempDir::new().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let config = mixed(folder.path());
    tiny::run(&config, &whole, OpenMode::New).unwrap();
    for row in steps(&whole) {
        assert_eq!(row.tokens_per_source.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(row.tokens_per_source.values().sum::<u64>(), row.tokens_seen);
    }
    let last = steps(&whole).pop().unwrap().tokens_per_source;
    assert!(last["a"] > 0 && last["b"] > 0);

    let mut half = config.clone();
    half.train.num_steps = 3;
    tiny::run(&half, &parts, OpenMode::New).unwrap();
    tiny::run(&config, &parts, OpenMode::Resume).unwrap();
    assert_eq!(tiny::rows(&parts), tiny::rows(&whole));

    // The losses are those of each source's own split.
    let checkpoint = Checkpoint::read(&find_checkpoint(&whole).unwrap()).unwrap();
    let dataset = prepare(&checkpoint.config.data, &Progress::silent()).unwrap();
    let model = checkpoint.model(&Device::flex()).unwrap();
    let found = evals(&whole).pop().unwrap().sources;
    assert_eq!(found.len(), 2);
    for source in &dataset.sources {
        let settings = EvaluationSettings {
            seq_len: checkpoint.plan.seq_len,
            sequences_per_batch: 5,
            max_tokens: None,
            stride: None,
            mask_documents: false,
            carries_state: false,
            by_document: false,
        };
        let alone = evaluate(&model, &source.validation, &settings, &Device::flex()).unwrap();
        let row = &found[&source.name];
        assert!((row.cross_entropy_nats - alone.cross_entropy_nats).abs() < 1e-5, "{}", source.name);
        assert_eq!((row.num_tokens, row.whole_split), (alone.num_tokens, true));
        let bits = source.manifest.validation.bits_per_byte(row.cross_entropy_nats);
        assert_eq!(row.bits_per_byte, bits);
    }

    // A step's bits are over the bytes of what the step had of each source.
    let mut before = BTreeMap::from([("a".to_owned(), 0), ("b".to_owned(), 0)]);
    for row in steps(&whole) {
        let bytes_of = |source: &DatasetSource| {
            let tokens = row.tokens_per_source[&source.name] - before[&source.name];
            tokens as f64 * source.manifest.train.bytes_per_token().unwrap()
        };
        let bytes: f64 = dataset.sources.iter().map(bytes_of).sum();
        let tokens = row.tokens_per_source.values().sum::<u64>() - before.values().sum::<u64>();
        let expected = row.cross_entropy_nats * tokens as f64 / bytes / std::f64::consts::LN_2;
        assert!((row.bits_per_byte.unwrap() / expected - 1.0).abs() < 1e-12, "step {}", row.step);
        before = row.tokens_per_source;
    }
}

#[test]
fn rows_of_one_source_have_no_keys_of_sources() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut config = tiny::dense();
    config.train.num_steps = 2;
    tiny::run(&config, &out, OpenMode::New).unwrap();
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    assert!(!text.contains("source"), "{text}");
    assert!(steps(&out).iter().all(|row| row.tokens_per_source == BTreeMap::new()));
}
