//! The loss, its gradients, and the loss after a step.

use std::collections::BTreeMap;

use burn::tensor::{Device, Int, Tensor, TensorData};
use switchyard_hub::layout::Part;
use switchyard_hub::{HubError, Located, PublishedModel, TensorFiles};
use switchyard_model::{
    Compute, ModelOutput, Named, ParameterName, Pass, StepNoise, Transformer, parameter_gradients,
    update_parameters,
};

use super::{Inputs, Parity, max_abs, max_difference, reference, values};
use crate::loss::LossParts;

/// The step of AdamW after which references tell the loss: rate, decoupled decay and epsilon.
const LEARNING_RATE: f32 = 0.01;
const WEIGHT_DECAY: f32 = 0.1;
const EPSILON: f32 = 1e-8;
/// Gradients of a tensor that are smaller than this share of the largest of all are rounding.
const SMALLEST_GRADIENT: f64 = 1e-4;

pub(super) fn compare_training(
    (network, device): (Transformer, &Device),
    (published, located): (&PublishedModel, &Located),
    inputs: &Inputs,
    train: &TensorFiles,
    parity: &mut Parity,
) -> Result<(), HubError> {
    let loss_1 = loss(&network, inputs, device);
    let scalar = |name: &str| -> Result<Option<f64>, HubError> {
        Ok(reference(train, name, 1)?.map(|value| f64::from(value[0])))
    };
    if let Some(expected) = scalar("loss")? {
        parity.loss = Some(expected);
        parity.loss_abs_diff = Some((f64::from(values(loss_1.clone())[0]) - expected).abs());
    }
    let gradients = parameter_gradients(&network, &loss_1.backward());
    compare_gradients(&gradients, published, located, train, parity)?;
    if let Some(expected) = scalar("loss_after")? {
        let after = loss(&stepped(network, &gradients), inputs, device);
        parity.loss_after_step = Some(expected);
        parity.loss_after_step_abs_diff = Some((f64::from(values(after)[0]) - expected).abs());
    }
    Ok(())
}

/// The loss of the next tokens and of the routers, `[1]`.
fn loss(network: &Transformer, inputs: &Inputs, device: &Device) -> Tensor<1> {
    let output = network.forward(&inputs.upload(device), Pass::training(StepNoise::new(0, 0, 0)));
    let (places, next) = inputs.targets();
    let ints = |ids: Vec<i32>| {
        let shape = [ids.len()];
        Tensor::<1, Int>::from_data(TensorData::new(ids, shape), device)
    };
    let hidden_td = output.hidden_td.clone().select(0, ints(places));
    let output = ModelOutput { hidden_td, ..output };
    LossParts::new(network, &output, ints(next), None, Compute::F32).total
}

/// The network after the first step of AdamW, in which moments are the gradient and its square.
fn stepped(network: Transformer, gradients: &[Named<Tensor<1>>]) -> Transformer {
    let by_name: BTreeMap<ParameterName, &Tensor<1>> =
        gradients.iter().map(|gradient| (gradient.name, &gradient.value)).collect();
    update_parameters(network, |name, _, value_n| match by_name.get(&name) {
        Some(gradient_n) => {
            let gradient_n = (*gradient_n).clone();
            let step_n = gradient_n.clone() / (gradient_n.abs() + EPSILON) * LEARNING_RATE;
            value_n * (1.0 - LEARNING_RATE * WEIGHT_DECAY) - step_n
        }
        None => value_n,
    })
}

fn compare_gradients(
    gradients: &[Named<Tensor<1>>],
    published: &PublishedModel,
    located: &Located,
    train: &TensorFiles,
    parity: &mut Parity,
) -> Result<(), HubError> {
    let ours = published_gradients(gradients, published, located, train);
    let names = train.names();
    let largest = ours.values().map(|values| max_abs(values)).fold(0.0, f64::max);
    for name in names.iter().filter_map(|name| name.strip_prefix("grad.")) {
        let Some(ours) = ours.get(name) else {
            let remedy = "is the reference of this model?";
            return Err(train.error(&format!("grad.{name}"), "is of no parameter with a gradient", remedy));
        };
        let Some(expected) = reference(train, &format!("grad.{name}"), ours.len())? else { continue };
        *parity.num_gradients.get_or_insert(0) += 1;
        let scale = max_abs(&expected).max(SMALLEST_GRADIENT * largest);
        let difference = max_difference(ours, &expected) / scale;
        if parity.gradient_max_rel_diff.is_none_or(|largest| difference > largest) {
            parity.gradient_max_rel_diff = Some(difference);
            parity.gradient_worst = Some(name.to_owned());
        }
    }
    Ok(())
}

/// Gradients as the published tensors would have them, in the forms that the reference names.
fn published_gradients(
    gradients: &[Named<Tensor<1>>],
    published: &PublishedModel,
    located: &Located,
    train: &TensorFiles,
) -> BTreeMap<String, Vec<f32>> {
    let mut by_name: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for gradient in gradients {
        let values: Vec<f32> = gradient.value.to_data().iter::<f32>().collect();
        let mut rest = values.as_slice();
        for part in
            published.form_in(located, gradient.name, |name| train.shape(&format!("grad.{name}")).is_some())
        {
            let (ours, behind) = rest.split_at(part.num_elements());
            rest = behind;
            let whole = part.shape.iter().product();
            let theirs = by_name.entry(part.name.clone()).or_insert_with(|| vec![0.0; whole]);
            part.scatter(ours, item_of(&part, theirs));
        }
    }
    by_name
}

/// The matrix or vector of a part in its whole tensor.
fn item_of<'a>(part: &Part, whole: &'a mut [f32]) -> &'a mut [f32] {
    let len = part.num_item_elements();
    let start = part.item.unwrap_or(0) * len;
    &mut whole[start..start + len]
}
