//! Laws of a run that every router keeps.

use std::fs;
use std::path::Path;

use crate::resume::{tensors, with_steps};
use crate::router_overrides::overridden;
use crate::tiny;
use burn::module::Module;
use burn::tensor::Device;
use switchyard_datasets::Tokenizer;
use switchyard_model::{
    ModelInput, Pass, Role, RouterPart, Transformer, parameter_data, parameter_tensors, update_parameters,
};
use switchyard_trainer::TrainError;
use switchyard_trainer::checkpoint::Checkpoint;
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::generate::{GenerationRule, GenerationSettings, generate};
use switchyard_trainer::metrics::Record;
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::run_folder::OpenMode;
use switchyard_trainer::sampling::SamplingSettings;
use tempfile::TempDir;

/// Every router, with the options that a run could trip over: noise, losses over several
/// micro-batches, biases, an f64 gate.
pub(crate) const ROUTERS: [(&str, &str); 16] = [
    (
        "mixtral",
        "top_k = 2\nsoftmax = \"after_selection\"\nload_balancing_weight = 0.01\n\
         load_balancing_scope = \"global_batch\"\nz_loss_weight = 0.001",
    ),
    (
        "switch",
        "top_k = 1\nrenormalise = false\njitter = 0.01\nload_balancing_weight = 0.01\ninit_scale = 0.1",
    ),
    (
        "noisy_top_k",
        "top_k = 2\nsoftmax = \"after_selection\"\nprecision = \"f64\"\n\
         selection = { noisy = { importance_weight = 0.1, load_weight = 0.1 } }",
    ),
    ("gshard", "top_k = 2\nload_balancing_weight = 0.01\nselection = { random_second = {} }"),
    ("gshard_sampled", "top_k = 2\nselection = { random_second = { sampled = true } }"),
    (
        "deepseek_v3",
        "top_k = 2\nsigmoid = { routed_scaling = 2.5 }\nbias = { sign = { rate = 0.01 } }\n\
         groups = { num_groups = 2, top_groups = 1 }\nload_balancing_weight = 0.0001\n\
         load_balancing_scope = \"sequence\"",
    ),
    (
        "group_limited",
        "top_k = 2\nrenormalise = false\nload_balancing_weight = 0.01\n\
         groups = { num_groups = 2, top_groups = 1, score = \"max\" }",
    ),
    (
        "token_rounding",
        "top_k = 2\ntoken_rounding = { tile = 4 }\nload_balancing_weight = 0.01\n\
         bias = { sign = { rate = 0.01 } }",
    ),
    ("quantile", "top_k = 2\nsigmoid = {}\nbias = { quantile = {} }\nentropy_weight = -0.001"),
    ("sinkhorn", "top_k = 1\nrenormalise = false\nselection = { sinkhorn = {} }"),
    ("expert_choice", "top_k = 2\nselection = { expert_choice = { generation = \"top_k\" } }"),
    ("hash", "top_k = 2\nselection = { hash = {} }"),
    ("soft", "top_k = 2\nselection = { soft = {} }"),
    (
        "cosine",
        "top_k = 2\ncosine = { d_projection = 8 }\nload_balancing_weight = 0.01\ninput = \"residual\"\n\
         precision = \"f64\"",
    ),
    ("random", "top_k = 2\nselection = { random = {} }"),
    ("forced_uniform", "top_k = 2\nselection = { forced_uniform = {} }"),
];

/// The configuration of a run with few evaluations.
pub(crate) fn config(router: &str) -> RunConfig {
    let mut config = tiny::routed(router);
    config.train.eval_every_steps = None;
    config
}

#[test]
fn every_router_resumes_bit_for_bit_at_any_number_of_threads() {
    for (name, router) in ROUTERS {
        let config = config(router);
        let folder = TempDir::new().unwrap();
        let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
        tiny::run(&with_steps(&config, 3, 1), &whole, OpenMode::New).unwrap();
        tiny::run(&with_steps(&config, 1, 2), &parts, OpenMode::New).unwrap();
        tiny::run(&with_steps(&config, 3, 2), &parts, OpenMode::Resume).unwrap();
        let rows = without_early_evaluation(&parts);
        assert_eq!(without_early_evaluation(&whole), rows, "{name}: logged numbers");
        assert!(tensors(&whole, 3) == tensors(&parts, 3), "{name}: stored tensors");
        assert_eq!(
            fs::read(whole.join("sample.txt")).ok(),
            fs::read(parts.join("sample.txt")).ok(),
            "{name}"
        );
        let losses: Vec<f64> = rows.iter().filter_map(Record::as_step).map(|row| row.total_loss).collect();
        assert!(losses.len() == 3 && losses.iter().all(|loss| loss.is_finite()), "{name}: {losses:?}");
    }
}

