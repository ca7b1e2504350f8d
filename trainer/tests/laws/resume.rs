//! Exact resumption, and refusal of what cannot be resumed.

use std::fs;
use std::path::Path;

use crate::tiny;
use burn::tensor::Device;
use proptest::prelude::*;
use switchyard_datasets::{SourceConfig, Tokenizer};
use switchyard_model::Transformer;
use switchyard_trainer::TrainError;
use switchyard_trainer::checkpoint::{Checkpoint, CheckpointError, CheckpointStore, Snapshot, TrainingState};
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::optimizer::Optimizer;
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::run_folder::{OpenMode, RunFolderError, RunStatus};
use tempfile::TempDir;

/// The tensors of a checkpoint, as the bytes on disk.
pub(crate) fn tensors(out: &Path, step: u64) -> [Vec<u8>; 2] {
    let folder = out.join(format!("checkpoints/step-{step}"));
    ["model.safetensors", "optimizer.safetensors"].map(|name| fs::read(folder.join(name)).unwrap())
}

/// Steps at two threads are the steps at one thread with a stop between.
#[track_caller]
pub(crate) fn assert_resumes_for_any_number_of_threads(name: &str, config: &RunConfig) {
    let folder = TempDir::new().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    tiny::run(&with_steps(config, 6, 2), &whole, OpenMode::New).unwrap();
    tiny::run(&with_steps(config, 3, 1), &parts, OpenMode::New).unwrap();
    tiny::run(&with_steps(config, 6, 1), &parts, OpenMode::Resume).unwrap();
    assert_eq!(tiny::rows(&whole), tiny::rows(&parts), "{name}: logged numbers");
    assert!(tensors(&whole, 6) == tensors(&parts, 6), "{name}: stored tensors");
}

/// A run of the first configuration does not go on with the second one, for this reason.
#[track_caller]
pub(crate) fn assert_refused_on_resume((before, now): (&RunConfig, &RunConfig), out: &Path, expected: &str) {
    tiny::run(before, out, OpenMode::New).unwrap();
    let message = tiny::run(&with_steps(now, 6, 1), out, OpenMode::Resume).unwrap_err().to_string();
    assert!(message.contains(expected), "{message}");
}

pub(crate) fn with_steps(config: &RunConfig, num_steps: u64, threads: usize) -> RunConfig {
    let mut config = config.clone();
    config.train.num_steps = num_steps;
    config.threads = Some(threads);
    config
}

#[test]
fn two_n_steps_equal_n_steps_then_resume_then_n_steps_bit_for_bit() {
    for (name, config) in [("dense", tiny::dense()), ("moe", tiny::moe())] {
        let folder = TempDir::new().unwrap();
        let mut reference = None;
        for threads in [1, 2] {
            let whole = folder.path().join(format!("{name}-whole-{threads}"));
            let parts = folder.path().join(format!("{name}-parts-{threads}"));
            tiny::run(&with_steps(&config, 6, threads), &whole, OpenMode::New).unwrap();
            tiny::run(&with_steps(&config, 3, threads), &parts, OpenMode::New).unwrap();
            let resumed = tiny::run(&with_steps(&config, 6, threads), &parts, OpenMode::Resume).unwrap();

            assert_eq!(resumed.manifest.resumed_from_steps, [3], "{name}");
            assert_eq!(tiny::rows(&whole), tiny::rows(&parts), "{name}, {threads} threads: logged numbers");
            assert!(tensors(&whole, 6) == tensors(&parts, 6), "{name}, {threads} threads: stored tensors");
            assert_eq!(
                fs::read(whole.join("sample.txt")).unwrap(),
                fs::read(parts.join("sample.txt")).unwrap(),
                "{name}: generated text"
            );
            let result = (tiny::rows(&whole), tensors(&whole, 6));
            assert!(
                *reference.get_or_insert(result.clone()) == result,
                "{name}: depends on the thread count"
            );
        }
    }
}

#[test]
fn a_run_learns_what_can_be_learnt() {
    let folder = TempDir::new().unwrap();
    let mut config = tiny::moe();
    config.train.num_steps = 60;
    let out = folder.path().join("run");
    let summary = tiny::run(&config, &out, OpenMode::New).unwrap();
    let first = tiny::rows(&out)[0].as_step().unwrap().cross_entropy_nats;
    let last = summary.manifest.final_validation_cross_entropy_nats.unwrap();
    // ln 32 = 3.47 is what knowing nothing costs; the successors of a symbol are 3 per domain.
    assert!((first - 3.47).abs() < 0.1, "the first loss is {first}");
    assert!(last < first - 0.5, "the loss went from {first} to {last} only");
    assert_eq!(summary.manifest.status, RunStatus::Finished);
}

