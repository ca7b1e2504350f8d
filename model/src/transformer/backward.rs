//! The backward pass of a training pass: on one tape, or block by block, each run once more from its
//! input on a tape of its own (arXiv:1604.06174).
//!
//! Both give the same bits. burn adds what reaches a tensor in a fixed order: from the operation
//! farthest from the inputs on, and among equally far ones as it finds them, from the loss on. In a
//! block of its own, distances differ by a constant, and [`Objective`] has the block's results in the
//! order in which the whole tape finds them.
//!
//! Shape letters: t tokens, d model width.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Gradients, Tensor};
use switchyard_experts::MoeAux;
use switchyard_router::{AuxLoss, AuxLossKind};

use super::{ModelOutput, Transformer};
use crate::{
    BlockContext, BlockOutput, ModelInput, Named, ParameterName, Pass, parameter_gradients, parameter_tensors,
};

/// What a training pass leaves for its backward pass, see [`Transformer::forward_for_backward`].
#[derive(Debug)]
pub enum Tape {
    /// Everything, kept by the output's tensors.
    Whole,
    /// The inputs of the blocks.
    Streams(Streams),
}

/// The residual stream between the blocks, and what the loss is made of besides.
#[derive(Debug)]
pub struct Streams {
    /// Before each block and after the last one. A leaf, unless nothing before it learns.
    streams: Vec<Tensor<2>>,
    /// Losses of each mixture, leaves, with the layer's index.
    losses: Vec<(usize, Vec<AuxLoss>)>,
    /// Assignments of all layers together, where losses go by them.
    pooled_loads: Vec<u64>,
}

impl Transformer {
    /// As [`Transformer::forward`], and what [`Transformer::backward`] needs.
    ///
    /// # Panics
    /// As [`Transformer::forward`].
    pub fn forward_for_backward(&self, input: &ModelInput, pass: Pass<'_>) -> (ModelOutput, Tape) {
        if !pass.recomputes_blocks() {
            return (self.forward(input, pass), Tape::Whole);
        }
        let mut streams = Vec::with_capacity(self.blocks.len() + 1);
        // Without a tape, but by the very operations that a tape would record.
        let untracked = self.clone().no_grad();
        let (mut output, pooled_loads) =
            untracked.run(input, pass, |x_td| streams.push(x_td.clone().detach()));
        let first_learning = self.num_parts_before_learning();
        let as_leaf = |(index, x_td): (usize, Tensor<2>)| x_td.set_require_grad(first_learning <= index);
        let streams: Vec<_> = streams.into_iter().enumerate().map(as_leaf).collect();
        output.hidden_td = self.head_input(streams[self.blocks.len()].clone());
        let losses_as_leaves = |(layer, aux): &mut (usize, MoeAux)| {
            for loss in &mut aux.losses {
                loss.value_1 = loss.value_1.clone().detach().require_grad();
            }
            (*layer, aux.losses.clone())
        };
        let losses = output.moe_layers.iter_mut().map(losses_as_leaves).collect();
        (output, Tape::Streams(Streams { streams, losses, pooled_loads }))
    }

    /// The gradient of `loss_1` for each parameter that has one, flattened. `loss_1` is made of the
    /// output of the pass over `input` that left `tape`.
    ///
    /// # Panics
    /// If no parameter learns.
    pub fn backward(
        &self,
        loss_1: &Tensor<1>,
        tape: Tape,
        input: &ModelInput,
        pass: Pass<'_>,
    ) -> Vec<Named<Tensor<1>>> {
        match tape {
            Tape::Whole => parameter_gradients(self, &loss_1.backward()),
            Tape::Streams(streams) => self.backward_by_block(loss_1, streams, input, pass.again()),
        }
    }

    fn backward_by_block(
        &self,
        loss_1: &Tensor<1>,
        kept: Streams,
        input: &ModelInput,
        pass: Pass<'_>,
    ) -> Vec<Named<Tensor<1>>> {
        let Streams { mut streams, losses, pooled_loads } = kept;
        let mut of_loss = loss_1.backward();
        let mut sums = GradientSums::default();
        sums.add(self, &of_loss);
        let mut dx_td = streams.pop().and_then(|x_td| x_td.grad_remove(&mut of_loss));
        let mut reached = None;
        self.in_context(input, pass, |context| {
            for (layer, x_td) in streams.into_iter().enumerate().rev() {
                // Without it nothing up to here learns.
                let Some(dy_td) = dx_td.take() else { return };
                let of_layer = losses.iter().find(|(of_layer, _)| *of_layer == layer);
                let given = of_layer.map_or(&[][..], |(_, losses)| losses);
                let results = self.block_results(layer, x_td.clone(), &pooled_loads, context);
                let objective = Objective::new(results, dy_td, (given, &of_loss), &mut reached);
                let mut of_block = objective.sum().backward();
                dx_td = x_td.grad_remove(&mut of_block);
                sums.add(self, &of_block);
            }
        });
        if let Some(dx_td) = dx_td {
            let embedded_td = self.embed(input, pass);
            sums.add(self, &(embedded_td * Tensor::from_inner(dx_td)).sum().backward());
        }
        sums.in_order_of(self)
    }

