//! A router is what it is wherever it is written: in common for all layers, or for the layers that
//! an override names.

use std::fs;
use std::path::Path;

use switchyard_experts::{CapacityConfig, DropPolicy, RouterOverride};
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::flight::question::{AskedCapacity, RunAnswer, RunQuestion, ask};
use switchyard_trainer::generate::GenerationRule;
use switchyard_trainer::metrics::Record;
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::run_folder::OpenMode;
use tempfile::TempDir;

use crate::resume::with_steps;
use crate::routers::{ROUTERS, config, generated_by};
use crate::tiny;

/// Routers beside those of the runs: without a rule for generating, without an effect of some key,
/// or out of bounds.
const OTHERS: [&str; 11] = [
    "top_k = 2\nselection = { expert_choice = { capacity_factor = 1.7 } }",
    "top_k = 1\nselection = { soft = { slots_per_expert = 3 } }",
    "top_k = 2\nselection = { soft = { slots_per_expert = 99999999999 } }",
    "top_k = 2\ncosine = { d_projection = 99999999999 }",
    "top_k = 2\ncosine = { d_projection = 0 }",
    "top_k = 9",
    "top_k = 1",
    "top_k = 3\nselection = { random_second = {} }",
    "top_k = 2\nselection = { hash = {} }\nbias = { sign = {} }",
    "top_k = 2\nselection = { soft = {} }\nload_balancing_weight = 0.1",
    "top_k = 2\nload_balancing_scope = \"sequence\"",
];

/// Routers that stand in common where every layer has one of its own: nothing may be asked of them.
const UNUSED: [&str; 3] =
    ["top_k = 3", "top_k = 2\nselection = { soft = {} }", "top_k = 2\nsigmoid = {}\nbias = { sign = {} }"];

/// The tiny mixture with `common` as its router but in `layers`, which have `router`.
pub(crate) fn overridden(common: &str, layers: &[usize], router: &str) -> RunConfig {
    let mut config = config(common);
    let router = toml::from_str(router).unwrap();
    config.model.ffn.moe.as_mut().unwrap().router_overrides =
        vec![RouterOverride { layers: layers.to_vec(), router }];
    config
}

/// The same model with the router of both layers written in one override, and in two.
fn both_layers_overridden(common: &str, router: &str) -> [RunConfig; 2] {
    let one = overridden(common, &[0, 1], router);
    let mut two = overridden(common, &[0], router);
    let overrides = &mut two.model.ffn.moe.as_mut().unwrap().router_overrides;
    overrides.push(RouterOverride { layers: vec![1], ..overrides[0].clone() });
    [one, two]
}

/// A message without the place of the router that it is about.
fn placeless(message: &str) -> String {
    ["router_overrides[0].", "router_overrides[1]."]
        .into_iter()
        .fold(message.to_owned(), |message, place| message.replace(place, ""))
}

fn capacity() -> CapacityConfig {
    CapacityConfig {
        factor: 1.25,
        factor_per_expert: None,
        drop: DropPolicy::Position,
        evaluation_factor: None,
    }
}

/// What the plan says, or why there is none.
fn facts(config: &RunConfig) -> Result<(String, String, String), String> {
    let plan = RunPlan::resolve(config).map_err(|error| placeless(&error.to_string()))?;
    let numbers = format!("{:?} {:?}", plan.counts, plan.memory);
    Ok((placeless(&plan.describe()), numbers, placeless(&plan.notes.join("\n"))))
}

#[test]
fn a_model_whose_every_layer_is_overridden_is_planned_described_and_refused_as_the_one_with_that_router() {
    let mut num_refused = 0;
    for router in ROUTERS.map(|(_, router)| router).iter().chain(&OTHERS) {
        for capacity in [None, Some(capacity())] {
            let with_capacity = |mut config: RunConfig| {
                config.model.ffn.moe.as_mut().unwrap().capacity = capacity.clone();
                config
            };
            let expected = facts(&with_capacity(config(router)));
            num_refused += usize::from(expected.is_err());
            for common in UNUSED {
                for config in both_layers_overridden(common, router) {
                    assert_eq!(facts(&with_capacity(config)), expected, "{router} in place of {common}");
                }
            }
        }
    }
    // Nine of the others with and without a capacity; with one, also expert choice, soft mixing and
    // token rounding.
    assert_eq!(num_refused, 2 * 9 + 2 + 2 + 1);
}

