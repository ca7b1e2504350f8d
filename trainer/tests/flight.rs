//! What a run leaves in `flight/`, and what it answers afterwards.

#![expect(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use burn::tensor::{Device, Tensor, TensorData};
use switchyard_comm::Comm;
use switchyard_datasets::{Loader, LoaderConfig, Packing, Progress, TokenBatch};
use switchyard_experts::FfnSpec;
use switchyard_flight::alarms::AlarmKind;
use switchyard_flight::columns::{ScoreRow, read_experts, read_scores, recorded_score_steps};
use switchyard_model::{ParameterName, PassOptions, Role, Transformer, update_parameters};
use switchyard_trainer::TrainError;
use switchyard_trainer::checkpoint::Checkpoint;
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::device;
use switchyard_trainer::flight::question::{AskedCapacity, RunQuestion, ask};
use switchyard_trainer::flight::replay::{ReplayRequest, replay};
use switchyard_trainer::flight::{read_alarms, read_probes, read_saturation};
use switchyard_trainer::metrics::{Record, StepRecord, read_metrics};
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::run_folder::{OpenMode, RunPaths, RunStatus};
use switchyard_trainer::step::{StepSettings, step_gradients};
use switchyard_trainer::train::{RunSummary, TrainRequest, train};
use tempfile::TempDir;

/// Two mixtures of four experts with a tight capacity; every alarm that a short run can raise is
/// within reach.
const TINY: &str = r#"
name = "tiny"
seed = 7
threads = 1
[data.synthetic]
num_domains = 2
vocab_size = 32
num_documents = 200
document_tokens = 40
branching = 3
[train]
num_steps = 12
seq_len = 16
batch_tokens = 128
micro_batch_tokens = 64
checkpoint_every_steps = 5
max_grad_norm = 0.5
[train.adamw]
learning_rate = 1e-2
[train.checkpoints]
keep_last = 10
[train.flight_recorder]
scores_every_steps = 3
probe_every_steps = 2
steps_per_part = 4
[train.flight_recorder.alarms]
window_steps = 3
dropped_share = 0.02
max_violation = 0.1
[sample]
num_tokens = 0
[model]
num_layers = 2
d_model = 16
[model.attention]
num_heads = 2
[model.ffn]
activation = "swiglu"
[model.ffn.moe]
num_experts = 4
d_expert = 12
[model.ffn.moe.capacity]
factor = 1.0
[model.ffn.moe.router]
top_k = 2
load_balancing_weight = 0.01
z_loss_weight = 0.001
"#;

fn tiny() -> RunConfig {
    toml::from_str(TINY).unwrap()
}

/// The tiny run with some of its text replaced.
fn tiny_with(changes: &[(&str, &str)]) -> RunConfig {
    let change = |text: String, (from, to): &(&str, &str)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    };
    toml::from_str(&changes.iter().fold(TINY.to_string(), change)).unwrap()
}

fn run(config: &RunConfig, out: &Path, mode: OpenMode) -> Result<RunSummary, TrainError> {
    let mut config = config.clone();
    config.data.cache_dir = Some(out.with_file_name("cache"));
    let plan = RunPlan::resolve(&config).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    train(&TrainRequest {
        config,
        plan,
        out: out.into(),
        mode,
        show_progress: false,
        stop,
        comm: Comm::single(),
    })
}

fn step_rows(out: &Path) -> Vec<StepRecord> {
    let rows = read_metrics(&out.join("metrics.jsonl")).unwrap();
    rows.iter().filter_map(Record::as_step).cloned().map(StepRecord::without_timings).collect()
}

