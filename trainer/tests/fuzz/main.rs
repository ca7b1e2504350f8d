//! Damaged inputs of every format that this crate reads. How, and which variables there are:
//! [`engine`].
//!
//! ```text
//! SWITCHYARD_FUZZ=1000000 cargo test --workspace --test fuzz -- --ignored --nocapture
//! ```

mod checkpoint;
mod config;
#[path = "../../../datasets/tests/fuzz/engine/mod.rs"]
mod engine;
mod run_folder;
mod tiny_run;
mod toml_text;

use engine::Kind;
use engine::parent::{Campaign, run};

const KINDS: [Kind; 5] = [
    Kind { name: "recipe", share: 110, open: config::open },
    Kind { name: "overrides", share: 100, open: config::open_overrides },
    Kind { name: "checkpoint", share: 100, open: checkpoint::open },
    Kind { name: "run-folder", share: 60, open: run_folder::open },
    Kind { name: "resumed-run", share: 1, open: run_folder::open_resumed },
];

#[test]
fn a_sample_of_damaged_inputs_is_refused_or_read_without_a_panic() {
    run(&KINDS, &Campaign::sample(3_000), "a_sample_of_damaged_inputs_is_refused_or_read_without_a_panic");
}

#[test]
#[ignore = "takes minutes: `SWITCHYARD_FUZZ=1000000 cargo test --workspace --test fuzz -- --ignored --nocapture`"]
fn damaged_inputs_are_refused_or_read_without_a_panic() {
    run(&KINDS, &Campaign::from_environment(), "damaged_inputs_are_refused_or_read_without_a_panic");
}
