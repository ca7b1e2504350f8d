//! Feed-forward blocks.
//!
//! Shape letters: t tokens, k slots per token, e experts, d model width, f hidden width.

use switchyard_kernels_cpu::activation::{Activation, Kept};
use switchyard_kernels_cpu::bf16::{Bf16, Compute};
use switchyard_kernels_cpu::dispatch::DispatchPlan;
use switchyard_kernels_cpu::feed_forward::{self, Block, FfnOptions, Operands, Output, Parts};

use crate::{ALL, Computed, check, irregular};

fn activate(activation: Activation, up: f64, gate: f64) -> f64 {
    match activation {
        Activation::Swiglu => up * gate / (1.0 + (-gate).exp()),
        Activation::ClampedSwiglu { alpha, limit } => {
            let gate = gate.min(limit);
            gate / (1.0 + (-alpha * gate).exp()) * (up.max(-limit).min(limit) + 1.0)
        }
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (up + 0.044715 * up.powi(3));
            0.5 * up * (1.0 + inner.tanh())
        }
        Activation::Relu => up.max(0.0),
        Activation::Gelu => panic!("held to its accuracy beside its loops"),
    }
}

/// What one expert makes of one token; `gate` is read by gated activations alone.
fn expert(activation: Activation, x: &[f64], [up, down, gate]: [&[f64]; 3]) -> Vec<f64> {
    let d = x.len();
    let f = up.len() / d;
    let project = |w: &[f64], j: usize| (0..d).map(|i| x[i] * w[i * f + j]).sum::<f64>();
    let hidden: Vec<f64> = (0..f).map(|j| activate(activation, project(up, j), project(gate, j))).collect();
    (0..d).map(|i| (0..f).map(|j| hidden[j] * down[j * d + i]).sum()).collect()
}

/// The output and the gradients of all operands.
pub(crate) fn there_and_back(
    operands: Operands<&[f32]>,
    sizes_tdf: [usize; 3],
    dy: &[f32],
    block: &Block,
) -> (Vec<f32>, Vec<Vec<f32>>) {
    fn keeping<E: Kept>(
        operands: Operands<&[f32]>,
        sizes_tdf: [usize; 3],
        dy: &[f32],
        block: &Block,
    ) -> (Vec<f32>, Vec<Vec<f32>>) {
        let Output { y, mut up, mut gate } = feed_forward::forward::<E>(operands, sizes_tdf, block);
        let gradients = feed_forward::gradients(operands, sizes_tdf, [&mut up, &mut gate], dy, block);
        (y, gradients.into_vec())
    }
    match block.options.compute {
        Compute::F32 => keeping::<f32>(operands, sizes_tdf, dy, block),
        Compute::Bf16 | Compute::PortableBf16 => keeping::<Bf16>(operands, sizes_tdf, dy, block),
    }
}

#[test]
fn mixtures_are_their_definition() {
    let (t, k, e, d, f) = (5, 2, 3, 4, 19);
    // One expert without tokens, and one slot without a row.
    let ids: Vec<u32> = vec![0, 2, 2, 0, 0, 2, 2, 0, 0, 2];
    let keep: Vec<bool> = (0..t * k).map(|slot| slot != 3).collect();
    let plan = DispatchPlan::new(&ids, Some(&keep), e, k);
    let clamped = Activation::ClampedSwiglu { alpha: 1.702, limit: 0.25 };
    for activation in [Activation::Swiglu, clamped, Activation::GeluTanh, Activation::Relu] {
        let gated = activation.is_gated();
        let [x, dy] = [1, 2].map(|seed| irregular(seed, t * d));
        let [up, down, gate] = [3, 4, 5].map(|seed| irregular(seed, e * d * f));
        let gates = irregular(6, t * k);
        let operands = Operands {
            x: &x[..],
            up: &up,
            down: &down,
            gate: gated.then_some(&gate[..]),
            gates: Some(&gates),
            up_bias: None,
            down_bias: None,
            gate_bias: None,
        };
        let parts = Parts { gated, routed: true, biased: false };
        for compute in ALL {
            let block = Block {
                activation,
                parts,
                plan: Some(plan.clone()),
                options: FfnOptions { compute, recompute: false },
            };
            let (y, gradients) = there_and_back(operands, [t, d, f], &dy, &block);
            let inputs = operands.into_vec();
            let computed = Computed { compute, y: &y, dy: &dy, gradients: &gradients };
            check(&format!("{activation:?}"), computed, &inputs, |inputs| {
                let operands = Operands::from_vec(inputs.to_vec(), parts);
                let gates = operands.gates.clone().unwrap_or_default();
                let gate = operands.gate.clone().unwrap_or_else(|| operands.up.clone());
                let mut y = vec![0.0; t * d];
                for slot in (0..t * k).filter(|&slot| keep[slot]) {
                    let (token, len) = (slot / k, d * f);
                    let of = |stack: &'_ [f64]| stack[ids[slot] as usize * len..][..len].to_vec();
                    let (up, down, gate) = (of(&operands.up), of(&operands.down), of(&gate));
                    let row = expert(activation, &operands.x[token * d..][..d], [&up, &down, &gate]);
                    for (i, value) in row.iter().enumerate() {
                        y[token * d + i] += gates[slot] * value;
                    }
                }
                y
            });
        }
    }
}

#[test]
fn dense_blocks_with_biases_are_their_definition() {
    let (t, d, f) = (3, 5, 17);
    let activation = Activation::Swiglu;
    let [x, dy] = [1, 2].map(|seed| irregular(seed, t * d));
    let [up, down, gate] = [3, 4, 5].map(|seed| irregular(seed, d * f));
    let [up_bias, gate_bias] = [6, 7].map(|seed| irregular(seed, f));
    let down_bias = irregular(8, d);
    let operands = Operands {
        x: &x[..],
        up: &up,
        down: &down,
        gate: Some(&gate),
        gates: None,
        up_bias: Some(&up_bias),
        down_bias: Some(&down_bias),
        gate_bias: Some(&gate_bias),
    };
    let parts = Parts { gated: true, routed: false, biased: true };
    for compute in ALL {
        let block =
            Block { activation, parts, plan: None, options: FfnOptions { compute, recompute: false } };
        let (y, gradients) = there_and_back(operands, [t, d, f], &dy, &block);
        let computed = Computed { compute, y: &y, dy: &dy, gradients: &gradients };
        // A bias is a row of the matrix that is multiplied by one.
        check("dense", computed, &operands.into_vec(), |inputs| {
            let operands = Operands::from_vec(inputs.to_vec(), parts);
            let with_row =
                |w: &[f64], bias: &Option<Vec<f64>>| [w, bias.as_deref().unwrap_or_default()].concat();
            let up = with_row(&operands.up, &operands.up_bias);
            let gate = with_row(operands.gate.as_deref().unwrap_or_default(), &operands.gate_bias);
            let token = |x: &[f64]| {
                let x = [x, &[1.0]].concat();
                let project =
                    |w: &[f64], j: usize| x.iter().enumerate().map(|(i, x)| x * w[i * f + j]).sum::<f64>();
                let hidden: Vec<f64> =
                    (0..f).map(|j| activate(activation, project(&up, j), project(&gate, j))).collect();
                let bias = operands.down_bias.clone().unwrap_or_default();
                let element =
                    |i: usize| (0..f).map(|j| hidden[j] * operands.down[j * d + i]).sum::<f64>() + bias[i];
                (0..d).map(element).collect::<Vec<_>>()
            };
            operands.x.chunks(d).flat_map(token).collect()
        });
    }
}