#[test]
fn a_run_leaves_what_every_expert_did() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    run(&tiny(), &out, OpenMode::New).unwrap();
    let paths = RunPaths::new(&out);
    let experts = read_experts(&paths.flight()).unwrap();
    assert_eq!(experts.len(), 12 * 2 * 4, "one row per step, layer and expert");
    for row in step_rows(&out) {
        for layer in &row.layers {
            let of_layer = experts.iter().filter(|e| e.step == row.step && e.layer as usize == layer.layer);
            let of_layer: Vec<_> = of_layer.collect();
            let tokens: Vec<u64> = of_layer.iter().map(|expert| expert.tokens).collect();
            assert_eq!(tokens, layer.tokens_per_expert);
            let dropped = of_layer.iter().map(|expert| expert.dropped).sum::<u64>() as f64;
            assert_eq!(dropped / tokens.iter().sum::<u64>() as f64, layer.dropped_fraction);
            assert_eq!(Some(of_layer[0].router_grad_norm), layer.router_grad_norm);
            assert!(layer.router_grad_norm.unwrap() > 0.0 && layer.router_weight_norm.unwrap() > 0.0);
            assert!(layer.running_max_violation.unwrap() >= 0.0);
            let squares = |norm: f64| norm * norm;
            let of_mixture = of_layer.iter().map(|expert| squares(expert.expert_grad_norm.unwrap()));
            assert!(of_mixture.sum::<f64>() < squares(row.grad_norm), "a part is less than the whole");
            let is_probed = row.step % 2 == 0;
            assert!(of_layer.iter().all(|expert| expert.expert_weight_norm.is_some() == is_probed));
        }
    }
    assert_eq!(recorded_score_steps(&paths.flight()).unwrap(), [3, 6, 9, 12]);
}

#[test]
fn probes_measure_what_their_names_say() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    run(&tiny(), &out, OpenMode::New).unwrap();
    let paths = RunPaths::new(&out);
    let probes = read_probes(&paths).unwrap();
    assert_eq!(probes.len(), 6 * 2);
    for probe in &probes {
        let experts = read_experts(&paths.flight()).unwrap();
        let load = |expert: usize| {
            let row = experts.iter().find(|row| {
                (row.step, row.layer as usize, row.expert as usize) == (probe.step, probe.layer, expert)
            });
            row.unwrap().tokens
        };
        assert!((0..4).all(|expert| probe.co_activation[expert][expert] == load(expert)));
        assert_eq!(probe.agreement_with_previous.is_some(), probe.step > 2);
        assert!(probe.domain_information.unwrap().nats >= 0.0, "synthetic data knows its domains");
        assert!(probe.token_information.unwrap().normalised <= 1.0);
        assert!(probe.expert_similarity_mean.unwrap() <= probe.expert_similarity_max.unwrap());
        assert!(probe.balancing_grad_norm.unwrap() > 0.0);
        assert_eq!(probe.probe_experts.len(), 2 * 32, "a quarter of a step's tokens");
    }
    let saturation = read_saturation(&paths).unwrap();
    assert_eq!(saturation.len(), 12);
    let at_the_end = saturation.iter().filter(|row| row.step == 12);
    assert!(at_the_end.clone().count() == 2 && at_the_end.clone().all(|row| row.agreement_with_final == 1.0));
}

#[test]
fn a_resumed_run_records_what_an_unbroken_one_does() {
    let folder = TempDir::new().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    run(&tiny(), &whole, OpenMode::New).unwrap();
    run(&tiny(), &parts, OpenMode::New).unwrap();
    // As a kill after step 12 leaves it: recordings of later steps than the newest checkpoint's.
    for step in [10, 12] {
        fs::remove_dir_all(parts.join(format!("checkpoints/step-{step}"))).unwrap();
    }
    let (alarms, torn) = (RunPaths::new(&parts).alarms(), "{\"kind\":\"dead_exp");
    fs::write(&alarms, fs::read_to_string(&alarms).unwrap() + torn).unwrap();
    let resumed = run(&tiny(), &parts, OpenMode::Resume).unwrap();
    assert_eq!(resumed.manifest.resumed_from_steps, [5]);
    assert_eq!(step_rows(&parts), step_rows(&whole));
    let flight = |out: &Path| RunPaths::new(out).flight();
    assert_eq!(read_experts(&flight(&parts)).unwrap(), read_experts(&flight(&whole)).unwrap());
    for step in [3, 6, 9, 12] {
        assert_eq!(read_scores(&flight(&parts), step).unwrap(), read_scores(&flight(&whole), step).unwrap());
    }
    assert!(!read_alarms(&RunPaths::new(&whole)).unwrap().is_empty(), "nothing was raised to compare");
    for name in ["alarms.jsonl", "probes.jsonl", "saturation.jsonl"] {
        let text = |out: &Path| fs::read_to_string(flight(out).join(name)).unwrap();
        assert_eq!(text(&parts), text(&whole), "{name}");
    }
}

