//! No two files of a crate use each other, directly or through others.
//!
//! Each file of a crate's `src` is a module. What a file names in `use` declarations, and in paths
//! that begin with `crate`, `super`, `self` or a module of its own, leads to the file that defines
//! it, through re-exports. A module and the modules inside it are one room: their uses of each
//! other do not count. Neither do tests.

#![expect(clippy::unwrap_used, reason = "functions of a test fail as the test does")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::{env, fs};

const CRATES: [&str; 12] = [
    "ground",
    "comm",
    "kernels/cpu",
    "kernels",
    "router",
    "experts",
    "model",
    "flight",
    "datasets",
    "hub",
    "trainer",
    "experiments",
];

/// The names of a module from the root of its crate on.
type Module = Vec<String>;

/// The modules of a crate with what is in their files.
struct Crate {
    texts: BTreeMap<Module, String>,
    /// What each module gives out from another place: the name and the full path.
    reexports: BTreeMap<Module, Vec<(String, Module)>>,
}

#[test]
fn no_two_files_use_each_other() {
    // Asked when the test runs: two checkouts may share a target folder, and with it this program.
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("..");
    let circles: Vec<String> = CRATES
        .iter()
        .flat_map(|name| {
            let circles = Crate::read(&root.join(name).join("src")).circles();
            circles.into_iter().map(move |circle| format!("{name}: {circle}"))
        })
        .collect();
    assert!(circles.is_empty(), "files that use each other:\n{}", circles.join("\n"));
}

#[test]
fn a_circle_is_found_through_a_re_export_and_a_third_file() {
    let files = [
        ("", "mod a;\nmod b;\nmod c;\npub use c::{Third, Other as Renamed};"),
        ("a", "use crate::b::First;"),
        ("b", "fn f() -> crate::Third { g() }"),
        ("c", "//! use crate::nothing;\nuse super::a;"),
    ];
    assert_eq!(Crate::of(&files).circles(), ["a -> b, b -> c, c -> a"]);
    let cut = [files[0], files[1], files[2], ("c", "#[cfg(test)]\nmod tests { use super::super::a; }")];
    assert!(Crate::of(&cut).circles().is_empty());
}

#[test]
fn a_module_and_what_is_inside_it_are_one_room() {
    let files =
        [("", "mod a;"), ("a", "mod b;\nuse b::B;\nstruct A;"), ("a::b", "use super::A;\npub struct B;")];
    assert!(Crate::of(&files).circles().is_empty());
}

impl Crate {
    fn read(src: &Path) -> Self {
        let mut texts = BTreeMap::new();
        collect(src, &mut Vec::new(), &mut texts);
        assert!(!texts.is_empty(), "no sources in {}", src.display());
        Self::new(texts)
    }

    fn of(files: &[(&str, &str)]) -> Self {
        let module =
            |name: &str| name.split("::").filter(|part| !part.is_empty()).map(String::from).collect();
        Self::new(files.iter().map(|(name, text)| (module(name), without_tests(text))).collect())
    }

    fn new(texts: BTreeMap<Module, String>) -> Self {
        let mut this = Self { texts, reexports: BTreeMap::new() };
        let of_module = |(module, text): (&Module, &String)| {
            let exported = declarations(text).into_iter().filter(|(is_public, _)| *is_public);
            let named = exported.flat_map(|(_, tree)| paths(&tree)).filter_map(|(path, name)| {
                let full = this.absolute(module, &path)?;
                (full != *module).then_some((name, full))
            });
            (module.clone(), named.collect())
        };
        let reexports = this.texts.iter().map(of_module).collect();
        this.reexports = reexports;
        this
    }

    /// `path`, as `module` writes it, from the root on; `None` if it begins with another crate.
    fn absolute(&self, module: &Module, path: &[String]) -> Option<Module> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some([module, rest].concat()),
            "super" => {
                let parent = module.split_last().map(|(_, parent)| parent.to_vec()).unwrap_or_default();
                match rest.first() {
                    Some(next) if next == "super" => self.absolute(&parent, rest),
                    _ => Some([&parent, rest].concat()),
                }
            }
            own => {
                let child = [module.as_slice(), &[own.to_owned()]].concat();
                self.texts.contains_key(&child).then(|| [module, path].concat())
            }
        }
    }

    /// The module whose file defines what is at `full`.
    fn definition(&self, full: &[String], depth: usize) -> Option<Module> {
        let mut prefixes = (0..=full.len()).rev().map(|length| full[..length].to_vec());
        let module = prefixes.find(|module| self.texts.contains_key(module))?;
        let item = full.get(module.len());
        let mut reexports = self.reexports.get(&module).into_iter().flatten();
        match reexports.find(|(name, _)| Some(name) == item) {
            Some((_, target)) if depth < 8 => self.definition(target, depth + 1),
            _ => Some(module),
        }
    }

    /// The modules that each module uses, without those that it is in or that are in it.
    fn uses(&self) -> BTreeMap<Module, BTreeSet<Module>> {
        let of_module = |module: &Module, text: &str| {
            let private = declarations(text).into_iter().filter(|(is_public, _)| !is_public);
            let declared = private.flat_map(|(_, tree)| paths(&tree)).map(|(path, _)| path);
            declared
                .chain(paths_in_code(text))
                .filter_map(|path| self.definition(&self.absolute(module, &path)?, 0))
                .filter(|used| !used.starts_with(module) && !module.starts_with(used))
                .collect()
        };
        self.texts.iter().map(|(module, text)| (module.clone(), of_module(module, text))).collect()
    }

    /// For every module from which there is a way round, the shortest, each circle once.
    fn circles(&self) -> Vec<String> {
        let uses = self.uses();
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        for way in uses.keys().filter_map(|start| way_round(start, &uses)) {
            if seen.insert(way.iter().cloned().collect::<BTreeSet<_>>()) {
                let step = |(at, module): (usize, &Module)| {
                    format!("{} -> {}", module.join("::"), way[(at + 1) % way.len()].join("::"))
                };
                found.push(way.iter().enumerate().map(step).collect::<Vec<_>>().join(", "));
            }
        }
        found
    }
}

