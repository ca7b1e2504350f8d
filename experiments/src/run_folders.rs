//! Finding the runs below a folder, and reading each.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use switchyard_ground::say;

use switchyard_trainer::run_folder::RunPaths;

use crate::failure::Failure;

/// Every folder with a `run.json` at and below `folder`, in the order of their names. Links to
/// folders are followed. A folder that is reached on several ways, in a circle for one, is looked
/// into once, under its own name rather than a link's.
///
/// # Errors
/// If `folder` is no folder.
pub(crate) fn run_folders(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !folder.is_dir() {
        let message = format!("`{}` is no folder: name one that holds run folders", folder.display());
        return Err(Failure::Mistake(message));
    }
    let mut search = Search { found: Vec::new(), seen: HashSet::new(), links: Vec::new() };
    let mut waiting = vec![folder.to_path_buf()];
    // Links come last, so that a folder beside a link to it is found by its own name.
    while let Some(folder) = waiting.pop().or_else(|| search.links.pop()) {
        // One closed folder must not hide the runs beside it.
        match search.look_into(&folder) {
            Ok(folders) => waiting.extend(folders),
            Err(error) => say!("note: cannot look into `{}`: {error}", folder.display()),
        }
    }
    search.found.sort();
    Ok(search.found)
}

struct Search {
    found: Vec<PathBuf>,
    /// Folders that were looked into, without links in their names.
    seen: HashSet<PathBuf>,
    /// Links to folders that still have to be followed.
    links: Vec<PathBuf>,
}

impl Search {
    /// The folders inside `folder`; none of a run, and none of a folder that was looked into
    /// before.
    fn look_into(&mut self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        if !self.seen.insert(fs::canonicalize(folder)?) {
            return Ok(Vec::new());
        }
        if RunPaths::new(folder).manifest().try_exists()? {
            self.found.push(folder.into());
            return Ok(Vec::new());
        }
        let mut folders = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_symlink() && entry.path().is_dir() {
                self.links.push(entry.path());
            }
        }
        // The order of a folder's entries is the file system's; which of two links is followed must
        // not depend on it.
        self.links.sort_by(|a, b| b.cmp(a));
        Ok(folders)
    }
}

/// What `read` makes of each of `folders`. A folder that cannot be read is said to be left out, and
/// hides none of the others.
///
/// # Errors
/// The first failure, if no folder can be read.
pub(crate) fn read_each<T>(
    folders: &[PathBuf],
    mut read: impl FnMut(&Path) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    let (mut values, mut failures) = (Vec::new(), Vec::new());
    for folder in folders {
        match read(folder) {
            Ok(value) => values.push(value),
            Err(failure) => failures.push((folder, failure)),
        }
    }
    if values.is_empty() && !failures.is_empty() {
        return Err(failures.swap_remove(0).1);
    }
    for (folder, failure) in failures {
        let reason = failure.message().unwrap_or_default();
        say!("note: `{}` is left out: {}", folder.display(), reason.trim_start_matches("error: "));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these runs in it.
    fn folder_of(runs: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for path in runs {
            fs::create_dir_all(root.path().join(path)).unwrap();
            fs::write(root.path().join(path).join("run.json"), "{}").unwrap();
        }
        root
    }

    #[test]
    fn runs_are_found_at_any_depth_and_nothing_is_looked_for_inside_them() {
        let root = folder_of(&["b", "a/deep/er", "a/deep/er/checkpoints/inner"]);
        fs::create_dir(root.path().join("no-run")).unwrap();
        let found = run_folders(root.path()).unwrap();
        assert_eq!(found, [root.path().join("a/deep/er"), root.path().join("b")]);
        assert_eq!(run_folders(&found[1]).unwrap(), [found[1].clone()], "a run folder itself");
        assert!(run_folders(&root.path().join("absent")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn links_to_runs_and_to_folders_of_runs_are_followed() {
        use std::os::unix::fs::symlink;
        let (elsewhere, root) = (folder_of(&["one", "more/two"]), tempfile::tempdir().unwrap());
        symlink(elsewhere.path().join("one"), root.path().join("linked-run")).unwrap();
        symlink(elsewhere.path().join("more"), root.path().join("linked-folder")).unwrap();
        symlink(root.path().join("nowhere"), root.path().join("dangling")).unwrap();
        let expected = [root.path().join("linked-folder/two"), root.path().join("linked-run")];
        assert_eq!(run_folders(root.path()).unwrap(), expected);
    }

    #[cfg(unix)]
    #[test]
    fn a_circle_of_links_ends_and_each_run_is_listed_once_under_its_own_name() {
        use std::os::unix::fs::symlink;
        let root = folder_of(&["z/run"]);
        symlink("..", root.path().join("z/up")).unwrap();
        symlink("itself", root.path().join("itself")).unwrap();
        for link in ["a", "b"] {
            symlink(root.path().join("z/run"), root.path().join(link)).unwrap();
        }
        assert_eq!(run_folders(root.path()).unwrap(), [root.path().join("z/run")]);
    }

    #[test]
    fn a_folder_that_cannot_be_read_hides_none_of_the_others() {
        let folders = ["a", "torn", "b"].map(PathBuf::from);
        let read = |folder: &Path| match folder.to_str() {
            Some("torn") => Err(Failure::Mistake("torn".into())),
            name => Ok(name.unwrap().to_string()),
        };
        assert_eq!(read_each(&folders, read).unwrap(), ["a", "b"]);
        assert_eq!(read_each(&[], read).unwrap(), [""; 0]);
        assert!(
            matches!(read_each(&folders[1..2], read), Err(Failure::Mistake(message)) if message == "torn")
        );
    }
}
