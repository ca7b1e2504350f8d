//! Hashes what decides a run's numbers, for the identity of runs: see `host::training_code_sha256`.

#[path = "build/sources.rs"]
mod sources;

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

fn main() {
    let root = Path::new("..");
    let mut hash = Sha256::new();
    for path in deciding_files(root) {
        let text = read(&path);
        let name = path.display().to_string().replace('\\', "/");
        add_field(&mut hash, name.as_bytes());
        add_field(&mut hash, sources::deciding_tokens(&text).unwrap_or(text).as_bytes());
    }
    let (manifest, lock) = (root.join("Cargo.toml"), root.join("Cargo.lock"));
    let needed = sources::dependencies(&read(&lock), &sources::PACKAGES);
    for setting in sources::settings(&read(&manifest), &needed).into_iter().chain(needed) {
        add_field(&mut hash, setting.as_bytes());
    }
    for path in [manifest, lock] {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    for setting in compiler_settings() {
        add_field(&mut hash, setting.as_bytes());
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    println!("cargo::rustc-env=SWITCHYARD_TRAINING_CODE_SHA256={hex}");
}

/// Every source that decides numbers, sorted.
fn deciding_files(root: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for name in sources::WHOLE_CRATES {
        collect_files(&root.join(name).join("src"), &mut paths);
        println!("cargo::rerun-if-changed=../{name}/src");
    }
    let own = root.join("trainer/src");
    let mut of_trainer = Vec::new();
    collect_files(&own, &mut of_trainer);
    println!("cargo::rerun-if-changed=src");
    let decides = |path: &PathBuf| {
        let below = path.strip_prefix(&own).unwrap_or(path);
        sources::decides_numbers(&below.display().to_string().replace('\\', "/"))
    };
    paths.extend(of_trainer.into_iter().filter(decides));
    paths.sort();
    paths
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// Every file below `folder`.
fn collect_files(folder: &Path, paths: &mut Vec<PathBuf>) {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("cannot read {}: {error}", folder.display()));
    for path in entries.map(|entry| entry.expect("an entry of a readable folder").path()) {
        if path.is_dir() { collect_files(&path, paths) } else { paths.push(path) }
    }
}

/// What else makes another program of the same sources: compiler, target, optimisation, flags and
/// features.
fn compiler_settings() -> Vec<String> {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let version = std::process::Command::new(rustc).arg("--version").output().map(|output| output.stdout);
    let mut settings = vec![String::from_utf8_lossy(&version.unwrap_or_default()).into_owned()];
    let names = ["TARGET", "OPT_LEVEL", "DEBUG", "CARGO_ENCODED_RUSTFLAGS"].map(String::from);
    let features = std::env::vars().map(|(name, _)| name).filter(|name| name.starts_with("CARGO_FEATURE_"));
    let mut names: Vec<String> = names.into_iter().chain(features).collect();
    names.sort();
    settings.extend(names.into_iter().map(|name| {
        let value = std::env::var(&name).unwrap_or_default();
        format!("{name}={value}")
    }));
    settings
}

/// With its length before it, so that two fields are not one.
fn add_field(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}
