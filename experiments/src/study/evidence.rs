//! What an analysis starts from.

use super::arms::Arm;
use super::calibration::Calibration;
use super::file::LoadedStudy;
use super::matrix::Stage;
use super::outcome::FinishedRun;
use super::result::{Axis, DivergedRun};
use crate::statistics::Stopping;

/// All axes, in the order of the tables.
pub(crate) const AXES: [Axis; 4] = [Axis::Steps, Axis::Tokens, Axis::ActiveFlops, Axis::Seconds];

/// What the analysis starts from.
#[derive(Debug)]
pub(crate) struct Evidence<'a> {
    /// The study.
    pub(crate) loaded: &'a LoadedStudy,
    /// Its arms, the baseline first.
    pub(crate) arms: &'a [Arm],
    /// Learning rate of each arm, as chosen.
    pub(crate) learning_rates: &'a [f64],
    /// Its finished runs, pilots included.
    pub(crate) finished: &'a [(Stage, FinishedRun)],
    /// What a step of each arm takes.
    pub(crate) calibration: &'a Calibration,
    /// Planned steps of each arm at each budget, ascending.
    pub(crate) budget_steps: &'a [Vec<u64>],
    /// Whether the seeds are those that were planned, no more and no fewer.
    pub(crate) stopping: Stopping,
    /// What was registered and printed before.
    pub(crate) history_notes: &'a [String],
    /// How many results were printed before.
    pub(crate) num_looks: usize,
    /// Runs for the result that are not finished.
    pub(crate) num_missing: usize,
    /// Runs beside those of the result, for its noise floor and for crossed seeds, that are not
    /// finished.
    pub(crate) num_missing_beside: usize,
    /// Runs for the result that diverged, each with its arm.
    pub(crate) diverged: &'a [(usize, DivergedRun)],
}
