//! What a forward pass goes over, and what it is for.
//!
//! Shape letters: b batch, s sequence, t = b*s tokens.

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use switchyard_kernels::{CausalMask, RotaryTable};
use switchyard_router::RouterStatistics;

use crate::{ModelState, StepNoise};

/// One micro-batch on the device.
#[derive(Debug, Clone)]
pub struct ModelInput {
    /// `[batch, seq]` token ids.
    pub input_ids_bs: Tensor<2, Int>,
    /// `[batch, seq]` document of each token within its row, when documents are kept apart; 0 is the
    /// one that `state` is of.
    pub segment_ids_bs: Option<Tensor<2, Int>>,
    /// `[batch * seq]` the same ids on the host, for routers that go by token.
    pub token_ids_t: Arc<[u32]>,
    /// What the tokens before these left in a recurrent model; `None` if there are none.
    pub state: Option<ModelState>,
}

impl ModelInput {
    /// A micro-batch of these ids, `[batch, seq]` row-major, on `device`.
    pub fn upload(
        ids: Vec<i32>,
        segment_ids: Option<Vec<i32>>,
        shape_bs: [usize; 2],
        device: &Device,
    ) -> Self {
        let token_ids_t = ids.iter().map(|&id| id as u32).collect();
        let matrix = |ids: Vec<i32>| Tensor::<2, Int>::from_data(TensorData::new(ids, shape_bs), device);
        Self { input_ids_bs: matrix(ids), segment_ids_bs: segment_ids.map(matrix), token_ids_t, state: None }
    }

    /// The same tokens behind others, which left `state`.
    pub fn after(self, state: Option<ModelState>) -> Self {
        Self { state, ..self }
    }
}

/// What every block of one forward pass reads beside the residual stream.
#[derive(Debug, Clone, Copy)]
pub struct BlockContext<'a> {
    /// Rotary positions, if the model has them.
    pub rotary: Option<&'a RotaryTable>,
    /// Who may look at whom.
    pub mask: &'a CausalMask,
    /// What the tokens before these left in the layers; `None` if there are none.
    pub state: Option<&'a ModelState>,
    /// `[batch, seq]` document of each token, where documents are kept apart.
    pub segment_ids_bs: Option<&'a Tensor<2, Int>>,
    /// `[batch * seq]` token ids.
    pub token_ids_t: &'a [u32],
    /// Tokens of one sequence.
    pub seq_len: usize,
    /// What the pass is for.
    pub pass: Pass<'a>,
}

/// What a forward pass is for.
#[derive(Debug, Clone, Copy)]
pub enum Pass<'a> {
    /// Dropout, router noise, losses and capacity as configured.
    Training {
        /// Random numbers of the pass.
        noise: StepNoise,
        /// Routing of the step's earlier micro-batches; empty in the first.
        earlier: &'a [(usize, RouterStatistics)],
    },
    /// No noise; dropless unless a capacity for evaluation is configured.
    Evaluation,
    /// As evaluation, but no token may depend on a later one.
    Generation,
}

impl Pass<'_> {
    /// The first micro-batch of a training step.
    pub fn training(noise: StepNoise) -> Self {
        Self::Training { noise, earlier: &[] }
    }

    pub(crate) fn noise(self) -> Option<StepNoise> {
        match self {
            Self::Training { noise, .. } => Some(noise),
            Self::Evaluation | Self::Generation => None,
        }
    }
}
