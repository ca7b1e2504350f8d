//! `switchyard report`

use std::path::{Path, PathBuf};
use switchyard_ground::say;

use switchyard_trainer::flight::read_alarms;
use switchyard_trainer::metrics::read_metrics;
use switchyard_trainer::run_folder::{RunManifest, RunPaths};

use crate::cli::ReportArgs;
use crate::failure::Failure;
use crate::report;
use crate::report::series::RunSeries;
use crate::run_folders::run_folders;
use crate::run_series::run_series;
use crate::study::read_result;

pub(super) fn run(args: &ReportArgs) -> Result<(), Failure> {
    if let [folder] = &args.runs[..]
        && let Some(result) = read_result(folder)?
    {
        let series = study_series(folder, &result)?;
        let out = args.out.as_ref().unwrap_or(folder);
        return finish(report::write(out, Some(&result), &series, &result.study));
    }
    let mut series = Vec::new();
    for path in &args.runs {
        for folder in run_folders(path)? {
            series.push(plain_series(&folder)?);
        }
    }
    if series.is_empty() {
        let named: Vec<String> = args.runs.iter().map(|path| path.display().to_string()).collect();
        return Err(Failure::Mistake(format!(
            "{}: no run folder: name one that holds run.json",
            named.join(", ")
        )));
    }
    let out = args.out.clone().unwrap_or_else(|| args.runs[0].join("report"));
    let title = args.runs[0].file_name().map_or("runs".into(), |name| name.to_string_lossy().into_owned());
    finish(report::write(&out, None, &series, &title))
}

/// The rows of one run that belongs to no study: it is an arm of its own name.
pub(super) fn plain_series(folder: &Path) -> Result<RunSeries, Failure> {
    let paths = RunPaths::new(folder);
    let manifest = RunManifest::read(&paths.manifest())?;
    let name = manifest.config["name"].as_str().unwrap_or("run").to_string();
    series_of(folder, &name, &manifest, &paths)
}

fn study_series(
    folder: &Path,
    result: &crate::study::result::StudyResult,
) -> Result<Vec<RunSeries>, Failure> {
    let runs = result.arms.iter().flat_map(|arm| arm.runs.iter().map(move |run| (arm, run)));
    runs.map(|(arm, run)| {
        let path = folder.join(&run.run);
        let paths = RunPaths::new(&path);
        series_of(Path::new(&run.run), &arm.label, &RunManifest::read(&paths.manifest())?, &paths)
    })
    .collect()
}

fn series_of(
    label: &Path,
    arm: &str,
    manifest: &RunManifest,
    paths: &RunPaths,
) -> Result<RunSeries, Failure> {
    let metrics = paths.metrics();
    // A run that has just begun has none.
    let records = if metrics.is_file() { read_metrics(&metrics)? } else { Vec::new() };
    Ok(run_series(&label.display().to_string(), arm, manifest, &records, &read_alarms(paths)?))
}

fn finish(written: anyhow::Result<Vec<PathBuf>>) -> Result<(), Failure> {
    let files = written.map_err(Failure::Fault)?;
    if let Some(page) = files.last() {
        say!("saved: {} and {} more beside it", page.display(), files.len() - 1);
    }
    Ok(())
}
