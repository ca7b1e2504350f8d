//! A published model, read: what it is, and its parameters one at a time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use switchyard_ground::regular_file;
use switchyard_model::{EmbeddingPart, ModelConfig, ModelSpec, ParameterName, Role};

use crate::HubError;
use crate::families::Family;
use crate::keys::Keys;
use crate::layout::{Mapping, Pairs, Part};
use crate::tensor_files::TensorFiles;

const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// A model folder whose configuration is understood and whose tensors are all accounted for.
#[derive(Debug)]
pub struct PublishedModel {
    /// Its family.
    pub family: Family,
    /// What it is.
    pub config: ModelConfig,
    /// Keys of `config.json` that the family does not have, with their values.
    pub unknown_keys: Vec<(String, Value)>,
    /// Ids at the beginning and at the end of a text, as `config.json` has them.
    pub special_ids: SpecialIds,
    folder: PathBuf,
    pairs: Pairs,
    files: TensorFiles,
}

/// Ids with a meaning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// At the beginning of a text.
    pub begin: Option<usize>,
    /// At its end; some models have several.
    pub end: Vec<usize>,
}

/// Where each parameter of a model lies in the files of a published one.
#[derive(Debug)]
pub struct Located {
    /// As it is there.
    parts: BTreeMap<ParameterName, Vec<Part>>,
    /// Every way in which it is published.
    forms: BTreeMap<ParameterName, Vec<Vec<Part>>>,
}

impl PublishedModel {
    /// The model in `folder`.
    ///
    /// # Errors
    /// If `config.json` is missing, of no known family, or has a value that no model here can have; if
    /// a tensor file is missing or damaged.
    pub fn open(folder: &Path) -> Result<Self, HubError> {
        let path = folder.join("config.json");
        let keys = Keys::new(&path, read_config(&path)?);
        let family = family_of(&keys)?;
        let mut config = family.read(&keys)?;
        let pairs = family.pairs(&keys)?;
        let mut files = TensorFiles::open(folder)?;
        unpack(&keys, &mut files)?;
        if config.tie_embeddings {
            config.tie_embeddings = !has_own_head(&config, family, pairs, &files)?;
        }
        let special_ids = special_ids(&keys)?;
        let unknown_keys = keys.left_over().into_iter().filter(|(key, _)| !is_harmless(key)).collect();
        Ok(Self { family, config, unknown_keys, special_ids, folder: folder.to_path_buf(), pairs, files })
    }

    /// The specification for sequences of `seq_len` tokens.
    ///
    /// # Errors
    /// If a value of `config.json` is out of range.
    pub fn spec(&self, seq_len: usize) -> Result<ModelSpec, HubError> {
        resolve(&self.config, seq_len, &self.folder.join("config.json"))
    }

    /// Where each parameter of `spec` lies.
    ///
    /// # Errors
    /// If a parameter has no tensor, a tensor is of another shape, or one belongs to no parameter.
    pub fn locate(&self, spec: &ModelSpec) -> Result<Located, HubError> {
        let mappings = self.family.tensors(spec, self.pairs);
        let forms = mappings.iter().map(|mapping| (mapping.ours, mapping.forms.clone())).collect();
        let parts = mappings.into_iter().map(|mapping| Ok((mapping.ours, self.form_of(mapping)?)));
        let located = Located { parts: parts.collect::<Result<_, HubError>>()?, forms };
        self.check_all_used(&located)?;
        Ok(located)
    }

    /// Values of one parameter, row by row.
    ///
    /// # Errors
    /// If a tensor cannot be read, or holds what is no finite number.
    ///
    /// # Panics
    /// If `name` is no parameter of the model that was located.
    pub fn values(&self, located: &Located, name: ParameterName) -> Result<Vec<f32>, HubError> {
        let Some(parts) = located.parts.get(&name) else { panic!("`{name}` is no parameter of this model") };
        let num_elements = parts.iter().map(Part::num_elements).sum();
        let mut values = vec![0.0; num_elements];
        let mut rest = values.as_mut_slice();
        for part in parts {
            let (ours, behind) = rest.split_at_mut(part.num_elements());
            part.gather(&self.files.read(&part.name, part.item)?, ours);
            rest = behind;
        }
        Ok(values)
    }

