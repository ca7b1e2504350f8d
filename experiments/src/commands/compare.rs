//! `switchyard compare`

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use switchyard_ground::digest::sha256_hex;
use switchyard_ground::{regular_file, say};

use anyhow::Context;
use serde_json::Value;
use switchyard_trainer::metrics::Record;
use switchyard_trainer::run_folder::{OpenMode, RunManifest, RunPaths, RunStatus};
use switchyard_trainer::train::{TrainRequest, check_asked_for, default_run_folder, train};

use super::{load_to_run, print_text};
use crate::cli::CompareArgs;
use crate::comparison::{Arm, Comparison, data_key, distinct_labels};
use crate::failure::Failure;
use crate::figures::loss_curve_svg;
use crate::interrupt::Interruption;
use crate::launch;
use crate::lock_file::LockFile;
use crate::report::files::file_name_of;
use crate::run_series::read_records;
use crate::study::is_study;
use crate::whole_file;

/// Pause between two looks at a run that another process does.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Bytes of a `comparison.json` that are read.
const MAX_COMPARISON_BYTES: u64 = 64 << 20;

pub(super) fn run(args: &CompareArgs, interruption: &Interruption) -> Result<(), Failure> {
    match &args.arms[..] {
        [study] if is_study(study)? => return run_study(args, study, interruption),
        [only] => {
            return Err(Failure::Mistake(format!(
                "{}: not a study (it has no [[arms]]), and one arm has nothing to be compared with: name a second one",
                only.display()
            )));
        }
        _ => {}
    }
    if args.dry_run || args.register || args.shard.is_partial() {
        return Err(Failure::Mistake(
            "--dry-run, --register and --shard are for a study: name a file with [[arms]]".into(),
        ));
    }
    let stop = interruption.watch("stopping after this step, with a checkpoint")?;
    // Every configuration is read before the first one trains: a mistake in the last must not cost
    // the first's hours.
    let plans = args.arms.iter().map(|path| ArmPlan::new(path, args)).collect::<Result<Vec<_>, _>>()?;
    let mut folders = Vec::new();
    for plan in plans {
        let folder = plan.ensure_trained(&stop)?;
        if stop.load(Ordering::SeqCst) {
            return Err(Failure::interrupted_work());
        }
        folders.push(folder);
    }
    let arms = read_arms(&folders)?;
    let comparison = Comparison::new(&arms);
    if args.json {
        print_text(&comparison.to_json()?)?
    } else {
        print_text(&comparison.to_text())?
    }
    save(&args.runs_folder(), &arms, &comparison)
}

fn run_study(args: &CompareArgs, study: &Path, interruption: &Interruption) -> Result<(), Failure> {
    match args.overrides.first() {
        Some(change) => Err(Failure::Mistake(format!(
            "--set {change}: {} is a study, whose changes are part of it: write them into its `set`",
            study.display()
        ))),
        None => super::study::run(args, study, interruption),
    }
}

impl CompareArgs {
    fn runs_folder(&self) -> PathBuf {
        self.out.clone().unwrap_or_else(|| "runs".into())
    }
}

/// One arm before it has run.
enum ArmPlan {
    /// A run folder, taken as it is.
    Run(PathBuf),
    /// A configuration, trained unless its run folder says that it is finished.
    Config(Box<TrainRequest>),
}

impl ArmPlan {
    fn new(path: &Path, args: &CompareArgs) -> Result<Self, Failure> {
        if RunPaths::new(path).manifest().is_file() {
            if let Some(change) = args.overrides.first() {
                let message = format!(
                    "--set {change}: {} has run already; give its configuration file",
                    path.display()
                );
                return Err(Failure::Mistake(message));
            }
            return Ok(Self::Run(path.to_path_buf()));
        }
        if path.is_dir() {
            let message = format!(
                "{}: neither a configuration file nor a run folder (it has no run.json)",
                path.display()
            );
            return Err(Failure::Mistake(message));
        }
        let (loaded, plan) = load_to_run(path, &args.overrides)?;
        let out = default_run_folder(&args.runs_folder(), &loaded.config);
        let stop = Arc::new(AtomicBool::new(false));
        let mode = OpenMode::New;
        Ok(Self::Config(Box::new(TrainRequest {
            config: loaded.config,
            plan,
            out,
            mode,
            show_progress: true,
            stop,
            comm: launch::comm(),
        })))
    }

