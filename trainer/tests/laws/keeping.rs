//! What a run keeps, whatever happens to it and around it.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::resume::{tensors, with_steps};
use crate::tiny;
use burn::tensor::Device;
use serde_json::Value;
use switchyard_datasets::{SourceConfig, TextConfig};
use switchyard_trainer::TrainError;
use switchyard_trainer::average;
use switchyard_trainer::checkpoint::{Checkpoint, CheckpointError, read_state};
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::metrics::{MetricsFile, Record, read_metrics};
use switchyard_trainer::run_folder::{OpenMode, RunFolderError, RunManifest, RunPaths, RunStatus};
use tempfile::TempDir;

/// `state.json` without its clock readings.
fn state(out: &Path, step: u64) -> Value {
    let state = read_state(&out.join(format!("checkpoints/step-{step}"))).unwrap();
    let mut value = serde_json::to_value(state).unwrap();
    value["train_secs"] = 0.into();
    value
}

/// Every file below `folder` with its content.
fn content(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path)
            } else {
                files.push((path.clone(), fs::read(path).unwrap()))
            }
        }
    }
    files.sort();
    files
}

fn assert_same_run(whole: &Path, parts: &Path, step: u64) {
    assert_eq!(tiny::rows(whole), tiny::rows(parts), "logged numbers");
    assert!(tensors(whole, step) == tensors(parts, step), "stored tensors");
    assert_eq!(state(whole, step), state(parts, step), "counters");
    let [a, b] = [whole, parts].map(|out| RunManifest::read(&out.join("run.json")).unwrap());
    assert_eq!(a.best_validation(), b.best_validation());
    assert_eq!(a.final_validation_cross_entropy_nats, b.final_validation_cross_entropy_nats);
}

#[test]
fn a_start_that_was_cut_short_before_run_json_does_not_block_the_next() {
    for mode in [OpenMode::New, OpenMode::Overwrite] {
        let folder = TempDir::new().unwrap();
        let out = folder.path().join("run");
        fs::create_dir_all(out.join("checkpoints")).unwrap();
        fs::create_dir_all(out.join("flight")).unwrap();
        fs::write(out.join("run.lock"), "1\n").unwrap();
        tiny::run(&with_steps(&tiny::dense(), 1, 1), &out, mode).unwrap();
    }
}

#[test]
fn a_run_that_is_stopped_within_an_evaluation_repeats_it_and_ends_like_one_that_was_not() {
    for checkpoint_every in [None, Some(2)] {
        let folder = TempDir::new().unwrap();
        let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
        let mut config = with_steps(&tiny::moe(), 6, 1);
        config.train.checkpoint_every_steps = checkpoint_every;
        config.train.early_stopping =
            Some(toml::from_str("patience_evals = 3\nmin_improvement_nats = 100.0").unwrap());
        tiny::run(&config, &whole, OpenMode::New).unwrap();
        // After step 1 nothing is due; after step 2 an evaluation is, and is stopped, and stopped
        // again.
        for (mode, evaluations_pending) in
            [(OpenMode::New, false), (OpenMode::Resume, true), (OpenMode::Resume, true)]
        {
            let stopped = tiny::run_with_stop(&config, &parts, mode, true).unwrap();
            assert_eq!(stopped.manifest.status, RunStatus::Interrupted);
            let step = stopped.manifest.steps_done;
            let state = read_state(&parts.join(format!("checkpoints/step-{step}"))).unwrap();
            assert_eq!(state.evaluation_is_pending, evaluations_pending, "after step {step}");
        }
        assert!(tiny::rows(&parts).iter().all(|row| row.as_eval().is_none()), "no evaluation was done");
        let resumed = tiny::run(&config, &parts, OpenMode::Resume).unwrap();
        assert_eq!(resumed.manifest.status, RunStatus::Finished);
        assert_same_run(&whole, &parts, 6);
    }
}

