//! Checkpoints from elsewhere, whose hashes agree with whatever was put into them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::resume::with_steps;
use crate::tiny;
use burn::tensor::Device;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use switchyard_trainer::checkpoint::{Checkpoint, CheckpointError, CheckpointManifest, read_state};
use switchyard_trainer::run_folder::OpenMode;
use tempfile::TempDir;

/// A checkpoint that the tests change copies of.
fn original() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = TempDir::new().unwrap();
        tiny::run(&with_steps(&tiny::moe(), 3, 1), &folder.path().join("run"), OpenMode::New).unwrap();
        folder
    });
    static STEP: OnceLock<PathBuf> = OnceLock::new();
    STEP.get_or_init(|| folder.path().join("run/checkpoints/step-3"))
}

/// A copy of the checkpoint.
fn copy() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let step = folder.path().join("step-3");
    fs::create_dir(&step).unwrap();
    for entry in fs::read_dir(original()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), step.join(entry.file_name())).unwrap();
    }
    (folder, step)
}

/// Puts `bytes` into file `name`, and their hash into the manifest.
pub(crate) fn put(step: &Path, name: &str, bytes: &[u8]) {
    fs::write(step.join(name), bytes).unwrap();
    let sha256: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    change_json(step, "manifest.json", |manifest| {
        manifest["files"][name] = json!({ "bytes": bytes.len(), "sha256": sha256 });
    });
}

fn change_json(step: &Path, name: &str, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value = serde_json::from_slice(&fs::read(step.join(name)).unwrap()).unwrap();
    change(&mut value);
    let bytes = serde_json::to_vec(&value).unwrap();
    fs::write(step.join(name), &bytes).unwrap();
    bytes
}

/// Everything that a checkpoint is used for; the first error.
fn used(step: &Path) -> Result<(), CheckpointError> {
    let checkpoint = Checkpoint::read(step)?;
    let model = checkpoint.model(&Device::flex().autodiff())?;
    checkpoint.optimizer(&model).map(drop)
}

#[test]
fn the_checkpoint_is_good_before_it_is_changed() {
    used(&copy().1).unwrap();
}

#[test]
fn a_plan_that_is_not_its_configurations_is_damage() {
    let changes: [(&str, Value); 6] = [
        ("/d_model", json!(0)),
        ("/d_model", json!(1u64 << 40)),
        ("/layers/0/mixer/attention/num_heads", json!(0)),
        ("/vocab_size", json!(0)),
        ("/max_seq_len", json!(0)),
        ("/layers", json!(["dense"])),
    ];
    for (key, value) in changes {
        let (_folder, step) = copy();
        let bytes = change_json(&step, "plan.json", |plan| {
            *plan["model"].pointer_mut(key).unwrap() = value.clone();
        });
        put(&step, "plan.json", &bytes);
        let message = used(&step).unwrap_err().to_string();
        assert!(message.contains("plan.json") && message.contains("damaged"), "{key} = {value}: {message}");
    }
}

#[test]
fn a_configuration_that_asks_for_a_larger_model_than_there_is_is_refused_before_it_is_made() {
    let (_folder, step) = copy();
    let huge = |text: String| {
        text.replace("d_expert = 12", "d_expert = 200000").replace("num_experts = 4", "num_experts = 16000")
    };
    let config = huge(fs::read_to_string(step.join("config.toml")).unwrap());
    put(&step, "config.toml", config.as_bytes());
    let plan = switchyard_trainer::plan::RunPlan::resolve(&toml::from_str(&config).unwrap()).unwrap();
    put(&step, "plan.json", &serde_json::to_vec(&plan).unwrap());
    let message = used(&step).unwrap_err().to_string();
    assert!(message.contains("parameters, the model needs"), "{message}");
}

#[test]
fn counters_that_do_not_agree_are_damage() {
    for (key, value) in [
        ("data_cursor", json!(u64::MAX)),
        ("data_cursor", json!(0)),
        ("tokens_seen", json!(1)),
        ("step", json!(4)),
        ("rng", json!({ "seed": 1, "next_step": 3 })),
        ("train_secs", json!(-1.0)),
    ] {
        let (_folder, step) = copy();
        let bytes = change_json(&step, "state.json", |state| state[key] = value.clone());
        put(&step, "state.json", &bytes);
        let message = used(&step).unwrap_err().to_string();
        assert!(message.contains("state.json") && message.contains("damaged"), "{key} = {value}: {message}");
        assert_eq!(key == "step", read_state(&step).is_err());
    }
}

