//! Memory that a feed-forward block holds during a training step beside its parameters, by
//! arithmetic alone.
//!
//! What the blocks keep is what their operations in `switchyard_kernels` save for the backward pass
//! on the CPU, and, where a block is made of burn's own operations, what those save (burn-autodiff
//! 0.22, `ops/tensor.rs` and `ops/activation.rs`).
//!
//! Letters in formulas: t tokens of the pass, d model width, f hidden width, e experts, k slots of
//! a token, n rows of all experts, q slots of a sequence under soft mixing, m matrices of a block
//! (3 if gated, else 2).

use switchyard_kernels::{Activation, Compute, FfnOptions, ffn_elements_per_thread};

use crate::counts::matrices;
use crate::{BlockSparseSpec, ExpertsSpec, FfnSpec, PassSize};

/// Bytes of one f32, the type of tensors.
const F32_BYTES: f64 = 4.0;
/// Bytes of one bf16.
const BF16_BYTES: f64 = 2.0;

/// Bytes that a part of the network holds during a training step, beside its parameters, their
/// gradients and the gradient of its output. In f64: an absurd configuration is large instead of
/// wrapping around.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Footprint {
    /// Kept from the part's forward pass until its backward pass.
    pub kept_bytes: f64,
    /// Kept until the end of the step, for each of its passes: who went where, on the host.
    pub record_bytes: f64,
    /// Buffers of the backward pass beside what the forward pass kept.
    pub backward_bytes: f64,
    /// Buffers that each thread has of its own.
    pub thread_bytes: f64,
    /// The largest matrix, or stack of matrices, of the part.
    pub largest_param_bytes: f64,
}

impl FfnSpec {
    /// Memory of the block between residual streams of width `d_model`, computed as
    /// `options` say; its input is not counted.
    pub fn footprint(&self, d_model: usize, pass: PassSize, options: FfnOptions) -> Footprint {
        let (t, d) = (pass.micro_batch_tokens as f64, d_model as f64);
        match self {
            Self::Absent => Footprint::default(),
            Self::Dense(dense) => {
                let f = dense.d_ff as f64;
                Footprint {
                    largest_param_bytes: F32_BYTES * d * f,
                    ..rows(dense.activation, [t, t], d, dense.d_ff, options)
                }
            }
            Self::BlockSparse(sparse) => sparse.footprint(d_model, t),
            Self::Moe(moe) => {
                let mixture = moe.experts.footprint(d_model, [t, self.num_rows(pass)], options);
                // The gate's logits are kept for the gates and the losses, and each slot's gate by
                // the experts.
                let (e, k) = (moe.experts.num_experts as f64, self.num_rows(pass) / t);
                // On the host: the logits in f64, and of each slot the expert (4 bytes), its row
                // (8), and the row's slot (4).
                let record_bytes = t * (8.0 * e + 16.0 * k);
                let kept_bytes = mixture.kept_bytes + F32_BYTES * t * (e + k);
                // The rows' gradients are summed into those of the tokens; where a row's token
                // begins is a table.
                let backward_bytes = mixture.backward_bytes + F32_BYTES * t * d + 8.0 * k * t;
                Footprint { kept_bytes, record_bytes, backward_bytes, ..mixture }
            }
            Self::SoftMoe(soft) => {
                let (n, q) = (self.num_rows(pass), soft.num_slots() as f64);
                let mixture = soft.experts.footprint(d_model, [t, n], options);
                // Of three softmaxes (dispatch, combine, and one for the statistics, which lives as
                // long because burn drops a branch without a loss only after the backward pass) the
                // shifted logits and the exponentials; of the first two also the result, as a
                // factor of a product.
                let of_softmaxes = F32_BYTES * t * 8.0 * q;
                // Slots before and after the experts.
                let kept_bytes = mixture.kept_bytes + of_softmaxes + F32_BYTES * 2.0 * n * d;
                // Gradients of the slots after the experts, while those before them are computed.
                Footprint {
                    kept_bytes,
                    backward_bytes: mixture.backward_bytes + F32_BYTES * n * d,
                    ..mixture
                }
            }
        }
    }

    /// Rows that the routed experts multiply in the whole pass; 0 unless the block is a mixture.
    fn num_rows(&self, pass: PassSize) -> f64 {
        self.expert_work(pass).map_or(0.0, |work| work.per_token() * pass.micro_batch_tokens as f64)
    }
}

