//! `switchyard compare STUDY.toml`: plan, run what is missing, judge, report.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use switchyard_ground::digest::sha256_hex;
use switchyard_ground::say;

use switchyard_trainer::config_file;
use switchyard_trainer::host::{Commit, cargo_lock_sha256};

use super::print_text;
use crate::cli::CompareArgs;
use crate::failure::Failure;
use crate::interrupt::Interruption;
use crate::report;
use crate::report::series::RunSeries;
use crate::run_series::run_series;
use crate::statistics::Stopping;
use crate::study::result::{DivergedRun, Provenance, StudyResult};
use crate::study::{
    Arm, Calibration, CodeIdentity, DataIdentities, Evidence, Execution, FinishedRun, Forecast, History,
    LoadedStudy, Orders, PlannedRun, Protocol, RunSettings, Stage, StudyFolder, StudyMatrix, analyse,
    equalised, finished_runs, prepare_all, register, resolve_arms, run_all, run_missing,
};
use crate::whole_file;

pub(super) fn run(args: &CompareArgs, path: &Path, interruption: &Interruption) -> Result<(), Failure> {
    let stop = interruption.watch("stopping after this step; what is done stays")?;
    run_unless(args, path, &stop).map_err(Failure::of_kept_work)
}

fn run_unless(args: &CompareArgs, path: &Path, stop: &Arc<AtomicBool>) -> Result<(), Failure> {
    let loaded = LoadedStudy::read(path)?;
    let arms = resolve_arms(&loaded)?;
    let folder = StudyFolder::open(&args.study_folder(&loaded.study.name))?.asking(loaded.questions.clone());
    let arms = equalised(&loaded, arms, folder.root(), &CodeIdentity::of_this_program(), stop)?;
    if args.register {
        // What cannot be asked is not worth registering.
        prepare_all(&loaded, &arms, stop)?;
        let protocol = Protocol::of(&loaded, &arms);
        say!("{}", register(folder.root(), &protocol, &sha256_hex(&loaded.text))?);
        return Ok(());
    }
    let mut session = Session::new(args, &loaded, &arms, folder, stop)?;
    session.announce(stop)?;
    if args.dry_run {
        return Ok(());
    }
    session.history.plan(&session.protocol)?;
    match session.run(stop)? {
        Execution::Done => session.conclude(),
        Execution::Interrupted => Err(Failure::interrupted_work()),
    }
}

/// A study in progress.
struct Session<'a> {
    args: &'a CompareArgs,
    loaded: &'a LoadedStudy,
    arms: &'a [Arm],
    folder: StudyFolder,
    /// The same folder for pilots, which are not asked any questions: no rate is chosen by them.
    pilot_folder: StudyFolder,
    protocol: Protocol,
    history: History,
    calibration: Calibration,
    matrix: StudyMatrix<'a>,
    pilots: Vec<PlannedRun>,
    /// Known once the pilots are done; until then each arm's first.
    learning_rates: Vec<f64>,
    has_chosen_rates: bool,
}

