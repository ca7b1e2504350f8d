//! A request for completions: its fields, each checked.

use serde_json::{Map, Value};
use switchyard_datasets::Tokenizer;
use switchyard_ground::printable::excerpt;
use switchyard_trainer::completion::CompletionSettings;
use switchyard_trainer::sampling::SamplingSettings;

use super::refusal::Refusal;

const MAX_TOKENS: u64 = 1 << 16;
const MAX_PROMPTS: usize = 256;
const MAX_STOPS: usize = 16;
const MAX_LOGPROBS: u64 = 5;
const SHOWN_CHARS: usize = 60;

/// Fields that change nothing here.
const IGNORED: [&str; 2] = ["model", "user"];
/// Fields of other servers that are accepted at the value that changes nothing.
const NEUTRAL: [(&str, f64); 4] =
    [("n", 1.0), ("best_of", 1.0), ("presence_penalty", 0.0), ("frequency_penalty", 0.0)];

/// What a model allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) vocab_size: usize,
    pub(super) max_seq_len: usize,
}

/// What to complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prompt {
    /// Its text, if it came as text.
    pub(super) text: Option<String>,
    /// Its tokens: one at least.
    pub(super) ids: Vec<u32>,
    /// Whether the first of them is a mark that stands for none of the text.
    pub(super) begins_with_mark: bool,
}

/// A request for completions.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct CompletionRequest {
    pub(super) prompts: Vec<Prompt>,
    pub(super) settings: CompletionSettings,
    /// Texts that end a completion.
    pub(super) stops: Vec<String>,
    /// Whether the prompt is a part of the answer.
    pub(super) echo: bool,
    /// How many of the likeliest tokens to name at each place; `None` names no probabilities.
    pub(super) num_top: Option<usize>,
    /// Whether text is sent as it comes.
    pub(super) stream: bool,
}

impl CompletionRequest {
    /// The request in `body`.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub(super) fn parse(body: &[u8], tokenizer: &Tokenizer, limits: Limits) -> Result<Self, Refusal> {
        let value = serde_json::from_slice(body)
            .map_err(|error| Refusal::new(400, format!("the body is no JSON: {error}")))?;
        let Value::Object(fields) = value else {
            return Err(Refusal::new(400, "the body is no JSON object: send {\"prompt\": ...}"));
        };
        let mut fields = Fields(fields);
        let sampling = sampling(&mut fields)?;
        let (max_tokens, seed) = (fields.count("max_tokens", MAX_TOKENS)?, fields.count("seed", u64::MAX)?);
        let settings = CompletionSettings {
            max_tokens: max_tokens.unwrap_or(16) as usize,
            seed: seed.unwrap_or(0),
            sampling,
        };
        let prompts = prompts(fields.take("prompt"), tokenizer, limits)?;
        let num_top = match fields.count("logprobs", MAX_LOGPROBS)? {
            Some(0) => {
                return Err(Refusal::of_field(
                    "logprobs",
                    "`logprobs` is 0: use 1..=5, or leave it out".into(),
                ));
            }
            other => other.map(|count| count as usize),
        };
        let stops = stops(fields.take("stop"))?;
        let (echo, stream) = (fields.flag("echo")?, fields.flag("stream")?);
        fields.refuse_rest()?;
        let request = Self { prompts, settings, stops, echo, num_top, stream };
        request.check(limits)?;
        Ok(request)
    }

    fn check(&self, limits: Limits) -> Result<(), Refusal> {
        self.settings.sampling.check().map_err(|error| Refusal::new(400, error.to_string()))?;
        if self.settings.max_tokens == 0 && !self.echo {
            let message = "`max_tokens` is 0 without `echo`, which asks for nothing: use 1 at least";
            return Err(Refusal::of_field("max_tokens", message.into()));
        }
        let longest = self.prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
        // The last token of a prompt is scored and needs no place of its own.
        if self.echo && self.num_top.is_some() && longest > limits.max_seq_len + 1 {
            return Err(Refusal::of_field(
                "prompt",
                format!(
                    "`prompt` has {longest} tokens, and the model has {} positions: with `echo` and `logprobs`, send {} \
                     tokens at most",
                    limits.max_seq_len,
                    limits.max_seq_len + 1
                ),
            ));
        }
        Ok(())
    }
}

/// The prompts in a `prompt`: a text, texts, ids, or lists of ids.
fn prompts(value: Option<Value>, tokenizer: &Tokenizer, limits: Limits) -> Result<Vec<Prompt>, Refusal> {
    let refused = |message: String| Refusal::of_field("prompt", message);
    let wanted = "a text, a list of texts, a list of token ids, or a list of such lists";
    let Some(value) = value else { return Err(refused(format!("`prompt` is missing: send {wanted}"))) };
    let of_text = |text: &str| text_prompt(text, tokenizer).map_err(refused);
    let of_ids = |ids: &[Value]| ids_prompt(ids, limits.vocab_size).map_err(refused);
    match &value {
        Value::String(text) => Ok(vec![of_text(text)?]),
        Value::Array(items) if items.is_empty() || items.len() > MAX_PROMPTS && !items[0].is_number() => {
            Err(refused(format!("`prompt` is a list of {}: send 1..={MAX_PROMPTS} prompts", items.len())))
        }
        Value::Array(items) if items[0].is_number() => Ok(vec![of_ids(items)?]),
        Value::Array(items) => items
            .iter()
            .map(|item| match item {
                Value::String(text) => of_text(text),
                Value::Array(ids) => of_ids(ids),
                other => Err(refused(format!("`prompt` holds {}: send {wanted}", shown(other)))),
            })
            .collect(),
        other => Err(refused(format!("`prompt` is {}: send {wanted}", shown(other)))),
    }
}