fn replay_of(run: &Path, step: u64) -> ReplayRequest {
    let stop = Arc::new(AtomicBool::new(false));
    ReplayRequest { run: run.into(), step, overrides: Vec::new(), show_progress: false, stop }
}

#[test]
fn a_step_is_replayed_bit_for_bit() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    run(&tiny(), &out, OpenMode::New).unwrap();
    for (step, from) in [(1, 0), (5, 0), (6, 5), (12, 10)] {
        let replay = replay(&replay_of(&out, step)).unwrap();
        assert_eq!((replay.from_step, replay.repeated.step), (from, step));
        assert!(replay.is_exact(), "{replay:?}");
    }
    let error = replay(&replay_of(&out, 13)).unwrap_err();
    assert!(error.is_users_mistake() && error.to_string().contains("1..=12"), "{error}");
}

#[test]
fn a_replay_notices_a_row_that_is_off_by_its_last_bit() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    run(&tiny(), &out, OpenMode::New).unwrap();
    let metrics = out.join("metrics.jsonl");
    let text = fs::read_to_string(&metrics).unwrap();
    let lines = text.lines().map(|line| match serde_json::from_str(line).unwrap() {
        Record::Step(mut row) if row.step == 7 => {
            row.grad_norm = row.grad_norm.next_up();
            serde_json::to_string(&Record::Step(row)).unwrap() + "\n"
        }
        _ => line.to_string() + "\n",
    });
    fs::write(&metrics, lines.collect::<String>()).unwrap();
    let replay = replay(&replay_of(&out, 8)).unwrap();
    assert_eq!((replay.first_difference, replay.is_exact()), (Some(7), false));
}

#[test]
fn what_if_answers_the_runs_own_setting_with_what_was_recorded() {
    for drop in ["position", "probability"] {
        let folder = TempDir::new().unwrap();
        let out = folder.path().join("run");
        let config = tiny_with(&[("factor = 1.0", &format!("factor = 1.0\ndrop = \"{drop}\""))]);
        run(&config, &out, OpenMode::New).unwrap();
        let experts = read_experts(&RunPaths::new(&out).flight()).unwrap();
        for step in [3, 6, 9, 12] {
            let answer = ask(&out, &RunQuestion { step: Some(step), ..RunQuestion::default() }).unwrap();
            assert_eq!(answer.layers.len(), 2);
            for layer in answer.layers {
                assert_eq!(layer.asked, layer.recorded, "step {step}");
                let rows = experts.iter().filter(|row| (row.step, row.layer) == (step, layer.layer));
                let (tokens, kept): (Vec<u64>, Vec<u64>) =
                    rows.map(|row| (row.tokens, row.tokens - row.dropped)).unzip();
                assert_eq!((layer.asked.tokens_per_expert, layer.asked.kept_per_expert), (tokens, kept));
            }
        }
    }
}

/// Step 6 once more, from the checkpoint of step 5, with another capacity. The first mixture reads
/// what it read in the run.
#[test]
fn what_if_answers_another_capacity_as_a_rerun_of_the_step_does() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    run(&tiny(), &out, OpenMode::New).unwrap();
    for factor in [0.5, 0.8, 1.3, 2.0] {
        let capacity = Some(AskedCapacity::Factor(factor));
        let answer = ask(&out, &RunQuestion { step: Some(6), capacity, ..RunQuestion::default() }).unwrap();
        let (tokens, dropped) = rerun_first_mixture(&out, factor);
        let asked = &answer.layers[0].asked;
        assert_eq!(asked.tokens_per_expert, tokens, "factor {factor}");
        let kept: Vec<u64> = tokens.iter().zip(&dropped).map(|(tokens, dropped)| tokens - dropped).collect();
        assert_eq!(asked.kept_per_expert, kept, "factor {factor}");
    }
}

