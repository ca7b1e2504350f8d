//! A run small enough to be damaged a hundred thousand times: one mixture, four steps, everything
//! recorded.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use switchyard_comm::Comm;
use switchyard_trainer::checkpoint::MANIFEST_FILE;
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::run_folder::OpenMode;
use switchyard_trainer::train::{TrainRequest, train};

use crate::engine::{Seed, corpus};

/// Step of the only checkpoint.
const NUM_STEPS: u64 = 4;

const RECIPE: &str = r#"
name = "tiny"
threads = 1
[data.synthetic]
num_domains = 2
vocab_size = 12
num_documents = 60
document_tokens = 12
branching = 2
[data.split.tail]
validation_fraction = 0.2
[train]
num_steps = 4
seq_len = 4
batch_tokens = 16
eval_every_steps = 2
[train.adamw]
learning_rate = 1e-2
[train.schedule]
warmup_steps = 1
[train.schedule.constant]
[train.flight_recorder]
scores_every_steps = 2
probe_every_steps = 2
steps_per_part = 2
[train.flight_recorder.alarms]
window_steps = 1
max_violation = 0.01
[model]
num_layers = 1
d_model = 8
[model.attention]
num_heads = 2
[model.ffn]
activation = "swiglu"
[model.ffn.moe]
num_experts = 3
d_expert = 8
[model.ffn.moe.capacity]
factor = 1.0
[model.ffn.moe.router]
top_k = 2
load_balancing_weight = 0.01
"#;

/// The configuration of the run, its data cached in `folder`.
pub(crate) fn config(folder: &Path) -> RunConfig {
    let mut config: RunConfig = toml::from_str(RECIPE).expect("a recipe");
    config.data.cache_dir = Some(folder.join("cache"));
    config
}

/// Trains in `folder`; returns the run folder, in which nothing depends on the clock, so that an
/// input follows from its number.
pub(crate) fn make(folder: &Path) -> PathBuf {
    let out = folder.join("run");
    resume_or_start(folder, &out, OpenMode::New).expect("a tiny run");
    for file in files(&out, is_json) {
        let lines = file.bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let values = serde_json::from_slice(&file.bytes).map_or_else(
            |_| lines.map(|line| serde_json::from_slice(line).expect("a row")).collect(),
            |whole: Value| vec![whole],
        );
        let text: String = values.into_iter().map(|value| without_clock(value).to_string() + "\n").collect();
        fs::write(out.join(&file.name), text).expect("a file");
    }
    let checkpoint = out.join(checkpoint_name());
    let mut sealed: Vec<(String, Vec<u8>)> =
        corpus(&checkpoint).into_iter().map(|file| (file.name, file.bytes)).collect();
    make_consistent(&mut sealed);
    overwrite(&checkpoint, &sealed);
    out
}

/// Place of the checkpoint in the run folder.
pub(crate) fn checkpoint_name() -> String {
    format!("checkpoints/step-{NUM_STEPS}")
}

/// Whether a file of a run holds JSON, whole or in lines.
pub(crate) fn is_json(name: &str) -> bool {
    name.ends_with(".json") || name.ends_with(".jsonl")
}

/// The same with every reading of the clock, and what was made of it, set to something.
fn without_clock(value: Value) -> Value {
    let is_clocked = |key: &str| {
        key == "mfu"
            || ["_secs", "_per_sec", "_at", "_peak_flops", "_joules"].iter().any(|end| key.ends_with(end))
    };
    let steady = |value: Value| match value {
        Value::Number(_) => Value::from(0.5),
        Value::String(_) => Value::from("2026-01-01T00:00:00Z"),
        other => other,
    };
    match value {
        Value::Object(map) => map
            .into_iter()
            .map(|(key, inner)| {
                let inner = if is_clocked(&key) { steady(inner) } else { without_clock(inner) };
                (key, inner)
            })
            .collect(),
        Value::Array(items) => items.into_iter().map(without_clock).collect(),
        other => other,
    }
}

/// Trains in `out`, or goes on there for a step.
pub(crate) fn resume_or_start(folder: &Path, out: &Path, mode: OpenMode) -> Result<(), String> {
    let mut config = config(folder);
    if mode == OpenMode::Resume {
        config.train.num_steps += 1;
    }
    let plan = RunPlan::resolve(&config).expect("a plan");
    let stop = Arc::new(AtomicBool::new(false));
    let request = TrainRequest {
        config,
        plan,
        out: out.to_owned(),
        mode,
        show_progress: false,
        stop,
        comm: Comm::single(),
    };
    train(&request).map(drop).map_err(|error| error.to_string())
}

/// The files of a run whose names `is_wanted`. Left out: `latest`, through which the checkpoint is
/// seen twice, and event files, which nobody reads and whose names are times.
pub(crate) fn files(run: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<Seed> {
    let is_file = |name: &str| !name.contains("latest") && !name.starts_with("events.") && is_wanted(name);
    corpus(run).into_iter().filter(|seed| is_file(&seed.name)).collect()
}

/// Puts `files` into `folder`, which holds files of the same names at most: quicker than to make it
/// anew.
pub(crate) fn overwrite(folder: &Path, files: &[(String, Vec<u8>)]) {
    for (name, bytes) in files {
        let path = folder.join(name);
        if fs::write(&path, bytes).is_err() {
            fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("a folder");
            fs::write(&path, bytes).expect("a file");
        }
    }
}

/// Writes sizes and hashes of all files into the manifest, as far as it still is one.
pub(crate) fn make_consistent(files: &mut [(String, Vec<u8>)]) {
    let records: BTreeMap<String, Value> = files
        .iter()
        .filter(|(name, _)| name != MANIFEST_FILE)
        .map(|(name, bytes)| {
            let sha256: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            (name.clone(), json!({ "bytes": bytes.len(), "sha256": sha256 }))
        })
        .collect();
    let Some((_, manifest)) = files.iter_mut().find(|(name, _)| name == MANIFEST_FILE) else { return };
    let Ok(mut value) = serde_json::from_slice::<Value>(manifest) else { return };
    let Some(Value::Object(listed)) = value.get_mut("files") else { return };
    for (name, record) in records {
        // What the damage has taken from the list stays away.
        if let Some(old) = listed.get_mut(&name) {
            *old = record;
        }
    }
    *manifest = value.to_string().into_bytes();
}
