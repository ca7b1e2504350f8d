//! `switchyard runs`

use std::path::Path;

use serde_json::Value;
use switchyard_trainer::flight::read_alarms;
use switchyard_trainer::run_folder::{RunPaths, RunStatus};

use super::{print_json, print_text};
use crate::cli::RunsArgs;
use crate::failure::Failure;
use crate::metrics_tail::newest_step;
use crate::run_folders::run_folders;
use crate::run_list::{DEFAULT_KEY, Filter, ListedRun, RunFacts, sort, to_text, unknown_key};

pub(super) fn run(args: &RunsArgs) -> Result<(), Failure> {
    let parse = |text: &String| {
        Filter::parse(text).map_err(|problem| Failure::Mistake(format!("--filter {text}: {problem}")))
    };
    let filters = args.filters.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let mut runs: Vec<ListedRun> = run_folders(&args.folder)?.iter().map(|path| listed(path)).collect();
    let sort_key = args.sort.as_deref().unwrap_or(DEFAULT_KEY);
    let keys = filters.iter().map(Filter::key).chain([sort_key]);
    if let Some(problem) = unknown_key(keys, &runs).filter(|_| !runs.is_empty()) {
        return Err(Failure::Mistake(problem));
    }
    runs.retain(|run| filters.iter().all(|filter| filter.accepts(run)));
    sort(&mut runs, sort_key, args.reverse);
    runs.truncate(args.limit.unwrap_or(usize::MAX));
    if args.json {
        return print_json(&runs.iter().map(ListedRun::to_json).collect::<Vec<Value>>());
    }
    print_text(&to_text(&runs))
}

fn listed(path: &Path) -> ListedRun {
    read(path).unwrap_or_else(|error| ListedRun::unreadable(path, error.to_string()))
}

fn read(path: &Path) -> anyhow::Result<ListedRun> {
    let paths = RunPaths::new(path);
    let reading = paths.read()?;
    // Beside a manifest that can be read, a file that cannot is no reason to hide the run.
    let (mut newest, mut error) = (None, None);
    if reading.manifest.status == RunStatus::Running {
        newest = newest_step(&paths.metrics()).unwrap_or_else(|reason| {
            error = Some(reason.to_string());
            None
        });
    }
    let num_alarms = match read_alarms(&paths) {
        Ok(alarms) => Some(alarms.len()),
        Err(reason) => {
            error = Some(reason.to_string());
            None
        }
    };
    let facts = RunFacts { path, reading: &reading, newest_step: newest.as_ref(), num_alarms };
    Ok(ListedRun::new(&facts).with_error(error))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;
    use switchyard_trainer::run_folder::RunManifest;

    use super::*;

    #[test]
    fn a_broken_run_is_listed_with_its_reason() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("torn");
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("run.json"), "{\"status\": \"fin").unwrap();
        let run = listed(&path).to_json();
        assert_eq!((&run["name"], &run["status"]), (&json!("torn"), &json!("unreadable")));
        assert!(run["error"].as_str().unwrap().contains("is not the manifest of a run"), "{run}");
    }

    #[test]
    fn a_file_of_alarms_that_cannot_be_read_does_not_hide_the_run() {
        let root = tempfile::tempdir().unwrap();
        let paths = RunPaths::new(root.path());
        RunManifest::starting(json!({ "name": "a" }), json!({}), 0, "cpu").write(&paths.manifest()).unwrap();
        fs::create_dir(paths.flight()).unwrap();
        fs::write(paths.alarms(), "nonsense\n").unwrap();
        let run = listed(root.path()).to_json();
        assert_eq!(
            (&run["name"], &run["status"], &run["alarms"]),
            (&json!("a"), &json!("killed"), &json!(null))
        );
        assert!(run["error"].as_str().unwrap().contains("alarms.jsonl"), "{run}");
    }

    #[test]
    fn a_run_without_metrics_or_alarms_is_listed_all_the_same() {
        let root = tempfile::tempdir().unwrap();
        let paths = RunPaths::new(root.path());
        RunManifest::starting(json!({ "name": "a" }), json!({}), 0, "cpu").write(&paths.manifest()).unwrap();
        let run = listed(root.path()).to_json();
        assert_eq!(
            (&run["name"], &run["status"], &run["alarms"]),
            (&json!("a"), &json!("killed"), &json!(0))
        );
    }
}
