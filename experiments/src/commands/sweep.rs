//! `switchyard sweep SWEEP.toml`: try the candidates, stop the hopeless ones, name the best.

use std::collections::BTreeSet;
use std::path::Path;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use switchyard_ground::digest::sha256_hex;
use switchyard_ground::say;

use switchyard_datasets::{Progress, prepare};
use switchyard_ground::units::duration;
use switchyard_trainer::config_file;
use switchyard_trainer::host::{Commit, cargo_lock_sha256};

use super::{print_json, print_text};
use crate::cli::SweepArgs;
use crate::failure::Failure;
use crate::interrupt::Interruption;
use crate::study::{
    Calibration, CodeIdentity, DataIdentities, Execution, FinishedRun, Forecast, LoadedStudy, Orders,
    PlannedRun, RunSettings, Shard, StudyFolder, finished_runs, run_all,
};
use crate::sweep::{
    Candidate, LoadedSweep, RunOutcome, Rung, RungOutcome, SweepProvenance, SweepResult, going_on,
    resolve_candidates, rungs, shorten_schedule,
};
use crate::whole_file;

pub(super) fn run(args: &SweepArgs, interruption: &Interruption) -> Result<(), Failure> {
    let stop = interruption.watch("stopping after this step; what is done stays")?;
    run_unless(args, &stop).map_err(Failure::of_kept_work)
}

fn run_unless(args: &SweepArgs, stop: &Arc<AtomicBool>) -> Result<(), Failure> {
    let loaded = LoadedSweep::read(&args.sweep)?;
    let candidates = resolve_candidates(&loaded)?;
    let root = args.out.clone().unwrap_or_else(|| Path::new("runs").join(&loaded.sweep.name));
    let mut session = Session::new(&loaded, &candidates, StudyFolder::open(&root)?, stop)?;
    session.announce(stop)?;
    if args.dry_run {
        return Ok(());
    }
    let Some(outcomes) = session.run(args.shard, stop)? else {
        return Err(Failure::interrupted_work());
    };
    let result = session.conclude(&outcomes)?;
    if args.json { print_json(&result) } else { print_text(&result.to_text(&loaded.base)) }
}

/// A sweep in progress.
struct Session<'a> {
    loaded: &'a LoadedSweep,
    candidates: &'a [Candidate],
    /// The sweep as a study, whose runs are configured in the same way.
    study: LoadedStudy,
    rungs: Vec<Rung>,
    folder: StudyFolder,
    code: CodeIdentity,
    data: DataIdentities,
    machines: BTreeSet<String>,
    train_secs: f64,
}

