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
    keys: Keys,
    overrides: Vec<Override>,
}

/// The keys of a table. A tree, because a hostile file may have paths whose lengths add up to far
/// more than its own.
type Keys = BTreeMap<String, Key>;

/// Where a key was written, and the keys inside it.
#[derive(Debug, Clone)]
struct Key {
    position: SourcePosition,
    inner: Keys,
}

impl Origins {
    /// The origins of the keys in `text`, which was read from `path`.
    ///
    /// # Errors
    /// If `text` is not TOML.
    pub(crate) fn read(text: &str, path: &Path, overrides: &[Override]) -> Result<Self, toml::de::Error> {
        let table = DeTable::parse(text)?;
        let mut offsets = Vec::new();
        collect_offsets(table.get_ref(), &mut offsets);
        let keys = located(table.get_ref(), &positions_of(text, offsets));
        Ok(Self { path: path.to_owned(), keys, overrides: overrides.to_vec() })
    }

    /// `file:line:column` or `--set key=value` of `key`, or of the nearest table around it that was
    /// written; the file alone, if there is none.
    pub(crate) fn locate(&self, key: &str) -> String {
        let mut key = key;
        loop {
            // The command line names lists as a whole.
            let whole = without_indices(key);
            let below = format!("{whole}.");
            let set_below = |o: &&Override| o.key() == whole || below.starts_with(&format!("{}.", o.key()));
            let set_inside = |o: &&Override| o.key().starts_with(&below);
            if let Some(set) = self.overrides.iter().rev().find(set_below) {
                return set.to_string();
            }
            if let Some(position) = position_of(&self.keys, key) {
                return format!("{}:{position}", self.path.display());
            }
            if let Some(set) = self.overrides.iter().rev().find(set_inside) {
                return set.to_string();
            }
            let around = if key.ends_with(']') { key.rsplit_once('[') } else { key.rsplit_once('.') };
            match around {
                Some((around, _)) => key = around,
                None => return self.path.display().to_string(),
            }
        }
    }
}

/// `path` with the places in lists left out.
fn without_indices(path: &str) -> String {
    let word = |word: &str| word.split('[').next().unwrap_or(word).to_owned();
    path.split('.').map(word).collect::<Vec<_>>().join(".")
}

/// Where the key at `path` was written. A name in quotes may hold dots of its own.
fn position_of(keys: &Keys, path: &str) -> Option<SourcePosition> {
    if let Some(key) = keys.get(path) {
        return Some(key.position);
    }
    path.match_indices('.').find_map(|(dot, _)| position_of(&keys.get(&path[..dot])?.inner, &path[dot + 1..]))
}

fn collect_offsets(table: &DeTable<'_>, offsets: &mut Vec<usize>) {
    for (key, value) in table {
        offsets.push(key.span().start);
        match value.get_ref() {
            DeValue::Table(inner) => collect_offsets(inner, offsets),
            DeValue::Array(elements) => {
                for element in elements.iter() {
                    offsets.push(element.span().start);
                    if let DeValue::Table(inner) = element.get_ref() {
                        collect_offsets(inner, offsets);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The positions of `offsets`, in one pass over `text`: looking from its start for each would take
/// minutes for a file of many keys.
fn positions_of(text: &str, mut offsets: Vec<usize>) -> BTreeMap<usize, SourcePosition> {
    offsets.sort_unstable();
    let (mut position, mut done) = (SourcePosition { line: 1, column: 1 }, 0);
    let position_at = |offset: usize| {
        for letter in text.get(done..offset).unwrap_or_default().chars() {
            position = match letter {
                '\n' => SourcePosition { line: position.line + 1, column: 1 },
                _ => SourcePosition { column: position.column + 1, ..position },
            };
        }
        done = offset;
        (offset, position)
    };
    offsets.into_iter().map(position_at).collect()
}

fn located(table: &DeTable<'_>, positions: &BTreeMap<usize, SourcePosition>) -> Keys {
    let located_at = |start: usize, value: &DeValue<'_>| {
        let inner = match value {
            DeValue::Table(inner) => located(inner, positions),
            _ => Keys::new(),
        };
        Key { position: positions[&start], inner }
    };
    let mut keys = Keys::new();
    for (key, value) in table {
        let name = ToString::to_string(key.get_ref());
        if let DeValue::Array(elements) = value.get_ref() {
            for (index, element) in elements.iter().enumerate() {
                let key = located_at(element.span().start, element.get_ref());
                keys.insert(format!("{name}[{index}]"), key);
            }
        }
        keys.insert(name, located_at(key.span().start, value.get_ref()));
    }
    keys
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
    fn a_name_in_quotes_may_hold_dots() {
        let text = "\n\"a.b\" = 1\n['c.d'.e]\nf.g = 1\n";
        let origins = Origins::read(text, Path::new("x.toml"), &[]).unwrap();
        assert_eq!(origins.locate("a.b"), "x.toml:2:1");
        assert_eq!(origins.locate("c.d.e.f.g"), "x.toml:4:3");
        assert_eq!(origins.locate("c.d.e.x"), "x.toml:3:8");
    }

    #[test]
    fn positions_in_one_pass_are_those_looked_for_from_the_start() {
        let text = "'ä' = 1\nb = { c = 'ü', d = [1, 2] }\n\n  [e.f]\n\tg = \"x\ty\"\nh.i.j = 1\n";
        let mut offsets = Vec::new();
        collect_offsets(DeTable::parse(text).unwrap().get_ref(), &mut offsets);
        assert_eq!(offsets.len(), 12);
        for (offset, position) in positions_of(text, offsets) {
            assert_eq!(position, SourcePosition::of(text, offset));
        }
    }

    /// From the start for each key, these would be 10^12 steps; as whole paths, 10 GB.
    #[test]
    fn many_keys_and_long_tables_cost_what_their_text_costs() {
        let long = "x".repeat(500_000);
        let keys: String = (0..50_000).map(|index| format!("k{index}=1\n")).collect();
        let one_line: String = (0..50_000).map(|index| format!("k{index}=1,")).collect();
        let started = std::time::Instant::now();
        let text = format!("one = {{ {} }}\n[{long}]\n{keys}", one_line.trim_end_matches(','));
        let origins = Origins::read(&text, Path::new("x.toml"), &[]).unwrap();
        assert_eq!(origins.locate(&format!("{long}.k49999")), "x.toml:50002:1");
        assert!(origins.locate("one.k49999").starts_with("x.toml:1:"));
        assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    }

    #[test]
    fn elements_of_a_list_have_their_own_places() {
        let text = "[[a.b]]\nc = 1\n[[a.b]]\nc = 2\nd = [1, 'x']\n[e]\nf = [{ g = 1 }, { g = 2 }]\n";
        let origins = Origins::read(text, Path::new("x.toml"), &[Override::parse("h=[]").unwrap()]).unwrap();
        assert_eq!(origins.locate("a.b[0].c"), "x.toml:2:1");
        assert_eq!(origins.locate("a.b[1].c"), "x.toml:4:1");
        assert_eq!(origins.locate("a.b[1].missing.key"), "x.toml:3:1");
        assert_eq!(origins.locate("a.b[1].d[1]"), "x.toml:5:9");
        assert_eq!(origins.locate("e.f[1].g"), "x.toml:7:19");
        assert_eq!(origins.locate("h[3].g"), "--set h=[]");
    }

    #[test]
    fn columns_count_characters() {
        assert_eq!(SourcePosition::of("a\nüb", 4).to_string(), "2:2");
    }
}
