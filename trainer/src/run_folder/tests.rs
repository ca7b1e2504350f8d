//! What a run folder keeps and gives up.

use super::*;
use serde_json::json;
use std::fs;
use tempfile::TempDir;

fn manifest() -> RunManifest {
    RunManifest::starting(json!({}), json!({}), 0, "cpu")
}

/// A folder with everything that a run writes, and a note of its user.
fn finished_run() -> (TempDir, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("runs/a");
    let run = RunFolder::create(&path, OpenMode::New).unwrap();
    run.write_manifest(&manifest()).unwrap();
    run.write_config("name = \"a\"\n").unwrap();
    run.write_sample("To be").unwrap();
    fs::create_dir_all(run.paths().checkpoints().join("step-1")).unwrap();
    for name in ["metrics.jsonl", "events.out.tfevents.0000000001.host", "notes.md"] {
        fs::write(path.join(name), name).unwrap();
    }
    (parent, path)
}

fn names(path: &Path) -> Vec<String> {
    let mut names = content::entry_names(path).unwrap();
    names.sort();
    names
}

#[test]
fn a_run_is_never_replaced_unasked() {
    let (_parent, path) = finished_run();
    let before = names(&path);
    let error = RunFolder::create(&path, OpenMode::New).unwrap_err();
    assert!(error.is_users_mistake());
    let message = error.to_string();
    assert!(
        message.contains("already holds a run: continue it with `--resume`, replace it with `--overwrite`")
    );
    assert_eq!(names(&path), before);
}

#[test]
fn overwriting_deletes_what_the_run_wrote_and_nothing_else() {
    let (_parent, path) = finished_run();
    let run = RunFolder::create(&path, OpenMode::Overwrite).unwrap();
    // A kill here must not leave a folder that is no run's for the sake of the note.
    assert_eq!(names(&path), ["notes.md", "run.json", "run.lock"]);
    assert_eq!(run.left(), [path.join("notes.md")]);
    run.write_manifest(&manifest()).unwrap();
}

#[test]
fn overwriting_leaves_other_peoples_files_also_beside_the_runs_own() {
    let (_parent, path) = finished_run();
    let checkpoints = path.join("checkpoints");
    fs::create_dir_all(path.join("flight")).unwrap();
    let ours = [
        "checkpoints/step-1/manifest.json",
        "checkpoints/step-2.tmp",
        "checkpoints/latest.tmp",
        "flight/alarms.jsonl",
        "flight/probes.jsonl.damaged-1",
        "flight/experts-1-20.parquet",
        "flight/scores-100.parquet.tmp",
        "metrics.jsonl.earlier-2",
    ];
    let theirs = [
        "checkpoints/epoch-9.pt",
        "checkpoints/step-1/notes.md",
        "checkpoints/step-+2",
        "flight/BOS-LHR.csv",
        "flight/scores-x.parquet",
        "events.out.tfevents.1700000000.host.123.0",
        "metrics.jsonl.old",
        "notes.md",
    ];
    for name in ours.iter().chain(&theirs) {
        fs::write(path.join(name), name).unwrap();
    }
    #[cfg(unix)]
    std::os::unix::fs::symlink("step-1", checkpoints.join("latest")).unwrap();
    let run = RunFolder::create(&path, OpenMode::Overwrite).unwrap();
    assert!(ours.iter().all(|name| !path.join(name).exists()));
    assert!(!checkpoints.join("latest").is_symlink());
    for name in theirs {
        assert_eq!(fs::read_to_string(path.join(name)).unwrap(), name);
        assert!(run.left().contains(&path.join(name)), "{name} is not said to be left: {:?}", run.left());
    }
    assert_eq!(run.left().len(), theirs.len());
}

#[test]
fn a_folder_whose_run_json_is_another_programs_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("run.json"), "{\"tool\": \"other\"}").unwrap();
    fs::write(folder.path().join("metrics.jsonl"), "theirs").unwrap();
    let error = RunFolder::create(folder.path(), OpenMode::Overwrite).unwrap_err();
    assert!(matches!(error, RunFolderError::ForeignManifest { .. }) && error.is_users_mistake());
    assert!(error.to_string().contains("Nothing was deleted"), "{error}");
    assert_eq!(names(folder.path()), ["metrics.jsonl", "run.json"]);
}

#[cfg(unix)]
#[test]
fn what_a_link_leads_to_is_only_cleaned_of_a_runs_own_names() {
    let (parent, path) = finished_run();
    let elsewhere = parent.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    for name in ["a.tmp", "a.parquet.tmp", "thesis.tex"] {
        fs::write(elsewhere.join(name), "mine").unwrap();
    }
    fs::remove_dir_all(path.join("checkpoints")).unwrap();
    for name in ["checkpoints", "flight"] {
        std::os::unix::fs::symlink(&elsewhere, path.join(name)).unwrap();
    }
    RunFolder::create(&path, OpenMode::Overwrite).unwrap();
    assert_eq!(names(&elsewhere), ["a.parquet.tmp", "a.tmp", "thesis.tex"]);
}

