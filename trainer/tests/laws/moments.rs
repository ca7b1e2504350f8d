//! Runs whose moments are bf16 between updates.

use std::fs;

use safetensors::{Dtype, SafeTensors};
use switchyard_trainer::checkpoint::Checkpoint;
use switchyard_trainer::config::{MomentType, RunConfig};
use switchyard_trainer::metrics::Record;
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::run_folder::OpenMode;
use tempfile::TempDir;

use crate::muon::with_muon;
use crate::resume::{
    assert_refused_on_resume, assert_resumes_for_any_number_of_threads, tensors, with_steps,
};
use crate::tiny;
use crate::untrusted::put;

fn in_bf16(mut config: RunConfig) -> RunConfig {
    config.train.adamw.moments = MomentType::Bf16;
    config
}

#[test]
fn a_resumed_run_with_bf16_moments_is_the_unbroken_one_for_any_number_of_threads() {
    let muon = with_muon(tiny::dense(), "", &[]);
    for (name, config) in [("dense", tiny::dense()), ("moe", tiny::moe()), ("muon", muon)] {
        assert_resumes_for_any_number_of_threads(name, &in_bf16(config));
    }
}

#[test]
fn only_adamws_moments_are_bf16_and_a_run_stays_near_the_one_in_f32() {
    let folder = TempDir::new().unwrap();
    let config = with_muon(tiny::moe(), "roles = [\"attention\"]", &[]);
    let [exact, rounded] = [config.clone(), in_bf16(config)].map(|config| {
        let out = folder.path().join(format!("{:?}", config.train.adamw.moments));
        tiny::run(&config, &out, OpenMode::New).unwrap();
        let [model, optimizer] = tensors(&out, 6);
        let moments = SafeTensors::deserialize(&optimizer).unwrap();
        for (name, moment) in moments.iter() {
            let is_rounded = config.train.adamw.moments == MomentType::Bf16 && !name.starts_with("momentum.");
            assert_eq!(moment.dtype(), if is_rounded { Dtype::BF16 } else { Dtype::F32 }, "{name}");
        }
        assert!(moments.names().iter().any(|name| name.starts_with("momentum.")));
        let parameters = SafeTensors::deserialize(&model).unwrap();
        assert!(parameters.iter().all(|(_, parameter)| parameter.dtype() == Dtype::F32));
        let losses = tiny::rows(&out);
        losses.iter().filter_map(Record::as_step).map(|row| row.cross_entropy_nats).collect::<Vec<_>>()
    });
    assert_eq!(exact[..1], rounded[..1], "the first step has no moments yet");
    assert_ne!(exact, rounded, "nothing is rounded");
    for (step, (exact, rounded)) in exact.iter().zip(&rounded).enumerate() {
        // A moment is off by at most 2^-8 of itself at each step, and six steps of 1e-2 move a logit
        // by some tenths.
        assert!((exact - rounded).abs() < 0.01, "step {step}: {rounded} instead of {exact}");
    }
}

#[test]
fn a_plan_with_bf16_moments_has_half_of_them_and_f32_by_name_is_the_default() {
    let text = |moments: &str| {
        let text = toml::to_string(&tiny::moe()).unwrap();
        let text = text.replace("[train.adamw]\n", &format!("[train.adamw]\n{moments}\n"));
        RunPlan::resolve(&tiny::parse(&text)).unwrap()
    };
    let [absent, f32, bf16] = ["", "moments = \"f32\"", "moments = \"bf16\""].map(text);
    let written = |plan: &RunPlan| toml::to_string(plan).unwrap();
    assert_eq!(written(&absent), written(&f32));
    assert!(!written(&f32).contains("moments = "));
    assert_ne!(written(&absent), written(&bf16));
    assert_eq!(absent.memory.moments_bytes, 8 * absent.counts.total_params);
    assert_eq!(bf16.memory.moments_bytes, 4 * absent.counts.total_params);
    assert!(bf16.describe().contains("AdamW, its moments in bf16"), "{}", bf16.describe());
    assert!(!absent.describe().contains("bf16"));
}

#[test]
fn moments_of_another_type_are_refused_by_key_and_by_tensor() {
    let folder = TempDir::new().unwrap();
    let exact = with_steps(&tiny::dense(), 3, 1);
    let rounded = in_bf16(exact.clone());
    for (index, (before, now, expected)) in [
        (&exact, &rounded, "`train.adamw.moments` is absent there and \"bf16\" now"),
        (&rounded, &exact, "`train.adamw.moments` is \"bf16\" there and absent now"),
    ]
    .into_iter()
    .enumerate()
    {
        let out = folder.path().join(format!("run-{index}"));
        assert_refused_on_resume((before, now), &out, expected);
    }
    // A checkpoint whose configuration says otherwise than its tensors.
    let step = folder.path().join("run-0/checkpoints/step-3");
    let config = step.join("config.toml");
    let changed = fs::read_to_string(&config)
        .unwrap()
        .replace("[train.adamw]\n", "[train.adamw]\nmoments = \"bf16\"\n");
    put(&step, "config.toml", changed.as_bytes());
    let checkpoint = Checkpoint::read(&step).unwrap();
    let model = checkpoint.model(&burn::tensor::Device::flex().autodiff()).unwrap();
    let message = checkpoint.optimizer(&model).unwrap_err().to_string();
    assert!(message.contains("is F32, not BF16"), "{message}");
}
