//! A file that grows by whole lines and forgets none.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::durable;

use crate::aside::{Why, set_aside};

/// A file open for appending lines. A line that could not be written stays in memory and goes first
/// at the next try, so that a disk that was full for a moment leaves no gap and no torn line.
#[derive(Debug)]
pub struct LineFile {
    path: PathBuf,
    file: File,
    /// Bytes in the file, all of them written by this process or found by it.
    num_bytes: u64,
    unwritten: Vec<u8>,
}

/// What was found to have happened to a file while it was open.
#[derive(Debug, PartialEq)]
pub enum Mishap {
    /// It was removed or replaced: all of it was written again. What lay in its place was set
    /// aside.
    WrittenAgain(Option<PathBuf>),
    /// It was cut or written to by others: what is left of it was set aside, and a new file begun.
    BegunAnew(Option<PathBuf>),
}

impl Mishap {
    /// What happened to `path`, for whoever watches the run.
    pub fn describe(&self, path: &Path) -> String {
        let path = path.display();
        let kept = |aside: &Option<PathBuf>| {
            aside
                .as_ref()
                .map_or_else(String::new, |aside| format!("; what lay there is now `{}`", aside.display()))
        };
        match self {
            Self::WrittenAgain(aside) => {
                format!(
                    "`{path}` was removed or replaced by another process: it is written again{}",
                    kept(aside)
                )
            }
            Self::BegunAnew(aside) => format!(
                "`{path}` was changed by another process: its rows go on in a new file{}",
                kept(aside)
            ),
        }
    }
}

impl LineFile {
    /// The file at `path` with exactly `content`, on the disk itself. A link there is replaced, not
    /// followed.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn replace(path: &Path, content: &[u8]) -> io::Result<Self> {
        durable::replace(path, content)?;
        let file = OpenOptions::new().read(true).append(true).open(path)?;
        Ok(Self { path: path.into(), file, num_bytes: content.len() as u64, unwritten: Vec::new() })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a line, handed to the operating system in one write.
    ///
    /// # Errors
    /// Any error of the file system; the rest of the line is written before the next one.
    pub fn append(&mut self, mut line: Vec<u8>) -> io::Result<()> {
        line.push(b'\n');
        self.unwritten.append(&mut line);
        self.write_out()
    }

    /// Returns once the lines so far are on the disk itself, under the file's own name.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn sync(&mut self) -> io::Result<Option<Mishap>> {
        self.write_out()?;
        self.file.sync_data()?;
        self.mend()
    }

    fn write_out(&mut self) -> io::Result<()> {
        while !self.unwritten.is_empty() {
            match self.file.write(&self.unwritten) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(num_bytes) => {
                    self.num_bytes += num_bytes as u64;
                    self.unwritten.drain(..num_bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Notices what others did to the file, and puts it right.
    fn mend(&mut self) -> io::Result<Option<Mishap>> {
        let is_whole = self.file.metadata()?.len() == self.num_bytes;
        if is_whole && is_still_at(&self.file, &self.path)? {
            return Ok(None);
        }
        let aside = match set_aside(&self.path, Why::Damaged) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            other => Some(other?),
        };
        let mut content = Vec::new();
        if is_whole {
            self.file.rewind()?;
            self.file.read_to_end(&mut content)?;
        }
        *self = Self::replace(&self.path, &content)?;
        Ok(Some(if is_whole { Mishap::WrittenAgain(aside) } else { Mishap::BegunAnew(aside) }))
    }
}

/// Whether `path` names the open `file` still.
///
/// # Errors
/// Any error of the file system.
#[cfg(unix)]
pub fn is_still_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let place = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(place(&found) == place(&file.metadata()?)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Elsewhere an open file cannot be removed or replaced.
#[cfg(not(unix))]
pub fn is_still_at(_file: &File, path: &Path) -> io::Result<bool> {
    fs::exists(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(folder: &tempfile::TempDir) -> LineFile {
        let mut file = LineFile::replace(&folder.path().join("rows.jsonl"), b"").unwrap();
        file.append(b"one".to_vec()).unwrap();
        file
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_could_not_be_written_goes_first_at_the_next_try() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = opened(&folder);
        let good =
            std::mem::replace(&mut file.file, OpenOptions::new().append(true).open("/dev/full").unwrap());
        file.append(b"two".to_vec()).unwrap_err();
        file.append(b"three".to_vec()).unwrap_err();
        file.file = good;
        file.append(b"four".to_vec()).unwrap();
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "one\ntwo\nthree\nfour\n");
        assert_eq!(file.sync().unwrap(), None);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_was_removed_or_replaced_is_written_again_and_the_other_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = opened(&folder);
        let path = file.path().to_path_buf();
        fs::remove_file(&path).unwrap();
        assert_eq!(file.sync().unwrap(), Some(Mishap::WrittenAgain(None)));
        file.append(b"two".to_vec()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another's").unwrap();
        let aside = folder.path().join("rows.jsonl.damaged-1");
        assert_eq!(file.sync().unwrap(), Some(Mishap::WrittenAgain(Some(aside.clone()))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(aside).unwrap(), "another's");
    }

    #[test]
    fn a_file_that_was_cut_is_set_aside_and_a_new_one_begun() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = opened(&folder);
        let path = file.path().to_path_buf();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(2).unwrap();
        let aside = folder.path().join("rows.jsonl.damaged-1");
        assert_eq!(file.sync().unwrap(), Some(Mishap::BegunAnew(Some(aside.clone()))));
        file.append(b"two".to_vec()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(fs::read_to_string(aside).unwrap(), "on");
    }
}
