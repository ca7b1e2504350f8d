//! `switchyard report`

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use switchyard_ground::say;

use serde_json::{Value, json};
use switchyard_trainer::flight::read_alarms;
use switchyard_trainer::run_folder::{RunManifest, RunPaths};

use crate::cli::ReportArgs;
use crate::comparison::{Measured, data_key, distinct_labels, why_not_comparable};
use crate::failure::Failure;
use crate::report;
use crate::report::series::RunSeries;
use crate::run_folders::{read_each, run_folders};
use crate::run_series::{read_records, run_series};
use crate::study::{read_result, run_of_study};

pub(super) fn run(args: &ReportArgs) -> Result<(), Failure> {
    if let [folder] = &args.runs[..]
        && let Some(result) = read_result(folder)?
    {
        let series = study_series(folder, &result)?;
        let out = args.out.as_ref().unwrap_or(folder);
        return finish(report::write(out, Some(&result), &series, &result.study, &[]));
    }
    let mut folders = Vec::new();
    for path in &args.runs {
        folders.extend(run_folders(path)?);
    }
    let runs = read_each(&folders, read_plain)?;
    let notes = notes_on_losses(&runs);
    notes.iter().for_each(|note| say!("{note}"));
    let series = told_apart(runs);
    if series.is_empty() {
        let named: Vec<String> = args.runs.iter().map(|path| path.display().to_string()).collect();
        return Err(Failure::Mistake(format!(
            "{}: no run folder: name one that holds run.json",
            named.join(", ")
        )));
    }
    let out = args.out.clone().unwrap_or_else(|| args.runs[0].join("report"));
    finish(report::write(&out, None, &series, &title(&args.runs), &notes))
}

/// The first of `runs` by name, and how many more there are.
fn title(runs: &[PathBuf]) -> String {
    let first = runs[0].file_name().map_or("runs".into(), |name| name.to_string_lossy().into_owned());
    match runs.len() - 1 {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// Why losses of other runs than the first cannot be compared with its own.
fn notes_on_losses(runs: &[PlainRun]) -> Vec<String> {
    let Some((first, others)) = runs.split_first() else { return Vec::new() };
    others.iter().flat_map(|other| why_not_comparable(&first.measured(), &other.measured())).collect()
}

/// The rows of one run that belongs to no study: it is an arm of its own name.
pub(super) fn plain_series(folder: &Path) -> Result<RunSeries, Failure> {
    Ok(read_plain(folder)?.series)
}

/// A run that belongs to no study.
struct PlainRun {
    series: RunSeries,
    manifest: RunManifest,
    data_key: Option<String>,
    /// What it was asked for, without what runs of one arm may differ in.
    asked: Value,
}

impl PlainRun {
    fn measured(&self) -> Measured<'_> {
        Measured {
            label: &self.series.label,
            config: &self.manifest.config,
            plan: &self.manifest.plan,
            data_key: self.data_key.as_deref(),
            has_run: true,
        }
    }
}

fn read_plain(folder: &Path) -> Result<PlainRun, Failure> {
    let paths = RunPaths::new(folder);
    let manifest = RunManifest::read(&paths.manifest())?;
    let name = manifest.config["name"].as_str().unwrap_or("run").to_string();
    let mut asked = manifest.config.clone();
    if let Some(table) = asked.as_object_mut() {
        ["seed", "device", "threads", "sample"].iter().for_each(|key| drop(table.remove(*key)));
    }
    let data_key = data_key(&paths, &manifest);
    let asked = json!({ "config": asked, "data": data_key });
    Ok(PlainRun { series: series_of(folder, &name, &manifest, &paths)?, manifest, data_key, asked })
}

/// The runs with arms that may be averaged: runs of one name are one arm if they differ in nothing
/// but their seeds, and else each is an arm of its own folder's name.
fn told_apart(runs: Vec<PlainRun>) -> Vec<RunSeries> {
    let is_one_arm = |run: &PlainRun| {
        let same_name = runs.iter().filter(|other| other.series.arm == run.series.arm);
        let seeds = same_name.clone().map(|other| other.series.seed).collect::<BTreeSet<_>>();
        seeds.len() == same_name.clone().count() && same_name.clone().all(|other| other.asked == run.asked)
    };
    let names: Vec<(String, &Path)> =
        runs.iter().map(|run| (run.series.arm.clone(), Path::new(&run.series.label))).collect();
    let labels = distinct_labels(&names);
    let arms: Vec<String> = runs
        .iter()
        .zip(labels)
        .map(|(run, label)| if is_one_arm(run) { run.series.arm.clone() } else { label })
        .collect();
    runs.into_iter().zip(arms).map(|(run, arm)| RunSeries { arm, ..run.series }).collect()
}

fn study_series(
    folder: &Path,
    result: &crate::study::result::StudyResult,
) -> Result<Vec<RunSeries>, Failure> {
    let runs = result.arms.iter().flat_map(|arm| arm.runs.iter().map(move |run| (arm, run)));
    let mut arms = HashMap::new();
    let mut folders = Vec::new();
    for (arm, run) in runs {
        let path = run_of_study(folder, &run.run)?;
        arms.insert(path.clone(), (arm.label.as_str(), run.run.as_str()));
        folders.push(path);
    }
    read_each(&folders, |path| {
        let (arm, label) = arms.get(path).copied().unwrap_or_default();
        let paths = RunPaths::new(path);
        series_of(Path::new(label), arm, &RunManifest::read(&paths.manifest())?, &paths)
    })
}

fn series_of(
    label: &Path,
    arm: &str,
    manifest: &RunManifest,
    paths: &RunPaths,
) -> Result<RunSeries, Failure> {
    let records = read_records(paths)?;
    Ok(run_series(&label.display().to_string(), arm, manifest, &records, &read_alarms(paths)?))
}

fn finish(written: anyhow::Result<Vec<PathBuf>>) -> Result<(), Failure> {
    let files = written.map_err(Failure::Fault)?;
    if let Some(page) = files.last() {
        say!("saved: {} and {} more beside it", page.display(), files.len() - 1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Runs of these (folder, name, seed, width) as a report names their arms.
    fn arms(runs: &[(&str, &str, u64, u64)]) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        let read = runs.iter().map(|(folder, name, seed, width)| {
            let paths = RunPaths::new(root.path().join(folder));
            fs::create_dir_all(paths.root()).unwrap();
            let config = json!({ "name": name, "seed": seed, "model": { "d_model": width } });
            let manifest = RunManifest::starting(config, json!({}), *seed, "cpu");
            manifest.write(&paths.manifest()).unwrap();
            read_plain(paths.root()).unwrap()
        });
        told_apart(read.collect()).into_iter().map(|series| series.arm).collect()
    }

    #[test]
    fn runs_that_differ_in_their_seeds_alone_are_one_arm() {
        assert_eq!(
            arms(&[("a", "moe", 0, 8), ("b", "moe", 1, 8), ("c", "dense", 0, 8)]),
            ["moe", "moe", "dense"]
        );
    }

    #[test]
    fn runs_of_one_name_that_are_not_the_same_are_never_averaged() {
        assert_eq!(arms(&[("a", "moe", 0, 8), ("b", "moe", 1, 16)]), ["moe (a)", "moe (b)"]);
        assert_eq!(arms(&[("a", "moe", 0, 8), ("b", "moe", 0, 8)]), ["moe (a)", "moe (b)"], "one seed twice");
    }
}