    /// Shape of one parameter: a stack of matrices or vectors, or one of them.
    ///
    /// # Panics
    /// As [`PublishedModel::values`].
    pub fn shape(&self, located: &Located, name: ParameterName) -> Vec<usize> {
        let Some(parts) = located.parts.get(&name) else { panic!("`{name}` is no parameter of this model") };
        let of_one = parts.first().map(Part::our_shape).unwrap_or_default();
        if name.role.is_of_experts() { [vec![parts.len()], of_one].concat() } else { of_one }
    }

    /// The parts of a parameter of the located model, in a form whose first tensor `is_there`; as it was
    /// located if there is none.
    pub fn form_in(
        &self,
        located: &Located,
        name: ParameterName,
        is_there: impl Fn(&str) -> bool,
    ) -> Vec<Part> {
        let forms = located.forms.get(&name).into_iter().flatten();
        let mut named = forms.filter(|form| form.first().is_some_and(|part| is_there(&part.name)));
        named.next().cloned().or_else(|| located.parts.get(&name).cloned()).unwrap_or_default()
    }

    /// The form in which the parameter is there.
    fn form_of(&self, mapping: Mapping) -> Result<Vec<Part>, HubError> {
        let Mapping { ours, forms } = mapping;
        let mut missing = None;
        for form in forms {
            // Without its prefix in a base model that was saved alone.
            for prefix in ["", self.family.prefix()] {
                let renamed: Option<Vec<Part>> = form
                    .iter()
                    .map(|part| {
                        let name = part.name.strip_prefix(prefix)?.to_owned();
                        Some(Part { name, ..part.clone() })
                    })
                    .collect();
                let Some(renamed) = renamed else { continue };
                if renamed.iter().any(|part| self.files.shape(&part.name).is_some()) {
                    return self.checked(renamed);
                }
            }
            missing.get_or_insert(form);
        }
        let name = missing.and_then(|form| Some(form.first()?.name.clone())).unwrap_or_default();
        let problem = format!("is missing, which `{ours}` is made of");
        Err(self.files.error(&name, problem, "is the folder complete, and of the family that it names?"))
    }

    /// The parts, if each tensor is there in its shape.
    fn checked(&self, parts: Vec<Part>) -> Result<Vec<Part>, HubError> {
        for part in &parts {
            let Some(shape) = self.files.shape(&part.name) else {
                let problem = "is missing, though others of its kind are there";
                return Err(self.files.error(&part.name, problem, "is the folder complete?"));
            };
            if shape != part.shape {
                let problem = format!("is {shape:?}, but by `config.json` it is {:?}", part.shape);
                return Err(self.files.error(&part.name, problem, "are both of one model?"));
            }
        }
        Ok(parts)
    }

    /// Ok if every element of every tensor has its place.
    fn check_all_used(&self, located: &Located) -> Result<(), HubError> {
        let mut used: BTreeMap<&str, usize> = BTreeMap::new();
        for part in located.parts.values().flatten() {
            *used.entry(&part.name).or_default() += part.num_elements();
        }
        for name in self.files.names() {
            let num_elements: usize = self.files.shape(&name).unwrap_or_default().iter().product();
            match used.get(name.as_str()) {
                Some(used) if *used == num_elements => {}
                Some(used) => {
                    let problem = format!("has {num_elements} elements, of which {used} have a place");
                    return Err(self.files.error(&name, problem, "are both of one model?"));
                }
                None if self.family.is_ignored(&name, self.config.num_layers) => {}
                None if self.is_tied_head(&name) => {}
                None => {
                    let (family, _) = self.family.names();
                    let problem = format!("belongs to no parameter of this {family} model");
                    let remedy = "does `config.json` lack what it is for, such as a bias?";
                    return Err(self.files.error(&name, problem, remedy));
                }
            }
        }
        Ok(())
    }

    /// Whether it is the copy of a head that is the embedding.
    fn is_tied_head(&self, name: &str) -> bool {
        self.config.tie_embeddings && matches!(name, "lm_head.weight" | "embed_out.weight")
    }
}

impl Located {
    /// The published name of each parameter, the first of a stack.
    pub fn names(&self) -> impl Iterator<Item = (ParameterName, &[Part])> {
        self.parts.iter().map(|(name, parts)| (*name, parts.as_slice()))
    }
}

pub(crate) fn resolve(config: &ModelConfig, seq_len: usize, path: &Path) -> Result<ModelSpec, HubError> {
    let vocab_size = config.vocab_size.unwrap_or(0);
    // Rotary positions have no end.
    let positions = config.num_positions.map(|positions| positions.max(seq_len));
    let config = ModelConfig { num_positions: positions, ..config.clone() };
    config.resolve(vocab_size, seq_len, &mut Vec::new()).map_err(|error| {
        HubError::bad_file(path, format!("describes no model that can be: {error}"), "see the key")
    })
}

