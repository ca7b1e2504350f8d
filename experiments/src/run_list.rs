//! A list of runs: what is known of each, which of them are asked for, in which order, as a table.
//!
//! Pure: from manifests to text.

mod filter;
mod order;
mod table;

use std::path::Path;

use serde_json::{Map, Value, json};
use switchyard_trainer::metrics::StepRecord;
use switchyard_trainer::run_folder::RunReading;

use crate::comparison::final_bits_per_byte;
pub(crate) use filter::{Filter, unknown_key};
pub(crate) use order::{DEFAULT_KEY, sort};
pub(crate) use table::to_text;

/// The columns, as filters, sorting and JSON name them.
pub(crate) const COLUMNS: [&str; 14] = [
    "name",
    "status",
    "steps",
    "tokens",
    "total_params",
    "active_params",
    "final_loss",
    "bits_per_byte",
    "best_loss",
    "seconds",
    "tokens_per_sec",
    "alarms",
    "started_at",
    "path",
];

/// What a run folder tells.
#[derive(Debug, Clone)]
pub(crate) struct RunFacts<'a> {
    pub(crate) path: &'a Path,
    pub(crate) reading: &'a RunReading,
    /// The newest step, of a run that is at work or was killed: its manifest is as old as its last
    /// checkpoint.
    pub(crate) newest_step: Option<&'a StepRecord>,
    /// `None` if the alarms cannot be read.
    pub(crate) num_alarms: Option<usize>,
}

/// A run in the list.
#[derive(Debug, Clone)]
pub(crate) struct ListedRun {
    /// A value for each of [`COLUMNS`]; null where there is none.
    columns: Map<String, Value>,
    /// `run.json`; null if it cannot be read.
    manifest: Value,
    /// What of it cannot be read, and why.
    error: Option<String>,
}

impl ListedRun {
    pub(crate) fn new(facts: &RunFacts<'_>) -> Self {
        let RunFacts { path, reading, newest_step, num_alarms } = facts;
        let manifest = &reading.manifest;
        let name = manifest.config["name"].as_str().map_or_else(|| folder_name(path), str::to_string);
        let counts = &manifest.plan["counts"];
        let secs = newest_step.map_or(manifest.train_secs, |row| row.elapsed_secs);
        let tokens = newest_step.map_or(manifest.tokens_seen, |row| row.tokens_seen);
        // Of the whole run, evaluations and checkpoints included.
        let tokens_per_sec = (secs > 0.0).then(|| tokens as f64 / secs);
        let columns = json!({
            "name": name,
            "status": reading.status(),
            "steps": newest_step.map_or(manifest.steps_done, |row| row.step),
            "tokens": tokens,
            "total_params": counts["total_params"],
            "active_params": counts["active_params"],
            "final_loss": manifest.final_validation_cross_entropy_nats,
            "bits_per_byte": final_bits_per_byte(manifest),
            "best_loss": manifest.best_validation_cross_entropy_nats,
            "seconds": secs,
            "tokens_per_sec": tokens_per_sec,
            "alarms": num_alarms,
            "started_at": manifest.started_at,
            "path": path.display().to_string(),
        });
        let manifest = serde_json::to_value(manifest).unwrap_or_default();
        Self { columns: into_map(columns), manifest, error: None }
    }

    /// The run, with what of it could not be read, and why.
    pub(crate) fn with_error(self, error: Option<String>) -> Self {
        Self { error, ..self }
    }

    /// A folder whose run cannot be read, and why.
    pub(crate) fn unreadable(path: &Path, error: String) -> Self {
        let mut columns: Map<String, Value> =
            COLUMNS.into_iter().map(|column| (column.to_string(), Value::Null)).collect();
        columns.insert("name".into(), folder_name(path).into());
        columns.insert("status".into(), "unreadable".into());
        columns.insert("path".into(), path.display().to_string().into());
        Self { columns, manifest: Value::Null, error: Some(error) }
    }

    /// The value of a column, or of a dotted key of the configuration, or of one of `run.json`,
    /// looked for in this order; none if there is no such key here, or it is null.
    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        let found = self.columns.get(key);
        let found = found.or_else(|| at_dotted_key(self.manifest.get("config")?, key));
        found.or_else(|| at_dotted_key(&self.manifest, key)).filter(|value| !value.is_null())
    }

    /// The columns for machines, and the error where there is one.
    pub(crate) fn to_json(&self) -> Value {
        let mut object = self.columns.clone();
        if let Some(error) = &self.error {
            object.insert("error".into(), error.clone().into());
        }
        Value::Object(object)
    }
}

