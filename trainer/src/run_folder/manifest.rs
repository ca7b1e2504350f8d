//! `run.json`: what a run is, where it ran and how it ended.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use switchyard_kernels::Products;

use super::RunFolderError;
use super::timestamp::now_rfc3339;
use crate::checkpoint::LoggedEvaluation;
use crate::host::{self, Commit, HostInfo};
use crate::sharding::StepTraffic;
use crate::upcycle::UpcycleMethod;
use switchyard_ground::{durable, regular_file};

/// Far more than the configuration and the plan of any run have.
const MAX_MANIFEST_BYTES: u64 = 1 << 26;

/// Where a run stands. A `running` run whose folder nobody has locked was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// A process is at work, or was until it was killed.
    Running,
    /// All steps are done, or early stopping ended the run.
    Finished,
    /// Stopped by the user after a checkpoint; can be resumed.
    Interrupted,
    /// Stopped by an alarm that the configuration lets stop it, after a checkpoint; can be resumed.
    Alarmed,
    /// Ended by an error, which the manifest quotes.
    Failed,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn one() -> usize {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_one(number: &usize) -> bool {
    *number == 1
}

/// Where the parameters of an upcycled run come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpcycledFrom {
    /// Folder of the dense checkpoint.
    pub checkpoint: PathBuf,
    /// Its step.
    pub step: u64,
    /// How its blocks became experts.
    pub method: UpcycleMethod,
    /// Seed of what was drawn.
    pub seed: u64,
}

/// The content of `run.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunManifest {
    /// Where the run stands.
    pub status: RunStatus,
    /// Why a `failed` run failed or an `alarmed` one stopped; else absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Validation cross-entropy of the last model over the whole split; `None` until the run has
    /// finished.
    pub final_validation_cross_entropy_nats: Option<f64>,
    /// The same in bits per byte of text; `None` where the bytes are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_validation_bits_per_byte: Option<f64>,
    /// Cross-entropy of the last model over the test split; absent unless `train.eval.test_at_end`
    /// asked for it and the run has finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_test_cross_entropy_nats: Option<f64>,
    /// The same in bits per byte of text; `None` where the bytes are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_test_bits_per_byte: Option<f64>,
    /// Lowest validation cross-entropy of any evaluation.
    pub best_validation_cross_entropy_nats: Option<f64>,
    /// The same in bits per byte of text; `None` where the bytes are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_validation_bits_per_byte: Option<f64>,
    /// Step of that evaluation.
    pub best_validation_step: Option<u64>,
    /// Updates done.
    pub steps_done: u64,
    /// Of these, steps that moved no parameter, as `train.skip_spikes` says.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped_steps: u64,
    /// Training tokens consumed.
    pub tokens_seen: u64,
    /// Floating-point operations of training, forward and backward, of the active parameters only.
    pub active_flops: f64,
    /// Processes that did it together, the latest part of the run.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub ranks: usize,
    /// What the first of several processes sent in the latest step that moved parameters; absent for
    /// one alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<StepTraffic>,
    /// Wall-clock time of training with its evaluations and checkpoints, over all processes of the
    /// run.
    pub train_secs: f64,
    /// Part of it that the flight recorder took.
    #[serde(default)]
    pub flight_recorder_secs: f64,
    /// Part of it in which the loop stood still for checkpoints: for the logs, the checkpoint before,
    /// which was still being written, the one at the end, older ones that go, and this file.
    #[serde(default)]
    pub checkpoint_stall_secs: f64,
    /// Energy of the processor packages over the same time, other processes' included; `None` where
    /// their counters cannot be read, see [`crate::energy`]. What a killed process took after its
    /// last checkpoint is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_joules: Option<f64>,
    /// Rate of a large matrix product on this device, as measured at the start; the base of `mfu`.
    /// In operations per second.
    pub matmul_peak_flops: Option<f64>,
    /// What multiplied factors in the last process that did steps. Absent before the first one, and
    /// in runs of earlier versions; see [`RunManifest::products()`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub products: Option<Products>,
    /// Start of the first process, RFC 3339 UTC.
    pub started_at: String,
    /// End of the last process; `None` while it runs and after a kill.
    pub ended_at: Option<String>,
    /// Steps of the checkpoints that later processes of this run continued from.
    pub resumed_from_steps: Vec<u64>,
    /// The dense checkpoint that the run began from; `None` if it began from random values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upcycled_from: Option<UpcycledFrom>,
    /// Content key of the prepared data: equal keys mean equal tokens, wherever the files lie.
    /// Absent before the data is prepared, and in runs of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_key: Option<String>,
    /// Seed of everything random in the run.
    pub seed: u64,
    /// The device, as the program names it.
    pub device: String,
    /// The machine.
    pub host: HostInfo,
    /// Version of Switchyard.
    pub version: String,
    /// Commit of the sources that the program was built from; `None` without a repository.
    pub commit: Option<Commit>,
    /// SHA-256 of the `Cargo.lock` that the program was built with, in hexadecimal.
    pub cargo_lock_sha256: String,
    /// The resolved configuration.
    pub config: Value,
    /// The resolved plan.
    pub plan: Value,
}

