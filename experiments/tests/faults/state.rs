//! What a command leaves behind, without what the clock had a part in, so that two endings can be
//! compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};
use switchyard_flight::columns::read_experts;

/// What a file says.
#[derive(Debug, PartialEq)]
enum Content {
    Bytes(Vec<u8>),
    Rows(Vec<Value>),
    /// Numbers of the flight recorder, whichever files they are spread over.
    Table(String),
    /// Pictures and pages of measured times: that they are there.
    Anything,
}

/// The files below a folder.
#[derive(Debug, PartialEq)]
pub(crate) struct State(BTreeMap<String, Content>);

impl State {
    pub(crate) fn of(folder: &Path) -> Self {
        let mut state = Self(BTreeMap::new());
        state.add_folder(folder, "");
        state
    }

    fn add_folder(&mut self, folder: &Path, prefix: &str) {
        let mut has_experts = false;
        for path in entries(folder) {
            let file = path.file_name().unwrap().to_str().unwrap().to_string();
            let name = format!("{prefix}{file}");
            if path.is_symlink() {
                let target = fs::read_link(&path).unwrap().to_str().unwrap().to_string();
                self.0.insert(name, Content::Bytes(target.into()));
            } else if path.is_dir() {
                self.add_folder(&path, &format!("{name}/"));
            } else if file.starts_with("experts-") && file.ends_with(".parquet") {
                has_experts = true;
            } else if file.starts_with("events.out.tfevents.") {
                // One per process, each with the time of its start.
                self.0.insert(format!("{prefix}events"), Content::Anything);
            } else if !file.ends_with(".lock") && !is_aside(&file) {
                self.0.insert(name, content(&path, &file));
            }
        }
        if has_experts {
            let rows =
                read_experts(folder).map_or_else(|error| error.to_string(), |rows| format!("{rows:?}"));
            self.0.insert(format!("{prefix}experts"), Content::Table(rows));
        }
    }

    /// Where this state is not the `expected` one, in words; `None` if it is.
    pub(crate) fn difference(&self, expected: &Self) -> Option<String> {
        let mut names: Vec<&String> = self.0.keys().chain(expected.0.keys()).collect();
        names.sort();
        names.dedup();
        let differences =
            names.into_iter().filter_map(|name| match (self.0.get(name), expected.0.get(name)) {
                (Some(mine), Some(theirs)) if mine == theirs => None,
                (Some(Content::Rows(mine)), Some(Content::Rows(theirs))) => {
                    Some(format!("`{name}` differs: {}", first_difference(mine, theirs)))
                }
                (Some(_), Some(_)) => Some(format!("`{name}` differs")),
                (Some(_), None) => Some(format!("`{name}` is left over")),
                (None, _) => Some(format!("`{name}` is missing")),
            });
        let differences: Vec<String> = differences.collect();
        (!differences.is_empty()).then(|| differences.join(", "))
    }

    /// Whether `name` is the only difference.
    pub(crate) fn lacks_only(&self, expected: &Self, name: &str) -> bool {
        self.difference(expected) == Some(format!("`{name}` is missing"))
    }
}

/// Whether the file is a log that a later start set aside, of a part that began again or that was
/// cut off: nothing reads it.
fn is_aside(file: &str) -> bool {
    file.contains(".jsonl.earlier-") || file.contains(".jsonl.damaged-")
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn content(path: &Path, file: &str) -> Content {
    let bytes = fs::read(path).unwrap();
    let rows = |lines: &[u8]| {
        let text = String::from_utf8_lossy(lines);
        let rows: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
        rows.ok().map(|rows| rows.into_iter().map(without_clock).collect())
    };
    let ends_in = |endings: &[&str]| endings.iter().any(|ending| file.ends_with(ending));
    let parsed = if file.ends_with(".jsonl") {
        rows(&bytes)
    } else if ends_in(&["run.json", "state.json", "result.json", "sweep.json"]) {
        serde_json::from_slice(&bytes).ok().map(|value| vec![without_clock(value)])
    } else if file == "manifest.json" && path.parent().unwrap().join("state.json").exists() {
        // It holds the hash of `state.json` with its seconds; `damage_of_checkpoint` reads it in
        // full.
        return Content::Anything;
    } else if ends_in(&[".html", ".svg", ".png", ".csv", ".md"]) {
        return Content::Anything;
    } else {
        None
    };
    parsed.map_or(Content::Bytes(bytes), Content::Rows)
}

/// Keys whose values are measured, or words about what was, or say how often the run was begun.
const CLOCK: [&str; 12] = [
    "tokens_per_sec",
    "mfu",
    "matmul_peak_flops",
    "products",
    "energy_joules",
    "at",
    "started_at",
    "ended_at",
    "resumed_from_steps",
    "cost",
    "notes",
    "unequal",
];

fn without_clock(value: Value) -> Value {
    let is_measured = |value: &Value| value.get("axis").is_some_and(|axis| axis == "seconds");
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .filter(|(key, _)| !key.ends_with("_secs") && !CLOCK.contains(&key.as_str()))
                .map(|(key, value)| (key, without_clock(value)))
                .collect(),
        ),
        Value::Array(values) => {
            values.into_iter().filter(|value| !is_measured(value)).map(without_clock).collect()
        }
        other => other,
    }
}