fn read_config(path: &Path) -> Result<Map<String, Value>, HubError> {
    let text = regular_file::read_to_string(path, MAX_CONFIG_BYTES).map_err(HubError::io("read", path))?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(values)) => Ok(values),
        Ok(_) => Err(HubError::bad_file(path, "holds no table of keys", "is it a model's?")),
        Err(error) => Err(HubError::bad_file(path, format!("is no JSON: {error}"), "is it complete?")),
    }
}

fn family_of(keys: &Keys) -> Result<Family, HubError> {
    let model_type = keys.text("model_type")?.ok_or_else(|| keys.missing("model_type"))?;
    Family::of_model_type(&model_type).ok_or_else(|| {
        let known: Vec<&str> = Family::ALL.iter().map(|family| family.names().0).collect();
        keys.unsupported("model_type", &format!("the families are {}", known.join(", ")))
    })
}

/// Takes packed tensors for what they stand for, as `quantization_config` says.
fn unpack(keys: &Keys, files: &mut TensorFiles) -> Result<(), HubError> {
    let Some(table) = keys.table("quantization_config")? else { return Ok(()) };
    let method = table.text("quant_method")?.unwrap_or_default();
    match method.as_str() {
        "mxfp4" => files.unpack_mxfp4(),
        "fp8" => {
            let block = table.sizes("weight_block_size")?.unwrap_or_else(|| vec![128, 128]);
            match block.as_slice() {
                &[rows, columns] if rows > 0 && columns > 0 => files.unpack_fp8([rows, columns]),
                _ => Err(table.unsupported("weight_block_size", "two sizes are supported")),
            }
        }
        _ => Err(table.unsupported("quant_method", "mxfp4 and fp8 with block scales are decoded")),
    }
}

/// Whether a model that is said to be tied has a head that is not its embedding: it is used, then.
fn has_own_head(
    config: &ModelConfig,
    family: Family,
    pairs: Pairs,
    files: &TensorFiles,
) -> Result<bool, HubError> {
    let heads = ["lm_head.weight", "embed_out.weight"];
    let Some(head) = heads.into_iter().find(|name| files.shape(name).is_some()) else { return Ok(false) };
    let spec = resolve(config, 1, Path::new("config.json"))?;
    let token = Role::Embedding(EmbeddingPart::Token);
    let mappings = family.tensors(&spec, pairs);
    let embedding = mappings.iter().find(|mapping| mapping.ours.role == token);
    let name = embedding.and_then(|mapping| Some(&mapping.forms.first()?.first()?.name));
    let Some(name) = name else { return Ok(false) };
    let name = if files.shape(name).is_some() { name } else { name.trim_start_matches(family.prefix()) };
    Ok(files.read(head, None)? != files.read(name, None)?)
}

fn special_ids(keys: &Keys) -> Result<SpecialIds, HubError> {
    // Some have one end, some a list of them.
    let end = match keys.sizes("eos_token_id") {
        Ok(Some(ids)) => ids,
        Ok(None) => Vec::new(),
        Err(_) => keys.size("eos_token_id")?.into_iter().collect(),
    };
    Ok(SpecialIds { begin: keys.size("bos_token_id")?, end })
}

/// Keys that say nothing about what the model computes.
fn is_harmless(key: &str) -> bool {
    const KEYS: [&str; 40] = [
        "architectures",
        "attention_dropout",
        "attn_pdrop",
        "auto_map",
        "aux_loss_alpha",
        "chat_template",
        "classifier_dropout",
        "dtype",
        "embd_pdrop",
        "ep_size",
        "hidden_dropout",
        "id2label",
        "is_decoder",
        "label2id",
        "max_window_layers",
        "model_type",
        "n_ctx",
        "num_nextn_predict_layers",
        "output_router_logits",
        "pretraining_tp",
        "qk_head_dim",
        "quantization_config",
        "resid_pdrop",
        "router_aux_loss_coef",
        "scoring_func",
        "seq_aux",
        "sep_token_id",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "task_specific_params",
        "topk_method",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "gradient_checkpointing",
        "return_dict",
        "use_return_dict",
    ];
    key.starts_with('_') || KEYS.contains(&key)
}
