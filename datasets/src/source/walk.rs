//! The text files below a folder: links are followed, once; whatever is left out is counted.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::file_kind::{Compression, Format, classify};
use crate::error::DatasetError;
use crate::progress::Progress;
use crate::remarks::{Remark, Remarks};

/// One text file, by the path through which it was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) format: Format,
    pub(super) compression: Compression,
}

/// The text files below `root`, ordered by path, component by component.
///
/// What lies in the folder itself comes first; then links are followed, in the order of their
/// paths, to whatever has not been reached before. So a circle of links ends, a file is read once
/// however many links lead to it, and no link takes the place of the real file. Links may lead out
/// of the folder: corpora are made of them.
///
/// # Errors
/// If a folder cannot be listed or an entry cannot be looked at.
pub(super) fn text_files(
    root: &Path,
    remarks: &mut Remarks,
    progress: &Progress,
) -> Result<Vec<Found>, DatasetError> {
    let resolved_root = root.canonicalize().map_err(DatasetError::io("read", root))?;
    let mut walk = Walk {
        resolved_root,
        seen: HashSet::new(),
        links: VecDeque::new(),
        files: Vec::new(),
        remarks,
        progress,
    };
    let metadata = std::fs::metadata(root).map_err(DatasetError::io("read", root))?;
    walk.enter(root, &metadata)?;
    while let Some(link) = walk.links.pop_front() {
        walk.follow(&link)?;
    }
    let mut files = walk.files;
    files.sort();
    Ok(files)
}

struct Walk<'a> {
    resolved_root: PathBuf,
    /// Folders and files reached so far.
    seen: HashSet<Identity>,
    /// Links that are still to be followed.
    links: VecDeque<PathBuf>,
    files: Vec<Found>,
    remarks: &'a mut Remarks,
    progress: &'a Progress,
}

/// What is equal for two paths to the same file or folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Identity {
    #[cfg(unix)]
    Inode(u64, u64),
    #[cfg(not(unix))]
    Path(PathBuf),
}

impl Walk<'_> {
    /// Takes the folder at `path`, unless it has been reached before; returns whether it was new.
    fn enter(&mut self, path: &Path, metadata: &Metadata) -> Result<bool, DatasetError> {
        if !self.seen.insert(identity(path, metadata)?) {
            return Ok(false);
        }
        let mut entries = entries(path)?;
        entries.sort();
        for entry in entries {
            self.progress.check()?;
            self.take(&entry)?;
        }
        Ok(true)
    }

    fn take(&mut self, path: &Path) -> Result<(), DatasetError> {
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            self.remark(Remark::DotName, path);
            return Ok(());
        }
        let metadata = std::fs::symlink_metadata(path).map_err(DatasetError::io("read", path))?;
        if metadata.is_symlink() {
            self.links.push_back(path.to_path_buf());
        } else if metadata.is_dir() {
            // A folder that is mounted twice is there twice without a link.
            self.enter(path, &metadata)?;
        } else if let Some(found) = self.text_file(path, &metadata) {
            self.seen.insert(identity(path, &metadata)?);
            self.files.push(found);
        }
        Ok(())
    }

    /// The text file at `path`; `None` for anything else, which is counted.
    fn text_file(&mut self, path: &Path, metadata: &Metadata) -> Option<Found> {
        if !metadata.is_file() {
            self.remark(Remark::SpecialFile, path);
            return None;
        }
        let Some((format, compression)) = path.file_name().and_then(classify) else {
            self.remark(Remark::OtherType, path);
            return None;
        };
        Some(Found { path: path.to_path_buf(), format, compression })
    }

    fn follow(&mut self, link: &Path) -> Result<(), DatasetError> {
        let metadata = match std::fs::metadata(link) {
            Ok(metadata) => metadata,
            Err(error) if leads_nowhere(&error) => {
                self.remark(Remark::BrokenLink, link);
                return Ok(());
            }
            Err(error) => return Err(DatasetError::io("read", link)(error)),
        };
        let target = link.canonicalize().map_err(DatasetError::io("read", link))?;
        // The folder that everything lies in: following it would take in its neighbours.
        if self.resolved_root.starts_with(&target) {
            self.remark(Remark::RepeatedLink, link);
            return Ok(());
        }
        let is_new = if metadata.is_dir() {
            self.enter(link, &metadata)?
        } else {
            let Some(found) = self.text_file(link, &metadata) else { return Ok(()) };
            let is_new = self.seen.insert(identity(link, &metadata)?);
            self.files.extend(is_new.then_some(found));
            is_new
        };
        if !is_new {
            self.remark(Remark::RepeatedLink, link);
        } else if !target.starts_with(&self.resolved_root) {
            let example = || format!("`{}` to `{}`", link.display(), target.display());
            self.remarks.add(Remark::OutsideLink, example);
        }
        Ok(())
    }

    fn remark(&mut self, kind: Remark, path: &Path) {
        self.remarks.add(kind, || format!("`{}`", path.display()));
    }
}

