//! The program as a script or a person meets it: exit codes, messages, files, signals.

#![expect(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// A small run on generated data; the tables of the model come last so that a test can go on
/// writing.
const TINY: &str = r#"
name = "tiny"
seed = 3
threads = 1
[data.synthetic]
num_domains = 2
vocab_size = 32
num_documents = 200
document_tokens = 40
branching = 3
[train]
num_steps = 8
seq_len = 16
batch_tokens = 64
eval_every_steps = 4
checkpoint_every_steps = 4
[train.adamw]
learning_rate = 1e-2
[sample]
num_tokens = 5
prompt = "1 2"
[model]
num_layers = 1
d_model = 16
[model.attention]
num_heads = 2
"#;

const DENSE: &str = "[model.ffn]\nactivation = \"swiglu\"\nd_ff = 16\n";
const MOE: &str = "[model.ffn]\nactivation = \"swiglu\"\n[model.ffn.moe]\nnum_experts = 4\nd_expert = 8\n\
                   [model.ffn.moe.router]\ntop_k = 2\nload_balancing_weight = 0.01\n";

const PROGRAM: &str = env!("CARGO_BIN_EXE_switchyard");

/// A folder of its own for one test, and the program run inside it.
struct Desk {
    folder: TempDir,
}

impl Desk {
    fn new() -> Self {
        let desk = Self { folder: TempDir::new().unwrap() };
        desk.write("dense.toml", &TINY.replace("\"tiny\"", "\"tiny-dense\"").add(DENSE));
        desk.write("moe.toml", &TINY.replace("\"tiny\"", "\"tiny-moe\"").add(MOE));
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.on_the_desk(PROGRAM);
        command.args(arguments);
        command
    }

    /// Any program, in the desk's folder and with its cache.
    fn on_the_desk(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        if ignores_signals() {
            command = Command::new("env");
            command.args(["--default-signal", program]);
        }
        command.current_dir(self.folder.path()).env("SWITCHYARD_CACHE_DIR", self.path("cache"));
        command.env_remove("RUST_BACKTRACE").stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Standard output of a command that must succeed.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Standard error of a command that must fail as the user's mistake, as one message.
    fn mistake(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
        assert_eq!(message.matches("error:").count(), 1, "{message}");
        assert!(!message.contains("panicked"), "{message}");
        message
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path(path)).unwrap()).unwrap()
    }

    /// Rows of a run's `metrics.jsonl` without their clock readings.
    fn rows(&self, run: &str) -> Vec<Value> {
        let log = fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        let without_clock = |line: &str| {
            let mut row: Value = serde_json::from_str(line).unwrap();
            let row_map = row.as_object_mut().unwrap();
            row_map.retain(|key, _| !key.ends_with("_secs") && key != "tokens_per_sec" && key != "mfu");
            row
        };
        log.lines().map(without_clock).collect()
    }
}

/// Whether the tests run where Ctrl-C or SIGHUP is ignored, as in the background of a script: what
/// is started would ignore it too.
fn ignores_signals() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 0b11 != 0)
}

trait Add {
    fn add(self, more: &str) -> String;
}

