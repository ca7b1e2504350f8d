//! The lock that keeps a run folder to one process.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::time::{Duration, Instant};

use switchyard_ground::regular_file;

use super::{RunFolderError, RunPaths};
use switchyard_ground::line_file::is_still_at;

/// How long a held lock is waited for.
const PATIENCE: Duration = Duration::from_millis(300);

/// `run.lock`, locked: the system releases it when the process ends, even if it is killed.
#[derive(Debug)]
pub(super) struct RunLock(File);

impl RunLock {
    /// Takes the lock of the folder at `paths`.
    pub(super) fn take(paths: &RunPaths) -> Result<Self, RunFolderError> {
        let path = paths.lock();
        // The holder's process id is in it, so what is there stays until the lock is taken.
        let mut lock = regular_file::open_or_create(&path).map_err(RunFolderError::io("open", &path))?;
        match try_lock_for(&lock, PATIENCE) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let holder = match (&mut lock).take(20).read_to_string(&mut pid) {
                    Ok(_) if pid.trim().parse::<u32>().is_ok() => format!("process {}", pid.trim()),
                    _ => "another process".into(),
                };
                return Err(RunFolderError::Locked { path: paths.root().into(), holder });
            }
            Err(TryLockError::Error(error)) => return Err(RunFolderError::io("lock", &path)(error)),
        }
        let write_pid = |lock: &mut File| {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())
        };
        write_pid(&mut lock).map_err(RunFolderError::io("write", &path))?;
        let lock = Self(lock);
        // Between opening and locking, another process may have removed the folder.
        lock.check_held(paths)?;
        Ok(lock)
    }

    /// Ok if the folder at `paths` still holds this lock.
    pub(super) fn check_held(&self, paths: &RunPaths) -> Result<(), RunFolderError> {
        let path = paths.lock();
        match is_still_at(&self.0, &path) {
            Ok(true) => Ok(()),
            Ok(false) => Err(RunFolderError::Lost { path: paths.root().into() }),
            Err(error) => Err(RunFolderError::io("look at", &path)(error)),
        }
    }
}

/// Tries for `patience`: a child process that another thread is just starting holds a copy of every
/// open file until it has replaced itself, and with it a lock that was given up a moment ago.
fn try_lock_for(lock: &File, patience: Duration) -> Result<(), TryLockError> {
    let started = Instant::now();
    loop {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) if started.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}
