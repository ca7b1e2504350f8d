//! Completions of a model, in the form of OpenAI's `text_completion` objects.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use switchyard_datasets::{DecodeStream, Tokenizer};
use switchyard_trainer::TrainError;
use switchyard_trainer::completion::LoadedModel;
use switchyard_trainer::token_scores::{ToScore, TokenScore};

use super::refusal::Refusal;
use super::request::{CompletionRequest, Prompt};
use super::until::TextUntil;

/// A model that answers.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) model: LoadedModel,
    /// The model's name.
    pub(super) name: String,
    /// Answers so far.
    pub(super) num_answers: AtomicU64,
}

impl Engine {
    /// The answer to `request`; of a streamed one each piece goes to `send`, and the answer has no
    /// text. Ends early once `stop` is set.
    ///
    /// # Errors
    /// If the model fails, or `stop` is set.
    pub(super) fn answer(
        &self,
        request: &CompletionRequest,
        stop: &AtomicBool,
        send: &mut dyn FnMut(Value),
    ) -> Result<Value, Refusal> {
        let head = self.head();
        let mut scores = self.prompt_scores(request, stop).map_err(failed)?.into_iter();
        let (mut choices, mut num_generated) = (Vec::new(), 0);
        for (index, prompt) in request.prompts.iter().enumerate() {
            let of_prompt = scores.next().unwrap_or_default();
            let mut choice = Choice::new(self, request);
            let mut send_piece = |piece: Piece| {
                let choice = json!({
                    "index": index,
                    "text": piece.text,
                    "logprobs": piece.log,
                    "finish_reason": piece.finish,
                });
                send(with(&head, "choices", json!([choice])));
            };
            choice.read_prompt(prompt, &of_prompt).map_err(failed)?;
            choice.send_new(&mut send_piece);
            num_generated += choice.generate(prompt, stop, &mut send_piece).map_err(failed)?;
            if request.stream {
                send_piece(Piece { text: String::new(), log: Value::Null, finish: Some(choice.finish) });
            }
            choices.push(choice.into_json(index));
        }
        let num_prompt: usize = request.prompts.iter().map(|prompt| prompt.ids.len()).sum();
        let usage = json!({
            "prompt_tokens": num_prompt,
            "completion_tokens": num_generated,
            "total_tokens": num_prompt + num_generated,
        });
        Ok(with(&with(&head, "choices", choices.into()), "usage", usage))
    }

    fn head(&self) -> Value {
        let number = self.num_answers.fetch_add(1, Ordering::Relaxed);
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        json!({ "id": format!("cmpl-{number}"), "object": "text_completion", "created": created, "model": self.name })
    }

    /// The scores of all tokens but the first of each prompt; none unless they are asked for.
    fn prompt_scores(
        &self,
        request: &CompletionRequest,
        stop: &AtomicBool,
    ) -> Result<Vec<Vec<TokenScore>>, TrainError> {
        let Some(num_top) = request.num_top.filter(|_| request.echo) else { return Ok(Vec::new()) };
        let long = |prompt: &&Prompt| prompt.ids.len() > 1;
        let to_score =
            |prompt: &Prompt| ToScore { ids: prompt.ids.clone(), num_scored: prompt.ids.len() - 1 };
        let requests: Vec<_> = request.prompts.iter().filter(long).map(to_score).collect();
        let mut found = self.model.scores(&requests, num_top, stop)?.into_iter();
        let of_all = request.prompts.iter().map(|prompt| match prompt.ids.len() {
            1 => Vec::new(),
            _ => found.next().unwrap_or_default(),
        });
        Ok(of_all.collect())
    }
}

/// `object` with one more key.
fn with(object: &Value, key: &str, value: Value) -> Value {
    let mut object = object.clone();
    object[key] = value;
    object
}

fn failed(error: TrainError) -> Refusal {
    match error {
        TrainError::Interrupted => Refusal::new(503, "the server is stopping"),
        error => Refusal::new(500, error.to_string()),
    }
}

/// A part of a streamed completion.
struct Piece {
    text: String,
    /// The probabilities of the tokens since the last piece, or null.
    log: Value,
    /// Why the completion ends, if it does.
    finish: Option<&'static str>,
}

/// One completion.
struct Choice<'a> {
    engine: &'a Engine,
    request: &'a CompletionRequest,
    decoder: DecodeStream<'a>,
    /// What the client gets.
    text: String,
    /// Bytes of it that were sent.
    num_sent: usize,
    /// Letters of the text that all tokens so far stand for.
    num_decoded: usize,
    log: TokenLog,
    finish: &'static str,
}

impl<'a> Choice<'a> {
    fn new(engine: &'a Engine, request: &'a CompletionRequest) -> Self {
        let (text, log) = (String::new(), TokenLog::default());
        let decoder = engine.model.tokenizer().decode_stream();
        Self { engine, request, decoder, text, num_sent: 0, num_decoded: 0, log, finish: "length" }
    }