/// Whether a link that gives this error has no target, or only itself.
fn leads_nowhere(error: &std::io::Error) -> bool {
    // Links that lead in a circle have an error kind of their own, which is not stable yet.
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
        || error.to_string().contains("symbolic link")
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let entries = std::fs::read_dir(folder).map_err(DatasetError::io("list", folder))?;
    let paths: Result<Vec<_>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    paths.map_err(DatasetError::io("list", folder))
}

#[cfg(unix)]
fn identity(_path: &Path, metadata: &Metadata) -> Result<Identity, DatasetError> {
    use std::os::unix::fs::MetadataExt;
    Ok(Identity::Inode(metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn identity(path: &Path, _metadata: &Metadata) -> Result<Identity, DatasetError> {
    path.canonicalize().map(Identity::Path).map_err(DatasetError::io("read", path))
}

/// Name of a file or folder, for people.
pub(super) fn shown_name(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Paths below the folder, and what was remarked.
    fn walk(root: &Path) -> (Vec<PathBuf>, Vec<String>) {
        let mut remarks = Remarks::default();
        let files = text_files(root, &mut remarks, &Progress::silent()).unwrap();
        let relative = files.iter().map(|file| file.path.strip_prefix(root).unwrap().to_path_buf());
        (relative.collect(), remarks.sentences())
    }

    fn paths<const N: usize>(paths: [&str; N]) -> Vec<PathBuf> {
        paths.map(PathBuf::from).to_vec()
    }

    #[test]
    fn a_link_to_a_folder_is_followed_once_and_circles_end() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("far.txt"), "far").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("corpus");
        fs::create_dir_all(root.join("z/deep")).unwrap();
        fs::write(root.join("z/deep/1.txt"), "one").unwrap();
        symlink(outside.path(), root.join("a")).unwrap();
        symlink(outside.path(), root.join("b")).unwrap();
        // To what is there itself, to where it lies, and to where everything lies.
        symlink(root.join("z"), root.join("c")).unwrap();
        symlink("..", root.join("z/deep/up")).unwrap();
        symlink(folder.path(), root.join("z/all")).unwrap();
        // Back from outside.
        symlink(&root, outside.path().join("back")).unwrap();
        let (files, remarks) = walk(&root);
        assert_eq!(files, paths(["a/far.txt", "z/deep/1.txt"]));
        assert_eq!(remarks.len(), 2, "{remarks:?}");
        assert!(remarks[0].starts_with("1 link followed out of the text folder: `"), "{}", remarks[0]);
        assert!(
            remarks[1].starts_with("5 links passed over as read already or leading in a circle"),
            "{}",
            remarks[1]
        );
    }

    #[test]
    fn a_file_is_read_once_however_many_links_lead_to_it() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("passwd.txt"), "x").unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("m.txt"), "real").unwrap();
        symlink("m.txt", folder.path().join("a.txt")).unwrap();
        symlink(outside.path().join("passwd.txt"), folder.path().join("n.txt")).unwrap();
        symlink("n.txt", folder.path().join("o.txt")).unwrap();
        let (files, remarks) = walk(folder.path());
        assert_eq!(files, paths(["m.txt", "n.txt"]));
        assert!(remarks[0].contains("n.txt` to `") && remarks[0].contains("passwd.txt"), "{}", remarks[0]);
        assert!(remarks[1].starts_with("2 links passed over"), "{}", remarks[1]);
    }

    #[test]
    fn the_bytes_of_a_name_decide_and_all_that_is_passed_over_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let latin = OsStr::from_bytes(b"caf\xe9.TXT");
        fs::write(folder.path().join(latin), "x").unwrap();
        fs::create_dir(folder.path().join(".ipynb_checkpoints")).unwrap();
        fs::write(folder.path().join(".ipynb_checkpoints/a.txt"), "x").unwrap();
        fs::write(folder.path().join("._a.txt"), b"\x00\xff").unwrap();
        fs::write(folder.path().join("picture.png"), "x").unwrap();
        fs::write(folder.path().join("txt"), "x").unwrap();
        symlink("nowhere.txt", folder.path().join("broken.txt")).unwrap();
        symlink("itself.txt", folder.path().join("itself.txt")).unwrap();
        let pipe = folder.path().join("pipe.txt");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let (files, remarks) = walk(folder.path());
        assert_eq!(files, [PathBuf::from(latin)]);
        let starts: Vec<&str> =
            remarks.iter().map(|remark| &remark[..remark.find(" passed").unwrap()]).collect();
        assert_eq!(starts, ["2 links", "2 names", "1 pipe, socket or device", "2 files of other types"]);
    }

    #[test]
    fn a_folder_that_cannot_be_listed_is_an_error() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let closed = folder.path().join("closed");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        let result = text_files(folder.path(), &mut Remarks::default(), &Progress::silent());
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        // The administrator may list everything.
        if let Err(error) = result {
            assert!(
                error.to_string().contains("cannot list") && error.to_string().contains("closed"),
                "{error}"
            );
        }
    }
}
