//! An evaluation of which each rank computes some of the batches.

use std::sync::Arc;
use std::time::Instant;

use burn::tensor::Device;
use switchyard_datasets::TokenStore;
use switchyard_model::Transformer;

use super::Ranks;
use crate::TrainError;
use crate::evaluate::{BatchEvaluation, Evaluation, EvaluationSettings, evaluate_batches, evaluate_unless};

/// Batches after which ranks ask each other whether to stop.
const LOOK_EVERY: usize = 8;

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
        if self.is_alone() {
            return evaluate_unless(&self.stop, model, store, settings, device);
        }
        let started = Instant::now();
        let batches = self.evaluate_share(model, store, settings, device)?;
        Evaluation::of(batches, store, settings, started)
    }

    /// The batches of all ranks, of which this one computes its share.
    fn evaluate_share(
        &self,
        model: &Transformer,
        store: &Arc<TokenStore>,
        settings: &EvaluationSettings,
        device: &Device,
    ) -> Result<Vec<BatchEvaluation>, TrainError> {
        let (mut num_looks, mut all_have_ended, mut is_one_short) = (0, false, false);
        let mut look = || {
            num_looks += 1;
            // Every rank looks as often: all ask at once.
            if num_looks % LOOK_EVERY != 1 {
                return Ok(());
            }
            let found = self.agree_and_look(Ok(()));
            all_have_ended = !matches!(&found, Ok((_, false)));
            if found?.1 { Err(TrainError::Interrupted) } else { Ok(()) }
        };
        let own = evaluate_batches(&mut look, model, store, settings, device, |count| {
            let share = self.share_of(count);
            is_one_short = share.len() < count.div_ceil(self.number());
            share
        });
        let own = own.and_then(|own| {
            if is_one_short && model.is_over_ranks() {
                // For the others, whose rows may need this rank's experts.
                evaluate_batches(&mut look, model, store, settings, device, |_| 0..1)?;
            } else if is_one_short {
                look()?;
            }
            Ok(own)
        });
        match own {
            own if all_have_ended => own,
            // The others are in the middle of a pass.
            Err(error) if model.is_over_ranks() => self.comm.abort(&format!("error: {error}")),
            own => Ok(self.agree(own)?.into_iter().flatten().collect()),
        }
    }
}