#[test]
fn the_final_evaluation_can_be_stopped_and_is_done_by_the_next_start() {
    let folder = TempDir::new().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let mut config = with_steps(&tiny::dense(), 1, 1);
    config.train.eval_every_steps = None;
    tiny::run(&config, &whole, OpenMode::New).unwrap();
    for mode in [OpenMode::New, OpenMode::Resume] {
        let stopped = tiny::run_with_stop(&config, &parts, mode, true).unwrap();
        assert_eq!((stopped.manifest.status, stopped.manifest.steps_done), (RunStatus::Interrupted, 1));
        assert_eq!(stopped.manifest.final_validation_cross_entropy_nats, None);
    }
    tiny::run(&config, &parts, OpenMode::Resume).unwrap();
    assert_same_run(&whole, &parts, 1);
    assert!(parts.join("sample.txt").exists());
}

#[test]
fn fewer_steps_than_are_done_are_refused_with_both_numbers_and_nothing_changes() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    tiny::run(&with_steps(&tiny::dense(), 5, 1), &out, OpenMode::New).unwrap();
    let before = content(&out);
    let error = tiny::run(&with_steps(&tiny::dense(), 4, 1), &out, OpenMode::Resume).unwrap_err();
    assert!(matches!(error, TrainError::Checkpoint(CheckpointError::FewerSteps { .. })), "{error}");
    let message = error.to_string();
    assert!(message.contains("5 steps are done, but `train.num_steps` is 4"), "{message}");
    assert!(error.is_users_mistake());
    assert!(content(&out) == before);
}

#[test]
fn a_finished_run_that_is_resumed_changes_nothing() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let config = with_steps(&tiny::dense(), 3, 1);
    let first = tiny::run(&config, &out, OpenMode::New).unwrap();
    let before = content(&out);
    // As a cut of the power leaves a checkpoint that was being removed.
    let leftover = out.join("checkpoints/step-1.removed.tmp");
    fs::create_dir(&leftover).unwrap();
    fs::write(leftover.join("state.json"), "").unwrap();
    let second = tiny::run(&with_steps(&config, 3, 2), &out, OpenMode::Resume).unwrap();
    assert!(!leftover.exists());
    assert_eq!(second.manifest.status, RunStatus::Finished);
    assert_eq!(second.manifest.resumed_from_steps, first.manifest.resumed_from_steps);
    assert!(content(&out) == before);
}

#[test]
fn a_run_that_begins_again_keeps_its_earlier_log() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let config = with_steps(&tiny::dense(), 3, 1);
    tiny::run(&config, &out, OpenMode::New).unwrap();
    let (log, rows) = (fs::read(out.join("metrics.jsonl")).unwrap(), tiny::rows(&out));
    // As a kill before the first checkpoint leaves it.
    fs::remove_dir_all(out.join("checkpoints")).unwrap();
    let manifest = fs::read_to_string(out.join("run.json")).unwrap();
    fs::write(out.join("run.json"), manifest.replace("\"finished\"", "\"running\"")).unwrap();
    tiny::run(&config, &out, OpenMode::Resume).unwrap();
    assert_eq!(tiny::rows(&out), rows);
    assert_eq!(fs::read(out.join("metrics.jsonl.earlier-1")).unwrap(), log);
}

#[test]
fn a_log_that_is_not_the_checkpoints_is_set_aside_and_the_best_evaluation_is_still_right() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("removed", |log| fs::remove_file(log).unwrap()),
        ("cut", |log| {
            let text = fs::read_to_string(log).unwrap();
            fs::write(log, text.lines().next().unwrap().to_string() + "\n").unwrap();
        }),
        ("of other numbers", |log| {
            let text = fs::read_to_string(log).unwrap();
            fs::write(log, text.replace("\"grad_norm\":0.", "\"grad_norm\":1.")).unwrap();
        }),
        ("not text", |log| fs::write(log, b"\xff\xfe\n").unwrap()),
    ];
    let folder = TempDir::new().unwrap();
    let whole = folder.path().join("whole");
    tiny::run(&with_steps(&tiny::dense(), 6, 1), &whole, OpenMode::New).unwrap();
    for (name, damage) in damages {
        let out = folder.path().join(name);
        tiny::run(&with_steps(&tiny::dense(), 4, 1), &out, OpenMode::New).unwrap();
        damage(&out.join("metrics.jsonl"));
        let left = fs::read(out.join("metrics.jsonl")).ok();
        tiny::run(&with_steps(&tiny::dense(), 6, 1), &out, OpenMode::Resume).unwrap();
        assert_eq!(fs::read(out.join("metrics.jsonl.damaged-1")).ok(), left, "{name}");
        let steps: Vec<u64> =
            tiny::rows(&out).iter().filter_map(Record::as_step).map(|row| row.step).collect();
        assert_eq!(steps, [5, 6], "{name}: no rows of two logs together");
        let [a, b] = [&whole, &out].map(|out| RunManifest::read(&out.join("run.json")).unwrap());
        assert_eq!(a.best_validation(), b.best_validation(), "{name}");
        assert!(tensors(&whole, 6) == tensors(&out, 6), "{name}");
        // The log as it is now is the one that is known.
        tiny::run(&with_steps(&tiny::dense(), 7, 1), &out, OpenMode::Resume).unwrap();
        assert!(!out.join("metrics.jsonl.damaged-2").exists(), "{name}");
    }
}

