//! Every family against transformers, the first DeepSeekMoE against its paper: tiny models with their logits, routing, loss, gradients and
//! the loss after a step. `meta.json` beside each says by which versions it was made.

#![expect(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use switchyard_hub::Family;
use switchyard_trainer::parity::parity;

fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folders = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = folders.filter(|path| path.join("io.safetensors").exists()).collect();
    folders.sort();
    folders
}

#[test]
fn every_family_has_the_reference_outputs_gradients_and_step() {
    let mut faults = Vec::new();
    let mut seen = Vec::new();
    for folder in fixtures() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let parity = parity(&folder, &Device::flex()).unwrap_or_else(|error| panic!("{name}: {error}"));
        faults.extend(parity.beyond_limits().into_iter().map(|fault| format!("{name}: {fault}")));
        assert!(parity.logits_max_abs_diff.is_some() && parity.hidden_max_abs_diff.is_some(), "{name}");
        assert_eq!(parity.gates_max_abs_diff.is_some(), parity.routed_tokens.is_some(), "{name}");
        assert_eq!(parity.routing_mismatches, Some(0), "{name}");
        let trains = folder.join("train.safetensors").exists();
        assert_eq!(parity.gradient_max_rel_diff.is_some(), trains, "{name}");
        assert_eq!(parity.loss_after_step_abs_diff.is_some(), trains, "{name}");
        seen.push(parity.family);
    }
    assert!(faults.is_empty(), "{faults:#?}");
    for family in Family::ALL {
        assert!(seen.contains(&family.names().0), "{family:?} has no reference");
    }
}
