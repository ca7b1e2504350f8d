//! What a router computes from its gate logits: gates and losses, each with its softmax inside.
//!
//! Shape letters: t tokens, e experts, k experts per token.

mod stock;

use std::sync::Arc;

use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, TensorMetadata,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    backend_extension,
    flex::FlexTensor,
    tensor::FloatTensor,
};
use burn::tensor::{Shape, Tensor};
use switchyard_kernels_cpu::routing::{self as on_slices, Chosen, RouterLoss};

pub use switchyard_kernels_cpu::routing::GateSoftmax;

use crate::slices::{all_f32, contiguous, elements, from_elements};

/// The gate of each chosen expert.
///
/// # Shapes
/// - `logits_te`: `[num_tokens, num_experts]`; `expert_ids_tk`: `[num_tokens, top_k]`, row-major; returns
///   `[num_tokens, top_k]`
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

/// Mean over tokens of `sum_e load_e softmax(logits)_e`: what balancing losses are made of. No gradient reaches the
/// loads.
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

    /// The choice with its logits, `[t, e]`, which are contiguous and not empty.
    fn among<'a>(&'a self, logits_te: &'a FlexTensor) -> Chosen<'a> {
        let [t, e] = logits_te.shape().dims();
        Chosen {
            logits: elements(logits_te),
            expert_ids: &self.expert_ids_tk,
            num_experts: e,
            top_k: self.top_k(t),
            softmax: self.softmax,
        }
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

impl Route for Flex {
    fn top_k_gates(logits_te: FlexTensor, choice: Choice) -> FlexTensor {
        if !has_f32_rows(&logits_te) {
            return stock::gates::<Flex>(logits_te, &choice);
        }
        let logits_te = contiguous(logits_te);
        let t = logits_te.shape()[0];
        let gates = on_slices::gates(choice.among(&logits_te));
        from_elements(gates, Shape::new([t, choice.top_k(t)]))
    }

    fn top_k_gates_gradient(
        logits_te: FlexTensor,
        gates_tk: FlexTensor,
        dgates_tk: FlexTensor,
        choice: Choice,
    ) -> FlexTensor {
        if !has_f32_rows(&logits_te) || !all_f32(&[&gates_tk, &dgates_tk]) {
            return stock::gates_gradient::<Flex>(logits_te, gates_tk, dgates_tk, &choice);
        }
        let [logits_te, gates_tk, dgates_tk] = [logits_te, gates_tk, dgates_tk].map(contiguous);
        let chosen = choice.among(&logits_te);
        let dlogits = on_slices::gates_gradient(chosen, elements(&gates_tk), elements(&dgates_tk));
        from_elements(dlogits, logits_te.shape())
    }

    fn router_loss(logits_te: FlexTensor, loss: RouterLoss) -> FlexTensor {
        if !has_f32_rows(&logits_te) {
            return stock::loss::<Flex>(logits_te, &loss);
        }
        let logits_te = contiguous(logits_te);
        let mean = on_slices::loss(elements(&logits_te), logits_te.shape()[1], &loss);
        from_elements(vec![mean as f32], Shape::new([1]))
    }

    fn router_loss_gradient(logits_te: FlexTensor, dloss_1: FlexTensor, loss: RouterLoss) -> FlexTensor {
        if !has_f32_rows(&logits_te) || !all_f32(&[&dloss_1]) {
            return stock::loss_gradient::<Flex>(logits_te, dloss_1, &loss);
        }
        let (logits_te, dloss_1) = (contiguous(logits_te), contiguous(dloss_1));
        let (logits, e) = (elements(&logits_te), logits_te.shape()[1]);
        let dlogits = on_slices::loss_gradient(logits, e, &loss, elements(&dloss_1)[0]);
        from_elements(dlogits, logits_te.shape())
    }
}

/// Whether the row loops can run: f32 only, and at least one row.
fn has_f32_rows(logits_te: &FlexTensor) -> bool {
    all_f32(&[logits_te]) && logits_te.shape()[0] > 0
}

#[cfg(feature = "cube")]
impl Route for burn_cubecl::CubeBackend {}

impl<B: Route, C: CheckpointStrategy> Route for Autodiff<B, C> {
    fn top_k_gates(logits_te: FloatTensor<Self>, choice: Choice) -> FloatTensor<Self> {
        match GatesBackward.prepare::<C>([logits_te.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let id = prepared.checkpoint(&logits_te);
                let gates_tk = B::top_k_gates(logits_te.into_primitive(), choice.clone());
                prepared.finish((id, gates_tk.clone(), choice), gates_tk)
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(B::top_k_gates(logits_te.into_primitive(), choice))
            }
        }
    }

    fn router_loss(logits_te: FloatTensor<Self>, loss: RouterLoss) -> FloatTensor<Self> {
        match RouterLossBackward.prepare::<C>([logits_te.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = (prepared.checkpoint(&logits_te), loss.clone());
                prepared.finish(state, B::router_loss(logits_te.into_primitive(), loss))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::router_loss(logits_te.into_primitive(), loss)),
        }
    }
}

#[derive(Debug)]
struct GatesBackward;

impl<B: Route> Backward<B, 1> for GatesBackward {
    /// Logits, gates, choice.
    type State = (NodeId, FloatTensor<B>, Choice);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dgates_tk = grads.consume::<B>(&ops.node);
        let (id, gates_tk, choice) = ops.state;
        let logits_te = checkpointer.retrieve_node_output::<FloatTensor<B>>(id);
        let [node] = ops.parents;
        if let Some(node) = node {
            let dlogits_te = B::top_k_gates_gradient(logits_te, gates_tk, dgates_tk, choice);
            grads.register::<B>(node.id, dlogits_te);
        }
    }
}

