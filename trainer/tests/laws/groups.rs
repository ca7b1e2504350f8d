//! Laws of groups of parameters.

use std::collections::BTreeMap;

use burn::tensor::Device;
use switchyard_datasets::TokenBatch;
use switchyard_flight::alarms::AlarmKind;
use switchyard_model::{ParameterName, PassOptions, Transformer, parameter_data};
use switchyard_trainer::checkpoint::Checkpoint;
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::optimizer::{Optimizer, StepGradients};
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::run_folder::{OpenMode, RunStatus};
use switchyard_trainer::step::{StepSettings, step_gradients};
use tempfile::TempDir;

use crate::resume::{tensors, with_steps};
use crate::tiny;

fn grouped(groups: &[&str]) -> RunConfig {
    let mut config = tiny::moe();
    config.train.groups = groups.iter().map(|text| toml::from_str(text).unwrap()).collect();
    config
}

type Bits = BTreeMap<ParameterName, Vec<u32>>;

fn bits(network: &Transformer) -> Bits {
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    let parameters = parameter_data(network).into_iter();
    parameters.map(|named| (named.name, bits(named.value.try_into_vec::<f32>().unwrap()))).collect()
}

pub(crate) fn network(config: &RunConfig) -> Transformer {
    let plan = RunPlan::resolve(config).unwrap();
    Transformer::new(&plan.model, config.seed, &Device::flex().autodiff())
}

/// The gradients of one step, the same for equal networks.
pub(crate) fn gradients_of(network: &Transformer) -> StepGradients {
    let batch = TokenBatch {
        input_ids: (0..64).map(|index| (index * 7 + 3) % 32).collect(),
        target_ids: (0..64).map(|index| (index * 7 + 10) % 32).collect(),
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
        seed: 1,
        step: 0,
        max_grad_norm: None,
        head_z_weight: None,
        options: PassOptions::default(),
        state: None,
    };
    step_gradients(network, vec![batch], &settings, &Device::flex()).unwrap().0
}

/// Every parameter after an update at this learning rate.
fn updated(config: &RunConfig, learning_rate: f64) -> Bits {
    let network = network(config);
    let gradients = gradients_of(&network);
    bits(&Optimizer::new(&config.train, &network.spec().clone()).update(network, gradients, learning_rate))
}

/// The rate and decay of a group are those of a run that has them for all.
#[test]
fn a_group_is_trained_as_a_run_with_its_rate_and_decay() {
    let config = grouped(&[
        "match = \"blocks.0.ffn.router.*\"\nlearning_rate_factor = 2.0",
        "match = \"role:router\"\nlearning_rate_factor = 0.5\nweight_decay = 0.0",
        "match = \"norms\"\nweight_decay = 0.3",
    ]);
    let found = updated(&config, 1e-2);
    let plain = updated(&grouped(&[]), 1e-2);
    let with = |change: &dyn Fn(&mut RunConfig), learning_rate| {
        let mut config = grouped(&[]);
        change(&mut config);
        updated(&config, learning_rate)
    };
    let twice = with(&|_| (), 2e-2);
    let half_without_decay = with(&|config| config.train.adamw.weight_decay = 0.0, 5e-3);
    let mut seen = [0; 4];
    for (name, bits) in &found {
        let text = name.to_string();
        let kind = match text.as_str() {
            name if name.starts_with("blocks.0.ffn.router") => 0,
            name if name.contains("router") => 1,
            name if name.contains("norm") => 2,
            _ => 3,
        };
        seen[kind] += 1;
        match kind {
            0 => assert_eq!(bits, &twice[name], "{text}"),
            1 => assert_eq!(bits, &half_without_decay[name], "{text}"),
            // Vectors decay where a group says so, and else never.
            2 => assert_ne!(bits, &plain[name], "{text}"),
            _ => assert_eq!(bits, &plain[name], "{text}"),
        }
    }
    assert!(seen.iter().all(|seen| *seen > 0), "{seen:?}");
}

