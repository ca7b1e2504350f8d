//! Feed-forward blocks: tiles of rows, each through the whole block while it is in the cache.
//!
//! Shape letters: t tokens, k slots per token, n packed rows, e experts, d model width, f hidden
//! width of one block.

pub mod combine;
pub mod gather;
mod messages;
mod operands;
mod rows;

use crate::activation::{Activation, Kept};
use crate::bf16::Compute;
use crate::dispatch::{DispatchPlan, Groups};
use crate::rounding::rounded;
pub use crate::row_tiles::MAX_TILE_ROWS;

pub use messages::Messages;
pub use operands::{Matrices, Operands, Parts};
use rows::{OutputGradient, RowGradients};
pub use rows::{PackedGradients, RowBlock};

/// What the operation does, besides its tensors.
#[derive(Debug, Clone)]
pub struct Block {
    /// Non-linearity between the projections.
    pub activation: Activation,
    /// Which optional tensors there are.
    pub parts: Parts,
    /// Who goes where; `None` for a dense block.
    pub plan: Option<DispatchPlan>,
    /// How it is computed.
    pub options: FfnOptions,
}

/// How a feed-forward block is computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FfnOptions {
    /// What the factors of products are rounded to.
    pub compute: Compute,
    /// The way back computes the projections anew, with the same bits, so that they are not kept
    /// (arXiv:1604.06174).
    pub recompute: bool,
}

impl Block {
    /// The rows of each group: those of `num_tokens` tokens for a dense block.
    pub fn groups(&self, num_tokens: usize) -> Groups {
        match &self.plan {
            Some(plan) => plan.groups.clone(),
            None => Groups::new([0, num_tokens]),
        }
    }
}

/// What the forward pass returns; `E` is what it keeps for the way back.
#[derive(Debug)]
pub struct Output<E> {
    /// The block's output, `[t, d]`.
    pub y: Vec<f32>,
    /// Up projections of all rows, `[n, f]`.
    pub up: Vec<E>,
    /// Gate projections of all rows, `[n, f]`; empty if the block is not gated.
    pub gate: Vec<E>,
}

/// The block's output for `operands` of these sizes.
///
/// # Panics
/// If the operands do not fit `block` and the sizes, or `E` is not what `block` computes with.
pub fn forward<E: Kept>(operands: Operands<&[f32]>, sizes_tdf: [usize; 3], block: &Block) -> Output<E> {
    let rows = RowBlock::of_tokens(operands.matrices(), sizes_tdf, block);
    let Output { y, up, gate } = rows.forward(&rounded(operands.x));
    let y = match (&block.plan, operands.gates) {
        (Some(plan), Some(gates)) => combine::weighted_sums(&y, gates, &plan.slots, sizes_tdf[1]),
        _ => y,
    };
    Output { y, up, gate }
}

/// Gradients of all operands from that of the output, `dy`, `[t, d]`. The projections of the
/// forward pass, `up` and `gate`, become their own gradients.
///
/// # Panics
/// As [`forward`].
pub fn gradients<E: Kept>(
    operands: Operands<&[f32]>,
    sizes_tdf: [usize; 3],
    projections: [&mut [E]; 2],
    dy: &[f32],
    block: &Block,
) -> Operands<Vec<f32>> {
    let rows = RowBlock::of_tokens(operands.matrices(), sizes_tdf, block);
    let slots = block.plan.as_ref().map(|plan| &plan.slots);
    let weights = slots.zip(operands.gates).map(|(slots, gates)| gather::by_row(gates, slots));
    let dy = OutputGradient::new(dy, weights.as_deref());
    let of_rows = rows.row_gradients(projections, &dy);
    let mut of_matrices = rows.matrix_gradients(&of_rows, &rounded(operands.x), &dy);
    let Matrices { up, down, gate, up_bias, down_bias, gate_bias } =
        of_matrices.pop().expect("tokens are one source");
    let RowGradients { dx, dweight, .. } = of_rows;
    Operands {
        x: match slots {
            Some(slots) => combine::sums(&dx, slots, sizes_tdf[1]),
            None => dx,
        },
        up,
        down,
        gate,
        gates: slots.map(|slots| combine::by_slot(&dweight, slots)),
        up_bias,
        down_bias,
        gate_bias,
    }
}
