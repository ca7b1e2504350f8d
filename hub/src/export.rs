//! A model written as its family is published.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use switchyard_experts::FfnSpec;
use switchyard_ground::durable;
use switchyard_model::{
    InitConfig, LayerNormConfig, MixerSpec, ModelConfig, ModelSpec, NormConfig, ParameterName, PositionKind,
    QkNorm, QkNormConfig, RmsNormConfig,
};
use switchyard_router::{BalancingScope, BiasRule, GatePrecision, RouterConfig, SoftmaxOrder};

use crate::HubError;
use crate::families::Family;
use crate::import::{SpecialIds, resolve};
use crate::keys::Keys;
use crate::layout::Part;
use crate::tensor_files::{Element, IndexMetadata, SafetensorsWriter, ShardIndex};

/// What to write, and how.
#[derive(Debug, Clone)]
pub struct ExportRequest<'a> {
    /// The family whose names and keys are used.
    pub family: Family,
    /// The model.
    pub config: &'a ModelConfig,
    /// What it resolves to.
    pub spec: &'a ModelSpec,
    /// The type of the numbers.
    pub element: Element,
    /// How experts lie.
    pub experts: ExpertForm,
    /// Ids with a meaning.
    pub special_ids: &'a SpecialIds,
    /// About the most bytes of one file.
    pub max_shard_bytes: usize,
}

/// How the experts of a layer lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertForm {
    /// As the family is published; most have a tensor for each expert.
    Published,
    /// Stacked in one tensor, where the family has that form.
    Fused,
}

/// A published tensor, and the parts of ours that fill it.
struct Output {
    name: String,
    shape: Vec<usize>,
    parts: Vec<(ParameterName, usize, Part)>,
}

/// A family that can express a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// The family.
    pub family: Family,
    /// What of the model it cannot say, and computes a little differently; `None` if it is exact.
    pub deviation: Option<String>,
}

/// The family that can express `config`: `asked`, or the first in transformers that does so exactly, or but for the
/// constant under the root of the norm of queries and keys.
///
/// # Errors
/// If there is none: what the nearest family lacks, or that all are of another kind.
pub fn family_for(config: &ModelConfig, asked: Option<Family>) -> Result<Fit, HubError> {
    if config.lstm.is_some() {
        return Err(HubError::NoFamily { key: "model.lstm" });
    }
    let known = || Family::ALL.into_iter().filter(|family| family.is_in_transformers()).collect();
    let families: Vec<Family> = asked.map_or_else(known, |family| vec![family]);
    if let Some(family) = families.iter().find(|family| expresses(**family, config)) {
        return Ok(Fit { family: *family, deviation: None });
    }
    if let Some((adjusted, deviation)) = with_one_epsilon(config)
        && let Some(family) = families.iter().find(|family| expresses(**family, &adjusted))
    {
        return Ok(Fit { family: *family, deviation: Some(deviation) });
    }
    let differences = families.iter().map(|family| (*family, differences(*family, config)));
    let nearest = differences.min_by_key(|(_, differences)| differences.len());
    let (family, differences) = nearest.unwrap_or((Family::Llama, Vec::new()));
    let other = Family::ALL.iter().find(|other| expresses(**other, config));
    let remedy = match (asked, other) {
        (Some(_), Some(other)) => {
            let other = other.names().0;
            format!("it is a {other} model: leave `--family` out, or give `--family {other}`")
        }
        (Some(_), None) => "leave `--family` out, or change these keys before training".into(),
        (None, Some(other)) => {
            let other = other.names().0;
            format!(
                "transformers has no family that computes the same; `--family {other}` writes it as the paper has it"
            )
        }
        (None, None) => {
            "it is the nearest family, and no other computes the same; change these keys before training"
                .into()
        }
    };
    Err(HubError::NotExpressible { family: family.names().0, feature: differences.join(", "), remedy })
}

/// The model with one constant for all norms, as families have it that normalise queries and keys.
fn with_one_epsilon(config: &ModelConfig) -> Option<(ModelConfig, String)> {
    let settings = config.attention.as_ref()?.qk_norm.settings()?;
    let epsilon = match config.norm.clone().unwrap_or_default() {
        NormConfig::Rms(RmsNormConfig { epsilon }) => epsilon,
        NormConfig::Layer(LayerNormConfig { epsilon, .. }) => epsilon,
        NormConfig::Off {} => return None,
    };
    let deviation = format!(
        "`model.attention.qk_norm.epsilon` is {}, and the family has that of its other norms, {epsilon}",
        settings.epsilon
    );
    let mut adjusted = config.clone();
    adjusted.attention_mut().qk_norm = QkNorm::On(QkNormConfig { epsilon, ..settings });
    Some((adjusted, deviation))
}

/// Whether the family's `config.json` says all that `config` computes: what is read back from it
/// computes the same.
pub fn expresses(family: Family, config: &ModelConfig) -> bool {
    match read_back(family, config) {
        Some((read_back, written)) => computes_the_same(read_back, written),
        None => false,
    }
}

