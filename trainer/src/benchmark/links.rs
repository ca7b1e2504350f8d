//! How long messages between the processes of a job take.

use std::sync::Arc;

use switchyard_comm::Comm;
use switchyard_comm::link::Measured;

use crate::TrainError;
use crate::ranks::Ranks;

/// The links between all ranks by distance; none for a process alone. This rank is the first, and the
/// others [`crate::train::follow`] it.
///
/// # Errors
/// [`TrainError::Comm`].
pub fn benchmark_links(comm: &Comm) -> Result<Vec<Measured>, TrainError> {
    Ranks::new(comm.clone(), Arc::default()).measure_links()
}