impl Add for String {
    fn add(self, more: &str) -> String {
        self + more
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_run_leaves_what_the_contract_promises() {
    let desk = Desk::new();
    let output = desk.run(&["train", "moe.toml", "--out", "run"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "", "messages go to standard error");
    assert!(
        text(&output.stderr).contains("step 1/8"),
        "plain lines without a terminal: {}",
        text(&output.stderr)
    );

    let run = desk.json("run/run.json");
    assert_eq!(run["status"], "finished");
    assert!(run["final_validation_cross_entropy_nats"].as_f64().unwrap() > 0.0);
    assert_eq!(run["config"]["train"]["num_steps"], 8);
    for key in ["plan", "cargo_lock_sha256", "seed", "device", "host"] {
        assert!(!run[key].is_null(), "{key}");
    }
    let rows = desk.rows("run");
    let steps: Vec<&Value> = rows.iter().filter(|row| row["kind"] == "step").collect();
    assert_eq!(steps.len(), 8);
    for (index, row) in steps.iter().enumerate() {
        assert_eq!(row["step"], index as u64 + 1);
        assert!(row["cross_entropy_nats"].is_f64());
        let layer = &row["layers"][0];
        let load: u64 =
            layer["tokens_per_expert"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
        assert_eq!(load, 64 * 2, "dropless top-2 of 64 tokens");
        assert!(layer["layer"] == 0 && layer["max_violation"].is_f64());
    }
    let evals: Vec<u64> =
        rows.iter().filter(|row| row["kind"] == "eval").map(|row| row["step"].as_u64().unwrap()).collect();
    assert_eq!(evals, [4, 8]);
    for path in
        ["run/checkpoints/step-8/model.safetensors", "run/checkpoints/latest/manifest.json", "run/sample.txt"]
    {
        assert!(desk.path(path).is_file(), "{path}");
    }
    assert!(fs::read_to_string(desk.path("run/sample.txt")).unwrap().starts_with("1 2"));
}

#[test]
fn the_default_run_folder_is_named_after_the_configuration() {
    let desk = Desk::new();
    desk.ok(&["train", "dense.toml"]);
    desk.ok(&["train", "dense.toml", "--set", "seed=4"]);
    let mut names: Vec<String> = fs::read_dir(desk.path("runs"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), 2, "another configuration, another folder: {names:?}");
    assert!(
        names.iter().all(|name| name.starts_with("tiny-dense-") && name.len() == "tiny-dense-".len() + 8)
    );
    let message = desk.mistake(&["train", "dense.toml"]);
    assert!(message.contains("--resume") && message.contains("--overwrite"), "{message}");
    desk.ok(&["train", "dense.toml", "--overwrite"]);
}

#[test]
fn mistakes_are_one_message_with_exit_code_2() {
    let desk = Desk::new();
    let expect = |arguments: &[&str], parts: &[&str]| {
        let message = desk.mistake(arguments);
        for part in parts {
            assert!(message.contains(part), "{arguments:?}: {part:?} is not in {message}");
        }
    };
    expect(&["train", "absent.toml"], &["absent.toml"]);
    desk.write("typo.toml", &TINY.replace("num_layers", "num_layer").add(DENSE));
    expect(&["train", "typo.toml"], &["typo.toml:23", "num_layer", "num_layers"]);
    desk.write("type.toml", &TINY.replace("d_model = 16", "d_model = \"wide\"").add(DENSE));
    expect(&["train", "type.toml"], &["type.toml:24", "model.d_model", "wide"]);
    desk.write("syntax.toml", "name = \n");
    expect(&["train", "syntax.toml"], &["syntax.toml:1"]);
    expect(&["train", "moe.toml", "--set", "model.ffn.moe.router.top_k=9"], &["top_k", "9", "--set"]);
    expect(&["train", "moe.toml", "--set", "model.ffn.moe.router.top_K=2"], &["top_K", "top_k"]);
    expect(&["train", "dense.toml", "--set", "device=cuda:0"], &["cuda:0", "cpu"]);
    expect(&["train", "dense.toml", "--set", "device=toaster"], &["toaster", "cpu"]);
    expect(&["train", "dense.toml", "--resume", "--out", "nothing"], &["nothing", "--resume"]);
    expect(&["eval", "nothing"], &["nothing", "not a checkpoint"]);
    expect(&["compare", "dense.toml", "absent.toml"], &["absent.toml"]);
    assert!(!desk.path("runs").exists(), "nothing trains before every arm is read");
    desk.write("corpus.toml", &text_config("missing.txt"));
    expect(&["train", "corpus.toml"], &["missing.txt"]);
    let usage = desk.run(&["train"]);
    assert_eq!(usage.status.code(), Some(2), "clap's own errors too");
}

fn text_config(path: &str) -> String {
    let start = TINY.find("[data.synthetic]").unwrap();
    let end = TINY.find("[train]").unwrap();
    format!("{}[data.text]\npath = \"{path}\"\n{}{DENSE}", &TINY[..start], &TINY[end..])
}

#[test]
fn eval_generate_inspect_and_plan_read_what_train_wrote() {
    let desk = Desk::new();
    desk.ok(&["train", "moe.toml", "--out", "run"]);
    let final_loss = desk.json("run/run.json")["final_validation_cross_entropy_nats"].as_f64().unwrap();
    let eval: Value = serde_json::from_str(&desk.ok(&["eval", "run", "--json"])).unwrap();
    assert_eq!(eval["cross_entropy_nats"].as_f64().unwrap().to_bits(), final_loss.to_bits());
    assert_eq!(eval["whole_split"], true);
    assert!(desk.ok(&["eval", "run/checkpoints/step-4"]).contains("step 4"));

    let generate =
        |seed: &str| desk.ok(&["generate", "run", "--prompt", "1 2", "--num-tokens", "12", "--seed", seed]);
    assert_eq!(generate("1"), generate("1"));
    assert_ne!(generate("1"), generate("2"));
    assert!(generate("1").starts_with("1 2 "), "a space between the ids");

    let inspected = desk.ok(&["inspect", "run", "--figures", "figures"]);
    assert!(inspected.contains("loss-curve.svg") && inspected.contains("expert-load.svg"), "{inspected}");
    assert!(fs::read_to_string(desk.path("figures/loss-curve.svg")).unwrap().starts_with("<svg"));
    assert!(desk.ok(&["inspect", "run"]).contains("finished"));
    assert!(desk.ok(&["inspect", "run/checkpoints/step-4"]).contains("every file verified"));

    let plan: Value = serde_json::from_str(&desk.ok(&["plan", "moe.toml", "--json"])).unwrap();
    assert_eq!(plan["counts"]["total_params"], desk.json("run/run.json")["plan"]["counts"]["total_params"]);
    assert!(desk.ok(&["plan", "moe.toml"]).to_lowercase().contains("active"));
    let schema: Value = serde_json::from_str(&desk.ok(&["schema"])).unwrap();
    // Every table of the recipe is described, and nothing that the program does not read.
    let written: toml::Table = fs::read_to_string(desk.path("moe.toml")).unwrap().parse().unwrap();
    let described = schema["properties"].as_object().unwrap();
    assert!(written.keys().all(|key| described.contains_key(key)), "{written:?} against {described:?}");
    assert_eq!(schema["additionalProperties"], false);
    let completions = desk.ok(&["completions", "bash"]);
    for command in ["train", "whatif", "compare", "completions"] {
        assert!(completions.contains(&format!("switchyard,{command})")), "{command} cannot be completed");
    }
    let stats: Value = serde_json::from_str(&desk.ok(&["data", "stats", "moe.toml", "--json"])).unwrap();
    let split = |name: &str, number: &str| stats[name][number].as_u64().unwrap();
    assert_eq!(split("train", "num_documents") + split("validation", "num_documents"), 200, "{stats}");
    let domains = stats["top_domains"].as_array().unwrap();
    let tokens: u64 = domains.iter().map(|domain| domain["num_tokens"].as_u64().unwrap()).sum();
    assert_eq!((domains.len(), tokens), (2, split("train", "num_tokens")), "{stats}");
}

/// 950 GB and more of parameters, gradients and moments: said before anything is made, with both
/// numbers and what to change.
#[test]
fn a_run_that_cannot_fit_into_memory_is_refused_before_anything_is_made() {
    let desk = Desk::new();
    let huge = ["model.num_layers=1000", "model.ffn.moe.num_experts=10000", "model.ffn.moe.d_expert=1000"];
    let with = |command: &[&'static str]| {
        let sets = huge.into_iter().flat_map(|set| ["--set", set]);
        desk.run(&command.iter().copied().chain(sets).collect::<Vec<_>>())
    };
    let refused = with(&["train", "moe.toml", "--out", "huge"]);
    assert_eq!(refused.status.code(), Some(2));
    let message = text(&refused.stderr);
    // 480 G parameters of 16 bytes.
    for part in [
        "the run needs about 8.46 TB",
        "and at least 7.68 TB",
        "480 B (480,",
        "this process can have",
        "`model.ffn.moe.num_experts`",
    ] {
        assert!(message.contains(part), "{part} is not in {message}");
    }
    assert!(!desk.path("huge").exists());
    // A plan allocates nothing: it is made, and says what will happen here.
    let planned = with(&["plan", "moe.toml", "--json"]);
    assert!(planned.status.success());
    assert!(
        text(&planned.stderr)
            .contains("note: `train` would refuse this plan here: the run needs about 8.46 TB")
    );
    let plan: Value = serde_json::from_slice(&planned.stdout).unwrap();
    assert_eq!(plan["notes"], serde_json::json!([]), "a plan is the same on every machine");
    assert!(desk.run(&["plan", "moe.toml"]).stderr.is_empty());
}

#[test]
fn compare_trains_what_is_missing_once_and_saves_a_table() {
    let desk = Desk::new();
    let table = desk.ok(&["compare", "dense.toml", "moe.toml"]);
    assert!(table.contains("tiny-dense") && table.contains("tiny-moe"), "{table}");
    let saved = desk.json("runs/compare-tiny-dense-vs-tiny-moe/comparison.json");
    assert_eq!(saved["arms"].as_array().unwrap().len(), 2);
    assert_eq!(saved["arms"][0]["active_params"], saved["arms"][0]["total_params"], "the dense arm");
    let again = desk.run(&["compare", "dense.toml", "moe.toml", "--json"]);
    assert_eq!(text(&again.stderr).matches("already finished").count(), 2, "{}", text(&again.stderr));
    assert_eq!(serde_json::from_slice::<Value>(&again.stdout).unwrap(), saved);
    // Somebody has let the mixture go on.
    let run = fs::read_dir(desk.path("runs")).unwrap().map(|entry| entry.unwrap().path());
    let mixture =
        run.into_iter().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("tiny-moe-"));
    let mixture = mixture.unwrap();
    let mixture = mixture.to_str().unwrap();
    desk.ok(&["train", "moe.toml", "--out", mixture, "--resume", "--set", "train.num_steps=9"]);
    let message = desk.mistake(&["compare", "dense.toml", "moe.toml"]);
    assert!(message.contains("not what `tiny-moe` asks for: `train.num_steps` is 9 there and "), "{message}");
    desk.ok(&["compare", "dense.toml", mixture]);
}

#[test]
fn bench_step_prints_what_a_comparison_needs() {
    let desk = Desk::new();
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/s1-dense.toml");
    let recipe = recipe.to_str().unwrap();
    let arguments =
        ["bench", "step", recipe, "--steps", "2", "--warmup", "1", "--set", "threads=2", "--json"];
    let report: Value = serde_json::from_str(&desk.ok(&arguments)).unwrap();
    assert_eq!(
        (&report["case"], &report["steps"], &report["threads"]),
        (&"s1-dense".into(), &2.into(), &2.into())
    );
    let positive =
        ["step_ms_median", "step_ms_min", "forward_ms_median", "forward_ms_min", "tokens_per_sec", "gflops"];
    let shares = ["matmul_ceiling_gflops", "ceiling_share", "ceiling_share_in_turn"];
    for key in positive.iter().chain(&shares).chain(&["loss_first", "loss_last"]) {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key}: {report}");
    }
    assert!(report["step_ms_min"].as_f64() <= report["step_ms_median"].as_f64());
    for key in ["device", "dtype", "cpu_model", "commit", "peak_rss_bytes", "minor_page_faults_per_step"] {
        assert!(report.get(key).is_some(), "{key}: {report}");
    }
    if cfg!(target_os = "linux") {
        assert!(report["peak_rss_bytes"].as_u64().unwrap() > 1 << 20);
    }
    assert!(!desk.path("runs").exists(), "nothing is kept");
}

#[test]
fn bench_layer_compares_a_mixture_with_its_dense_layer_and_with_itself() {
    let desk = Desk::new();
    let mixture = "num_tokens = 64\nd_model = 16\nd_ff = 8\nactivation = \"gelu\"\nnum_experts = 4\ntop_k = 2\nthreads = 1\n";
    desk.write("layer.toml", mixture);
    desk.write("hot.toml", &format!("{mixture}hot_expert_fraction = 0.75\n"));
    let report = |file: &str| -> Value {
        serde_json::from_str(&desk.ok(&["bench", "layer", file, "--steps", "3", "--json"])).unwrap()
    };
    let (layer, hot) = (report("layer.toml"), report("hot.toml"));
    for key in ["step_ms_median", "forward_ms_median", "gflops", "dense_ms_median", "ratio_to_dense"] {
        assert!(layer[key].as_f64().unwrap() > 0.0 && hot[key].as_f64().unwrap() > 0.0, "{key}: {layer}");
    }
    assert!(layer["skew_ratio"].is_null() && hot["skew_ratio"].as_f64().unwrap() > 0.0);
    assert_eq!(hot["busiest_expert_share"], 0.75);
    desk.write("bad.toml", &mixture.replace("top_k = 2", "top_k = 7"));
    let message = desk.mistake(&["bench", "layer", "bad.toml"]);
    assert!(message.contains("bad.toml:6:1: `top_k` is 7"), "{message}");
    assert!(desk.ok(&["bench", "layer", "layer.toml", "--steps", "1"]).contains("to dense"));
}

#[cfg(unix)]
#[path = "command_line/interruption.rs"]
mod interruption;

#[cfg(unix)]
#[path = "command_line/hostile_input.rs"]
mod hostile_input;

#[path = "command_line/moved_data.rs"]
mod moved_data;

#[path = "command_line/printed_commands.rs"]
mod printed_commands;

#[cfg(unix)]
mod signals {
    use super::*;

    pub(super) fn signal(process: &std::process::Child, name: &str) {
        let status = Command::new("kill").args([name, &process.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub(super) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
        let started = Instant::now();
        while !condition() {
            assert!(started.elapsed() < Duration::from_secs(60), "waited a minute for {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn endless(desk: &Desk, out: &str, resume: bool) -> std::process::Child {
        let mut arguments = vec!["train", "moe.toml", "--out", out, "--set", "train.num_steps=1000000"];
        arguments.extend(resume.then_some("--resume"));
        desk.command(&arguments).stderr(Stdio::null()).spawn().unwrap()
    }

    pub(super) fn has_checkpoint(path: &Path) -> bool {
        path.join("checkpoints/latest/manifest.json").exists()
    }

    #[test]
    fn however_often_it_is_killed_a_run_ends_with_the_same_numbers() {
        let desk = Desk::new();
        // A checkpoint after every step: most kills fall into the writing of one.
        desk.write(
            "killed.toml",
            &TINY.replace("checkpoint_every_steps = 4", "checkpoint_every_steps = 1").add(MOE),
        );
        for round in 0..6 {
            let mut arguments =
                vec!["train", "killed.toml", "--out", "run", "--set", "train.num_steps=1000000"];
            arguments.extend((round > 0).then_some("--resume"));
            let mut process = desk.command(&arguments).stderr(Stdio::null()).spawn().unwrap();
            let steps_before = steps_logged(&desk);
            wait_for("some steps", || steps_logged(&desk) > steps_before + 3);
            std::thread::sleep(Duration::from_millis(1 + 7 * round));
            process.kill().unwrap();
            process.wait().unwrap();
            assert_eq!(desk.json("run/run.json")["status"], "running", "nobody was asked");
        }
        let steps = (steps_logged(&desk) + 5).to_string();
        let set = format!("train.num_steps={steps}");
        desk.ok(&["train", "killed.toml", "--out", "run", "--resume", "--set", &set]);
        desk.ok(&["train", "killed.toml", "--out", "whole", "--set", &set]);
        assert_eq!(desk.rows("run"), desk.rows("whole"));
        for name in ["model.safetensors", "optimizer.safetensors"] {
            let file = format!("checkpoints/step-{steps}/{name}");
            let read = |run: &str| fs::read(desk.path(run).join(&file)).unwrap();
            assert!(read("run") == read("whole"), "{file}");
        }
    }

    fn steps_logged(desk: &Desk) -> u64 {
        let log = fs::read_to_string(desk.path("run/metrics.jsonl")).unwrap_or_default();
        let steps = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()?["step"].as_u64());
        steps.max().unwrap_or(0)
    }

    #[test]
    fn two_processes_cannot_train_in_one_folder() {
        let desk = Desk::new();
        let mut process = endless(&desk, "run", false);
        wait_for("a checkpoint", || has_checkpoint(&desk.path("run")));
        // More steps than the other has done by now: fewer would be refused for that.
        let set = "train.num_steps=1000000";
        let message = desk.mistake(&["train", "moe.toml", "--out", "run", "--resume", "--set", set]);
        assert!(message.contains("in use"), "{message}");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    #[test]
    fn a_killed_run_is_told_from_one_at_work() {
        let desk = Desk::new();
        let mut process = endless(&desk, "runs/a", false);
        wait_for("a checkpoint", || has_checkpoint(&desk.path("runs/a")));
        let status = || {
            let runs: Value = serde_json::from_str(&desk.ok(&["runs", "--json"])).unwrap();
            runs[0]["status"].as_str().unwrap().to_string()
        };
        assert_eq!(status(), "running");
        assert!(desk.ok(&["watch", "runs/a", "--once"]).contains("eta"));
        process.kill().unwrap();
        process.wait().unwrap();
        assert_eq!(status(), "killed");
        let shown = desk.ok(&["watch", "runs/a"]);
        assert!(shown.contains("killed") && !shown.contains("eta"), "{shown}");
    }
}

#[test]
fn a_dense_run_upcycled_goes_on_as_a_mixture() {
    let desk = Desk::new();
    let three_steps = ["--set", "train.num_steps=3"];
    desk.ok(&[&["train", "dense.toml", "--out", "dense"], &three_steps[..]].concat());
    desk.write(
        "upcycled.toml",
        &TINY.replace("\"tiny\"", "\"up\"").add(&MOE.replace("d_expert = 8", "d_expert = 16")),
    );
    let output = desk.run(&["upcycle", "dense", "upcycled.toml", "--out", "up"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(
        text(&output.stderr).contains("starts as the dense model's function"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(desk.json("up/run.json")["upcycled_from"]["step"], 3);

    let loss = |run: &str| {
        let evaluation: Value = serde_json::from_str(&desk.ok(&["eval", run, "--json"])).unwrap();
        (evaluation["step"].as_u64().unwrap(), evaluation["cross_entropy_nats"].as_f64().unwrap())
    };
    let ((dense_step, dense), (step, upcycled)) = (loss("dense"), loss("up"));
    assert_eq!((dense_step, step), (3, 0));
    // Sums in f32 over the same terms in another order.
    assert!((dense - upcycled).abs() < 1e-6, "{dense} {upcycled}");

    let two_steps = ["--set", "train.num_steps=2", "--set", "train.checkpoints.keep_last=1"];
    desk.ok(&[&["train", "upcycled.toml", "--out", "up", "--resume"], &two_steps[..]].concat());
    let run = desk.json("up/run.json");
    assert_eq!((&run["status"], &run["steps_done"]), (&"finished".into(), &2.into()));
    assert_eq!(run["upcycled_from"]["step"], 3, "where it came from is not forgotten");
    assert!(run["final_validation_cross_entropy_nats"].as_f64().unwrap() < dense);
    let refused = desk.run(&["replay", "up", "--step", "1"]);
    assert_eq!(refused.status.code(), Some(2));
    let message = text(&refused.stderr);
    assert!(message.contains("step 1 cannot be repeated") && message.contains("after 2"), "{message}");
}

#[test]
fn upcycling_refuses_what_does_not_fit_and_leaves_no_folder() {
    let desk = Desk::new();
    desk.ok(&["train", "dense.toml", "--out", "dense", "--set", "train.num_steps=1"]);
    let expect = |arguments: &[&str], parts: &[&str]| {
        let message = desk.mistake(&[&["upcycle"], arguments, &["--out", "up"]].concat());
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in {message}");
        }
        assert!(!desk.path("up").exists());
    };
    let wide = ["--set", "model.ffn.moe.d_expert=16"];
    expect(&["dense", "moe.toml"], &["moe.toml:", "`model.ffn.moe.d_expert` is 8", "granular_split"]);
    expect(
        &["dense", "moe.toml", "--set", "model.d_model=32", wide[0], wide[1]],
        &["--set model.d_model=32", "`model.d_model` is 32, but 16"],
    );
    expect(&["dense", "moe.toml", wide[0], wide[1], "--drop-ratio", "0.5"], &["--method drop"]);
    expect(&["absent", "moe.toml"], &["absent", "not a checkpoint"]);
    let group = ["--set", "train.groups=[{ match = \"nope.*\", freeze = true }]"];
    expect(
        &["dense", "moe.toml", wide[0], wide[1], group[0], group[1]],
        &["`train.groups[0].match` holds \"nope.*\""],
    );
    expect(
        &["dense", "moe.toml", wide[0], wide[1], "--set", "start.from=\"dense\""],
        &["`start.from` names what the run begins with, and so does the dense model"],
    );
}

/// A run of the tiny mixture whose recorder looks at every second step.
fn recorded_run(desk: &Desk, more: &[&str]) -> Output {
    let sets = ["train.flight_recorder.scores_every_steps=2", "train.flight_recorder.probe_every_steps=2"];
    let mut arguments = vec!["train", "moe.toml", "--out", "run", "--set", sets[0], "--set", sets[1]];
    arguments.extend(more);
    desk.run(&arguments)
}

#[test]
fn a_step_is_replayed_and_a_changed_record_noticed() {
    let desk = Desk::new();
    assert_eq!(recorded_run(&desk, &[]).status.code(), Some(0));
    let said = desk.ok(&["replay", "run", "--step", "6"]);
    assert!(said.contains("step 6, repeated from the checkpoint of step 4"), "{said}");
    assert!(said.contains("equal to the recorded row bit for bit, as are all 2 steps"), "{said}");
    let answer: Value = serde_json::from_str(&desk.ok(&["replay", "run", "--step", "1", "--json"])).unwrap();
    assert_eq!((&answer["from_step"], &answer["is_exact"]), (&Value::from(0), &Value::from(true)));
    assert!(desk.mistake(&["replay", "nowhere", "--step", "1"]).contains("nowhere"));
    assert!(desk.mistake(&["replay", "run", "--step", "9"]).contains("step 9 is not in the run: use 1..=8"));
    let log = fs::read_to_string(desk.path("run/metrics.jsonl")).unwrap();
    let changed = log.replacen("\"grad_norm\":", "\"grad_norm\":1", 1);
    desk.write("run/metrics.jsonl", &changed);
    let output = desk.run(&["replay", "run", "--step", "2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("step 1 is not what the run recorded"), "{}", text(&output.stderr));
}

#[test]
fn two_runs_are_bisected() {
    let desk = Desk::new();
    for (out, set) in [("a", "name=a"), ("b", "name=b"), ("c", "seed=4")] {
        desk.ok(&["train", "moe.toml", "--out", out, "--set", set]);
    }
    assert!(desk.ok(&["bisect", "a", "b"]).contains("identical over 8 common steps"));
    let said = desk.ok(&["bisect", "a", "c"]);
    assert!(said.contains("they part at step 1, after 0 identical steps"), "{said}");
    assert!(desk.mistake(&["bisect", "a", "nowhere"]).contains("nowhere"));
    let log = fs::read_to_string(desk.path("b/metrics.jsonl")).unwrap();
    let holed: String = log
        .lines()
        .enumerate()
        .filter(|(row, _)| !(2..4).contains(row))
        .map(|(_, row)| format!("{row}\n"))
        .collect();
    desk.write("b/metrics.jsonl", &holed);
    for command in [&["bisect", "a", "b"][..], &["diff", "a", "b"], &["inspect", "b"], &["report", "b"]] {
        let said = text(&desk.run(command).stderr);
        assert!(said.contains("b/metrics.jsonl` has no rows of steps 3 to "), "{command:?}: {said}");
    }
    fs::remove_file(desk.path("b/metrics.jsonl")).unwrap();
    assert!(desk.mistake(&["bisect", "a", "b"]).contains("no step is in both"));
}

#[test]
fn what_compares_runs_says_where_the_bits_of_products_differ() {
    let desk = Desk::new();
    let train = |out: &str, more: &[&str]| {
        let set = ["train", "moe.toml", "--out", out, "--set", "train.precision.compute=bf16"];
        desk.run(&[&set[..], more].concat())
    };
    assert!(["a", "b"].iter().all(|out| train(out, &[]).status.success()));
    let mut manifest: Value = serde_json::from_slice(&fs::read(desk.path("b/run.json")).unwrap()).unwrap();
    let has_units = manifest["products"] == "amx";
    manifest["products"] = if has_units { "rounded_f32" } else { "amx" }.into();
    desk.write("b/run.json", &manifest.to_string());
    let said = |command: &[&str]| desk.ok(command).contains("their bits differ");
    assert!(said(&["bisect", "a", "b"]) && !said(&["bisect", "a", "a"]));
    assert!(said(&["compare", "a", "b"]));
    assert!(said(&["replay", "b", "--step", "2"]) && !said(&["replay", "a", "--step", "2"]));
    assert!(desk.ok(&["diff", "a", "b"]).contains("products"));
    let resumed = |out: &str| {
        let output = train(out, &["--set", "train.num_steps=9", "--resume"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr).contains("which has other bits")
    };
    assert!(resumed("b") && !resumed("a"));
}

#[test]
fn what_if_is_answered_from_recorded_scores() {
    let desk = Desk::new();
    assert_eq!(recorded_run(&desk, &[]).status.code(), Some(0));
    let said = desk.ok(&["whatif", "run"]);
    assert!(
        said.starts_with("step 8: what if top_k = 2, dropless\nlayer 0\n  recorded  dropped   0.0%"),
        "{said}"
    );
    let json = desk.ok(&["whatif", "run", "--step", "4", "--top-k", "1", "--capacity-factor", "1", "--json"]);
    let answer: Value = serde_json::from_str(&json).unwrap();
    let sum = |key: &str| -> u64 {
        let counts = answer["layers"][0]["asked"][key].as_array().unwrap();
        counts.iter().map(|count| count.as_u64().unwrap()).sum()
    };
    assert_eq!(sum("tokens_per_expert"), 64, "one expert per token");
    assert!(sum("kept_per_expert") <= 64);
    assert!(desk.mistake(&["whatif", "run", "--top-k", "9"]).contains("the layer has 4 experts: use 1..=4"));
    let missing = desk.mistake(&["whatif", "run", "--step", "3"]);
    assert!(missing.contains("no gate scores of step 3") && missing.contains("the nearest"), "{missing}");
    desk.ok(&["train", "dense.toml", "--out", "dense"]);
    assert!(desk.mistake(&["whatif", "dense"]).contains("no mixture of experts"));
}

#[test]
fn an_alarm_is_printed_once_recorded_and_stops_the_run_if_asked() {
    let desk = Desk::new();
    let alarms = "train.flight_recorder.alarms";
    let (window, limit) = (format!("{alarms}.window_steps=2"), format!("{alarms}.max_violation=0.001"));
    let stop = format!("{alarms}.stop_on=[\"max_violation\"]");
    let output = recorded_run(&desk, &["--set", &window, "--set", &limit, "--set", &stop]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("\nalarm: layer 0 expert").count(), 1, "{said}");
    assert!(
        said.contains("error: stopped by an alarm: layer 0 expert") && said.contains("--resume"),
        "{said}"
    );
    assert_eq!(desk.json("run/run.json")["status"], "alarmed");
    let shown = desk.ok(&["inspect", "run"]);
    assert!(
        shown.contains("misbehaving experts") && shown.contains("alarms\n  step 2: layer 0 expert"),
        "{shown}"
    );
    let json: Value = serde_json::from_str(&desk.ok(&["inspect", "run", "--json"])).unwrap();
    assert_eq!(json["alarms"][0]["kind"], "max_violation");
    assert!(json["misbehaving_experts"].is_array());
}

#[test]
fn runs_are_listed_filtered_sorted_and_told_apart() {
    let desk = Desk::new();
    desk.ok(&["train", "dense.toml", "--out", "runs/dense"]);
    desk.ok(&["train", "moe.toml", "--out", "runs/deep/moe"]);
    fs::create_dir_all(desk.path("runs/torn")).unwrap();
    desk.write("runs/torn/run.json", "{");
    let names = |arguments: &[&str]| -> Vec<String> {
        let json = desk.ok(&[&["runs", "--json"][..], arguments].concat());
        let runs: Vec<Value> = serde_json::from_str(&json).unwrap();
        runs.iter().map(|run| run["name"].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(names(&["--sort", "total_params"]), ["tiny-dense", "tiny-moe", "torn"]);
    assert_eq!(names(&["--sort", "total_params", "--reverse", "--limit", "1"]), ["tiny-moe"]);
    assert_eq!(names(&["--filter", "model.ffn.moe.num_experts=4"]), ["tiny-moe"]);
    assert_eq!(names(&["--filter", "plan.counts.total_params>1", "--filter", "name~DENSE"]), ["tiny-dense"]);
    let table = desk.ok(&["runs"]);
    assert!(table.contains("finished") && table.contains("unreadable: `runs/torn/run.json`"), "{table}");
    assert!(desk.mistake(&["runs", "--filter", "staus=finished"]).contains("no run has `staus`"));
    assert!(desk.mistake(&["runs", "--filter", "finished"]).contains("KEY=VALUE"));
    assert!(desk.mistake(&["runs", "nowhere"]).contains("nowhere"));

    let diff = desk.ok(&["diff", "runs/dense", "runs/deep/moe"]);
    assert!(diff.contains("model.ffn.moe.num_experts") && diff.contains("counts.total_params"), "{diff}");
    let diff: Value =
        serde_json::from_str(&desk.ok(&["diff", "moe.toml", "runs/deep/moe", "--json"])).unwrap();
    assert_eq!((&diff["config"], &diff["plan"]), (&Value::Array(vec![]), &Value::Array(vec![])));
    assert!(desk.mistake(&["diff", "runs", "moe.toml"]).contains("run.json"));

    let watched = desk.ok(&["watch", "runs/deep/moe"]);
    assert!(watched.contains("step 8/8  100%") && watched.contains("MaxVio"), "{watched}");
    assert!(!watched.contains('\u{1b}'), "no escape codes without a terminal: {watched}");
}
