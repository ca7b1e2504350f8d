//! What a forward pass goes over, and what it is for.
//!
//! Shape letters: b batch, s sequence, t = b*s tokens.

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use switchyard_router::RouterStatistics;

use crate::StepNoise;

/// One micro-batch on the device.
#[derive(Debug, Clone)]
pub struct ModelInput {
    /// `[batch, seq]` token ids.
    pub input_ids_bs: Tensor<2, Int>,
    /// `[batch, seq]` document of each token within its row, when attention is masked by document.
    pub segment_ids_bs: Option<Tensor<2, Int>>,
    /// `[batch * seq]` the same ids on the host, for routers that go by token.
    pub token_ids_t: Arc<[u32]>,
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
        Self { input_ids_bs: matrix(ids), segment_ids_bs: segment_ids.map(matrix), token_ids_t }
    }
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
