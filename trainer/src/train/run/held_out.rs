//! What a run measures on text that it does not train on.

use std::sync::Arc;

use switchyard_datasets::TokenStore;

use super::Run;
use crate::TrainError;
use crate::evaluate::{Evaluation, EvaluationSettings, evaluate_sources};
use crate::metrics::{DocumentLoss, SplitLosses, document_loss_lines};
use crate::ranks::{EvaluatedSplit, Order};
use crate::train::test_split;

impl Run<'_> {
    /// The loss on the validation split and, of several sources, on that of each.
    pub(super) fn evaluate_validation(
        &self,
        max_tokens: Option<u64>,
    ) -> Result<Option<Evaluation>, TrainError> {
        let split = EvaluatedSplit::Validation;
        let settings = self.evaluation_settings(max_tokens);
        let Some(mut evaluation) =
            unless_interrupted(self.evaluate(split, &self.dataset.validation, &settings))?
        else {
            return Ok(None);
        };
        let sources = &self.dataset.sources;
        if sources.len() > 1 {
            let stores: Vec<_> = sources.iter().map(|source| Some(&source.validation)).collect();
            let found = evaluate_sources(&stores, &settings, |source, store, settings| {
                self.evaluate(EvaluatedSplit::ValidationOf(source), store, settings)
            });
            let Some(found) = unless_interrupted(found)? else { return Ok(None) };
            evaluation.sources = found;
            evaluation.secs += evaluation.sources.values().map(|found| found.secs).sum::<f64>();
        }
        Ok(Some(evaluation))
    }

    /// Remember the loss of each document, for [`Self::measure_held_out_text`].
    pub(super) fn keep_documents(&mut self, evaluation: &mut Evaluation) {
        let documents = evaluation.documents.take().filter(|_| evaluation.whole_split);
        self.validation_documents = documents.map(|documents| (self.parts.state.step, documents));
    }

    /// The last model's loss on the test split, if it is asked for, and on each document. False if
    /// the run is asked to stop before all is done.
    pub(super) fn measure_held_out_text(&mut self) -> Result<bool, TrainError> {
        let step = self.parts.state.step;
        let mut splits = Vec::new();
        let mut keep = |split: &str, documents: Option<Vec<DocumentLoss>>| {
            splits.extend(documents.map(|documents| SplitLosses { split: split.to_owned(), documents }));
        };
        match self.validation_documents.take().filter(|(of, _)| *of == step) {
            Some((_, documents)) => keep("validation", Some(documents)),
            None if self.dataset.validation.num_documents() == 0 => {}
            // The process that made the evaluation is gone.
            None => match self.evaluate_validation(None)? {
                Some(evaluation) => keep("validation", evaluation.documents),
                None => return Ok(false),
            },
        }
        if self.plan.evaluation.test_at_end {
            let (store, settings) = (test_split(&self.dataset)?, self.evaluation_settings(None));
            let found = self.evaluate(EvaluatedSplit::Test, store, &settings);
            let Some(evaluation) = unless_interrupted(found)? else { return Ok(false) };
            if !evaluation.cross_entropy_nats.is_finite() {
                return Err(TrainError::NoNumbers { what: "the loss on the test split is NaN or infinite" });
            }
            self.manifest.final_test_cross_entropy_nats = Some(evaluation.cross_entropy_nats);
            keep("test", evaluation.documents);
        }
        if !splits.is_empty() {
            let written = self.folder.write_document_losses(&document_loss_lines(&splits));
            self.tolerate(written.map_err(TrainError::from))?;
        }
        Ok(true)
    }

    /// The loss on a split, whose text is in `store`, which all ranks find together.
    fn evaluate(
        &self,
        split: EvaluatedSplit,
        store: &Arc<TokenStore>,
        settings: &EvaluationSettings,
    ) -> Result<Evaluation, TrainError> {
        let ranks = &self.parts.ranks;
        ranks.order(&Order::Evaluate { split, settings: *settings })?;
        ranks.evaluate(self.parts.model.get(), store, settings, &self.device)
    }

    fn evaluation_settings(&self, max_tokens: Option<u64>) -> EvaluationSettings {
        EvaluationSettings {
            seq_len: self.plan.seq_len,
            sequences_per_batch: self.plan.sequences_per_micro_batch,
            max_tokens,
            stride: None,
            mask_documents: self.config.data.mask_documents,
            carries_state: self.plan.carries_state,
            // Only what is found at the end is kept.
            by_document: self.is_at_its_end() && max_tokens.is_none(),
        }
    }
}

/// What was found; `None` if the run is asked to stop before it is.
fn unless_interrupted<T>(found: Result<T, TrainError>) -> Result<Option<T>, TrainError> {
    match found {
        Err(TrainError::Interrupted) => Ok(None),
        other => other.map(Some),
    }
}
