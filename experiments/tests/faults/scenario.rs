//! What is disturbed: a few commands on tiny data, and what a person does afterwards.

/// One command, the folder that it begins in, and how to go on after it failed.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Files that the user wrote: name and content.
    pub(crate) files: Vec<(&'static str, String)>,
    /// Commands that were run before without a fault.
    pub(crate) before: &'static [&'static str],
    /// The command that is disturbed.
    pub(crate) command: &'static str,
    /// The folder whose checkpoints must stay whole; `None` if there is none.
    pub(crate) run: Option<&'static str>,
    /// What is tried afterwards, in this order.
    pub(crate) afterwards: Vec<Attempt>,
}

/// A command that a person may try after a fault.
pub(crate) struct Attempt {
    pub(crate) command: &'static str,
    pub(crate) when: When,
}

/// When a person tries it.
pub(crate) enum When {
    /// Without being told.
    First,
    /// If the message before said this.
    Advised(&'static str),
    /// If the message before said this, and there is no checkpoint to lose.
    AdvisedAndNothingToLose(&'static str),
}

fn attempt(command: &'static str, when: When) -> Attempt {
    Attempt { command, when }
}

/// As the messages of `train` say.
fn resume() -> Vec<Attempt> {
    vec![
        attempt("train a.toml --out run --resume", When::First),
        attempt("train a.toml --out run", When::Advised("start it without `--resume`")),
        attempt("train a.toml --out run --overwrite", When::AdvisedAndNothingToLose("`--overwrite`")),
    ]
}

const HEAD: &str = r#"
name = "tiny"
seed = 7
threads = 1
[data.synthetic]
num_domains = 2
vocab_size = 32
num_documents = 60
document_tokens = 40
branching = 3
"#;

const TRAIN: &str = r#"
[train]
num_steps = 5
seq_len = 16
batch_tokens = 64
eval_every_steps = 2
checkpoint_every_steps = 2
max_grad_norm = 0.5
[train.adamw]
learning_rate = 1e-2
[train.flight_recorder]
scores_every_steps = 2
probe_every_steps = 2
steps_per_part = 2
[sample]
num_tokens = 4
[model]
num_layers = 2
d_model = 16
dropout = 0.1
[model.attention]
num_heads = 2
[model.ffn]
activation = "swiglu"
"#;

const DENSE: &str = "d_ff = 16\n";

const MIXTURE: &str = "[model.ffn.moe]\nnum_experts = 4\nd_expert = 16\n";

fn dense() -> String {
    format!("{HEAD}{TRAIN}{DENSE}")
}

fn mixture(router: &str) -> String {
    format!("{HEAD}{TRAIN}{MIXTURE}[model.ffn.moe.router]\ntop_k = 2\n{router}")
}

/// A few kilobytes of text in which words repeat.
fn text(seed: usize) -> String {
    let words = ["router", "expert", "token", "gate", "capacity", "balance", "sparse", "dense"];
    let word = |i: usize| words[(i * i + seed * 7 + i / 5) % words.len()];
    (0..400).map(|i| format!("{}{}", word(i), if i % 9 == 8 { ".\n" } else { " " })).collect()
}

fn on_text(tokenizer: &str) -> String {
    let data =
        format!("[data.text]\npath = \"corpus\"\n[data.split.tail]\nvalidation_fraction = 0.2\n{tokenizer}");
    format!("name = \"tiny\"\nthreads = 1\n{data}{TRAIN}{DENSE}")
}

/// A study and a sweep take the steps from their own files. They have timed their steps beforehand:
/// how long that takes and what comes out is the clock's, and the file that it goes to is renamed
/// by a system call of its own, past the C library and the shim.
const STUDY: &str = r#"
name = "study"
base = "a.toml"
held_equal = "active_flops"
seeds = [0, 1]
[budget]
num_steps = [2]
evaluations = 1
[[arms]]
label = "dense"
[[arms]]
label = "e4k2"
set = ["model.ffn.d_ff=", "model.ffn.moe={ num_experts = 4, router = { top_k = 2 } }"]
"#;

const SWEEP: &str = r#"
name = "sweep"
base = "a.toml"
seeds = [0]
num_steps = 4
evaluations = 2
[grid]
"train.adamw.learning_rate" = [1e-9, 1e-2]
[halving]
factor = 2
first_steps = 2
"#;

/// All of them. Data is prepared beforehand but where the preparation is what is disturbed.
pub(crate) fn all() -> Vec<Scenario> {
    let train = |name: &'static str, config: String| Scenario {
        name,
        files: vec![("a.toml", config)],
        before: &["data prepare a.toml"],
        command: "train a.toml --out run",
        run: Some("run"),
        afterwards: resume(),
    };
    let top_k = "load_balancing_weight = 0.01\nz_loss_weight = 0.001\njitter = 0.01\n";
    let mut scenarios = vec![
        train("dense", dense()),
        train("top-k", mixture(top_k)),
        train("bias", mixture("bias = { sign = { rate = 0.01 } }\n")),
        train("quantile", mixture("sigmoid = {}\nbias = { quantile = {} }\n")),
        train(
            "accumulation",
            mixture(top_k).replace("batch_tokens = 64", "batch_tokens = 64\nmicro_batch_tokens = 32"),
        ),
        train("early-stopping", early_stopping()),
        Scenario { before: &[], ..train("from-nothing", dense()) },
        Scenario {
            before: &["train a.toml --out run --set train.num_steps=3"],
            command: "train a.toml --out run --resume",
            ..train("resume", mixture(top_k))
        },
    ];
    scenarios.extend(preparations());
    scenarios.extend(second_runs(top_k));
    scenarios.extend(readings_and_many_runs(top_k));
    scenarios
}

/// The best checkpoint is kept, and the run ends before its last step.
fn early_stopping() -> String {
    let stop = "[train.early_stopping]\npatience_evals = 2\nmin_improvement_nats = 100.0\n";
    let keep = "[train.checkpoints]\nkeep_last = 1\nkeep_best = true\n";
    let often = |config: String| {
        let config = config.replace("eval_every_steps = 2", "eval_every_steps = 1");
        config.replace("checkpoint_every_steps = 2", "checkpoint_every_steps = 1")
    };
    often(dense()).replace("[train.flight_recorder]", &format!("{stop}{keep}[train.flight_recorder]"))
}

fn preparations() -> Vec<Scenario> {
    let prepare = |name: &'static str, tokenizer: &str| Scenario {
        name,
        files: vec![
            ("a.toml", on_text(tokenizer)),
            ("corpus/one.txt", text(1)),
            ("corpus/two.md", text(2)),
            ("corpus/three.jsonl", format!("{{\"text\": {:?}}}\n", text(3))),
        ],
        before: &[],
        command: "data prepare a.toml",
        run: None,
        afterwards: vec![attempt("data prepare a.toml", When::First)],
    };
    vec![
        prepare("prepare-bytes", ""),
        prepare("prepare-bpe", "[data.tokenizer.bpe]\nvocab_size = 300\n"),
        Scenario { files: vec![("a.toml", dense())], ..prepare("prepare-synthetic", "") },
    ]
}