/// Layers with what was recorded and asked, and why others have no answer.
type Answered = (Vec<(u32, String, String)>, Vec<String>);

/// Everything that a short run leaves, and what it answers afterwards.
#[derive(Debug, PartialEq)]
struct Outcome {
    rows: Vec<Record>,
    sample: Option<String>,
    answer: Result<Answered, String>,
}

fn outcome(config: &RunConfig, folder: &Path) -> Outcome {
    let mut config = with_steps(config, 2, 1);
    config.train.flight_recorder.scores_every_steps = 1;
    tiny::run(&config, folder, OpenMode::New).unwrap();
    let words = |answer: RunAnswer| {
        let layers = answer.layers.into_iter().map(|layer| {
            (layer.layer, format!("{:?} {:?}", layer.setting, layer.recorded), format!("{:?}", layer.asked))
        });
        let refusals = answer.refusals.into_iter().map(|refusal| placeless(&refusal.reason));
        (layers.collect(), refusals.collect())
    };
    Outcome {
        rows: tiny::rows(folder),
        sample: fs::read_to_string(folder.join("sample.txt")).ok(),
        answer: ask(folder, &RunQuestion::default())
            .map(words)
            .map_err(|error| placeless(&error.to_string())),
    }
}

#[test]
fn a_model_whose_every_layer_is_overridden_is_trained_asked_and_generated_from_as_the_one_with_that_router() {
    let mut num_answered = 0;
    for (name, router) in ROUTERS {
        let folder = TempDir::new().unwrap();
        let expected = outcome(&config(router), &folder.path().join("common"));
        num_answered += usize::from(expected.answer.is_ok());
        assert_eq!(expected.sample.is_some(), name != "soft", "{name}");
        let [one, two] = both_layers_overridden(UNUSED[2], router);
        assert!(outcome(&one, &folder.path().join("one")) == expected, "{name} in one override");
        assert!(outcome(&two, &folder.path().join("two")) == expected, "{name} in two overrides");
    }
    // "mixtral" and "switch": the others' choices take more than scores.
    assert_eq!(num_answered, 2);
}