/// Load and drops of the first mixture in step 6 with this capacity factor.
fn rerun_first_mixture(out: &Path, factor: f64) -> (Vec<u64>, Vec<u64>) {
    let mut checkpoint = Checkpoint::read(&out.join("checkpoints/step-5")).unwrap();
    for layer in &mut checkpoint.plan.model.layers {
        if let FfnSpec::Moe(moe) = &mut layer.ffn {
            moe.capacity.as_mut().unwrap().factor = factor;
        }
    }
    let device = device::select("cpu").unwrap();
    let model = checkpoint.model(&device.clone().autodiff()).unwrap();
    let data = switchyard_datasets::prepare(&checkpoint.config.data, &Progress::silent()).unwrap();
    let config = LoaderConfig {
        seq_len: 16,
        sequences_per_batch: 4,
        seed: 7,
        mask_documents: false,
        packing: Packing::default(),
        num_streams: None,
    };
    let mut loader = Loader::new(data.train, config, checkpoint.state.data_cursor).unwrap();
    let batches = (0..2).map(|_| loader.next_batch().unwrap()).collect();
    let settings = StepSettings {
        seed: 7,
        step: 5,
        max_grad_norm: None,
        head_z_weight: None,
        options: PassOptions::default(),
        state: None,
    };
    let (_, measured) = step_gradients(&model, batches, &settings, &device).unwrap();
    let sum = |of_pass: &dyn Fn(usize) -> Vec<u64>| {
        let (first, second) = (of_pass(0), of_pass(1));
        first.iter().zip(second).map(|(a, b)| a + b).collect()
    };
    (
        sum(&|pass| measured.passes[pass].layers[0].tokens_per_expert.clone()),
        sum(&|pass| measured.passes[pass].layers[0].dropped_per_expert.clone()),
    )
}

#[test]
fn what_if_refuses_a_router_whose_choice_the_scores_do_not_decide() {
    for (table, key) in [
        ("bias.sign", "bias"),
        ("selection.noisy", "selection.noisy"),
        ("selection.hash", "selection.hash"),
        ("selection.random", "selection.random"),
    ] {
        let folder = TempDir::new().unwrap();
        let out = folder.path().join("run");
        let weights = ("load_balancing_weight = 0.01\nz_loss_weight = 0.001\n", "");
        let top_k = ("top_k = 2", &*format!("top_k = 2\n[model.ffn.moe.router.{table}]"));
        run(&tiny_with(&[("num_steps = 12", "num_steps = 3"), weights, top_k]), &out, OpenMode::New).unwrap();
        let error = ask(&out, &RunQuestion::default()).unwrap_err();
        assert!(error.is_users_mistake(), "{error}");
        assert!(error.to_string().contains(&format!("`model.ffn.moe.router.{key}`")), "{error}");
    }
}

/// The loss is the mean square of the log-partition of what the gate said, so a column of anything
/// else would not give it back: not of log-sigmoids, not of scores with a bias, not of a balanced
/// assignment.
#[test]
fn the_z_loss_comes_back_from_the_recorded_logits_of_every_gate() {
    for tables in [
        "",
        "sigmoid = {}\nbias = { sign = {} }\n",
        "sigmoid = { routed_scaling = 2.5 }\nrenormalise = false\n",
        "sigmoid = {}\nbias = { quantile = {} }\n",
        "cosine = { d_projection = 8 }\n",
        "jitter = 0.1\ngroups = { num_groups = 2, top_groups = 1 }\n",
        "selection = { noisy = {} }\n",
        "selection = { sinkhorn = {} }\n",
        "selection = { random_second = {} }\n",
        "sigmoid = {}\nselection = { expert_choice = {} }\n",
    ] {
        let folder = TempDir::new().unwrap();
        let out = folder.path().join("run");
        let router = format!("top_k = 2\n{tables}z_loss_weight = 0.001\n");
        let changes = [
            ("num_steps = 12", "num_steps = 3"),
            ("num_layers = 2", "num_layers = 1"),
            ("[model.ffn.moe.capacity]\nfactor = 1.0\n", ""),
            ("top_k = 2\nload_balancing_weight = 0.01\nz_loss_weight = 0.001\n", &router),
        ];
        run(&tiny_with(&changes), &out, OpenMode::New).unwrap();
        let rows = read_scores(&RunPaths::new(&out).flight(), 3).unwrap();
        let squares: Vec<f64> = rows
            .chunks(4)
            .map(|row| row.iter().map(|row| f64::from(row.logit).exp()).sum::<f64>().ln().powi(2))
            .collect();
        assert_eq!(squares.len(), 128);
        let expected = squares.iter().sum::<f64>() / 128.0;
        let logged = step_rows(&out)[2].losses["router_z_loss"];
        // Both are of f32 logits.
        assert!(
            (logged / expected - 1.0).abs() < 1e-5,
            "{tables}: {expected} from the column, {logged} logged"
        );
        check_sigmoid_gates(&rows, tables);
    }
}

