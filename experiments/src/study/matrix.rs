//! All runs of a study: pilots that choose learning rates, then arms x budgets x seeds.

use switchyard_trainer::config::RunConfig;
use switchyard_trainer::plan::RunPlan;

use super::arms::{Arm, RunSettings};
use super::file::StudyFile;
use super::identity::{CodeIdentity, DataIdentities, run_identity};
use crate::failure::Failure;

/// Relative change of the initial deviation for each repeat: two units in the last place of an f32,
/// so that every initial value moves, and nothing else does.
const LAST_BITS: f64 = 2.0 / (1 << 23) as f64;

/// Why a run is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// To choose the arm's learning rate.
    Pilot,
    /// For the result.
    Main,
    /// To measure what the last bits decide.
    Noise,
    /// To tell the initial values from the data order.
    Crossed,
}

/// One run of a study.
#[derive(Debug, Clone)]
pub(crate) struct PlannedRun {
    /// Index of its arm.
    pub(crate) arm: usize,
    /// Seed, learning rate, steps.
    pub(crate) settings: RunSettings,
    /// Its configuration.
    pub(crate) config: RunConfig,
    /// What that resolves to.
    pub(crate) plan: RunPlan,
    /// Name of its folder: what a person wants to know of it, and the identity that no other run
    /// shares.
    pub(crate) folder: String,
}

impl PlannedRun {
    /// The run of the arm `(index, label)` with `config`.
    ///
    /// # Errors
    /// A configuration that cannot be run; data that cannot be had.
    pub(crate) fn new(
        (arm, label): (usize, &str),
        settings: RunSettings,
        config: RunConfig,
        code: &CodeIdentity,
        data: &mut DataIdentities,
    ) -> Result<Self, Failure> {
        let RunSettings { seed, data_seed, learning_rate, num_steps } = settings;
        let plan = RunPlan::resolve(&config)
            .map_err(|error| Failure::Mistake(format!("arm `{label}` at {num_steps} steps: {error}")))?;
        let identity = run_identity(&config, &data.of(&config.data)?, code);
        let order = data_seed.map_or(String::new(), |seed| format!("-d{seed}"));
        let folder = format!("{label}-n{num_steps}-lr{learning_rate}-s{seed}{order}-{}", &identity[..12]);
        Ok(Self { arm, settings, config, plan, folder })
    }
}

/// Makes the runs of a study.
#[derive(Debug)]
pub(crate) struct StudyMatrix<'a> {
    study: &'a StudyFile,
    arms: &'a [Arm],
    code: CodeIdentity,
    data: DataIdentities,
    /// Steps of each arm as a multiple of the budget: 1 unless FLOPs or wall-clock time are held
    /// equal.
    step_factors: Vec<f64>,
}

impl<'a> StudyMatrix<'a> {
    /// The runs of `arms`; with `step_factors` an arm does that many times the budget's steps.
    pub(crate) fn new(
        study: &'a StudyFile,
        arms: &'a [Arm],
        code: CodeIdentity,
        data: DataIdentities,
        step_factors: Vec<f64>,
    ) -> Self {
        Self { study, arms, code, data, step_factors }
    }

    /// Pilot runs: each learning rate of each arm that has a choice.
    ///
    /// # Errors
    /// A configuration that the budget or the learning rate makes impossible; data that cannot be
    /// had.
    pub(crate) fn pilots(&mut self) -> Result<Vec<PlannedRun>, Failure> {
        let (seed, num_steps) = (self.study.pilot_seed(), self.study.pilot_steps());
        let mut runs = Vec::new();
        for (index, arm) in self.arms.iter().enumerate().filter(|(_, arm)| arm.learning_rates.len() > 1) {
            for &learning_rate in &arm.learning_rates {
                let num_steps = self.steps_of(index, num_steps);
                let settings = RunSettings { seed, data_seed: None, learning_rate, num_steps };
                let config = arm.run_config(self.study, &settings);
                runs.push(self.planned((index, &arm.label), settings, config)?);
            }
        }
        Ok(runs)
    }

