//! Every family against transformers: tiny models with their logits, routing, loss, gradients and
//! the loss after a step.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use switchyard_trainer::parity::{Parity, parity};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Differences that f32 arithmetic in another order makes. transformers' own f32 is up to 6.5e-6 of
/// the largest logit away from f64.
#[track_caller]
fn assert_close(parity: &Parity) {
    let share = parity.logits_max_abs_diff.unwrap() / parity.logits_max_abs.unwrap();
    assert!(share <= 1e-5, "logits {share:e} off: {parity:?}");
    assert_eq!(parity.routing_mismatches.unwrap_or(0), 0, "{parity:?}");
    assert!(parity.gradient_max_rel_diff.unwrap_or(0.0) <= 1e-4, "{parity:?}");
    assert!(parity.loss_abs_diff.unwrap_or(0.0) <= 1e-5, "{parity:?}");
    assert!(parity.loss_after_step_abs_diff.unwrap_or(0.0) <= 1e-5, "{parity:?}");
}

#[test]
fn every_family_has_the_reference_outputs_gradients_and_step() {
    let root = std::env::var_os("PARITY_FIXTURES").map_or_else(|| folder(""), PathBuf::from);
    let mut failures = Vec::new();
    let mut names: Vec<_> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    for path in names.into_iter().filter(|path| path.join("io.safetensors").exists()) {
        match std::panic::catch_unwind(|| parity(&path, &Device::flex())) {
            Ok(Ok(parity)) => {
                println!("{}: {}", path.display(), serde_json::to_string(&parity).unwrap());
                if std::panic::catch_unwind(|| assert_close(&parity)).is_err() {
                    failures.push(path);
                }
            }
            Ok(Err(error)) => {
                println!("{}: ERROR {error}", path.display());
                failures.push(path);
            }
            Err(_) => failures.push(path),
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
}