fn text_prompt(text: &str, tokenizer: &Tokenizer) -> Result<Prompt, String> {
    let mut ids = tokenizer
        .encode(text)
        .map_err(|error| format!("`prompt` {:?}: {error}", excerpt(text, SHOWN_CHARS)))?;
    // As `generate` has it; what an empty text has instead of a token.
    let instead = tokenizer.end_of_document().filter(|_| ids.is_empty());
    let mark = tokenizer.begin_of_document().or(instead);
    if let Some(mark) = mark {
        ids.insert(0, mark);
    }
    if ids.is_empty() {
        return Err("`prompt` is empty, and the vocabulary has no mark to begin with: send a text".into());
    }
    Ok(Prompt { text: Some(text.to_owned()), ids, begins_with_mark: mark.is_some() })
}

fn ids_prompt(values: &[Value], vocab_size: usize) -> Result<Prompt, String> {
    if values.is_empty() {
        return Err("`prompt` has no token id: send one at least".into());
    }
    let id = |value: &Value| {
        let id = value.as_u64().filter(|id| *id < vocab_size as u64);
        id.map(|id| id as u32).ok_or_else(|| {
            format!("`prompt` holds {}, which is no token id: the model has 0..{vocab_size}", shown(value))
        })
    };
    let ids = values.iter().map(id).collect::<Result<_, _>>()?;
    Ok(Prompt { text: None, ids, begins_with_mark: false })
}

/// How tokens are drawn. The protocol knows `temperature` and `top_p`; the other fields have the
/// names and the neutral values that they have with other servers.
fn sampling(fields: &mut Fields) -> Result<SamplingSettings, Refusal> {
    let other_than = |neutral: f64, value: f64| (value != neutral).then_some(value);
    Ok(SamplingSettings {
        temperature: fields.number("temperature", 1.0)?,
        top_p: Some(fields.number("top_p", 1.0)?),
        top_k: fields
            .count("top_k", u64::from(u32::MAX))?
            .filter(|count| *count > 0)
            .map(|count| count as usize),
        min_p: other_than(0.0, fields.number("min_p", 0.0)?),
        repetition_penalty: other_than(1.0, fields.number("repetition_penalty", 1.0)?),
    })
}

fn stops(value: Option<Value>) -> Result<Vec<String>, Refusal> {
    let refused = |message: String| Refusal::of_field("stop", message);
    let items = match value {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(other) => vec![other],
    };
    if items.len() > MAX_STOPS {
        return Err(refused(format!("`stop` has {} texts: send {MAX_STOPS} at most", items.len())));
    }
    let text = |item: Value| match item {
        Value::String(text) if !text.is_empty() => Ok(text),
        other => Err(refused(format!("`stop` holds {}: send texts that are not empty", shown(&other)))),
    };
    items.into_iter().map(text).collect()
}

/// `value` as a message shows it.
fn shown(value: &Value) -> String {
    excerpt(&value.to_string(), SHOWN_CHARS)
}

/// The fields that are not read yet.
struct Fields(Map<String, Value>);

