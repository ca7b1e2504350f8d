//! How far an imported model is from the reference outputs beside it.
//!
//! A model folder may hold `io.safetensors`, with `input_ids` and what the reference computes of them
//! (`logits`, `hidden.N`, `router_logits.N`, `topk_index.N`), and `train.safetensors`, with its `loss`,
//! the gradients (`grad.NAME`) and the loss after one step of AdamW.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::Serialize;
use switchyard_hub::layout::Part;
use switchyard_hub::{HubError, Located, PublishedModel, TensorFiles};
use switchyard_model::{
    ModelInput, ModelOutput, Named, ParameterName, Pass, StepNoise, Transformer, parameter_gradients,
    update_parameters,
};

use crate::import::imported_network;
use crate::loss::LossParts;

/// The step of AdamW after which references tell the loss: rate, decoupled decay and epsilon.
const LEARNING_RATE: f32 = 0.01;
const WEIGHT_DECAY: f32 = 0.1;
const EPSILON: f32 = 1e-8;
/// Gradients of a tensor that are smaller than this share of the largest of all are rounding.
const SMALLEST_GRADIENT: f64 = 1e-4;

/// Differences from the reference; those that it has no numbers for are absent.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Parity {
    /// `model_type` of the model.
    pub family: &'static str,
    /// Parameters.
    pub num_params: u64,
    /// Largest magnitude of the reference's logits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logits_max_abs: Option<f64>,
    /// Largest difference of the logits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logits_max_abs_diff: Option<f64>,
    /// Largest difference of the residual stream, before the first layer, between layers, and of what
    /// the head reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_max_abs_diff: Option<f64>,
    /// Largest difference of the routers' logits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_logits_max_abs_diff: Option<f64>,
    /// Tokens, over all mixtures, that are routed at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routed_tokens: Option<usize>,
    /// Of these, tokens that go to other experts than in the reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routing_mismatches: Option<usize>,
    /// The reference's loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Difference of the loss, balancing losses included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_abs_diff: Option<f64>,
    /// Gradients of the reference that were compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_gradients: Option<usize>,
    /// Largest difference of a gradient, each relative to the largest magnitude of its tensor, but to
    /// no less than 1e-4 of the largest of all: a gradient that is 0 but for rounding has no relative
    /// difference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient_max_rel_diff: Option<f64>,
    /// The tensor where that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient_worst: Option<String>,
    /// The reference's loss after one step of AdamW.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_after_step: Option<f64>,
    /// Difference of the loss after one step of AdamW.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_after_step_abs_diff: Option<f64>,
}

/// Limits: of the logits relative to the largest, of gradients relative to the largest of their
/// tensor, and of losses. transformers' own f32 is up to 6.5e-6 of the largest logit away from f64.
const LOGITS_LIMIT: f64 = 1e-5;
const GRADIENT_LIMIT: f64 = 1e-4;
const LOSS_LIMIT: f64 = 1e-5;

impl Parity {
    /// What is further from the reference than f32 arithmetic in another order explains.
    pub fn beyond_limits(&self) -> Vec<String> {
        let share = self.logits_max_abs_diff.zip(self.logits_max_abs).map(|(diff, max)| diff / max);
        let numbers = [
            ("logits", share, LOGITS_LIMIT),
            ("a gradient", self.gradient_max_rel_diff, GRADIENT_LIMIT),
            ("the loss", self.loss_abs_diff, LOSS_LIMIT),
            ("the loss after a step", self.loss_after_step_abs_diff, LOSS_LIMIT),
            ("tokens to other experts", self.routing_mismatches.map(|number| number as f64), 0.0),
        ];
        let beyond = |(what, value, limit): (&str, Option<f64>, f64)| {
            value
                .filter(|value| value.is_nan() || *value > limit)
                .map(|value| format!("{what}: {value:.1e}, above {limit:.0e}"))
        };
        numbers.into_iter().filter_map(beyond).collect()
    }
}

/// Compares the model in `folder` to the references beside it.
///
/// # Errors
/// If the model cannot be imported, there is no `io.safetensors`, or a reference does not fit the
/// model.
pub fn parity(folder: &Path, device: &Device) -> Result<Parity, HubError> {
    let published = PublishedModel::open(folder)?;
    let io = TensorFiles::open_safetensors(&folder.join("io.safetensors"))?;
    let inputs = Inputs::read(&io)?;
    let spec = published.spec(inputs.seq_len)?;
    let located = published.locate(&spec)?;
    let tracked = device.clone().autodiff();
    let network = imported_network(&published, &located, &spec, &tracked)?;
    let mut parity = Parity { family: published.family.names().0, ..Parity::default() };
    let counts = switchyard_model::ModelCounts::of(&spec, inputs.ids.len());
    parity.num_params = counts.total_params;
    compare_outputs(&network.valid(), &inputs, &io, device, &mut parity)?;
    let train = folder.join("train.safetensors");
    if train.exists() {
        let train = TensorFiles::open_safetensors(&train)?;
        compare_training((network, &tracked), (&published, &located), &inputs, &train, &mut parity)?;
    }
    Ok(parity)
}

