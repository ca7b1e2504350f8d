//! Changes to TOML: of its values, of its lines, of its bytes.

use std::path::Path;

use rand::RngExt;
use serde_json::Value;

use crate::engine::json::JsonSeeds;
use crate::engine::mutation::{self, BOUNDARY_NUMBERS, pick};
use crate::engine::{Random, Seed, corpus};

/// What a key can be given, besides a number.
const VALUES: [&str; 14] = [
    "true",
    "false",
    "\"\"",
    "'text'",
    "[]",
    "{}",
    "[1, 2]",
    "[[0]]",
    "{ a = 1 }",
    "nan",
    "inf",
    "-inf",
    "1979-05-27",
    "\"\"\"\n\"\"\"",
];

/// TOML files to damage.
pub(crate) struct TomlSeeds {
    /// The files.
    pub(crate) files: Vec<Seed>,
    values: JsonSeeds,
    /// Lines of all files, comments left out.
    lines: Vec<String>,
    /// Paths of all keys, as `--set` takes them.
    pub(crate) keys: Vec<String>,
}

impl TomlSeeds {
    /// The TOML files below `folder` for which `is_wanted` holds, given their name.
    pub(crate) fn open(folder: &Path, is_wanted: impl Fn(&str) -> bool) -> Self {
        Self::open_changed(folder, is_wanted, str::to_owned)
    }

    /// The same, each file as `change` makes it.
    pub(crate) fn open_changed(
        folder: &Path,
        is_wanted: impl Fn(&str) -> bool,
        change: impl Fn(&str) -> String,
    ) -> Self {
        let is_file = |seed: &Seed| seed.name.ends_with(".toml") && is_wanted(&seed.name);
        let mut files: Vec<Seed> = corpus(folder).into_iter().filter(is_file).collect();
        for file in &mut files {
            file.bytes = change(std::str::from_utf8(&file.bytes).expect("a recipe is text")).into_bytes();
        }
        let texts = files.iter().map(|seed| std::str::from_utf8(&seed.bytes).expect("a recipe is text"));
        let values =
            texts.clone().map(|text| toml::from_str::<Value>(text).expect("a recipe is TOML")).collect();
        let is_line = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with('#');
        let lines = texts.flat_map(|text| text.lines().filter(is_line).map(str::to_owned)).collect();
        let mut seeds = Self { files, values: JsonSeeds::of_values(values), lines, keys: Vec::new() };
        for value in &seeds.values.values {
            collect_keys(value, "", &mut seeds.keys);
        }
        seeds.keys.sort();
        seeds.keys.dedup();
        seeds
    }

    /// A file that is damaged in one of the three ways, or in two.
    pub(crate) fn damaged(&self, random: &mut Random) -> Vec<u8> {
        let which = random.random_range(0..self.files.len());
        let mut text = String::from_utf8_lossy(&self.files[which].bytes).into_owned();
        if random.random() {
            let mut value = self.values.values[which].clone();
            self.values.mutate(&mut value, random);
            // TOML has no null, and a table at the top.
            text = toml::to_string(&value).unwrap_or(text);
        }
        if random.random() {
            text = self.with_changed_lines(&text, random);
        }
        let mut bytes = text.into_bytes();
        if random.random_range(0..4) == 0 {
            mutation::mutate(&mut bytes, &self.files, &self.values.words, random);
        }
        bytes
    }

    /// A value, or what is meant to look like one.
    pub(crate) fn value(&self, random: &mut Random) -> String {
        match random.random_range(0..4) {
            0 => (*pick(&BOUNDARY_NUMBERS, random)).to_owned(),
            1 => (*pick(&VALUES, random)).to_owned(),
            2 => format!("\"{}\"", pick(&self.values.words, random)),
            _ => {
                let line: &String = pick(&self.lines, random);
                line.split_once('=').map_or("0", |(_, value)| value.trim()).to_owned()
            }
        }
    }

    fn with_changed_lines(&self, text: &str, random: &mut Random) -> String {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for _ in 0..mutation::num_changes(random) {
            let at = random.random_range(0..=lines.len());
            match random.random_range(0..6) {
                0 if at < lines.len() => drop(lines.remove(at)),
                1 if at < lines.len() => lines.insert(at, lines[at].clone()),
                2 if at < lines.len() => {
                    let other = random.random_range(0..lines.len());
                    lines.swap(at, other);
                }
                3 if at < lines.len() => {
                    if let Some((key, _)) = lines[at].split_once('=') {
                        lines[at] = format!("{key}= {}", self.value(random));
                    }
                }
                4 => lines.insert(at, format!("{} = {}", pick(&self.keys, random), self.value(random))),
                _ => lines.insert(at, pick(&self.lines, random).clone()),
            }
        }
        lines.join("\n")
    }
}

fn collect_keys(value: &Value, path: &str, keys: &mut Vec<String>) {
    let Value::Object(map) = value else { return };
    for (key, inner) in map {
        let inner_path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        collect_keys(inner, &inner_path, keys);
        keys.push(inner_path);
    }
}