impl Fields {
    /// The field `name`; `None` if it is left out or null.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    fn number(&mut self, name: &str, default: f64) -> Result<f64, Refusal> {
        let Some(value) = self.take(name) else { return Ok(default) };
        let wrong = || Refusal::of_field(name, format!("`{name}` is {}: send a number", shown(&value)));
        value.as_f64().ok_or_else(wrong)
    }

    fn count(&mut self, name: &str, max: u64) -> Result<Option<u64>, Refusal> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let count = value.as_u64().filter(|count| *count <= max);
        let wrong = || {
            Refusal::of_field(
                name,
                format!("`{name}` is {}: send a whole number in 0..={max}", shown(&value)),
            )
        };
        count.map(Some).ok_or_else(wrong)
    }

    fn flag(&mut self, name: &str) -> Result<bool, Refusal> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => {
                Err(Refusal::of_field(name, format!("`{name}` is {}: send true or false", shown(&other))))
            }
        }
    }

    /// Ok if what is left changes nothing.
    fn refuse_rest(mut self) -> Result<(), Refusal> {
        IGNORED.iter().for_each(|name| drop(self.take(name)));
        for (name, neutral) in NEUTRAL {
            if self.number(name, neutral)? != neutral {
                let message = format!("`{name}` can only be {neutral} here: leave it out");
                return Err(Refusal::of_field(name, message));
            }
        }
        match self.0.into_iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => {
                let name = excerpt(&name, SHOWN_CHARS);
                Err(Refusal::of_field(&name, format!("`{name}` is not known here: leave it out")))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<CompletionRequest, Refusal> {
        let limits = Limits { vocab_size: 256, max_seq_len: 8 };
        CompletionRequest::parse(body.as_bytes(), &Tokenizer::Bytes, limits)
    }

    #[test]
    fn a_prompt_is_text_texts_ids_or_lists_of_ids() {
        let prompts = |prompt: &str| parse(&format!("{{\"prompt\": {prompt}}}")).unwrap().prompts;
        let of_text = |text: &str| Prompt {
            text: Some(text.into()),
            ids: text.bytes().map(u32::from).collect(),
            begins_with_mark: false,
        };
        let of_ids = |ids: &[u32]| Prompt { text: None, ids: ids.into(), begins_with_mark: false };
        assert_eq!(prompts("\"ab\""), [of_text("ab")]);
        assert_eq!(prompts("[\"ab\", \"c\"]"), [of_text("ab"), of_text("c")]);
        assert_eq!(prompts("[1, 2]"), [of_ids(&[1, 2])]);
        assert_eq!(prompts("[[1, 2], [3]]"), [of_ids(&[1, 2]), of_ids(&[3])]);
        assert_eq!(
            prompts("\"\""),
            [Prompt { text: Some(String::new()), ids: vec![0], begins_with_mark: true }]
        );
    }

    #[test]
    fn fields_have_the_defaults_of_the_protocol() {
        let request = parse("{\"prompt\": \"a\", \"model\": \"x\", \"n\": 1, \"seed\": null}").unwrap();
        let sampling = SamplingSettings { top_p: Some(1.0), ..SamplingSettings::new(1.0) };
        assert_eq!(request.settings, CompletionSettings { max_tokens: 16, seed: 0, sampling });
        let of_others = "\"top_k\": 3, \"min_p\": 0.1, \"repetition_penalty\": 1.2";
        let with_others = parse(&format!("{{\"prompt\": \"a\", {of_others}}}")).unwrap().settings.sampling;
        let others = (with_others.top_k, with_others.min_p, with_others.repetition_penalty);
        assert_eq!(others, (Some(3), Some(0.1), Some(1.2)));
        let neutral = "\"top_k\": 0, \"min_p\": 0, \"repetition_penalty\": 1";
        assert_eq!(parse(&format!("{{\"prompt\": \"a\", {neutral}}}")).unwrap().settings.sampling, sampling);
        assert!(!request.echo && !request.stream && request.num_top.is_none() && request.stops.is_empty());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_value() {
        for (fields, field, reason) in [
            ("", "prompt", "`prompt` is missing"),
            ("\"prompt\": 1", "prompt", "`prompt` is 1"),
            ("\"prompt\": []", "prompt", "list of 0"),
            ("\"prompt\": [[]]", "prompt", "no token id"),
            ("\"prompt\": [1, -1]", "prompt", "holds -1"),
            ("\"prompt\": [1, 256]", "prompt", "holds 256"),
            ("\"prompt\": [\"a\", {}]", "prompt", "holds {}"),
            ("\"prompt\": \"a\", \"max_tokens\": -1", "max_tokens", "is -1"),
            ("\"prompt\": \"a\", \"max_tokens\": 1e9", "max_tokens", "1000000000"),
            ("\"prompt\": \"a\", \"max_tokens\": 0", "max_tokens", "without `echo`"),
            ("\"prompt\": \"a\", \"temperature\": \"hot\"", "temperature", "\"hot\""),
            ("\"prompt\": \"a\", \"logprobs\": 6", "logprobs", "is 6"),
            ("\"prompt\": \"a\", \"logprobs\": 0", "logprobs", "is 0"),
            ("\"prompt\": \"a\", \"stop\": [1]", "stop", "holds 1"),
            ("\"prompt\": \"a\", \"echo\": 1", "echo", "is 1"),
            ("\"prompt\": \"a\", \"n\": 2", "n", "can only be 1"),
            ("\"prompt\": \"a\", \"best\": 2", "best", "not known"),
            ("\"prompt\": \"a\", \"top_k\": 1.5", "top_k", "is 1.5"),
            ("\"prompt\": \"a\", \"min_p\": []", "min_p", "is []"),
            ("\"prompt\": \"abcdefghij\", \"echo\": true, \"logprobs\": 1", "prompt", "10 tokens"),
        ] {
            let refusal = parse(&format!("{{{fields}}}")).unwrap_err();
            assert_eq!((refusal.status, refusal.field.as_deref()), (400, Some(field)), "{fields}");
            assert!(refusal.message.contains(reason), "{fields}: {}", refusal.message);
        }
        for body in ["", "{", "[]", "\"a\"", "\u{0}", "{\"prompt\": \"a\", \"temperature\": -1}"] {
            assert_eq!(parse(body).unwrap_err().status, 400, "{body}");
        }
        assert!(parse(&"[".repeat(100_000)).unwrap_err().message.contains("no JSON"));
    }
}
