//! The tensors of a model folder, of whatever files they lie in: one at a time is read, at its place
//! in the file, so that opening costs the headers alone.

mod element;
mod packed;
mod pytorch;
mod safetensors_file;
mod shards;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub use element::Element;
pub(crate) use shards::{IndexMetadata, SafetensorsWriter, ShardIndex};

use crate::HubError;

/// Every tensor of a model folder by its name.
#[derive(Debug)]
pub struct TensorFiles {
    folder: PathBuf,
    entries: BTreeMap<String, Entry>,
    /// Parts of a packed form, by the name of what they stand for.
    packed: BTreeMap<String, Packed>,
}

/// A tensor in a file.
#[derive(Debug)]
struct Entry {
    element: Element,
    shape: Vec<usize>,
    storage: Storage,
}

/// Where the bytes are.
#[derive(Debug)]
enum Storage {
    Safetensors(safetensors_file::Place),
    Pytorch(pytorch::Place),
}

/// A tensor that is stored as numbers of a few bits and their scales.
#[derive(Debug, Clone, PartialEq)]
enum Packed {
    /// `X_blocks` and `X_scales` of a stack `[experts, in, out]`.
    Mxfp4 { experts: usize, num_inputs: usize, num_outputs: usize },
    /// `X` with `X_scale_inv`, and the sides of a block.
    Fp8 { block: [usize; 2] },
}

impl TensorFiles {
    /// The tensors of the model in `folder`: `model.safetensors`, its shards with their index, or the
    /// same as PyTorch's `pytorch_model.bin`.
    ///
    /// # Errors
    /// If there is no such file, a shard is missing, or one is not what its name says.
    pub fn open(folder: &Path) -> Result<Self, HubError> {
        let mut entries = BTreeMap::new();
        for file in shards::files_of(folder)? {
            for (name, entry) in open_file(&file.path)? {
                file.check_listed(&name)?;
                if entries.insert(name.clone(), entry).is_some() {
                    let problem = format!("holds the tensor `{name}`, which another shard holds too");
                    return Err(HubError::bad_file(&file.path, problem, "was a shard copied twice?"));
                }
            }
            file.check_complete(&entries)?;
        }
        Ok(Self { folder: folder.to_path_buf(), entries, packed: BTreeMap::new() })
    }

    /// The tensors of one safetensors file, such as a file of references.
    ///
    /// # Errors
    /// If it is none.
    pub fn open_safetensors(path: &Path) -> Result<Self, HubError> {
        let entries = open_file(path)?.into_iter().collect();
        Ok(Self { folder: path.to_path_buf(), entries, packed: BTreeMap::new() })
    }

    /// Takes pairs of `X_blocks` and `X_scales` for the stack `X` that they stand for.
    ///
    /// # Errors
    /// If one of a pair is missing, or their shapes do not fit.
    pub fn unpack_mxfp4(&mut self) -> Result<(), HubError> {
        let names: Vec<String> =
            self.entries.keys().filter_map(|name| Some(name.strip_suffix("_blocks")?.to_owned())).collect();
        for name in names {
            let blocks = &self.entries[&format!("{name}_blocks")].shape;
            let scales = self.entries.get(&format!("{name}_scales")).map(|entry| &entry.shape);
            match (blocks.as_slice(), scales.map(Vec::as_slice)) {
                (&[e, out, n, half], Some(&[e2, out2, n2]))
                    if (e, out, n) == (e2, out2, n2) && 2 * half == packed::MXFP4_BLOCK =>
                {
                    let num_inputs = n * packed::MXFP4_BLOCK;
                    let packed = Packed::Mxfp4 { experts: e, num_inputs, num_outputs: out };
                    self.packed.insert(name, packed);
                }
                _ => {
                    let problem = format!("has blocks {blocks:?} and scales {scales:?}");
                    return Err(self.error(&name, problem, "MXFP4 has [e, out, n, 16] and [e, out, n]"));
                }
            }
        }
        Ok(())
    }

    /// Takes each tensor of 8-bit numbers with its `X_scale_inv` for what they stand for together.
    ///
    /// # Errors
    /// If a scale is missing, or its shape does not fit.
    pub fn unpack_fp8(&mut self, block: [usize; 2]) -> Result<(), HubError> {
        for (name, entry) in &self.entries {
            if entry.element != Element::F8E4m3 {
                continue;
            }
            let scales = self.entries.get(&format!("{name}_scale_inv"));
            let expected = match entry.shape.as_slice() {
                [rows, columns] => vec![rows.div_ceil(block[0]), columns.div_ceil(block[1])],
                _ => Vec::new(),
            };
            if scales.is_none_or(|scales| scales.shape != expected) {
                let problem = format!("is of 8 bits, without scales `{name}_scale_inv` {expected:?}");
                return Err(self.error(name, problem, "take the file with its scales"));
            }
            self.packed.insert(name.clone(), Packed::Fp8 { block });
        }
        Ok(())
    }