#[test]
fn a_damaged_recording_keeps_no_run_from_going_on() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut config = tiny::moe();
    config.train.flight_recorder.probe_every_steps = 1;
    tiny::run(&with_steps(&config, 3, 1), &out, OpenMode::New).unwrap();
    let damaged = ["probes.jsonl", "alarms.jsonl"];
    for name in damaged {
        let path = out.join("flight").join(name);
        fs::write(&path, [&b"\xff\n"[..], &fs::read(&path).unwrap()].concat()).unwrap();
    }
    tiny::run(&with_steps(&config, 6, 1), &out, OpenMode::Resume).unwrap();
    for name in damaged {
        assert!(out.join(format!("flight/{name}.damaged-1")).exists(), "{name}");
    }
    let steps = switchyard_trainer::flight::read_probes(&RunPaths::new(&out)).unwrap();
    assert!((1..=6).all(|step| steps.iter().any(|row| row.step == step)), "the rows that could be read stay");
}

#[test]
fn a_checkpoint_under_another_steps_name_is_refused_and_strangers_are_ignored() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    tiny::run(&with_steps(&tiny::dense(), 3, 1), &out, OpenMode::New).unwrap();
    let checkpoints = out.join("checkpoints");
    fs::write(checkpoints.join("step-9"), "a note").unwrap();
    fs::create_dir(checkpoints.join("step-+7")).unwrap();
    fs::create_dir(checkpoints.join("step-007")).unwrap();
    tiny::run(&with_steps(&tiny::dense(), 4, 1), &out, OpenMode::Resume).unwrap();
    assert_eq!(fs::read_to_string(checkpoints.join("step-9")).unwrap(), "a note");
    fs::rename(checkpoints.join("step-4"), checkpoints.join("step-999")).unwrap();
    let error = tiny::run(&with_steps(&tiny::dense(), 12, 1), &out, OpenMode::Resume).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("holds the checkpoint of step 4") && message.contains("`step-4`"), "{message}");
    assert!(Checkpoint::read(&checkpoints.join("step-999")).is_err());
}

/// Runs of many short steps, which something happens to on the way.
fn long() -> RunConfig {
    let mut config = with_steps(&tiny::moe(), 100_000, 1);
    (config.train.eval_every_steps, config.train.checkpoint_every_steps) = (None, None);
    config.train.flight_recorder.steps_per_part = 1;
    config
}

/// Does `happening` to the run in `out` once it has done a few steps.
fn once_it_runs(out: &Path, happening: impl FnOnce(&Path) + Send + 'static) -> thread::JoinHandle<()> {
    let out = out.to_path_buf();
    thread::spawn(move || {
        let has_steps =
            || fs::read_to_string(out.join("metrics.jsonl")).is_ok_and(|log| log.lines().count() > 4);
        while !has_steps() {
            thread::sleep(Duration::from_millis(5));
        }
        happening(&out);
    })
}