/// The value at `a.b.c`; a number names an element of a list.
fn at_dotted_key<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(value, |value, part| match value {
        Value::Array(elements) => elements.get(part.parse::<usize>().ok()?),
        value => value.get(part),
    })
}

/// A value as the user would write it.
fn plain_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

fn into_map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn folder_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use switchyard_trainer::run_folder::{RunManifest, RunStatus};

    use super::*;
    use crate::figures::sample_rows::step;

    /// A finished run with the given number of experts, final loss and start.
    pub(crate) fn run(name: &str, num_experts: u64, loss: Option<f64>, started_at: &str) -> ListedRun {
        let config = json!({
            "name": name,
            "model": { "ffn": { "moe": { "num_experts": num_experts } } },
            "train": { "schedule": "cosine" },
        });
        let plan =
            json!({ "counts": { "total_params": 4_700_000, "active_params": 1_310_000 }, "layers": ["moe"] });
        let mut manifest = RunManifest::starting(config, plan, 7, "cpu");
        manifest.status = if loss.is_some() { RunStatus::Finished } else { RunStatus::Running };
        manifest.final_validation_cross_entropy_nats = loss;
        manifest.best_validation_cross_entropy_nats = loss;
        (manifest.steps_done, manifest.tokens_seen, manifest.train_secs) = (40, 20_480, 10.0);
        manifest.started_at = started_at.into();
        let reading = RunReading { manifest, was_killed: loss.is_none() };
        let path = format!("runs/{name}");
        let facts =
            RunFacts { path: Path::new(&path), reading: &reading, newest_step: None, num_alarms: Some(2) };
        ListedRun::new(&facts)
    }

    #[test]
    fn a_key_is_a_column_or_one_of_the_configuration_or_of_the_manifest() {
        let run = run("a", 8, Some(2.5), "2026-01-01T00:00:00Z");
        let text = |key: &str| run.value(key).map(plain_text);
        assert_eq!(text("status").as_deref(), Some("finished"));
        assert_eq!(text("tokens_per_sec").as_deref(), Some("2048.0"));
        assert_eq!(text("model.ffn.moe.num_experts").as_deref(), Some("8"));
        assert_eq!(text("train.schedule").as_deref(), Some("cosine"));
        assert_eq!(text("plan.counts.total_params").as_deref(), Some("4700000"));
        assert_eq!(text("plan.layers.0").as_deref(), Some("moe"));
        assert_eq!(text("seed").as_deref(), Some("7"));
        assert_eq!(text("model.ffn.dense"), None);
        assert_eq!(text("plan.layers.1"), None);
    }

    #[test]
    fn a_killed_run_is_said_to_be_and_shows_its_newest_step() {
        let mut manifest = RunManifest::starting(json!({}), json!({}), 0, "cpu");
        manifest.steps_done = 100;
        let reading = RunReading { manifest, was_killed: true };
        let newest = step(120, 2.0, Vec::new());
        let facts = RunFacts {
            path: Path::new("runs/b"),
            reading: &reading,
            newest_step: newest.as_step(),
            num_alarms: Some(0),
        };
        let json = ListedRun::new(&facts).to_json();
        assert_eq!((&json["status"], &json["steps"]), (&json!("killed"), &json!(120)));
        assert_eq!((&json["name"], &json["seconds"]), (&json!("b"), &json!(60.0)));
    }

    #[test]
    fn every_column_is_there_whatever_is_known() {
        let unreadable =
            ListedRun::unreadable(Path::new("runs/c"), "expected value at line 1".into()).to_json();
        let known = run("a", 8, Some(2.5), "2026-01-01T00:00:00Z").to_json();
        for column in COLUMNS {
            assert!(unreadable.get(column).is_some() && known.get(column).is_some(), "{column}");
        }
        assert_eq!((&unreadable["status"], &unreadable["name"]), (&json!("unreadable"), &json!("c")));
        assert_eq!(unreadable["error"], "expected value at line 1");
        assert!(known.get("error").is_none());
    }
}
