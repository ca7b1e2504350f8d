//! Causal self-attention.
//!
//! Shape letters: b batch, s sequence, t = b * s tokens, h query heads, g key/value heads, d width of
//! a head of queries and keys, v of one of values.

mod autodiff;
mod cached;
mod cpu;
mod max_logits;
mod operands;
mod stock;
#[cfg(test)]
mod tests;

use burn::backend::{
    Backend, Dispatch, ExtensionType, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{Int, Tensor};

use switchyard_kernels_cpu::bf16::Compute;

pub use switchyard_kernels_cpu::attention::{Alibi, Heads};

pub use cached::KeyValueCache;
pub use max_logits::max_attention_logits;

use crate::rotary::RotaryTable;
use crate::tensor_list::TensorList;
use operands::{Operands, Parts};

/// Which earlier tokens a token may attend to. Build it once per forward pass; every layer shares
/// it.
#[derive(Debug, Clone)]
pub struct CausalMask {
    /// `[b or 1, s]`: a token sees those before it with its own number.
    segment_ids_bs: Tensor<2, Int>,
}

impl CausalMask {
    /// Each token sees itself and what precedes it.
    pub fn new(seq_len: usize, device: &burn::tensor::Device) -> Self {
        Self { segment_ids_bs: Tensor::zeros([1, seq_len], device) }
    }

    /// Tokens of one sequence.
    pub fn seq_len(&self) -> usize {
        self.segment_ids_bs.dims()[1]
    }

    /// As [`CausalMask::new`], and only within the token's own document.
    ///
    /// # Shapes
    /// - `segment_ids_bs`: `[batch, seq]`, equal for tokens of one document
    pub fn within_documents(segment_ids_bs: Tensor<2, Int>) -> Self {
        Self { segment_ids_bs }
    }
}

/// Scaled dot-product attention, `softmax(Q K^T / sqrt(d)) V` under `mask` (arXiv:1706.03762, eq.
/// 1), of every head. With `rotary`, queries and keys are turned by their positions first. Of `sinks`
/// each head has a score of its own that takes part in the softmax and has no value. On the CPU the
/// scores of a few queries exist at a time, never a `[seq, seq]` matrix (FlashAttention,
/// arXiv:2205.14135). Factors of products are of `compute`; scores, weights and sums are not
/// rounded.
///
/// # Shapes
/// - `q_tq`: `[batch * seq, num_heads * d_head]`, head by head
/// - `k_tg`: `[batch * seq, num_kv_heads * d_head]`; `v_tg`: `[batch * seq, num_kv_heads * d_value]`
/// - `sinks_h`: `[num_heads]`; returns `[batch * seq, num_heads * d_value]`
///
/// # Panics
/// If the shapes do not fit each other, `heads`, `mask` or `rotary`.
#[expect(clippy::too_many_arguments, reason = "each is an operand of its own")]
pub fn causal_attention(
    q_tq: Tensor<2>,
    k_tg: Tensor<2>,
    v_tg: Tensor<2>,
    sinks_h: Option<Tensor<1>>,
    heads: Heads,
    mask: &CausalMask,
    rotary: Option<&RotaryTable>,
    compute: Compute,
) -> Tensor<2> {
    let Heads { num_heads: h, num_kv_heads: g, .. } = heads;
    assert!(g > 0 && h.is_multiple_of(g), "{h} query heads cannot share {g} key/value heads");
    let ([t, q], [mask_b, s]) = (q_tq.dims(), mask.segment_ids_bs.dims());
    let d = q / h;
    assert!(
        q == h * d
            && k_tg.dims() == [t, g * d]
            && v_tg.dims()[0] == t
            && v_tg.dims()[1].is_multiple_of(g)
            && sinks_h.as_ref().is_none_or(|sinks_h| sinks_h.dims() == [h])
            && t.is_multiple_of(s)
            && (mask_b == 1 || mask_b * s == t),
        "queries {:?}, keys {:?}, values {:?}, {h} and {g} heads and a mask of {mask_b} x {s} do not fit each other",
        q_tq.dims(),
        k_tg.dims(),
        v_tg.dims(),
    );
    if let Some(table) = rotary {
        let [table_len, half] = table.cos_sp.dims();
        assert!(
            s <= table_len && d == 2 * half,
            "{s} positions of head width {d} do not fit a table of {table_len} positions of width {}",
            2 * half,
        );
    }
    let operands = Operands {
        q: q_tq.into_dispatch(),
        k: k_tg.into_dispatch(),
        v: v_tg.into_dispatch(),
        sinks: sinks_h.map(Tensor::into_dispatch),
        rotation: rotary
            .map(|table| [&table.cos_sp, &table.sin_sp].map(|table_sp| table_sp.clone().into_dispatch())),
    };
    let call = Call { heads, parts: operands.parts(), compute };
    Tensor::from_dispatch(Dispatch::causal_attention(
        TensorList::from_vec(operands.into_vec()),
        mask.segment_ids_bs.clone().into_dispatch(),
        call,
    ))
}

/// What the operation does, besides its tensors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    heads: Heads,
    parts: Parts,
    compute: Compute,
}

/// What the gradients are computed from: inputs and results of the forward pass.
#[derive(Debug, Clone, ExtensionType)]
pub(crate) struct SavedForAttention<B: Backend> {
    y_tq: FloatTensor<B>,
    log_partition_bhs: FloatTensor<B>,
    segment_ids_bs: IntTensor<B>,
    /// In the order of [`Operands::into_vec`].
    #[extension_type]
    inputs: TensorList<B>,
}

/// The operation and its gradients on one backend. Tensors in the order of [`Operands::into_vec`].
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait CausalAttention: Backend {
    /// Attention's output, `[t, h * v]`.
    fn causal_attention(
        #[extension_type] inputs: TensorList<Self>,
        segment_ids_bs: IntTensor<Self>,
        call: Call,
    ) -> FloatTensor<Self> {
        Self::causal_attention_and_partition(inputs, segment_ids_bs, call).0
    }

    /// Attention's output, `[t, h * v]`, and the logarithm of each softmax's denominator, `[b, h, s]`.
    fn causal_attention_and_partition(
        #[extension_type] inputs: TensorList<Self>,
        segment_ids_bs: IntTensor<Self>,
        call: Call,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        stock::forward::<Self>(inputs, segment_ids_bs, call)
    }

    /// Gradients of queries, keys, values and sinks, if there are any, each in its shape, from that
    /// of the output.
    fn causal_attention_gradients(
        #[extension_type] saved: SavedForAttention<Self>,
        dy_tq: FloatTensor<Self>,
        call: Call,
    ) -> Vec<FloatTensor<Self>> {
        stock::gradients::<Self>(saved, dy_tq, call)
    }
}

#[cfg(feature = "cube")]
impl CausalAttention for burn_cubecl::CubeBackend {}

/// Elements that one thread holds of its own in the backward pass of [`causal_attention`] on the
/// CPU, which holds more of them than the forward pass.
pub fn attention_elements_per_thread(seq_len: usize, d_head: usize, d_value: usize) -> usize {
    switchyard_kernels_cpu::attention::elements_per_thread(seq_len, d_head, d_value)
}
