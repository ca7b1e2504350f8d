//! The model's head and the loss of the next token, in one operation.
//!
//! Logits are `[tokens, vocabulary]`, larger than anything else in a step: they exist one chunk of
//! rows at a time. Under autodiff the forward pass computes the gradients too, because it has the
//! logits; the backward pass scales them.
//!
//! Shape letters: t tokens, d model width, v vocabulary.

mod autodiff;
mod cpu;
mod stock;
#[cfg(test)]
mod tests;

use burn::backend::{
    Backend, Dispatch, ExtensionType, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{Int, Tensor};
use switchyard_kernels_cpu::bf16::Compute;

/// What counts, and what is added to the cross-entropy.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HeadLossOptions {
    /// Target of tokens that count neither in the sums nor in the means; `None` counts every token.
    pub ignored_target: Option<i64>,
    /// Weight of the mean squared log-partition, which keeps the logits near zero (PaLM,
    /// arXiv:2204.02311, section 5); `None` adds nothing.
    pub z_loss_weight: Option<f64>,
    /// What the factors of products are rounded to.
    pub compute: Compute,
}

/// Means over the tokens that count, each `[1]`; zero if none does.
#[derive(Debug, Clone)]
pub struct HeadLoss {
    /// Cross-entropy plus the weighted squared log-partition: the only one that is differentiated.
    pub total_1: Tensor<1>,
    /// `logsumexp(logits) - logits[target]`, in nats.
    pub cross_entropy_1: Tensor<1>,
    /// `logsumexp(logits)^2`, unweighted.
    pub square_log_partition_1: Tensor<1>,
}

/// The loss of the logits `x w`, which are not kept. Gradients of `w` lie in memory as `w` does.
///
/// # Shapes
/// - `x_td`: `[num_tokens, d]`; `w_dv`: `[d, vocab_size]`; `target_ids_t`: `[num_tokens]`
///
/// # Panics
/// If the shapes do not fit, or a target that counts lies outside the vocabulary.
pub fn head_loss(
    x_td: Tensor<2>,
    w_dv: Tensor<2>,
    target_ids_t: Tensor<1, Int>,
    options: HeadLossOptions,
) -> HeadLoss {
    let ([t, d], [rows, _]) = (x_td.dims(), w_dv.dims());
    assert!(
        rows == d && target_ids_t.dims() == [t],
        "tokens {:?} do not fit a head {:?} and targets {:?}",
        x_td.dims(),
        w_dv.dims(),
        target_ids_t.dims(),
    );
    let losses = Dispatch::head_loss(
        x_td.into_dispatch(),
        w_dv.into_dispatch(),
        target_ids_t.into_dispatch(),
        options,
    );
    HeadLoss {
        total_1: Tensor::from_dispatch(losses.total_1),
        cross_entropy_1: Tensor::from_dispatch(losses.cross_entropy_1),
        square_log_partition_1: Tensor::from_dispatch(losses.square_1),
    }
}

/// What the operation returns: means over the tokens that count, each `[1]`.
#[derive(Debug, Clone, ExtensionType)]
pub(crate) struct Losses<B: Backend> {
    total_1: FloatTensor<B>,
    cross_entropy_1: FloatTensor<B>,
    /// Mean squared log-partition.
    square_1: FloatTensor<B>,
}

/// The operation and its gradients on one backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait HeadLossOp: Backend {
    /// The losses.
    fn head_loss(
        x_td: FloatTensor<Self>,
        w_dv: FloatTensor<Self>,
        target_ids_t: IntTensor<Self>,
        options: HeadLossOptions,
    ) -> Losses<Self> {
        stock::losses::<Self>(x_td, w_dv, target_ids_t, options)
    }

    /// [`HeadLossOp::head_loss`], and the gradients of the mean loss: those of the rows, `[t, d]`,
    /// and of the matrix, `[d, v]`.
    fn head_loss_and_gradients(
        x_td: FloatTensor<Self>,
        w_dv: FloatTensor<Self>,
        target_ids_t: IntTensor<Self>,
        options: HeadLossOptions,
    ) -> (Losses<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        stock::losses_and_gradients::<Self>(x_td, w_dv, target_ids_t, options)
    }

    /// `gradient` times the gradient of the mean loss, `[1]`.
    fn scaled_gradient(gradient: FloatTensor<Self>, dloss_1: FloatTensor<Self>) -> FloatTensor<Self> {
        stock::scaled_gradient::<Self>(gradient, dloss_1)
    }
}

#[cfg(feature = "cube")]
impl HeadLossOp for burn_cubecl::CubeBackend {}

/// Logits that [`head_loss`] holds at a time on the CPU, of `num_tokens` rows.
pub fn num_logits_held(num_tokens: usize, vocab_size: usize) -> usize {
    switchyard_kernels_cpu::head_loss::chunk_rows(vocab_size).min(num_tokens).saturating_mul(vocab_size)
}