/// What the family's `config.json` says of the model, and the model.
fn read_back(family: Family, config: &ModelConfig) -> Option<(ModelSpec, ModelSpec)> {
    config.attention.as_ref()?;
    let path = Path::new("config.json");
    let keys = Keys::new(path, family.write(config));
    let seq_len = config.num_positions.unwrap_or(1);
    let read_back = family.read(&keys).and_then(|read| resolve(&read, seq_len, path)).ok()?;
    Some((read_back, resolve(config, seq_len, path).ok()?))
}

/// Keys of the specification that the family's `config.json` does not give back, each once for all
/// layers.
fn differences(family: Family, config: &ModelConfig) -> Vec<String> {
    let Some((read_back, written)) = read_back(family, config) else {
        return vec!["its parts together".into(); usize::from(u8::MAX)];
    };
    let flat = |spec: ModelSpec| {
        let mut keys = BTreeMap::new();
        flatten("", &serde_json::to_value(computed(spec)).unwrap_or_default(), &mut keys);
        keys
    };
    let (there, here) = (flat(read_back), flat(written));
    let keys: BTreeSet<&String> = here.keys().chain(there.keys()).collect();
    let differ = keys.into_iter().filter(|key| here.get(*key) != there.get(*key));
    differ.map(|key| format!("{key} = {}", here.get(key).unwrap_or(&Value::Null))).collect()
}

/// The leaves of a JSON value by their paths, indices left out.
fn flatten(path: &str, value: &Value, keys: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(table) => {
            for (key, value) in table {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(&path, value, keys);
            }
        }
        Value::Array(items) => items.iter().for_each(|value| flatten(path, value, keys)),
        leaf => {
            keys.insert(path.to_owned(), leaf.clone());
        }
    }
}

/// Whether two models compute the same of the same parameters, whatever they differ in while training.
pub fn computes_the_same(a: ModelSpec, b: ModelSpec) -> bool {
    computed(a) == computed(b)
}

/// The specification without what matters while training alone.
fn computed(spec: ModelSpec) -> ModelSpec {
    // Others than learned positions have no end.
    let is_learned = matches!(spec.position, PositionKind::Learned);
    let max_seq_len = if is_learned { spec.num_positions() } else { 0 };
    let layers = spec.layers.into_iter().map(|mut layer| {
        if let MixerSpec::Lstm(lstm) = &mut layer.mixer {
            lstm.forget_bias = 0.0;
        }
        if let FfnSpec::Moe(moe) = &mut layer.ffn {
            moe.experts.granularity = None;
            moe.router.config = computed_router(moe.router.config.clone());
            if moe.capacity.as_ref().is_some_and(|capacity| capacity.evaluation_factor.is_none()) {
                moe.capacity = None;
            }
        }
        layer
    });
    ModelSpec {
        layers: layers.collect(),
        dropout: 0.0,
        init: InitConfig::default(),
        // Its multipliers and its scale of attention are in the specification.
        parametrisation: None,
        // A row that lookups do not move is a row all the same.
        padding_id: None,
        max_seq_len,
        num_positions: None,
        ..spec
    }
}

fn computed_router(router: RouterConfig) -> RouterConfig {
    let bias = router.bias.map(|_| BiasRule::Fixed {});
    RouterConfig {
        bias,
        token_rounding: None,
        jitter: None,
        precision: GatePrecision::F32,
        init_scale: 1.0,
        constant_gate: false,
        load_balancing_weight: None,
        load_balancing_scope: BalancingScope::MicroBatch,
        z_loss_weight: None,
        entropy_weight: None,
        // One softmax after the choice is one before it, renormalised.
        renormalise: router.renormalise
            || (router.sigmoid.is_none() && router.softmax == SoftmaxOrder::AfterSelection),
        softmax: SoftmaxOrder::BeforeSelection,
        ..router
    }
}

/// Writes `config.json`, `generation_config.json` and the tensors into `folder`, which exists.
/// `values` gives those of each parameter, row by row.
///
/// # Errors
/// If a file cannot be written, or `values` fails.
pub fn write_model<E: From<HubError>>(
    request: &ExportRequest<'_>,
    folder: &Path,
    mut values: impl FnMut(ParameterName) -> Result<Vec<f32>, E>,
) -> Result<(), E> {
    write_configs(request, folder)?;
    let shards = shards(request, outputs(request));
    let num_shards = shards.len();
    let mut weight_map = BTreeMap::new();
    let mut total_size = 0;
    for (index, shard) in shards.into_iter().enumerate() {
        let file = match num_shards {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{num_shards:05}.safetensors", index + 1),
        };
        let tensors: Vec<(String, Vec<usize>)> =
            shard.iter().map(|output| (output.name.clone(), output.shape.clone())).collect();
        let mut writer = SafetensorsWriter::create(&folder.join(&file), request.element, &tensors)?;
        let mut kept = BTreeMap::new();
        for output in shard {
            let bytes = assembled(&output, request.element, &mut kept, &mut values)?;
            total_size += bytes.len();
            writer.write(&bytes)?;
            weight_map.insert(output.name, file.clone());
        }
        writer.finish()?;
    }
    if num_shards > 1 {
        let metadata = IndexMetadata { total_size: total_size as f64 };
        write_json(&folder.join("model.safetensors.index.json"), &ShardIndex { metadata, weight_map })?;
    }
    Ok(())
}