impl RunManifest {
    /// The manifest of a run that starts now, on this machine, with nothing done yet.
    pub fn starting(config: Value, plan: Value, seed: u64, device: &str) -> Self {
        Self {
            status: RunStatus::Running,
            error: None,
            final_validation_cross_entropy_nats: None,
            final_validation_bits_per_byte: None,
            final_test_cross_entropy_nats: None,
            final_test_bits_per_byte: None,
            best_validation_cross_entropy_nats: None,
            best_validation_bits_per_byte: None,
            best_validation_step: None,
            steps_done: 0,
            skipped_steps: 0,
            ranks: 1,
            traffic: None,
            tokens_seen: 0,
            active_flops: 0.0,
            train_secs: 0.0,
            flight_recorder_secs: 0.0,
            checkpoint_stall_secs: 0.0,
            energy_joules: None,
            matmul_peak_flops: None,
            products: None,
            started_at: now_rfc3339(),
            ended_at: None,
            resumed_from_steps: Vec::new(),
            upcycled_from: None,
            data_key: None,
            seed,
            device: device.into(),
            host: HostInfo::detect(),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: Commit::of_sources(),
            cargo_lock_sha256: host::cargo_lock_sha256(),
            config,
            plan,
        }
    }

    /// Marks the run as running again, on this machine and with this program, from the checkpoint
    /// of `step`.
    pub fn resume(&mut self, step: u64) {
        self.status = RunStatus::Running;
        self.error = None;
        self.final_validation_cross_entropy_nats = None;
        self.final_validation_bits_per_byte = None;
        self.final_test_cross_entropy_nats = None;
        self.final_test_bits_per_byte = None;
        self.ended_at = None;
        self.resumed_from_steps.push(step);
        self.host = HostInfo::detect();
        self.version = env!("CARGO_PKG_VERSION").into();
        self.commit = Commit::of_sources();
        self.cargo_lock_sha256 = host::cargo_lock_sha256();
    }

    /// What multiplied factors. Earlier versions did not say it, and had no matrix units: all their
    /// runs in bf16 have the bits of [`Products::RoundedF32`].
    pub fn products(&self) -> Products {
        let in_bf16 = self.plan.get("compute").is_some_and(|compute| compute != "f32");
        self.products.unwrap_or(if in_bf16 { Products::RoundedF32 } else { Products::F32 })
    }

    /// Whether it is what importing a model leaves: a run without data that has done no step.
    pub fn is_imported(&self) -> bool {
        self.status == RunStatus::Interrupted && self.steps_done == 0 && self.data_key.is_none()
    }

    /// Marks the run as ended now, in `status`.
    pub fn end(&mut self, status: RunStatus) {
        self.status = status;
        self.ended_at = Some(now_rfc3339());
    }

    /// Marks the run as failed now, because of `error`.
    pub fn fail(&mut self, error: impl Into<String>) {
        self.error = Some(error.into());
        self.end(RunStatus::Failed);
    }

    /// The best evaluation so far.
    pub fn best_validation(&self) -> Option<LoggedEvaluation> {
        let (step, nats) = (self.best_validation_step?, self.best_validation_cross_entropy_nats?);
        Some(LoggedEvaluation { step, cross_entropy_nats: nats })
    }

    /// Makes `best` the best evaluation so far: a run that goes on from a checkpoint has seen no
    /// later ones.
    pub fn set_best_validation(&mut self, best: Option<LoggedEvaluation>) {
        self.best_validation_cross_entropy_nats = best.map(|best| best.cross_entropy_nats);
        self.best_validation_step = best.map(|best| best.step);
    }

    /// Remembers an evaluation if it is the best one so far; says whether it is.
    pub fn record_validation(&mut self, step: u64, cross_entropy_nats: f64) -> bool {
        let is_best = self.best_validation_cross_entropy_nats.is_none_or(|best| cross_entropy_nats < best);
        if is_best {
            self.best_validation_cross_entropy_nats = Some(cross_entropy_nats);
            self.best_validation_step = Some(step);
        }
        is_best
    }

