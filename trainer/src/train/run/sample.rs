//! The text at the end of a run.

use std::io;

use switchyard_model::Transformer;

use super::Run;
use crate::TrainError;
use crate::generate::{GenerationSettings, generate};
use crate::sampling::SamplingSettings;

impl Run<'_> {
    /// Generates the text that the configuration asks for, and writes it to `sample.txt`.
    pub(super) fn write_sample(&self, model: &Transformer) -> Result<(), TrainError> {
        let sample = &self.plan.sample;
        if sample.num_tokens == 0 {
            return Ok(());
        }
        let sampling = SamplingSettings {
            top_k: sample.top_k,
            top_p: sample.top_p,
            ..SamplingSettings::new(sample.temperature)
        };
        let settings = GenerationSettings {
            prompt: sample.prompt.clone(),
            seed: self.config.seed,
            ..GenerationSettings::new(sample.num_tokens, sampling)
        };
        let mut text = sample.prompt.clone().unwrap_or_default();
        generate(model, &self.dataset.tokenizer, &settings, &self.device, |piece| {
            text.push_str(piece);
            if self.is_asked_to_stop() { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
        })?;
        self.folder.write_sample(&text)?;
        Ok(())
    }
}
