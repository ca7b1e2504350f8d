//! Mixtures over ranks on the CPU.

use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::Shape;
use switchyard_kernels_cpu::activation::Kept;
use switchyard_kernels_cpu::bf16::{Bf16, Compute};
use switchyard_kernels_cpu::dispatch::{DispatchPlan, Groups, SlotMap};
use switchyard_kernels_cpu::feed_forward::{
    Matrices, Messages, Output, PackedGradients, RowBlock, combine, gather,
};

use super::{Call, ExpertGradients, ExpertParallelFfn};
use crate::slices::{Stored, all_f32, contiguous, elements, from_elements};
use crate::tensor_list::TensorList;

impl ExpertParallelFfn for Flex {
    fn expert_parallel_ffn_keeping_rows(
        x_td: FlexTensor,
        gates_tk: FlexTensor,
        matrices: TensorList<Flex>,
        call: Call,
    ) -> (FlexTensor, Vec<FlexTensor>) {
        let matrices = f32_matrices([&x_td, &gates_tk], matrices);
        let [x_td, gates_tk] = [x_td, gates_tk].map(contiguous);
        match call.block.options.compute {
            Compute::F32 => forward::<f32>(&x_td, &gates_tk, &matrices, &call),
            Compute::Bf16 | Compute::PortableBf16 => forward::<Bf16>(&x_td, &gates_tk, &matrices, &call),
        }
    }

    fn expert_parallel_ffn_gradients(
        gates_tk: FlexTensor,
        matrices: TensorList<Flex>,
        kept: TensorList<Flex>,
        dy_td: FlexTensor,
        call: Call,
    ) -> (FlexTensor, FlexTensor) {
        let matrices = f32_matrices([&gates_tk, &dy_td], matrices);
        let [gates_tk, dy_td] = [gates_tk, dy_td].map(contiguous);
        let kept = kept.into_vec();
        match call.block.options.compute {
            Compute::F32 => gradients::<f32>(&gates_tk, &matrices, kept, &dy_td, &call),
            Compute::Bf16 | Compute::PortableBf16 => {
                gradients::<Bf16>(&gates_tk, &matrices, kept, &dy_td, &call)
            }
        }
    }
}

/// The matrices as slice loops read them.
///
/// # Panics
/// If they or the `tokens` are not f32.
fn f32_matrices(tokens: [&FlexTensor; 2], matrices: TensorList<Flex>) -> Vec<FlexTensor> {
    let matrices = matrices.into_vec();
    assert!(
        all_f32(&matrices.iter().chain(tokens).collect::<Vec<_>>()),
        "experts are spread over ranks in f32 alone, not {:?}",
        tokens[0].dtype()
    );
    matrices.into_iter().map(contiguous).collect()
}

/// The output, and what is kept as `E`: rows of all sources, then their projections.
fn forward<E: Kept + Stored>(
    x_td: &FlexTensor,
    gates_tk: &FlexTensor,
    matrices: &[FlexTensor],
    call: &Call,
) -> (FlexTensor, Vec<FlexTensor>) {
    let [t, d] = x_td.shape().dims();
    let (experts, exchange) = (call.experts::<E>(matrices), &call.ranks.exchange);
    let sent = Messages::of_tokens(elements(x_td), d, call.slots(), None, &call.rows_of_owners());
    // Nothing of what has been sent or received is held while the experts work.
    let rows: Vec<E> = gather::joined(&slices(&exchange.exchange_rows(&sent.parts())));
    drop(sent);
    let Output { y, up, gate } = experts.forward(&rows);
    let rows_of = |rows: Range<usize>| &y[rows.start * d..rows.end * d];
    let returned =
        exchange.exchange_rows(&call.rows_of_sources().into_iter().map(rows_of).collect::<Vec<_>>());
    let y = combine::weighted_sums(
        &gather::joined::<f32>(&slices(&returned)),
        elements(gates_tk),
        call.slots(),
        d,
    );
    let n = call.num_received();
    let mut kept = vec![E::tensor(rows, Shape::new([n, d]))];
    if !call.block.options.recompute {
        let [_, _, f] = matrices[0].shape().dims();
        kept.push(E::tensor(up, Shape::new([n, f])));
        kept.extend(call.block.parts.gated.then(|| E::tensor(gate, Shape::new([n, f]))));
    }
    (from_elements(y, Shape::new([t, d])), kept)
}