#[derive(Debug)]
struct RouterLossBackward;

impl<B: Route> Backward<B, 1> for RouterLossBackward {
    type State = (NodeId, RouterLoss);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dloss_1 = grads.consume::<B>(&ops.node);
        let (id, loss) = ops.state;
        let logits_te = checkpointer.retrieve_node_output::<FloatTensor<B>>(id);
        let [node] = ops.parents;
        if let Some(node) = node {
            grads.register::<B>(node.id, B::router_loss_gradient(logits_te, dloss_1, loss));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slices::test_support::{assert_agree, bits_with_threads, random_flex};

    const SIZES: [[usize; 3]; 5] = [[1, 1, 1], [3, 2, 2], [5, 16, 3], [129, 37, 8], [300, 64, 8]];
    const SOFTMAXES: [GateSoftmax; 2] = [GateSoftmax::OverChosen, GateSoftmax::OverAll];

    /// Distinct ids for each token.
    fn choice([t, e, k]: [usize; 3], softmax: GateSoftmax) -> Choice {
        let ids = (0..t * k).map(|i| ((i / k * 7 + i % k) % e) as u32);
        Choice { expert_ids_tk: ids.collect(), softmax }
    }

    fn losses(e: usize) -> [RouterLoss; 2] {
        [RouterLoss::Load((0..e).map(|i| 0.3 + i as f64).collect()), RouterLoss::SquareLogPartition]
    }

    #[test]
    fn fused_gates_agree_with_the_stock_body() {
        for ([t, e, k], softmax) in
            SIZES.into_iter().flat_map(|sizes| SOFTMAXES.map(|softmax| (sizes, softmax)))
        {
            let (logits, dgates, choice) =
                (random_flex(1, [t, e]), random_flex(2, [t, k]), choice([t, e, k], softmax));
            let gates = Flex::top_k_gates(logits.clone(), choice.clone());
            assert_agree("gates", &gates, &stock::gates::<Flex>(logits.clone(), &choice));
            let stock = stock::gates_gradient::<Flex>(logits.clone(), gates.clone(), dgates.clone(), &choice);
            assert_agree("gradient", &Flex::top_k_gates_gradient(logits, gates, dgates, choice), &stock);
        }
    }

    #[test]
    fn fused_losses_agree_with_the_stock_body() {
        for [t, e, _] in SIZES {
            for loss in losses(e) {
                let (logits, dloss) = (random_flex(1, [t, e]), random_flex(2, [1]));
                let fused = Flex::router_loss(logits.clone(), loss.clone());
                assert_agree("loss", &fused, &stock::loss::<Flex>(logits.clone(), &loss));
                let stock = stock::loss_gradient::<Flex>(logits.clone(), dloss.clone(), &loss);
                assert_agree("gradient", &Flex::router_loss_gradient(logits, dloss, loss), &stock);
            }
        }
    }

    #[test]
    fn routing_repeats_bit_for_bit_for_any_number_of_threads() {
        let compute = || {
            let (logits, dgates) = (random_flex(1, [517, 48]), random_flex(2, [517, 4]));
            let choice = choice([517, 48, 4], GateSoftmax::OverAll);
            let gates = Flex::top_k_gates(logits.clone(), choice.clone());
            let mut results =
                vec![gates.clone(), Flex::top_k_gates_gradient(logits.clone(), gates, dgates, choice)];
            for loss in losses(48) {
                results.push(Flex::router_loss(logits.clone(), loss.clone()));
                results.push(Flex::router_loss_gradient(logits.clone(), random_flex(3, [1]), loss));
            }
            results
        };
        assert_eq!(bits_with_threads(1, compute), bits_with_threads(2, compute));
    }
}
