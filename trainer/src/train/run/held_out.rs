//! What a run measures on text that it does not train on.

use std::sync::Arc;

use switchyard_datasets::TokenStore;

use super::Run;
use crate::TrainError;
use crate::evaluate::{Evaluation, EvaluationSettings, evaluate_sources, evaluate_unless};
use crate::metrics::{DocumentLoss, SplitLosses, document_loss_lines};
use crate::train::test_split;

impl Run<'_> {
    /// The loss on the validation split and, of several sources, on that of each.
    pub(super) fn evaluate_validation(
        &self,
        max_tokens: Option<u64>,
    ) -> Result<Option<Evaluation>, TrainError> {
        let Some(mut evaluation) = self.evaluate(&self.dataset.validation, max_tokens)? else {
            return Ok(None);
        };
        let sources = &self.dataset.sources;
        if sources.len() > 1 {
            let settings = self.evaluation_settings(max_tokens);
            let model = self.parts.model.get();
            let stores: Vec<_> = sources.iter().map(|source| Some(&source.validation)).collect();
            match evaluate_sources(self.stop, model, &stores, &settings, &self.device) {
                Err(TrainError::Interrupted) => return Ok(None),
                found => evaluation.sources = found?,
            }
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
            let Some(evaluation) = self.evaluate(test_split(&self.dataset)?, None)? else { return Ok(false) };
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

    fn evaluate(
        &self,
        store: &Arc<TokenStore>,
        max_tokens: Option<u64>,
    ) -> Result<Option<Evaluation>, TrainError> {
        let settings = self.evaluation_settings(max_tokens);
        match evaluate_unless(self.stop, self.parts.model.get(), store, &settings, &self.device) {
            Err(TrainError::Interrupted) => Ok(None),
            other => other.map(Some),
        }
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