/// The rows without the evaluation at the end of the run's first part, which the whole run does not
/// have.
fn without_early_evaluation(out: &Path) -> Vec<Record> {
    let is_early = |row: &Record| row.as_eval().is_some_and(|row| row.step < 3);
    tiny::rows(out).into_iter().filter(|row| !is_early(row)).collect()
}

/// A model with distinct values of everything that training moves: the initial one knows no noise
/// and no bias.
pub(crate) fn model(config: &RunConfig) -> Transformer {
    Transformer::new(&RunPlan::resolve(config).unwrap().model, config.seed, &Device::flex())
}

#[test]
fn the_plan_counts_every_parameter_but_the_biases() {
    for (name, router) in ROUTERS {
        let config = config(router);
        let model = model(&config);
        let biases = parameter_data(&model)
            .into_iter()
            .filter(|named| named.name.role == Role::Router(RouterPart::SelectionBias));
        let num_biases: usize = biases.map(|named| named.value.num_elements()).sum();
        let plan = RunPlan::resolve(&config).unwrap();
        assert_eq!(plan.counts.total_params as usize, model.num_params() - num_biases, "{name}");
        assert_eq!(num_biases, if router.contains("bias") { 8 } else { 0 }, "{name}");
    }
}

#[test]
fn no_token_depends_on_a_later_one_but_where_the_plan_says_so() {
    let hidden = |model: &Transformer, ids: &[i32], pass: Pass| {
        let input = ModelInput::upload(ids.to_vec(), None, [1, ids.len()], &Device::flex());
        model.forward(&input, pass).hidden_td.narrow(0, 0, 8).into_data().try_into_vec::<f32>().unwrap()
    };
    let everywhere = ROUTERS.map(|(name, router)| (name, config(router)));
    let above = ROUTERS.map(|(name, router)| (name, overridden("top_k = 2", &[1], router)));
    for (name, config) in everywhere.into_iter().chain(above) {
        let model = model(&config);
        let one: Vec<i32> = (0..12).map(|i| (i * 5 + 1) % 32).collect();
        let other: Vec<i32> =
            one.iter().enumerate().map(|(i, &id)| if i < 8 { id } else { 31 - id }).collect();
        let is_causal = hidden(&model, &one, Pass::Evaluation) == hidden(&model, &other, Pass::Evaluation);
        let notes = RunPlan::resolve(&config).unwrap().notes;
        assert_eq!(!is_causal, notes.iter().any(|note| note.contains("is not causal")), "{name}: {notes:?}");
        if name != "soft" {
            let generating = |ids: &[i32]| hidden(&model, ids, Pass::Generation);
            assert_eq!(generating(&one), generating(&other), "{name}");
        }
    }
}

/// The optimizer and conversions ask the role, never the shape.
#[test]
fn the_roles_of_vectors_are_those_of_one_dimension() {
    for (name, router) in ROUTERS {
        for parameter in parameter_tensors(&model(&config(router))) {
            let is_vector = parameter.value.shape.len() == 1;
            assert_eq!(parameter.name.role.is_vector(), is_vector, "{name}: {}", parameter.name);
        }
    }
}

/// The biases in a checkpoint, layer by layer.
fn biases(checkpoint: &Path) -> Vec<Vec<f64>> {
    let model = Checkpoint::read(checkpoint).unwrap().model(&Device::flex()).unwrap();
    let named = parameter_data(&model)
        .into_iter()
        .filter(|named| named.name.role == Role::Router(RouterPart::SelectionBias));
    named.map(|named| named.value.iter::<f64>().collect()).collect()
}

/// One step of the rate for all micro-batches of a step together, then the mean taken off; the bias
/// is in the checkpoint.
#[test]
fn the_expert_bias_moves_once_per_step_by_the_whole_steps_loads() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let config = config("top_k = 2\nbias = { sign = { rate = 0.01 } }");
    tiny::run(&with_steps(&config, 1, 1), &out, OpenMode::New).unwrap();
    let rows = tiny::rows(&out);
    let layers = &rows[0].as_step().unwrap().layers;
    let stored = biases(&out.join("checkpoints/step-1"));
    assert_eq!(stored.len(), 2);
    for (layer, biases) in layers.iter().zip(stored) {
        let loads = &layer.tokens_per_expert;
        assert_eq!(loads.iter().sum::<u64>(), 2 * 128, "the whole step");
        let step = |load: u64| 0.01 * f64::from((load < 64) as i8 - (load > 64) as i8);
        let mean = loads.iter().map(|&load| step(load)).sum::<f64>() / 4.0;
        for (bias, &load) in biases.iter().zip(loads) {
            // Stored in f32.
            assert!((bias - (step(load) - mean)).abs() < 1e-9, "{biases:?} after loads {loads:?}");
        }
        assert!(biases.iter().any(|&bias| bias != 0.0), "perfect balance by chance: {loads:?}");
    }
}