    /// The residual stream behind a block, and its losses.
    fn block_results(
        &self,
        layer: usize,
        x_td: Tensor<2>,
        pooled_loads: &[u64],
        context: &BlockContext<'_>,
    ) -> (Tensor<2>, Vec<AuxLoss>) {
        let BlockOutput { x_td, aux, .. } = self.blocks[layer].forward(x_td, context);
        let Some(MoeAux { mut losses, pooled_balance, .. }) = aux else { return (x_td, Vec::new()) };
        losses.extend(pooled_balance.map(|pooled| pooled.loss(pooled_loads)));
        (x_td, losses)
    }

    /// Of the embedding and the blocks, those before the first with a parameter that learns.
    fn num_parts_before_learning(&self) -> usize {
        if learns(&self.embedding) {
            return 0;
        }
        let first = self.blocks.iter().position(learns);
        1 + first.unwrap_or(self.blocks.len())
    }
}

/// Whether any parameter gets gradients.
fn learns<M: Module>(module: &M) -> bool {
    struct Reader(bool);
    impl ModuleVisitor for Reader {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0 |= param.val().is_require_grad();
        }
    }
    let mut reader = Reader(false);
    module.visit(&mut reader);
    reader.0
}

/// What a block gave, each multiplied with the gradient of the loss for it: the gradient of their sum
/// is the block's part of the gradient. First the one that the whole tape finds first.
struct Objective(Vec<Tensor<1>>);

impl Objective {
    /// That of a block which gave the stream `y_td`, whose gradient is `dy_td`, and `losses`.
    /// Gradients of `given`, the leaves in the place of these, are in `of_loss`.
    ///
    /// The loss of a step has the losses of routers by kind, the first kind first, those of one kind
    /// by layer, and is found from the end on: a layer's losses of a kind come before its stream,
    /// unless the last kind that was `reached` in the layers behind it led through it already.
    fn new(
        (y_td, mut losses): (Tensor<2>, Vec<AuxLoss>),
        dy_td: Tensor<2>,
        (given, of_loss): (&[AuxLoss], &Gradients),
        reached: &mut Option<AuxLossKind>,
    ) -> Self {
        losses.sort_by_key(|loss| std::cmp::Reverse(loss.kind));
        let num_before = losses.iter().filter(|loss| Some(loss.kind) > *reached).count();
        let of_layer = losses.iter().filter(|loss| loss.value_1.is_tracked()).map(|loss| loss.kind);
        *reached = of_layer.chain(*reached).max();
        let seeded = |loss: AuxLoss| {
            let leaf = given.iter().find(|given| given.kind == loss.kind)?;
            let gradient_1 = leaf.value_1.grad(of_loss)?;
            // A gate in f64 has its losses in f64.
            Some((loss.value_1 * Tensor::from_inner(gradient_1)).cast(DType::F32))
        };
        let mut terms: Vec<_> = losses.into_iter().map(seeded).collect();
        terms.insert(num_before, Some((y_td * Tensor::from_inner(dy_td)).sum()));
        Self(terms.into_iter().flatten().collect())
    }

    /// The sum, found from its last term on.
    fn sum(self) -> Tensor<1> {
        let sum = self.0.into_iter().rev().reduce(|sum, term| sum + term);
        sum.expect("a block gives a stream")
    }
}

/// Gradients of several tapes.
#[derive(Default)]
struct GradientSums(BTreeMap<ParameterName, Tensor<1>>);

impl GradientSums {
    /// Adds those of one more tape. No parameter is on more than two, so that the order does not
    /// matter: embeddings that are the head's matrix too.
    fn add(&mut self, model: &Transformer, gradients: &Gradients) {
        for Named { name, value } in parameter_gradients(model, gradients) {
            let sum = match self.0.remove(&name) {
                Some(sum) => sum + value,
                None => value,
            };
            self.0.insert(name, sum);
        }
    }

    /// The sums in the model's order.
    fn in_order_of(mut self, model: &Transformer) -> Vec<Named<Tensor<1>>> {
        let mut sum = |name| Some(Named { name, value: self.0.remove(&name)? });
        parameter_tensors(model).into_iter().filter_map(|named| sum(named.name)).collect()
    }
}
