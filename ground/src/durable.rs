//! Files that are whole or absent, whatever happens while they are written.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Writes a new file at `path` by `write`, and forces it to the disk. A file or a link that is
/// there is removed first, so that nothing is written through a link.
///
/// # Errors
/// Any error of the file system, and of `write`.
pub fn write_synced_by<T>(path: &Path, write: impl FnOnce(&mut File) -> io::Result<T>) -> io::Result<T> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::create_new(path)?;
    let written = write(&mut file)?;
    file.sync_all()?;
    Ok(written)
}

/// Writes `bytes` to a new file at `path`, and forces them to the disk; see [`write_synced_by`].
///
/// # Errors
/// Any error of the file system.
pub fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_synced_by(path, |file| file.write_all(bytes))
}

/// Replaces `path` by `bytes` in one step: a reader, a crash or a power cut sees the old file or
/// the new one.
///
/// # Errors
/// Any error of the file system; the old file is then untouched.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary_of(path);
    write_synced(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path))
        .inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    sync_parent(path)
}

/// The name under which [`replace`] prepares a file: what a process leaves that is killed inside
/// it.
pub fn temporary_of(path: &Path) -> PathBuf {
    path.with_added_extension("tmp")
}

/// Creates the folder at `path` and those above it that are missing, and forces what was created to
/// the disk.
///
/// # Errors
/// Any error of the file system.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
    fs::create_dir_all(path)?;
    missing.into_iter().rev().try_for_each(sync_parent)
}

/// Forces the directory entry of `path` to the disk, so that a rename survives a power cut.
///
/// # Errors
/// Any error of the file system.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    // Only Unix can open a directory to sync it; elsewhere the file system orders renames itself.
    #[cfg(unix)]
    if let Some(parent) = path.parent() {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        File::open(parent)?.sync_all()?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_holds_the_new_bytes_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.json");
        fs::write(temporary_of(&path), "of a killed process").unwrap();
        replace(&path, b"old").unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn folders_are_created_with_those_above_them_and_those_that_are_there_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runs/a/checkpoints");
        create_dir_all(&path).unwrap();
        fs::write(path.join("kept"), "").unwrap();
        create_dir_all(&path).unwrap();
        assert!(path.join("kept").exists());
        create_dir_all(&path.join("kept")).unwrap_err();
    }

    #[cfg(unix)]
    #[test]
    fn a_link_in_the_place_of_a_temporary_is_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let (path, victim) = (folder.path().join("alarms.jsonl"), folder.path().join("victim"));
        fs::write(&victim, "mine").unwrap();
        std::os::unix::fs::symlink(&victim, temporary_of(&path)).unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(
            (fs::read(&victim).unwrap(), fs::read(&path).unwrap()),
            (b"mine".to_vec(), b"new".to_vec())
        );
    }
}