#[test]
fn a_run_that_stopped_improving_stays_stopped() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut config = tiny::dense();
    config.train.num_steps = 100;
    // No evaluation improves by 100 nats, so the second and the third after the first are the last.
    config.train.early_stopping =
        Some(toml::from_str("patience_evals = 2\nmin_improvement_nats = 100.0").unwrap());
    let summary = tiny::run(&config, &out, OpenMode::New).unwrap();
    assert_eq!((summary.manifest.status, summary.manifest.steps_done), (RunStatus::Finished, 6));
    let rows = tiny::rows(&out);
    let resumed = tiny::run(&config, &out, OpenMode::Resume).unwrap();
    assert_eq!((resumed.manifest.status, resumed.manifest.steps_done), (RunStatus::Finished, 6));
    assert_eq!(tiny::rows(&out), rows);
}

#[test]
fn rows_after_the_checkpoint_are_forgotten_and_written_anew() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    tiny::run(&tiny::dense(), &out, OpenMode::New).unwrap();
    let whole = tiny::rows(&out);
    // As a kill after step 5 would leave it: a checkpoint of step 3, rows up to 5, half a row of 6.
    fs::remove_dir_all(out.join("checkpoints/step-6")).unwrap();
    let log = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let cut = log.lines().position(|line| line.contains("\"step\":6,")).unwrap();
    let kept: String = log.lines().take(cut).map(|line| format!("{line}\n")).collect();
    fs::write(out.join("metrics.jsonl"), kept + "{\"kind\":\"step\",\"step\":6,\"tok").unwrap();
    tiny::run(&tiny::dense(), &out, OpenMode::Resume).unwrap();
    assert_eq!(tiny::rows(&out), whole);
}

#[test]
fn leftovers_of_an_interrupted_checkpoint_are_removed() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    tiny::run(&with_steps(&tiny::dense(), 3, 1), &out, OpenMode::New).unwrap();
    let leftover = out.join("checkpoints/step-6.tmp");
    fs::create_dir(&leftover).unwrap();
    fs::write(leftover.join("model.safetensors"), b"half").unwrap();
    tiny::run(&tiny::dense(), &out, OpenMode::Resume).unwrap();
    assert!(!leftover.exists());
    assert_eq!(fs::read_link(out.join("checkpoints/latest")).unwrap(), Path::new("step-6"));
}

#[test]
fn only_the_newest_and_the_best_checkpoints_stay() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut config = tiny::dense();
    config.train.checkpoint_every_steps = Some(2);
    config.train.num_steps = 12;
    config.train.checkpoints.keep_last = 2;
    let summary = tiny::run(&config, &out, OpenMode::New).unwrap();
    let best = summary.manifest.best_validation_step.unwrap();
    let mut found: Vec<u64> = fs::read_dir(out.join("checkpoints"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_prefix("step-")?.parse().ok())
        .collect();
    found.sort_unstable();
    let mut expected = vec![best, 10, 12];
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(found, expected);
}

/// A finished run of three steps, then what `damage` does to it; returns the error of resuming it.
fn resume_error(damage: impl FnOnce(&Path), config: &RunConfig) -> String {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    tiny::run(&with_steps(&tiny::moe(), 3, 1), &out, OpenMode::New).unwrap();
    damage(&out.join("checkpoints/step-3"));
    let files = ["metrics.jsonl", "run.json", "config.toml", "sample.txt"].map(|name| out.join(name));
    let before = files.clone().map(|path| fs::read(path).unwrap());
    let error = tiny::run(config, &out, OpenMode::Resume).unwrap_err();
    assert!(error.is_users_mistake(), "{error}");
    assert!(
        files.map(|path| fs::read(path).unwrap()) == before,
        "a refused resumption leaves the run as it was"
    );
    error.to_string()
}

