//! From host token batches to the device: the run's only upload.

use burn::tensor::{Device, Int, Tensor, TensorData};
use switchyard_datasets::TokenBatch;
use switchyard_model::{IGNORED_TARGET, ModelInput};

/// One micro-batch on the device, with its targets.
#[derive(Debug, Clone)]
pub struct DeviceBatch {
    /// What the model reads.
    pub input: ModelInput,
    /// `[batch * seq]`: the token that follows each input token, or
    /// [`IGNORED_TARGET`] where it does not count.
    pub target_ids_t: Tensor<1, Int>,
}

impl DeviceBatch {
    /// `batch` copied to `device`.
    pub fn upload(batch: TokenBatch, device: &Device) -> Self {
        let shape = [batch.num_sequences, batch.seq_len];
        let mut target_ids = batch.target_ids;
        let num_targets = target_ids.len();
        for (target, counts) in target_ids.iter_mut().zip(batch.target_mask.iter().flatten()) {
            *target = if *counts { *target } else { IGNORED_TARGET };
        }
        let input = ModelInput::upload(batch.input_ids, batch.segment_ids, shape, device);
        Self {
            input: match &batch.row_lens {
                Some(lens) => input.with_padding(lens),
                None => input,
            },
            target_ids_t: Tensor::from_data(TensorData::new(target_ids, [num_targets]), device),
        }
    }
}