/// The recorded gates of sigmoid routers from their logits: shares of the chosen ones' sigmoids, or
/// these alone, scaled.
fn check_sigmoid_gates(rows: &[ScoreRow], tables: &str) {
    if !tables.contains("sigmoid") {
        return;
    }
    let sigmoid = |row: &ScoreRow| 1.0 / (1.0 + (-f64::from(row.logit)).exp());
    for row in rows.chunks(4) {
        let sum: f64 = row.iter().filter(|row| row.rank.is_some()).map(sigmoid).sum();
        for row in row.iter().filter(|row| row.rank.is_some()) {
            let expected = match tables {
                tables if tables.contains("2.5") => 2.5 * sigmoid(row),
                tables if tables.contains("expert_choice") => sigmoid(row),
                _ => sigmoid(row) / sum,
            };
            assert!((f64::from(row.gate) - expected).abs() < 1e-5, "{tables}: {row:?}, {expected} expected");
        }
    }
}

/// A hash of 32 ids onto 64 experts leaves at least 32 of them without a token, for ever.
fn with_dead_experts(alarms: &str) -> RunConfig {
    tiny_with(&[
        ("num_experts = 4", "num_experts = 64"),
        ("top_k = 2", "top_k = 1\n[model.ffn.moe.router.selection.hash]"),
        ("load_balancing_weight = 0.01\nz_loss_weight = 0.001\n", ""),
        ("window_steps = 3", &format!("window_steps = 3\ndead_expert_steps = 4\n{alarms}")),
    ])
}

#[test]
fn a_dead_expert_is_named_and_stops_the_run_if_asked() {
    let folder = TempDir::new().unwrap();
    let (watched, stopped) = (folder.path().join("watched"), folder.path().join("stopped"));
    let summary = run(&with_dead_experts(""), &watched, OpenMode::New).unwrap();
    assert_eq!(summary.manifest.status, RunStatus::Finished);
    let alarms = read_alarms(&RunPaths::new(&watched)).unwrap();
    let dead: Vec<_> = alarms.iter().filter(|alarm| alarm.kind == AlarmKind::DeadExpert).collect();
    assert!(dead.len() >= 2 * 32, "{} alarms", dead.len());
    assert!(dead.iter().all(|alarm| alarm.step == alarm.since_step + 3 && alarm.expert.is_some()));

    let config = with_dead_experts("stop_on = [\"dead_expert\"]");
    let summary = run(&config, &stopped, OpenMode::New).unwrap();
    let manifest = &summary.manifest;
    assert_eq!((manifest.status, manifest.steps_done), (RunStatus::Alarmed, 4));
    assert!(manifest.error.as_ref().unwrap().contains("no tokens since step 1"), "{:?}", manifest.error);
    assert!(stopped.join("checkpoints/step-4").is_dir());
    // Going on without the stop, the run says nothing again that has been said.
    let resumed = run(&with_dead_experts(""), &stopped, OpenMode::Resume).unwrap();
    assert_eq!((resumed.manifest.status, resumed.manifest.error), (RunStatus::Finished, None));
    assert_eq!(read_alarms(&RunPaths::new(&stopped)).unwrap(), alarms);
}

