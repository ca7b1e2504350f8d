//! Tokens after given tokens, one by one: what a server of completions needs.

use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;

use burn::module::Module;
use burn::tensor::Device;
use switchyard_datasets::Tokenizer;
use switchyard_model::Transformer;

use crate::TrainError;
use crate::checkpoint::Checkpoint;
use crate::device;
use crate::generate::{Context, Engine};
use crate::sampling::SamplingSettings;
use crate::token_scores::{ToScore, TokenScore, check_causal, token_scores};

/// A trained model on its device, ready to go on with text.
#[derive(Debug)]
pub struct LoadedModel {
    model: Transformer,
    tokenizer: Tokenizer,
    device: Device,
}

impl LoadedModel {
    /// The model of `checkpoint` on the device that its configuration names.
    ///
    /// # Errors
    /// [`TrainError`] if the device is not there, the checkpoint cannot be read, or the model's
    /// routers need later tokens.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, TrainError> {
        let device = device::select(&checkpoint.config.device)?;
        let model = checkpoint.model(&device)?.valid();
        let tokenizer = checkpoint.tokenizer.clone();
        check_causal(model.spec())?;
        Ok(Self { model, tokenizer, device })
    }

    /// What makes tokens of text.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Number of token ids.
    pub fn vocab_size(&self) -> usize {
        self.model.spec().vocab_size
    }

    /// Tokens that the model sees at a time.
    pub fn max_seq_len(&self) -> usize {
        self.model.spec().max_seq_len
    }

    /// As [`token_scores`].
    ///
    /// # Errors
    /// As [`token_scores`].
    pub fn scores(
        &self,
        requests: &[ToScore],
        num_top: usize,
        stop: &AtomicBool,
    ) -> Result<Vec<Vec<TokenScore>>, TrainError> {
        token_scores(&self.model, requests, num_top, &self.device, stop)
    }

    /// As [`complete`].
    ///
    /// # Errors
    /// As [`complete`].
    pub fn complete(
        &self,
        prompt: &[u32],
        settings: &CompletionSettings,
        on_token: impl FnMut(u32, &[f32]) -> ControlFlow<()>,
    ) -> Result<(), TrainError> {
        complete(&self.model, prompt, settings, &self.device, on_token)
    }
}

/// How tokens are chosen, and how many at most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CompletionSettings {
    /// Tokens at most.
    pub max_tokens: usize,
    /// Seed of the choice of tokens.
    pub seed: u64,
    /// How the next token is chosen.
    pub sampling: SamplingSettings,
}

/// Chooses tokens after `prompt`, as [`crate::generate::generate`] does, and hands each to
/// `on_token` with the scores of all tokens in its place, `[vocab_size]`, before any penalty, until
/// that breaks. What earlier tokens left in the layers is kept. Once the model's positions are used
/// up, the oldest tokens fall out of its sight.
///
/// # Errors
/// If the device fails, or every score is NaN or infinite.
///
/// # Panics
/// If `prompt` is empty, or the model is not causal, see [`crate::token_scores::check_causal`].
pub fn complete(
    model: &Transformer,
    prompt: &[u32],
    settings: &CompletionSettings,
    device: &Device,
    mut on_token: impl FnMut(u32, &[f32]) -> ControlFlow<()>,
) -> Result<(), TrainError> {
    assert!(!prompt.is_empty(), "a prompt without tokens");
    let model = model.valid();
    let engine = Engine::new(&model, device);
    let mut context = Context::new(prompt.to_vec(), settings.max_tokens);
    for index in 0..settings.max_tokens as u64 {
        let scores_v = engine.scores_after(&mut context)?;
        let token = context.choose(&scores_v, index, &settings.sampling, settings.seed)?;
        if on_token(token, &scores_v).is_break() {
            break;
        }
    }
    Ok(())
}
