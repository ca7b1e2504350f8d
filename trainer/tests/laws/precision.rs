//! Runs whose products compute in bf16.

use std::path::Path;

use burn::tensor::Device;
use switchyard_model::{Compute, ModelInput, Pass, PassOptions, StepNoise, Transformer};
use switchyard_trainer::config::{ComputeType, RunConfig};
use switchyard_trainer::metrics::Record;
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::products::Products;
use switchyard_trainer::run_folder::{OpenMode, RunManifest, RunPaths};
use tempfile::TempDir;

use crate::resume::assert_resumes_for_any_number_of_threads;
use crate::tiny;

pub(crate) fn in_bf16(mut config: RunConfig) -> RunConfig {
    config.train.precision.compute = ComputeType::Bf16;
    config
}

fn losses(out: &Path) -> Vec<f64> {
    tiny::rows(out).iter().filter_map(Record::as_step).map(|row| row.cross_entropy_nats).collect()
}

#[test]
fn a_resumed_run_in_bf16_is_the_unbroken_one_for_any_number_of_threads() {
    for (name, config) in [("dense", tiny::dense()), ("moe", tiny::moe())] {
        assert_resumes_for_any_number_of_threads(name, &in_bf16(config));
    }
}

#[test]
fn a_run_in_bf16_rounds_and_stays_near_the_run_in_f32() {
    let folder = TempDir::new().unwrap();
    for (name, config) in [("dense", tiny::dense()), ("moe", tiny::moe())] {
        let [exact, rounded] = [config.clone(), in_bf16(config)].map(|config| {
            let out = folder.path().join(format!("{name}-{:?}", config.train.precision.compute));
            tiny::run(&config, &out, OpenMode::New).unwrap();
            losses(&out)
        });
        assert_ne!(exact, rounded, "{name}: nothing is rounded");
        for (step, (exact, rounded)) in exact.iter().zip(&rounded).enumerate() {
            // A logit is a sum of products that are rounded by 2.4e-3 of their size, which is at
            // most some units here.
            assert!((exact - rounded).abs() < 0.03, "{name}, step {step}: {rounded} instead of {exact}");
        }
    }
}

#[test]
fn f32_by_name_is_f32_without_a_name() {
    let text = |precision: &str| {
        let text = toml::to_string(&tiny::moe()).unwrap() + precision;
        toml::to_string(&RunPlan::resolve(&tiny::parse(&text)).unwrap()).unwrap()
    };
    assert_eq!(text("[train.precision]\ncompute = \"f32\"\n"), text(""));
    let in_bf16 = text("[train.precision]\ncompute = \"bf16\"\n");
    assert_ne!(in_bf16, text(""));
    assert_eq!(text("[train.precision]\ncompute = \"bf16\"\nmatrix_units = true\n"), in_bf16);
    assert_ne!(text("[train.precision]\ncompute = \"bf16\"\nmatrix_units = false\n"), in_bf16);
}

#[test]
fn a_default_key_of_precision_is_not_written() {
    let text = |config: &RunConfig| toml::to_string(config).unwrap();
    assert!(!text(&tiny::moe()).contains("train.precision"));
    let mut config = in_bf16(tiny::moe());
    assert!(!text(&config).contains("matrix_units"));
    config.train.precision.matrix_units = false;
    assert_eq!(tiny::parse(&text(&config)).train.precision, config.train.precision);
}

/// What multiplies is in `run.json`; without matrix units it has the bits of every machine.
#[test]
fn a_run_says_what_multiplied() {
    let folder = TempDir::new().unwrap();
    let mut portable = in_bf16(tiny::moe());
    portable.train.precision.matrix_units = false;
    let of = |name: &str, config: &RunConfig| {
        let out = folder.path().join(name);
        tiny::run(config, &out, OpenMode::New).unwrap();
        (RunManifest::read(&RunPaths::new(&out).manifest()).unwrap().products.unwrap(), losses(&out))
    };
    let (f32, _) = of("f32", &tiny::moe());
    let (rounded, rounded_losses) = of("bf16", &in_bf16(tiny::moe()));
    let (portable, portable_losses) = of("portable", &portable);
    assert_eq!((f32, rounded), (Products::F32, Products::of(Compute::Bf16)));
    assert!(portable.has_bits_of(Products::RoundedF32));
    assert_eq!(rounded_losses == portable_losses, rounded.has_bits_of(portable), "{rounded:?}, {portable:?}");
}

#[test]
fn training_alone_rounds_and_evaluation_does_not() {
    let mut config = in_bf16(tiny::dense());
    config.model.dropout = 0.0;
    let device = Device::flex();
    let model = Transformer::new(&RunPlan::resolve(&config).unwrap().model, config.seed, &device);
    let ids = (0..64).map(|i| (i * 7 + i * i) % 32).collect();
    let input = ModelInput::upload(ids, None, [4, 16], &device);
    let hidden = |pass| model.forward(&input, pass).hidden_td.into_data().iter::<f32>().collect::<Vec<_>>();
    let noise = StepNoise::new(0, 0, 0);
    let training = |compute| {
        let options = PassOptions { compute, ..PassOptions::default() };
        hidden(Pass::Training { noise, earlier: &[], options })
    };
    assert_eq!(training(Compute::F32), hidden(Pass::Evaluation));
    assert_ne!(training(Compute::Bf16), hidden(Pass::Evaluation));
}
