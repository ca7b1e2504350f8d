//! Laws of attention heads that are made smaller where their logits grow too large.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Int, Tensor};
use switchyard_model::{
    AttentionBias, ModelInput, ParameterName, Pass, PassOptions, QkNorm, QkNormConfig, StepNoise,
    Transformer, parameter_tensors, update_parameters, with_scaled_logits,
};
use switchyard_trainer::checkpoint::Checkpoint;
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::run_folder::OpenMode;
use tempfile::TempDir;

use crate::muon::{latent, recurrent};
use crate::resume::{tensors, with_steps};
use crate::tiny;

fn table<T: serde::de::DeserializeOwned>(text: &str) -> T {
    toml::from_str(text).unwrap()
}

/// The network of `config` without dropout, with biases that are not zero and logits that are no
/// rounding.
fn network(config: &RunConfig) -> Transformer {
    let mut config = config.clone();
    config.model.dropout = 0.0;
    let plan = RunPlan::resolve(&config).unwrap();
    let network = Transformer::new(&plan.model, config.seed, &Device::flex().autodiff());
    update_parameters(network, |name, _, value_n| {
        let wave_n = Tensor::<1, Int>::arange(0..value_n.dims()[0] as i64, &value_n.device()).float();
        let is_bias = name.to_string().ends_with("bias");
        if is_bias { (wave_n * 0.7).sin() } else { value_n * 5.0 }
    })
}

/// The largest logits by layer and head.
fn max_logits(network: &Transformer, input: &ModelInput) -> BTreeMap<usize, Vec<f32>> {
    let noise = StepNoise::new(1, 0, 0);
    let output = network.forward(
        input,
        Pass::Training {
            noise,
            earlier: &[],
            options: PassOptions { measures_logits: true, ..PassOptions::default() },
        },
    );
    let host = |logits_h: Tensor<1>| logits_h.into_data().try_into_vec().unwrap();
    output.max_logits.into_iter().map(|(layer, logits_h)| (layer, host(logits_h))).collect()
}

fn ids(len: usize) -> Vec<i32> {
    (0..len as i32).map(|i| (i * 7 + i * i / 3) % 32).collect()
}

fn input(num_rows: usize, seq_len: usize) -> ModelInput {
    ModelInput::upload(ids(num_rows * seq_len), None, [num_rows, seq_len], &Device::flex())
}

/// Attention of every kind: a key head for each query head or for two, biases, a latent vector, other
/// positions, a window, a scale.
fn kinds() -> [RunConfig; 5] {
    let mut own_keys = tiny::dense();
    own_keys.model.attention_mut().num_kv_heads = None;
    own_keys.model.attention_mut().bias = AttentionBias::All;
    let mut shared_keys = tiny::dense();
    shared_keys.model.attention_mut().bias = AttentionBias::All;
    let mut other = tiny::dense();
    other.model.position = Some(table("[alibi]"));
    other.model.attention_mut().num_kv_heads = None;
    other.model.attention_mut().window = Some(table("len = 5"));
    other.model.attention_mut().scale = Some(0.8);
    let mut direct_queries = latent();
    if let Some(latent) = &mut direct_queries.model.attention_mut().latent {
        latent.d_query = None;
    }
    [own_keys, shared_keys, other, latent(), direct_queries]
}

/// One layer, whose input no factor changes.
#[test]
fn the_logits_of_a_head_are_its_factor_of_what_they_were_and_those_of_others_stay() {
    for (index, mut config) in kinds().into_iter().enumerate() {
        config.model.num_layers = 1;
        let input = input(2, 16);
        for factors in [[0.25, 1.0], [1.0, 0.04], [0.5, 0.3]] {
            let network = network(&config);
            let before = max_logits(&network, &input);
            let network = with_scaled_logits(network, &BTreeMap::from([(0, factors.to_vec())]));
            let after = max_logits(&network, &input);
            for (head, factor) in factors.iter().enumerate() {
                let (before, after) = (f64::from(before[&0][head]), f64::from(after[&0][head]));
                assert!(before > 0.01, "kind {index}: {before}");
                // f32, over sums of a dozen terms.
                let difference = (after - before * factor).abs();
                assert!(
                    difference < 1e-5 * before,
                    "kind {index}, head {head}: {after} is not {factor} of {before}"
                );
            }
        }
    }
}

