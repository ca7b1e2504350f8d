//! Mixtures over ranks on the CPU.

use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::Shape;
use switchyard_kernels_cpu::activation::Kept;
use switchyard_kernels_cpu::bf16::{Bf16, Compute};
use switchyard_kernels_cpu::dispatch::{DispatchPlan, Groups, SlotMap};
use switchyard_kernels_cpu::feed_forward::{Matrices, Output, PackedGradients, RowBlock, combine, gather};

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
    let experts = call.experts::<E>(matrices);
    let received = call.ranks.exchange.exchange_rows(call.rows_by_owner(elements(x_td), d));
    let rows: Vec<E> = gather::joined(&slices(&received));
    let Output { y, up, gate } = experts.forward(&rows);
    let returned = call.ranks.exchange.exchange_rows(call.by_source(|rows| y[by_width(rows, d)].to_vec()));
    let y = combine::weighted_sums(
        &gather::joined::<f32>(&slices(&returned)),
        elements(gates_tk),
        call.slots(),
        d,
    );
    let n = call.num_received();
    let mut kept = vec![E::tensor(rows, Shape::new([n, d]))];
    if !call.block.options.recompute {
        let f = last_dim(&matrices[0]);
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
    let weights = gather::by_row(elements(gates_tk), call.slots());
    // A row's weight comes behind the gradients of all rows: one message instead of two.
    let mut sent = call.rows_by_owner(elements(dy_td), d);
    for (part, rows) in sent.iter_mut().zip(call.rows_of_owners()) {
        part.extend_from_slice(&weights[rows]);
    }
    let received = call.ranks.exchange.exchange_rows(sent);
    let num_rows = call.sources.iter().map(Groups::num_rows);
    let (dy, weights) = rows_and_weights(&received, num_rows, d);
    let PackedGradients { dx, dweight, by_source } =
        expert_gradients::<E>(matrices, kept, [&dy, &weights], call);
    call.ranks.gradients.deposit(by_source.into_iter().map(ExpertGradients::from).collect());
    let sent = call.by_source(|rows| [&dx[by_width(rows.clone(), d)], &dweight[rows]].concat());
    let returned = call.ranks.exchange.exchange_rows(sent);
    let num_rows = call.rows_of_owners().map(|rows| rows.len());
    let (dx, dweight) = rows_and_weights(&returned, num_rows, d);
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

/// The rows and the weights of all parts, each of which holds its rows and then their weights.
fn rows_and_weights(
    parts: &[Vec<f32>],
    num_rows: impl Iterator<Item = usize>,
    d: usize,
) -> (Vec<f32>, Vec<f32>) {
    let (rows, weights): (Vec<_>, Vec<_>) =
        parts.iter().zip(num_rows).map(|(part, num_rows)| part.split_at(num_rows * d)).unzip();
    (gather::joined(&rows), weights.concat())
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
    fn rows_of_owners(&self) -> impl Iterator<Item = Range<usize>> {
        let groups = &self.plan().groups;
        let num_ranks = self.ranks.exchange.num_ranks();
        let num_experts = groups.num_groups() / num_ranks;
        let rows_of = move |first: usize| groups.rows(first).start..groups.rows(first + num_experts - 1).end;
        (0..num_ranks).map(move |rank| rows_of(rank * num_experts))
    }

    /// The rows of `x_td`, by the rank that they go to.
    fn rows_by_owner(&self, x_td: &[f32], d: usize) -> Vec<Vec<f32>> {
        self.rows_of_owners().map(|rows| gather::rows(x_td, self.slots(), rows, d)).collect()
    }

    /// What each rank gets back, by rank: `part_of` the rows that came from it.
    fn by_source(&self, part_of: impl Fn(Range<usize>) -> Vec<f32>) -> Vec<Vec<f32>> {
        let rows_of = |end: &mut usize, groups: &Groups| {
            let start = std::mem::replace(end, *end + groups.num_rows());
            Some(start..*end)
        };
        self.sources.iter().scan(0, rows_of).map(part_of).collect()
    }
}

fn slices(parts: &[Vec<f32>]) -> Vec<&[f32]> {
    parts.iter().map(Vec::as_slice).collect()
}

/// The elements of these rows, each of `d`.
fn by_width(rows: Range<usize>, d: usize) -> Range<usize> {
    rows.start * d..rows.end * d
}

fn last_dim(tensor: &FlexTensor) -> usize {
    *tensor.shape().last().expect("a matrix has columns")
}
