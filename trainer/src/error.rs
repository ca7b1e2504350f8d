//! Everything that can stop a run.

use std::path::PathBuf;

use switchyard_comm::CommError;
use switchyard_datasets::DatasetError;
use switchyard_ground::key_error::KeyError;
use switchyard_hub::HubError;
use switchyard_model::NonFinite;

use crate::available_memory::TooLargeForMemory;
use crate::checkpoint::CheckpointError;
use crate::config_file::ConfigError;
use crate::device::DeviceError;
use crate::metrics::MetricsError;
use crate::optimizer::NonFiniteGradient;
use crate::readings::DeviceReadError;
use crate::run_folder::RunFolderError;
use crate::upcycle::UpcycleError;
use switchyard_flight::columns::ColumnsError;
use switchyard_flight::whatif::WhatIfError;

/// Why a run, an evaluation or a generation stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The device is not there.
    #[error(transparent)]
    UnavailableDevice(#[from] DeviceError),
    /// A key that cannot be set, or not so.
    #[error(transparent)]
    Setting(#[from] ConfigError),
    /// The run does not fit into memory.
    #[error(transparent)]
    TooLargeForMemory(#[from] TooLargeForMemory),
    /// The data cannot be had.
    #[error(transparent)]
    Data(#[from] DatasetError),
    /// The run folder cannot be used.
    #[error(transparent)]
    RunFolder(#[from] RunFolderError),
    /// Logs cannot be read or written.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The flight recorder's files cannot be read or written.
    #[error(transparent)]
    Recording(#[from] ColumnsError),
    /// A checkpoint cannot be read, used or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A dense model cannot become the mixture that is asked for.
    #[error(transparent)]
    Upcycle(#[from] UpcycleError),
    /// The threads could not be started.
    #[error("`threads` is {threads}, but the system could not start them: {reason}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// The system's reason.
        reason: String,
    },
    /// The loss is NaN or infinite.
    #[error(
        "step {step}: the loss is {loss}; the first NaN or infinity is in {origin}. The run has diverged; start a new one with a lower \
         `train.adamw.learning_rate`, with `train.max_grad_norm` or `train.schedule.warmup_steps` set, or with a smaller \
         `model.init.std` if this is the first step. Checkpoints on disk are intact"
    )]
    NonFiniteLoss {
        /// The step, counted from 1.
        step: u64,
        /// The loss.
        loss: f64,
        /// Where the first NaN or infinity is.
        origin: NonFinite,
    },
    /// A gradient is NaN or infinite.
    #[error(
        "step {step}: {source}. The run has diverged; start a new one with a lower \
         `train.adamw.learning_rate`, with `train.max_grad_norm` or `train.schedule.warmup_steps` set, or with a smaller \
         `model.init.std` if this is the first step. Checkpoints on disk are intact"
    )]
    NonFiniteGradient {
        /// The step, counted from 1.
        step: u64,
        /// Which parameter.
        source: NonFiniteGradient,
    },
    /// A test split that the data does not have.
    #[error(
        "the data has no test split, which {wanted_by} asks for: set `data.split.by_document_hash.test_fraction` (or that of \
         `tail`, or `data.tokens.test`)"
    )]
    NoTestSplit {
        /// The key or option.
        wanted_by: &'static str,
    },
    /// Windows that slide, and a state that goes from window to window.
    #[error(
        "a stride of {stride} has no meaning where `train.carry_state` is on: the state of `model.lstm` goes from window to \
         window, so each token follows all before it already. Evaluate without `--stride`"
    )]
    CarriedStride {
        /// The stride.
        stride: usize,
    },
    /// A step that the run does not have.
    #[error("step {step} is not in the run: use 1..={num_steps}")]
    NoSuchStep {
        /// The step.
        step: u64,
        /// Steps of the run.
        num_steps: u64,
    },
    /// A step of an upcycled run before which no checkpoint is left.
    #[error(
        "step {step} cannot be repeated: the run began with an upcycled model, whose checkpoint of step 0 is gone, and no other \
         before the step is left. {}; `train.checkpoints.keep_last` says how many stay", ask_for_later(*.oldest)
    )]
    NothingToRepeatFrom {
        /// The step.
        step: u64,
        /// Step of the oldest checkpoint that is left; `None` if none is.
        oldest: Option<u64>,
    },
    /// A question about a run's routing that has no answer.
    #[error(transparent)]
    Question(#[from] WhatIfError),
    /// Nothing to continue.
    #[error("the prompt {prompt:?} cannot be continued: {reason}")]
    Prompt {
        /// The prompt.
        prompt: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of multiple-choice questions that cannot be used.
    #[error("`{path}`: {reason}")]
    Choices {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// The model's routers need tokens that are not there yet.
    #[error("text cannot be generated: {reason}")]
    NotCausal {
        /// The key that makes it so, and what to do.
        reason: String,
    },
    /// Generated text could not be written.
    #[error("cannot write the generated text: {source}")]
    Output {
        /// The system's reason.
        source: std::io::Error,
    },
    /// The caller asked to stop, and nothing was to be saved.
    #[error("interrupted: run the command again to start over")]
    Interrupted,
    /// A path of the data is not there.
    #[error("{source}. {place}If it lies elsewhere now, add `--set {key}=PATH`")]
    MissingData {
        /// What could not be read.
        source: DatasetError,
        /// Where a relative path was looked for.
        place: String,
        /// The key that names the path.
        key: String,
    },
    /// Data whose ids mean something else than those that the model was trained on.
    #[error(
        "{path}: the data has another tokenizer than the model, so its ids mean something else: name text for the \
         model's tokenizer, or files of its ids"
    )]
    OtherTokens {
        /// The checkpoint's folder.
        path: PathBuf,
    },
    /// A trained model that computes no numbers.
    #[error(
        "{what}: the checkpoint's parameters are damaged, or of a run that diverged; use an earlier checkpoint"
    )]
    NoNumbers {
        /// What is no number.
        what: &'static str,
    },
    /// A key of `[start]` that cannot be used.
    #[error(transparent)]
    Start(KeyError),
    /// A published model could not be read or written.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A key that several ranks cannot do.
    #[error(transparent)]
    Distributed(KeyError),
    /// Another rank cannot go on.
    #[error("rank {rank}: {message}")]
    OfRank {
        /// Which.
        rank: usize,
        /// Its error.
        message: String,
        /// Where the NaN or infinity is that it met; `None` for other errors.
        non_finite: Option<NonFinite>,
        /// Whether its model and counters are as they should be.
        leaves_the_model_whole: bool,
    },
    /// This rank was started with another program than the first.
    #[error("its program computes otherwise than that of rank 0: start all ranks with the same build")]
    OtherProgram,
    /// Another rank begins elsewhere than the first.
    #[error("rank {rank} {how} must be the same on all machines")]
    OtherBeginning {
        /// Which.
        rank: usize,
        /// What differs, and what it comes from.
        how: &'static str,
    },
    /// The ranks lost one another.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceReadError),
}