#[test]
fn a_damaged_checkpoint_is_refused_with_its_reason() {
    let flip = |name: &'static str| {
        move |folder: &Path| {
            let path = folder.join(name);
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(path, bytes).unwrap();
        }
    };
    for name in ["model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json", "config.toml"]
    {
        let message = resume_error(flip(name), &tiny::moe());
        assert!(
            message.contains(name) && message.contains("damaged") && message.contains("SHA-256"),
            "{message}"
        );
    }
    let message =
        resume_error(|folder| fs::remove_file(folder.join("model.safetensors")).unwrap(), &tiny::moe());
    assert!(message.contains("model.safetensors: the checkpoint is damaged"), "{message}");
    let truncate = |folder: &Path| {
        let file = fs::OpenOptions::new().write(true).open(folder.join("optimizer.safetensors")).unwrap();
        file.set_len(100).unwrap();
    };
    let message = resume_error(truncate, &tiny::moe());
    assert!(message.contains("it has 100 bytes"), "{message}");
    let message = resume_error(|folder| fs::remove_file(folder.join("manifest.json")).unwrap(), &tiny::moe());
    assert!(message.contains("not a checkpoint"), "{message}");
    let foreign = |folder: &Path| fs::write(folder.join("manifest.json"), "{\"a\": 1}").unwrap();
    assert!(resume_error(foreign, &tiny::moe()).contains("damaged"));
    let newer = |folder: &Path| {
        let path = folder.join("manifest.json");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"format_version\": 3", "\"format_version\": 9")).unwrap();
    };
    let message = resume_error(newer, &tiny::moe());
    assert!(message.contains("format version 9, this program reads 1 to 3"), "{message}");
}

#[test]
fn a_checkpoint_of_another_configuration_is_refused_by_key() {
    let mut wider = tiny::moe();
    wider.model.d_model = 32;
    let message = resume_error(|_| {}, &wider);
    assert!(message.contains("`model.d_model` is 16 there and 32 now"), "{message}");
    let mut other_data = tiny::moe();
    let SourceConfig::Synthetic(synthetic) = &mut other_data.data.source else { panic!("another source") };
    synthetic.seed = 1;
    let message = resume_error(|_| {}, &other_data);
    assert!(message.contains("`data.synthetic.seed` is 0 there and 1 now"), "{message}");
}

#[test]
fn an_existing_run_needs_resume_or_overwrite() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let config = with_steps(&tiny::dense(), 2, 1);
    tiny::run(&config, &out, OpenMode::New).unwrap();
    let error = tiny::run(&config, &out, OpenMode::New).unwrap_err();
    assert!(matches!(error, TrainError::RunFolder(RunFolderError::AlreadyExists { .. })), "{error}");
    tiny::run(&config, &out, OpenMode::Overwrite).unwrap();
}

#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_others_whole() {
    let folder = TempDir::new().unwrap();
    let config = tiny::dense();
    let plan = RunPlan::resolve(&config).unwrap();
    let model = Transformer::new(&plan.model, 1, &Device::flex());
    let optimizer = Optimizer::new(&config.train, &plan.model);
    let store = CheckpointStore::open(folder.path()).unwrap();
    let save = |step: u64| {
        let state: TrainingState = serde_json::from_value(serde_json::json!({
            "step": step, "tokens_seen": 0, "data_cursor": 0, "data_hash": "", "active_flops": 0.0, "train_secs": 0.0,
            "rng": { "seed": 1, "next_step": step }, "evals_without_improvement": 0,
        }))
        .unwrap();
        let ids = Tokenizer::Ids { vocab_size: plan.model.vocab_size, end_of_document: None };
        let (config, plan, tokenizer) = (&config, &plan, &ids);
        let carried = None;
        store.save(&Snapshot {
            model: &model,
            optimizer: &optimizer,
            carried,
            state: &state,
            config,
            plan,
            tokenizer,
        })
    };
    save(1).unwrap();
    // A file where the temporary folder has to go: the system refuses to create it, as a full disk
    // would.
    fs::write(folder.path().join("step-2.tmp"), "").unwrap();
    let error = save(2).unwrap_err();
    assert!(matches!(error, CheckpointError::Write { .. }), "{error}");
    assert!(error.to_string().contains("No earlier checkpoint was touched"), "{error}");
    assert_eq!(store.steps().unwrap(), [1]);
    assert_eq!(fs::read_link(folder.path().join("latest")).unwrap(), Path::new("step-1"));
    Checkpoint::read(&folder.path().join("step-1")).unwrap();
}

