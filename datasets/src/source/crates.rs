//! The default corpus: Rust code and documentation that every machine which built Switchyard
//! already holds.
//!
//! cargo leaves the archive of each dependency in its cache; the lockfile, compiled in here, pins
//! each by sha256. So the corpus is the same everywhere, needs no download and redistributes
//! nothing.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use switchyard_ground::regular_file;

use super::{Content, Document, Visit};
use crate::config::CratesConfig;
use crate::error::DatasetError;
use switchyard_ground::digest::hex;

const LOCKFILE: &str = include_str!("../../../Cargo.lock");

/// Files from this size on are generated tables rather than text that somebody wrote.
const MAX_FILE_BYTES: u64 = 400_000;

/// Far more than any archive of the corpus has.
const MAX_ARCHIVE_BYTES: u64 = 64 << 20;

/// The crates that make up the corpus; the index is the domain.
///
/// Chosen from what `cargo tree -p switchyard -e normal,build` lists alike for Linux, macOS and
/// Windows with default features, so that a plain `cargo build` on any of them fetches every one.
/// Each occurs in one version only, so its name picks one archive. Left out: crates that are mostly
/// tables or bindings. Together about 23 MB in 2,100 files;
/// `cargo test -p switchyard-datasets --test crates_corpus` prints the numbers of the present
/// lockfile.
pub(super) const CRATE_NAMES: [&str; 50] = [
    "aho-corasick",
    "anyhow",
    "bitflags",
    "burn",
    "burn-autodiff",
    "burn-backend",
    "burn-core",
    "burn-flex",
    "burn-ir",
    "burn-nn",
    "burn-std",
    "burn-tensor",
    "bytes",
    "clap",
    "clap_builder",
    "clap_derive",
    "crossbeam-deque",
    "crossbeam-epoch",
    "crossbeam-utils",
    "either",
    "fancy-regex",
    "flate2",
    "indexmap",
    "indicatif",
    "lock_api",
    "log",
    "memchr",
    "num-traits",
    "once_cell",
    "parking_lot",
    "rayon",
    "rayon-core",
    "regex",
    "regex-automata",
    "schemars",
    "semver",
    "serde",
    "serde_core",
    "serde_derive",
    "serde_json",
    "smallvec",
    "tar",
    "tempfile",
    "tokenizers",
    "toml",
    "toml_parser",
    "tracing-attributes",
    "tracing-core",
    "tracing-subscriber",
    "winnow",
];

#[derive(Deserialize)]
struct Lockfile {
    package: Vec<LockedPackage>,
}

