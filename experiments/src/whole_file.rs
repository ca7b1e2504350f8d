//! Files that are whole or absent.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::lock_file::try_lock;

/// How long another process that writes the same file is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Replace the file at `path`, which holds the old or the new bytes at every moment. Results can be
/// made again from the runs, so nothing is forced to the disk.
///
/// # Errors
/// Any error of the file system, with the path.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = temporary_of(path);
    let write = || {
        let mut file = locked(&temporary)?;
        let written = file.set_len(0).and_then(|()| file.write_all(bytes));
        written.and_then(|()| fs::rename(&temporary, path)).inspect_err(|_| drop(fs::remove_file(&temporary)))
    };
    write().with_context(|| {
        format!("cannot write {}: is the folder writable and the disk not full?", path.display())
    })
}

/// Where the new bytes are prepared. The name is always the same, so that what a killed process
/// leaves is taken by the next write of the file, and the lock keeps apart those who write at once,
/// as shards that end together do.
fn temporary_of(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

/// The file at `temporary`, this process's alone until it is closed.
fn locked(temporary: &Path) -> io::Result<File> {
    let started = Instant::now();
    loop {
        if let Some(file) = try_lock(temporary)? {
            return Ok(file);
        }
        if started.elapsed() > PATIENCE {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process is writing it"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_failed_write_names_the_file_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken.csv");
        fs::create_dir(&path).unwrap();
        let message = replace(&path, b"1").unwrap_err().to_string();
        assert!(message.contains("taken.csv"), "{message}");
        assert_eq!(names(folder.path()), ["taken.csv"], "only what was there");
    }

    #[test]
    fn a_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        replace(&path, b"old").unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["result.json"]);
    }

    #[test]
    fn what_a_killed_process_left_is_gone_after_the_next_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.html");
        fs::write(temporary_of(&path), "half of a page, longer than the next").unwrap();
        replace(&path, b"whole").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(names(folder.path()), ["report.html"]);
    }

    #[cfg(unix)]
    #[test]
    fn nothing_is_written_through_a_link_in_the_place_of_the_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let (path, victim) = (folder.path().join("runs.csv"), folder.path().join("victim"));
        fs::write(&victim, "mine").unwrap();
        std::os::unix::fs::symlink(&victim, temporary_of(&path)).unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(
            (fs::read(&victim).unwrap(), fs::read(&path).unwrap()),
            (b"mine".to_vec(), b"new".to_vec())
        );
    }

    #[test]
    fn of_many_writers_at_once_each_reader_sees_the_whole_file_of_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        replace(&path, &[0; 1000]).unwrap();
        std::thread::scope(|scope| {
            for writer in 1..=8_u8 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..25 {
                        replace(path, &vec![writer; 1000 * usize::from(writer)]).unwrap();
                        let seen = fs::read(path).unwrap();
                        assert!(!seen.is_empty() && seen.iter().all(|byte| *byte == seen[0]));
                        assert_eq!(seen.len(), 1000 * usize::from(seen[0].max(1)));
                    }
                });
            }
        });
        assert_eq!(names(folder.path()), ["result.json"]);
    }
}
