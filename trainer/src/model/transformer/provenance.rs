//! Where the first NaN or infinity of a forward pass arises. Slow, and run only once a loss is not finite.

use burn::module::Module;
use burn::tensor::Tensor;

use super::{ModelInput, Pass, Transformer};
use crate::flight::alarms::NonFinite;
use crate::norms::layer_of;
use crate::parameters::parameter_data;

impl Transformer {
    /// The first NaN or infinity among the parameters, and if they are all finite, in the forward pass of `input` in the
    /// order of computation; none if both are finite.
    pub fn first_non_finite(&self, input: &ModelInput, pass: Pass<'_>) -> Option<NonFinite> {
        self.first_non_finite_parameter().or_else(|| self.in_forward_pass(input, pass))
    }

    fn first_non_finite_parameter(&self) -> Option<NonFinite> {
        parameter_data(&self.valid()).into_iter().find_map(|parameter| {
            let values: Vec<f32> = parameter.value.iter::<f32>().collect();
            let index = values.iter().position(|value| !value.is_finite())?;
            let is_of_experts = parameter.path.contains(".ffn.experts.");
            let values_per_expert =
                values.len() / parameter.value.shape().as_slice().first().map_or(1, |&rows| rows);
            Some(NonFinite {
                layer: layer_of(&parameter.path),
                expert: is_of_experts.then(|| index / values_per_expert),
                op: format!("the parameter `{}`", parameter.path),
            })
        })
    }

    fn in_forward_pass(&self, input: &ModelInput, pass: Pass<'_>) -> Option<NonFinite> {
        self.in_context(input, pass, |context| {
            let outside = |op: &str| NonFinite { layer: None, expert: None, op: op.into() };
            let mut x_td = self.embed(input, pass);
            if !is_finite(&x_td) {
                return Some(outside("the embedding"));
            }
            for (layer, block) in self.blocks.iter().enumerate() {
                let found = block.first_non_finite(x_td.clone(), context);
                if let Some((expert, op)) = found {
                    return Some(NonFinite { layer: Some(layer), expert, op });
                }
                x_td = block.forward(x_td, context).0;
            }
            let hidden_td = self.final_norm.forward(x_td);
            let place = if is_finite(&hidden_td) { "the head's loss" } else { "the final norm" };
            Some(outside(place))
        })
    }
}

/// Whether every element is a finite number.
pub(in crate::model) fn is_finite(x_td: &Tensor<2>) -> bool {
    x_td.to_data().iter::<f32>().all(f32::is_finite)
}