/// Rows through a block of width `d_hidden`, read of some tokens: the projections before the
/// non-linearity are kept (m - 1 times f). The backward pass makes the hidden values (f) and the
/// gradient of the rows (d); the projections become their own gradients. In bf16 projections and
/// hidden values are half as large, and the tokens (d) and their gradients (d) are rounded first.
/// Projections that are computed anew are there in the backward pass alone.
fn rows(
    activation: Activation,
    [num_tokens, num_rows]: [f64; 2],
    d: f64,
    d_hidden: usize,
    options: FfnOptions,
) -> Footprint {
    let (f, projections) = (d_hidden as f64, matrices(activation) as f64 - 1.0);
    let (kept_bytes, rounded_bytes) = match options.compute {
        Compute::F32 => (F32_BYTES, 0.0),
        Compute::Bf16 | Compute::PortableBf16 => (BF16_BYTES, 2.0 * BF16_BYTES * num_tokens * d),
    };
    let projection_bytes = kept_bytes * num_rows * projections * f;
    let recomputed_bytes = if options.recompute { projection_bytes } else { 0.0 };
    Footprint {
        kept_bytes: projection_bytes - recomputed_bytes,
        backward_bytes: num_rows * (kept_bytes * f + F32_BYTES * d) + rounded_bytes + recomputed_bytes,
        // In bf16 of half the bytes, and brought into order in as much again.
        thread_bytes: F32_BYTES * ffn_elements_per_thread(d_hidden) as f64,
        ..Footprint::default()
    }
}

impl ExpertsSpec {
    /// Rows through the routed experts, and tokens through the shared one.
    fn footprint(&self, d_model: usize, [num_tokens, num_rows]: [f64; 2], options: FfnOptions) -> Footprint {
        let d = d_model as f64;
        let routed = rows(self.activation, [num_tokens, num_rows], d, self.d_expert, options);
        let shared = self.shared.as_ref().map_or(Footprint::default(), |shared| {
            let block = rows(self.activation, [num_tokens; 2], d, shared.d_expert, options);
            // A gate multiplies the output, which is kept for the gate's gradient.
            let output_bytes = if shared.is_gated { F32_BYTES * num_tokens * d } else { 0.0 };
            Footprint { kept_bytes: block.kept_bytes + output_bytes, ..block }
        });
        Footprint {
            kept_bytes: routed.kept_bytes + shared.kept_bytes,
            backward_bytes: routed.backward_bytes.max(shared.backward_bytes),
            thread_bytes: routed.thread_bytes.max(shared.thread_bytes),
            largest_param_bytes: F32_BYTES * self.num_experts as f64 * d * self.d_expert as f64,
            record_bytes: 0.0,
        }
    }
}

impl BlockSparseSpec {
    /// Values of width f that burn's operations keep: the inputs of the non-linearity's factors, the
    /// factors, and the hidden values. SwiGLU: gate, sigmoid, their product, up, hidden; clamped,
    /// also three masks of a byte per element, 0.75. Tanh-GELU: up, the tangent's argument, the
    /// tangent plus one, hidden. GELU and ReLU: up, hidden.
    fn kept_widths(&self) -> f64 {
        match self.activation {
            Activation::Swiglu => 5.0,
            Activation::ClampedSwiglu { .. } => 5.75,
            Activation::GeluTanh => 4.0,
            Activation::Gelu | Activation::Relu => 2.0,
        }
    }

    fn footprint(&self, d_model: usize, num_tokens: f64) -> Footprint {
        let (f, b) = (self.matrices.d_ff as f64, self.matrices.block as f64);
        Footprint {
            kept_bytes: F32_BYTES * num_tokens * self.kept_widths() * f,
            // The gradient of the hidden values: those that follow take the place of what was kept.
            backward_bytes: F32_BYTES * num_tokens * f,
            largest_param_bytes: F32_BYTES * self.matrices.num_blocks(d_model) as f64 * b * b,
            ..Footprint::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DenseSpec;

    /// Wider blocks take no less: studies solve for the width at which an arm takes as much as
    /// another.
    #[test]
    fn a_wider_block_takes_more() {
        let pass = PassSize { micro_batch_tokens: 512, seq_len: 64 };
        for activation in [Activation::Swiglu, Activation::Gelu, Activation::Relu] {
            let kept = |d_ff| {
                let block = FfnSpec::Dense(DenseSpec { activation, d_ff, bias: false });
                block.footprint(32, pass, FfnOptions::default()).kept_bytes
            };
            assert!((1..40).map(|width| kept(8 * width)).is_sorted_by(|a, b| a < b), "{activation:?}");
        }
    }
}
