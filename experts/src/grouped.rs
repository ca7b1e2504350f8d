//! The routed experts of one layer, their matrices stacked.
//!
//! Shape letters: t tokens, k slots per token, d model width, e experts, f hidden width of one
//! expert.

use std::ops::Range;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use switchyard_kernels::{
    Activation, DispatchPlan, ExpertBiases, ExpertMatrices, ExpertParallel, FfnOptions, RoutedTokens,
    expert_ffn, expert_parallel_ffn,
};

/// Initial values of [`Experts`].
#[derive(Debug, Clone)]
pub struct ExpertsWeights {
    /// Gate projections `[e, d, f]`, exactly for gated activations.
    pub w_gate_edf: Option<Tensor<3>>,
    /// Up projections `[e, d, f]`.
    pub w_up_edf: Tensor<3>,
    /// Down projections `[e, f, d]`.
    pub w_down_efd: Tensor<3>,
    /// Biases; all or none.
    pub biases: Option<ExpertBiases>,
}

/// E feed-forward blocks, each applied to its own tokens. Spread over ranks, a rank holds its own
/// alone: e is then what the rank holds.
#[derive(Module, Debug)]
pub struct Experts {
    /// Gate projections `[e, d, f]`; `None` unless the activation is gated.
    pub w_gate_edf: Option<Param<Tensor<3>>>,
    /// Up projections `[e, d, f]`.
    pub w_up_edf: Param<Tensor<3>>,
    /// Down projections `[e, f, d]`.
    pub w_down_efd: Param<Tensor<3>>,
    /// Biases of the gate projections `[e, f]`.
    pub b_gate_ef: Option<Param<Tensor<2>>>,
    /// Biases of the up projections `[e, f]`.
    pub b_up_ef: Option<Param<Tensor<2>>>,
    /// Biases of the down projections `[e, d]`.
    pub b_down_ed: Option<Param<Tensor<2>>>,
    #[module(skip)]
    activation: Activation,
    #[module(skip)]
    ranks: Option<ExpertParallel>,
}

impl Experts {
    /// Experts with these values.
    ///
    /// # Panics
    /// If the gate projections are missing or superfluous for `activation`.
    pub fn new(weights: ExpertsWeights, activation: Activation) -> Self {
        assert!(
            weights.w_gate_edf.is_some() == activation.is_gated(),
            "{activation:?} with gate projections = {}",
            weights.w_gate_edf.is_some()
        );
        let (b_up_ef, b_down_ed, b_gate_ef) = match weights.biases {
            Some(biases) => (Some(biases.b_up_ef), Some(biases.b_down_ed), biases.b_gate_ef),
            None => (None, None, None),
        };
        Self {
            w_gate_edf: weights.w_gate_edf.map(Param::from_tensor),
            w_up_edf: Param::from_tensor(weights.w_up_edf),
            w_down_efd: Param::from_tensor(weights.w_down_efd),
            b_gate_ef: b_gate_ef.map(Param::from_tensor),
            b_up_ef: b_up_ef.map(Param::from_tensor),
            b_down_ed: b_down_ed.map(Param::from_tensor),
            activation,
            ranks: None,
        }
    }

    /// These experts as one rank's own: the other ranks of `ranks` hold as many each. A forward
    /// pass then is a collective of all ranks, and autodiff gives the matrices no gradient, see
    /// [`expert_parallel_ffn`].
    pub fn of_rank(self, ranks: ExpertParallel) -> Self {
        Self { ranks: Some(ranks), ..self }
    }

    /// Of all experts, which every rank has alike, one rank's own, see [`Experts::of_rank`].
    ///
    /// # Panics
    /// If they do not spread evenly over the ranks.
    pub fn over_ranks(self, ranks: ExpertParallel) -> Self {
        let (num_experts, num_ranks) = (self.num_experts(), ranks.exchange.num_ranks());
        assert!(
            num_experts.is_multiple_of(num_ranks),
            "{num_experts} experts do not spread evenly over {num_ranks} ranks"
        );
        let num_own = num_experts / num_ranks;
        let own = ranks.exchange.rank() * num_own..(ranks.exchange.rank() + 1) * num_own;
        let Self { w_gate_edf, w_up_edf, w_down_efd, b_gate_ef, b_up_ef, b_down_ed, activation, .. } = self;
        let biases = [b_gate_ef, b_up_ef, b_down_ed].map(|bias| bias.map(|bias| rows_of(bias, own.clone())));
        let [b_gate_ef, b_up_ef, b_down_ed] = biases;
        Self {
            w_gate_edf: w_gate_edf.map(|stack| rows_of(stack, own.clone())),
            w_up_edf: rows_of(w_up_edf, own.clone()),
            w_down_efd: rows_of(w_down_efd, own),
            b_gate_ef,
            b_up_ef,
            b_down_ed,
            activation,
            ranks: Some(ranks),
        }
    }