/// The bytes of a published tensor. Parameters of the layer at hand are kept for the tensors that
/// follow.
fn assembled<E: From<HubError>>(
    output: &Output,
    element: Element,
    kept: &mut BTreeMap<ParameterName, Vec<f32>>,
    values: &mut impl FnMut(ParameterName) -> Result<Vec<f32>, E>,
) -> Result<Vec<u8>, E> {
    let layer = output.parts.first().and_then(|(name, ..)| name.layer);
    kept.retain(|name, _| name.layer == layer);
    let mut whole = vec![0.0; output.shape.iter().product()];
    for (name, start, part) in &output.parts {
        if !kept.contains_key(name) {
            kept.insert(*name, values(*name)?);
        }
        let ours = &kept[name][*start..start + part.num_elements()];
        let len = part.num_item_elements();
        let item = part.item.unwrap_or(0);
        part.scatter(ours, &mut whole[item * len..(item + 1) * len]);
    }
    let mut bytes = Vec::with_capacity(whole.len() * element.num_bytes());
    element.encode(&whole, &mut bytes);
    Ok(bytes)
}

/// Every published tensor, in the model's order.
fn outputs(request: &ExportRequest<'_>) -> Vec<Output> {
    let mut outputs: Vec<Output> = Vec::new();
    let mut index_of: BTreeMap<String, usize> = BTreeMap::new();
    for mapping in request.family.tensors(request.spec, request.family.written_pairs()) {
        let form = match request.experts {
            ExpertForm::Published => mapping.forms.first(),
            ExpertForm::Fused => {
                mapping.forms.iter().rev().find(|form| form.iter().any(|it| it.item.is_some()))
            }
        };
        let Some(parts) = form.or(mapping.forms.first()) else { continue };
        let mut start = 0;
        for part in parts {
            let index = *index_of.entry(part.name.clone()).or_insert_with(|| {
                outputs.push(Output {
                    name: part.name.clone(),
                    shape: part.shape.clone(),
                    parts: Vec::new(),
                });
                outputs.len() - 1
            });
            outputs[index].parts.push((mapping.ours, start, part.clone()));
            start += part.num_elements();
        }
    }
    outputs
}

/// The tensors cut into files.
fn shards(request: &ExportRequest<'_>, outputs: Vec<Output>) -> Vec<Vec<Output>> {
    let mut shards = vec![Vec::new()];
    let mut bytes = 0;
    for output in outputs {
        let more = output.shape.iter().product::<usize>() * request.element.num_bytes();
        if bytes > 0 && bytes + more > request.max_shard_bytes {
            shards.push(Vec::new());
            bytes = 0;
        }
        bytes += more;
        if let Some(shard) = shards.last_mut() {
            shard.push(output);
        }
    }
    shards
}

fn write_configs(request: &ExportRequest<'_>, folder: &Path) -> Result<(), HubError> {
    let (model_type, architecture) = request.family.names();
    let dtype = match request.element {
        Element::F16 => "float16",
        Element::Bf16 => "bfloat16",
        _ => "float32",
    };
    let SpecialIds { begin, end } = request.special_ids;
    let end = match end.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        several => json!(several),
    };
    let mut config = request.family.write(request.config);
    let common = json!({
        "architectures": [architecture],
        "model_type": model_type,
        "dtype": dtype,
        "bos_token_id": begin,
        "eos_token_id": end,
        "use_cache": true,
    });
    if let Value::Object(common) = common {
        config.extend(common);
    }
    write_json(&folder.join("config.json"), &config)?;
    let generation: Map<String, Value> = [
        ("_from_model_config".to_owned(), json!(true)),
        ("bos_token_id".to_owned(), json!(begin)),
        ("eos_token_id".to_owned(), end),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_null())
    .collect();
    write_json(&folder.join("generation_config.json"), &generation)
}

/// A JSON file, whole or absent.
///
/// # Errors
/// If it cannot be written.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), HubError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| {
        HubError::bad_file(path, format!("cannot be written as JSON: {error}"), "report it")
    })?;
    durable::replace(path, format!("{text}\n").as_bytes()).map_err(HubError::io("write", path))
}

/// Ok if a model may be written into `folder`: it is new, or empty.
///
/// # Errors
/// If something lies there.
pub fn check_target(folder: &Path) -> Result<(), HubError> {
    let is_empty = match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => return Err(HubError::io("read", folder)(error)),
    };
    if is_empty { Ok(()) } else { Err(HubError::bad_file(folder, "is not empty", "name a new folder")) }
}
