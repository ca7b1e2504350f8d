//! The matrices between hidden units of a model, by arithmetic alone: nothing is allocated.

use switchyard_experts::{ExpertsSpec, FfnSpec};
use switchyard_kernels::Activation;

use crate::counts::projections;
use crate::{Affine, FfnMatrix, LayerSpec, MixerSpec, ModelSpec, Named, ParameterName, Role};

/// Name and shape `[matrices, rows, columns]` of every parameter whose role
/// [is a hidden matrix](Role::is_hidden_matrix), layer by layer; those of experts are stacks.
pub fn hidden_matrices(spec: &ModelSpec) -> Vec<Named<[usize; 3]>> {
    let of_layer = |(layer, block): (usize, &LayerSpec)| {
        let name = move |role| ParameterName::of_layer(layer, role);
        let matrices =
            of_mixer(&block.mixer, spec.d_model).into_iter().chain(of_ffn(&block.ffn, spec.d_model));
        matrices.map(move |(role, value)| Named { name: name(role), value })
    };
    spec.layers.iter().enumerate().flat_map(of_layer).collect()
}

type Shaped = (Role, [usize; 3]);

fn of_mixer(mixer: &MixerSpec, d_model: usize) -> Vec<Shaped> {
    let MixerSpec::Attention(attention) = mixer else { return Vec::new() };
    let projections = projections(attention, d_model as u64).into_iter();
    projections
        .map(|(part, [rows, columns])| {
            (Role::Attention(part, Affine::Weight), [1, rows as usize, columns as usize])
        })
        .collect()
}

fn of_ffn(ffn: &FfnSpec, d_model: usize) -> Vec<Shaped> {
    match ffn {
        FfnSpec::Dense(dense) => of_blocks(Role::Dense, dense.activation, [1, d_model, dense.d_ff]),
        FfnSpec::Moe(moe) => of_experts(&moe.experts, d_model),
        FfnSpec::SoftMoe(soft) => of_experts(&soft.experts, d_model),
        FfnSpec::BlockSparse(_) | FfnSpec::Absent => Vec::new(),
    }
}

fn of_experts(experts: &ExpertsSpec, d_model: usize) -> Vec<Shaped> {
    let activation = experts.activation;
    let routed = of_blocks(Role::Expert, activation, [experts.num_experts, d_model, experts.d_expert]);
    let shared = experts.shared.iter();
    let shared = shared.flat_map(|shared| of_blocks(Role::Shared, activation, [1, d_model, shared.d_expert]));
    routed.into_iter().chain(shared).collect()
}

/// The matrices of so many feed-forward blocks between widths `d` and `f`.
fn of_blocks(role: fn(FfnMatrix) -> Role, activation: Activation, [number, d, f]: [usize; 3]) -> Vec<Shaped> {
    let gate = activation.is_gated().then_some((FfnMatrix::Gate, [number, d, f]));
    let others = [(FfnMatrix::Up, [number, d, f]), (FfnMatrix::Down, [number, f, d])];
    gate.into_iter().chain(others).map(|(matrix, shape)| (role(matrix), shape)).collect()
}
