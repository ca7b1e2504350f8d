//! What a forward pass goes over, and what it is for.
//!
//! Shape letters: b batch, s sequence, t = b*s tokens.

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use switchyard_kernels::{CausalMask, Compute, FfnOptions, RotaryTable};
use switchyard_router::RouterStatistics;

use crate::{ModelState, RealPlaces, Recompute, StepNoise};

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
    /// Which places hold a token, where others are padding; `None` if all do.
    pub real_places: Option<RealPlaces>,
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
        Self {
            input_ids_bs: matrix(ids),
            segment_ids_bs: segment_ids.map(matrix),
            token_ids_t,
            real_places: None,
            state: None,
        }
    }

    /// The same, with padding in each row after so many tokens, `[batch]`.
    ///
    /// # Panics
    /// If there are not as many rows, or one is shorter.
    pub fn with_padding(self, row_lens: &[usize]) -> Self {
        let [batch, seq_len] = self.input_ids_bs.dims();
        assert_eq!(row_lens.len(), batch, "a length for each row");
        let device = self.input_ids_bs.device();
        Self { real_places: RealPlaces::new(row_lens, &self.token_ids_t, seq_len, &device), ..self }
    }

    /// Ids of the tokens that are routed, padding left out.
    pub fn routed_token_ids(&self) -> &Arc<[u32]> {
        self.real_places.as_ref().map_or(&self.token_ids_t, RealPlaces::token_ids)
    }

    /// Tokens of each sequence, padding left out.
    pub fn seq_lens(&self) -> Vec<usize> {
        let [batch, seq_len] = self.input_ids_bs.dims();
        self.real_places.as_ref().map_or_else(|| vec![seq_len; batch], |places| places.seq_lens().to_vec())
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
    /// Which places hold a token, where others are padding.
    pub real_places: Option<&'a RealPlaces>,
    /// Places of one sequence.
    pub seq_len: usize,
    /// What the pass is for.
    pub pass: Pass<'a>,
}

/// How a training pass is computed, and what it returns besides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PassOptions {
    /// What products compute with.
    pub compute: Compute,
    /// What the backward pass computes anew, with the same bits, instead of keeping it.
    pub recompute: Recompute,
    /// Return the largest logit of each attention head, which costs its logits once more.
    pub measures_logits: bool,
}

impl PassOptions {
    /// How feed-forward blocks are computed.
    pub fn ffn(self) -> FfnOptions {
        FfnOptions { compute: self.compute, recompute: self.recompute == Recompute::Ffn }
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
        /// How it is computed, and what it returns besides.
        options: PassOptions,
    },
    /// No noise; dropless unless a capacity for evaluation is configured.
    Evaluation,
    /// As evaluation, but no token may depend on a later one.
    Generation,
}

impl Pass<'_> {
    /// The first micro-batch of a training step, in f32.
    pub fn training(noise: StepNoise) -> Self {
        Self::Training { noise, earlier: &[], options: PassOptions::default() }
    }

    /// The same pass over a block for the second time, which measures nothing.
    pub(crate) fn again(self) -> Self {
        match self {
            Self::Training { noise, earlier, options } => {
                Self::Training { noise, earlier, options: PassOptions { measures_logits: false, ..options } }
            }
            Self::Evaluation | Self::Generation => self,
        }
    }

    fn options(self) -> PassOptions {
        match self {
            Self::Training { options, .. } => options,
            Self::Evaluation | Self::Generation => PassOptions::default(),
        }
    }

    /// What products compute with: evaluation and generation never round.
    pub(crate) fn compute(self) -> Compute {
        self.options().compute
    }

    /// How feed-forward blocks are computed.
    pub(crate) fn ffn_options(self) -> FfnOptions {
        self.options().ffn()
    }

    /// Whether blocks are run once more in the backward pass.
    pub(crate) fn recomputes_blocks(self) -> bool {
        self.options().recompute == Recompute::Block
    }

    pub(crate) fn measures_logits(self) -> bool {
        self.options().measures_logits
    }

    pub(crate) fn noise(self) -> Option<StepNoise> {
        match self {
            Self::Training { noise, .. } => Some(noise),
            Self::Evaluation | Self::Generation => None,
        }
    }
}
