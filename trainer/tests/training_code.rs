//! What makes another program of the training code, and what does not.

#![expect(clippy::unwrap_used, reason = "functions of a test fail as the test does")]

#[path = "../build/sources.rs"]
mod sources;

use sources::{PACKAGES, REPORTING, WHOLE_CRATES, decides_numbers, deciding_tokens, dependencies, settings};

const CODE: &str = r#"
//! A module.

/// Twice the number.
pub fn twice(x: f64) -> Result<f64, Error> {
    // In floating point.
    let key = format!("{x}.gate");
    if x.is_nan() { return Err(Error::new("it is no number")); }
    Ok(x * 2.0)
}

#[derive(Debug, thiserror::Error)]
#[error("cannot double {0}: give a number")]
struct Error(String);

#[cfg(test)]
mod tests {
    #[test]
    fn two_is_four() {}
}
"#;

fn changed(from: &str, to: &str) -> bool {
    assert!(CODE.contains(from), "{from}");
    deciding_tokens(CODE).unwrap() != deciding_tokens(&CODE.replace(from, to)).unwrap()
}

#[test]
fn comments_documents_messages_and_tests_make_no_other_program() {
    let same = [
        ("//! A module.", "//! A module of numbers."),
        ("/// Twice the number.", "/// The number twice."),
        ("    // In floating point.\n", ""),
        ("it is no number", "use a number"),
        ("cannot double {0}: give a number", "no number: {0}"),
        ("fn two_is_four() {}", "fn two_is_four() { assert_eq!(2 + 2, 4); }"),
        ("x * 2.0", "x  *  2.0"),
    ];
    for (from, to) in same {
        assert!(!changed(from, to), "{from} -> {to}");
    }
}

#[test]
fn operations_numbers_and_names_make_another_program() {
    for (from, to) in
        [("x * 2.0", "x * 2.5"), ("x * 2.0", "x + 2.0"), ("{x}.gate", "{x}.up"), ("twice", "two")]
    {
        assert!(changed(from, to), "{from} -> {to}");
    }
}

#[test]
fn every_file_and_crate_that_is_named_is_there() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/");
    for name in REPORTING {
        assert!(std::path::Path::new(&format!("{folder}{name}")).exists(), "{name}");
    }
    let lock = include_str!("../../Cargo.lock");
    for (name, package) in WHOLE_CRATES.iter().zip(PACKAGES) {
        assert!(std::path::Path::new(&format!("{folder}../../{name}/src")).exists(), "{name}");
        assert!(dependencies(lock, &[package]).len() > 1, "{package}");
    }
    assert!(!decides_numbers("flight/mod.rs") && !decides_numbers("error.rs"));
    assert!(decides_numbers("step.rs") && decides_numbers("plan/model.rs"));
}

#[test]
fn only_the_dependencies_of_what_computes_count() {
    let lock = "[[package]]\nname = \"ours\"\nversion = \"0.1.0\"\ndependencies = [\n \"burn\",\n \"rand 0.9.1\",\n]\n\n\
                [[package]]\nname = \"burn\"\nversion = \"1.2.3\"\n\n[[package]]\nname = \"rand\"\nversion = \"0.9.1\"\n\n\
                [[package]]\nname = \"maud\"\nversion = \"0.1.1\"\n";
    let needed = dependencies(lock, &["ours"]);
    assert_eq!(needed, ["burn 1.2.3", "ours 0.1.0", "rand 0.9.1"]);
    let manifest = "[workspace]\nmembers = []\n[workspace.dependencies]\n# Pinned.\nburn = \"=1.2.3\"\nmaud = \"0.1\"\n\
                    [profile.release]\nlto = \"fat\"\n";
    assert_eq!(settings(manifest, &needed), ["burn = \"=1.2.3\"", "[profile.release]", "lto = \"fat\""]);
}