impl<'a> Session<'a> {
    fn new(
        args: &'a CompareArgs,
        loaded: &'a LoadedStudy,
        arms: &'a [Arm],
        folder: StudyFolder,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self, Failure> {
        let (protocol, history) = (Protocol::of(loaded, arms), History::read(folder.root())?);
        let code = CodeIdentity::of_this_program();
        let calibration = Calibration::read_or_measure(folder.root(), loaded, arms, &code, stop)?;
        let factors = calibration.step_factors(loaded.study.held_equal, arms);
        let mut matrix = StudyMatrix::new(&loaded.study, arms, code, DataIdentities::new(stop), factors);
        let pilots = matrix.pilots()?;
        let learning_rates = arms.iter().map(|arm| arm.learning_rates[0]).collect();
        Ok(Self {
            args,
            loaded,
            arms,
            pilot_folder: folder.clone().asking(None),
            folder,
            protocol,
            history,
            calibration,
            matrix,
            pilots,
            learning_rates,
            has_chosen_rates: false,
        })
    }

    /// Say what will be done and what it will cost.
    fn announce(&mut self, stop: &Arc<AtomicBool>) -> Result<(), Failure> {
        let num_pilots = finished_runs(&self.pilot_folder, &self.pilots, None)?.len();
        if num_pilots > 0 && num_pilots == self.pilots.len() {
            self.choose_learning_rates()?;
        }
        let main_runs = self.matrix.main_runs(&self.learning_rates)?;
        let data = prepare_all(self.loaded, self.arms, stop)?;
        let further = self.further_runs()?.into_iter().flat_map(|(_, runs)| runs);
        let runs: Vec<PlannedRun> = self.pilots.iter().cloned().chain(main_runs).chain(further).collect();
        let forecast = Forecast {
            study: &self.loaded.study,
            questions: self.loaded.questions.as_ref(),
            arms: self.arms,
            runs: &runs,
            calibration: &self.calibration,
            validation_tokens: data.manifest.validation.num_tokens,
        };
        say!("{}", forecast.describe(&self.folder).trim_end());
        if let Some(warning) = forecast.undecidable() {
            say!("  {warning}");
        }
        let strangers = self.folder.num_strangers(&runs.iter().collect::<Vec<_>>());
        // With a choice of learning rates, runs at those chosen later are not strangers.
        if strangers > 0 && self.pilots.is_empty() {
            say!(
                "  {strangers} run(s) in {} are of other code, other data or another version of this study: they are not \
                 used",
                self.folder.root().display()
            );
        }
        Ok(())
    }

    fn run(&mut self, stop: &Arc<AtomicBool>) -> Result<Execution, Failure> {
        let orders = Orders { keep_checkpoints: self.loaded.study.keep_checkpoints, stop };
        if !self.pilots.is_empty() {
            if run_all(&self.pilot_folder, &self.pilots, self.args.shard, orders)? == Execution::Interrupted {
                return Ok(Execution::Interrupted);
            }
            self.choose_learning_rates()?;
        }
        let mut runs = self.matrix.main_runs(&self.learning_rates)?;
        runs.extend(self.further_runs()?.into_iter().flat_map(|(_, runs)| runs));
        run_missing(&self.folder, &runs, self.arms.len(), self.args.shard, orders)
    }

    /// The runs beside those of the result that say how far it can be trusted.
    fn further_runs(&mut self) -> Result<[(Stage, Vec<PlannedRun>); 2], Failure> {
        let noise = self.matrix.noise_runs(&self.learning_rates)?;
        let crossed = self.matrix.crossed_runs(&self.learning_rates)?;
        Ok([(Stage::Noise, noise), (Stage::Crossed, crossed)])
    }

    /// Of each arm the learning rate with the lowest pilot loss; said once.
    fn choose_learning_rates(&mut self) -> Result<(), Failure> {
        if std::mem::replace(&mut self.has_chosen_rates, true) {
            return Ok(());
        }
        let finished = finished_runs(&self.pilot_folder, &self.pilots, None)?;
        for (index, arm) in self.arms.iter().enumerate().filter(|(_, arm)| arm.learning_rates.len() > 1) {
            let of_arm = finished.iter().filter(|run| run.arm == index);
            let best = of_arm
                .filter_map(|run| Some((run.learning_rate, run.result.final_loss_nats?)))
                .min_by(|(_, a), (_, b)| a.total_cmp(b));
            let Some((rate, nats)) = best else {
                return Err(Failure::Mistake(format!(
                    "{}: arm `{}`: every learning rate of its grid diverged: give smaller ones",
                    self.loaded.path.display(),
                    arm.label
                )));
            };
            say!("{}: learning rate {rate} ({nats:.4} nats in the pilot)", arm.label);
            self.learning_rates[index] = rate;
        }
        for (index, arm) in self.arms.iter().enumerate() {
            if let Some(source) = arm.transfers_from {
                self.learning_rates[index] = self.learning_rates[source];
                let rate = self.learning_rates[index];
                say!("{}: learning rate {rate}, that of {}", arm.label, self.arms[source].label);
            }
        }
        Ok(())
    }

    /// Judge what is there, write the result and its report, and print it.
    fn conclude(mut self) -> Result<(), Failure> {
        let main_runs = self.matrix.main_runs(&self.learning_rates)?;
        let finished = self.finished(&main_runs)?;
        let num_finished = finished.iter().filter(|(stage, _)| *stage == Stage::Main).count();
        let diverged = self.diverged(&main_runs)?;
        let num_missing = main_runs.len() - num_finished - diverged.len();
        let num_beside: usize = self.further_runs()?.iter().map(|(_, runs)| runs.len()).sum();
        let is_beside = |stage: &Stage| matches!(stage, Stage::Noise | Stage::Crossed);
        let num_beside_finished = finished.iter().filter(|(stage, _)| is_beside(stage)).count();
        let provenance = self.provenance(&finished)?;
        let budget_steps = self.budget_steps();
        let evidence = Evidence {
            loaded: self.loaded,
            arms: self.arms,
            learning_rates: &self.learning_rates,
            finished: &finished,
            calibration: &self.calibration,
            budget_steps: &budget_steps,
            stopping: if num_missing > 0 || self.history.has_seeds_chosen_late(&self.protocol) {
                Stopping::Open
            } else {
                Stopping::Planned
            },
            history_notes: &self.history.notes(&self.protocol),
            num_looks: self.history.num_results(),
            num_missing,
            num_missing_beside: num_beside.saturating_sub(num_beside_finished),
            diverged: &diverged,
        };
        let result = analyse(&evidence, provenance);
        let series: Vec<RunSeries> = finished
            .iter()
            .filter(|(stage, _)| *stage == Stage::Main)
            .map(|(_, run)| {
                run_series(
                    &run.result.run,
                    &self.arms[run.arm].label,
                    &run.manifest,
                    &run.records,
                    &run.alarms,
                )
            })
            .collect();
        // On record before anybody has seen it.
        self.history.record(&self.protocol, &result, num_missing)?;
        self.save(&result, &series)?;
        if self.args.json {
            print_text(&(serde_json::to_string_pretty(&result)? + "\n"))
        } else {
            print_text(&result.to_text())
        }
    }

    /// The runs that are finished, of every stage.
    fn finished(&mut self, main_runs: &[PlannedRun]) -> Result<Vec<(Stage, FinishedRun)>, Failure> {
        let further = self.further_runs()?;
        let further = further.iter().map(|(stage, runs)| (*stage, &runs[..]));
        let all = [(Stage::Pilot, &self.pilots[..]), (Stage::Main, main_runs)].into_iter().chain(further);
        let mut finished = Vec::new();
        for (stage, runs) in all {
            let folder = if stage == Stage::Pilot { &self.pilot_folder } else { &self.folder };
            let of_stage = finished_runs(folder, runs, self.loaded.study.price_per_device_hour)?;
            finished.extend(of_stage.into_iter().map(|run| (stage, run)));
        }
        let held_equal = self.loaded.study.held_equal;
        if let Some(step_secs) = self.calibration.step_secs_held_equal(held_equal, self.arms) {
            finished.iter_mut().for_each(|(_, run)| run.calibrated_step_secs = Some(step_secs[run.arm]));
        }
        let metric = self.loaded.study.question.metric;
        finished.iter_mut().for_each(|(_, run)| run.metric = metric);
        Ok(finished)
    }

    /// The runs for the result that diverged, each with its arm.
    fn diverged(&self, main_runs: &[PlannedRun]) -> Result<Vec<(usize, DivergedRun)>, Failure> {
        let mut diverged = Vec::new();
        for run in main_runs {
            if let Some(reason) = self.folder.divergence(run)? {
                let RunSettings { seed, num_steps, .. } = run.settings;
                let reason = format!("`{}`: {reason}", run.folder);
                diverged.push((run.arm, DivergedRun { seed, num_steps, reason }));
            }
        }
        Ok(diverged)
    }

    fn budget_steps(&self) -> Vec<Vec<u64>> {
        let mut budgets = self.loaded.study.budget.num_steps.clone();
        budgets.sort_unstable();
        (0..self.arms.len())
            .map(|arm| budgets.iter().map(|&budget| self.matrix.steps_of(arm, budget)).collect())
            .collect()
    }

    fn save(&self, result: &StudyResult, series: &[RunSeries]) -> Result<(), Failure> {
        let root = self.folder.root();
        let text = serde_json::to_string_pretty(result)? + "\n";
        whole_file::replace(&root.join("result.json"), text.as_bytes()).map_err(Failure::Fault)?;
        let files = report::write(root, Some(result), series, &result.study, &[]).map_err(Failure::Fault)?;
        say!("saved: {}/ (result.json, report.html and {} more)", root.display(), files.len() - 1);
        Ok(())
    }

    fn provenance(&self, finished: &[(Stage, FinishedRun)]) -> Result<Provenance, Failure> {
        let distinct = |of: &dyn Fn(&FinishedRun) -> Option<String>| {
            let mut values: Vec<String> = finished.iter().filter_map(|(_, run)| of(run)).collect();
            values.sort();
            values.dedup();
            values
        };
        let machine = |run: &FinishedRun| {
            let host = &run.manifest.host;
            let cpu = host.cpu_model.as_deref().unwrap_or(&host.arch);
            Some(format!("{} ({cpu}, {} threads)", host.hostname, host.logical_cores))
        };
        let device = |run: &FinishedRun| {
            let threads = run.manifest.config["threads"].as_u64();
            let threads = threads.map_or("all".to_string(), |threads| threads.to_string());
            Some(format!("{}, threads: {threads}", run.manifest.device))
        };
        Ok(Provenance {
            command: format!(
                "switchyard compare {} --out {}",
                self.loaded.path.display(),
                self.folder.root().display()
            ),
            study_sha256: sha256_hex(&self.loaded.text),
            base_sha256: sha256_hex(config_file::read(&self.loaded.base)?),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: Commit::of_sources().map(|commit| commit.hash + if commit.dirty { "-dirty" } else { "" }),
            cargo_lock_sha256: cargo_lock_sha256(),
            machines: distinct(&machine),
            devices: distinct(&device),
            started_at: distinct(&|run| Some(run.manifest.started_at.clone())).into_iter().next(),
            ended_at: distinct(&|run| run.manifest.ended_at.clone()).pop(),
            total_train_secs: finished.iter().map(|(_, run)| run.result.train_secs).sum(),
        })
    }
}

impl CompareArgs {
    /// Where a study's runs and result go.
    fn study_folder(&self, name: &str) -> PathBuf {
        self.out.clone().unwrap_or_else(|| Path::new("runs").join(name))
    }
}
