//! Hashes the sources that decide a run's numbers, for the identity of runs: see `host::training_code_sha256`.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The crates up to this one. What is above them reads results and decides none.
const CRATES: [&str; 7] = ["ground", "kernels/cpu", "kernels", "router", "experts", "datasets", "trainer"];

/// Files of the workspace that choose dependencies and compiler settings.
const OF_WORKSPACE: [&str; 2] = ["Cargo.toml", "Cargo.lock"];

fn main() {
    let root = Path::new("..");
    let mut paths: Vec<PathBuf> = OF_WORKSPACE.iter().map(|name| root.join(name)).collect();
    for name in CRATES {
        paths.push(root.join(name).join("Cargo.toml"));
        collect_files(&root.join(name).join("src"), &mut paths);
        println!("cargo::rerun-if-changed=../{name}/src");
    }
    paths.sort();
    let mut hash = Sha256::new();
    for path in &paths {
        println!("cargo::rerun-if-changed={}", path.display());
        let bytes = fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
        add_field(&mut hash, path.display().to_string().replace('\\', "/").as_bytes());
        add_field(&mut hash, &bytes);
    }
    for setting in compiler_settings() {
        add_field(&mut hash, setting.as_bytes());
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    println!("cargo::rustc-env=SWITCHYARD_TRAINING_CODE_SHA256={hex}");
}

/// Every file below `folder`.
fn collect_files(folder: &Path, paths: &mut Vec<PathBuf>) {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("cannot read {}: {error}", folder.display()));
    for path in entries.map(|entry| entry.expect("an entry of a readable folder").path()) {
        if path.is_dir() { collect_files(&path, paths) } else { paths.push(path) }
    }
}

/// What else makes another program of the same sources: compiler, target, optimisation, flags and features.
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
