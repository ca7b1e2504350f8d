//! What a router computes from its gate logits: gates and losses, each with its softmax inside.
//!
//! Shape letters: t tokens, e experts, k experts per token.

mod autodiff;
mod cpu;
mod stock;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use switchyard_kernels_cpu::routing::RouterLoss;

pub use switchyard_kernels_cpu::routing::GateSoftmax;

/// The gate of each chosen expert.
///
/// # Shapes
/// - `logits_te`: `[num_tokens, num_experts]`; `expert_ids_tk`: `[num_tokens, top_k]`, row-major;
///   returns `[num_tokens, top_k]`
///
/// # Panics
/// If the ids do not fit the logits.
pub fn top_k_gates(
    logits_te: Tensor<2>,
    expert_ids_tk: impl Into<Arc<[u32]>>,
    softmax: GateSoftmax,
) -> Tensor<2> {
    let ([t, e], expert_ids_tk) = (logits_te.dims(), expert_ids_tk.into());
    assert!(
        (t == 0 || (expert_ids_tk.len().is_multiple_of(t) && !expert_ids_tk.is_empty()))
            && expert_ids_tk.iter().all(|&id| (id as usize) < e),
        "{} expert ids do not fit the logits of {t} tokens and {e} experts",
        expert_ids_tk.len(),
    );
    let choice = Choice { expert_ids_tk, softmax };
    Tensor::from_dispatch(Dispatch::top_k_gates(logits_te.into_dispatch(), choice))
}

/// Mean over tokens of `sum_e load_e softmax(logits)_e`: what balancing losses are made of. No
/// gradient reaches the loads.
///
/// # Shapes
/// - `logits_te`: `[num_tokens, num_experts]`; `load_e`: one load per expert; returns `[1]`
///
/// # Panics
/// If there is not one load per expert.
pub fn expected_load(logits_te: Tensor<2>, load_e: &[f64]) -> Tensor<1> {
    let [_, e] = logits_te.dims();
    assert!(load_e.len() == e, "{} loads for {e} experts", load_e.len());
    Tensor::from_dispatch(Dispatch::router_loss(logits_te.into_dispatch(), RouterLoss::Load(load_e.into())))
}

/// Mean over tokens of the squared logarithm of the softmax's denominator.
///
/// # Shapes
/// - `logits_te`: `[num_tokens, num_experts]`; returns `[1]`
pub fn mean_square_log_partition(logits_te: Tensor<2>) -> Tensor<1> {
    Tensor::from_dispatch(Dispatch::router_loss(logits_te.into_dispatch(), RouterLoss::SquareLogPartition))
}

/// Who was chosen, and what its gate is.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    expert_ids_tk: Arc<[u32]>,
    softmax: GateSoftmax,
}

impl Choice {
    fn top_k(&self, num_tokens: usize) -> usize {
        self.expert_ids_tk.len() / num_tokens.max(1)
    }
}

/// The operations and their gradients on one backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait Route: Backend {
    /// Gates, `[t, k]`.
    fn top_k_gates(logits_te: FloatTensor<Self>, choice: Choice) -> FloatTensor<Self> {
        stock::gates::<Self>(logits_te, &choice)
    }

    /// Gradient of the logits, `[t, e]`, from the gates and their gradient, `[t, k]`.
    fn top_k_gates_gradient(
        logits_te: FloatTensor<Self>,
        gates_tk: FloatTensor<Self>,
        dgates_tk: FloatTensor<Self>,
        choice: Choice,
    ) -> FloatTensor<Self> {
        stock::gates_gradient::<Self>(logits_te, gates_tk, dgates_tk, &choice)
    }

    /// The mean over tokens, `[1]`.
    fn router_loss(logits_te: FloatTensor<Self>, loss: RouterLoss) -> FloatTensor<Self> {
        stock::loss::<Self>(logits_te, &loss)
    }

    /// Gradient of the logits, `[t, e]`, from that of the mean, `[1]`.
    fn router_loss_gradient(
        logits_te: FloatTensor<Self>,
        dloss_1: FloatTensor<Self>,
        loss: RouterLoss,
    ) -> FloatTensor<Self> {
        stock::loss_gradient::<Self>(logits_te, dloss_1, &loss)
    }
}

#[cfg(feature = "cube")]
impl Route for burn_cubecl::CubeBackend {}
