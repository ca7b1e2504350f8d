//! Files that are whole or absent.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Replace the file at `path`, which holds the old or the new bytes at every moment. Results can be made again from the runs,
/// so nothing is forced to the disk.
///
/// # Errors
/// Any error of the file system, with the path.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    // A name of its own: shards that end together write the same file.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    fs::write(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path))
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .with_context(|| {
            format!("cannot write {}: is the folder writable and the disk not full?", path.display())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_names_the_file_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken.csv");
        fs::create_dir(&path).unwrap();
        let message = replace(&path, b"1").unwrap_err().to_string();
        assert!(message.contains("taken.csv"), "{message}");
        assert!(!folder.path().join("taken.csv.tmp").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only what was there");
    }

    #[test]
    fn a_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        replace(&path, b"old").unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
