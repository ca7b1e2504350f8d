//! Finding the runs below a folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use switchyard_ground::say;

use switchyard_trainer::run_folder::RunPaths;

use crate::failure::Failure;

/// Every folder with a `run.json` at and below `folder`, in the order of their names. Links are not followed, which
/// could lead round in a circle.
///
/// # Errors
/// If `folder` is no folder.
pub(crate) fn run_folders(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !folder.is_dir() {
        let message = format!("`{}` is no folder: name one that holds run folders", folder.display());
        return Err(Failure::Mistake(message));
    }
    let mut found = Vec::new();
    let mut waiting = vec![folder.to_path_buf()];
    while let Some(folder) = waiting.pop() {
        if RunPaths::new(&folder).manifest().exists() {
            found.push(folder);
            continue;
        }
        match subfolders(&folder) {
            Ok(folders) => waiting.extend(folders),
            // One closed folder must not hide the runs beside it.
            Err(error) => say!("note: cannot look into `{}`: {error}", folder.display()),
        }
    }
    found.sort();
    Ok(found)
}

fn subfolders(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_at_any_depth_and_nothing_is_looked_for_inside_them() {
        let root = tempfile::tempdir().unwrap();
        for path in ["b", "a/deep/er", "a/deep/er/checkpoints/inner", "no-run"] {
            fs::create_dir_all(root.path().join(path)).unwrap();
        }
        for path in ["b", "a/deep/er", "a/deep/er/checkpoints/inner"] {
            fs::write(root.path().join(path).join("run.json"), "{}").unwrap();
        }
        let found = run_folders(root.path()).unwrap();
        assert_eq!(found, [root.path().join("a/deep/er"), root.path().join("b")]);
        assert_eq!(run_folders(&found[1]).unwrap(), [found[1].clone()], "a run folder itself");
        assert!(run_folders(&root.path().join("absent")).is_err());
    }
}
