//! One block with its inputs, and how the operation is run on them.

use burn::tensor::{DType, Gradients, Tensor};
use switchyard_kernels::{
    Activation, DenseBiases, DenseMatrices, DispatchPlan, ExpertBiases, ExpertMatrices, FfnOptions,
    dense_ffn, expert_ffn,
};

use crate::tensors::{random, tensor, values};

/// A block.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) activation: Activation,
    pub(crate) t: usize,
    pub(crate) d: usize,
    pub(crate) f: usize,
    pub(crate) e: usize,
    /// None for a dense block.
    pub(crate) plan: Option<DispatchPlan>,
    pub(crate) biased: bool,
}

/// Values of its tensors; empty for those that it has not.
#[derive(Debug, Clone)]
pub(crate) struct Inputs {
    pub(crate) x: Vec<f64>,
    pub(crate) up: Vec<f64>,
    pub(crate) down: Vec<f64>,
    pub(crate) gate: Vec<f64>,
    pub(crate) gates: Vec<f64>,
    pub(crate) up_bias: Vec<f64>,
    pub(crate) down_bias: Vec<f64>,
    pub(crate) gate_bias: Vec<f64>,
}

impl Inputs {
    pub(crate) fn tensors_mut(&mut self) -> [&mut Vec<f64>; 8] {
        let Self { x, up, down, gate, gates, up_bias, down_bias, gate_bias } = self;
        [x, up, down, gate, gates, up_bias, down_bias, gate_bias]
    }
}

impl Case {
    pub(crate) fn dense(activation: Activation, [t, d, f]: [usize; 3], biased: bool) -> Self {
        Self { activation, t, d, f, e: 1, plan: None, biased }
    }

    /// A mixture in which slot i goes to expert `ids[i]`, unless `keep[i]` is false.
    pub(crate) fn mixture(
        activation: Activation,
        [d, f]: [usize; 2],
        [e, top_k]: [usize; 2],
        ids: &[u32],
        keep: Option<&[bool]>,
    ) -> Self {
        let plan = DispatchPlan::new(ids, keep, e, top_k);
        Self { activation, t: ids.len() / top_k, d, f, e, plan: Some(plan), biased: false }
    }

    /// The same with biases.
    pub(crate) fn with_biases(self) -> Self {
        Self { biased: true, ..self }
    }

    pub(crate) fn inputs(&self) -> Inputs {
        let Self { t, d, f, e, .. } = *self;
        let given = |present: bool, len: usize, seed: u64| random(if present { len } else { 0 }, seed);
        let gated = self.activation.is_gated();
        Inputs {
            x: random(t * d, 1),
            up: random(e * d * f, 2),
            down: random(e * f * d, 3),
            gate: given(gated, e * d * f, 4),
            gates: given(self.plan.is_some(), self.plan.as_ref().map_or(0, |plan| t * plan.slots.top_k()), 5),
            up_bias: given(self.biased, e * f, 6),
            down_bias: given(self.biased, e * d, 7),
            gate_bias: given(self.biased && gated, e * f, 8),
        }
    }

    /// Output of the operation and the gradients of `sum(c * y)`, all inputs in order, empty for
    /// those absent.
    pub(crate) fn run(&self, inputs: &Inputs, c: &[f64], dtype: DType) -> (Vec<f64>, Vec<Vec<f64>>) {
        let Self { t, d, f, e, .. } = *self;
        let leaf1 = |v: &[f64]| (!v.is_empty()).then(|| tensor(v, [v.len()], dtype).require_grad());
        let x = tensor(&inputs.x, [t, d], dtype).require_grad();
        let biases = [&inputs.up_bias, &inputs.down_bias, &inputs.gate_bias].map(|bias| leaf1(bias));
        let stack =
            |v: &[f64], shape: [usize; 3]| (!v.is_empty()).then(|| tensor(v, shape, dtype).require_grad());
        let [up, down, gate] =
            [stack(&inputs.up, [e, d, f]), stack(&inputs.down, [e, f, d]), stack(&inputs.gate, [e, d, f])];
        let gates = self
            .plan
            .as_ref()
            .map(|plan| tensor(&inputs.gates, [t, plan.slots.top_k()], dtype).require_grad());
        let y = match (&self.plan, &gates) {
            (Some(plan), Some(gates)) => {
                let [b_up, b_down, b_gate] = biases.clone();
                let of_experts = |bias: Tensor<1>, width: usize| -> Tensor<2> { bias.reshape([e, width]) };
                let matrices = ExpertMatrices {
                    biases: b_up.zip(b_down).map(|(b_up, b_down)| ExpertBiases {
                        b_gate_ef: b_gate.map(|b_gate| of_experts(b_gate, f)),
                        b_up_ef: of_experts(b_up, f),
                        b_down_ed: of_experts(b_down, d),
                    }),
                    w_gate_edf: gate.clone(),
                    w_up_edf: up.clone().expect("a leaf has its tensor and gradient"),
                    w_down_efd: down.clone().expect("a leaf has its tensor and gradient"),
                };
                expert_ffn(x.clone(), gates.clone(), matrices, self.activation, plan, FfnOptions::default())
            }
            _ => {
                let flat =
                    |stack: &Option<Tensor<3>>, shape: [usize; 2]| stack.clone().map(|w| w.reshape(shape));
                let [b_up, b_down, b_gate] = biases.clone();
                let matrices = DenseMatrices {
                    w_gate_df: flat(&gate, [d, f]),
                    w_up_df: flat(&up, [d, f]).expect("a leaf has its tensor and gradient"),
                    w_down_fd: flat(&down, [f, d]).expect("a leaf has its tensor and gradient"),
                    biases: b_up.zip(b_down).map(|(b_up_f, b_down_d)| DenseBiases {
                        b_gate_f: b_gate,
                        b_up_f,
                        b_down_d,
                    }),
                };
                dense_ffn(x.clone(), matrices, self.activation, FfnOptions::default())
            }
        };
        let gradients = (y.clone() * tensor(c, [t, d], dtype)).sum().backward();
        let dgates = gradient(&gradients, &gates);
        let dx = values(&x.grad(&gradients).expect("a leaf has its tensor and gradient"));
        let all = vec![
            dx,
            gradient(&gradients, &up),
            gradient(&gradients, &down),
            gradient(&gradients, &gate),
            dgates,
            gradient(&gradients, &biases[0]),
            gradient(&gradients, &biases[1]),
            gradient(&gradients, &biases[2]),
        ];
        (values(&y), all)
    }
}

/// The gradient of a leaf; empty if there is none.
fn gradient<const D: usize>(gradients: &Gradients, leaf: &Option<Tensor<D>>) -> Vec<f64> {
    leaf.as_ref().map_or(vec![], |leaf| values(&leaf.grad(gradients).expect("a leaf has a gradient")))
}