    /// The runs of the result, at the `learning_rates` chosen for each arm. Seeds vary slowest, so
    /// that a study that is stopped early has complete pairs.
    ///
    /// # Errors
    /// As [`StudyMatrix::pilots`].
    pub(crate) fn main_runs(&mut self, learning_rates: &[f64]) -> Result<Vec<PlannedRun>, Failure> {
        let mut runs = Vec::new();
        for &seed in &self.study.seeds {
            for &num_steps in &self.study.budget.num_steps {
                for (index, &learning_rate) in learning_rates.iter().enumerate() {
                    let num_steps = self.steps_of(index, num_steps);
                    let settings = RunSettings { seed, data_seed: None, learning_rate, num_steps };
                    runs.push(self.judged(index, settings)?);
                }
            }
        }
        Ok(runs)
    }

    /// The runs that repeat the first seed at the largest budget, each from initial values that
    /// differ in their last bits.
    ///
    /// # Errors
    /// As [`StudyMatrix::pilots`].
    pub(crate) fn noise_runs(&mut self, learning_rates: &[f64]) -> Result<Vec<PlannedRun>, Failure> {
        let Some(&seed) = self.study.seeds.first() else { return Ok(Vec::new()) };
        let mut runs = Vec::new();
        for repeat in 1..=self.study.noise_repeats {
            for (index, &learning_rate) in learning_rates.iter().enumerate() {
                let settings = self.at_largest_budget(index, learning_rate, seed, None);
                let mut config = self.judged_config(index, &settings);
                config.model.init.std *= 1.0 + repeat as f64 * LAST_BITS;
                let label = format!("{}-noise{repeat}", self.arms[index].label);
                runs.push(self.planned((index, &label), settings, config)?);
            }
        }
        Ok(runs)
    }

    /// The runs of the first seeds' initial values with each other's data order, at the largest
    /// budget.
    ///
    /// # Errors
    /// As [`StudyMatrix::pilots`].
    pub(crate) fn crossed_runs(&mut self, learning_rates: &[f64]) -> Result<Vec<PlannedRun>, Failure> {
        let seeds = &self.study.seeds[..self.study.crossed_seeds as usize];
        let mut runs = Vec::new();
        for &seed in seeds {
            for &data_seed in seeds.iter().filter(|&&other| other != seed) {
                for (index, &learning_rate) in learning_rates.iter().enumerate() {
                    let settings = self.at_largest_budget(index, learning_rate, seed, Some(data_seed));
                    runs.push(self.judged(index, settings)?);
                }
            }
        }
        Ok(runs)
    }

    fn at_largest_budget(
        &self,
        arm: usize,
        learning_rate: f64,
        seed: u64,
        data_seed: Option<u64>,
    ) -> RunSettings {
        let budget = self.study.budget.num_steps.iter().max().copied().unwrap_or(1);
        RunSettings { seed, data_seed, learning_rate, num_steps: self.steps_of(arm, budget) }
    }

    /// Steps of an arm for a budget.
    pub(crate) fn steps_of(&self, arm: usize, budget: u64) -> u64 {
        (budget as f64 * self.step_factors[arm]).round().max(1.0) as u64
    }

    /// A run that the result speaks of.
    fn judged(&mut self, index: usize, settings: RunSettings) -> Result<PlannedRun, Failure> {
        let config = self.judged_config(index, &settings);
        self.planned((index, &self.arms[index].label), settings, config)
    }

    /// Its configuration: such a run alone looks at the test split, if there is one.
    fn judged_config(&self, index: usize, settings: &RunSettings) -> RunConfig {
        let mut config = self.arms[index].run_config(self.study, settings);
        config.train.eval.test_at_end = config.data.has_test_split();
        config
    }

    fn planned(
        &mut self,
        arm: (usize, &str),
        settings: RunSettings,
        config: RunConfig,
    ) -> Result<PlannedRun, Failure> {
        PlannedRun::new(arm, settings, config, &self.code, &mut self.data)
    }
}
