//! The network that a run begins with, and which of its parameters are trained.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use switchyard_datasets::Dataset;
use switchyard_ground::key_error::KeyError;
use switchyard_hub::export::computes_the_same;
use switchyard_hub::{PublishedModel, published_folder};
use switchyard_model::{
    ModelSpec, ParameterName, Transformer, freeze_parameters, parameter_shapes, update_parameters,
};

use crate::TrainError;
use crate::checkpoint::{Checkpoint, find_checkpoint};
use crate::config::RunConfig;
use crate::import::imported_network;
use crate::model_ids::{are_other_ids, tokenizer_of_published};
use crate::parameter_groups;
use crate::plan::RunPlan;

/// The network at the beginning of a new run.
///
/// # Errors
/// If `[start]` names a model that cannot be read or computes something else, or parameters that
/// there are not.
pub(crate) fn initial_network(
    config: &RunConfig,
    plan: &RunPlan,
    device: &Device,
) -> Result<Transformer, TrainError> {
    let network = match &config.start.from {
        None => Transformer::new(&plan.model, config.seed, device),
        Some(path) => network_from(path, config.seed, plan, device)?,
    };
    with_frozen_parameters(network, config)
}

/// Ok if a new run can begin as `[start]` says, as far as that can be told without the values.
///
/// # Errors
/// As [`initial_network`], but for values that cannot be read.
pub(crate) fn check(config: &RunConfig, plan: &RunPlan) -> Result<(), TrainError> {
    if let Some(path) = &config.start.from {
        match published_folder(path)? {
            Some(folder) => {
                let published = PublishedModel::open(&folder)?;
                check_same((path, &folder), &published.spec(plan.seq_len)?, plan)?;
                published.locate(&plan.model)?;
            }
            None => {
                let checkpoint = Checkpoint::read(&find_checkpoint(path)?)?;
                check_same((path, &checkpoint.path), &checkpoint.plan.model, plan)?;
            }
        }
    }
    check_words(config, plan)
}

/// Ok if `start.freeze` and `train.groups` name parameters of the model, and leave something to train.
///
/// # Errors
/// [`TrainError::Start`] with the key, the word and what to write instead.
pub fn check_words(config: &RunConfig, plan: &RunPlan) -> Result<(), TrainError> {
    if parameter_groups::has_words(config) {
        with_frozen_parameters(Transformer::new(&plan.model, config.seed, &Device::flex()), config)?;
    }
    Ok(())
}

/// Ok if the ids of `dataset` mean to the model that `[start]` names what they meant to it.
///
/// # Errors
/// [`TrainError::Start`] with how to name the model's own tokenizer.
pub(crate) fn check_ids(config: &RunConfig, dataset: &Dataset) -> Result<(), TrainError> {
    let Some(path) = &config.start.from else { return Ok(()) };
    let (folder, own) = match published_folder(path)? {
        Some(folder) => {
            let own = tokenizer_of_published(&folder)?;
            (folder, own)
        }
        None => {
            let checkpoint = Checkpoint::read(&find_checkpoint(path)?)?;
            (checkpoint.path, Some(checkpoint.tokenizer))
        }
    };
    if !are_other_ids(own.as_ref(), dataset) {
        return Ok(());
    }
    Err(other_tokenizer(path, &folder, "gives other ids than".into()))
}

/// That `data.tokenizer` `differs` from that of the model at `path`, in `folder`.
fn other_tokenizer(path: &Path, folder: &Path, differs: String) -> TrainError {
    let problem = format!("{differs} the tokenizer of \"{}\", which `start.from` names", path.display());
    let file = folder.join("tokenizer.json");
    let remedy = format!("name that one with `data.tokenizer.file.path = \"{}\"`", file.display());
    TrainError::Start(KeyError::new("data.tokenizer", problem, remedy))
}

/// The network of the published model, the run or the checkpoint at `path`.
fn network_from(path: &Path, seed: u64, plan: &RunPlan, device: &Device) -> Result<Transformer, TrainError> {
    match published_folder(path)? {
        Some(folder) => {
            let published = PublishedModel::open(&folder)?;
            check_same((path, &folder), &published.spec(plan.seq_len)?, plan)?;
            let located = published.locate(&plan.model)?;
            Ok(imported_network(&published, &located, &plan.model, device)?)
        }
        None => {
            let checkpoint = Checkpoint::read(&find_checkpoint(path)?)?;
            check_same((path, &checkpoint.path), &checkpoint.plan.model, plan)?;
            Ok(with_parameters(Transformer::new(&plan.model, seed, device), &checkpoint.parameters()?))
        }
    }
}

/// The network with the parameters of a checkpoint of the same model.
pub(crate) fn with_parameters(
    network: Transformer,
    parameters: &BTreeMap<ParameterName, TensorData>,
) -> Transformer {
    update_parameters(network, |name, _, initial_n| match parameters.get(&name) {
        Some(data) => {
            let values: Vec<f32> = data.iter::<f32>().collect();
            Tensor::from_data(TensorData::new(values, initial_n.dims()), &initial_n.device())
        }
        None => initial_n,
    })
}

/// Ok if the model at `path`, which lies in `folder`, computes what `plan` says.
fn check_same((path, folder): (&Path, &Path), there: &ModelSpec, plan: &RunPlan) -> Result<(), TrainError> {
    if computes_the_same(there.clone(), plan.model.clone()) {
        return Ok(());
    }
    let as_many_ids = ModelSpec { vocab_size: there.vocab_size, ..plan.model.clone() };
    if computes_the_same(there.clone(), as_many_ids) {
        let differs =
            format!("makes the model one of {} ids, against {} of", plan.model.vocab_size, there.vocab_size);
        return Err(other_tokenizer(path, folder, differs));
    }
    let problem =
        format!("is \"{}\", a model that computes something else than `[model]` says", path.display());
    let remedy = "leave `[model]` out for a published model's own, or give the keys that the checkpoint has";
    Err(TrainError::Start(KeyError::new("start.from", problem, remedy).naming("model")))
}

/// The network of which some parameters are not trained, as `start.freeze` and `train.groups` say.
///
/// # Errors
/// If a word of them names no parameter of the network, or nothing is left to train.
pub(crate) fn with_frozen_parameters(
    network: Transformer,
    config: &RunConfig,
) -> Result<Transformer, TrainError> {
    if !parameter_groups::has_words(config) {
        return Ok(network);
    }
    let names: Vec<ParameterName> =
        parameter_shapes(&network).into_iter().map(|parameter| parameter.name).collect();
    parameter_groups::check(config, &names).map_err(TrainError::Start)?;
    Ok(freeze_parameters(network, |name| parameter_groups::is_frozen(config, name)))
}

/// What the run begins with; `None` if with values of its own.
pub(crate) fn note_on_start(config: &RunConfig) -> Option<String> {
    let from = config.start.from.as_ref()?;
    Some(format!("the run begins with the parameters of `{}`, as `start.from` says", from.display()))
}