    /// Reads the prompt, whose tokens but the first have these scores.
    fn read_prompt(&mut self, prompt: &Prompt, scores: &[TokenScore]) -> Result<(), TrainError> {
        let echo = self.request.echo;
        for (place, id) in prompt.ids.iter().enumerate() {
            let is_text = place > 0 || !prompt.begins_with_mark;
            if echo {
                let score = place.checked_sub(1).and_then(|place| scores.get(place));
                self.log_token(*id, score)?;
            }
            if is_text {
                let piece = self.decoder.push(*id)?;
                if echo {
                    self.num_decoded += piece.chars().count();
                    self.text.push_str(&piece);
                }
            }
        }
        if let Some(text) = prompt.text.as_ref().filter(|_| echo) {
            self.text.clone_from(text);
        }
        Ok(())
    }

    /// Generates; returns the number of tokens.
    fn generate(
        &mut self,
        prompt: &Prompt,
        stop: &AtomicBool,
        send: &mut dyn FnMut(Piece),
    ) -> Result<usize, TrainError> {
        let model = &self.engine.model;
        let tokenizer = model.tokenizer();
        let request = self.request;
        let mut until = TextUntil::new(&request.stops);
        let (mut num_tokens, mut outcome) = (0, Ok(()));
        model.complete(&prompt.ids, &request.settings, |id, logits_v| {
            num_tokens += 1;
            let next = self.take_token(id, logits_v, tokenizer.end_of_document() == Some(id), &mut until);
            self.send_new(send);
            match next {
                Ok(true) if !stop.load(Ordering::SeqCst) => ControlFlow::Continue(()),
                Ok(true) => {
                    outcome = Err(TrainError::Interrupted);
                    ControlFlow::Break(())
                }
                Ok(false) => {
                    self.finish = "stop";
                    ControlFlow::Break(())
                }
                Err(error) => {
                    outcome = Err(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        outcome?;
        if !until.has_stopped() {
            let decoder = std::mem::replace(&mut self.decoder, tokenizer.decode_stream());
            let (text, has_stopped) = until.push(&decoder.finish()?);
            self.text.push_str(&text);
            if !has_stopped {
                self.text.push_str(&until.finish());
            }
            self.send_new(send);
        }
        Ok(num_tokens)
    }

    /// Sends what is new, of a streamed completion.
    fn send_new(&mut self, send: &mut dyn FnMut(Piece)) {
        let text = &self.text[self.num_sent..];
        if self.request.stream && !(text.is_empty() && self.log.is_empty()) {
            let text = text.to_owned();
            self.num_sent = self.text.len();
            send(Piece { text, log: self.take_log(), finish: None });
        }
    }

    /// The probabilities of the tokens that are not told yet; null unless they are asked for.
    fn take_log(&mut self) -> Value {
        match self.request.num_top {
            Some(_) => std::mem::take(&mut self.log).into_json(),
            None => Value::Null,
        }
    }

    /// Adds a generated token; false if it is the last.
    fn take_token(
        &mut self,
        id: u32,
        logits_v: &[f32],
        is_end: bool,
        until: &mut TextUntil<'_>,
    ) -> Result<bool, TrainError> {
        if let Some(num_top) = self.request.num_top {
            self.log_token(id, Some(&TokenScore::new(logits_v, id, num_top)))?;
        }
        if is_end {
            return Ok(false);
        }
        let piece = self.decoder.push(id)?;
        self.num_decoded += piece.chars().count();
        let (text, has_stopped) = until.push(&piece);
        self.text.push_str(&text);
        Ok(!has_stopped)
    }

    fn log_token(&mut self, id: u32, score: Option<&TokenScore>) -> Result<(), TrainError> {
        if self.request.num_top.is_some() {
            self.log.push(id, score, self.num_decoded, self.engine.model.tokenizer())?;
        }
        Ok(())
    }

    fn into_json(mut self, index: usize) -> Value {
        let log = self.take_log();
        let text = if self.request.stream { String::new() } else { self.text };
        json!({ "index": index, "text": text, "logprobs": log, "finish_reason": self.finish })
    }
}

/// The probabilities of tokens of one completion, place by place.
#[derive(Debug, Default)]
struct TokenLog {
    tokens: Vec<String>,
    log_probs: Vec<Option<f64>>,
    top: Vec<Value>,
    offsets: Vec<usize>,
}

impl TokenLog {
    fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Adds a token at `offset` of the text; the first of a prompt has no score.
    fn push(
        &mut self,
        id: u32,
        score: Option<&TokenScore>,
        offset: usize,
        tokenizer: &Tokenizer,
    ) -> Result<(), TrainError> {
        let text = tokenizer.token_text(id)?;
        let mut top = Map::new();
        if let Some(TokenScore { log_prob, top: likeliest, .. }) = score {
            // Tokens may have one text, as parts of characters do: the likeliest stays.
            for (id, log_prob) in likeliest {
                top.entry(tokenizer.token_text(*id)?).or_insert_with(|| json!(log_prob));
            }
            top.entry(text.clone()).or_insert_with(|| json!(log_prob));
        }
        self.tokens.push(text);
        self.log_probs.push(score.map(|score| score.log_prob));
        self.top.push(if score.is_some() { top.into() } else { Value::Null });
        self.offsets.push(offset);
        Ok(())
    }

    fn into_json(self) -> Value {
        let Self { tokens, log_probs, top, offsets } = self;
        json!({ "tokens": tokens, "token_logprobs": log_probs, "top_logprobs": top, "text_offset": offsets })
    }
}
