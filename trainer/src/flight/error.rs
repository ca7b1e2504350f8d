//! What can go wrong while a run is watched.

use switchyard_datasets::DatasetError;
use switchyard_flight::columns::ColumnsError;

use crate::TrainError;
use crate::metrics::MetricsError;
use crate::optimizer::NonFiniteGradient;
use crate::readings::DeviceReadError;

/// Why the flight recorder could not go on, or not write down what it saw.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecorderError {
    /// The tokens that are probed cannot be read.
    #[error(transparent)]
    Data(#[from] DatasetError),
    /// A file of lines cannot be read or written.
    #[error(transparent)]
    Lines(#[from] MetricsError),
    /// A file of columns cannot be read or written.
    #[error(transparent)]
    Columns(#[from] ColumnsError),
    /// A gradient of a probe is NaN or infinite.
    #[error("step {step}: {source}")]
    NonFiniteGradient {
        /// The step, counted from 1.
        step: u64,
        /// Which parameter.
        source: NonFiniteGradient,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceReadError),
}

/// A run tells the same errors in the same words, wherever they come from.
impl From<RecorderError> for TrainError {
    fn from(error: RecorderError) -> Self {
        match error {
            RecorderError::Data(error) => Self::Data(error),
            RecorderError::Lines(error) => Self::Metrics(error),
            RecorderError::Columns(error) => Self::Recording(error),
            RecorderError::NonFiniteGradient { step, source } => Self::NonFiniteGradient { step, source },
            RecorderError::Device(error) => Self::Device(error),
        }
    }
}
