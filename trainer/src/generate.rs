//! Text from a trained model, token by token.

use burn::module::Module;
use burn::tensor::Device;
use switchyard_datasets::Tokenizer;
use switchyard_experts::RouterSpec;
use switchyard_ground::printable::excerpt;
use switchyard_model::{ModelInput, ModelSpec, Pass, Transformer, random};
pub use switchyard_router::GenerationRule;
use switchyard_router::Selection;

use crate::sampling::{SamplingSettings, sample_token};
use crate::{DeviceReadError, TrainError};

/// A request for text.
#[derive(Debug, Clone)]
pub struct GenerationSettings {
    /// Text to continue; absent is a line break, or the end-of-document mark where text has no
    /// tokens.
    pub prompt: Option<String>,
    /// Tokens to generate.
    pub num_tokens: usize,
    /// Seed of the choice of tokens.
    pub seed: u64,
    /// How the next token is chosen.
    pub sampling: SamplingSettings,
    /// How routers that need later tokens do without; absent is what the model's configuration
    /// says.
    pub routing: Option<GenerationRule>,
}

/// Ok if [`generate`] can begin: for a caller that shows the prompt first.
///
/// # Errors
/// [`TrainError`] if the model's routers need later tokens and no rule says how they do without, or
/// the prompt is refused.
pub fn check(
    model: &Transformer,
    tokenizer: &Tokenizer,
    settings: &GenerationSettings,
) -> Result<(), TrainError> {
    check_causal(model.spec(), settings.routing)?;
    prompt_ids(tokenizer, settings.prompt.as_deref()).map(drop)
}

/// Continue the prompt, handing text to `on_text` after each token: whole characters, or nothing
/// while one is not whole. The prompt is not handed over. Once the model's positions are used up,
/// the oldest tokens fall out of its sight.
///
/// # Errors
/// [`TrainError`] of [`check`], if the device fails, the model's numbers are none, or `on_text`
/// returns an error: a closed pipe, or [`std::io::ErrorKind::Interrupted`] to stop with
/// [`TrainError::Interrupted`].
pub fn generate(
    model: &Transformer,
    tokenizer: &Tokenizer,
    settings: &GenerationSettings,
    device: &Device,
    mut on_text: impl FnMut(&str) -> std::io::Result<()>,
) -> Result<(), TrainError> {
    check_causal(model.spec(), settings.routing)?;
    let model = model.valid();
    let mut context = prompt_ids(tokenizer, settings.prompt.as_deref())?;
    let mut decoder = tokenizer.decode_stream();
    if settings.prompt.is_some() {
        // What stands between the prompt's last token and the first new one, such as a space,
        // depends on both.
        for token in &context {
            decoder.push(*token)?;
        }
    }
    let mut write = |text: &str| {
        on_text(text).map_err(|source| match source.kind() {
            std::io::ErrorKind::Interrupted => TrainError::Interrupted,
            _ => TrainError::Output { source },
        })
    };
    for index in 0..settings.num_tokens {
        let logits = next_token_logits(&model, &context, device)?;
        if !logits.iter().any(|logit| logit.is_finite()) {
            return Err(TrainError::NoNumbers { what: "every score of the next token is NaN or infinite" });
        }
        let uniform = random::uniform(settings.seed, "generate", index as u64);
        let token = sample_token(&logits, &settings.sampling, uniform);
        context.push(token);
        write(&decoder.push(token)?)?;
    }
    let rest = decoder.finish()?;
    if rest.is_empty() { Ok(()) } else { write(&rest) }
}

/// Ok if no token's experts depend on later tokens, or `routing` or the configuration says how to
/// do without them.
fn check_causal(spec: &ModelSpec, routing: Option<GenerationRule>) -> Result<(), TrainError> {
    let obstacle = |(_, RouterSpec { key, config }): (usize, &RouterSpec)| match &config.selection {
        Selection::ExpertChoice(chosen) if chosen.generation.or(routing).is_none() => Some(format!(
            "`{key}.selection.expert_choice.generation` is not set, and experts that take their best tokens need the later \
             ones too. Set it to \"top_k\", with which each token takes its `top_k` best experts (for a model that is \
             trained already, `switchyard generate --routing top_k`)"
        )),
        Selection::Soft(_) => Some(format!(
            "`{key}.selection.soft` mixes later tokens into every output, and there is no way to do without them. To \
             generate, train with another selection"
        )),
        _ => None,
    };
    let first = spec.routers().find_map(obstacle);
    first.map_or(Ok(()), |reason| Err(TrainError::NotCausal { reason }))
}

/// The tokens that a generation goes on from.
///
/// # Errors
/// [`TrainError::Prompt`] if a given prompt holds no token that `tokenizer` knows.
pub fn prompt_ids(tokenizer: &Tokenizer, prompt: Option<&str>) -> Result<Vec<u32>, TrainError> {
    let Some(prompt) = prompt else {
        let line_break = tokenizer.encode("\n").unwrap_or_default();
        let fallback = vec![tokenizer.end_of_document().unwrap_or(0)];
        return Ok(if line_break.is_empty() { fallback } else { line_break });
    };
    let refused = |reason: String| TrainError::Prompt { prompt: excerpt(prompt, 60), reason };
    let ids = tokenizer.encode(prompt).map_err(|error| refused(error.to_string()))?;
    if ids.is_empty() { Err(refused("it holds no token".into())) } else { Ok(ids) }
}

fn next_token_logits(model: &Transformer, context: &[u32], device: &Device) -> Result<Vec<f32>, TrainError> {
    let visible = &context[context.len().saturating_sub(model.spec().max_seq_len)..];
    let ids: Vec<i32> = visible.iter().map(|&id| id as i32).collect();
    let seq_len = ids.len();
    let output = model.forward(&ModelInput::upload(ids, None, [1, seq_len], device), Pass::Generation);
    let last_v = model.logits(output.hidden_td.narrow(0, seq_len - 1, 1));
    let read_failed = |error: String| TrainError::from(DeviceReadError::new(error));
    let data = last_v.try_into_data().map_err(|error| read_failed(format!("{error:?}")))?;
    data.try_into_vec::<f32>().map_err(|error| read_failed(format!("{error:?}")))
}
