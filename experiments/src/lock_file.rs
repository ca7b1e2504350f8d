//! Locks that are files. The system gives a lock up when its holder ends in whatever way, so what a
//! killed process leaves is a file that the next one takes.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use switchyard_ground::regular_file;

/// The file at `path`, made if it is missing, and this process's alone until it is closed; `None`
/// if another process has it. Nothing is opened through a link: one that lies there is removed.
///
/// # Errors
/// Any error of the file system, and what is a folder.
pub(crate) fn try_lock(path: &Path) -> io::Result<Option<File>> {
    loop {
        remove_unless_regular(path)?;
        let file = regular_file::open_or_create(path)?;
        match file.try_lock() {
            Ok(()) if is_at(&file, path)? => return Ok(Some(file)),
            // Its holder has renamed or removed it since it was opened.
            Ok(()) => {}
            // Such a file system has no locks: then there is none to wait for.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                return Ok(Some(file));
            }
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) => return Ok(None),
        }
    }
}

/// A lock for as long as the value lives; its file is there as long.
#[derive(Debug)]
pub(crate) struct LockFile {
    path: PathBuf,
    // Held for its lock.
    _file: File,
}

impl LockFile {
    /// The lock at `path`; `None` if another process has it.
    ///
    /// # Errors
    /// As [`try_lock`].
    pub(crate) fn try_take(path: &Path) -> io::Result<Option<Self>> {
        Ok(try_lock(path)?.map(|file| Self { path: path.into(), _file: file }))
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // Removed while it is held: whoever has opened it meanwhile sees that it is no longer
        // there. A file that stays does no harm.
        drop(fs::remove_file(&self.path));
    }
}

fn remove_unless_regular(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() && !found.is_dir() => fs::remove_file(path),
        _ => Ok(()),
    }
}

/// Whether the open `file` is still the one at `path`.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match fs::symlink_metadata(path) {
        Ok(there) => Ok(identity(there) == identity(file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Elsewhere a file that is open can be neither renamed nor removed.
#[cfg(not(unix))]
fn is_at(_file: &File, _path: &Path) -> io::Result<bool> {
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_lock_has_one_holder_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".run.lock");
        let held = LockFile::try_take(&path).unwrap();
        assert!(held.is_some() && LockFile::try_take(&path).unwrap().is_none());
        drop(held);
        assert!(LockFile::try_take(&path).unwrap().is_some());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_lock_that_a_killed_process_left_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".run.lock");
        fs::write(&path, "").unwrap();
        assert!(LockFile::try_take(&path).unwrap().is_some());
    }

    #[test]
    fn however_often_it_changes_hands_never_two_have_it() {
        let folder = tempfile::tempdir().unwrap();
        let (path, holders) = (folder.path().join(".run.lock"), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        if let Some(lock) = LockFile::try_take(&path).unwrap() {
                            assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                            std::thread::yield_now();
                            holders.fetch_sub(1, Ordering::SeqCst);
                            drop(lock);
                        }
                    }
                });
            }
        });
    }
}
