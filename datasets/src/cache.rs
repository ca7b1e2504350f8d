//! The folder of prepared corpora, and who may write to it.
//!
//! `<cache>/<name>/` is a complete corpus, `<cache>/<name>.tmp/` one in the making,
//! `<cache>/<name>.lock` the file whose lock its maker holds; the name is a hash of the corpus' key
//! and of the version of the folder's layout. The system drops the lock when a process ends,
//! however it ends: a `.tmp` folder whose lock can be taken is a leftover. One that holds finished
//! parts is where the next preparation of the same corpus goes on.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use switchyard_ground::{durable, regular_file};

use crate::error::DatasetError;
use crate::manifest::{FORMAT_VERSION, MANIFEST_NAME};
use crate::progress::Progress;
use crate::unfinished::has_notes;
use switchyard_ground::digest::hex;

const RETRY: Duration = Duration::from_millis(50);

/// Unfinished work of other corpora is kept for so long.
const KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Hexadecimal digits of a folder's name.
const NAME_LEN: usize = 16;

/// The folder for prepared corpora: `configured`, else `SWITCHYARD_CACHE_DIR`, else `switchyard` in
/// the user's cache.
pub(crate) fn cache_dir(configured: Option<&Path>) -> Result<PathBuf, DatasetError> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    configured
        .map(Path::to_path_buf)
        .or_else(|| variable("SWITCHYARD_CACHE_DIR"))
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("switchyard")))
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache").join("switchyard")))
        .ok_or(DatasetError::NoCacheFolder)
}

/// Place of one corpus in the cache.
#[derive(Debug, Clone)]
pub(crate) struct CacheEntry {
    root: PathBuf,
    name: String,
}

impl CacheEntry {
    pub(crate) fn new(root: &Path, key: &str) -> Self {
        let hash = Sha256::digest(format!("layout {FORMAT_VERSION} of {key}"));
        Self { root: root.to_path_buf(), name: hex(&hash[..NAME_LEN / 2]) }
    }

    /// Where the complete corpus is, or will be.
    pub(crate) fn folder(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    /// Whether the corpus is there.
    ///
    /// # Errors
    /// If that cannot be found out: a corpus that cannot be looked at is not one to be made anew.
    pub(crate) fn is_complete(&self) -> Result<bool, DatasetError> {
        let manifest = self.folder().join(MANIFEST_NAME);
        match std::fs::metadata(&manifest) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
            Err(error) => Err(DatasetError::io("read", &manifest)(error)),
        }
    }

    /// The right to make this corpus, once no other process has it.
    ///
    /// # Errors
    /// If the cache cannot be written to, or the stop flag is set while waiting.
    pub(crate) fn lock(self, progress: &Progress) -> Result<LockedEntry, DatasetError> {
        std::fs::create_dir_all(&self.root).map_err(DatasetError::io("create", &self.root))?;
        let path = lock_path(&self.root, &self.name);
        let file = open_lock(&path)?;
        let mut is_waiting = false;
        while !try_lock(&file, &path)? {
            if !std::mem::replace(&mut is_waiting, true) {
                progress.line("another process prepares the same data: waiting for it");
            }
            progress.check()?;
            std::thread::sleep(RETRY);
        }
        Ok(LockedEntry { entry: self, _lock: file })
    }
}

/// A place in the cache that only this process writes to, for as long as this value lives.
#[derive(Debug)]
pub(crate) struct LockedEntry {
    pub(crate) entry: CacheEntry,
    _lock: File,
}

impl LockedEntry {
    /// A folder to prepare in: empty, or with what an interrupted preparation of this corpus has
    /// finished.
    pub(crate) fn start(&self) -> Result<PathBuf, DatasetError> {
        self.remove_leftovers();
        let folder = self.temporary();
        if has_notes(&folder) {
            return Ok(folder);
        }
        remove_folder(&folder).map_err(DatasetError::io("remove", &folder))?;
        std::fs::create_dir(&folder).map_err(DatasetError::io("create", &folder))?;
        Ok(folder)
    }

    /// Gives the prepared folder its final name.
    pub(crate) fn commit(&self) -> Result<(), DatasetError> {
        let folder = self.entry.folder();
        // A folder without a manifest is no corpus: somebody deleted parts of one.
        remove_folder(&folder).map_err(DatasetError::io("remove", &folder))?;
        let temporary = self.temporary();
        // The names of the files in it first, then its own.
        durable::sync_parent(&temporary.join(MANIFEST_NAME))
            .map_err(DatasetError::io("write", &temporary))?;
        std::fs::rename(&temporary, &folder).map_err(DatasetError::io("create", &folder))?;
        durable::sync_parent(&folder).map_err(DatasetError::io("write", &self.entry.root))
    }

    /// Removes what was prepared so far.
    pub(crate) fn discard(&self) {
        let folder = self.temporary();
        if let Err(error) = remove_folder(&folder) {
            tracing::warn!("cannot remove `{}`: {error}", folder.display());
        }
    }

    /// Removes what was prepared so far, unless something of it is finished.
    pub(crate) fn discard_unfinished(&self) {
        if !has_notes(&self.temporary()) {
            self.discard();
        }
    }

    fn temporary(&self) -> PathBuf {
        self.entry.root.join(format!("{}.tmp", self.entry.name))
    }