#[derive(Deserialize)]
struct LockedPackage {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// One archive of the corpus.
struct PinnedArchive {
    domain: u16,
    /// `NAME-VERSION`, the stem of the archive and the folder inside it.
    stem: String,
    sha256: String,
}

/// The archives that the lockfile pins; none is opened before [`CratesSource::for_each`].
pub(crate) struct CratesSource {
    archives: Vec<PinnedArchive>,
    max_bytes: Option<u64>,
    cache: PathBuf,
}

impl CratesSource {
    /// The corpus in cargo's cache: `$CARGO_HOME`, else `.cargo` in the home folder.
    pub(crate) fn open(config: &CratesConfig) -> Result<Self, DatasetError> {
        let home = std::env::var_os("CARGO_HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let home = home.or_else(|| std::env::home_dir().map(|user| user.join(".cargo")));
        Self::in_cargo_home(config, &home.unwrap_or_else(|| PathBuf::from(".cargo")))
    }

    /// The corpus in the cache of the cargo home `home`.
    pub(super) fn in_cargo_home(config: &CratesConfig, home: &Path) -> Result<Self, DatasetError> {
        Ok(Self {
            archives: pinned_archives(LOCKFILE)?,
            max_bytes: config.max_bytes,
            cache: home.join("registry").join("cache"),
        })
    }

    pub(super) fn identify(&self, hasher: &mut Sha256) {
        hasher.update(format!("crates max_bytes={:?} max_file_bytes={MAX_FILE_BYTES}\n", self.max_bytes));
        for archive in &self.archives {
            hasher.update(format!("{} {}\n", archive.stem, archive.sha256));
        }
    }

    pub(super) fn domain_names(&self) -> Vec<String> {
        CRATE_NAMES.map(str::to_owned).to_vec()
    }

    pub(super) fn description(&self) -> String {
        let limit = self.max_bytes.map_or(String::new(), |bytes| format!(", at most {bytes} bytes"));
        format!("source and documentation of {} crates{limit}", self.archives.len())
    }

    /// Documents ordered by crate name and path inside the archive; of several with the same
    /// content, the first.
    pub(super) fn for_each(&self, visit: &mut Visit<'_>) -> Result<(), DatasetError> {
        let paths = self.locate()?;
        let kept = match self.max_bytes {
            Some(max_bytes) => Some(self.choose(&paths, max_bytes)?),
            None => None,
        };
        let mut seen = HashSet::new();
        for (archive, path) in self.archives.iter().zip(&paths) {
            for document in read_archive(archive, path)? {
                let hash = document.hash();
                if kept.as_ref().is_none_or(|kept| kept.contains(&hash)) && seen.insert(hash) {
                    visit(document)?;
                }
            }
        }
        Ok(())
    }

    /// Path of each archive.
    ///
    /// # Errors
    /// The missing ones, all in one message.
    fn locate(&self) -> Result<Vec<PathBuf>, DatasetError> {
        // One folder per registry address; a mirror has another name than the original.
        let mut registries: Vec<PathBuf> = match std::fs::read_dir(&self.cache) {
            Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
            Err(_) => Vec::new(),
        };
        registries.sort();
        let mut paths = Vec::new();
        let mut missing = Vec::new();
        for PinnedArchive { stem, .. } in &self.archives {
            let candidates = registries.iter().map(|registry| registry.join(format!("{stem}.crate")));
            match candidates.into_iter().find(|path| path.is_file()) {
                Some(path) => paths.push(path),
                None => missing.push(stem.as_str()),
            }
        }
        if missing.is_empty() {
            return Ok(paths);
        }
        let more = missing.len().saturating_sub(3);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        Err(DatasetError::MissingArchives {
            cache: self.cache.clone(),
            num_missing: missing.len(),
            num_wanted: self.archives.len(),
            names: format!("{}{more}", missing[..missing.len().min(3)].join(", ")),
        })
    }

    /// Hashes of the documents that fit into `max_bytes`. Taken in the order of their hashes read
    /// backwards, which is unrelated to crate and path, so that each crate keeps about its share.
    fn choose(&self, paths: &[PathBuf], max_bytes: u64) -> Result<HashSet<[u8; 32]>, DatasetError> {
        let mut bytes_by_hash = BTreeMap::new();
        for (archive, path) in self.archives.iter().zip(paths) {
            for document in read_archive(archive, path)? {
                // Backwards, because the split looks at the front: the smallest hashes are all
                // validation.
                let mut backwards = document.hash();
                backwards.reverse();
                bytes_by_hash.insert(backwards, document.len());
            }
        }
        let mut total_bytes = 0;
        let fits = bytes_by_hash.into_iter().take_while(|(_, num_bytes)| {
            total_bytes += num_bytes;
            total_bytes <= max_bytes
        });
        let restored = fits.map(|(mut hash, _)| {
            hash.reverse();
            hash
        });
        Ok(restored.collect())
    }
}

/// The corpus' archives as `lockfile` pins them, in the order of [`CRATE_NAMES`].
fn pinned_archives(lockfile: &str) -> Result<Vec<PinnedArchive>, DatasetError> {
    let parsed: Lockfile = toml::from_str(lockfile)
        .map_err(|error| DatasetError::Lockfile { problem: format!("cannot be read ({error})") })?;
    let pin = |(domain, name): (usize, &&str)| {
        let mut versions = parsed.package.iter().filter(|package| package.name == *name);
        let (first, second) = (versions.next(), versions.next());
        match (first, second) {
            (Some(LockedPackage { version, checksum: Some(sha256), .. }), None) => Ok(PinnedArchive {
                domain: domain as u16,
                stem: format!("{name}-{version}"),
                sha256: sha256.clone(),
            }),
            (Some(_), Some(_)) => {
                Err(DatasetError::Lockfile { problem: format!("has several versions of `{name}`") })
            }
            _ => Err(DatasetError::Lockfile { problem: format!("does not pin `{name}`") }),
        }
    };
    CRATE_NAMES.iter().enumerate().map(pin).collect()
}

/// The text files of one archive, ordered by path, after its checksum has been compared.
fn read_archive(archive: &PinnedArchive, path: &Path) -> Result<Vec<Document>, DatasetError> {
    let compressed = regular_file::read(path, MAX_ARCHIVE_BYTES).map_err(DatasetError::io("read", path))?;
    let actual = hex(&Sha256::digest(&compressed));
    if actual != archive.sha256 {
        return Err(DatasetError::ArchiveChecksum {
            path: path.to_path_buf(),
            expected: archive.sha256.clone(),
            actual,
        });
    }
    let mut texts = BTreeMap::new();
    let mut reader = tar::Archive::new(GzDecoder::new(compressed.as_slice()));
    for entry in reader.entries().map_err(DatasetError::io("unpack", path))? {
        let entry = entry.map_err(DatasetError::io("unpack", path))?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let is_text = name.ends_with(".rs") || name.ends_with(".md");
        if !is_text || !entry.header().entry_type().is_file() || entry.size() >= MAX_FILE_BYTES {
            continue;
        }
        let mut bytes = Vec::new();
        entry.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(DatasetError::io("unpack", path))?;
        match String::from_utf8(bytes) {
            Ok(text) if !text.is_empty() => drop(texts.insert(name, text)),
            _ => {}
        }
    }
    let document = |(name, text)| Document { content: Content::Text(text), domain: archive.domain, name };
    Ok(texts.into_iter().map(document).collect())
}

#[cfg(test)]
mod damaged_archives;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lockfile_pins_each_crate_once() {
        let archives = pinned_archives(LOCKFILE).unwrap();
        assert_eq!(archives.len(), CRATE_NAMES.len());
        assert!(CRATE_NAMES.is_sorted(), "the documents are ordered by name");
        assert!(archives.iter().all(|archive| archive.sha256.len() == 64));
    }