#[test]
fn a_recorder_that_is_off_leaves_no_folder_and_changes_no_number() {
    let folder = TempDir::new().unwrap();
    let (on, off) = (folder.path().join("on"), folder.path().join("off"));
    let enabled = ("[train.flight_recorder]", "[train.flight_recorder]\nenabled = false");
    run(&tiny(), &on, OpenMode::New).unwrap();
    run(&tiny_with(&[enabled]), &off, OpenMode::New).unwrap();
    assert!(!off.join("flight").exists());
    let numbers = |out: &Path| {
        step_rows(out).into_iter().map(|row| (row.total_loss, row.grad_norm)).collect::<Vec<_>>()
    };
    assert_eq!(numbers(&on), numbers(&off));
    let model = |out: &Path| fs::read(out.join("checkpoints/step-12/model.safetensors")).unwrap();
    assert!(model(&on) == model(&off), "watching changes nothing");
}

#[test]
fn overwriting_a_run_deletes_its_recordings() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    run(&tiny(), &out, OpenMode::New).unwrap();
    run(&tiny_with(&[("num_steps = 12", "num_steps = 2")]), &out, OpenMode::Overwrite).unwrap();
    let paths = RunPaths::new(&out);
    assert!(recorded_score_steps(&paths.flight()).unwrap().is_empty());
    assert_eq!(read_experts(&paths.flight()).unwrap().len(), 2 * 2 * 4);
}

/// The error of a step of the tiny network whose parameter has `value` in the whole of expert 2, or
/// in all of it if it is of no expert.
fn error_with(parameter: ParameterName, value: f32) -> TrainError {
    let plan = RunPlan::resolve(&tiny()).unwrap();
    let model = Transformer::new(&plan.model, 7, &Device::flex().autodiff());
    let model = update_parameters(model, |name, shape, value_n| {
        if name != parameter {
            return value_n;
        }
        let mut values: Vec<f32> = value_n.to_data().iter::<f32>().collect();
        let (rows, row) = if matches!(parameter.role, Role::Expert(_)) { (shape[0], 2) } else { (1, 0) };
        let row_len = values.len() / rows;
        values[row * row_len..][..row_len].fill(value);
        Tensor::from_data(TensorData::new(values, value_n.dims()), &value_n.device())
    });
    let batch = TokenBatch {
        input_ids: (0..64).map(|id| id % 32).collect(),
        target_ids: (0..64).map(|id| (id + 1) % 32).collect(),
        segment_ids: None,
        target_mask: None,
        row_lens: None,
        follows: false,
        domains: vec![0; 4],
        source_ids_b: vec![0; 4],
        num_sequences: 4,
        seq_len: 16,
    };
    let settings = StepSettings {
        seed: 7,
        step: 2,
        max_grad_norm: None,
        head_z_weight: None,
        options: PassOptions::default(),
        state: None,
    };
    step_gradients(&model, vec![batch], &settings, &Device::flex()).unwrap_err()
}

#[test]
fn a_nan_is_traced_to_its_layer_operation_and_expert() {
    let origin = |name, value| {
        let error = error_with(ParameterName::parse(name).unwrap(), value);
        assert!(error.to_string().starts_with("step 3: the loss is "), "{error}");
        let origin = error.non_finite().unwrap();
        assert!(error.to_string().contains(&format!("the first NaN or infinity is in {origin}")), "{error}");
        origin.to_string()
    };
    assert_eq!(
        origin("blocks.1.ffn.experts.up", f32::NAN),
        "layer 1 expert 2: the parameter `blocks.1.ffn.experts.up`"
    );
    // Finite weights whose products are not: three of these in one expert exceed the largest f32.
    assert_eq!(origin("blocks.1.ffn.experts.up", 3e38), "layer 1 expert 2: the expert's output");
    assert_eq!(origin("blocks.0.ffn.router.weight", f32::MAX), "layer 0: the router's logits");
}