/// The token ids of a reference.
struct Inputs {
    ids: Vec<i32>,
    batch: usize,
    seq_len: usize,
}

impl Inputs {
    fn read(io: &TensorFiles) -> Result<Self, HubError> {
        let shape = io.shape("input_ids").unwrap_or_default();
        let &[batch, seq_len] = shape.as_slice() else {
            return Err(io.error("input_ids", "is not there as [batch, seq]", "add it"));
        };
        let ids = io.read_integers("input_ids")?.into_iter().map(|id| id as i32).collect();
        Ok(Self { ids, batch, seq_len })
    }

    fn upload(&self, device: &Device) -> ModelInput {
        ModelInput::upload(self.ids.clone(), None, [self.batch, self.seq_len], device)
    }

    /// Rows with a next token, and these tokens.
    fn targets(&self) -> (Vec<i32>, Vec<i32>) {
        let has_next = |place: &usize| !(place + 1).is_multiple_of(self.seq_len);
        let places: Vec<usize> = (0..self.ids.len()).filter(has_next).collect();
        let next = places.iter().map(|place| self.ids[place + 1]).collect();
        (places.into_iter().map(|place| place as i32).collect(), next)
    }
}

fn compare_outputs(
    network: &Transformer,
    inputs: &Inputs,
    io: &TensorFiles,
    device: &Device,
    parity: &mut Parity,
) -> Result<(), HubError> {
    let input = inputs.upload(device);
    let (streams, output) = network.forward_with_streams(&input, Pass::Evaluation);
    let logits = values(network.logits(output.hidden_td.clone()));
    if let Some(expected) = reference(io, "logits", logits.len())? {
        parity.logits_max_abs = Some(max_abs(&expected));
        parity.logits_max_abs_diff = Some(max_difference(&logits, &expected));
    }
    let last = streams.len();
    let hidden = streams.into_iter().chain([output.hidden_td]).enumerate();
    for (index, stream_td) in hidden {
        // The stream before the head's norm is in no reference: its last is what the head reads.
        let number = if index == last {
            last - 1
        } else if index == last - 1 {
            continue;
        } else {
            index
        };
        let stream = values(stream_td);
        if let Some(expected) = reference(io, &format!("hidden.{number}"), stream.len())? {
            raise(&mut parity.hidden_max_abs_diff, max_difference(&stream, &expected));
        }
    }
    for (layer, aux) in &output.moe_layers {
        let Some(route) = &aux.route else { continue };
        let name = format!("router_logits.{layer}");
        if let Some(expected) = reference(io, &name, route.logits_te.len())? {
            let logits: Vec<f32> = route.logits_te.iter().map(|logit| *logit as f32).collect();
            raise(&mut parity.router_logits_max_abs_diff, max_difference(&logits, &expected));
        }
        let name = format!("topk_index.{layer}");
        if io.shape(&name).is_some() {
            let expected = io.read_integers(&name)?;
            let k = route.choice.slots_per_token;
            let chosen = route.choice.expert_ids_tk.chunks(k);
            let pairs = chosen.zip(expected.chunks(k));
            let num_different = pairs.filter(|(ours, theirs)| !same_experts(ours, theirs)).count();
            *parity.routing_mismatches.get_or_insert(0) += num_different;
            *parity.routed_tokens.get_or_insert(0) += inputs.ids.len();
        }
    }
    Ok(())
}

fn same_experts(ours: &[u32], theirs: &[i64]) -> bool {
    let sorted = |ids: Vec<i64>| {
        let mut ids = ids;
        ids.sort_unstable();
        ids
    };
    sorted(ours.iter().map(|id| i64::from(*id)).collect()) == sorted(theirs.to_vec())
}

fn compare_training(
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
    let hidden_td = output.hidden_td.select(0, ints(places));
    let output = ModelOutput { hidden_td, moe_layers: output.moe_layers, state: None };
    LossParts::new(network, &output, ints(next), None).total
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

/// A reference's values; `None` if it has none of this name.
fn reference(file: &TensorFiles, name: &str, num_elements: usize) -> Result<Option<Vec<f32>>, HubError> {
    if file.shape(name).is_none() {
        return Ok(None);
    }
    let values = file.read(name, None)?;
    if values.len() != num_elements {
        let problem = format!("has {} elements, but the model computes {num_elements}", values.len());
        return Err(file.error(name, problem, "is the reference of this model?"));
    }
    Ok(Some(values))
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

fn raise(largest: &mut Option<f64>, value: f64) {
    *largest = Some(largest.map_or(value, |largest| largest.max(value)));
}

fn max_abs(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(value.abs())).fold(0.0, f64::max)
}

/// The largest difference; infinite where ours is no number.
fn max_difference(ours: &[f32], theirs: &[f32]) -> f64 {
    let difference = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).abs();
    let largest = |largest: f64, value: f64| if value.is_nan() { f64::INFINITY } else { largest.max(value) };
    ours.iter().zip(theirs).map(difference).fold(0.0, largest)
}