#[test]
fn a_log_that_cannot_be_written_ends_the_run_with_a_checkpoint_that_goes_on_bit_for_bit() {
    let folder = TempDir::new().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    // As a full disk would, a file where the recorder's folder was refuses every new part.
    let happening = once_it_runs(&parts, |out| {
        fs::rename(out.join("flight"), out.with_file_name("kept")).unwrap();
        fs::write(out.join("flight"), "").unwrap();
    });
    let error = tiny::run(&long(), &parts, OpenMode::New).unwrap_err();
    happening.join().unwrap();
    assert!(matches!(error, TrainError::Recording(_)), "{error}");
    let done = RunManifest::read(&parts.join("run.json")).unwrap().steps_done;
    assert!(parts.join(format!("checkpoints/step-{done}")).is_dir(), "step {done}");
    fs::remove_file(parts.join("flight")).unwrap();
    fs::rename(parts.with_file_name("kept"), parts.join("flight")).unwrap();
    let config = with_steps(&long(), done + 2, 1);
    tiny::run(&config, &parts, OpenMode::Resume).unwrap();
    tiny::run(&config, &whole, OpenMode::New).unwrap();
    assert_same_run(&whole, &parts, done + 2);
}

#[cfg(unix)]
#[test]
fn a_run_whose_folder_was_replaced_ends_and_touches_nothing_in_the_new_one() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let happening = once_it_runs(&out, |out| {
        let new = out.with_file_name("new");
        tiny::run(&with_steps(&tiny::dense(), 3, 1), &new, OpenMode::New).unwrap();
        fs::rename(out, out.with_file_name("old")).unwrap();
        fs::rename(&new, out).unwrap();
        fs::write(out.with_file_name("before"), format!("{:?}", content(out))).unwrap();
    });
    let error = tiny::run(&long(), &out, OpenMode::New).unwrap_err();
    happening.join().unwrap();
    assert!(matches!(error, TrainError::RunFolder(RunFolderError::Lost { .. })), "{error}");
    let before = fs::read_to_string(out.with_file_name("before")).unwrap();
    assert!(format!("{:?}", content(&out)) == before);
}

#[test]
fn a_run_whose_folder_is_gone_says_so_and_promises_nothing() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let happening = once_it_runs(&out, |out| fs::rename(out, out.with_file_name("old")).unwrap());
    let error = tiny::run(&long(), &out, OpenMode::New).unwrap_err();
    happening.join().unwrap();
    assert!(matches!(error, TrainError::RunFolder(RunFolderError::Lost { .. })), "{error}");
}

/// Text of 400 words that do not repeat.
fn corpus(folder: &Path, first: u64) {
    fs::create_dir_all(folder).unwrap();
    for document in 0..40 {
        let words: Vec<String> = (0..10).map(|word| format!("w{}", first + document * 10 + word)).collect();
        fs::write(folder.join(format!("{document}.txt")), words.join(" ")).unwrap();
    }
}

fn with_text(path: &Path) -> RunConfig {
    let mut config = tiny::dense();
    config.sample.prompt = None;
    config.data.source = SourceConfig::Text(TextConfig::new(path));
    config
}

#[test]
fn data_may_move_and_may_not_change() {
    let folder = TempDir::new().unwrap();
    let [old, moved, other, out] = ["old", "moved", "other", "run"].map(|name| folder.path().join(name));
    corpus(&old, 0);
    tiny::run(&with_steps(&with_text(&old), 3, 1), &out, OpenMode::New).unwrap();
    fs::rename(&old, &moved).unwrap();
    let message =
        tiny::run(&with_steps(&with_text(&old), 4, 1), &out, OpenMode::Resume).unwrap_err().to_string();
    assert!(message.contains("--set data.text.path="), "{message}");
    tiny::run(&with_steps(&with_text(&moved), 4, 1), &out, OpenMode::Resume).unwrap();
    corpus(&other, 1);
    let before = content(&out);
    let message =
        tiny::run(&with_steps(&with_text(&other), 5, 1), &out, OpenMode::Resume).unwrap_err().to_string();
    let keys = [&moved, &other].map(|path| {
        let mut config = with_text(path).data;
        config.cache_dir = Some(folder.path().join("cache"));
        switchyard_trainer::moved_data::prepare(&config, &switchyard_datasets::Progress::silent())
            .unwrap()
            .manifest
            .key
    });
    assert!(keys.iter().all(|key| message.contains(key)), "{message}");
    assert!(message.contains(&format!("`data.text.path` = `{}`", other.display())), "{message}");
    assert!(content(&out) == before);
}