fn settings(routing: Option<GenerationRule>) -> GenerationSettings {
    GenerationSettings { seed: 1, routing, ..GenerationSettings::new(3, SamplingSettings::new(1.0)) }
}

/// What generating with this router says, and the text's length in bytes.
fn generated(router: &str, routing: Option<GenerationRule>) -> Result<usize, TrainError> {
    generated_by(&config(router), routing)
}

/// As [`generated`], with the routers of a configuration.
pub(crate) fn generated_by(config: &RunConfig, routing: Option<GenerationRule>) -> Result<usize, TrainError> {
    let (mut text, model) = (String::new(), model(config));
    generate(&model, &Tokenizer::Bytes, &settings(routing), &Device::flex(), |piece| {
        text.push_str(piece);
        Ok(())
    })?;
    Ok(text.len())
}

#[test]
fn experts_that_choose_generate_only_where_a_rule_says_how() {
    const UNSET: &str = "top_k = 2\nselection = { expert_choice = {} }";
    const SET: &str = "top_k = 2\nselection = { expert_choice = { generation = \"top_k\" } }";
    let error = generated(UNSET, None).unwrap_err();
    assert!(error.is_users_mistake());
    insta::assert_snapshot!(error, @r#"text cannot be generated: `model.ffn.moe.router.selection.expert_choice.generation` is not set, and experts that take their best tokens need the later ones too. Set it to "top_k", with which each token takes its `top_k` best experts (for a model that is trained already, `switchyard generate --routing top_k`)"#);
    assert!(generated(UNSET, Some(GenerationRule::TopK)).unwrap() > 0);
    assert!(generated(SET, None).unwrap() > 0);
}

#[test]
fn a_model_that_computes_no_numbers_generates_nothing() {
    let model = update_parameters(model(&config("top_k = 2")), |_, _, value| value * f32::NAN);
    let nothing = |text: &str| -> std::io::Result<()> { panic!("generated {text:?}") };
    let error = generate(&model, &Tokenizer::Bytes, &settings(None), &Device::flex(), nothing).unwrap_err();
    assert!(matches!(error, TrainError::NoNumbers { .. }) && error.is_users_mistake(), "{error}");
}

#[test]
fn generating_stops_after_the_token_that_it_is_told_to_stop_at() {
    let (mut num_tokens, model) = (0, model(&config("top_k = 2")));
    let stop = |_: &str| {
        num_tokens += 1;
        if num_tokens == 2 { Err(std::io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    };
    let error = generate(&model, &Tokenizer::Bytes, &settings(None), &Device::flex(), stop).unwrap_err();
    assert!(matches!(error, TrainError::Interrupted), "{error}");
    assert_eq!(num_tokens, 2);
}

#[test]
fn soft_mixing_never_generates() {
    const SOFT: &str = "top_k = 2\nselection = { soft = {} }";
    let error = |routing| generated(SOFT, routing).unwrap_err();
    assert!(error(None).is_users_mistake());
    assert_eq!(error(None).to_string(), error(Some(GenerationRule::TopK)).to_string());
    insta::assert_snapshot!(error(None), @"text cannot be generated: `model.ffn.moe.router.selection.soft` mixes later tokens into every output, and there is no way to do without them. To generate, train with another selection");
}

#[test]
fn a_run_that_cannot_generate_ends_without_a_sample() {
    for (selection, has_sample) in [
        ("expert_choice = {}", false),
        ("expert_choice = { generation = \"top_k\" }", true),
        ("soft = {}", false),
    ] {
        let folder = TempDir::new().unwrap();
        let out = folder.path().join("run");
        let config = config(&format!("top_k = 2\nselection = {{ {selection} }}"));
        tiny::run(&with_steps(&config, 1, 1), &out, OpenMode::New).unwrap();
        assert_eq!(out.join("sample.txt").exists(), has_sample, "{selection}");
    }
}
