//! Damaged inputs by the million: a mutation engine that is a pure function of a seed, and the
//! harness that judges what our crates do with each input. The `fuzz` tests of `datasets` and
//! `trainer` share it.
//!
//! | file | does |
//! |---|---|
//! | [`mutation`], [`json`] | make an input from the seeds of a corpus: blindly, and along the structure of JSON |
//! | [`child`] | runs the inputs of one target in a process of its own, with a watchdog |
//! | [`parent`] | starts those processes under a memory limit, starts again behind an input that ended one, prints the table |
//! | [`panics`] | sees every panic, caught or not, and whose it is |
//!
//! What must hold for each input: it is accepted or refused with a message; no code of ours panics,
//! not even where the panic is caught; it ends in time and within the memory limit; and what the
//! target itself demands.
//!
//! | variable | means | default |
//! |---|---|---|
//! | `SWITCHYARD_FUZZ` | inputs over all targets of both crates together | 1,000,000 |
//! | `SWITCHYARD_FUZZ_SEED` | number that all inputs follow from | 0 |
//! | `SWITCHYARD_FUZZ_ONLY` | a target, or `target/index` for one input, which is saved | all |
//! | `SWITCHYARD_FUZZ_FOUND` | folder for inputs that failed; as `corpus/<target>` they become seeds | in the build folder |

pub(crate) mod child;
pub(crate) mod json;
pub(crate) mod mutation;
pub(crate) mod panics;
pub(crate) mod parent;

use std::fs;
use std::path::{Path, PathBuf};

pub(crate) use rand::rngs::ChaCha8Rng as Random;

/// One damaged input: the files that it consists of, by name. They are what is saved when it fails.
#[derive(Debug, Clone, Default)]
pub(crate) struct Input {
    /// Name and content; a name may hold `/`, never `..`.
    pub(crate) files: Vec<(String, Vec<u8>)>,
}

impl Input {
    /// Writes its files to `folder`.
    pub(crate) fn write(&self, folder: &Path) {
        for (name, bytes) in &self.files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().expect("a file lies in a folder"))
                .expect("a folder for an input");
            fs::write(&path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}

/// What became of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Taken and used.
    Accepted,
    /// Refused with this message.
    Refused(String),
    /// Against a law that the target states.
    Broken(String),
}

impl Verdict {
    /// Accepted or refused, as `result` says.
    pub(crate) fn of<T, E: std::fmt::Display>(result: &Result<T, E>) -> Self {
        match result {
            Ok(_) => Self::Accepted,
            Err(error) => Self::Refused(error.to_string()),
        }
    }
}

/// One kind of input, and what reads it.
pub(crate) trait Target {
    /// An input; the first few indices are the seeds as they are.
    fn input(&self, index: u64, random: &mut Random) -> Input;
    /// What our code makes of `input`.
    fn run(&self, input: &Input) -> Verdict;
}

/// A target before it is opened.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    /// Name in the table and in `corpus/`.
    pub(crate) name: &'static str,
    /// Inputs of it among [`SHARES`] of all targets of both crates.
    pub(crate) share: u64,
    /// Opens it; the folder is empty, in memory where the system has one there, and its own.
    pub(crate) open: fn(&Path) -> Box<dyn Target>,
}

/// Sum of the shares of all targets of both crates.
pub(crate) const SHARES: u64 = 1000;

/// A file of a corpus.
#[derive(Debug, Clone)]
pub(crate) struct Seed {
    /// Path below the corpus' folder.
    pub(crate) name: String,
    /// Content.
    pub(crate) bytes: Vec<u8>,
}

/// The files below `folder`, in the order of their paths.
pub(crate) fn corpus(folder: &Path) -> Vec<Seed> {
    let mut paths = Vec::new();
    collect(folder, &mut paths);
    paths.sort();
    let seed = |path: PathBuf| Seed {
        name: path.strip_prefix(folder).expect("below it").to_string_lossy().into_owned(),
        bytes: fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
    };
    let seeds: Vec<Seed> = paths.into_iter().map(seed).collect();
    assert!(!seeds.is_empty(), "no seed in {}", folder.display());
    seeds
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let path = entry.expect("an entry of the corpus").path();
        if path.is_dir() { collect(&path, paths) } else { paths.push(path) }
    }
}

/// Removes whatever is in `folder`.
pub(crate) fn empty(folder: &Path) {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
}
