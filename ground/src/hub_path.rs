//! Names of files on the Hugging Face hub, `hf://[datasets/]OWNER/NAME[@REVISION][/PATH]`, as paths
//! of this machine.
//!
//! Files are kept where other tools keep them (`HF_HOME`, else `~/.cache/huggingface`), so that what
//! was fetched once is found without a network. `HF_ENDPOINT` names a mirror, and the token that
//! `huggingface-cli login` left there is used. Needs the feature `hub`.

use std::fmt;
use std::path::{Path, PathBuf};

const SCHEME: &str = "hf://";
const DATASETS: &str = "datasets/";
const DEFAULT_REVISION: &str = "main";

/// A repository of the hub, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubPath {
    /// Whether it is a repository of data, rather than of a model.
    pub is_dataset: bool,
    /// `OWNER/NAME`.
    pub repository: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// File or folder inside; empty is all of it.
    pub inner: String,
}

/// Why a name of the hub is no file here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubPathError {
    path: String,
    problem: String,
}

impl fmt::Display for HubPathError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`{}` {}", self.path, self.problem)
    }
}

impl std::error::Error for HubPathError {}

impl HubPath {
    /// What `path` names on the hub; `None` if it is a path of this machine.
    ///
    /// # Errors
    /// If it begins with `hf://` and is not complete.
    pub fn parse(path: &Path) -> Result<Option<Self>, HubPathError> {
        let Some(name) = path.to_str().and_then(|path| path.strip_prefix(SCHEME)) else { return Ok(None) };
        let (is_dataset, name) = match name.strip_prefix(DATASETS) {
            Some(name) => (true, name),
            None => (false, name),
        };
        let mut parts = name.splitn(3, '/');
        let mut next = || parts.next().unwrap_or_default();
        let (owner, name, inner) = (next(), next(), next());
        let (name, revision) = name.split_once('@').unwrap_or((name, DEFAULT_REVISION));
        let is_whole = |part: &str| !part.is_empty() && ![".", ".."].contains(&part);
        let inner = inner.trim_end_matches('/');
        if ![owner, name, revision].into_iter().all(is_whole)
            || !(inner.is_empty() || inner.split('/').all(is_whole))
        {
            let problem = "is no name on the hub: write hf://[datasets/]OWNER/NAME[@REVISION][/PATH]";
            return Err(HubPathError { path: path.display().to_string(), problem: problem.to_owned() });
        }
        Ok(Some(Self {
            is_dataset,
            repository: format!("{owner}/{name}"),
            revision: revision.to_owned(),
            inner: inner.to_owned(),
        }))
    }
}

/// `path` itself, or the file or folder of this machine that holds what it names on the hub: of a
/// folder those files that `is_wanted` picks from the names of all.
///
/// # Errors
/// If it is not complete, this program was built without the feature `hub`, the hub cannot be
/// reached, or there is no such file.
pub fn local(path: &Path, is_wanted: impl Fn(&[String], &str) -> bool) -> Result<PathBuf, HubPathError> {
    let Some(hub_path) = HubPath::parse(path)? else { return Ok(path.to_owned()) };
    fetch(&hub_path, is_wanted).map_err(|problem| HubPathError { path: path.display().to_string(), problem })
}

#[cfg(not(feature = "hub"))]
fn fetch(_: &HubPath, _: impl Fn(&[String], &str) -> bool) -> Result<PathBuf, String> {
    Err("is on the Hugging Face hub, and this program was built without the feature `hub`: build it with \
         `--features hub`, or download the files and name their folder"
        .to_owned())
}

#[cfg(feature = "hub")]
use fetched::fetch;

#[cfg(feature = "hub")]
mod fetched {
    use std::path::PathBuf;

    use hf_hub::api::sync::{ApiBuilder, ApiRepo};
    use hf_hub::{Cache, Repo, RepoType};

    use super::HubPath;

    pub(super) fn fetch(
        wanted: &HubPath,
        is_wanted: impl Fn(&[String], &str) -> bool,
    ) -> Result<PathBuf, String> {
        let HubPath { is_dataset, repository, revision, inner } = wanted;
        let kind = if *is_dataset { RepoType::Dataset } else { RepoType::Model };
        let repo = Repo::with_revision(repository.clone(), kind, revision.clone());
        // A file that was fetched once needs no network; a folder does, to know what belongs to it.
        if let Some(known) = Cache::from_env().repo(repo.clone()).get(inner).filter(|path| path.is_file()) {
            return Ok(known);
        }
        let api = ApiBuilder::from_env().with_progress(true).build().map_err(unreachable)?;
        let api = api.repo(repo);
        let names: Vec<String> =
            api.info().map_err(unreachable)?.siblings.into_iter().map(|file| file.rfilename).collect();
        if names.contains(inner) {
            return api.get(inner).map_err(unreachable);
        }
        fetch_folder(&api, &names, inner, is_wanted)
    }

    fn fetch_folder(
        api: &ApiRepo,
        names: &[String],
        inner: &str,
        is_wanted: impl Fn(&[String], &str) -> bool,
    ) -> Result<PathBuf, String> {
        let is_below = |name: &str| {
            inner.is_empty() || name.strip_prefix(inner).is_some_and(|rest| rest.starts_with('/'))
        };
        let mut root = None;
        for name in names.iter().filter(|name| is_below(name) && is_wanted(names, name)) {
            let file = api.get(name).map_err(unreachable)?;
            root = file.ancestors().nth(name.split('/').count()).map(|root| root.to_owned());
        }
        let root =
            root.ok_or_else(|| format!("names none of the {} files there that can be used", names.len()))?;
        Ok(if inner.is_empty() { root } else { root.join(inner) })
    }

    fn unreachable(error: impl std::fmt::Display) -> String {
        format!(
            "cannot be fetched: {error}; is there a network, and for a private or gated repository a token \
             (`HF_HOME/token`)? Files that lie here already need none: name their folder"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_and_paths_left_alone() {
        let parse = |text: &str| HubPath::parse(Path::new(text));
        let of = |is_dataset, repository: &str, revision: &str, inner: &str| HubPath {
            is_dataset,
            repository: repository.into(),
            revision: revision.into(),
            inner: inner.into(),
        };
        assert_eq!(parse("hf://a/b"), Ok(Some(of(false, "a/b", "main", ""))));
        assert_eq!(parse("hf://a/b@v1/c/d.json"), Ok(Some(of(false, "a/b", "v1", "c/d.json"))));
        assert_eq!(parse("hf://datasets/a/b/data/"), Ok(Some(of(true, "a/b", "main", "data"))));
        assert_eq!(parse("texts/hf://a"), Ok(None));
        for wrong in
            ["hf://", "hf://a", "hf://a/", "hf://datasets/a", "hf://a/b@", "hf://a/b/../c", "hf://a/b//c"]
        {
            let error = parse(wrong).unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains("OWNER/NAME"), "{error}");
        }
        assert_eq!(local(Path::new("a/b"), |_, _| true), Ok(PathBuf::from("a/b")));
    }

    #[cfg(not(feature = "hub"))]
    #[test]
    fn without_the_feature_it_is_named() {
        let error = local(Path::new("hf://a/b"), |_, _| true).unwrap_err().to_string();
        assert!(error.contains("`hf://a/b`") && error.contains("--features hub"), "{error}");
    }
}
