//! Where each key of a configuration was written.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::Override;

/// Line and column in a file, counted from 1; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SourcePosition {
    line: usize,
    column: usize,
}

impl SourcePosition {
    /// The position of byte `offset` of `text`.
    pub(crate) fn of(text: &str, offset: usize) -> Self {
        let before = &text.as_bytes()[..offset.min(text.len())];
        let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        Self {
            line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
            column: 1 + String::from_utf8_lossy(&before[line_start..]).chars().count(),
        }
    }
}

impl fmt::Display for SourcePosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// The keys of a file with their positions, and the overrides on top.
#[derive(Debug, Clone)]
pub(crate) struct Origins {
    path: PathBuf,
    /// By key path, such as `train.num_steps`.
    positions: BTreeMap<String, SourcePosition>,
    overrides: Vec<Override>,
}

impl Origins {
    /// The origins of the keys in `text`, which was read from `path`.
    ///
    /// # Errors
    /// If `text` is not TOML.
    pub(crate) fn read(text: &str, path: &Path, overrides: &[Override]) -> Result<Self, toml::de::Error> {
        let mut positions = BTreeMap::new();
        collect_positions(DeTable::parse(text)?.get_ref(), "", text, &mut positions);
        Ok(Self { path: path.to_owned(), positions, overrides: overrides.to_vec() })
    }

    /// `file:line:column` or `--set key=value` of `key`, or of the nearest table around it that was written; the file
    /// alone, if there is none.
    pub(crate) fn locate(&self, key: &str) -> String {
        // Elements of a list have no place of their own.
        let mut key = key.split('[').next().unwrap_or(key);
        loop {
            let below = format!("{key}.");
            let set_below = |o: &&Override| o.key() == key || below.starts_with(&format!("{}.", o.key()));
            let set_inside = |o: &&Override| o.key().starts_with(&below);
            if let Some(set) = self.overrides.iter().rev().find(set_below) {
                return set.to_string();
            }
            if let Some(position) = self.positions.get(key) {
                return format!("{}:{position}", self.path.display());
            }
            if let Some(set) = self.overrides.iter().rev().find(set_inside) {
                return set.to_string();
            }
            match key.rsplit_once('.') {
                Some((table, _)) => key = table,
                None => return self.path.display().to_string(),
            }
        }
    }
}

fn collect_positions(
    table: &DeTable<'_>,
    prefix: &str,
    text: &str,
    positions: &mut BTreeMap<String, SourcePosition>,
) {
    for (key, value) in table {
        let path = format!("{prefix}{}", key.get_ref());
        if let DeValue::Table(inner) = value.get_ref() {
            collect_positions(inner, &format!("{path}."), text, positions);
        }
        positions.insert(path, SourcePosition::of(text, key.span().start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "name = 'a'\n\n[train]\n  num_steps = 1\nadamw = { learning_rate = 1 }\n[model.norm.rms]\n";

    fn locate(key: &str, overrides: &[&str]) -> String {
        let overrides: Vec<Override> = overrides.iter().map(|text| Override::parse(text).unwrap()).collect();
        Origins::read(TEXT, Path::new("x.toml"), &overrides).unwrap().locate(key)
    }

    #[test]
    fn a_key_lies_where_it_was_written() {
        assert_eq!(locate("name", &[]), "x.toml:1:1");
        assert_eq!(locate("train.num_steps", &[]), "x.toml:4:3");
        assert_eq!(locate("train.adamw.learning_rate", &[]), "x.toml:5:11");
        assert_eq!(locate("model.norm.rms", &[]), "x.toml:6:13");
        assert_eq!(locate("model.norm", &[]), "x.toml:6:8");
    }

    #[test]
    fn a_key_that_is_missing_lies_where_its_table_was_written() {
        assert_eq!(locate("train.seq_len", &[]), "x.toml:3:2");
        assert_eq!(locate("model.norm.rms.epsilon", &[]), "x.toml:6:13");
        assert_eq!(locate("data.crates", &[]), "x.toml");
    }

    #[test]
    fn an_override_is_where_the_key_was_written_last() {
        assert_eq!(locate("train.num_steps", &["train.num_steps=2"]), "--set train.num_steps=2");
        assert_eq!(locate("train.adamw.beta1", &["train.adamw={}"]), "--set train.adamw={}");
        assert_eq!(locate("data.text", &["data.text.path=a"]), "--set data.text.path=a");
        assert_eq!(locate("train", &["train.num_steps=2"]), "x.toml:3:2");
        assert_eq!(locate("name", &["name=b", "name=c"]), "--set name=c");
    }

    #[test]
    fn columns_count_characters() {
        assert_eq!(SourcePosition::of("a\nüb", 4).to_string(), "2:2");
    }
}