#[test]
fn no_logit_is_measured_unless_it_is_asked_for() {
    let network = network(&tiny::dense());
    for pass in [Pass::training(StepNoise::new(1, 0, 0)), Pass::Evaluation, Pass::Generation] {
        assert!(network.forward(&input(1, 16), pass).max_logits.is_empty());
    }
}

#[test]
fn logits_of_padding_do_not_count() {
    let network = network(&tiny::dense());
    let real = ModelInput::upload(ids(16)[..9].to_vec(), None, [1, 9], &Device::flex());
    let segments = Some((0..16).map(|place| i32::from(place >= 9)).collect());
    let packed = ModelInput::upload(ids(16), segments, [1, 16], &Device::flex());
    let of_packed = max_logits(&network, &packed);
    let of_padded = max_logits(&network, &packed.with_padding(&[9]));
    let of_real = max_logits(&network, &real);
    assert_ne!(of_packed, of_real, "the places behind have no large logits: nothing would show");
    for (layer, of_real) in &of_real {
        for (found, real) in of_padded[layer].iter().zip(of_real) {
            assert!((found - real).abs() < 1e-5 * real, "layer {layer}: {found} is not {real}");
        }
    }
}

fn clipping(mut config: RunConfig, max_logit: f64) -> RunConfig {
    config.train.qk_clip = Some(table(&format!("max_logit = {max_logit:?}")));
    config
}

/// The largest logit and the number of clipped heads of each step.
fn measured(out: &Path) -> Vec<(f64, usize)> {
    let rows = tiny::rows(out);
    let steps = rows.iter().filter_map(|row| row.as_step());
    steps.map(|row| (row.max_attention_logit.unwrap(), row.clipped_heads.unwrap())).collect()
}

#[test]
fn a_limit_that_nothing_reaches_changes_nothing_and_one_that_is_reached_holds() {
    let folder = TempDir::new().unwrap();
    let run = |name: &str, config: &RunConfig| {
        let out = folder.path().join(name);
        tiny::run(&with_steps(config, 6, 1), &out, OpenMode::New).unwrap();
        out
    };
    let mut config = tiny::moe();
    config.model.init = table("std = 0.5");
    config.train.adamw.learning_rate = 1e-6;
    let plain = run("plain", &config);
    assert!(tiny::rows(&plain).iter().filter_map(|row| row.as_step()).all(|row| row.clipped_heads.is_none()));
    let far = run("far", &clipping(config.clone(), 1e6));
    assert!(tensors(&plain, 6) == tensors(&far, 6), "measuring changes something");
    let unclipped = measured(&far);
    assert!(unclipped.iter().all(|(logit, clipped)| *logit > 3.0 && *clipped == 0), "{unclipped:?}");
    let near = measured(&run("near", &clipping(config, 1.0)));
    // Two layers of two heads, before the first update as they were.
    assert_eq!(near[0], (unclipped[0].0, 4));
    // Other tokens have logits that are a little larger.
    assert!(near[1..].iter().all(|(logit, _)| *logit < 1.5), "{near:?}");
}

