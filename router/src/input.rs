//! What a router reads, and why.

use std::ops::Range;

use burn::tensor::Tensor;

use crate::RouterNoise;

/// What a router reads.
#[derive(Debug, Clone)]
pub struct RouterInput<'a> {
    /// `[num_tokens, d_model]`.
    pub x_td: Tensor<2>,
    /// `[num_tokens]`, for routers that go by token id; may be empty for others.
    pub token_ids_t: &'a [u32],
    /// Which tokens are of one sequence.
    pub sequences: Sequences<'a>,
    /// Why the tokens are routed.
    pub pass: RouterPass<'a>,
}

/// How tokens, one sequence after the other, fall into sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sequences<'a> {
    /// So many in each, a divisor of the number of tokens.
    OfLen(usize),
    /// So many in each of them; their sum is the number of tokens.
    OfLens(&'a [usize]),
}

impl Sequences<'_> {
    /// The tokens of each sequence, of `num_tokens` in all.
    pub fn ranges(self, num_tokens: usize) -> Vec<Range<usize>> {
        match self {
            Self::OfLen(len) => (0..num_tokens / len).map(|index| index * len..(index + 1) * len).collect(),
            Self::OfLens(lens) => {
                let ends = lens.iter().scan(0, |end, len| {
                    *end += len;
                    Some(*end)
                });
                ends.zip(lens).map(|(end, len)| end - len..end).collect()
            }
        }
    }
}

/// Why tokens are routed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterPass<'a> {
    /// With noise, losses and capacity.
    Training {
        /// Random numbers of this router in this pass.
        noise: RouterNoise,
        /// Loads of the step's earlier micro-batches; empty if this is the first.
        earlier_tokens_per_expert: &'a [u64],
    },
    /// Without noise and losses.
    Evaluation,
    /// As evaluation, but no token may depend on a later one.
    Generation,
}
