//! One mixture, and the tokens of each rank.

use burn::tensor::{Device, Gradients, Tensor, TensorData};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use switchyard_kernels::{
    Activation, DispatchPlan, ExpertBiases, ExpertGradients, ExpertMatrices, ExpertParallel, FfnOptions,
    RoutedTokens, expert_ffn, expert_parallel_ffn,
};

/// A mixture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) activation: Activation,
    pub(crate) biased: bool,
    pub(crate) options: FfnOptions,
    pub(crate) num_ranks: usize,
    pub(crate) num_experts: usize,
    pub(crate) d: usize,
    pub(crate) f: usize,
}

/// The choices of one rank's tokens.
#[derive(Debug, Clone)]
pub(crate) struct Choices {
    pub(crate) top_k: usize,
    pub(crate) expert_ids: Vec<u32>,
    pub(crate) keep: Option<Vec<bool>>,
}

/// Bits of what a rank gets: output, gradients of tokens and of gates.
#[derive(Debug, PartialEq)]
pub(crate) struct TokenBits {
    pub(crate) y: Vec<u32>,
    dx: Vec<u32>,
    dgates: Vec<u32>,
}

pub(crate) fn tensor<const D: usize>(seed: u64, shape: [usize; D]) -> Tensor<D> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values = (0..shape.iter().product()).map(|_| rng.random_range(-1.0_f32..1.0)).collect::<Vec<f32>>();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff())
}

pub(crate) fn bits<const D: usize>(tensor: &Tensor<D>) -> Vec<u32> {
    tensor.to_data().iter::<f32>().map(f32::to_bits).collect()
}

pub(crate) fn bits_of(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

impl Case {
    /// All experts.
    pub(crate) fn matrices(&self) -> ExpertMatrices {
        let Self { num_experts: e, d, f, .. } = *self;
        let gated = self.activation.is_gated();
        ExpertMatrices {
            w_gate_edf: gated.then(|| tensor(1, [e, d, f])),
            w_up_edf: tensor(2, [e, d, f]),
            w_down_efd: tensor(3, [e, f, d]),
            biases: self.biased.then(|| ExpertBiases {
                b_gate_ef: gated.then(|| tensor(4, [e, f])),
                b_up_ef: tensor(5, [e, f]),
                b_down_ed: tensor(6, [e, d]),
            }),
        }
    }

    /// The experts of one rank.
    pub(crate) fn matrices_of(&self, rank: usize) -> ExpertMatrices {
        let e = self.num_experts / self.num_ranks;
        let own3 = |stack: Tensor<3>| stack.slice_dim(0, rank * e..(rank + 1) * e);
        let own2 = |stack: Tensor<2>| stack.slice_dim(0, rank * e..(rank + 1) * e);
        let ExpertMatrices { w_gate_edf, w_up_edf, w_down_efd, biases } = self.matrices();
        ExpertMatrices {
            w_gate_edf: w_gate_edf.map(own3),
            w_up_edf: own3(w_up_edf),
            w_down_efd: own3(w_down_efd),
            biases: biases.map(|biases| ExpertBiases {
                b_gate_ef: biases.b_gate_ef.map(own2),
                b_up_ef: own2(biases.b_up_ef),
                b_down_ed: own2(biases.b_down_ed),
            }),
        }
    }

    /// Tokens and gates of one rank.
    pub(crate) fn tokens(&self, rank: usize, choices: &Choices) -> [Tensor<2>; 2] {
        let (seed, t) = (100 + 10 * rank as u64, choices.expert_ids.len() / choices.top_k);
        [tensor(seed, [t, self.d]), tensor(seed + 1, [t, choices.top_k])]
    }

    pub(crate) fn plan(&self, choices: &Choices) -> DispatchPlan {
        DispatchPlan::new(&choices.expert_ids, choices.keep.as_deref(), self.num_experts, choices.top_k)
    }

    /// The rank's tokens with all experts in one process, and the gradients of all experts.
    pub(crate) fn fused(&self, rank: usize, choices: &Choices) -> (TokenBits, Vec<Vec<u32>>) {
        let [x_td, gates_tk] = self.tokens(rank, choices).map(Tensor::require_grad);
        let ExpertMatrices { w_gate_edf, w_up_edf, w_down_efd, biases } = self.matrices();
        let matrices = ExpertMatrices {
            w_gate_edf: w_gate_edf.map(Tensor::require_grad),
            w_up_edf: w_up_edf.require_grad(),
            w_down_efd: w_down_efd.require_grad(),
            biases: biases.map(|biases| ExpertBiases {
                b_gate_ef: biases.b_gate_ef.map(Tensor::require_grad),
                b_up_ef: biases.b_up_ef.require_grad(),
                b_down_ed: biases.b_down_ed.require_grad(),
            }),
        };
        let plan = self.plan(choices);
        let leaves = [x_td.clone(), gates_tk.clone()];
        let y_td = expert_ffn(x_td, gates_tk, matrices.clone(), self.activation, &plan, self.options);
        let (tokens, gradients) = self.token_bits(rank, y_td, leaves);
        let stacks = [matrices.w_gate_edf, Some(matrices.w_up_edf), Some(matrices.w_down_efd)];
        let biases =
            matrices.biases.map_or([None, None, None], |b| [b.b_gate_ef, Some(b.b_up_ef), Some(b.b_down_ed)]);
        let of_stacks = stacks.into_iter().flatten().map(|stack| gradient(&stack, &gradients));
        let of_biases = biases.into_iter().flatten().map(|bias| gradient(&bias, &gradients));
        let of_matrices = of_stacks.chain(of_biases).collect();
        (tokens, of_matrices)
    }

    /// The same over ranks, and what the rank's experts are left with.
    pub(crate) fn over_ranks(
        &self,
        rank: usize,
        choices: &Choices,
        ranks: &ExpertParallel,
    ) -> (TokenBits, Vec<Vec<ExpertGradients>>) {
        let leaves = self.tokens(rank, choices).map(Tensor::require_grad);
        let y_td = self.forward(rank, leaves.clone(), choices, ranks);
        let (tokens, _) = self.token_bits(rank, y_td, leaves);
        (tokens, ranks.gradients.take())
    }

    /// The output over ranks for tokens and gates.
    pub(crate) fn forward(
        &self,
        rank: usize,
        [x_td, gates_tk]: [Tensor<2>; 2],
        choices: &Choices,
        ranks: &ExpertParallel,
    ) -> Tensor<2> {
        let tokens = RoutedTokens { x_td, gates_tk, plan: &self.plan(choices) };
        expert_parallel_ffn(tokens, self.matrices_of(rank), self.activation, self.options, ranks)
    }

    /// The backward pass of the output, weighted by numbers that are the rank's own.
    pub(crate) fn backward(&self, rank: usize, y_td: &Tensor<2>) -> Gradients {
        let weights_td = tensor(102 + 10 * rank as u64, y_td.dims());
        (y_td.clone() * weights_td).sum().backward()
    }

    fn token_bits(&self, rank: usize, y_td: Tensor<2>, leaves: [Tensor<2>; 2]) -> (TokenBits, Gradients) {
        let gradients = self.backward(rank, &y_td);
        let [dx, dgates] = leaves.map(|leaf| gradient(&leaf, &gradients));
        (TokenBits { y: bits(&y_td), dx, dgates }, gradients)
    }
}

fn gradient<const D: usize>(leaf: &Tensor<D>, gradients: &Gradients) -> Vec<u32> {
    bits(&leaf.grad(gradients).expect("a leaf has a gradient"))
}
