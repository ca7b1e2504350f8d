//! Text from a trained model, token by token.

mod context;
mod stop;
mod trace;

use std::io;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::Device;
use switchyard_datasets::{DecodeStream, Tokenizer};
use switchyard_experts::RouterSpec;
use switchyard_ground::printable::excerpt;
use switchyard_model::{ModelSpec, Transformer};
pub use switchyard_router::GenerationRule;
use switchyard_router::Selection;

use crate::TrainError;
use crate::sampling::SamplingSettings;
pub(crate) use context::{Context, Engine};
use stop::StopScanner;
pub use trace::{LayerTrace, TokenTrace};

/// How text is generated.
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
    /// A text ends before the first of these.
    pub stop: Vec<String>,
    /// Whether a text ends at the mark that ends a document, which is no part of it.
    pub ends_with_document: bool,
    /// Whether what earlier tokens left in the layers is kept, where that gives the same text;
    /// otherwise each token goes over the whole context.
    pub keeps_cache: bool,
    /// Whether the experts of each token are told.
    pub traces_experts: bool,
}

impl GenerationSettings {
    /// So many tokens without a prompt, drawn by `sampling` from seed 0.
    pub fn new(num_tokens: usize, sampling: SamplingSettings) -> Self {
        Self {
            prompt: None,
            num_tokens,
            seed: 0,
            sampling,
            routing: None,
            stop: Vec::new(),
            ends_with_document: false,
            keeps_cache: true,
            traces_experts: false,
        }
    }
}

impl GenerationSettings {
    fn engine<'a>(&self, model: &'a Transformer, device: &'a Device) -> Engine<'a> {
        let mut engine = Engine::new(model, device);
        if !self.keeps_cache {
            engine = engine.without_cache();
        }
        if self.traces_experts {
            engine = engine.with_traces();
        }
        engine
    }
}

/// What happens while texts are generated.
#[derive(Debug)]
pub enum GenerationEvent<'a> {
    /// A text goes on.
    Text {
        /// The prompt's place.
        sequence: usize,
        /// Whole characters.
        text: &'a str,
    },
    /// A token has gone through the network, and its experts are told.
    Routed(TokenTrace),
}

/// One text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratedText {
    /// What follows the prompt.
    pub text: String,
    /// Tokens that were generated, also those of a stop string and the mark that ends a document,
    /// which are not part of the text.
    pub num_tokens: usize,
    /// Whether a stop string or that mark ended it.
    pub is_stopped: bool,
}

/// Texts in the order of their prompts, and how long they took.
#[derive(Debug, Clone, Default)]
pub struct Generated {
    /// One for each prompt.
    pub texts: Vec<GeneratedText>,
    /// How long they took.
    pub speed: GenerationSpeed,
}

/// How long the network and the choice of tokens took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GenerationSpeed {
    /// Tokens of the prompts.
    pub prompt_tokens: usize,
    /// Until the first token of each text was chosen.
    pub prefill_secs: f64,
    /// Tokens behind those.
    pub decoded_tokens: usize,
    /// Until they were chosen.
    pub decode_secs: f64,
}

impl GenerationSpeed {
    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            prefill_secs: self.prefill_secs + other.prefill_secs,
            decoded_tokens: self.decoded_tokens + other.decoded_tokens,
            decode_secs: self.decode_secs + other.decode_secs,
        }
    }

    /// Such as `prefill 12 tokens, 340.1 tokens/s; decode 255 tokens, 71.0 tokens/s`.
    pub fn in_words(&self) -> String {
        let part = |name: &str, tokens: usize, secs: f64| {
            let rate = if secs > 0.0 { tokens as f64 / secs } else { 0.0 };
            format!("{name} {tokens} tokens, {rate:.1} tokens/s")
        };
        format!(
            "{}; {}",
            part("prefill", self.prompt_tokens, self.prefill_secs),
            part("decode", self.decoded_tokens, self.decode_secs)
        )
    }
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
/// while one is not whole, or while it may become a stop string. The prompt is not handed over. Once
/// the model's positions are used up, the oldest tokens fall out of its sight.
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
    mut on_text: impl FnMut(&str) -> io::Result<()>,
) -> Result<GenerationSpeed, TrainError> {
    let prompts = [settings.prompt.as_deref()];
    let generated = generate_all(model, tokenizer, &prompts, settings, device, |event| match event {
        GenerationEvent::Text { text, .. } => on_text(text),
        GenerationEvent::Routed(_) => Ok(()),
    })?;
    Ok(generated.speed)
}

