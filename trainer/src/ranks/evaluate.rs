//! An evaluation of which each rank computes some of the batches.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::tensor::Device;
use switchyard_datasets::TokenStore;
use switchyard_model::Transformer;

use super::Ranks;
use crate::TrainError;
use crate::evaluate::{BatchEvaluation, Evaluation, EvaluationSettings, evaluate_batches};

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
        let batches = if self.is_alone() {
            evaluate_batches(&self.stop, model, store, settings, device, |count| self.share_of(count))?
        } else if model.is_over_ranks() {
            self.agree(self.evaluate_in_step(model, store, settings, device))?.concat()
        } else {
            let own =
                evaluate_batches(&self.stop, model, store, settings, device, |count| self.share_of(count));
            self.agree(own)?.concat()
        };
        Evaluation::of(batches, store, settings, started)
    }

    /// This rank's batches where a pass is a collective: every rank makes as many, and none leaves in
    /// the middle.
    fn evaluate_in_step(
        &self,
        model: &Transformer,
        store: &Arc<TokenStore>,
        settings: &EvaluationSettings,
        device: &Device,
    ) -> Result<Vec<BatchEvaluation>, TrainError> {
        self.all_or_none(match self.stop.load(Ordering::SeqCst) {
            true => Err(TrainError::Interrupted),
            false => Ok(()),
        })?;
        let never = AtomicBool::new(false);
        let mut is_one_short = false;
        let own = evaluate_batches(&never, model, store, settings, device, |count| {
            let share = self.share_of(count);
            is_one_short = share.len() < count.div_ceil(self.number());
            share
        });
        let all = own.and_then(|own| {
            if is_one_short {
                // For the others, whose rows may need this rank's experts.
                evaluate_batches(&never, model, store, settings, device, |_| 0..1)?;
            }
            Ok(own)
        });
        all.or_else(|error| self.comm.abort(&format!("error: {error}")))
    }
}