    /// Names of the tensors, each packed one once.
    pub fn names(&self) -> BTreeSet<String> {
        let is_part = |name: &String| {
            self.packed.iter().any(|(packed, form)| match form {
                Packed::Mxfp4 { .. } => {
                    name.strip_suffix("_blocks").or(name.strip_suffix("_scales")) == Some(packed)
                }
                Packed::Fp8 { .. } => name.strip_suffix("_scale_inv") == Some(packed),
            })
        };
        let plain = self.entries.keys().filter(|name| !is_part(name)).cloned();
        plain.chain(self.packed.keys().cloned()).collect()
    }

    /// Shape of a tensor; `None` if there is none of this name.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match self.packed.get(name) {
            Some(Packed::Mxfp4 { experts, num_inputs, num_outputs }) => {
                Some(vec![*experts, *num_inputs, *num_outputs])
            }
            Some(Packed::Fp8 { .. }) | None => Some(self.entries.get(name)?.shape.clone()),
        }
    }

    /// The matrix or vector number `item` of a stack, or the whole tensor, row by row.
    ///
    /// # Errors
    /// If there is none, it cannot be read, or one of its values is no finite number.
    pub fn read(&self, name: &str, item: Option<usize>) -> Result<Vec<f32>, HubError> {
        let values = match self.packed.get(name) {
            Some(Packed::Mxfp4 { num_inputs, .. }) => {
                let item = item.unwrap_or(0);
                let blocks = self.bytes(&format!("{name}_blocks"), Some(item))?;
                let scales = self.bytes(&format!("{name}_scales"), Some(item))?;
                packed::mxfp4(&blocks, &scales, *num_inputs)
            }
            Some(Packed::Fp8 { block }) => {
                let scales = self.read_plain(&format!("{name}_scale_inv"), None)?;
                let columns = self.shape(name).and_then(|shape| shape.last().copied()).unwrap_or(1);
                packed::block_scaled_fp8(&self.bytes(name, None)?, &scales, columns, *block)
            }
            None => self.read_plain(name, item)?,
        };
        match values.iter().position(|value| !value.is_finite()) {
            Some(place) => {
                let problem = format!("holds {} at place {place}", values[place]);
                Err(self.error(name, problem, "the file is damaged, or the model has diverged"))
            }
            None => Ok(values),
        }
    }

    /// All values as integers.
    ///
    /// # Errors
    /// As [`TensorFiles::read`], and if they are no integers.
    pub fn read_integers(&self, name: &str) -> Result<Vec<i64>, HubError> {
        let entry = self.entry(name)?;
        if entry.element != Element::I64 {
            return Err(self.error(name, format!("is {:?}", entry.element), "expected 64-bit integers"));
        }
        let bytes = self.bytes(name, None)?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect())
    }

    fn read_plain(&self, name: &str, item: Option<usize>) -> Result<Vec<f32>, HubError> {
        let element = self.entry(name)?.element;
        if matches!(element, Element::F8E4m3 | Element::U8) {
            let problem = format!("is packed as {element:?}");
            let remedy = "`config.json` should say how, in `quantization_config.quant_method`";
            return Err(self.error(name, problem, remedy));
        }
        Ok(element.decode(&self.bytes(name, item)?))
    }

    fn bytes(&self, name: &str, item: Option<usize>) -> Result<Vec<u8>, HubError> {
        let entry = self.entry(name)?;
        let all = entry.shape.iter().product::<usize>() * entry.element.num_bytes();
        let range = match item {
            Some(item) => {
                let len = all / entry.shape.first().copied().unwrap_or(1).max(1);
                item * len..(item + 1) * len
            }
            None => 0..all,
        };
        match &entry.storage {
            Storage::Safetensors(place) => place.read(range),
            Storage::Pytorch(place) => place.read(range),
        }
    }

    fn entry(&self, name: &str) -> Result<&Entry, HubError> {
        self.entries.get(name).ok_or_else(|| self.error(name, "is missing", "is the folder complete?"))
    }

    /// The error of a tensor here.
    pub fn error(&self, name: &str, problem: impl Into<String>, remedy: impl Into<String>) -> HubError {
        HubError::Tensor {
            path: self.folder.clone(),
            name: name.to_owned(),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }
}

fn open_file(path: &Path) -> Result<Vec<(String, Entry)>, HubError> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("bin" | "pt" | "pth") => pytorch::open(path),
        _ => safetensors_file::open(path),
    }
}
