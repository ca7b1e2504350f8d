//! The dense model that a mixture begins as: of a run here, or a published one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use switchyard_datasets::Tokenizer;
use switchyard_hub::{PublishedModel, published_folder};
use switchyard_model::{ModelSpec, ParameterName};

use super::DenseModel;
use crate::TrainError;
use crate::checkpoint::{Checkpoint, find_checkpoint};
use crate::model_ids::tokenizer_of_published;

/// A trained dense model, read.
#[derive(Debug)]
pub struct DenseSource {
    pub(super) path: PathBuf,
    pub(super) spec: ModelSpec,
    pub(super) tokenizer: Option<Tokenizer>,
    /// Steps that it was trained for; 0 if that is not known.
    pub(super) step: u64,
    /// What it was trained on, if that is known.
    pub(super) data_hash: Option<String>,
    parameters: BTreeMap<ParameterName, TensorData>,
}

impl DenseSource {
    /// The model in `path`: a published one's folder, a run's or a checkpoint's. `seq_len` is that of
    /// the mixture.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn read(path: &Path, seq_len: usize) -> Result<Self, TrainError> {
        if let Some(folder) = published_folder(path)? {
            return Self::published(&folder, seq_len);
        }
        let checkpoint = Checkpoint::read(&find_checkpoint(path)?)?;
        Ok(Self {
            parameters: checkpoint.parameters()?,
            path: checkpoint.path,
            spec: checkpoint.plan.model,
            tokenizer: Some(checkpoint.tokenizer),
            step: checkpoint.state.step,
            data_hash: Some(checkpoint.state.data_hash),
        })
    }

    fn published(path: &Path, seq_len: usize) -> Result<Self, TrainError> {
        let published = PublishedModel::open(path)?;
        let spec = published.spec(seq_len)?;
        let located = published.locate(&spec)?;
        let mut parameters = BTreeMap::new();
        for (name, _) in located.names() {
            let values = published.values(&located, name)?;
            let shape = published.shape(&located, name);
            parameters.insert(name, TensorData::new(values, shape));
        }
        let tokenizer = tokenizer_of_published(path)?;
        let path = path.to_path_buf();
        Ok(Self { path, spec, tokenizer, step: 0, data_hash: None, parameters })
    }

    pub(super) fn model(&self) -> DenseModel<'_> {
        DenseModel { spec: &self.spec, parameters: &self.parameters }
    }
}