#[test]
fn a_checkpoint_whose_replacement_was_interrupted_is_put_back() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    tiny::run(&with_steps(&tiny::dense(), 3, 1), &out, OpenMode::New).unwrap();
    let whole = tensors(&out, 3);
    let step = out.join("checkpoints/step-3");
    fs::rename(&step, out.join("checkpoints/step-3.replaced.tmp")).unwrap();
    CheckpointStore::open(&out.join("checkpoints")).unwrap();
    assert!(tensors(&out, 3) == whole);
}

#[test]
fn a_model_that_is_not_finite_is_not_stored() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut config = tiny::dense();
    config.train.num_steps = 1;
    config.train.adamw.learning_rate = 1e37;
    config.train.adamw.weight_decay = 1e37;
    let error = tiny::run(&config, &out, OpenMode::New).unwrap_err();
    assert!(matches!(error, TrainError::Checkpoint(CheckpointError::NonFinite { .. })), "{error}");
    assert!(!out.join("checkpoints/step-1").exists());
}

#[test]
fn a_run_without_a_checkpoint_begins_anew_only_if_it_is_the_same_and_unfinished() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let config = with_steps(&tiny::dense(), 3, 1);
    tiny::run(&config, &out, OpenMode::New).unwrap();
    let rows = tiny::rows(&out);
    fs::remove_dir_all(out.join("checkpoints")).unwrap();
    let error = tiny::run(&config, &out, OpenMode::Resume).unwrap_err().to_string();
    assert!(error.contains("its checkpoints are gone"), "{error}");
    // As a kill would have left it.
    let manifest = fs::read_to_string(out.join("run.json")).unwrap();
    fs::write(out.join("run.json"), manifest.replace("\"status\": \"finished\"", "\"status\": \"running\""))
        .unwrap();
    let mut wider = config.clone();
    wider.model.d_model = 32;
    let error = tiny::run(&wider, &out, OpenMode::Resume).unwrap_err().to_string();
    assert!(error.contains("`model.d_model` is 16 there and 32 now"), "{error}");
    assert_eq!(tiny::rows(&out), rows, "refused, so untouched");
    tiny::run(&config, &out, OpenMode::Resume).unwrap();
    assert_eq!(tiny::rows(&out), rows);
}

#[test]
fn a_mistake_in_the_data_leaves_no_folder() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut config = tiny::dense();
    config.train.seq_len = 4096;
    config.train.batch_tokens = 4096;
    config.train.micro_batch_tokens = None;
    let error = tiny::run(&config, &out, OpenMode::New).unwrap_err();
    assert!(error.is_users_mistake() && error.to_string().contains("4097"), "{error}");
    config = tiny::dense();
    config.sample.prompt = Some("words".into());
    let error = tiny::run(&config, &out, OpenMode::New).unwrap_err();
    assert!(error.is_users_mistake() && error.to_string().contains("\"words\""), "{error}");
    assert!(!out.exists());
}

#[test]
fn large_tensors_give_the_same_numbers_with_any_number_of_threads() {
    let folder = TempDir::new().unwrap();
    let mut config = tiny::moe();
    config.model.d_model = 96;
    config.train.seq_len = 32;
    config.train.batch_tokens = 2048;
    config.train.micro_batch_tokens = Some(1024);
    let result = |threads: usize| {
        let out = folder.path().join(threads.to_string());
        tiny::run(&with_steps(&config, 2, threads), &out, OpenMode::New).unwrap();
        (tiny::rows(&out), tensors(&out, 2))
    };
    let one = result(1);
    for threads in [2, 3, 5] {
        assert!(result(threads) == one, "{threads} threads");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]
    /// Whatever byte of whatever file of a checkpoint changes, resuming refuses.
    #[test]
    fn any_changed_byte_is_noticed(file in 0usize..6, place in 0.0f64..1.0, bit in 0u8..8) {
        let names = ["model.safetensors", "optimizer.safetensors", "state.json", "plan.json", "config.toml",
            "tokenizer.json"];
        let flip = |folder: &Path| {
            let path = folder.join(names[file]);
            let mut bytes = fs::read(&path).unwrap();
            let index = ((bytes.len() - 1) as f64 * place) as usize;
            bytes[index] ^= 1 << bit;
            fs::write(path, bytes).unwrap();
        };
        let message = resume_error(flip, &tiny::moe());
        prop_assert!(message.contains(names[file]), "{message}");
    }
}
