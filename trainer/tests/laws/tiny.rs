//! Tiny runs: small enough for a test, with everything switched on that could break exact
//! resumption.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use switchyard_comm::Comm;
use switchyard_trainer::TrainError;
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::metrics::{Record, read_metrics};
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::run_folder::OpenMode;
use switchyard_trainer::train::{RunSummary, TrainRequest, dismiss, follow, train};

const HEAD: &str = r#"
name = "tiny"
seed = 7
[data.synthetic]
num_domains = 2
vocab_size = 32
num_documents = 200
document_tokens = 40
branching = 3
[train]
num_steps = 6
seq_len = 16
batch_tokens = 128
micro_batch_tokens = 64
eval_every_steps = 2
checkpoint_every_steps = 3
max_grad_norm = 0.5
[train.adamw]
learning_rate = 1e-2
[train.schedule]
warmup_steps = 2
[train.schedule.constant]
[train.checkpoints]
keep_last = 10
[sample]
num_tokens = 8
[model]
num_layers = 2
d_model = 16
dropout = 0.1
[model.attention]
num_heads = 2
num_kv_heads = 1
"#;

/// A dense run.
pub(crate) fn dense() -> RunConfig {
    parse(&format!("{HEAD}\n[model.ffn]\nactivation = \"swiglu\"\nd_ff = 24\n"))
}

/// A mixture with jitter, both router losses, a shared expert and a capacity.
pub(crate) fn moe() -> RunConfig {
    parse(&format!(
        r#"{HEAD}
[model.ffn]
activation = "swiglu"
[model.ffn.moe]
num_experts = 4
d_expert = 12
d_shared_expert = 8
[model.ffn.moe.capacity]
factor = 1.5
[model.ffn.moe.router]
top_k = 2
jitter = 0.01
load_balancing_weight = 0.01
z_loss_weight = 0.001
"#
    ))
}

/// The mixture with another router, two micro-batches a step, and no capacity, which some routers
/// decide themselves.
pub(crate) fn routed(router: &str) -> RunConfig {
    let mut config = moe();
    if let Some(moe) = &mut config.model.ffn.moe {
        (moe.router, moe.capacity) = (toml::from_str(router).unwrap(), None);
    }
    config
}

/// A configuration from TOML text.
pub(crate) fn parse(text: &str) -> RunConfig {
    toml::from_str(text).unwrap()
}

/// Train `config` in `out`, its data cached beside it.
pub(crate) fn run(config: &RunConfig, out: &Path, mode: OpenMode) -> Result<RunSummary, TrainError> {
    run_with_stop(config, out, mode, false)
}

/// As [`run`], asked to stop before it begins if `stopped`: it then ends after one step, or within
/// the first evaluation.
pub(crate) fn run_with_stop(
    config: &RunConfig,
    out: &Path,
    mode: OpenMode,
    stopped: bool,
) -> Result<RunSummary, TrainError> {
    train(&request(config, out, mode, stopped, Comm::single()))
}

/// As [`run`] on so many ranks, each a thread.
pub(crate) fn run_on_ranks(
    num_ranks: usize,
    config: &RunConfig,
    out: &Path,
    mode: OpenMode,
) -> Result<RunSummary, TrainError> {
    let mut others = Comm::threads(num_ranks);
    let first = others.remove(0);
    thread::scope(|scope| {
        for comm in others {
            scope.spawn(move || follow(&comm, &Arc::default()).unwrap());
        }
        let outcome = train(&request(config, out, mode, false, first.clone()));
        dismiss(&first);
        outcome
    })
}

fn request(config: &RunConfig, out: &Path, mode: OpenMode, stopped: bool, comm: Comm) -> TrainRequest {
    let mut config = config.clone();
    config.data.cache_dir = Some(out.with_file_name("cache"));
    let plan = RunPlan::resolve(&config).unwrap();
    let stop = Arc::new(AtomicBool::new(stopped));
    TrainRequest { config, plan, out: out.into(), mode, show_progress: false, stop, comm }
}

/// Every logged row without its clock readings.
pub(crate) fn rows(out: &Path) -> Vec<Record> {
    read_metrics(&out.join("metrics.jsonl")).unwrap().iter().map(Record::without_timings).collect()
}
