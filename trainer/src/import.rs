//! A published model as a network, and as a run.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use serde_json::{Value, json};
use switchyard_datasets::Tokenizer;
use switchyard_hub::{HubError, Located, PublishedModel};
use switchyard_model::{ModelSpec, Transformer, update_parameters};

use crate::TrainError;
use crate::config::RunConfig;
use crate::plan::RunPlan;
use crate::run_folder::{OpenMode, RunFolder};
use crate::step_zero::StepZero;

/// Tokens of a sequence where nothing else is asked for: published models have positions for more
/// than most machines have memory for.
const MAX_DEFAULT_SEQ_LEN: usize = 2048;
/// Of a run that trains on nothing yet; what trains on says its own.
const LEARNING_RATE: f64 = 1e-4;

/// The network with every parameter of `published`, of which one at a time is read.
///
/// # Errors
/// If a tensor is missing, superfluous, of another shape, cannot be read, or holds what is no finite
/// number.
pub fn imported_network(
    published: &PublishedModel,
    located: &Located,
    spec: &ModelSpec,
    device: &Device,
) -> Result<Transformer, HubError> {
    let mut failure = None;
    let network = update_parameters(Transformer::new(spec, 0, device), |name, _, initial_n| {
        if failure.is_some() {
            return initial_n;
        }
        match published.values(located, name) {
            Ok(values) => Tensor::from_data(TensorData::new(values, initial_n.dims()), &initial_n.device()),
            Err(error) => {
                failure = Some(error);
                initial_n
            }
        }
    });
    failure.map_or(Ok(network), Err)
}

/// What to make a run of, and where.
#[derive(Debug, Clone)]
pub struct ImportRequest {
    /// Run folder to begin.
    pub out: PathBuf,
    /// What to do with a run that is there already.
    pub mode: OpenMode,
    /// Tokens of the longest sequence; `None` is the model's own, up to 2048.
    pub seq_len: Option<usize>,
}

/// Writes the published model of `dir` as a run that has done no step, for `generate`, `serve`,
/// `eval`, `export` and `[start] from`; returns its checkpoint. Its data is text that is not there
/// yet: other data is named where it is needed.
///
/// # Errors
/// If a tensor cannot be read as [`imported_network`] says, the tokenizer cannot be read, or the
/// folder cannot be written; then no folder is left behind.
pub fn import_run(
    dir: &Path,
    published: &PublishedModel,
    request: &ImportRequest,
) -> Result<PathBuf, TrainError> {
    RunFolder::check(&request.out, request.mode)?;
    let (config, tokenizer) = run_of(dir, published, request)?;
    let plan = RunPlan::resolve(&config).map_err(TrainError::Start)?;
    let spec = published.spec(plan.seq_len)?;
    let located = published.locate(&spec)?;
    let model = imported_network(published, &located, &plan.model, &Device::flex())?;
    let beginning =
        StepZero { config: &config, plan: &plan, model: &model, tokenizer: &tokenizer, data_key: "" };
    beginning.write(&request.out, request.mode, &beginning.manifest())
}

/// The configuration of the run, and its tokenizer: of ids alone where none lies beside the model.
fn run_of(
    dir: &Path,
    published: &PublishedModel,
    request: &ImportRequest,
) -> Result<(RunConfig, Tokenizer), TrainError> {
    let positions = published.config.num_positions.unwrap_or(MAX_DEFAULT_SEQ_LEN);
    let seq_len = request.seq_len.unwrap_or(positions.min(MAX_DEFAULT_SEQ_LEN));
    let vocab_size = published.spec(seq_len)?.vocab_size;
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let file = dir.join("tokenizer.json");
    let (data, tokenizer) = match file.is_file() {
        true => {
            let [text, file_path] = [dir.join("text"), file.clone()].map(as_text);
            let data = json!({ "text": { "path": text }, "tokenizer": { "file": { "path": file_path } } });
            (data, Tokenizer::load(&file)?)
        }
        false => {
            let ids = json!({ "train": as_text(dir.join("tokens.bin")), "vocab_size": vocab_size });
            let data = json!({ "tokens": ids, "split": { "tail": { "validation_fraction": 0.05 } } });
            (data, Tokenizer::Ids { vocab_size, end_of_document: None })
        }
    };
    let config = json!({
        "name": run_name(&dir),
        "data": data,
        "model": published.config,
        "start": { "from": as_text(dir) },
        "train": {
            "num_steps": 1,
            "seq_len": seq_len,
            "batch_tokens": seq_len,
            "adamw": { "learning_rate": LEARNING_RATE },
        },
    });
    Ok((parsed(config), tokenizer))
}

/// The configuration that this JSON is.
fn parsed(config: Value) -> RunConfig {
    serde_json::from_value(config).expect("every key of it is known")
}

/// JSON is UTF-8, a path need not be.
fn as_text(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}

/// The folder's name with nothing in it that a run's name cannot have.
fn run_name(dir: &Path) -> String {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    let name: String = name.chars().map(|letter| if allowed(letter) { letter } else { '-' }).collect();
    let name: String = name.trim_start_matches(['-', '_', '.']).chars().take(100).collect();
    if name.is_empty() { "imported".to_owned() } else { name }
}