    /// The manifest in the file at `path`.
    ///
    /// # Errors
    /// [`RunFolderError::Io`] and [`RunFolderError::BadManifest`], both with the path.
    pub fn read(path: &Path) -> Result<Self, RunFolderError> {
        let bytes = regular_file::read(path, MAX_MANIFEST_BYTES).map_err(RunFolderError::io("read", path))?;
        serde_json::from_slice(&bytes)
            .map_err(|error| RunFolderError::BadManifest { path: path.into(), reason: error.to_string() })
    }

    /// Replaces the file at `path`, which holds the old or the new manifest at every moment.
    ///
    /// # Errors
    /// [`RunFolderError::Io`].
    pub fn write(&self, path: &Path) -> Result<(), RunFolderError> {
        let io_error = RunFolderError::io("write", path);
        let mut text = match serde_json::to_vec_pretty(self) {
            Ok(text) => text,
            Err(error) => return Err(io_error(error.into())),
        };
        text.push(b'\n');
        durable::replace(path, &text).map_err(io_error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    fn manifest() -> RunManifest {
        let plan = json!({ "counts": { "total_params": 46_700_000_000u64 } });
        RunManifest::starting(json!({ "name": "a", "data": { "rate": 0.1 } }), plan, u64::MAX, "cpu")
    }

    #[test]
    fn a_manifest_is_read_back_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.json");
        let mut manifest = manifest();
        manifest.train_secs = 0.1 + 0.2;
        manifest.resume(40);
        manifest.fail("disk full");
        manifest.write(&path).unwrap();
        assert_eq!(RunManifest::read(&path).unwrap(), manifest);
    }

    #[test]
    fn the_keys_that_scripts_read_are_there_from_the_start() {
        let value = serde_json::to_value(manifest()).unwrap();
        assert_eq!(value["status"], "running");
        assert_eq!(value["seed"], json!(u64::MAX));
        assert!(value.get("final_validation_cross_entropy_nats").unwrap().is_null());
        assert!(value.get("commit").is_some() && value.get("error").is_none());
        assert_eq!(value["cargo_lock_sha256"].as_str().unwrap().len(), 64);
        assert!(value["host"]["logical_cores"].as_u64().unwrap() > 0);
        for (status, text) in [
            (RunStatus::Finished, "finished"),
            (RunStatus::Interrupted, "interrupted"),
            (RunStatus::Failed, "failed"),
        ] {
            assert_eq!(serde_json::to_value(status).unwrap(), text);
        }
    }

    #[test]
    fn runs_that_do_not_say_what_multiplied_had_no_matrix_units() {
        let of_plan = |plan: Value| RunManifest { plan, ..manifest() }.products();
        assert_eq!(of_plan(json!({})), Products::F32);
        assert_eq!(of_plan(json!({ "compute": "bf16" })), Products::RoundedF32);
        let said = RunManifest { products: Some(Products::Amx), ..manifest() };
        assert_eq!(said.products(), Products::Amx);
        let texts = [Products::F32, Products::RoundedF32, Products::Avx512Bf16, Products::Amx]
            .map(|products| serde_json::to_value(products).unwrap());
        assert_eq!(texts, ["f32", "rounded_f32", "avx512_bf16", "amx"]);
    }

    #[test]
    fn only_a_lower_loss_is_a_new_best() {
        let mut manifest = manifest();
        assert!(manifest.record_validation(10, 3.0));
        assert!(!manifest.record_validation(20, 3.0));
        assert!(manifest.record_validation(30, 2.5));
        assert_eq!(
            (manifest.best_validation_step, manifest.best_validation_cross_entropy_nats),
            (Some(30), Some(2.5))
        );
    }

    #[test]
    fn a_resumed_run_forgets_how_it_ended_and_keeps_when_it_started() {
        let mut manifest = manifest();
        manifest.started_at = "2020-01-01T00:00:00Z".into();
        manifest.fail("disk full");
        manifest.resume(40);
        assert_eq!(
            (manifest.status, &manifest.error, &manifest.ended_at),
            (RunStatus::Running, &None, &None)
        );
        assert_eq!(
            (manifest.started_at.as_str(), manifest.resumed_from_steps),
            ("2020-01-01T00:00:00Z", vec![40])
        );
    }

    #[test]
    fn a_file_that_is_no_manifest_is_an_error_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.json");
        let missing = RunManifest::read(&path).unwrap_err().to_string();
        assert!(missing.starts_with("cannot read `") && missing.contains("run.json"), "{missing}");
        fs::write(&path, r#"{"status":"asleep"}"#).unwrap();
        let message = RunManifest::read(&path).unwrap_err().to_string();
        assert!(
            message.contains("run.json` is not the manifest of a run: unknown variant `asleep`"),
            "{message}"
        );
    }
}
