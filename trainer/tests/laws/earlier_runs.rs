//! Runs that earlier commits left: each goes on here as it went on there, or is refused by its
//! version.
//!
//! `fixtures/earlier_runs/version-<n>` is the folder of a run whose checkpoint has format version
//! n, written by the program of that time, its host's name taken out. `expected.jsonl` holds the
//! two rows that the same program logged when it went on from there. A new format version gets a
//! folder of its own, and no folder is ever made anew. `fixtures/earlier_runs/first` is from before the
//! checkpoints noted the state of the log; `keeping` reads it.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use switchyard_trainer::checkpoint::{Checkpoint, find_checkpoint};
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::metrics::{Record, StepRecord, read_metrics};
use switchyard_trainer::run_folder::OpenMode;
use tempfile::TempDir;

use crate::tiny;

/// Allowed difference, as a share of the value: the program of that time ran on one processor, and
/// another sums its products in blocks of another width.
const TOLERANCE: f64 = 1e-4;

/// The format versions of checkpoints that there have been, but for 2, which no release and no
/// fixture has.
const VERSIONS: [u32; 2] = [1, 3];

fn fixture(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/earlier_runs/version-{version}"))
}

/// A copy of the run of `version`, to write into.
fn copy(version: u32) -> (TempDir, PathBuf) {
    fn copy_folder(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy_folder(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    copy_folder(&fixture(version), &out);
    (folder, out)
}

fn steps(rows: Vec<Record>) -> Vec<StepRecord> {
    rows.into_iter().filter_map(|row| if let Record::Step(row) = row { Some(row) } else { None }).collect()
}

/// Files of the run that were set aside as not its own.
fn names_aside(out: &Path) -> Vec<String> {
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        entries.map(|name| name.into_string().unwrap()).collect::<Vec<_>>()
    };
    let all = [names(out), names(&out.join("flight"))].concat();
    all.into_iter().filter(|name| name.contains("damaged") || name.contains("earlier")).collect()
}

#[test]
fn a_run_of_every_earlier_version_goes_on_as_it_would_have_then() {
    for version in VERSIONS {
        let (_folder, out) = copy(version);
        let text = fs::read_to_string(out.join("config.toml")).unwrap();
        let mut config: RunConfig = toml::from_str(&text).unwrap();
        config.train.num_steps = 5;
        tiny::run(&config, &out, OpenMode::Resume).unwrap();

        let expected = steps(read_metrics(&out.join("expected.jsonl")).unwrap());
        assert_eq!(expected.len(), 2);
        let before = steps(read_metrics(&fixture(version).join("metrics.jsonl")).unwrap());
        let mut found = steps(read_metrics(&out.join("metrics.jsonl")).unwrap());
        assert_eq!(found[..3], before[..3], "version {version}: the rows of that time are known again");
        assert_eq!(names_aside(&out), [] as [String; 0], "version {version}");
        found.drain(..3);
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((found.step, found.tokens_seen), (expected.step, expected.tokens_seen));
            let pairs = [
                (found.cross_entropy_nats, expected.cross_entropy_nats),
                (found.total_loss, expected.total_loss),
                (found.grad_norm, expected.grad_norm),
            ];
            for (found, expected) in pairs {
                let difference = (found - expected).abs();
                assert!(difference <= TOLERANCE * expected, "version {version}: {found}, not {expected}");
            }
        }
    }
}

#[test]
fn every_parameter_and_moment_of_every_earlier_version_has_its_place() {
    for version in VERSIONS {
        let checkpoint = Checkpoint::read(&find_checkpoint(&fixture(version)).unwrap()).unwrap();
        let model = checkpoint.model(&Device::flex().autodiff()).unwrap();
        checkpoint.optimizer(&model).unwrap();
    }
}