#[test]
fn a_resumed_run_clips_as_the_unbroken_one_bit_for_bit_with_any_number_of_threads() {
    let config = clipping(tiny::moe(), 0.01);
    let folder = TempDir::new().unwrap();
    let mut reference = None;
    for threads in [1, 2] {
        let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(format!("{name}-{threads}")));
        tiny::run(&with_steps(&config, 6, threads), &whole, OpenMode::New).unwrap();
        tiny::run(&with_steps(&config, 3, threads), &parts, OpenMode::New).unwrap();
        tiny::run(&with_steps(&config, 6, threads), &parts, OpenMode::Resume).unwrap();
        assert!(measured(&whole).iter().any(|(_, clipped)| *clipped > 0), "{:?}", measured(&whole));
        assert_eq!(tiny::rows(&whole), tiny::rows(&parts));
        let found = (tiny::rows(&whole), tensors(&whole, 6));
        assert!(found.1 == tensors(&parts, 6), "{threads} threads: stored tensors");
        assert!(*reference.get_or_insert(found.clone()) == found, "depends on the threads");
    }
}

fn values(network: &Transformer) -> BTreeMap<ParameterName, Vec<f32>> {
    let parameters = parameter_tensors(network).into_iter();
    parameters.map(|named| (named.name, named.value.values_n.into_data().try_into_vec().unwrap())).collect()
}

#[test]
fn a_layer_with_frozen_queries_is_not_clipped() {
    for frozen in ["blocks.0.attention.query.*", "blocks.0.attention.query.bias"] {
        check_not_clipped(frozen);
    }
}

/// Frozen are queries of the first layer, or their biases alone.
fn check_not_clipped(frozen: &str) {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut config = clipping(tiny::dense(), 1e-4);
    config.model.attention_mut().bias = AttentionBias::All;
    config.train.adamw.learning_rate = 1e-30;
    config.train.adamw.weight_decay = 0.0;
    config.train.groups = vec![table(&format!("match = \"{frozen}\"\nfreeze = true"))];
    tiny::run(&with_steps(&config, 1, 1), &out, OpenMode::New).unwrap();
    assert_eq!(measured(&out)[0].1, 2, "the heads of the other layer");
    let plan = RunPlan::resolve(&config).unwrap();
    let before = values(&Transformer::new(&plan.model, config.seed, &Device::flex()));
    let checkpoint = Checkpoint::read(&out.join("checkpoints/step-1")).unwrap();
    for (name, after) in values(&checkpoint.model(&Device::flex()).unwrap()) {
        // Two heads share their keys, so that queries alone are made smaller.
        let is_clipped = name.to_string() == "blocks.1.attention.query.weight";
        // The update itself moves a bias from zero by 1e-30.
        let has_moved =
            after.iter().zip(&before[&name]).any(|(after, before)| (after - before).abs() > 1e-20);
        assert_eq!(has_moved, is_clipped, "{frozen}: {name}");
    }
    config.train.groups = vec![table("match = \"*.query.weight\"\nfreeze = true")];
    let message = tiny::run(&config, &folder.path().join("none"), OpenMode::New).unwrap_err().to_string();
    assert!(message.contains("`train.qk_clip` has no head to clip"), "{message}");
}

#[test]
fn heads_that_clipping_would_not_change_are_refused() {
    let message = |change: &dyn Fn(&mut RunConfig)| {
        let mut config = clipping(tiny::dense(), 100.0);
        change(&mut config);
        RunPlan::resolve(&config).unwrap_err().to_string()
    };
    let normed = message(&|config| {
        config.model.attention_mut().qk_norm = QkNorm::On(QkNormConfig::default());
    });
    assert!(normed.contains("`train.qk_clip` has no effect beside `model.attention.qk_norm`"), "{normed}");
    let clamped = message(&|config| config.model.attention_mut().clip_qkv = Some(8.0));
    assert!(clamped.contains("beside `model.attention.clip_qkv`"), "{clamped}");
    let without = message(&|config| config.model = recurrent().model);
    assert!(without.contains("needs attention, and the model has none"), "{without}");
    let negative = message(&|config| config.train.qk_clip = Some(table("max_logit = -1.0")));
    assert!(negative.contains("`train.qk_clip.max_logit` is -1: use a number above 0"), "{negative}");
}
