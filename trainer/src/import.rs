//! A published model as a network, and as a run.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use serde_json::{Value, json};
use switchyard_datasets::{FileTokenizerConfig, TokenName, Tokenizer};
use switchyard_ground::key_error::KeyError;
use switchyard_ground::regular_file;
use switchyard_hub::{HubError, Located, PublishedModel, SpecialIds};
use switchyard_model::{ModelSpec, Transformer, update_parameters};

use crate::TrainError;
use crate::config::RunConfig;
use crate::plan::RunPlan;
use crate::run_folder::{OpenMode, RunFolder};
use crate::step_zero::StepZero;

/// Tokens of a sequence where nothing else is asked for: published models have positions for more
/// than most machines have memory for.
const MAX_DEFAULT_SEQ_LEN: usize = 2048;
/// Bytes that a `tokenizer_config.json` may have.
const MAX_JSON_BYTES: u64 = 64 << 20;
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
/// If a tensor cannot be read as [`imported_network`] says, or the tokenizer cannot be read: then no
/// folder is left behind; or the folder cannot be written.
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
    if !(1..=positions).contains(&seq_len) && published.config.num_positions.is_some() {
        let remedy = format!("use 1..={positions}, the positions of the model");
        return Err(TrainError::Start(KeyError::new("--seq-len", format!("is {seq_len}"), remedy)));
    }
    let vocab_size = published.spec(seq_len)?.vocab_size;
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let file = dir.join("tokenizer.json");
    if dir.to_str().is_none() {
        let problem = format!("`{}` has a name that is not UTF-8", dir.display());
        return Err(TrainError::Start(KeyError::new("start.from", problem, "rename the folder")));
    }
    let marks = Marks::of(&dir, published);
    // Also a link that leads nowhere: it is not there, and should be.
    let (data, tokenizer) = match file.symlink_metadata().is_ok() {
        true => {
            let own = FileTokenizerConfig {
                path: file,
                begin_of_document: marks.begin.map(TokenName::Id),
                end_of_document: marks.end.map(TokenName::Id),
                on_unknown_text: None,
            };
            let text = json!({ "path": dir.join("text") });
            (json!({ "text": text, "tokenizer": { "file": own } }), Tokenizer::of_config(&own)?)
        }
        false => {
            let ids = json!({ "train": dir.join("tokens.bin"), "vocab_size": vocab_size });
            let data = json!({ "tokens": ids, "split": { "tail": { "validation_fraction": 0.05 } } });
            (data, Tokenizer::Ids { vocab_size, end_of_document: marks.end })
        }
    };
    let config = json!({
        "name": run_name(&dir),
        "data": data,
        "model": published.config,
        "start": { "from": dir },
        "train": {
            "num_steps": 1,
            "seq_len": seq_len,
            "batch_tokens": seq_len,
            "adamw": { "learning_rate": LEARNING_RATE },
        },
    });
    let config = serde_json::from_value(config).map_err(|error| {
        let problem = format!("cannot be written as a configuration: {error}");
        TrainError::Start(KeyError::new("config.json", problem, "mend the value, or remove it"))
    })?;
    Ok((config, tokenizer))
}

/// The ids that begin and end a text, as the model says.
#[derive(Debug, Default)]
struct Marks {
    begin: Option<u32>,
    end: Option<u32>,
}

impl Marks {
    /// `config.json` names both ids; that the first is put in front of a text is said beside the
    /// tokenizer, where it is said at all.
    fn of(dir: &Path, published: &PublishedModel) -> Self {
        let SpecialIds { begin, end } = &published.special_ids;
        let text = regular_file::read_to_string(&dir.join("tokenizer_config.json"), MAX_JSON_BYTES);
        let json: Option<Value> = text.ok().and_then(|text| serde_json::from_str(&text).ok());
        let begins = json.is_some_and(|json| json["add_bos_token"] == Value::Bool(true));
        let id = |id: &usize| u32::try_from(*id).ok();
        Self { begin: begin.as_ref().filter(|_| begins).and_then(id), end: end.first().and_then(id) }
    }
}

/// The folder's name with nothing in it that a run's name cannot have.
fn run_name(dir: &Path) -> String {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    let name: String = name.chars().map(|letter| if allowed(letter) { letter } else { '-' }).collect();
    let name: String = name.trim_start_matches(['-', '_', '.']).chars().take(100).collect();
    if name.is_empty() { "imported".to_owned() } else { name }
}
