//! A run small enough to be damaged a hundred thousand times: one mixture, four steps, everything recorded.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use switchyard_trainer::config::RunConfig;
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::run_folder::OpenMode;
use switchyard_trainer::train::{TrainRequest, train};

use crate::engine::{Seed, corpus};

/// Step of the only checkpoint.
pub(crate) const NUM_STEPS: u64 = 4;

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

/// Trains in `folder`; returns the run folder.
pub(crate) fn make(folder: &Path) -> PathBuf {
    let out = folder.join("run");
    resume_or_start(folder, &out, OpenMode::New).expect("a tiny run");
    out
}

/// Trains in `out`, or goes on there for a step.
pub(crate) fn resume_or_start(folder: &Path, out: &Path, mode: OpenMode) -> Result<(), String> {
    let mut config = config(folder);
    if mode == OpenMode::Resume {
        config.train.num_steps += 1;
    }
    let plan = RunPlan::resolve(&config).expect("a plan");
    let stop = Arc::new(AtomicBool::new(false));
    let request = TrainRequest { config, plan, out: out.to_owned(), mode, show_progress: false, stop };
    train(&request).map(drop).map_err(|error| error.to_string())
}

/// The files of `folder` in whose names `is_wanted`.
pub(crate) fn files(folder: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<Seed> {
    corpus(folder).into_iter().filter(|seed| is_wanted(&seed.name)).collect()
}

/// Puts `files` into `folder`, which holds files of the same names at most: quicker than to make it anew.
pub(crate) fn overwrite(folder: &Path, files: &[(String, Vec<u8>)]) {
    for (name, bytes) in files {
        let path = folder.join(name);
        if fs::write(&path, bytes).is_err() {
            fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("a folder");
            fs::write(&path, bytes).expect("a file");
        }
    }
}
