//! Files that are whole or absent, whatever happens while they are written.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Write `bytes` to `path` and force them to the disk.
///
/// # Errors
/// Any error of the file system.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Replace `path` by `bytes` in one step: a reader, or a crash, sees the old file or the new one.
///
/// # Errors
/// Any error of the file system; the old file is then untouched.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    write_synced(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, path))
        .inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    sync_parent(path)
}

/// Force the directory entry of `path` to the disk, so that a rename survives a power cut.
///
/// # Errors
/// Any error of the file system.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
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