#[test]
fn text_is_refused_wherever_the_router_that_needs_later_tokens_stands() {
    const CHOICE: &str = "top_k = 2\nselection = { expert_choice = {} }";
    const SOFT: &str = "top_k = 2\nselection = { soft = {} }";
    for router in [CHOICE, SOFT] {
        for routing in [None, Some(GenerationRule::TopK)] {
            let expected = generated_by(&config(router), routing).map_err(|error| error.to_string());
            for layers in [&[0][..], &[1], &[0, 1]] {
                let actual = generated_by(&overridden("top_k = 2", layers, router), routing);
                match &expected {
                    Ok(_) => assert!(actual.is_ok(), "{router} in {layers:?}: {actual:?}"),
                    Err(message) => {
                        let error = actual.unwrap_err().to_string();
                        assert!(error.contains("router_overrides[0].router.selection"), "{error}");
                        assert_eq!(placeless(&error), *message, "{router} in {layers:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_plan_names_the_layers_that_are_not_causal_and_those_without_a_capacity() {
    let plan = |layers: &[usize], selection: &str| {
        let mut config =
            overridden("top_k = 2", layers, &format!("top_k = 2\nselection = {{ {selection} = {{}} }}"));
        config.model.ffn.moe.as_mut().unwrap().capacity = Some(capacity());
        RunPlan::resolve(&config).unwrap()
    };
    let choice = plan(&[1], "expert_choice");
    insta::assert_snapshot!(choice.notes.join("\n"), @r"
    `model.ffn.moe.router_overrides[0].router.selection.expert_choice` in layer 1 is not causal: a token's experts depend on later tokens, so the validation loss sees what it should predict and does not compare with that of a causal router
    `model.ffn.moe.capacity` has no effect in layer 1, where `model.ffn.moe.router_overrides[0].router.selection` decides by itself how many tokens an expert takes
    ");
    let lines: Vec<String> = choice
        .describe()
        .lines()
        .filter(|line| line.starts_with("mixture") || line.contains("router  ") || line.contains("counted"))
        .map(str::to_owned)
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    mixture        4 SwiGLU experts of width 12, each token to 2, a shared expert of width 8, capacity factor 1.25
    router         softmax scores renormalised
    other router   in layer 1, each token to 2 on average, experts take their best tokens, capacity factor 1, not causal, softmax scores
                   counted: matrix products, a multiply and an add as two, attention as causal; training three times the forward pass
                   counted in layer 0: 2 experts per token, dropped assignments too
                   counted in layer 1: 2 experts per token, as each takes 32 of the 64 tokens of a micro-batch
    ");
    let soft = plan(&[0], "soft");
    assert!(soft.notes[0].contains("in layer 0 is not causal"), "{:?}", soft.notes);
    let words = soft.describe();
    assert!(
        words.contains("router         soft mixing") && words.contains("in layer 1, each token to 2"),
        "{words}"
    );
}

/// Layer 1 sends a token to one expert, layer 0 to two: without a question each layer gives back
/// what it recorded.
#[test]
fn each_layer_is_asked_about_its_own_router() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut config = with_steps(&overridden("top_k = 2", &[1], "top_k = 1\nrenormalise = false"), 2, 1);
    config.train.flight_recorder.scores_every_steps = 1;
    config.model.ffn.moe.as_mut().unwrap().capacity = Some(capacity());
    tiny::run(&config, &out, OpenMode::New).unwrap();
    let answer = ask(&out, &RunQuestion::default()).unwrap();
    assert_eq!(answer.layers.iter().map(|layer| layer.setting.top_k).collect::<Vec<_>>(), [2, 1]);
    for layer in &answer.layers {
        assert_eq!(layer.asked, layer.recorded, "layer {}", layer.layer);
        assert_eq!(layer.asked.tokens_per_expert.iter().sum::<u64>(), 128 * layer.setting.top_k as u64);
    }
    let question = RunQuestion { capacity: Some(AskedCapacity::Dropless), ..RunQuestion::default() };
    assert!(ask(&out, &question).unwrap().layers.iter().all(|layer| layer.asked.dropped_fraction == 0.0));
}

#[test]
fn a_layer_without_an_answer_is_named_and_keeps_no_other_from_answering() {
    for (router, key) in [
        ("top_k = 2\nsigmoid = {}\nbias = { sign = {} }", "bias"),
        ("top_k = 2\nselection = { soft = {} }", "selection.soft"),
    ] {
        let folder = TempDir::new().unwrap();
        let out = folder.path().join("run");
        let mut config = with_steps(&overridden("top_k = 2", &[1], router), 2, 1);
        config.train.flight_recorder.scores_every_steps = 1;
        tiny::run(&config, &out, OpenMode::New).unwrap();
        let answer = ask(&out, &RunQuestion::default()).unwrap();
        assert_eq!(answer.layers.iter().map(|layer| layer.layer).collect::<Vec<_>>(), [0]);
        assert_eq!(answer.layers[0].asked, answer.layers[0].recorded);
        assert_eq!(answer.refusals.iter().map(|refusal| refusal.layers.clone()).collect::<Vec<_>>(), [[1]]);
        let reason = &answer.refusals[0].reason;
        assert!(
            reason.contains(&format!("layer 1 has `model.ffn.moe.router_overrides[0].router.{key}`")),
            "{reason}"
        );
    }
}