    /// All experts on this rank alone, each stack as `gather` returns it: from the rank's own, the
    /// elements flattened, to those of all. In the order of the fields.
    pub fn gathered(self, mut gather: impl FnMut(Tensor<1>) -> Tensor<1>) -> Self {
        let num_experts = self.num_experts();
        let Self { w_gate_edf, w_up_edf, w_down_efd, b_gate_ef, b_up_ef, b_down_ed, activation, .. } = self;
        Self {
            w_gate_edf: w_gate_edf.map(|stack| gathered(stack, num_experts, &mut gather)),
            w_up_edf: gathered(w_up_edf, num_experts, &mut gather),
            w_down_efd: gathered(w_down_efd, num_experts, &mut gather),
            b_gate_ef: b_gate_ef.map(|stack| gathered(stack, num_experts, &mut gather)),
            b_up_ef: b_up_ef.map(|stack| gathered(stack, num_experts, &mut gather)),
            b_down_ed: b_down_ed.map(|stack| gathered(stack, num_experts, &mut gather)),
            activation,
            ranks: None,
        }
    }

    /// This rank's stacks, the elements flattened, in the order in which [`Experts::gathered`] asks for
    /// them.
    pub fn stacks(&self) -> Vec<Tensor<1>> {
        fn flattened<const D: usize>(param: &Param<Tensor<D>>) -> Tensor<1> {
            param.val().inner().flatten(0, D - 1)
        }
        let matrices = [self.w_gate_edf.as_ref(), Some(&self.w_up_edf), Some(&self.w_down_efd)];
        let biases = [self.b_gate_ef.as_ref(), self.b_up_ef.as_ref(), self.b_down_ed.as_ref()];
        let matrices = matrices.into_iter().flatten().map(flattened);
        matrices.chain(biases.into_iter().flatten().map(flattened)).collect()
    }

    /// How many experts there are, on all ranks together.
    pub fn num_experts(&self) -> usize {
        self.own().len() * self.ranks.as_ref().map_or(1, |ranks| ranks.exchange.num_ranks())
    }

    /// The experts that this rank holds: all of them, unless they are spread over ranks.
    pub fn own(&self) -> Range<usize> {
        let [num_own, _, _] = self.w_up_edf.val().dims();
        let first = self.ranks.as_ref().map_or(0, |ranks| ranks.exchange.rank() * num_own);
        first..first + num_own
    }

    /// The ranks that the experts are spread over; `None` if this process holds all.
    pub fn ranks(&self) -> Option<&ExpertParallel> {
        self.ranks.as_ref()
    }

    /// The experts' non-linearity.
    pub fn activation(&self) -> Activation {
        self.activation
    }

    /// Each token's sum of gate times expert over its slots in `plan`, which is one over the
    /// experts of all ranks; zero for a token without any. Computed as `options` say.
    ///
    /// # Shapes
    /// - `x_td`: `[num_tokens, d]`; `gates_tk`: `[num_tokens, top_k]`; returns `[num_tokens, d]`
    ///
    /// # Panics
    /// If `plan` does not fit the tokens, the gates or the number of experts.
    pub fn forward(
        &self,
        x_td: Tensor<2>,
        gates_tk: Tensor<2>,
        plan: &DispatchPlan,
        options: FfnOptions,
    ) -> Tensor<2> {
        match &self.ranks {
            Some(ranks) => {
                let tokens = RoutedTokens { x_td, gates_tk, plan };
                expert_parallel_ffn(tokens, self.matrices(), self.activation, options, ranks)
            }
            None => self.forward_own(x_td, gates_tk, plan, options),
        }
    }

    /// As [`Experts::forward`] with the experts of this rank alone, of which `plan` is one.
    pub(crate) fn forward_own(
        &self,
        x_td: Tensor<2>,
        gates_tk: Tensor<2>,
        plan: &DispatchPlan,
        options: FfnOptions,
    ) -> Tensor<2> {
        expert_ffn(x_td, gates_tk, self.matrices(), self.activation, plan, options)
    }

    fn matrices(&self) -> ExpertMatrices {
        let biases = match (&self.b_up_ef, &self.b_down_ed) {
            (Some(b_up_ef), Some(b_down_ed)) => Some(ExpertBiases {
                b_gate_ef: self.b_gate_ef.as_ref().map(Param::val),
                b_up_ef: b_up_ef.val(),
                b_down_ed: b_down_ed.val(),
            }),
            _ => None,
        };
        ExpertMatrices {
            w_gate_edf: self.w_gate_edf.as_ref().map(Param::val),
            w_up_edf: self.w_up_edf.val(),
            w_down_efd: self.w_down_efd.val(),
            biases,
        }
    }
}

/// The stack of all experts, from what `gather` makes of this rank's.
fn gathered<const D: usize>(
    param: Param<Tensor<D>>,
    num_experts: usize,
    gather: &mut impl FnMut(Tensor<1>) -> Tensor<1>,
) -> Param<Tensor<D>> {
    param.map(|stack| {
        let (learns, tracked) = (stack.is_require_grad(), stack.is_autodiff());
        let mut shape = stack.dims();
        shape[0] = num_experts;
        let all = gather(stack.inner().flatten(0, D - 1)).reshape(shape);
        if tracked { Tensor::from_inner(all).set_require_grad(learns) } else { all }
    })
}

/// Some rows of a parameter: a leaf of its own with the same id, which learns if the parameter did.
fn rows_of<const D: usize>(param: Param<Tensor<D>>, rows: Range<usize>) -> Param<Tensor<D>> {
    param.map(|stack| {
        let (learns, device, dtype) = (stack.is_require_grad(), stack.device(), stack.dtype());
        // By way of its data: a slice may lie in the memory of the whole stack and keep it.
        let own = stack.slice_dim(0, rows).into_data();
        Tensor::from_data(own, (&device, dtype)).set_require_grad(learns)
    })
}