/// The tensors of file `name` as `change` leaves them.
fn change_tensors(step: &Path, name: &str, change: impl Fn(&str, &mut Vec<usize>, &mut Vec<u8>) -> bool) {
    let bytes = fs::read(step.join(name)).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .filter_map(|(name, view)| {
            let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
            change(&name, &mut shape, &mut data).then_some((name, shape, data))
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, data)| (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    put(step, name, &safetensors::serialize(views, None).unwrap());
}

#[test]
fn parameters_and_moments_are_compared_with_the_model() {
    let cut = |shape: &mut Vec<usize>, data: &mut Vec<u8>| {
        *shape = vec![1];
        data.truncate(4);
    };
    for (file, prefix) in [("model.safetensors", ""), ("optimizer.safetensors", "second.")] {
        let norm = format!("{prefix}blocks.0.attention_norm.weight");
        let all = change_names(file);
        let norm = all.iter().find(|name| **name == norm).unwrap_or(&all[all.len() - 1]).clone();
        let (_folder, step) = copy();
        change_tensors(&step, file, |name, _, _| name != norm);
        let missing = used(&step).unwrap_err().to_string();
        assert!(missing.contains("is missing") || missing.contains("the model needs"), "{missing}");

        let (_folder, step) = copy();
        change_tensors(&step, file, |name, shape, data| {
            if name == norm {
                cut(shape, data);
            }
            true
        });
        let shape = used(&step).unwrap_err().to_string();
        assert!(shape.contains("shape") || shape.contains("the model needs"), "{shape}");

        let (_folder, step) = copy();
        change_tensors(&step, file, |name, _, data| {
            if name == norm {
                data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
            }
            true
        });
        let nan = used(&step).unwrap_err().to_string();
        assert!(nan.contains(&norm) && nan.contains("NaN"), "{nan}");
    }
    let (_folder, step) = copy();
    change_tensors(&step, "optimizer.safetensors", |_, _, _| false);
    let none = used(&step).unwrap_err().to_string();
    assert!(none.contains("a moment of") && none.contains("is missing"), "{none}");
}

fn change_names(file: &str) -> Vec<String> {
    let bytes = fs::read(original().join(file)).unwrap();
    let mut names: Vec<String> =
        SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(str::to_string).collect();
    names.sort();
    names
}

#[test]
fn a_manifest_leads_nowhere_outside_its_folder() {
    for name in ["../victim", "/etc/passwd", "..", "sub/file", "other.json", "step-3/../../victim"] {
        let (folder, step) = copy();
        fs::write(folder.path().join("victim"), "mine").unwrap();
        change_json(&step, "manifest.json", |manifest| {
            manifest["files"][name] = json!({ "bytes": 4, "sha256": "" });
        });
        let message = CheckpointManifest::read(&step).unwrap_err().to_string();
        assert!(message.contains("which is no file of a checkpoint"), "{message}");
        assert!(
            !message.contains("folder /etc") && message.contains(&format!("folder {}", step.display())),
            "{message}"
        );
    }
}

#[cfg(unix)]
#[test]
fn pipes_devices_and_sizes_are_noticed_before_anything_is_read() {
    for name in ["state.json", "model.safetensors"] {
        let (_folder, step) = copy();
        fs::remove_file(step.join(name)).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(step.join(name)).status().unwrap().success());
        let message = used(&step).unwrap_err().to_string();
        assert!(message.contains("not a regular file"), "{message}");

        let (_folder, step) = copy();
        fs::OpenOptions::new().write(true).open(step.join(name)).unwrap().set_len(1 << 40).unwrap();
        let message = used(&step).unwrap_err().to_string();
        assert!(message.contains("it has 1099511627776 bytes"), "{message}");
        change_json(&step, "manifest.json", |manifest| manifest["files"][name]["bytes"] = json!(1u64 << 40));
        if name == "state.json" {
            let message = used(&step).unwrap_err().to_string();
            assert!(message.contains("more than"), "{message}");
        }
    }
}
