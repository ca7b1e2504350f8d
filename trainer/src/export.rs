//! A checkpoint written as a published model: names, keys and files of the family that computes the
//! same, a model card, and a certificate of how far the written model is from the checkpoint.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, TensorData};
use serde::Serialize;
use serde_json::json;
use switchyard_ground::durable;
use switchyard_hub::export::{
    ExpertForm, ExportRequest, Fit, check_target, family_for, write_json, write_model,
};
use switchyard_hub::tensor_files::Element;
use switchyard_hub::{Family, HubError, PublishedModel, SpecialIds};
use switchyard_model::{ModelInput, ParameterName, Pass, Transformer};

use crate::TrainError;
use crate::checkpoint::Checkpoint;
use crate::import::imported_network;
use crate::run_folder::{RunManifest, RunPaths};

/// About the most bytes of one file, as most models are published.
const MAX_SHARD_BYTES: usize = 5_000_000_000;
/// Tokens of the certificate's input.
const CERTIFICATE_SHAPE: [usize; 2] = [2, 16];

/// How to export.
#[derive(Debug, Clone)]
pub struct ExportSettings {
    /// Folder to write, new or empty.
    pub to: PathBuf,
    /// Type of the numbers.
    pub element: Element,
    /// How experts lie.
    pub experts: ExpertForm,
    /// The family; `None` is the first that computes the same.
    pub family: Option<Family>,
}

/// How far the written model is from the checkpoint, on ids `(7 i + 3) mod vocabulary`.
#[derive(Debug, Clone, Serialize)]
pub struct Certificate {
    /// `model_type` that it is written as.
    pub family: &'static str,
    /// Shape of the input.
    pub input_shape: [usize; 2],
    /// Largest magnitude of the checkpoint's logits.
    pub logits_max_abs: f64,
    /// Largest difference of the logits.
    pub logits_max_abs_diff: f64,
    /// Step of the checkpoint.
    pub step: u64,
    /// What of the model the family cannot say; absent if it says all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deviation: Option<String>,
}

