//! What is measured once, at the end: the test split, and the loss of each document.

use std::fs;
use std::path::Path;

use crate::tiny;
use burn::tensor::Device;
use switchyard_datasets::{Progress, SplitConfig, SplitFractions, prepare};
use switchyard_trainer::TrainError;
use switchyard_trainer::checkpoint::{Checkpoint, find_checkpoint};
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::evaluate::{EvaluationSettings, evaluate};
use switchyard_trainer::metrics::{SplitLosses, read_document_losses};
use switchyard_trainer::run_folder::{OpenMode, RunStatus};
use tempfile::TempDir;

/// A run with a test split that is looked at.
fn tested() -> RunConfig {
    let mut config = tiny::moe();
    let fractions = SplitFractions { test_fraction: 0.2, ..SplitFractions::of_validation(0.1) };
    config.data.split = Some(SplitConfig::ByDocumentHash(fractions));
    config.train.eval.test_at_end = true;
    config
}

fn documents(out: &Path) -> Vec<SplitLosses> {
    read_document_losses(&out.join("document_losses.jsonl")).unwrap()
}

/// The mean over all targets that the losses of the documents give.
fn mean(split: &SplitLosses) -> f64 {
    let nats: f64 = split.documents.iter().map(|document| document.nats).sum();
    nats / split.documents.iter().map(|document| document.num_tokens).sum::<u64>() as f64
}

#[test]
fn the_losses_of_the_documents_are_parts_of_the_losses_of_their_splits() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let manifest = tiny::run(&tested(), &out, OpenMode::New).unwrap().manifest;
    let splits = documents(&out);
    assert_eq!(splits.iter().map(|split| split.split.as_str()).collect::<Vec<_>>(), ["validation", "test"]);
    let expected = [manifest.final_validation_cross_entropy_nats, manifest.final_test_cross_entropy_nats];
    for (split, expected) in splits.iter().zip(expected) {
        assert!((mean(split) - expected.unwrap()).abs() < 1e-6, "{}: {expected:?}", split.split);
        assert!(split.documents.len() > 10 && split.documents.iter().any(|row| row.domain == 1));
    }

    // The documents' tokens are those of their own store, one after the other.
    let checkpoint = Checkpoint::read(&find_checkpoint(&out).unwrap()).unwrap();
    let dataset = prepare(&checkpoint.config.data, &Progress::silent()).unwrap();
    let test = dataset.test.unwrap();
    let num_targets = splits[1].documents.iter().map(|document| document.num_tokens).sum::<u64>() as usize;
    let expected = test.documents_of(1, num_targets).unwrap();
    let found: Vec<_> =
        splits[1].documents.iter().map(|row| (row.document, row.num_tokens as usize)).collect();
    assert_eq!(found, expected);

    // The same number from the checkpoint on disk, in other batches.
    let settings = EvaluationSettings {
        seq_len: checkpoint.plan.seq_len,
        sequences_per_batch: 3,
        max_tokens: None,
        stride: None,
        mask_documents: false,
        carries_state: false,
        by_document: true,
    };
    let model = checkpoint.model(&Device::flex()).unwrap();
    let again = evaluate(&model, &test, &settings, &Device::flex()).unwrap();
    assert!((again.cross_entropy_nats - manifest.final_test_cross_entropy_nats.unwrap()).abs() < 1e-5);
    for (again, row) in again.documents.unwrap().iter().zip(&splits[1].documents) {
        assert!((again.nats - row.nats).abs() < 1e-3, "document {}", row.document);
    }
}

#[test]
fn a_run_that_is_stopped_before_its_test_makes_it_at_the_next_start() {
    let folder = TempDir::new().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let mut config = tested();
    config.train.num_steps = 1;
    let whole_run = tiny::run(&config, &whole, OpenMode::New).unwrap().manifest;
    let stopped = tiny::run_with_stop(&config, &parts, OpenMode::New, true).unwrap().manifest;
    assert_eq!((stopped.status, stopped.final_test_cross_entropy_nats), (RunStatus::Interrupted, None));
    assert!(!parts.join("document_losses.jsonl").exists());
    let resumed = tiny::run(&config, &parts, OpenMode::Resume).unwrap().manifest;
    assert_eq!(resumed.final_test_cross_entropy_nats, whole_run.final_test_cross_entropy_nats);
    assert_eq!(documents(&parts), documents(&whole));
    // A run that goes on forgets what it knew, and leaves no losses of an earlier model.
    config.train.num_steps = 2;
    let stopped = tiny::run_with_stop(&config, &parts, OpenMode::Resume, true).unwrap().manifest;
    assert_eq!(stopped.final_test_cross_entropy_nats, None);
    assert!(!parts.join("document_losses.jsonl").exists());
}

#[test]
fn the_test_split_is_not_looked_at_unasked_and_changes_no_training() {
    let folder = TempDir::new().unwrap();
    let (asked, unasked) = (folder.path().join("asked"), folder.path().join("unasked"));
    let mut config = tested();
    tiny::run(&config, &asked, OpenMode::New).unwrap();
    config.train.eval.test_at_end = false;
    let manifest = tiny::run(&config, &unasked, OpenMode::New).unwrap().manifest;
    assert_eq!(manifest.final_test_cross_entropy_nats, None);
    assert_eq!(documents(&unasked), documents(&asked)[..1]);
    assert_eq!(tiny::rows(&unasked), tiny::rows(&asked));

    config.train.eval.test_at_end = true;
    config.data.split = None;
    let error = tiny::run(&config, &folder.path().join("none"), OpenMode::New).unwrap_err();
    assert!(matches!(error, TrainError::NoTestSplit { .. }), "{error}");
    assert!(!folder.path().join("none").exists());
}

#[test]
fn a_data_seed_changes_the_order_of_the_data_and_not_the_initial_values() {
    let folder = TempDir::new().unwrap();
    let mut config = tiny::dense();
    config.train.num_steps = 1;
    let run = |name: &str, seed: u64, data_seed: Option<u64>| {
        let mut config = config.clone();
        (config.seed, config.train.data_seed) = (seed, data_seed);
        let out = folder.path().join(name);
        tiny::run(&config, &out, OpenMode::New).unwrap();
        tiny::rows(&out)
    };
    let both = run("both", 7, None);
    assert_eq!(run("same", 7, Some(7)), both);
    let (order, values) = (run("order", 7, Some(8)), run("values", 8, Some(7)));
    assert!(order != both && values != both && order != values);
}

#[test]
fn an_overwritten_run_leaves_no_losses_of_documents_behind() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut config = tested();
    config.train.num_steps = 1;
    tiny::run(&config, &out, OpenMode::New).unwrap();
    assert!(fs::metadata(out.join("document_losses.jsonl")).is_ok());
    tiny::run_with_stop(&config, &out, OpenMode::Overwrite, true).unwrap();
    assert!(fs::metadata(out.join("document_losses.jsonl")).is_err());
}
