//! How far an imported model is from the reference outputs beside it.
//!
//! A model folder may hold `io.safetensors`, with `input_ids` and what the reference computes of them
//! (`logits`, `hidden.N`, `router_logits.N`, `topk_index.N`, `topk_weight.N`), and `train.safetensors`,
//! with its `loss`, the gradients (`grad.NAME`) and the loss after one step of AdamW.

mod outputs;
mod training;

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::Serialize;
use switchyard_hub::{HubError, PublishedModel, TensorFiles};
use switchyard_model::ModelInput;

use crate::import::imported_network;
use outputs::compare_outputs;
use training::compare_training;

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
    /// Largest difference of the weight of an expert, of tokens that go to the same ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gates_max_abs_diff: Option<f64>,
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
/// tensor, of the weights of experts, and of losses. transformers' own f32 is up to 6.5e-6 of the largest logit away from f64.
const LOGITS_LIMIT: f64 = 1e-5;
const GRADIENT_LIMIT: f64 = 1e-4;
const LOSS_LIMIT: f64 = 1e-5;
const GATE_LIMIT: f64 = 1e-5;

impl Parity {
    /// What is further from the reference than f32 arithmetic in another order explains.
    pub fn beyond_limits(&self) -> Vec<String> {
        let share = self.logits_max_abs_diff.zip(self.logits_max_abs).map(|(diff, max)| diff / max);
        let numbers = [
            ("logits", share, LOGITS_LIMIT),
            ("a gradient", self.gradient_max_rel_diff, GRADIENT_LIMIT),
            ("the weight of an expert", self.gates_max_abs_diff, GATE_LIMIT),
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
