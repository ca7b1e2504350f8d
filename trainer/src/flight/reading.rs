//! The small files of `flight/`, for readers.

use super::lines::read_rows;
use super::{ProbeRow, SaturationRow};
use crate::metrics::MetricsError;
use crate::run_folder::RunPaths;
use switchyard_flight::alarms::Alarm;

/// The alarms of a run, in the order in which they were raised; none if nothing was recorded.
///
/// # Errors
/// [`MetricsError::Malformed`], [`MetricsError::Io`].
pub fn read_alarms(run: &RunPaths) -> Result<Vec<Alarm>, MetricsError> {
    read_rows(&run.alarms())
}

/// The probes of a run, by step and layer; none if nothing was recorded.
///
/// # Errors
/// As [`read_alarms`].
pub fn read_probes(run: &RunPaths) -> Result<Vec<ProbeRow>, MetricsError> {
    read_rows(&run.probes())
}

/// How far the routers were from what they became, by step and layer; none before the run has
/// finished.
///
/// # Errors
/// As [`read_alarms`].
pub fn read_saturation(run: &RunPaths) -> Result<Vec<SaturationRow>, MetricsError> {
    read_rows(&run.saturation())
}
