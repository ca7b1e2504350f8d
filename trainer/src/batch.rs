//! From host token batches to the device: the run's only upload.

use burn::tensor::{Device, Int, Tensor, TensorData};
use switchyard_datasets::TokenBatch;

use crate::model::ModelInput;

/// One micro-batch on the device, with its targets.
#[derive(Debug, Clone)]
pub struct DeviceBatch {
    /// What the model reads.
    pub input: ModelInput,
    /// `[batch * seq]`: the token that follows each input token.
    pub target_ids_t: Tensor<1, Int>,
}

impl DeviceBatch {
    /// `batch` copied to `device`.
    pub fn upload(batch: TokenBatch, device: &Device) -> Self {
        let shape = [batch.num_sequences, batch.seq_len];
        let matrix = |ids: Vec<i32>| Tensor::<2, Int>::from_data(TensorData::new(ids, shape), device);
        Self {
            input: ModelInput {
                input_ids_bs: matrix(batch.input_ids),
                segment_ids_bs: batch.segment_ids.map(matrix),
            },
            target_ids_t: matrix(batch.target_ids).flatten(0, 1),
        }
    }
}
