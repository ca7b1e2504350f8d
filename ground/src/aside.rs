//! Files that cannot be used and must not be lost: moved to a name of their own beside where they
//! lay.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::durable;

/// Why a file is set aside, as its new name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is not what this run wrote.
    Damaged,
    /// It is of the part of a run that begins again.
    Earlier,
}

impl Why {
    const ALL: [Self; 2] = [Self::Damaged, Self::Earlier];

    fn word(self) -> &'static str {
        match self {
            Self::Damaged => "damaged",
            Self::Earlier => "earlier",
        }
    }
}

/// Renames `path` to `<path>.<why>-<n>` with the first `n` that is free, from 1, and returns the
/// new name.
///
/// # Errors
/// Any error of the file system; the file is then where it was.
pub fn set_aside(path: &Path, why: Why) -> io::Result<PathBuf> {
    let name = |number: u64| path.with_added_extension(format!("{}-{number}", why.word()));
    let is_free =
        |path: &PathBuf| path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    let free = (1..).map(name).find(is_free).unwrap_or_else(|| name(u64::MAX));
    fs::rename(path, &free)?;
    durable::sync_parent(&free)?;
    Ok(free)
}

/// Whether `name` is one that [`set_aside`] gives to a file named `original`.
pub fn is_aside(name: &str, original: &str) -> bool {
    let rest = name.strip_prefix(original).and_then(|rest| rest.strip_prefix('.'));
    let number = |why: Why| rest?.strip_prefix(why.word())?.strip_prefix('-');
    Why::ALL
        .into_iter()
        .filter_map(number)
        .any(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_was_set_aside_is_ever_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        for number in 1..=3 {
            fs::write(&path, number.to_string()).unwrap();
            let aside = set_aside(&path, Why::Damaged).unwrap();
            assert_eq!(aside, folder.path().join(format!("metrics.jsonl.damaged-{number}")));
            assert_eq!(fs::read_to_string(aside).unwrap(), number.to_string());
        }
        assert!(!path.exists());
    }

    #[test]
    fn its_names_are_known_again_and_others_are_not() {
        for name in ["metrics.jsonl.damaged-1", "metrics.jsonl.earlier-20"] {
            assert!(is_aside(name, "metrics.jsonl"), "{name}");
        }
        for name in
            ["metrics.jsonl", "metrics.jsonl.damaged-", "metrics.jsonl.damaged-x", "metrics.jsonl.old-1"]
        {
            assert!(!is_aside(name, "metrics.jsonl"), "{name}");
        }
    }
}