#[test]
fn losses_are_in_bits_per_byte_too_where_the_bytes_are_known() {
    let folder = TempDir::new().unwrap();
    let (text, out) = (folder.path().join("text"), folder.path().join("run"));
    corpus(&text, 0);
    let manifest = tiny::run(&with_steps(&with_text(&text), 4, 1), &out, OpenMode::New).unwrap().manifest;
    let rows = tiny::rows(&out);
    // One token is one byte, but for the mark after each document.
    let is_near = |bits: f64, nats: f64| (bits * std::f64::consts::LN_2 / nats - 1.0).abs() < 0.1;
    for row in &rows {
        match row {
            Record::Step(row) => assert!(is_near(row.bits_per_byte.unwrap(), row.cross_entropy_nats)),
            Record::Eval(row) => assert!(is_near(row.bits_per_byte.unwrap(), row.cross_entropy_nats)),
        }
    }
    let passes: Vec<f64> = rows.iter().filter_map(|row| row.as_step()?.data_passes).collect();
    assert!(passes.len() == 4 && (passes[3] / passes[0] - 4.0).abs() < 1e-9, "{passes:?}");
    let best = manifest.best_validation_cross_entropy_nats.unwrap();
    assert!(is_near(manifest.best_validation_bits_per_byte.unwrap(), best));
    assert!(manifest.final_validation_bits_per_byte.is_some());
    let synthetic = folder.path().join("synthetic");
    tiny::run(&with_steps(&tiny::dense(), 1, 1), &synthetic, OpenMode::New).unwrap();
    assert_eq!(tiny::rows(&synthetic)[0].as_step().unwrap().bits_per_byte, None);
}

#[test]
fn a_run_of_the_first_version_of_the_format_can_be_read() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/earlier_runs/first");
    let manifest = RunManifest::read(&fixture.join("run.json")).unwrap();
    assert_eq!((manifest.status, manifest.steps_done), (RunStatus::Finished, 3));
    let checkpoint = Checkpoint::read(&fixture.join("checkpoints/step-3")).unwrap();
    assert_eq!((checkpoint.state.step, &checkpoint.state.metrics_log), (3, &None));
    let model = checkpoint.model(&Device::flex().autodiff()).unwrap();
    checkpoint.optimizer(&model).unwrap();
    let folder = TempDir::new().unwrap();
    let log = folder.path().join("metrics.jsonl");
    fs::copy(fixture.join("metrics.jsonl"), &log).unwrap();
    let resumed = MetricsFile::resume(&log, 3, None).unwrap();
    assert_eq!(resumed.note, None);
    assert_eq!(resumed.rows.iter().filter(|row| row.as_step().is_some()).count(), 3);
    assert_eq!(read_metrics(&log).unwrap(), resumed.rows);
}

#[test]
fn the_mean_of_checkpoints_is_that_of_their_parameters() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut config = with_steps(&tiny::moe(), 6, 1);
    config.train.checkpoint_every_steps = Some(2);
    tiny::run(&config, &out, OpenMode::New).unwrap();
    let newest = average::newest(&out, 2).unwrap();
    assert_eq!(newest.iter().map(|checkpoint| checkpoint.state.step).collect::<Vec<_>>(), [4, 6]);
    let device = burn::tensor::Device::flex();
    let [before, after] = [0, 1].map(|index| newest[index].parameters().unwrap());
    for named in switchyard_model::parameter_data(&average::mean(&newest, &device).unwrap()) {
        let pairs = before[&named.name].iter::<f32>().zip(after[&named.name].iter::<f32>());
        let expected: Vec<f32> = pairs.map(|(a, b)| ((f64::from(a) + f64::from(b)) / 2.0) as f32).collect();
        assert_eq!(named.value.iter::<f32>().collect::<Vec<_>>(), expected, "{}", named.name);
    }
    let message = average::newest(&out, 9).unwrap_err().to_string();
    assert!(message.contains("holds 3 checkpoint(s), and 9 are to be averaged"), "{message}");
}