/// Writes the checkpoint as a published model.
///
/// # Errors
/// [`TrainError`] if no family computes the same, the folder is not empty, or something cannot be
/// read or written.
pub fn export(checkpoint: &Checkpoint, settings: &ExportSettings) -> Result<Certificate, TrainError> {
    let ExportSettings { to, element, experts, family } = settings;
    check_target(to)?;
    let plan = &checkpoint.plan;
    let mut config = checkpoint.config.model.without_parametrisation(&plan.model);
    config.vocab_size = Some(plan.model.vocab_size);
    config.num_positions = Some(plan.model.num_positions());
    if let Some(attention) = &mut config.attention {
        attention.d_head.get_or_insert(config.d_model / attention.num_heads.max(1));
    }
    let Fit { family, deviation } = family_for(&config, *family)?;
    let id = |id: Option<u32>| id.map(|id| id as usize);
    let special_ids = SpecialIds {
        begin: id(checkpoint.tokenizer.begin_of_document()),
        end: id(checkpoint.tokenizer.end_of_document()).into_iter().collect(),
    };
    durable::create_dir_all(to).map_err(io("create", to))?;
    let parameters = checkpoint.parameters()?;
    let request = ExportRequest {
        family,
        config: &config,
        spec: &plan.model,
        element: *element,
        experts: *experts,
        special_ids: &special_ids,
        max_shard_bytes: MAX_SHARD_BYTES,
    };
    write_model::<TrainError>(&request, to, |name| Ok(values_of(&parameters, name)))?;
    write_tokenizer(checkpoint, to)?;
    let certificate = Certificate { deviation, ..certify(checkpoint, to, family)? };
    write_json(&to.join("parity.json"), &certificate)?;
    let card = model_card(checkpoint, &certificate);
    durable::replace(&to.join("README.md"), card.as_bytes()).map_err(io("write", to))?;
    Ok(certificate)
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> TrainError + use<> {
    let path = path.to_path_buf();
    move |source| HubError::Io { action, path, source }.into()
}

fn values_of(parameters: &BTreeMap<ParameterName, TensorData>, name: ParameterName) -> Vec<f32> {
    parameters.get(&name).map_or_else(Vec::new, |data| data.iter::<f32>().collect())
}

/// The network of the written folder beside that of the checkpoint.
fn certify(checkpoint: &Checkpoint, to: &Path, family: Family) -> Result<Certificate, TrainError> {
    let device = Device::flex();
    let [batch, seq_len] = CERTIFICATE_SHAPE;
    let seq_len = seq_len.min(checkpoint.plan.model.max_seq_len);
    let vocab_size = checkpoint.plan.model.vocab_size;
    let ids = (0..batch * seq_len).map(|i| ((7 * i + 3) % vocab_size) as i32).collect();
    let input = ModelInput::upload(ids, None, [batch, seq_len], &device);
    let published = PublishedModel::open(to)?;
    let spec = published.spec(seq_len)?;
    let located = published.locate(&spec)?;
    let written = logits(&imported_network(&published, &located, &spec, &device)?, &input);
    let ours = logits(&checkpoint.model(&device)?, &input);
    let largest = |values: &mut dyn Iterator<Item = f32>| values.map(f64::from).fold(0.0, f64::max);
    Ok(Certificate {
        family: family.names().0,
        input_shape: [batch, seq_len],
        logits_max_abs: largest(&mut ours.iter().map(|logit| logit.abs())),
        logits_max_abs_diff: largest(&mut ours.iter().zip(&written).map(|(a, b)| (a - b).abs())),
        step: checkpoint.state.step,
        deviation: None,
    })
}

fn logits(network: &Transformer, input: &ModelInput) -> Vec<f32> {
    let hidden_td = network.forward(input, Pass::Evaluation).hidden_td;
    network.logits(hidden_td).into_data().iter::<f32>().collect()
}

fn write_tokenizer(checkpoint: &Checkpoint, to: &Path) -> Result<(), TrainError> {
    // Data that is ids stands for no text.
    let tokenizer = &checkpoint.tokenizer;
    let Some(json) = tokenizer.to_published_json() else { return Ok(()) };
    let path = to.join("tokenizer.json");
    durable::replace(&path, &json).map_err(io("write", &path))?;
    let text_of = |id: Option<u32>| id.and_then(|id| tokenizer.published_token(id));
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": checkpoint.plan.model.num_positions(),
        "clean_up_tokenization_spaces": false,
        "bos_token": text_of(tokenizer.begin_of_document()),
        "eos_token": text_of(tokenizer.end_of_document()),
    });
    Ok(write_json(&to.join("tokenizer_config.json"), &config)?)
}

/// The lowest validation loss in bits per byte, as the run that the checkpoint is of knows it.
fn best_bits_per_byte(checkpoint: &Checkpoint, nats: f64) -> Option<f64> {
    let run = RunManifest::read(&RunPaths::new(checkpoint.path.ancestors().nth(2)?).manifest()).ok()?;
    run.best_validation_bits_per_byte.filter(|_| run.best_validation_cross_entropy_nats == Some(nats))
}

/// `README.md`: what the model is, and what its run measured.
fn model_card(checkpoint: &Checkpoint, certificate: &Certificate) -> String {
    let plan = &checkpoint.plan;
    let losses = checkpoint.state.best_validation.map_or_else(String::new, |best| {
        let nats = best.cross_entropy_nats;
        let bits = best_bits_per_byte(checkpoint, nats);
        let bits = bits.map_or(String::new(), |bits| format!(" ({bits:.4} bits per byte)"));
        format!("Lowest validation loss: {nats:.4} nats per token{bits}, at step {}.\n\n", best.step)
    });
    let tokens = checkpoint.state.step * plan.tokens_per_step as u64;
    let trained = match checkpoint.state.step {
        0 => "Not trained by Switchyard: step 0".to_owned(),
        step => format!("Trained with Switchyard: step {step} of {}, {tokens} tokens", plan.num_steps),
    };
    format!(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# {}\n\n{trained}, {} parameters of which {} are active per token.\n\n{losses}Written as `{}`; on an input of {} x {} \
         ids its logits are within {:.1e} of the checkpoint's, whose largest is {:.3}.\n",
        plan.name,
        plan.counts.total_params,
        plan.counts.active_params,
        certificate.family,
        certificate.input_shape[0],
        certificate.input_shape[1],
        certificate.logits_max_abs_diff,
        certificate.logits_max_abs,
    )
}