#[cfg(unix)]
#[test]
fn a_lock_that_is_a_link_is_refused_and_its_target_left() {
    let parent = tempfile::tempdir().unwrap();
    let (path, victim) = (parent.path().join("a"), parent.path().join("victim"));
    fs::create_dir(&path).unwrap();
    fs::write(&victim, "mine").unwrap();
    std::os::unix::fs::symlink(&victim, path.join("run.lock")).unwrap();
    let error = RunFolder::create(&path, OpenMode::New).unwrap_err();
    assert!(error.is_users_mistake(), "{error}");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
}

#[cfg(unix)]
#[test]
fn a_run_whose_folder_is_gone_writes_nothing_into_the_one_in_its_place() {
    let (_parent, path) = finished_run();
    let first = RunFolder::create(&path, OpenMode::Resume).unwrap();
    first.check_held().unwrap();
    fs::remove_dir_all(&path).unwrap();
    assert!(matches!(first.check_held(), Err(RunFolderError::Lost { .. })));
    let second = RunFolder::create(&path, OpenMode::New).unwrap();
    let mut other = manifest();
    other.seed = 77;
    second.write_manifest(&other).unwrap();
    for result in [first.write_manifest(&manifest()), first.write_config("a"), first.write_sample("a")] {
        let error = result.unwrap_err();
        assert!(matches!(error, RunFolderError::Lost { .. }), "{error}");
    }
    assert_eq!(names(&path), ["run.json", "run.lock"]);
    assert_eq!(RunManifest::read(&path.join("run.json")).unwrap().seed, 77);
}

#[test]
fn resuming_keeps_everything() {
    let (_parent, path) = finished_run();
    let before = names(&path);
    let run = RunFolder::create(&path, OpenMode::Resume).unwrap();
    assert_eq!(names(&path), before);
    assert_eq!(RunManifest::read(&run.paths().manifest()).unwrap().status, RunStatus::Running);
}

#[test]
fn a_folder_that_no_run_wrote_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("thesis.tex"), "").unwrap();
    for mode in [OpenMode::New, OpenMode::Overwrite] {
        let message = RunFolder::create(folder.path(), mode).unwrap_err().to_string();
        assert!(message.contains("is not empty and not a run folder (no `run.json`)"), "{message}");
        assert_eq!(names(folder.path()), ["thesis.tex"]);
    }
}

#[test]
fn there_is_nothing_to_resume_in_an_empty_or_missing_folder() {
    let parent = tempfile::tempdir().unwrap();
    for path in [parent.path().to_path_buf(), parent.path().join("missing")] {
        let message = RunFolder::create(&path, OpenMode::Resume).unwrap_err().to_string();
        assert!(message.contains("holds no run to resume"), "{message}");
    }
    assert!(names(parent.path()).is_empty());
}

#[test]
fn a_second_process_is_told_who_trains_here_and_the_lock_ends_with_its_holder() {
    let (_parent, path) = finished_run();
    let holder = RunFolder::create(&path, OpenMode::Resume).unwrap();
    for mode in [OpenMode::Resume, OpenMode::Overwrite] {
        let error = RunFolder::create(&path, mode).unwrap_err();
        assert!(matches!(error, RunFolderError::Locked { .. }), "{error}");
        if cfg!(unix) {
            let process = format!("is in use by process {}:", std::process::id());
            assert!(error.to_string().contains(&process), "{error}");
        }
    }
    assert!(path.join("notes.md").exists() && path.join("metrics.jsonl").exists());
    drop(holder);
    RunFolder::create(&path, OpenMode::Resume).unwrap();
}

#[test]
fn what_a_killed_process_left_unfinished_is_cleared() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path();
    fs::write(path.join("run.json.tmp"), "{").unwrap();
    fs::write(path.join("run.lock"), "1\n").unwrap();
    let run = RunFolder::create(path, OpenMode::New).unwrap();
    assert_eq!(names(path), ["run.lock"]);
    drop(run);
}

#[test]
fn every_trace_of_a_start_that_was_cut_short_is_taken_over() {
    for mode in [OpenMode::New, OpenMode::Overwrite] {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path();
        for folder in ["checkpoints/step-3.tmp", "flight"] {
            fs::create_dir_all(path.join(folder)).unwrap();
        }
        for name in ["run.lock", "run.json.tmp", "metrics.jsonl.tmp", "flight/experts-1-2.parquet.tmp"] {
            fs::write(path.join(name), "").unwrap();
        }
        RunFolder::create(path, mode).unwrap();
    }
    for name in ["checkpoints/epoch-9.pt", "flight/BOS-LHR.csv", "other.tmp"] {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "").unwrap();
        let error = RunFolder::create(parent.path(), OpenMode::New).unwrap_err();
        assert!(matches!(error, RunFolderError::NotARunFolder { .. }), "{name}: {error}");
    }
}

#[test]
fn a_path_that_cannot_be_a_folder_is_an_error_with_the_path() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("file");
    fs::write(&path, "").unwrap();
    let message = RunFolder::create(&path, OpenMode::New).unwrap_err().to_string();
    assert!(message.starts_with("cannot ") && message.contains("file`"), "{message}");
}