/// Runs that begin from another one, or in its place.
fn second_runs(top_k: &str) -> Vec<Scenario> {
    let with_dense = || vec![("dense.toml", dense()), ("a.toml", mixture(top_k))];
    vec![
        Scenario {
            name: "upcycle",
            files: with_dense(),
            before: &["train dense.toml --out dense"],
            command: "upcycle dense a.toml --out run",
            run: Some("run"),
            afterwards: vec![
                attempt("upcycle dense a.toml --out run", When::First),
                attempt("upcycle dense a.toml --out run --overwrite", When::Advised("`--overwrite`")),
            ],
        },
        Scenario {
            name: "upcycled",
            files: with_dense(),
            before: &["train dense.toml --out dense", "upcycle dense a.toml --out run"],
            command: "train a.toml --out run --resume",
            run: Some("run"),
            afterwards: vec![attempt("train a.toml --out run --resume", When::First)],
        },
        Scenario {
            name: "overwrite",
            files: vec![("old.toml", dense().replace("seed = 7", "seed = 8")), ("a.toml", dense())],
            before: &["train old.toml --out run"],
            command: "train a.toml --out run --overwrite",
            // The checkpoints of the old run are being deleted: none has to be whole.
            run: None,
            // Before the old run is gone, its checkpoints refuse the new configuration.
            afterwards: vec![
                attempt("train a.toml --out run --resume", When::First),
                attempt("train a.toml --out run", When::Advised("start it without `--resume`")),
                attempt("train a.toml --out run --overwrite", When::Advised("")),
            ],
        },
    ]
}

fn readings_and_many_runs(top_k: &str) -> Vec<Scenario> {
    vec![
        Scenario {
            name: "study",
            files: vec![("a.toml", dense()), ("study.toml", STUDY.into())],
            before: &["compare study.toml --out out --dry-run"],
            command: "compare study.toml --out out",
            run: None,
            afterwards: vec![attempt("compare study.toml --out out", When::First)],
        },
        Scenario {
            name: "sweep",
            files: vec![("a.toml", dense()), ("sweep.toml", SWEEP.into())],
            before: &["sweep sweep.toml --out out --dry-run"],
            command: "sweep sweep.toml --out out",
            run: None,
            afterwards: vec![attempt("sweep sweep.toml --out out", When::First)],
        },
        Scenario {
            name: "report",
            files: vec![("a.toml", mixture(top_k))],
            before: &["train a.toml --out run"],
            command: "report run --out page",
            run: Some("run"),
            afterwards: vec![attempt("report run --out page", When::First)],
        },
        Scenario {
            name: "eval",
            files: vec![("a.toml", mixture(top_k))],
            before: &["train a.toml --out run"],
            command: "eval run --json",
            run: Some("run"),
            afterwards: vec![attempt("eval run --json", When::First)],
        },
    ]
}
