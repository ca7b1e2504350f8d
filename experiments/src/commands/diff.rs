//! `switchyard diff`

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use switchyard_flight::alarms::Alarm;
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::flight::read_alarms;
use switchyard_trainer::metrics::Record;
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::run_folder::RunPaths;

use super::{load, print_json, print_text};
use crate::cli::DiffArgs;
use crate::comparison::{data_key, median};
use crate::failure::Failure;
use crate::run_diff::{Outcome, RunDiff, Side};
use crate::run_series::read_records;

pub(super) fn run(args: &DiffArgs) -> Result<(), Failure> {
    let diff = RunDiff::new(&side(&args.a)?, &side(&args.b)?);
    if args.json { print_json(&diff) } else { print_text(&diff.to_text()) }
}

fn side(path: &Path) -> Result<Side, Failure> {
    let paths = RunPaths::new(path);
    if paths.manifest().is_file() {
        return side_of_run(path, &paths);
    }
    if path.is_dir() {
        let message =
            format!("{}: neither a configuration file nor a run folder (it has no run.json)", path.display());
        return Err(Failure::Mistake(message));
    }
    let (loaded, plan) = load(path, &[])?;
    let (config, plan) = (serde_json::to_value(&loaded.config)?, serde_json::to_value(&plan)?);
    Ok(Side { label: path.display().to_string(), config, plan, data_key: None, outcome: None })
}

fn side_of_run(path: &Path, paths: &RunPaths) -> Result<Side, Failure> {
    let reading = paths.read()?;
    let records = read_records(paths)?;
    let steps = records.iter().filter_map(Record::as_step);
    let median_tokens_per_sec = median(steps.map(|row| row.tokens_per_sec));
    let alarms = count_by_kind(&read_alarms(paths)?)?;
    Ok(Side {
        label: path.display().to_string(),
        config: with_todays_defaults::<RunConfig>(&reading.manifest.config),
        plan: with_todays_defaults::<RunPlan>(&reading.manifest.plan),
        data_key: data_key(paths, &reading.manifest),
        outcome: Some(Outcome { reading, median_tokens_per_sec, alarms }),
    })
}

/// The value with the keys that have been added since it was written, at their defaults, so that an
/// older run does not differ in them; the value as it is if it no longer is a `T`.
fn with_todays_defaults<T: Serialize + DeserializeOwned>(value: &Value) -> Value {
    let filled_in = serde_json::from_value::<T>(value.clone()).and_then(serde_json::to_value);
    filled_in.unwrap_or_else(|_| value.clone())
}

fn count_by_kind(alarms: &[Alarm]) -> Result<BTreeMap<String, u64>, Failure> {
    let mut counts = BTreeMap::new();
    for alarm in alarms {
        let kind = serde_json::to_value(alarm.kind)?;
        *counts.entry(kind.as_str().unwrap_or_default().to_string()).or_default() += 1;
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;
    use switchyard_flight::alarms::AlarmKind;

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Grown {
        old: u64,
        #[serde(default)]
        new: bool,
    }

    #[test]
    fn a_key_added_since_has_its_default() {
        assert_eq!(with_todays_defaults::<Grown>(&json!({ "old": 1 })), json!({ "old": 1, "new": false }));
        let other = json!({ "removed": 1 });
        assert_eq!(with_todays_defaults::<Grown>(&other), other);
    }

    #[test]
    fn alarms_are_counted_by_the_name_that_the_configuration_has_for_them() {
        let alarm = |kind| Alarm {
            kind,
            step: 2,
            since_step: 1,
            layer: None,
            expert: None,
            value: 1.0,
            threshold: 0.5,
            message: String::new(),
        };
        let alarms = [AlarmKind::DeadExpert, AlarmKind::LossSpike, AlarmKind::DeadExpert].map(alarm);
        let counts = count_by_kind(&alarms).unwrap();
        assert_eq!(counts, BTreeMap::from([("dead_expert".to_string(), 2), ("loss_spike".to_string(), 1)]));
    }
}