impl<'a> Session<'a> {
    fn new(
        loaded: &'a LoadedSweep,
        candidates: &'a [Candidate],
        folder: StudyFolder,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self, Failure> {
        let sweep = &loaded.sweep;
        Ok(Self {
            loaded,
            candidates,
            study: loaded.to_study(),
            rungs: rungs(candidates.len(), sweep.halving.as_ref(), sweep.num_steps),
            folder,
            code: CodeIdentity::of_this_program(),
            data: DataIdentities::new(stop),
            machines: BTreeSet::new(),
            train_secs: 0.0,
        })
    }

    /// Say what will be done and what it will cost. Every run that may be needed is planned, so
    /// that a mistake in the last candidate stops the sweep before the first has cost anything.
    fn announce(&mut self, stop: &Arc<AtomicBool>) -> Result<(), Failure> {
        let (sweep, num_candidates) = (&self.loaded.sweep, self.candidates.len());
        let num_same = sweep.num_written() - num_candidates;
        let same =
            if num_same > 0 { format!(" ({num_same} more are the same as others)") } else { String::new() };
        say!("sweep {}: {num_candidates} candidates{same}, {} seed(s)", sweep.name, sweep.seeds.len());
        let everyone: Vec<usize> = (0..num_candidates).collect();
        let mut planned = Vec::new();
        for rung in self.rungs.clone() {
            planned.push((rung, self.runs_of(rung, &everyone)?));
        }
        let first = slice::from_ref(&self.candidates[0].arm);
        let calibration =
            Calibration::read_or_measure(self.folder.root(), &self.study, first, &self.code, stop)?;
        let data = prepare(&first[0].config.data, &Progress::stderr().with_stop(stop.clone()))?;
        let validation_tokens = data.manifest.validation.num_tokens;
        let forecast = Forecast {
            questions: None,
            study: &self.study.study,
            arms: first,
            runs: &[],
            calibration: &calibration,
            validation_tokens,
        };
        let mut total = 0.0;
        for (rung, runs) in &planned {
            let everyone_secs: f64 = runs.iter().map(|run| self.predicted_secs(&forecast, run)).sum();
            let secs = everyone_secs * rung.num_candidates as f64 / num_candidates as f64;
            let is_there = |run: &&PlannedRun| self.folder.is_over(run).unwrap_or(false);
            let there = runs.iter().filter(is_there).count();
            say!(
                "  {:>4} candidates at {:>6} steps: about {}, {there} run(s) are there",
                rung.num_candidates,
                rung.num_steps,
                duration(secs)
            );
            total += secs;
        }
        say!(
            "  in all about {} (the first candidate was measured on {})",
            duration(total),
            calibration.hostname
        );
        Ok(())
    }

    /// Seconds of `run` by those of the first candidate, the only one that is measured: in
    /// proportion to the FLOPs.
    fn predicted_secs(&self, forecast: &Forecast<'_>, run: &PlannedRun) -> f64 {
        let first = &self.candidates[0].arm.plan;
        forecast.run_secs(&PlannedRun { arm: 0, ..run.clone() }) * run.plan.training_flops_per_step()
            / first.training_flops_per_step()
    }

    /// The runs of `members` in a round. Seeds vary slowest, so that a sweep that is stopped early
    /// has each candidate once.
    fn runs_of(&mut self, rung: Rung, members: &[usize]) -> Result<Vec<PlannedRun>, Failure> {
        let mut runs = Vec::new();
        for &seed in &self.loaded.sweep.seeds {
            for &member in members {
                runs.push(self.planned_run(rung.num_steps, member, seed)?);
            }
        }
        Ok(runs)
    }

    fn planned_run(&mut self, num_steps: u64, member: usize, seed: u64) -> Result<PlannedRun, Failure> {
        let arm = &self.candidates[member].arm;
        let settings = RunSettings {
            seed,
            data_seed: None,
            learning_rate: arm.config.train.adamw.learning_rate,
            num_steps,
        };
        let mut config = arm.run_config(&self.study.study, &settings);
        shorten_schedule(&mut config.train.schedule, num_steps, self.loaded.sweep.num_steps);
        PlannedRun::new((member, &arm.label), settings, config, &self.code, &mut self.data).map_err(
            |failure| match failure {
                Failure::Mistake(message) => Failure::Mistake(format!(
                    "{}: {message} (the candidate is `{}`)",
                    self.loaded.path.display(),
                    self.candidates[member].written.overrides.join(" ")
                )),
                other => other,
            },
        )
    }

    /// Go through the rounds; nothing if the user interrupted.
    fn run(&mut self, shard: Shard, stop: &Arc<AtomicBool>) -> Result<Option<Vec<RungOutcome>>, Failure> {
        let mut members: Vec<usize> = (0..self.candidates.len()).collect();
        let mut outcomes = Vec::new();
        let rungs = self.rungs.clone();
        for (index, rung) in rungs.iter().enumerate() {
            if members.is_empty() {
                break; // All have diverged.
            }
            say!(
                "round {} of {}: {} candidates, {} steps",
                index + 1,
                rungs.len(),
                members.len(),
                rung.num_steps
            );
            let runs = self.runs_of(*rung, &members)?;
            if self.execute(&runs, shard, stop)? == Execution::Interrupted {
                return Ok(None);
            }
            let outcome = self.outcome(*rung, &members, &runs)?;
            if let Some(next) = rungs.get(index + 1) {
                let staying = going_on(&outcome.mean_losses_nats(), next.num_candidates);
                members = staying.into_iter().map(|position| members[position]).collect();
            }
            outcomes.push(outcome);
        }
        Ok(Some(outcomes))
    }

    /// Do this shard's part of a round and wait for the others': who goes on is decided by all of
    /// them.
    fn execute(
        &self,
        runs: &[PlannedRun],
        shard: Shard,
        stop: &Arc<AtomicBool>,
    ) -> Result<Execution, Failure> {
        let orders = Orders { keep_checkpoints: self.loaded.sweep.keep_checkpoints, stop };
        run_all(&self.folder, runs, shard, orders)
    }

    fn outcome(
        &mut self,
        rung: Rung,
        members: &[usize],
        runs: &[PlannedRun],
    ) -> Result<RungOutcome, Failure> {
        let finished = finished_runs(&self.folder, runs, None)?;
        self.train_secs += finished.iter().map(|run| run.result.train_secs).sum::<f64>();
        self.machines.extend(finished.iter().map(|run| run.manifest.host.hostname.clone()));
        let of_member = |member: usize| {
            let mine = runs.iter().filter(|run| run.arm == member);
            let outcomes = mine.map(|run| self.run_outcome(run, &finished)).collect::<Result<Vec<_>, _>>()?;
            Ok((member, outcomes))
        };
        let members = members.iter().copied().map(of_member).collect::<Result<_, Failure>>()?;
        Ok(RungOutcome { rung, members })
    }

    fn run_outcome(&self, run: &PlannedRun, finished: &[FinishedRun]) -> Result<RunOutcome, Failure> {
        let is_this = |other: &&FinishedRun| other.arm == run.arm && other.result.seed == run.settings.seed;
        let final_loss_nats = finished.iter().find(is_this).and_then(|run| run.result.final_loss_nats);
        Ok(RunOutcome {
            seed: run.settings.seed,
            run: StudyFolder::relative(run),
            final_loss_nats,
            diverged: self.folder.divergence(run)?,
        })
    }

    /// Write the result.
    fn conclude(&self, outcomes: &[RungOutcome]) -> Result<SweepResult, Failure> {
        let names: Vec<_> = self
            .candidates
            .iter()
            .map(|candidate| (candidate.arm.label.as_str(), &candidate.written))
            .collect();
        let result = SweepResult::new(&self.loaded.sweep, &names, outcomes, self.provenance()?);
        let root = self.folder.root();
        let json = serde_json::to_string_pretty(&result)? + "\n";
        for (name, text) in [("sweep.json", json), ("sweep.csv", result.to_csv()?)] {
            whole_file::replace(&root.join(name), text.as_bytes()).map_err(Failure::Fault)?;
        }
        say!("saved: {}/ (sweep.json, sweep.csv)", root.display());
        Ok(result)
    }

    fn provenance(&self) -> Result<SweepProvenance, Failure> {
        Ok(SweepProvenance {
            command: format!("switchyard sweep {}", self.loaded.path.display()),
            sweep_sha256: sha256_hex(&self.loaded.text),
            base_sha256: sha256_hex(config_file::read(&self.loaded.base)?),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: Commit::of_sources().map(|commit| commit.hash + if commit.dirty { "-dirty" } else { "" }),
            cargo_lock_sha256: cargo_lock_sha256(),
            machines: self.machines.iter().cloned().collect(),
            total_train_secs: self.train_secs,
        })
    }
}
