//! Feed-forward blocks as stock tensor operations, for every backend.
//!
//! Both directions, and both gradients, read through an index and never scatter: no atomics, and
//! each sum has one fixed order, so results repeat bit for bit.

pub(super) mod activation;
mod groups;
mod permute;

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};
use switchyard_kernels_cpu::dispatch::Groups;
use switchyard_kernels_cpu::feed_forward::{Block, Operands};

use activation::{activate, gradients as activation_gradients};
use groups::{bias_of_rows, multiply_groups, multiply_groups_transposed, sum_groups, weight_gradient};
use permute::{combine_rows, gate_gradient, gather_rows, row_gradient, sum_slots};

/// The block's output, and the up and gate projections of all rows.
pub(super) fn forward<B: Backend>(
    operands: Vec<FloatTensor<B>>,
    block: &Block,
) -> (FloatTensor<B>, Vec<FloatTensor<B>>) {
    let Operands { x, up, down, gate, gates, up_bias, down_bias, gate_bias } =
        Operands::from_vec(operands, block.parts);
    let groups = block.groups(x.shape()[0]);
    let rows_nd = match &block.plan {
        Some(plan) => gather_rows::<B>(x, &plan.slots),
        None => x,
    };
    let gate_nf = gate
        .map(|gate| add_bias::<B>(multiply_groups::<B>(rows_nd.clone(), gate, &groups), gate_bias, &groups));
    let up_nf = add_bias::<B>(multiply_groups::<B>(rows_nd, up, &groups), up_bias, &groups);
    let hidden_nf = activate::<B>(block.activation, up_nf.clone(), gate_nf.clone());
    let y_nd = add_bias::<B>(multiply_groups::<B>(hidden_nf, down, &groups), down_bias, &groups);
    let y_td = match (&block.plan, gates) {
        (Some(plan), Some(gates_tk)) => combine_rows::<B>(y_nd, gates_tk, &plan.slots),
        _ => y_nd,
    };
    (y_td, [Some(up_nf), gate_nf].into_iter().flatten().collect())
}

/// Gradients of all operands.
pub(super) fn gradients<B: Backend>(
    operands: Vec<FloatTensor<B>>,
    projections: Vec<FloatTensor<B>>,
    dy_td: FloatTensor<B>,
    block: &Block,
) -> Vec<FloatTensor<B>> {
    let Operands { x, up, down, gate, gates, up_bias, down_bias, gate_bias } =
        Operands::from_vec(operands, block.parts);
    let groups = block.groups(x.shape()[0]);
    let mut projections = projections.into_iter();
    let (up_nf, gate_nf) = (projections.next().expect("an up projection"), projections.next());
    let hidden_nf = activate::<B>(block.activation, up_nf.clone(), gate_nf.clone());
    let (rows_nd, dy_nd, dgates) = match (&block.plan, gates) {
        (Some(plan), Some(gates_tk)) => {
            let slots = &plan.slots;
            let y_nd = multiply_groups::<B>(hidden_nf.clone(), down.clone(), &groups);
            let y_nd = add_bias::<B>(y_nd, down_bias.clone(), &groups);
            let dgates_tk = gate_gradient::<B>(dy_td.clone(), y_nd, slots);
            (gather_rows::<B>(x, slots), row_gradient::<B>(dy_td, gates_tk, slots), Some(dgates_tk))
        }
        _ => (x, dy_td, None),
    };
    let dhidden_nf = multiply_groups_transposed::<B>(dy_nd.clone(), down.clone(), &groups);
    let (dup_nf, dgate_nf) = activation_gradients::<B>(block.activation, up_nf, gate_nf, dhidden_nf);
    let dx_nd = multiply_groups_transposed::<B>(dup_nf.clone(), up.clone(), &groups);
    let dx_nd = match (&gate, &dgate_nf) {
        (Some(gate), Some(dgate_nf)) => {
            let through_gate_nd = multiply_groups_transposed::<B>(dgate_nf.clone(), gate.clone(), &groups);
            B::float_add(dx_nd, through_gate_nd)
        }
        _ => dx_nd,
    };
    let gradient_of = |x_nd, dy_nf, w: &FloatTensor<B>| {
        B::float_reshape(weight_gradient::<B>(x_nd, dy_nf, &groups), w.shape())
    };
    let gradients = Operands {
        x: match &block.plan {
            Some(plan) => sum_slots::<B>(dx_nd, &plan.slots),
            None => dx_nd,
        },
        up: gradient_of(rows_nd.clone(), dup_nf.clone(), &up),
        down: gradient_of(hidden_nf, dy_nd.clone(), &down),
        gate: gate.zip(dgate_nf.clone()).map(|(gate, dgate_nf)| gradient_of(rows_nd, dgate_nf, &gate)),
        gates: dgates,
        up_bias: up_bias.map(|bias| bias_gradient::<B>(dup_nf, bias, &groups)),
        down_bias: down_bias.map(|bias| bias_gradient::<B>(dy_nd, bias, &groups)),
        gate_bias: gate_bias
            .zip(dgate_nf)
            .map(|(bias, dgate_nf)| bias_gradient::<B>(dgate_nf, bias, &groups)),
    };
    gradients.into_vec()
}

/// Each row plus the bias of its group: `[e, f]`, or `[f]` of one group.
fn add_bias<B: Backend>(
    y_nf: FloatTensor<B>,
    biases: Option<FloatTensor<B>>,
    groups: &Groups,
) -> FloatTensor<B> {
    match biases {
        Some(biases) => B::float_add(y_nf, bias_of_rows::<B>(biases, groups)),
        None => y_nf,
    }
}

/// The sum of each group's rows, in the shape of `biases`.
fn bias_gradient<B: Backend>(
    dy_nf: FloatTensor<B>,
    biases: FloatTensor<B>,
    groups: &Groups,
) -> FloatTensor<B> {
    B::float_reshape(sum_groups::<B>(dy_nf, groups), biases.shape())
}
