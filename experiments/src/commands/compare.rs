//! `switchyard compare`

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use switchyard_ground::say;

use anyhow::Context;
use switchyard_trainer::metrics::read_metrics;
use switchyard_trainer::run_folder::{OpenMode, RunManifest, RunPaths, RunStatus};
use switchyard_trainer::train::{TrainRequest, default_run_folder, train};

use super::{load_to_run, print_text};
use crate::cli::CompareArgs;
use crate::comparison::{Arm, Comparison};
use crate::failure::Failure;
use crate::figures::loss_curve_svg;
use crate::interrupt::Interruption;
use crate::study::is_study;

pub(super) fn run(args: &CompareArgs, interruption: &Interruption) -> Result<(), Failure> {
    match &args.arms[..] {
        [study] if is_study(study) => return run_study(args, study, interruption),
        [only] => {
            return Err(Failure::Mistake(format!(
                "{}: not a study (it has no [[arms]]), and one arm has nothing to be compared with: name a second one",
                only.display()
            )));
        }
        _ => {}
    }
    if args.dry_run || args.shard.is_partial() {
        return Err(Failure::Mistake(
            "--dry-run and --shard are for a study: name a file with [[arms]]".into(),
        ));
    }
    let stop = interruption.watch("stopping after this step, with a checkpoint")?;
    // Every configuration is read before the first one trains: a mistake in the last must not cost the first's hours.
    let plans = args.arms.iter().map(|path| ArmPlan::new(path, args)).collect::<Result<Vec<_>, _>>()?;
    let mut arms = Vec::new();
    for plan in plans {
        let folder = plan.ensure_trained(&stop)?;
        if stop.load(Ordering::SeqCst) {
            return Err(Failure::Interrupted("interrupted; the same command goes on from here".into()));
        }
        arms.push(read_arm(&folder)?);
    }
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
        })))
    }

    /// The arm's run folder, its run finished unless the user interrupted.
    fn ensure_trained(self, stop: &Arc<AtomicBool>) -> Result<PathBuf, Failure> {
        let request = match self {
            Self::Run(folder) => return Ok(folder),
            Self::Config(request) => request,
        };
        let manifest_path = RunPaths::new(&request.out).manifest();
        let mode = if manifest_path.is_file() {
            if RunManifest::read(&manifest_path)?.status == RunStatus::Finished {
                say!("{}: already finished in {}", request.config.name, request.out.display());
                return Ok(request.out);
            }
            OpenMode::Resume
        } else {
            OpenMode::New
        };
        say!("{}: training in {}", request.config.name, request.out.display());
        Ok(train(&TrainRequest { mode, stop: stop.clone(), ..*request })?.out)
    }
}

fn read_arm(folder: &Path) -> Result<Arm, Failure> {
    let paths = RunPaths::new(folder);
    let manifest = RunManifest::read(&paths.manifest())?;
    let name = manifest.config["name"].as_str().map(str::to_string);
    let label = name.unwrap_or_else(|| folder.display().to_string());
    Ok(Arm { label, manifest, records: read_metrics(&paths.metrics())? })
}

/// The comparison beside the runs, under the names of its arms; a later comparison of the same names replaces it.
fn save(out: &Path, arms: &[Arm], comparison: &Comparison) -> Result<(), Failure> {
    let labels: Vec<&str> = arms.iter().map(|arm| arm.label.as_str()).collect();
    // File systems allow 255 bytes; names are ASCII.
    let name: String = format!("compare-{}", labels.join("-vs-")).chars().take(200).collect();
    let folder = out.join(name);
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    let curves: Vec<_> = arms.iter().map(|arm| (arm.label.as_str(), arm.records.as_slice())).collect();
    let written = fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))
        .and_then(|()| write("comparison.md", &comparison.to_markdown()))
        .and_then(|()| write("comparison.json", &comparison.to_json()?))
        .and_then(|()| write("loss-curve.svg", &loss_curve_svg(&curves)?));
    written.map_err(Failure::Fault)?;
    say!("saved: {}/ (comparison.md, comparison.json, loss-curve.svg)", folder.display());
    Ok(())
}