#[test]
fn a_frozen_group_stays_every_other_parameter_moves_and_a_resumed_run_is_the_same() {
    let folder = TempDir::new().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let config = grouped(&[
        "match = \"role:router\"\nfreeze = true",
        "match = \"*.up\"\nlearning_rate_factor = 3.0\nweight_decay = 0.01",
    ]);
    tiny::run(&with_steps(&config, 4, 1), &whole, OpenMode::New).unwrap();
    tiny::run(&with_steps(&config, 2, 1), &parts, OpenMode::New).unwrap();
    tiny::run(&with_steps(&config, 4, 1), &parts, OpenMode::Resume).unwrap();
    assert!(tensors(&whole, 4) == tensors(&parts, 4), "stored tensors");
    let before = bits(&network(&config));
    let checkpoint = Checkpoint::read(&whole.join("checkpoints/step-4")).unwrap();
    let after = bits(&checkpoint.model(&Device::flex()).unwrap());
    for (name, bits) in &after {
        let is_frozen = name.to_string().contains("router");
        assert_eq!(bits == &before[name], is_frozen, "{name}");
    }
}

/// The loads move a selection bias, not a gradient: frozen, it stays all the same. That no gradient reaches
/// a frozen router is no alarm.
#[test]
fn a_frozen_router_keeps_its_bias_and_raises_no_alarm() {
    let folder = TempDir::new().unwrap();
    let biases = |groups: &[&str], name: &str| {
        let mut config = tiny::routed("top_k = 2\nbias = { sign = { rate = 0.01 } }");
        config.train.groups = groups.iter().map(|text| toml::from_str(text).unwrap()).collect();
        config.train.flight_recorder.alarms.stop_on = vec![AlarmKind::RouterGradientZero];
        let out = folder.path().join(name);
        let summary = tiny::run(&with_steps(&config, 20, 1), &out, OpenMode::New).unwrap();
        assert_eq!(summary.manifest.status, RunStatus::Finished, "{name}");
        let checkpoint = Checkpoint::read(&out.join("checkpoints/step-20")).unwrap();
        let parameters = bits(&checkpoint.model(&Device::flex()).unwrap());
        let biases = parameters.into_iter().filter(|(name, _)| name.to_string().contains("selection_bias"));
        biases.flat_map(|(_, bits)| bits).collect::<Vec<u32>>()
    };
    let frozen = biases(&["match = \"router\"\nfreeze = true"], "frozen");
    assert!(frozen.len() == 8 && frozen.iter().all(|bits| *bits == 0), "{frozen:?}");
    assert!(biases(&[], "free").iter().any(|bits| *bits != 0));
}

#[test]
fn groups_that_mean_nothing_are_refused_by_key_and_word() {
    let folder = TempDir::new().unwrap();
    let plan = |groups: &[&str]| RunPlan::resolve(&grouped(groups)).unwrap_err().to_string();
    let run = |groups: &[&str]| {
        tiny::run(&grouped(groups), &folder.path().join("run"), OpenMode::New).unwrap_err().to_string()
    };
    let message = plan(&["match = \"router\"\nfreeze = true\nweight_decay = 0.1"]);
    assert!(message.contains("freezes, and has a rate"), "{message}");
    let message = plan(&["match = \"router\"\nlearning_rate_factor = -1.0"]);
    assert!(message.contains("`train.groups[0].learning_rate_factor` is -1"), "{message}");
    let message = run(&["match = \"routers\"\nfreeze = true"]);
    assert!(
        message.contains("`train.groups[0].match` holds \"routers\"")
            && message.contains("`embedding.token`"),
        "{message}"
    );
    let message = run(&[
        "match = \"router\"\nfreeze = true",
        "match = \"*.router.weight\"\nlearning_rate_factor = 2.0",
    ]);
    assert!(message.contains("`train.groups[1].match` is \"*.router.weight\", all of whose"), "{message}");
    let message = run(&["match = \"router\"", "match = \"ro*\"\nweight_decay = 0.1"]);
    assert!(message.contains("`train.groups[1].match` holds \"ro*\""), "{message}");
    let mut started = grouped(&["match = \"norms\"\nlearning_rate_factor = 2.0"]);
    started.start.freeze = vec!["norms".into()];
    let message = tiny::run(&started, &folder.path().join("run"), OpenMode::New).unwrap_err().to_string();
    assert!(message.contains("\"norms\", of which no optimizer trains anything"), "{message}");
    let message = run(&["match = \"*\"\nfreeze = true"]);
    assert!(message.contains("`train.groups` leaves nothing to train"), "{message}");
    assert!(!folder.path().join("run").exists(), "a mistake leaves no folder");
}