/// Continue each of `prompts`, of any lengths, together; `settings.prompt` is not looked at. Each
/// text is the one that its prompt gives alone. `on_event` hears of each token's text, and of its
/// experts if `settings` ask for them.
///
/// # Errors
/// As [`generate`].
pub fn generate_all(
    model: &Transformer,
    tokenizer: &Tokenizer,
    prompts: &[Option<&str>],
    settings: &GenerationSettings,
    device: &Device,
    mut on_event: impl FnMut(GenerationEvent<'_>) -> io::Result<()>,
) -> Result<Generated, TrainError> {
    check_causal(model.spec(), settings.routing)?;
    let model = model.valid();
    let engine = settings.engine(&model, device);
    let mut texts = prompts
        .iter()
        .map(|prompt| TextInProgress::new(tokenizer, *prompt, settings))
        .collect::<Result<Vec<_>, _>>()?;
    let mut tell = |event: GenerationEvent<'_>| {
        on_event(event).map_err(|source| match source.kind() {
            io::ErrorKind::Interrupted => TrainError::Interrupted,
            _ => TrainError::Output { source },
        })
    };
    let mut speed = GenerationSpeed {
        prompt_tokens: texts.iter().map(|text| text.context.ids().len()).sum(),
        ..GenerationSpeed::default()
    };
    for index in 0..settings.num_tokens {
        let start = Instant::now();
        let mut active: Vec<_> = texts.iter_mut().enumerate().filter(|(_, text)| !text.is_done()).collect();
        let contexts = active.iter_mut().map(|(sequence, text)| (*sequence, &mut text.context)).collect();
        let (scores, traces) = engine.next_scores(contexts)?;
        for ((_, text), scores) in active.iter_mut().zip(scores) {
            text.context.choose(&scores, index as u64, &settings.sampling, settings.seed)?;
            text.num_tokens += 1;
        }
        let secs = start.elapsed().as_secs_f64();
        match index {
            0 => speed.prefill_secs += secs,
            _ => {
                speed.decoded_tokens += active.len();
                speed.decode_secs += secs;
            }
        }
        traces.into_iter().try_for_each(|trace| tell(GenerationEvent::Routed(trace)))?;
        for (sequence, text) in active {
            let piece = text.next_piece()?;
            tell(GenerationEvent::Text { sequence, text: &piece })?;
        }
    }
    let mut generated = Generated { texts: Vec::new(), speed };
    for (sequence, text) in texts.into_iter().enumerate() {
        let (text, rest) = text.finish()?;
        if !rest.is_empty() {
            tell(GenerationEvent::Text { sequence, text: &rest })?;
        }
        generated.texts.push(text);
    }
    Ok(generated)
}

/// A text that is not finished.
struct TextInProgress<'a> {
    context: Context,
    decoder: DecodeStream<'a>,
    stop: StopScanner,
    /// The token that ends it, if one does.
    end: Option<u32>,
    has_ended: bool,
    text: String,
    num_tokens: usize,
}

impl<'a> TextInProgress<'a> {
    fn new(
        tokenizer: &'a Tokenizer,
        prompt: Option<&str>,
        settings: &GenerationSettings,
    ) -> Result<Self, TrainError> {
        let ids = prompt_ids(tokenizer, prompt)?;
        let mut decoder = tokenizer.decode_stream();
        if prompt.is_some() {
            // What stands between the prompt's last token and the first new one, such as a space,
            // depends on both.
            for token in &ids {
                decoder.push(*token)?;
            }
        }
        let stop = StopScanner::new(&settings.stop);
        let context = Context::new(ids, settings.num_tokens);
        let end = tokenizer.end_of_document().filter(|_| settings.ends_with_document);
        Ok(Self { context, decoder, stop, end, has_ended: false, text: String::new(), num_tokens: 0 })
    }

    fn is_done(&self) -> bool {
        self.has_ended || self.stop.has_stopped()
    }

    /// What the last token adds to the text.
    fn next_piece(&mut self) -> Result<String, TrainError> {
        let Some(token) = self.context.ids().last() else { return Ok(String::new()) };
        self.has_ended = self.end == Some(*token);
        if self.has_ended {
            return Ok(String::new());
        }
        let piece = self.stop.push(&self.decoder.push(*token)?);
        self.text.push_str(&piece);
        Ok(piece)
    }

    /// The text, and what of it was still held back.
    fn finish(self) -> Result<(GeneratedText, String), TrainError> {
        let Self { decoder, mut stop, has_ended, mut text, num_tokens, .. } = self;
        let mut rest = stop.push(&decoder.finish()?);
        rest.push_str(&stop.take_held());
        text.push_str(&rest);
        Ok((GeneratedText { text, num_tokens, is_stopped: has_ended || stop.has_stopped() }, rest))
    }
}

/// Ok if no token's experts depend on later tokens, or `routing` or the configuration says how to
/// do without them.
pub(crate) fn check_causal(spec: &ModelSpec, routing: Option<GenerationRule>) -> Result<(), TrainError> {
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

/// The tokens that a generation goes on from, behind the mark of a document's beginning if the
/// tokenizer has one.
///
/// # Errors
/// [`TrainError::Prompt`] if a given prompt holds no token that `tokenizer` knows.
pub fn prompt_ids(tokenizer: &Tokenizer, prompt: Option<&str>) -> Result<Vec<u32>, TrainError> {
    let begin = tokenizer.begin_of_document();
    let Some(prompt) = prompt else {
        let line_break = tokenizer.encode("\n").unwrap_or_default();
        let fallback = vec![tokenizer.end_of_document().unwrap_or(0)];
        return Ok(match begin {
            Some(begin) => vec![begin],
            None if line_break.is_empty() => fallback,
            None => line_break,
        });
    };
    let refused = |reason: String| TrainError::Prompt { prompt: excerpt(prompt, 60), reason };
    let ids = tokenizer.encode(prompt).map_err(|error| refused(error.to_string()))?;
    if ids.is_empty() {
        return Err(refused("it holds no token".into()));
    }
    Ok(begin.into_iter().chain(ids).collect())
}