fn ask_for_later(oldest: Option<u64>) -> String {
    match oldest {
        Some(oldest) => format!("Ask for a step after {oldest}"),
        None => "Run it again".into(),
    }
}

impl TrainError {
    /// Where the NaN or infinity that stopped the run came from; `None` for other errors.
    pub fn non_finite(&self) -> Option<NonFinite> {
        match self {
            Self::NonFiniteLoss { origin, .. } => Some(origin.clone()),
            Self::OfRank { non_finite, .. } => non_finite.clone(),
            Self::NonFiniteGradient { source, .. } => Some(NonFinite {
                layer: source.name.layer,
                expert: source.expert,
                op: format!("the gradient of `{}`", source.name),
            }),
            _ => None,
        }
    }

    /// Whether the user can mend it by changing arguments, configuration or input.
    pub fn is_users_mistake(&self) -> bool {
        match self {
            Self::UnavailableDevice(_)
            | Self::TooLargeForMemory(_)
            | Self::Prompt { .. }
            | Self::Choices { .. }
            | Self::NotCausal { .. }
            | Self::Threads { .. }
            | Self::NoSuchStep { .. }
            | Self::NothingToRepeatFrom { .. }
            | Self::CarriedStride { .. }
            | Self::NoTestSplit { .. }
            | Self::NoNumbers { .. }
            | Self::OtherTokens { .. }
            | Self::MissingData { .. }
            | Self::Setting(_)
            | Self::Distributed(_)
            | Self::OtherProgram
            | Self::OtherBeginning { .. }
            | Self::Question(_)
            | Self::Start(_)
            | Self::Upcycle(_) => true,
            Self::Hub(error) => !matches!(error, HubError::Io { .. }),
            Self::Data(error) => error.is_users_mistake(),
            Self::RunFolder(error) => error.is_users_mistake(),
            Self::Checkpoint(error) => error.is_users_mistake(),
            Self::Metrics(error) => error.is_about_the_file(),
            Self::Recording(error) => {
                matches!(error, ColumnsError::Damaged { .. } | ColumnsError::NotRecorded { .. })
            }
            Self::NonFiniteLoss { .. }
            | Self::NonFiniteGradient { .. }
            | Self::OfRank { .. }
            | Self::Comm(_)
            | Self::Output { .. }
            | Self::Interrupted
            | Self::Device(_) => false,
        }
    }

    /// Whether a file around the training could not be read or written, so that the model and all
    /// counters are as they should be.
    pub(crate) fn leaves_the_model_whole(&self) -> bool {
        match self {
            // Data is read before a step computes anything.
            Self::Data(_) => true,
            Self::Metrics(error) => matches!(error, MetricsError::Io { .. }),
            Self::Recording(error) => {
                matches!(error, ColumnsError::Io { .. } | ColumnsError::Unwritable { .. })
            }
            Self::RunFolder(error) => matches!(error, RunFolderError::Io { .. }),
            Self::OfRank { leaves_the_model_whole, .. } => *leaves_the_model_whole,
            _ => false,
        }
    }
}
