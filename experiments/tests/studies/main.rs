//! Studies, sweeps, fits and reports as a person or a script meets them.

#![expect(clippy::unwrap_used, reason = "a test says what it expects by failing")]

mod metric;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use serde_json::Value;
use tempfile::TempDir;

const BASE: &str = r#"
name = "tiny"
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
[train.adamw]
learning_rate = 1e-2
[model]
num_layers = 1
d_model = 16
[model.attention]
num_heads = 2
[model.ffn]
activation = "swiglu"
d_ff = 32
"#;

const STUDY: &str = r#"
name = "tiny-study"
base = "base.toml"
held_equal = "active_flops"
seeds = [0, 1, 2]
price_per_device_hour = 1.5
[budget]
num_steps = [2, 4, 8, 16]
evaluations = 4
[[arms]]
label = "dense"
[[arms]]
label = "e4k2"
learning_rates = [0.005, 0.01]
set = ["model.ffn.d_ff=", "model.ffn.moe={ num_experts = 4, router = { top_k = 2 } }"]
"#;

/// A folder of its own for one test, with the study in it.
struct Desk {
    folder: TempDir,
}

impl Desk {
    fn new() -> Self {
        let desk = Self { folder: TempDir::new().unwrap() };
        desk.write("base.toml", BASE);
        desk.write("study.toml", STUDY);
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_switchyard"))
            .args(arguments)
            .current_dir(self.folder.path())
            .env("SWITCHYARD_CACHE_DIR", self.path("cache"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Standard output and standard error of a command that must succeed.
    fn ok(&self, arguments: &[&str]) -> (String, String) {
        let output = self.run(arguments);
        let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {stderr}");
        (stdout, stderr)
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path(path)).unwrap()).unwrap()
    }

    /// Folders of the study's runs.
    fn runs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("out/runs")).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn a_group_that_an_arm_has_not_is_refused_before_anything_runs() {
    let desk = Desk::new();
    let group = "train.groups=[{ match = \"router\", learning_rate_factor = 0.5 }]";
    desk.write(
        "groups.toml",
        &STUDY.replace("label = \"dense\"", &format!("label = \"dense\"\nset = ['{group}']")),
    );
    let output = desk.run(&["compare", "groups.toml", "--out", "out", "--dry-run"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    let parts = ["groups.toml: arm `dense`:", "`train.groups[0].match` holds \"router\""];
    assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    // The mixture has a router.
    desk.write(
        "groups.toml",
        &STUDY.replace("set = [\"model.ffn.d_ff=\"", &format!("set = ['{group}', \"model.ffn.d_ff=\"")),
    );
    desk.ok(&["compare", "groups.toml", "--out", "out", "--dry-run"]);
}

/// Two pilots, then 2 arms x 4 budgets x 3 seeds.
const NUM_RUNS: usize = 2 + 24;

#[test]
fn a_study_goes_from_a_plan_to_a_verdict_and_its_report() {
    let desk = Desk::new();
    let (_, plan) = desk.ok(&["compare", "study.toml", "--out", "out", "--dry-run"]);
    assert!(plan.contains("26 in all, 26 to do") && plan.contains("cost: about"), "{plan}");
    assert!(desk.runs().is_empty(), "a plan runs nothing");

    let (verdict, _) = desk.ok(&["compare", "study.toml", "--out", "out"]);
    assert!(verdict.contains("e4k2 against dense") && verdict.contains("gauge:"), "{verdict}");
    assert_eq!(desk.runs().len(), NUM_RUNS);
    let result = desk.json("out/result.json");
    assert_eq!((&result["held_equal"], &result["baseline"]), (&"active_flops".into(), &"dense".into()));
    let arms = result["arms"].as_array().unwrap();
    assert_eq!(arms[1]["runs"].as_array().unwrap().len(), 12);
    assert!((arms[1]["equality"].as_f64().unwrap() - 1.0).abs() < 0.15, "{}", arms[1]["equality"]);
    assert_eq!(arms[1]["learning_rate_grid"].as_array().unwrap().len(), 2);
    let comparison = &result["comparisons"][0];
    let axes: Vec<&str> =
        comparison["axes"].as_array().unwrap().iter().map(|axis| axis["axis"].as_str().unwrap()).collect();
    assert_eq!(axes[..3], ["steps", "tokens", "active_flops"]);
    // On a busy machine one of two runs of a second may end before the other's first evaluation.
    let is_told = result["notes"].to_string().contains("is not compared at equal wall-clock seconds");
    assert!(axes.len() == 4 || is_told, "{axes:?}");
    assert_eq!(comparison["axes"][2]["difference"]["differences"].as_array().unwrap().len(), 3);
    assert_eq!(result["verdict"], "undecided", "three seeds claim nothing, whatever their interval says");
    assert!(comparison["gauge"]["slope_per_decade"].is_f64());
    assert_paired_differences_are_those_of_the_runs(&desk, &result);
    assert_time_to_loss_is_read_from_finished_runs(&result);
    assert_losses_at_equal_steps_are_read_between_finished_runs(&result);

    for file in
        ["report.html", "runs.csv", "curves.csv", "comparisons.csv", "loss-vs-steps.svg", "loss-vs-steps.png"]
    {
        assert!(desk.path("out").join(file).metadata().unwrap().len() > 100, "{file}");
    }
    let page = fs::read_to_string(desk.path("out/report.html")).unwrap();
    assert!(page.contains(result["headline"].as_str().unwrap().split('`').next().unwrap()));
}

/// Runs of an arm with a seed, by their steps: an arm whose tokens cost more does fewer.
fn runs_of(result: &Value, arm: usize, seed: u64) -> Vec<Value> {
    let runs = result["arms"][arm]["runs"].as_array().unwrap();
    let mut of_seed: Vec<Value> = runs.iter().filter(|run| run["seed"] == seed).cloned().collect();
    of_seed.sort_by_key(|run| run["num_steps"].as_u64().unwrap());
    of_seed
}

/// At equal FLOPs, to which all schedules come to their end, the paired difference is that of the
/// runs' own `run.json`.
fn assert_paired_differences_are_those_of_the_runs(desk: &Desk, result: &Value) {
    let last = |arm: usize, seed: u64| runs_of(result, arm, seed).pop().unwrap();
    let final_loss = |arm: usize, seed: u64| {
        let manifest = desk.json(&format!("out/{}/run.json", last(arm, seed)["run"].as_str().unwrap()));
        manifest["final_validation_cross_entropy_nats"].as_f64().unwrap()
    };
    let axis = &result["comparisons"][0]["axes"][2];
    assert_eq!(axis["axis"], "active_flops");
    for seed in 0..3 {
        let flops = |arm: usize| last(arm, seed)["active_flops"].as_f64().unwrap();
        let half_step = 0.5 / last(1, seed)["num_steps"].as_f64().unwrap();
        assert!((flops(1) / flops(0) - 1.0).abs() <= 1.01 * half_step, "{} {}", flops(1), flops(0));
        let expected = final_loss(1, seed) - final_loss(0, seed);
        let difference = &axis["difference"]["differences"][seed as usize];
        assert!((difference.as_f64().unwrap() - expected).abs() < 1e-12);
    }
}

/// The steps at which the arm had the dense model's final loss lie on the line, in ln steps,
/// through its runs of all budgets.
fn assert_time_to_loss_is_read_from_finished_runs(result: &Value) {
    let steps_axis = &result["comparisons"][0]["time_to_loss"][0];
    assert_eq!(steps_axis["axis"], "steps");
    let ends = |arm: usize, seed: u64| -> Vec<(f64, f64)> {
        let runs = result["arms"][arm]["runs"].as_array().unwrap();
        let of_seed = runs.iter().filter(|run| run["seed"] == seed);
        of_seed
            .map(|run| (run["num_steps"].as_f64().unwrap(), run["final_loss_nats"].as_f64().unwrap()))
            .collect()
    };
    for seed in 0..3 {
        let (mine, theirs) = (ends(1, seed), ends(0, seed));
        let target = theirs[3].1;
        assert_eq!(steps_axis["targets"][seed as usize].as_f64(), Some(target));
        let reached = mine.iter().position(|(_, loss)| *loss <= target);
        let their_steps = theirs.iter().find(|(_, loss)| *loss <= target).unwrap().0;
        let ratio = steps_axis["ratios"][seed as usize].as_f64();
        match reached {
            None => assert_eq!(ratio, None),
            Some(0) => assert_eq!(ratio, Some(mine[0].0 / their_steps)),
            Some(at) => {
                let ((x0, loss0), (x1, loss1)) = (mine[at - 1], mine[at]);
                let x = x0 * (x1 / x0).powf((loss0 - target) / (loss0 - loss1));
                assert!((ratio.unwrap() - x / their_steps).abs() < 1e-9);
            }
        }
    }
}

/// Of two arms with different numbers of steps, the loss at the smaller one lies on the line through
/// the two longest runs of each.
fn assert_losses_at_equal_steps_are_read_between_finished_runs(result: &Value) {
    let axis = &result["comparisons"][0]["axes"][0];
    assert_eq!(axis["axis"], "steps");
    let ends = |arm: usize, seed: u64| -> [(f64, f64); 2] {
        let runs = runs_of(result, arm, seed);
        let end =
            |run: &Value| (run["num_steps"].as_f64().unwrap(), run["final_loss_nats"].as_f64().unwrap());
        [end(&runs[runs.len() - 2]), end(&runs[runs.len() - 1])]
    };
    let at = |x: f64, [(x0, loss0), (x1, loss1)]: [(f64, f64); 2]| {
        loss0 + (x / x0).ln() / (x1 / x0).ln() * (loss1 - loss0)
    };
    for seed in 0..3 {
        let [mine, theirs] = [1, 0].map(|arm| ends(arm, seed));
        let x = mine[1].0.min(theirs[1].0);
        let expected = at(x, mine) - at(x, theirs);
        let difference = axis["difference"]["differences"][seed as usize].as_f64().unwrap();
        assert!((difference - expected).abs() < 1e-9, "{difference}, not {expected}");
    }
}

/// A study of one evaluation per run; an arm that sees later tokens; a seed that diverges; seeds
/// that are added after a look.
#[test]
fn a_verdict_does_not_come_from_what_is_missing_hidden_or_added() {
    let desk = Desk::new();
    let study = STUDY
        .replace("[2, 4, 8, 16]", "[6]")
        .replace("evaluations = 4", "evaluations = 1")
        .replace("learning_rates = [0.005, 0.01]\n", "")
        .replace("seeds = [0, 1, 2]", "seeds = [0, 1]\nnoise_repeats = 1");
    let study = format!(
        "{study}[[arms]]\nlabel = \"ec\"\nset = [\"model.ffn.d_ff=\", \"model.ffn.moe={{ num_experts = 4, router = {{ \
         top_k = 2, selection = {{ expert_choice = {{}} }} }} }}\"]\n"
    );
    desk.write("study.toml", &study);
    let (_, registered) = desk.ok(&["compare", "study.toml", "--out", "out", "--register"]);
    assert!(registered.contains("registered: out/protocol.json"), "{registered}");
    let (_, plan) = desk.ok(&["compare", "study.toml", "--out", "out", "--dry-run"]);
    assert!(plan.contains("9 in all, 9 to do") && plan.contains("power: 2 seeds find"), "{plan}");
    desk.ok(&["compare", "study.toml", "--out", "out"]);
    let result = desk.json("out/result.json");
    let on_flops = |result: &Value, arm: usize| -> Value {
        let axes = result["comparisons"][arm]["axes"].as_array().unwrap();
        axes.iter().find(|axis| axis["axis"] == "active_flops").unwrap().clone()
    };
    for arm in [0, 1] {
        assert!(on_flops(&result, arm)["adjusted_p_value"].is_f64(), "one evaluation per run is enough");
        assert!(result["comparisons"][arm]["noise_floor"].as_f64().unwrap() < 0.1);
        assert_ne!(on_flops(&result, 1)["verdict"], "wins", "it sees later tokens");
    }
    assert_eq!(result["arms"][2]["sees_later_tokens"], "model.ffn.moe.router");
    assert!(result["notes"][0].as_str().unwrap().contains("and is what was run"), "{}", result["notes"]);

    let folder = |seed: u64| result["arms"][1]["runs"][seed as usize]["run"].as_str().unwrap().to_owned();
    let manifest = desk.path(&format!("out/{}/run.json", folder(1)));
    let unfinished = fs::read_to_string(&manifest).unwrap().replace("\"finished\"", "\"failed\"");
    fs::write(&manifest, unfinished).unwrap();
    desk.write(&format!("out/{}/diverged.txt", folder(1)), "the loss is NaN");
    let (text, _) = desk.ok(&["compare", "study.toml", "--out", "out"]);
    assert!(text.contains("diverged\n"), "its column is kept: {text}");
    let result = desk.json("out/result.json");
    let time = &result["comparisons"][0]["time_to_loss"][2];
    assert_eq!((&time["seeds"], &time["ratios"][1]), (&serde_json::json!([0, 1]), &Value::Null));
    assert!(time["estimate"].is_null(), "a diverged seed is censored: {time}");

    desk.write("study.toml", &study.replace("seeds = [0, 1]", "seeds = [0, 1, 2]"));
    let (_, again) = desk.ok(&["compare", "study.toml", "--out", "out"]);
    assert!(again.contains("saved"), "{again}");
    let result = desk.json("out/result.json");
    assert_eq!(result["stopping"], "open");
    let notes = result["notes"].to_string();
    assert!(notes.contains("changed afterwards (seeds: [0, 1] before, [0, 1, 2] now)"), "{notes}");
    assert!(notes.contains("Results printed before in this folder, 2 in all"), "{notes}");
    let history = fs::read_to_string(desk.path("out/history.jsonl")).unwrap();
    assert_eq!(history.lines().count(), 5, "two plans, three results: {history}");
}

/// The rows of a run's `document_losses.jsonl` of a split.
fn documents(desk: &Desk, run: &str, split: &str) -> Vec<Value> {
    let text = fs::read_to_string(desk.path(&format!("out/{run}/document_losses.jsonl"))).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.filter(|row| row["split"] == split).collect()
}

#[test]
fn the_verdict_is_of_text_that_nothing_was_chosen_by_over_seeds_and_documents() {
    let desk = Desk::new();
    let split =
        "split.by_document_hash = { validation_fraction = 0.1, test_fraction = 0.2 }\n[data.synthetic]";
    desk.write("base.toml", &BASE.replace("[data.synthetic]", &format!("[data]\n{split}")));
    let study = STUDY
        .replace("seeds = [0, 1, 2]", "seeds = [0, 1, 2]\ncrossed_seeds = 2\nnoise_repeats = 1")
        .replace("[2, 4, 8, 16]", "[8]");
    desk.write("study.toml", &study);
    let (verdict, _) = desk.ok(&["compare", "study.toml", "--out", "out"]);
    for told in [
        "final test loss (nats) by seed",
        "nats of test text",
        "over ",
        "2 by 2 crossed",
        "no learning rate is chosen by",
    ] {
        assert!(verdict.contains(told), "{told}: {verdict}");
    }
    let result = desk.json("out/result.json");
    let comparison = &result["comparisons"][0];
    let on = &comparison["axes"][2];
    assert_eq!((&on["axis"], &on["split"]), (&"active_flops".into(), &"test".into()));

    // The differences are those of the test losses in the runs' own files, and their documents add
    // up to them.
    for (index, seed) in [0, 1, 2].into_iter().enumerate() {
        let [mine, theirs] = [1, 0].map(|arm| {
            let run = runs_of(&result, arm, seed).remove(0);
            let run = run["run"].as_str().unwrap().to_owned();
            let nats =
                desk.json(&format!("out/{run}/run.json"))["final_test_cross_entropy_nats"].as_f64().unwrap();
            let rows = documents(&desk, &run, "test");
            let sum = |key: &str| rows.iter().map(|row| row[key].as_f64().unwrap()).sum::<f64>();
            assert!((sum("nats") / sum("num_tokens") - nats).abs() < 1e-6);
            nats
        });
        let difference = on["difference"]["differences"][index].as_f64().unwrap();
        assert!((difference - (mine - theirs)).abs() < 1e-12, "seed {seed}");
    }
    let of_documents = &on["documents"];
    let num_documents = documents(&desk, runs_of(&result, 0, 0)[0]["run"].as_str().unwrap(), "test").len();
    assert_eq!(of_documents["num_documents"], num_documents);
    assert!(of_documents["interval_with_seeds"]["low"].is_f64());
    assert_eq!(comparison["seed_components"]["crossed_seeds"], 2);

    // No pilot knows the test split, and the crossed runs have their own order.
    let runs = desk.runs();
    let is_pilot = |run: &&String| run.contains("-s1000003-");
    assert_eq!(runs.iter().filter(is_pilot).count(), 2);
    for pilot in runs.iter().filter(is_pilot) {
        let manifest = desk.json(&format!("out/runs/{pilot}/run.json"));
        assert!(manifest["final_test_cross_entropy_nats"].is_null(), "{pilot}");
        assert!(documents(&desk, &format!("runs/{pilot}"), "test").is_empty());
    }
    assert_eq!(runs.iter().filter(|run| run.contains("-s0-d1-") || run.contains("-s1-d0-")).count(), 4);
    // Pilots, pairs, the crossed ones, and a repeat of each arm.
    assert_eq!(runs.len(), 2 + 6 + 4 + 2);
}

#[test]
fn each_seed_may_have_a_corpus_of_its_own() {
    let desk = Desk::new();
    let study = STUDY
        .replace("seeds = [0, 1, 2]", "seeds = [4, 5]\nnew_corpus_per_seed = true")
        .replace("[2, 4, 8, 16]", "[4]")
        .replace("learning_rates = [0.005, 0.01]\n", "");
    desk.write("study.toml", &study);
    desk.ok(&["compare", "study.toml", "--out", "out"]);
    let keys = |arm: &str, seed: u64| {
        let folder = desk
            .runs()
            .into_iter()
            .find(|run| run.starts_with(&format!("{arm}-")) && run.contains(&format!("-s{seed}-")));
        let manifest = desk.json(&format!("out/runs/{}/run.json", folder.unwrap()));
        assert_eq!(manifest["config"]["data"]["synthetic"]["seed"], seed);
        manifest["data_key"].clone()
    };
    assert_eq!(keys("dense", 4), keys("e4k2", 4), "a pair has one corpus");
    assert_ne!(keys("dense", 4), keys("dense", 5));
    let result = desk.json("out/result.json");
    assert!(result["comparisons"][0]["axes"][2]["documents"].is_null(), "every seed has other documents");
}

#[test]
fn memory_is_held_equal_by_measuring_it() {
    let desk = Desk::new();
    let study = STUDY
        .replace("\"active_flops\"", "\"memory\"")
        .replace("seeds = [0, 1, 2]", "seeds = [0]")
        .replace("[2, 4, 8, 16]", "[2]")
        .replace("learning_rates = [0.005, 0.01]\n", "");
    desk.write("study.toml", &study);
    let (_, log) = desk.ok(&["compare", "study.toml", "--out", "out"]);
    assert!(log.contains("measuring the memory of each arm"), "{log}");
    assert!(log.contains("there will be no verdict at equal active FLOPs"), "{log}");
    let result = desk.json("out/result.json");
    for arm in 0..2 {
        let peak = result["arms"][arm]["measured_peak_bytes"].as_u64().unwrap();
        assert!((1 << 20..1 << 32).contains(&peak), "{peak}");
    }
    // What was measured stands: a second start plans the same runs.
    let (_, log) = desk.ok(&["compare", "study.toml", "--out", "out"]);
    assert!(!log.contains("measuring the memory"), "{log}");
    assert_eq!(desk.runs().len(), 2);
}

#[test]
fn a_shard_does_the_pilots_of_one_that_never_came() {
    let desk = Desk::new();
    desk.write("study.toml", &STUDY.replace("[2, 4, 8, 16]", "[4]").replace("[0, 1, 2]", "[0, 1]"));
    desk.ok(&["compare", "study.toml", "--out", "out", "--shard", "1/2"]);
    assert_eq!(desk.runs().len(), 2 + 2, "both pilots, and one of two pairs");
}

#[test]
fn a_width_that_an_arm_names_in_a_table_is_kept() {
    let desk = Desk::new();
    let study = STUDY.replace("num_experts = 4, router", "num_experts = 4, d_expert = 40, router");
    desk.write("study.toml", &study.replace("[2, 4, 8, 16]", "[2]").replace("[0, 1, 2]", "[0, 1]"));
    desk.ok(&["compare", "study.toml", "--out", "out"]);
    let arm = &desk.json("out/result.json")["arms"][1];
    assert!(
        !arm["overrides"].to_string().contains("d_expert=") && arm["equality"].as_f64().unwrap() > 1.3,
        "{arm}"
    );
}

#[test]
fn a_study_in_shards_is_the_study_and_nothing_runs_twice() {
    let desk = Desk::new();
    let short = STUDY
        .replace("[2, 4, 8, 16]", "[4]")
        .replace("learning_rates = [0.005, 0.01]\n", "")
        .replace("seeds = [0, 1, 2]", "seeds = [0, 1]");
    desk.write("study.toml", &short);
    desk.ok(&["compare", "study.toml", "--out", "out", "--shard", "1/2"]);
    let half = desk.runs();
    assert_eq!(half.len(), 2);
    let notes = desk.json("out/result.json")["notes"].to_string();
    assert!(notes.contains("Not finished: 2 run(s) are missing"), "{notes}");
    desk.ok(&["compare", "study.toml", "--out", "out", "--shard", "2/2"]);
    assert_eq!(desk.runs().len(), 4);
    let started = |run: &String| desk.json(&format!("out/runs/{run}/run.json"))["started_at"].clone();
    let before: Vec<Value> = desk.runs().iter().map(started).collect();
    let (_, log) = desk.ok(&["compare", "study.toml", "--out", "out"]);
    assert!(log.contains("4 in all, 0 to do"), "{log}");
    assert_eq!(before, desk.runs().iter().map(started).collect::<Vec<_>>());
    assert!(!desk.json("out/result.json")["notes"].to_string().contains("Not finished"));

    // Another configuration has other runs; those of before stay and are not used.
    desk.write("base.toml", &BASE.replace("d_model = 16", "d_model = 24"));
    let (_, log) = desk.ok(&["compare", "study.toml", "--out", "out"]);
    assert!(log.contains("4 run(s) in out are of other code, other data or another version"), "{log}");
    assert_eq!(desk.runs().len(), 8);
}

#[test]
fn equal_wall_clock_time_gives_each_arm_its_own_steps() {
    let desk = Desk::new();
    let study = STUDY
        .replace("\"active_flops\"", "\"wall_clock\"")
        .replace("[2, 4, 8, 16]", "[40]")
        .replace("learning_rates = [0.005, 0.01]\n", "")
        .replace("seeds = [0, 1, 2]", "seeds = [0, 1]")
        .replace("num_experts = 4,", "num_experts = 16, d_expert = 512,");
    desk.write("study.toml", &study);
    let output = desk.run(&["compare", "study.toml", "--out", "out"]);
    if output.status.code() == Some(2) {
        // On a busy machine the ratio cannot be known, and nothing is run by a guess; the factors
        // themselves are tested where they are made.
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains("seconds cannot be held equal on this machine as it is"), "{message}");
        assert!(desk.runs().is_empty());
        return;
    }
    let result = desk.json("out/result.json");
    let notes = result["notes"].to_string();
    for told in
        ["timed in turn in 5 rounds", "In the runs themselves", "over 2 pairs", "training steps alone"]
    {
        assert!(notes.contains(told), "{told}: {notes}");
    }
    let steps = |arm: usize| result["arms"][arm]["runs"][0]["num_steps"].as_u64().unwrap();
    assert_eq!(steps(0), 40);
    assert!(steps(1) < 40, "a mixture that is far wider takes longer per step: {}", steps(1));
    // Equal by construction, so that the last losses are what is compared at equal seconds.
    let last = |arm: usize, run: usize| result["arms"][arm]["runs"][run]["final_loss_nats"].as_f64().unwrap();
    let axes = result["comparisons"][0]["axes"].as_array().unwrap();
    let seconds = axes.iter().find(|on| on["axis"] == "seconds").unwrap();
    for run in [0, 1] {
        let difference = seconds["difference"]["differences"][run].as_f64().unwrap();
        assert!((difference - (last(1, run) - last(0, run))).abs() < 1e-12);
    }
}

#[test]
fn a_sweep_stops_the_hopeless_and_names_the_best() {
    let desk = Desk::new();
    desk.write(
        "sweep.toml",
        "name = \"s\"\nbase = \"base.toml\"\nseeds = [0]\nnum_steps = 18\nevaluations = 2\n[grid]\n\
         \"train.adamw.learning_rate\" = [1e-9, 1e-2, 2e-9]\n[halving]\nfactor = 3\nfirst_steps = 6\n",
    );
    let (table, _) = desk.ok(&["sweep", "sweep.toml", "--out", "out"]);
    assert!(table.contains("train.adamw.learning_rate=0.01"), "{table}");
    let result = desk.json("out/sweep.json");
    assert_eq!(result["candidates"][0]["candidate"], result["best"]);
    assert_eq!(result["candidates"][0]["overrides"][0], "train.adamw.learning_rate=0.01");
    // Three short runs and one long one.
    assert_eq!(desk.runs().len(), 4);
    assert!(desk.path("out/sweep.csv").exists());
}

#[test]
fn fit_and_report_read_the_runs_of_a_study() {
    let desk = Desk::new();
    desk.ok(&["compare", "study.toml", "--out", "out"]);
    let (fit, _) = desk.ok(&["fit", "out", "--json", "--bootstrap", "10"]);
    let fit: Value = serde_json::from_str(&fit).unwrap();
    assert_eq!(fit["num_observations"], NUM_RUNS - 2, "the pilots are no observations");
    assert_eq!(fit["fits"].as_array().unwrap().len() + fit["refusals"].as_array().unwrap().len(), 6);
    let flops = fit["flops"].as_str().unwrap();
    assert!(flops.starts_with("FLOPs are those of training as `switchyard plan`"), "{flops}");

    let runs = desk.runs();
    let run = format!("out/runs/{}", runs[0]);
    desk.ok(&["report", &run, "--out", "plain"]);
    let page = fs::read_to_string(desk.path("plain/report.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>"), "{}", &page[..40]);
    assert!(!page.contains("src=\"http") && !page.contains("href=\"http"), "the page fetches nothing");
    let missing = desk.run(&["report", "nothing-here"]);
    assert_eq!(missing.status.code(), Some(2));
}

#[test]
fn verify_proves_that_one_expert_is_the_dense_model() {
    let desk = Desk::new();
    let (proof, _) = desk.ok(&["verify", "base.toml", "--steps", "3"]);
    assert!(proof.contains("bit for bit") && proof.contains("hidden width 32"), "{proof}");
    desk.write("biased.toml", &BASE.replace("d_ff = 32", "d_ff = 32\nbias = true"));
    let refused = desk.run(&["verify", "biased.toml"]);
    assert_eq!(refused.status.code(), Some(2), "{}", String::from_utf8_lossy(&refused.stderr));
}

#[test]
fn verify_proves_the_same_with_a_transferred_learning_rate() {
    let desk = Desk::new();
    let base = "model.parametrisation={ base = { d_model = 8, num_layers = 2, num_heads = 1, d_ff = 8 } }";
    let (proof, _) = desk.ok(&["verify", "base.toml", "--steps", "3", "--set", base]);
    assert!(proof.contains("bit for bit") && proof.contains("hidden width 32"), "{proof}");
}

/// The exponent in the row of the table that begins with these words.
fn exponent(table: &str, row: &str) -> f64 {
    let words = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<String>>();
    let row = words(row);
    let found = table.lines().map(words).find(|line| line.starts_with(&row)).unwrap();
    found[row.len()].parse().unwrap()
}

#[test]
fn verify_shows_what_drifts_with_the_size_of_a_model_and_not_of_a_transferred_one() {
    let desk = Desk::new();
    let mixture = "[model.ffn.moe]\nnum_experts = 4\nd_expert = 12\n[model.ffn.moe.router]\ntop_k = 2\n";
    desk.write("moe.toml", &format!("{}{mixture}", BASE.replace("d_ff = 32\n", "")));
    let (table, _) = desk.ok(&["verify", "moe.toml", "--coordinates"]);
    for (axis, site) in [("width", "blocks"), ("width", "logits"), ("depth", "blocks")] {
        assert!(exponent(&table, &format!("{axis} {site} standard")) > 0.25, "{axis} {site}: {table}");
        assert!(exponent(&table, &format!("{axis} {site} transferred")) < 0.25, "{axis} {site}: {table}");
    }
    // 12 is 8 times nothing whole.
    assert!(table.contains("granularity 8 is left out"), "{table}");
    assert!(table.contains("does not drift with its size"), "{table}");
    // A rate at which everything saturates at once, whatever the size.
    let drifting = desk.run(&["verify", "moe.toml", "--coordinates", "--set", "train.adamw.learning_rate=3"]);
    let message = String::from_utf8(drifting.stderr).unwrap();
    assert_eq!(drifting.status.code(), Some(1), "{message}");
    assert!(message.contains("drift with the model's size: "), "{message}");
    let lstm = desk.run(&[
        "verify",
        "base.toml",
        "--coordinates",
        "--set",
        "model.attention=",
        "--set",
        "model.lstm={}",
    ]);
    let message = String::from_utf8(lstm.stderr).unwrap();
    assert_eq!(lstm.status.code(), Some(2), "{message}");
    assert!(message.contains("`model.parametrisation` is given beside `model.lstm`"), "{message}");
}

/// A study whose second arm, twice as wide, takes the rate that the pilots of the first choose.
const TRANSFER: &str = r#"
name = "transfer"
base = "base.toml"
held_equal = "tokens"
seeds = [0, 1]
[budget]
num_steps = [4]
evaluations = 2
[[arms]]
label = "small"
learning_rates = [1e-9, 0.01]
[[arms]]
label = "wide"
learning_rate = { transfer_from = "small" }
set = ["model.d_model=32", "model.attention.num_heads=4", "model.ffn.d_ff=64",
    "model.parametrisation={ base = { d_model = 16, num_layers = 1, num_heads = 2, d_ff = 32 } }"]
"#;

#[test]
fn an_arm_takes_the_learning_rate_that_the_pilots_of_a_smaller_one_choose() {
    let desk = Desk::new();
    desk.write("transfer.toml", TRANSFER);
    desk.ok(&["compare", "transfer.toml", "--out", "out"]);
    let result: Value =
        serde_json::from_str(&fs::read_to_string(desk.path("out/result.json")).unwrap()).unwrap();
    let rates: Vec<f64> =
        result["arms"].as_array().unwrap().iter().map(|arm| arm["learning_rate"].as_f64().unwrap()).collect();
    assert_eq!(rates, [0.01, 0.01]);
    assert_eq!(result["arms"][1]["runs"].as_array().unwrap().len(), 2);
    for (from, to, said) in [
        ("d_model = 16, num", "d_model = 8, num", "is another shape than the one whose rate"),
        ("transfer_from = \"small\"", "transfer_from = \"tiny\"", "is `tiny`, which is no arm"),
        ("transfer_from = \"small\"", "transfer_from = \"wide\"", "which has none of its own either"),
        ("set = [\"model.d", "learning_rates = [0.1]\nset = [\"model.d", "beside `learning_rates`"),
        ("set = [\"model.d", "set = [\"train.adamw.learning_rate=0.5\", \"model.d", "in the arm's `set`"),
        ("{ transfer_from = \"small\" }", "0.01", "{ transfer_from = \"LABEL\" }"),
        (
            ",\n    \"model.parametrisation={ base = { d_model = 16, num_layers = 1, num_heads = 2, d_ff = 32 } }\"",
            "",
            "the arm has no `model.parametrisation`",
        ),
    ] {
        assert!(TRANSFER.contains(from), "{from}");
        desk.write("transfer.toml", &TRANSFER.replacen(from, to, 1));
        let refused = desk.run(&["compare", "transfer.toml", "--out", "refused"]);
        let message = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{message}");
        assert!(message.contains(said), "{message}");
    }
}

#[test]
fn a_mistake_in_a_study_is_one_message_and_runs_nothing() {
    let desk = Desk::new();
    desk.write("study.toml", &STUDY.replace("top_k = 2", "top_k = 5"));
    let output = desk.run(&["compare", "study.toml", "--out", "out"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("study.toml: arm `e4k2`:") && message.contains("top_k"), "{message}");
    desk.write(
        "study.toml",
        &STUDY.replace(
            "set = [\"model.ffn.d_ff=\",",
            "set = [\"train.batch_tokens=128\", \"model.ffn.d_ff=\",",
        ),
    );
    let other_tokens = String::from_utf8(desk.run(&["compare", "study.toml"]).stderr).unwrap();
    assert!(
        other_tokens.contains("arm `e4k2`: `train.batch_tokens` is not the baseline's"),
        "{other_tokens}"
    );
    let alone = desk.run(&["compare", "base.toml"]);
    assert!(String::from_utf8(alone.stderr).unwrap().contains("not a study (it has no [[arms]])"));
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("studies/quick.toml");
    let set = desk.run(&["compare", recipe.to_str().unwrap(), "--set", "seed=1"]);
    assert!(String::from_utf8(set.stderr).unwrap().contains("write them into its `set`"));
}

/// What a result says of its runs, without what the clock measured.
fn measured(result: &Value) -> Value {
    let arms = result["arms"].as_array().unwrap().iter().map(|arm| {
        let runs = arm["runs"].as_array().unwrap().iter();
        let runs: Vec<[&Value; 4]> = runs
            .map(|run| ["run", "final_loss_nats", "tokens", "active_flops"].map(|key| &run[key]))
            .collect();
        serde_json::json!([arm["label"], arm["learning_rate"], arm["learning_rate_grid"], runs])
    });
    let axes = result["comparisons"][0]["axes"].as_array().unwrap().iter();
    let differences = axes.filter(|axis| axis["axis"] != "seconds").map(|axis| axis["difference"].clone());
    let unequal = result["unequal"].as_array().unwrap().iter();
    let unequal = unequal.filter(|line| !line.as_str().unwrap().starts_with("seconds"));
    let (arms, differences, unequal): (Vec<_>, Vec<_>, Vec<_>) =
        (arms.collect(), differences.collect(), unequal.collect());
    serde_json::json!([arms, differences, unequal])
}

#[test]
fn two_processes_on_one_study_share_its_work_and_find_what_one_finds() {
    let study = STUDY.replace("[2, 4, 8, 16]", "[2, 3]").replace("[0, 1, 2]", "[0, 1]");
    let alone = Desk::new();
    alone.write("study.toml", &study);
    alone.ok(&["compare", "study.toml", "--out", "out"]);
    let expected = measured(&alone.json("out/result.json"));
    for pair in 0..8 {
        let desk = Desk::new();
        desk.write("study.toml", &study);
        if pair > 1 {
            // Timing the arms takes longer than their runs; the first pairs measure for themselves.
            fs::create_dir(desk.path("out")).unwrap();
            for entry in fs::read_dir(alone.path("out")).unwrap().map(|entry| entry.unwrap()) {
                if entry.file_name().to_string_lossy().starts_with("calibration-") {
                    fs::copy(entry.path(), desk.path("out").join(entry.file_name())).unwrap();
                }
            }
        }
        // The same command twice, and two shards of which one does all.
        let more: [&[&str]; 2] = if pair % 2 == 0 { [&[], &[]] } else { [&["--shard", "1/2"], &[]] };
        let children = more.map(|more| {
            let arguments = [&["compare", "study.toml", "--out", "out"][..], more].concat();
            let mut command = Command::new(env!("CARGO_BIN_EXE_switchyard"));
            command
                .args(arguments)
                .current_dir(desk.folder.path())
                .env("SWITCHYARD_CACHE_DIR", desk.path("cache"));
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        });
        let children = children.map(|child| thread::spawn(|| child.wait_with_output().unwrap()));
        for output in children.map(|child| child.join().unwrap()) {
            let message = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(0), "pair {pair}: {message}");
        }
        if pair % 2 == 1 {
            // The shard may have been the last to write its part of the result.
            desk.ok(&["compare", "study.toml", "--out", "out"]);
        }
        assert_eq!(measured(&desk.json("out/result.json")), expected, "pair {pair}");
        assert_eq!(desk.runs(), alone.runs(), "pair {pair}");
        for run in desk.runs() {
            assert!(!desk.path("out/runs").join(&run).join("checkpoints").exists(), "pair {pair}: {run}");
        }
        let left: Vec<_> = fs::read_dir(desk.path("out"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with('.') || name.ends_with(".lock"))
            .collect();
        assert_eq!(left, [""; 0], "pair {pair}: locks are removed");
    }
}

#[test]
fn advice_about_a_run_of_a_study_can_be_followed_there() {
    let desk = Desk::new();
    desk.write("study.toml", &STUDY.replace("[2, 4, 8, 16]", "[2]").replace("[0, 1, 2]", "[0, 1]"));
    desk.ok(&["compare", "study.toml", "--out", "out"]);
    let run = desk.path("out/runs").join(&desk.runs()[0]);
    let refused = |what: &str| {
        let output = desk.run(&["compare", "study.toml", "--out", "out"]);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{what}: {message}");
        assert!(message.contains("the same command does this run anew"), "{what}: {message}");
        assert!(!message.contains("--overwrite") && !message.contains("--resume"), "{what}: {message}");
        assert!(message.contains(run.file_name().unwrap().to_str().unwrap()), "{what}: {message}");
    };
    fs::write(run.join("run.json"), "{").unwrap();
    refused("a torn manifest");
    fs::remove_file(run.join("run.json")).unwrap();
    fs::write(run.join("notes.txt"), "mine").unwrap();
    refused("a folder of something else");
    fs::remove_dir_all(&run).unwrap();
    desk.ok(&["compare", "study.toml", "--out", "out"]);
}

#[test]
fn a_study_whose_data_moved_goes_on_with_what_was_done() {
    let desk = Desk::new();
    let synthetic = BASE.find("[data.synthetic]").unwrap()..BASE.find("[train]").unwrap();
    let on_text = |path: &str| {
        let data = format!("[data.text]\npath = \"{path}\"\n[data.split.tail]\nvalidation_fraction = 0.2\n");
        let mut base = BASE.to_string();
        base.replace_range(synthetic.clone(), &data);
        desk.write("base.toml", &base);
    };
    desk.write("here.txt", &"A line of text that repeats, and one more of it.\n".repeat(60));
    desk.write("study.toml", &STUDY.replace("[2, 4, 8, 16]", "[2]").replace("[0.005, 0.01]", "[0.005]"));
    let study = ["compare", "study.toml", "--out", "out"];
    on_text("here.txt");
    desk.ok(&study);
    let runs = desk.runs();
    fs::rename(desk.path("here.txt"), desk.path("there.txt")).unwrap();
    let output = desk.run(&study);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("write that into `data.text.path` of the recipe"), "{message}");
    on_text("there.txt");
    let (_, said) = desk.ok(&study);
    assert!(said.contains("0 to do") && !said.contains("timing"), "{said}");
    assert_eq!(desk.runs(), runs);
}