/// Gradients of the tokens and the gates, from what is kept as `E`.
fn gradients<E: Kept + Stored>(
    gates_tk: &FlexTensor,
    matrices: &[FlexTensor],
    kept: Vec<FlexTensor>,
    dy_td: &FlexTensor,
    call: &Call,
) -> (FlexTensor, FlexTensor) {
    let [t, d] = dy_td.shape().dims();
    let exchange = &call.ranks.exchange;
    let weights = gather::by_row(elements(gates_tk), call.slots());
    let (owners, sources) = (call.rows_of_owners(), call.rows_of_sources());
    // A row's weight comes behind the gradients of all rows: one message instead of two.
    let sent = Messages::of_tokens(elements(dy_td), d, call.slots(), Some(&weights), &owners);
    let received = exchange.exchange_rows(&sent.parts());
    let (dy, weights) = rows_and_values(&received, &sources, d);
    let PackedGradients { dx, dweight, by_source } =
        expert_gradients::<E>(matrices, kept, [&dy, &weights], call);
    call.ranks.gradients.deposit(by_source.into_iter().map(ExpertGradients::from).collect());
    let sent = Messages::of_rows(&dx, d, Some(&dweight), &sources);
    let returned = exchange.exchange_rows(&sent.parts());
    let (dx, dweight) = rows_and_values(&returned, &owners, d);
    let dx = combine::sums(&dx, call.slots(), d);
    let dgates = combine::by_slot(&dweight, call.slots());
    (from_elements(dx, Shape::new([t, d])), from_elements(dgates, gates_tk.shape()))
}

/// What this rank's experts make of the rows of all sources.
fn expert_gradients<E: Kept + Stored>(
    matrices: &[FlexTensor],
    kept: Vec<FlexTensor>,
    [dy, weights]: [&[f32]; 2],
    call: &Call,
) -> PackedGradients {
    let experts = call.experts::<E>(matrices);
    let mut kept = kept.into_iter();
    let rows = kept.next().expect("the rows are kept");
    let rows = E::elements(&rows);
    if call.block.options.recompute {
        let Output { mut up, mut gate, .. } = experts.forward(rows);
        return experts.gradients(rows, [&mut up, &mut gate], dy, weights);
    }
    let (mut up, mut gate) = (kept.next(), kept.next());
    let projections =
        [&mut up, &mut gate].map(|projection| projection.as_mut().map_or(&mut [][..], E::elements_mut));
    experts.gradients(rows, projections, dy, weights)
}

/// The rows and their values, of the messages that hold these ranges of both.
fn rows_and_values(messages: &[Vec<f32>], ranges: &[Range<usize>], d: usize) -> (Vec<f32>, Vec<f32>) {
    let parts = messages.iter().zip(ranges).map(|(message, range)| message.split_at(range.len() * d));
    let (rows, values): (Vec<_>, Vec<_>) = parts.unzip();
    (gather::joined(&rows), values.concat())
}

impl Call {
    /// This rank's experts and the rows that it gets.
    fn experts<'a, E: Kept>(&self, matrices: &'a [FlexTensor]) -> RowBlock<'a, E> {
        let [_, d, f] = matrices[0].shape().dims();
        let matrices = Matrices::from_vec(matrices.iter().map(elements).collect(), self.block.parts);
        RowBlock::packed(matrices, [d, f], self.sources.clone(), &self.block)
    }

    fn num_received(&self) -> usize {
        self.sources.iter().map(Groups::num_rows).sum()
    }

    /// The slots of this rank's tokens.
    fn slots(&self) -> &SlotMap {
        &self.plan().slots
    }

    fn plan(&self) -> &DispatchPlan {
        self.block.plan.as_ref().expect("a mixture has a plan")
    }

    /// The rows of this rank's tokens that each rank's experts get, by rank.
    fn rows_of_owners(&self) -> Vec<Range<usize>> {
        let groups = &self.plan().groups;
        let num_experts = groups.num_groups() / self.ranks.exchange.num_ranks();
        let rows_of = |first: usize| groups.rows(first).start..groups.rows(first + num_experts - 1).end;
        (0..groups.num_groups()).step_by(num_experts).map(rows_of).collect()
    }

    /// The rows that this rank's experts get from each rank's tokens, by rank.
    fn rows_of_sources(&self) -> Vec<Range<usize>> {
        let by_rank = Groups::of_sizes(self.sources.iter().map(Groups::num_rows));
        (0..by_rank.num_groups()).map(|rank| by_rank.rows(rank)).collect()
    }
}

fn slices(parts: &[Vec<f32>]) -> Vec<&[f32]> {
    parts.iter().map(Vec::as_slice).collect()
}
