//! A folder with everything below it, held in memory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// What lies under one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    Folder,
    File(Vec<u8>),
    /// A symbolic link and its target.
    Link(String),
}

/// Paths relative to the folder, and what is there; a folder stands before what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Tree(pub(crate) BTreeMap<String, Entry>);

impl Tree {
    pub(crate) fn read(folder: &Path) -> Self {
        let mut tree = Self::default();
        tree.read_into(folder, "");
        tree
    }

    fn read_into(&mut self, folder: &Path, prefix: &str) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
            if path.is_symlink() {
                let target = fs::read_link(&path).unwrap().to_str().unwrap().to_string();
                self.0.insert(name, Entry::Link(target));
            } else if path.is_dir() {
                self.read_into(&path, &format!("{name}/"));
                self.0.insert(name, Entry::Folder);
            } else {
                self.0.insert(name, Entry::File(fs::read(&path).unwrap()));
            }
        }
    }

    /// Makes the folder, which must not exist, and all that is in it.
    pub(crate) fn write(&self, folder: &Path) {
        fs::create_dir(folder).unwrap();
        for (name, entry) in &self.0 {
            let path = folder.join(name);
            match entry {
                Entry::Folder => fs::create_dir(&path),
                Entry::File(bytes) => fs::write(&path, bytes),
                Entry::Link(target) => symlink(target, &path),
            }
            .unwrap();
        }
    }

    /// The first path at which two folders differ.
    pub(crate) fn first_difference(&self, other: &Self) -> Option<String> {
        let mut names: Vec<&String> = self.0.keys().chain(other.0.keys()).collect();
        names.sort();
        names.into_iter().find(|name| self.0.get(*name) != other.0.get(*name)).cloned()
    }
}
