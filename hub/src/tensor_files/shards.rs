//! Which files a model's tensors lie in: one, or shards with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::{Deserialize, Serialize};
use switchyard_ground::regular_file;

use super::{Element, Entry};
use crate::HubError;

const MAX_INDEX_BYTES: u64 = 256 << 20;
/// The names of a single file, and of the index of shards.
const SINGLE_AND_INDEX: [[&str; 2]; 2] = [
    ["model.safetensors", "model.safetensors.index.json"],
    ["pytorch_model.bin", "pytorch_model.bin.index.json"],
];

/// A file, and the tensors that an index says are in it.
pub(super) struct ModelFile {
    pub(super) path: PathBuf,
    /// The index and what it lists; `None` for a single file.
    listed: Option<(PathBuf, BTreeSet<String>)>,
}

/// `model.safetensors.index.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ShardIndex {
    #[serde(default)]
    pub(crate) metadata: IndexMetadata,
    pub(crate) weight_map: BTreeMap<String, String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct IndexMetadata {
    #[serde(default)]
    pub(crate) total_size: f64,
}

/// The files of the model in `folder`.
pub(super) fn files_of(folder: &Path) -> Result<Vec<ModelFile>, HubError> {
    for [single, index] in SINGLE_AND_INDEX {
        if folder.join(index).exists() {
            return shards_of(folder, &folder.join(index));
        }
        if folder.join(single).exists() {
            return Ok(vec![ModelFile { path: folder.join(single), listed: None }]);
        }
    }
    let remedy = "name the folder that holds `config.json` beside `model.safetensors`, or beside its shards \
                  and their index";
    Err(HubError::bad_file(folder, "holds no model", remedy))
}

fn shards_of(folder: &Path, index: &Path) -> Result<Vec<ModelFile>, HubError> {
    let text = regular_file::read_to_string(index, MAX_INDEX_BYTES).map_err(HubError::io("read", index))?;
    let ShardIndex { weight_map, .. } = serde_json::from_str(&text)
        .map_err(|error| HubError::bad_file(index, format!("is no index: {error}"), "is it complete?"))?;
    let mut shards: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (tensor, file) in weight_map {
        shards.entry(file).or_default().insert(tensor);
    }
    let shard = |(name, listed): (String, BTreeSet<String>)| {
        let path = Path::new(&name);
        // An index from elsewhere must not lead outside its folder.
        if path.components().count() != 1 || path.is_absolute() || name == ".." {
            let problem = format!("names the file `{name}`, which is not beside it");
            return Err(HubError::bad_file(index, problem, "shards lie in the folder of the index"));
        }
        let path = folder.join(path);
        if !path.exists() {
            return Err(HubError::bad_file(&path, "is missing", format!("`{}` lists it", index.display())));
        }
        Ok(ModelFile { path, listed: Some((index.to_path_buf(), listed)) })
    };
    shards.into_iter().map(shard).collect()
}

impl ModelFile {
    /// Ok if the index, if there is one, lists the tensor for this file.
    pub(super) fn check_listed(&self, tensor: &str) -> Result<(), HubError> {
        match &self.listed {
            Some((index, listed)) if !listed.contains(tensor) => {
                let problem = format!("holds the tensor `{tensor}`");
                let remedy = format!("`{}` does not list it there: are they of one model?", index.display());
                Err(HubError::bad_file(&self.path, problem, remedy))
            }
            _ => Ok(()),
        }
    }

    /// Ok if every tensor that the index lists for this file was in it.
    pub(super) fn check_complete(&self, found: &BTreeMap<String, Entry>) -> Result<(), HubError> {
        let Some((index, listed)) = &self.listed else { return Ok(()) };
        match listed.iter().find(|name| !found.contains_key(*name)) {
            Some(name) => {
                let problem = format!("lacks the tensor `{name}`");
                let remedy = format!("`{}` lists it there: are they of one model?", index.display());
                Err(HubError::bad_file(&self.path, problem, remedy))
            }
            None => Ok(()),
        }
    }
}

/// Writes one safetensors file, its tensors one after another.
pub(crate) struct SafetensorsWriter {
    path: PathBuf,
    out: BufWriter<File>,
}

impl SafetensorsWriter {
    /// A file at `path` for tensors of these names and shapes, to be written in this order.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn create(
        path: &Path,
        element: Element,
        tensors: &[(String, Vec<usize>)],
    ) -> Result<Self, HubError> {
        let mut start = 0;
        let infos = tensors.iter().map(|(name, shape)| {
            let end = start + shape.iter().product::<usize>() * element.num_bytes();
            let info = TensorInfo { dtype: dtype(element), shape: shape.clone(), data_offsets: (start, end) };
            start = end;
            (name.clone(), info)
        });
        let format = Some([("format".to_owned(), "pt".to_owned())].into());
        let metadata = Metadata::new(format, infos.collect())
            .map_err(|error| HubError::bad_file(path, format!("cannot be laid out: {error}"), "report it"))?;
        let mut json = serde_json::to_vec(&metadata)
            .map_err(|error| HubError::bad_file(path, format!("cannot be laid out: {error}"), "report it"))?;
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut out = BufWriter::new(File::create(path).map_err(HubError::io("create", path))?);
        out.write_all(&(json.len() as u64).to_le_bytes())
            .and_then(|()| out.write_all(&json))
            .map_err(HubError::io("write", path))?;
        Ok(Self { path: path.to_path_buf(), out })
    }

    /// The next tensor.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.out.write_all(bytes).map_err(HubError::io("write", &self.path))
    }

    /// The file, on the disk.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn finish(self) -> Result<(), HubError> {
        let path = self.path;
        let file = self.out.into_inner().map_err(|error| HubError::io("write", &path)(error.into_error()))?;
        file.sync_all().map_err(HubError::io("write", &path))
    }
}

fn dtype(element: Element) -> Dtype {
    match element {
        Element::F64 => Dtype::F64,
        Element::F32 => Dtype::F32,
        Element::F16 => Dtype::F16,
        Element::Bf16 => Dtype::BF16,
        Element::F8E4m3 => Dtype::F8_E4M3,
        Element::U8 => Dtype::U8,
        Element::I64 => Dtype::I64,
    }
}