    /// Removes what interrupted preparations of other corpora left behind. Those that another
    /// process works on are locked and stay; those that can go on stay for a week.
    fn remove_leftovers(&self) {
        let Ok(entries) = std::fs::read_dir(&self.entry.root) else { return };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".tmp")) else {
                continue;
            };
            let is_ours = name == self.entry.name;
            let is_entry_name = name.len() == NAME_LEN && name.bytes().all(|byte| byte.is_ascii_hexdigit());
            if is_ours || !is_entry_name || has_notes(&path) && is_recent(&path) {
                continue;
            }
            let lock = lock_path(&self.entry.root, name);
            let removal = open_lock(&lock).and_then(|file| {
                if try_lock(&file, &lock)? {
                    remove_folder(&path).map_err(DatasetError::io("remove", &path))?;
                }
                Ok(())
            });
            if let Err(error) = removal {
                tracing::warn!("{error}");
            }
        }
    }
}

/// Whether `folder` was worked on within the time that unfinished work is kept.
fn is_recent(folder: &Path) -> bool {
    let changed = std::fs::metadata(folder).and_then(|metadata| metadata.modified());
    changed.is_ok_and(|time| time.elapsed().is_ok_and(|age| age < KEPT))
}

fn lock_path(root: &Path, name: &str) -> PathBuf {
    root.join(format!("{name}.lock"))
}

fn open_lock(path: &Path) -> Result<File, DatasetError> {
    regular_file::open_or_create(path).map_err(DatasetError::io("create", path))
}

fn try_lock(file: &File, path: &Path) -> Result<bool, DatasetError> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(DatasetError::io("lock", path)(error)),
    }
}

/// Removes the folder at `path`, or whatever else is there.
fn remove_folder(path: &Path) -> std::io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn entry(root: &Path, digit: char) -> CacheEntry {
        CacheEntry::new(root, &digit.to_string().repeat(64))
    }

    #[test]
    fn leftovers_go_and_work_in_progress_stays() {
        let root = tempfile::tempdir().unwrap();
        let busy = entry(root.path(), 'a').lock(&Progress::silent()).unwrap();
        let busy_folder = busy.start().unwrap();
        let abandoned = entry(root.path(), 'b').lock(&Progress::silent()).unwrap();
        let abandoned_folder = abandoned.start().unwrap();
        drop(abandoned);
        std::fs::create_dir(root.path().join("notes.tmp")).unwrap();
        entry(root.path(), 'c').lock(&Progress::silent()).unwrap().start().unwrap();
        assert!(busy_folder.exists() && !abandoned_folder.exists());
        assert!(root.path().join("notes.tmp").exists(), "what is not ours stays");
    }

    #[test]
    fn a_start_over_begins_with_an_empty_folder() {
        let root = tempfile::tempdir().unwrap();
        let locked = entry(root.path(), 'a').lock(&Progress::silent()).unwrap();
        std::fs::write(locked.start().unwrap().join("half"), "x").unwrap();
        assert_eq!(std::fs::read_dir(locked.start().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn finished_parts_are_found_again_and_outlive_other_preparations_for_a_week() {
        let root = tempfile::tempdir().unwrap();
        let locked = entry(root.path(), 'a').lock(&Progress::silent()).unwrap();
        let folder = locked.start().unwrap();
        std::fs::write(folder.join("train.progress"), "{}").unwrap();
        locked.discard_unfinished();
        drop(locked);
        entry(root.path(), 'b').lock(&Progress::silent()).unwrap().start().unwrap();
        let again = entry(root.path(), 'a').lock(&Progress::silent()).unwrap();
        assert!(again.start().unwrap().join("train.progress").exists());
        drop(again);
        let long_ago = std::time::SystemTime::now() - KEPT - Duration::from_secs(60);
        File::open(&folder).unwrap().set_modified(long_ago).unwrap();
        entry(root.path(), 'c').lock(&Progress::silent()).unwrap().start().unwrap();
        assert!(!folder.exists());
    }

    #[test]
    fn whatever_has_the_place_of_a_folder_in_the_making_is_no_obstacle() {
        let root = tempfile::tempdir().unwrap();
        let locked = entry(root.path(), 'a').lock(&Progress::silent()).unwrap();
        std::fs::write(locked.temporary(), "a file").unwrap();
        assert!(locked.start().unwrap().is_dir());
        std::fs::write(locked.entry.folder(), "a file").unwrap();
        assert!(!locked.entry.is_complete().unwrap());
        locked.commit().unwrap();
        assert!(locked.entry.folder().is_dir());
    }

    #[test]
    fn waiting_for_another_process_can_be_stopped() {
        let root = tempfile::tempdir().unwrap();
        let _held = entry(root.path(), 'a').lock(&Progress::silent()).unwrap();
        let stopped = Progress::silent().with_stop(Arc::new(AtomicBool::new(true)));
        let error = entry(root.path(), 'a').lock(&stopped).unwrap_err();
        assert!(matches!(error, DatasetError::Interrupted));
    }

    #[test]
    fn a_cache_that_cannot_be_made_is_named() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let message = entry(&file.join("cache"), 'a').lock(&Progress::silent()).unwrap_err().to_string();
        assert!(message.starts_with("cannot create `") && message.contains("file/cache"), "{message}");
    }
}