/// The shortest way from `start` back to it.
fn way_round(start: &Module, uses: &BTreeMap<Module, BTreeSet<Module>>) -> Option<Vec<Module>> {
    let mut ways = VecDeque::from([vec![start.clone()]]);
    let mut visited = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        for next in uses.get(way.last()?).into_iter().flatten() {
            if next == start {
                return Some(way);
            }
            if visited.insert(next.clone()) {
                ways.push_back([way.as_slice(), std::slice::from_ref(next)].concat());
            }
        }
    }
    None
}

fn collect(folder: &Path, place: &mut Module, texts: &mut BTreeMap<Module, String>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
        if path.is_dir() {
            place.push(name);
            collect(&path, place, texts);
            place.pop();
        } else if let Some(stem) = name.strip_suffix(".rs") {
            let is_root = ["mod", "lib", "main"].contains(&stem);
            let is_test = stem == "tests" || stem.ends_with("_tests");
            let module = if is_root { place.clone() } else { [place.as_slice(), &[stem.into()]].concat() };
            let text =
                if is_test { String::new() } else { without_tests(&fs::read_to_string(&path).unwrap()) };
            texts.insert(module, text);
        }
    }
}

/// The source without comments and without what is compiled for tests only.
fn without_tests(source: &str) -> String {
    let code: Vec<&str> = source.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let code = code.join("\n");
    let mut kept = String::new();
    let mut rest = code.as_str();
    while let Some((before, after)) = rest.split_once("#[cfg(test)]") {
        kept += before;
        rest = &after[item_length(after)..];
    }
    kept + rest
}

/// Length of the item that `code` begins with: up to its closing brace, or to a semicolon before
/// any brace.
fn item_length(code: &str) -> usize {
    let mut depth = 0;
    for (at, character) in code.char_indices() {
        match character {
            ';' if depth == 0 => return at + 1,
            '{' => depth += 1,
            '}' if depth == 1 => return at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// The trees of all `use` declarations, each with whether it is public.
fn declarations(code: &str) -> Vec<(bool, String)> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find("use ") {
        let line = rest[..at].rsplit('\n').next().unwrap_or_default().trim();
        let after = &rest[at + "use ".len()..];
        let end = after.find(';').unwrap_or(after.len());
        let is_public = line.starts_with("pub");
        if line.is_empty() || is_public {
            found.push((is_public, after[..end].to_owned()));
            rest = &after[end..];
        } else {
            rest = after;
        }
    }
    found
}

/// The paths of a `use` tree, each with the name that it gets.
fn paths(tree: &str) -> Vec<(Vec<String>, String)> {
    let tree = tree.trim();
    if let Some((prefix, inner)) = tree.split_once('{') {
        let inner = inner.rsplit_once('}').map_or(inner, |(inner, _)| inner);
        let branch = |branch: &str| paths(&format!("{prefix}{}", branch.trim()));
        return branches(inner).into_iter().flat_map(branch).collect();
    }
    let (path, name) = tree.split_once(" as ").map_or((tree, None), |(path, name)| (path, Some(name)));
    let mut path: Vec<String> = path.split("::").map(|part| part.trim().to_owned()).collect();
    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    let Some(last) = path.last().filter(|last| !last.is_empty()) else { return Vec::new() };
    let name = name.map_or_else(|| last.clone(), |name| name.trim().to_owned());
    vec![(path, name)]
}

/// The parts between the commas that are not in braces.
fn branches(inner: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, character) in inner.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&inner[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(&inner[start..]);
    found.into_iter().filter(|branch| !branch.trim().is_empty()).collect()
}

/// Paths of at least two names in the code itself.
fn paths_in_code(code: &str) -> Vec<Vec<String>> {
    let is_part = |character: char| character.is_alphanumeric() || character == '_' || character == ':';
    let words = code.split(|character| !is_part(character)).filter(|word| word.contains("::"));
    words
        .map(|word| word.split("::").map(String::from).collect::<Vec<_>>())
        .filter(|path| path.iter().all(|part| !part.is_empty() && !part.contains(':')))
        .collect()
}