/// Where two lists of rows part, shortly.
fn first_difference(mine: &[Value], theirs: &[Value]) -> String {
    fn at(path: &str, mine: &Value, theirs: &Value) -> Option<String> {
        match (mine, theirs) {
            (Value::Object(a), Value::Object(b)) => {
                let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
                let absent = Value::Null;
                let get = |fields: &'_ serde_json::Map<String, Value>, key: &str| {
                    fields.get(key).unwrap_or(&absent).clone()
                };
                keys.map(|key| (key, get(a, key), get(b, key)))
                    .find_map(|(key, a, b)| at(&format!("{path}.{key}"), &a, &b))
            }
            (a, b) if a == b => None,
            (a, b) => {
                let short = |value: &Value| value.to_string().chars().take(60).collect::<String>();
                Some(format!("{path} is {}, not {}", short(a), short(b)))
            }
        }
    }
    let in_row =
        mine.iter().zip(theirs).enumerate().find_map(|(index, (a, b))| at(&format!("row {index}"), a, b));
    in_row.unwrap_or_else(|| format!("{} rows, not {}", mine.len(), theirs.len()))
}

/// Steps of the checkpoints in a run folder, oldest first.
pub(crate) fn checkpoint_steps(run: &Path) -> Vec<u64> {
    let step = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok();
    let mut steps: Vec<u64> = entries(&run.join("checkpoints")).iter().filter_map(step).collect();
    steps.sort_unstable();
    steps
}

/// What is wrong with the checkpoint of `step`: every file that its manifest names must have the
/// size and the SHA-256 that stand there.
pub(crate) fn damage_of_checkpoint(run: &Path, step: u64) -> Option<String> {
    let folder = run.join(format!("checkpoints/step-{step}"));
    let check = || -> Result<(), String> {
        let said = |error: std::io::Error| error.to_string();
        let manifest =
            fs::read(folder.join("manifest.json")).map_err(|error| format!("manifest.json: {error}"))?;
        let manifest: Value = serde_json::from_slice(&manifest).map_err(|error| error.to_string())?;
        let files = manifest["files"].as_object().ok_or("manifest.json lists no files")?;
        for name in ["model.safetensors", "optimizer.safetensors", "state.json"] {
            if !files.contains_key(name) {
                return Err(format!("manifest.json does not list {name}"));
            }
        }
        for (name, record) in files {
            let bytes = fs::read(folder.join(name)).map_err(said)?;
            let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            if record["sha256"] != hash.as_str() {
                return Err(format!("{name} is not what was written"));
            }
        }
        Ok(())
    };
    check().err().map(|reason| format!("step-{step}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_with(rows: &str, sample: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("metrics.jsonl"), rows).unwrap();
        fs::write(folder.path().join("sample.txt"), sample).unwrap();
        fs::write(folder.path().join("run.lock"), sample).unwrap();
        folder
    }

    #[test]
    fn times_are_not_compared_and_numbers_are() {
        let state = |rows: &str| State::of(run_with(rows, "x").path());
        let row = state("{\"step\":1,\"loss\":2.5,\"step_secs\":0.1}\n");
        assert_eq!(row.difference(&state("{\"step\":1,\"loss\":2.5,\"step_secs\":0.7}\n")), None);
        let other = row.difference(&state("{\"step\":1,\"loss\":2.25,\"step_secs\":0.1}\n")).unwrap();
        assert_eq!(other, "`metrics.jsonl` differs: row 0.loss is 2.5, not 2.25");
        let more = row.difference(&state("{\"step\":1,\"loss\":2.5}\n{\"step\":2}\n")).unwrap();
        assert_eq!(more, "`metrics.jsonl` differs: 1 rows, not 2");
    }

    #[test]
    fn files_that_are_missing_left_over_or_other_bytes_are_named() {
        let (a, b) = (run_with("", "x"), run_with("", "y"));
        fs::write(b.path().join("a.tmp"), "").unwrap();
        let difference = State::of(b.path()).difference(&State::of(a.path())).unwrap();
        assert_eq!(difference, "`a.tmp` is left over, `sample.txt` differs");
        fs::remove_file(b.path().join("sample.txt")).unwrap();
        fs::remove_file(b.path().join("a.tmp")).unwrap();
        assert!(State::of(b.path()).lacks_only(&State::of(a.path()), "sample.txt"));
    }
}
