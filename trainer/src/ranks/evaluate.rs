//! An evaluation of which each rank computes some of the batches.

use std::sync::Arc;
use std::time::Instant;

use burn::tensor::Device;
use switchyard_datasets::TokenStore;
use switchyard_model::Transformer;

use super::Ranks;
use crate::TrainError;
use crate::evaluate::{Evaluation, EvaluationSettings, evaluate_batches};

impl Ranks {
    /// The loss of `model` on `store`, with the bits of [`crate::evaluate::evaluate`] on each rank. All
    /// ranks call it at once.
    ///
    /// # Errors
    /// As [`crate::evaluate::evaluate_unless`] if on any rank; [`TrainError::Comm`].
    pub(crate) fn evaluate(
        &self,
        model: &Transformer,
        store: &Arc<TokenStore>,
        settings: &EvaluationSettings,
        device: &Device,
    ) -> Result<Evaluation, TrainError> {
        let started = Instant::now();
        let own = evaluate_batches(&self.stop, model, store, settings, device, |count| self.share_of(count));
        let batches = if self.is_alone() { own? } else { self.agree(own)?.into_iter().flatten().collect() };
        Evaluation::of(batches, store, settings, started)
    }
}
