//! What a run begins with, and what it trains.

#![expect(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use switchyard_comm::Comm;
use switchyard_hub::PublishedModel;
use switchyard_trainer::TrainError;
use switchyard_trainer::checkpoint::{Checkpoint, find_checkpoint};
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::import::{ImportRequest, import_run};
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::run_folder::OpenMode;
use switchyard_trainer::train::{TrainRequest, train};

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Two steps on a corpus of 128 ids, from the model in `from`.
fn config(from: &str, freeze: &[&str], num_steps: u64) -> RunConfig {
    let text = format!(
        r#"
name = "started"
[start]
from = {from:?}
freeze = {freeze:?}
[data.synthetic]
num_domains = 2
vocab_size = 128
num_documents = 40
document_tokens = 40
branching = 3
[train]
num_steps = {num_steps}
seq_len = 16
batch_tokens = 64
checkpoint_every_steps = 1
[train.adamw]
learning_rate = 1e-2
[train.checkpoints]
keep_last = 10
[sample]
num_tokens = 0
"#
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    switchyard_trainer::config_file::load(&path, &[]).unwrap().config
}

fn run(config: &RunConfig, out: &Path, mode: OpenMode) -> Result<(), TrainError> {
    let plan = RunPlan::resolve(config).unwrap();
    let request = TrainRequest {
        config: config.clone(),
        plan,
        out: out.to_path_buf(),
        mode,
        show_progress: false,
        stop: Arc::new(AtomicBool::new(false)),
        comm: Comm::single(),
    };
    train(&request).map(|_| ())
}

/// Bits of every parameter at a step of the run.
fn parameters(out: &Path, step: u64) -> BTreeMap<String, Vec<u32>> {
    let folder = find_checkpoint(&out.join(format!("checkpoints/step-{step}"))).unwrap();
    let parameters = Checkpoint::read(&folder).unwrap().parameters().unwrap();
    let bits = |data: &burn::tensor::TensorData| data.iter::<f32>().map(f32::to_bits).collect();
    parameters.iter().map(|(name, data)| (name.to_string(), bits(data))).collect()
}

#[test]
fn what_is_frozen_stays_and_all_else_moves_also_after_a_resume() {
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("run");
    let freeze = ["router", "experts", "blocks.0.attention.*"];
    run(&config(&fixture("qwen2_moe"), &freeze, 2), &out, OpenMode::New).unwrap();
    run(&config(&fixture("qwen2_moe"), &freeze, 3), &out, OpenMode::Resume).unwrap();
    let (first, last) = (parameters(&out, 1), parameters(&out, 3));
    let is_frozen = |name: &str| {
        name.contains(".router.") || name.contains(".experts.") || name.starts_with("blocks.0.attention.")
    };
    let mut num_frozen = 0;
    for (name, before) in &first {
        assert_eq!(before == &last[name], is_frozen(name), "{name}");
        num_frozen += usize::from(is_frozen(name));
    }
    assert!(num_frozen > 8 && num_frozen < first.len(), "{num_frozen} of {}", first.len());
}

#[test]
fn a_run_goes_on_from_a_run_and_refuses_another_model() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let imported = config(&fixture("llama"), &[], 1);
    run(&imported, &first, OpenMode::New).unwrap();
    let mut onward = imported.clone();
    onward.start.from = Some(first.clone());
    onward.train.adamw.learning_rate = 1e-30;
    run(&onward, &second, OpenMode::New).unwrap();
    let (before, after) = (parameters(&first, 1), parameters(&second, 1));
    // Decay by the same rate moves nothing either.
    assert_eq!(before, after);
    let mut other = onward.clone();
    other.model.d_model = 64;
    let refused = run(&other, &folder.path().join("third"), OpenMode::New).unwrap_err().to_string();
    assert!(refused.contains("`start.from` is") && refused.contains("computes something else"), "{refused}");
    let nothing = config(&fixture("llama"), &["experts"], 1);
    let refused = run(&nothing, &folder.path().join("fourth"), OpenMode::New).unwrap_err().to_string();
    assert!(!folder.path().join("third").exists() && !folder.path().join("fourth").exists());
    assert!(refused.contains("`start.freeze` holds \"experts\", which names no parameter"), "{refused}");
}

#[test]
fn an_imported_run_has_the_published_models_values_and_can_be_begun_with() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama", "gpt2", "deepseek_v3"] {
        let (dir, out) = (PathBuf::from(fixture(name)), folder.path().join(name));
        let published = PublishedModel::open(&dir).unwrap();
        let request = ImportRequest { out: out.clone(), mode: OpenMode::New, seq_len: None };
        let written = import_run(&dir, &published, &request).unwrap();
        assert_eq!(find_checkpoint(&out).unwrap(), written);
        let checkpoint = Checkpoint::read(&written).unwrap();
        let located = published.locate(&checkpoint.plan.model).unwrap();
        let parameters = checkpoint.parameters().unwrap();
        assert_eq!(parameters.len(), located.names().count(), "{name}");
        for (parameter, data) in &parameters {
            let values: Vec<f32> = data.iter::<f32>().collect();
            assert_eq!(values, published.values(&located, *parameter).unwrap(), "{name}: {parameter}");
        }
        assert!(import_run(&dir, &published, &request).is_err(), "there is a run already");
        let replaced = ImportRequest { mode: OpenMode::Overwrite, seq_len: Some(8), ..request };
        import_run(&dir, &published, &replaced).unwrap();
        let mut onward = config(&fixture(name), &[], 1);
        onward.start.from = Some(out);
        run(&onward, &folder.path().join(format!("{name}-onward")), OpenMode::New).unwrap();
    }
    let dir = PathBuf::from(fixture("llama"));
    let published = PublishedModel::open(&dir).unwrap();
    // The end of a text is that of config.json; a run that begins with the run needs no `[model]`.
    let imported = Checkpoint::read(&find_checkpoint(&folder.path().join("llama")).unwrap()).unwrap();
    let end = published.special_ids.end.first().map(|id| *id as u32);
    assert!(end.is_some() && imported.tokenizer.end_of_document() == end);
    let onward = config(folder.path().join("llama").to_str().unwrap(), &[], 1);
    assert_eq!(onward.model, imported.config.model);
    let out = folder.path().join("too-long");
    let request = ImportRequest { out: out.clone(), mode: OpenMode::New, seq_len: Some(1 << 20) };
    let refused = import_run(&dir, &published, &request).unwrap_err();
    assert!(refused.is_users_mistake() && refused.to_string().contains("1048576"), "{refused}");
    assert!(!out.exists());
}