    #[test]
    fn a_lockfile_without_a_crate_is_named_as_the_cause() {
        let error = pinned_archives("[[package]]\nname = 'x'\nversion = '1.0.0'").map(|_| ()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the Cargo.lock compiled into this program does not pin `aho-corasick`: rebuild from an unmodified \
             checkout"
        );
    }

    #[test]
    fn missing_archives_are_listed_with_the_way_out() {
        let home = tempfile::tempdir().unwrap();
        let source = CratesSource::in_cargo_home(&CratesConfig::default(), home.path()).unwrap();
        let message = source.for_each(&mut |_| Ok(())).unwrap_err().to_string();
        assert!(message.starts_with("50 of 50 crate archives of the default corpus are not in"), "{message}");
        for part in ["aho-corasick-", "and 47 more", "cargo fetch", "[data.text]", "[data.synthetic]"] {
            assert!(message.contains(part), "{part} is not in: {message}");
        }
    }

    #[test]
    fn an_archive_that_is_not_the_pinned_one_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let source = CratesSource::in_cargo_home(&CratesConfig::default(), home.path()).unwrap();
        let registry = home.path().join("registry/cache/mirror");
        std::fs::create_dir_all(&registry).unwrap();
        for archive in &source.archives {
            std::fs::write(registry.join(format!("{}.crate", archive.stem)), b"not an archive").unwrap();
        }
        let message = source.for_each(&mut |_| Ok(())).unwrap_err().to_string();
        assert!(message.contains("but Cargo.lock pins") && message.contains("cargo fetch"), "{message}");
    }
}
