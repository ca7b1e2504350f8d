//! Damaged inputs of every format that this crate reads. How, and which variables there are:
//! [`engine`].
//!
//! ```text
//! SWITCHYARD_FUZZ=1000000 cargo test --workspace --test fuzz -- --ignored --nocapture
//! ```

mod engine;
#[cfg(target_os = "linux")] // Elsewhere the memory is not limited, and one of the pitfalls takes gigabytes.
mod pitfalls;
mod prepared;
mod text;
mod tokenizer;

use std::path::{Path, PathBuf};

use engine::Kind;
use engine::parent::{Campaign, run};

const KINDS: [Kind; 5] = [
    Kind { name: "tokenizer", share: 150, open: tokenizer::open },
    Kind { name: "jsonl", share: 180, open: text::open_lines },
    Kind { name: "compressed", share: 60, open: text::open_compressed },
    Kind { name: "token-ids", share: 148, open: prepared::open_token_ids },
    Kind { name: "cache", share: 90, open: prepared::open_cache },
];

/// Where the seeds of `target` lie.
fn corpus_folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target)
}

#[test]
fn a_sample_of_damaged_inputs_is_refused_or_read_without_a_panic() {
    run(&KINDS, &Campaign::sample(3_000), "a_sample_of_damaged_inputs_is_refused_or_read_without_a_panic");
}

#[test]
#[ignore = "takes minutes: `SWITCHYARD_FUZZ=1000000 cargo test --workspace --test fuzz -- --ignored --nocapture`"]
fn damaged_inputs_are_refused_or_read_without_a_panic() {
    run(&KINDS, &Campaign::from_environment(), "damaged_inputs_are_refused_or_read_without_a_panic");
}
