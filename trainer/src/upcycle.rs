//! Upcycling: a trained dense model becomes the beginning of a mixture of experts.
//!
//! Attention, norms, embedding and head are carried over as they are; every feed-forward block that
//! the configuration makes a mixture is turned into experts by one of three methods, and its router
//! starts at random. The result is a run folder with a checkpoint of step 0, from which training
//! goes on with a fresh optimizer and schedule.

mod check;
mod run;
mod source;
mod weights;

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::tensor::{Device, TensorData};
use serde::{Deserialize, Serialize};
use switchyard_ground::key_error::KeyError;
use switchyard_model::{ModelSpec, ParameterName, Transformer};

pub use run::{UpcycleRequest, UpcycleSummary, upcycle};
pub use source::DenseSource;

/// How a dense feed-forward block becomes experts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpcycleMethod {
    /// Every expert is the dense block (Sparse Upcycling, arXiv:2212.05055, section 3).
    Copy,
    /// The dense block is cut along its hidden width into parts, each an expert, as often as there
    /// are experts for. The parts of one copy share their gate's values, so that a token goes to
    /// whole copies at first (virtual groups, arXiv:2410.07524, section 3.2).
    GranularSplit,
    /// Every expert is the dense block with a share of its hidden units drawn anew, with the mean
    /// and the deviation of the values that they replace (Drop-Upcycling, arXiv:2502.19261, section
    /// 3.2).
    Drop {
        /// Share of the hidden units, in `0..=1`; the paper's best is 0.5.
        ratio: f64,
    },
}

/// How to upcycle, beside what the two models say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpcycleSettings {
    /// How blocks become experts.
    pub method: UpcycleMethod,
    /// Seed of the routers and of everything else that is drawn.
    pub seed: u64,
}

/// A trained dense model.
#[derive(Debug, Clone, Copy)]
pub struct DenseModel<'a> {
    /// Its network.
    pub spec: &'a ModelSpec,
    /// Its parameters.
    pub parameters: &'a BTreeMap<ParameterName, TensorData>,
}

/// Why a dense model cannot become the mixture that is asked for.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum UpcycleError {
    /// The two models differ in something that is carried over.
    #[error(
        "`{key}` is {now}, but {there} in the dense checkpoint: everything outside the feed-forward blocks is carried \
         over, so give the key the checkpoint's value"
    )]
    Differs {
        /// Path of the key.
        key: &'static str,
        /// Its value in the configuration.
        now: String,
        /// Its value in the checkpoint.
        there: String,
    },
    /// A key of the mixture that the method cannot do.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The checkpoint is no dense model.
    #[error(
        "layer {layer} of the checkpoint is {kind} already: upcycling starts from the checkpoint of a dense run"
    )]
    NotDense {
        /// First such layer.
        layer: usize,
        /// What it is.
        kind: &'static str,
    },
    /// The share to draw anew is no share.
    #[error("the drop ratio is {ratio}: use a number in 0..=1")]
    Ratio {
        /// The value.
        ratio: f64,
    },
    /// The run folder's data has another tokenizer.
    #[error(
        "`data.tokenizer` gives other ids than the tokenizer of {checkpoint}: name the checkpoint's own with \
         `data.tokenizer.file.path = \"{checkpoint}/tokenizer.json\"`, or use the data that it was trained on"
    )]
    Tokenizer {
        /// The checkpoint's folder.
        checkpoint: PathBuf,
    },
}

impl UpcycleError {
    /// The key to change, if it is one of the configuration.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Differs { key, .. } => Some(key),
            Self::Key(error) => Some(&error.path),
            Self::Tokenizer { .. } => Some("data.tokenizer"),
            Self::NotDense { .. } | Self::Ratio { .. } => None,
        }
    }
}

/// The mixture of `spec` that `dense` becomes.
///
/// # Errors
/// [`UpcycleError`] if the two do not fit.
pub fn upcycled_model(
    dense: DenseModel<'_>,
    spec: &ModelSpec,
    settings: UpcycleSettings,
    device: &Device,
) -> Result<Transformer, UpcycleError> {
    check::check(dense.spec, spec, settings.method)?;
    Ok(weights::mapped(dense, spec, settings, device))
}

/// Why the mixture does not start as the same function as the dense model, the first layer's
/// reason; `None` if it does, up to rounding, while evaluating.
pub fn deviation_from_dense(dense: &ModelSpec, spec: &ModelSpec, method: UpcycleMethod) -> Option<String> {
    (0..spec.num_layers()).find_map(|layer| {
        let reason = check::deviation(dense, spec, layer, method)?;
        Some(format!("layer {layer}: {reason}"))
    })
}
