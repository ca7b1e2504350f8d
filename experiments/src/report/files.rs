//! Files that are whole or absent, and names for them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Write `bytes` to `folder/name` in one step, and return the path. The report can be made again at any time, so
/// nothing is forced to the disk.
///
/// # Errors
/// Any error of the file system, with the path.
pub(super) fn replace(folder: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = folder.join(name);
    let temporary = folder.join(format!("{name}.tmp"));
    fs::write(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, &path))
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .with_context(|| {
            format!("cannot write {}: is the folder writable and the disk not full?", path.display())
        })?;
    Ok(path)
}

/// A part of a file name made from `label`: lower case, digits, `.`, `-` and `_`.
pub(super) fn file_name_of(label: &str) -> String {
    let kept = |letter: char| match letter.to_ascii_lowercase() {
        letter if letter.is_ascii_alphanumeric() || "._-".contains(letter) => letter,
        _ => '-',
    };
    let name: String = label.chars().take(60).map(kept).collect();
    let name = name.trim_matches(['.', '-']);
    if name.is_empty() { "arm".into() } else { name.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_never_leaves_the_folder() {
        let table = [
            ("Top-2 of 64", "top-2-of-64"),
            ("../../etc", "etc"),
            ("<script>", "script"),
            ("\u{3bb}", "arm"),
        ];
        for (label, name) in table {
            assert_eq!(file_name_of(label), name);
        }
    }

    #[test]
    fn a_failed_write_names_the_file_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("taken.csv")).unwrap();
        let message = replace(folder.path(), "taken.csv", b"1").unwrap_err().to_string();
        assert!(message.contains("taken.csv"), "{message}");
        assert!(!folder.path().join("taken.csv.tmp").exists());
    }
}