    /// The arm's run folder, its run finished unless the user interrupted.
    fn ensure_trained(self, stop: &Arc<AtomicBool>) -> Result<PathBuf, Failure> {
        let request = match self {
            Self::Run(folder) => return Ok(folder),
            Self::Config(request) => request,
        };
        let mut announced = false;
        while !stop.load(Ordering::SeqCst) {
            if let Some(_claim) = claim(&request.out)?
                && let Some(folder) = train_claimed(&request, stop)?
            {
                return Ok(folder);
            }
            if !announced {
                say!("{}: another process is training in {}", request.config.name, request.out.display());
                announced = true;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(request.out)
    }
}

/// The right to train in the run folder `out`, which one comparison has at a time: of two that
/// start at once, the second must not meet the half-made folder of the first. `None` if another has
/// it.
fn claim(out: &Path) -> Result<Option<LockFile>, Failure> {
    let (parent, name) = (out.parent().unwrap_or(Path::new(".")), out.file_name().unwrap_or_default());
    let path = parent.join(format!(".{}.lock", name.to_string_lossy()));
    fs::create_dir_all(parent)
        .and_then(|()| LockFile::try_take(&path))
        .with_context(|| format!("cannot lock {}", path.display()))
        .map_err(Failure::Fault)
}

/// The folder of the run that `request` asks for, trained now unless it is finished; `None` if a
/// process without a claim is training in it.
fn train_claimed(request: &TrainRequest, stop: &Arc<AtomicBool>) -> Result<Option<PathBuf>, Failure> {
    let TrainRequest { config, out, .. } = request;
    let paths = RunPaths::new(out);
    let reading = paths.manifest().is_file().then(|| paths.read()).transpose()?;
    let mode = match &reading {
        Some(reading) if reading.manifest.status == RunStatus::Finished => {
            // The folder is named after the configuration that began it, and a resumed run may have
            // gone on to another.
            if let Err(difference) = check_asked_for(&reading.manifest, config) {
                return Err(Failure::Mistake(format!(
                    "{}: the run that has finished there is not what `{}` asks for: {difference}. Name that folder to compare \
                     the run as it is, or train the file into another folder and name that one",
                    out.display(),
                    config.name
                )));
            }
            say!("{}: already finished in {}", config.name, out.display());
            return Ok(Some(out.clone()));
        }
        Some(reading) if reading.is_at_work() => return Ok(None),
        Some(_) => OpenMode::Resume,
        None => OpenMode::New,
    };
    say!("{}: training in {}", config.name, out.display());
    match train(&TrainRequest { mode, stop: stop.clone(), ..request.clone() }) {
        Ok(summary) => Ok(Some(summary.out)),
        Err(_) if paths.read().is_ok_and(|reading| reading.is_at_work()) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn read_arms(folders: &[PathBuf]) -> Result<Vec<Arm>, Failure> {
    let mut runs = Vec::new();
    for folder in folders {
        let paths = RunPaths::new(folder);
        let manifest = RunManifest::read(&paths.manifest())?;
        runs.push((name_of(&manifest), folder, manifest, read_records(&paths)?));
    }
    let named: Vec<(String, &Path)> =
        runs.iter().map(|(name, folder, ..)| (name.clone(), folder.as_path())).collect();
    let arm =
        |(label, (_, folder, manifest, records)): (String, (_, &PathBuf, RunManifest, Vec<Record>))| Arm {
            label,
            folder: fs::canonicalize(folder).unwrap_or_else(|_| folder.clone()),
            data_key: data_key(&RunPaths::new(folder), &manifest),
            manifest,
            records,
        };
    Ok(distinct_labels(&named).into_iter().zip(runs).map(arm).collect())
}

fn name_of(manifest: &RunManifest) -> String {
    manifest.config["name"].as_str().unwrap_or("run").to_string()
}

/// The comparison beside the runs, under the names of its arms; a later comparison of the same runs
/// replaces it.
fn save(out: &Path, arms: &[Arm], comparison: &Comparison) -> Result<(), Failure> {
    let folder = comparison_folder(out, arms, comparison);
    let mut files =
        vec![("comparison.md", comparison.to_markdown()), ("comparison.json", comparison.to_json()?)];
    let with_rows = arms.iter().filter(|arm| !arm.records.is_empty());
    let curves: Vec<_> = with_rows.map(|arm| (arm.label.as_str(), arm.records.as_slice())).collect();
    if !curves.is_empty() {
        files.push(("loss-curve.svg", loss_curve_svg(&curves).map_err(Failure::Fault)?));
    }
    let made = fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()));
    made.map_err(Failure::Fault)?;
    for (name, text) in &files {
        whole_file::replace(&folder.join(name), text.as_bytes()).map_err(Failure::Fault)?;
    }
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
    say!("saved: {}/ ({})", folder.display(), names.join(", "));
    Ok(())
}

/// Where the comparison of these runs goes: a folder named after them, which no comparison of other
/// runs has.
fn comparison_folder(out: &Path, arms: &[Arm], comparison: &Comparison) -> PathBuf {
    // Names are whatever is written in `run.json`, and file systems allow 255 bytes.
    let names: Vec<String> = arms.iter().map(|arm| file_name_of(&name_of(&arm.manifest))).collect();
    let name: String = format!("compare-{}", names.join("-vs-")).chars().take(200).collect();
    let runs: Vec<&str> = comparison.arms.iter().map(|arm| arm.run.as_str()).collect();
    let plain = out.join(&name);
    let is_free = fs::symlink_metadata(&plain).is_err();
    if is_free || runs_compared_in(&plain).is_some_and(|theirs| theirs == runs) {
        return plain;
    }
    out.join(format!("{name}-{}", &sha256_hex(runs.join("\n"))[..8]))
}

/// Folders of the runs whose comparison is in `folder`; `None` if it holds none, or one of an
/// earlier version.
fn runs_compared_in(folder: &Path) -> Option<Vec<String>> {
    let text = regular_file::read(&folder.join("comparison.json"), MAX_COMPARISON_BYTES).ok()?;
    let comparison: Value = serde_json::from_slice(&text).ok()?;
    let arms = comparison["arms"].as_array()?.iter();
    arms.map(|arm| Some(arm["run"].as_str()?.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn arms(names: [&str; 2], folders: [&str; 2]) -> Vec<Arm> {
        let arm = |(name, folder): (&str, &str)| Arm {
            label: name.into(),
            folder: folder.into(),
            data_key: None,
            manifest: RunManifest::starting(json!({ "name": name }), json!({}), 0, "cpu"),
            records: Vec::new(),
        };
        names.into_iter().zip(folders).map(arm).collect()
    }

    /// The only folder inside `out` that this save made or changed.
    fn saved(out: &Path, arms: &[Arm]) -> PathBuf {
        let comparison = Comparison::new(arms);
        let folder = comparison_folder(out, arms, &comparison);
        save(out, arms, &comparison).unwrap();
        assert!(folder.join("comparison.md").is_file());
        folder
    }

    #[test]
    fn every_pair_of_runs_has_a_folder_of_its_own_whatever_their_names() {
        let out = tempfile::tempdir().unwrap();
        let first = arms(["dense", "moe"], ["/a", "/b"]);
        let folder = saved(out.path(), &first);
        assert_eq!(folder, out.path().join("compare-dense-vs-moe"));
        let other = saved(out.path(), &arms(["dense", "moe"], ["/a", "/c"]));
        let third = saved(out.path(), &arms(["dense", "moe"], ["/c", "/a"]));
        assert!(other != folder && third != folder && third != other);
        assert_eq!(saved(out.path(), &first), folder, "the same runs again");
        assert_eq!(saved(out.path(), &arms(["dense", "moe"], ["/a", "/c"])), other);
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 3);
    }

    #[test]
    fn no_name_leads_out_of_the_folder_or_to_a_name_that_is_too_long() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("runs");
        for name in ["x/../../../pwned/", "/etc/pwned", "..", "", "a\0b", "\u{1b}[31m", &"long".repeat(100)] {
            let folder = saved(&out, &arms([name, "b"], ["/a", "/b"]));
            assert_eq!(folder.parent(), Some(out.as_path()), "{name:?}");
            let folder_name = folder.file_name().unwrap().to_str().unwrap();
            assert!(folder_name.len() < 220 && !folder_name.contains(char::is_control), "{folder_name:?}");
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "only `runs`");
    }

    #[test]
    fn runs_are_read_with_labels_that_tell_them_apart_and_a_run_without_rows_is_no_error() {
        let root = tempfile::tempdir().unwrap();
        let folders = ["one", "two"].map(|name| root.path().join(name));
        for folder in &folders {
            fs::create_dir(folder).unwrap();
            arms(["same", "same"], ["", ""])[0].manifest.write(&RunPaths::new(folder).manifest()).unwrap();
        }
        let read = read_arms(&folders).unwrap();
        let labels: Vec<&str> = read.iter().map(|arm| arm.label.as_str()).collect();
        assert_eq!(labels, ["same (one)", "same (two)"]);
    }
}
