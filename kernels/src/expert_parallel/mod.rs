//! A mixture of experts whose experts are spread over ranks (expert parallelism, GShard,
//! arXiv:2006.16668, section 3.2).
//!
//! Each rank has its own tokens and as many experts as any other. Rows go to the ranks that own
//! their experts and come back: counts, rows and outputs on the way there, gradients of the outputs
//! and of the rows on the way back. A row's output does not depend on the others, and the rows of
//! different ranks are never summed, so every bit is that of [`expert_ffn`](crate::expert_ffn) on
//! each rank's tokens with all experts.
//!
//! Shape letters: t tokens, k slots per token, n packed rows, e experts of one rank, d model width,
//! f hidden width of one expert.

mod autodiff;
mod cpu;
mod exchange;
mod gradients;

use std::sync::Arc;

use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;
use switchyard_kernels_cpu::activation::Activation;
use switchyard_kernels_cpu::dispatch::{DispatchPlan, Groups};
use switchyard_kernels_cpu::feed_forward::{Block, FfnOptions};

pub use exchange::RowExchange;
pub use gradients::{ExpertGradientSink, ExpertGradients};

use crate::feed_forward::{ExpertMatrices, assert_plan_fits, mixture_operands};
use crate::tensor_list::TensorList;

/// The ranks that the experts of one layer are spread over, as one of them sees them. Rank i of n
/// owns experts `i * num_experts / n..(i + 1) * num_experts / n`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ExpertParallel {
    /// Takes rows from rank to rank.
    pub exchange: Arc<dyn RowExchange>,
    /// Where backward passes leave the gradients of this rank's experts.
    pub gradients: Arc<ExpertGradientSink>,
}

/// The tokens of one rank and where they go.
#[derive(Debug, Clone)]
pub struct RoutedTokens<'a> {
    /// `[num_tokens, d]`.
    pub x_td: Tensor<2>,
    /// `[num_tokens, top_k]`, of the same float type.
    pub gates_tk: Tensor<2>,
    /// Over the experts of all ranks.
    pub plan: &'a DispatchPlan,
}

/// As [`expert_ffn`](crate::expert_ffn) of the rank's tokens with the experts of all ranks, of
/// which `matrices` are the rank's own. Every rank calls it as often and in the same order, with
/// the same activation and options, be it without tokens, and so its backward pass.
///
/// Gradients go to the tokens and the gates. The matrices get none from autodiff: each backward
/// pass leaves them in [`ExpertParallel::gradients`], one set for each rank that tokens came from.
/// There is no backward pass where neither tokens nor gates have a gradient: on no rank or on all.
///
/// # Shapes
/// - returns `[num_tokens, d]`
///
/// # Panics
/// If the shapes do not fit each other or the plan, gate projections are missing or superfluous for
/// `activation`, the tensors are not f32 on the CPU, or ranks differ in their sizes.
pub fn expert_parallel_ffn(
    tokens: RoutedTokens<'_>,
    matrices: ExpertMatrices,
    activation: Activation,
    options: FfnOptions,
    ranks: &ExpertParallel,
) -> Tensor<2> {
    let RoutedTokens { x_td, gates_tk, plan } = tokens;
    let (num_experts, num_ranks) = (matrices.num_experts(), ranks.exchange.num_ranks());
    assert_plan_fits(plan, num_experts * num_ranks, x_td.dims()[0], gates_tk.dims());
    let (operands, parts) = mixture_operands(x_td.clone(), gates_tk.clone(), matrices, activation);
    let block = Block { activation, parts, plan: Some(plan.clone()), options };
    let call = Call { block, sources: sources(plan, &*ranks.exchange), ranks: ranks.clone() };
    let matrices = TensorList::from_vec(operands.matrices().into_vec());
    let [x_td, gates_tk] = [x_td, gates_tk].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::expert_parallel_ffn(x_td, gates_tk, matrices, call))
}

/// The rows that each rank has for this rank's experts.
fn sources(plan: &DispatchPlan, exchange: &dyn RowExchange) -> Vec<Groups> {
    let counts: Vec<u32> =
        (0..plan.groups.num_groups()).map(|expert| plan.groups.rows(expert).len() as u32).collect();
    let num_experts = counts.len() / exchange.num_ranks();
    let received = exchange.exchange_counts(&counts.chunks(num_experts).collect::<Vec<_>>());
    let groups_of = |(rank, counts): (usize, Vec<u32>)| {
        assert!(
            counts.len() == num_experts,
            "rank {rank} has rows for {} experts of {num_experts}",
            counts.len()
        );
        Groups::of_sizes(counts.into_iter().map(|count| count as usize))
    };
    received.into_iter().enumerate().map(groups_of).collect()
}

/// What the operation does, besides its tensors.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// With the plan of the rank's own tokens.
    block: Block,
    /// The rows that each rank has for this rank's experts.
    sources: Vec<Groups>,
    ranks: ExpertParallel,
}

/// The operation and its gradients on one backend. Matrices in the order of
/// [`Matrices::into_vec`](switchyard_kernels_cpu::feed_forward::Matrices::into_vec).
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait ExpertParallelFfn: Backend {
    /// The mixture's output, `[t, d]`.
    fn expert_parallel_ffn(
        x_td: FloatTensor<Self>,
        gates_tk: FloatTensor<Self>,
        #[extension_type] matrices: TensorList<Self>,
        call: Call,
    ) -> FloatTensor<Self> {
        Self::expert_parallel_ffn_keeping_rows(x_td, gates_tk, matrices, call).0
    }

    /// The mixture's output, `[t, d]`, and what nobody but
    /// [`ExpertParallelFfn::expert_parallel_ffn_gradients`] reads.
    fn expert_parallel_ffn_keeping_rows(
        _x_td: FloatTensor<Self>,
        _gates_tk: FloatTensor<Self>,
        #[extension_type] _matrices: TensorList<Self>,
        _call: Call,
    ) -> (FloatTensor<Self>, Vec<FloatTensor<Self>>) {
        only_on_the_cpu()
    }

    /// Gradients of the tokens and the gates, from that of the output, `[t, d]`. Those of the
    /// matrices go into the call's sink.
    fn expert_parallel_ffn_gradients(
        _gates_tk: FloatTensor<Self>,
        #[extension_type] _matrices: TensorList<Self>,
        #[extension_type] _kept: TensorList<Self>,
        _dy_td: FloatTensor<Self>,
        _call: Call,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        only_on_the_cpu()
    }
}

#[cfg(feature = "cube")]
impl ExpertParallelFfn for burn_cubecl::CubeBackend {}

fn only_on_the_cpu() -> ! {
    panic!("experts are spread over ranks on the CPU alone: train with one rank per mixture on this device")
}
