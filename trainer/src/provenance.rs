//! Where the NaN or infinity of a step's loss came from.

use burn::module::Module;
use switchyard_model::{ModelInput, NonFinite, Pass, Transformer, parameter_data};

/// The first parameter that is not finite, or if all are, the first part of the forward pass of
/// `input`. A second look, for when a loss was not finite: layer by layer, each expert alone where
/// a mixture is at fault.
pub(crate) fn non_finite_origin(model: &Transformer, input: &ModelInput, pass: Pass<'_>) -> NonFinite {
    let elsewhere = || match model.is_over_ranks() {
        // A second look would need the other ranks, which may have no reason for one.
        true => NonFinite { layer: None, expert: None, op: "the forward pass".into() },
        false => model.first_non_finite(input, pass),
    };
    first_non_finite_parameter(model).unwrap_or_else(elsewhere)
}

fn first_non_finite_parameter(model: &Transformer) -> Option<NonFinite> {
    parameter_data(&model.valid()).into_iter().find_map(|parameter| {
        let values: Vec<f32> = parameter.value.iter::<f32>().collect();
        let index = values.iter().position(|value| !value.is_finite())?;
        let num_rows = parameter.value.shape().as_slice().first().map_or(1, |&rows| rows);
        let is_of_experts = parameter.name.role.is_of_experts();
        Some(NonFinite {
            layer: parameter.name.layer,
            expert: is_of_experts.then(|| index / (values.len() / num_rows)),
            op: format!("the parameter `{}`", parameter.name),
        })
    })
}
