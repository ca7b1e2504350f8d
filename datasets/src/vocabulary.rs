//! A vocabulary of the crate `tokenizers`: what its file may say, and what of it is switched off.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rayon::prelude::*;
use serde_json::Value;
use switchyard_ground::printable::excerpt;
use tokenizers::models::ModelWrapper;

use crate::config::{MAX_VOCAB_SIZE, OnTrouble, TokenName};
use crate::encoded::{Encoded, vocabulary_error};
use crate::encoder::{Encoder, MAX_GROWTH};
use crate::error::DatasetError;
use crate::guard::guarded;
use crate::pieces::{MIN_PIECE_BYTES, TextPiece, pieces};
use crate::seams::{Seams, has_long_blank};
use crate::words::words;

/// What ends a document in a trained vocabulary.
pub(crate) const END_OF_DOCUMENT: &str = "<|endoftext|>";

/// Names under which vocabularies keep their end-of-document mark, in order of preference.
const END_MARK_NAMES: [&str; 15] = [
    END_OF_DOCUMENT,
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
    "[EOS]",
    "<EOS>",
    "<|eos|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_document|>",
    "<|endofdoc|>",
    "<|end|>",
    "<end_of_text>",
    "<|EOT|>",
];

/// A mark of a document that the user names in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    Begin,
    End,
}

impl Mark {
    /// Field of a `tokenizer.json` in which Switchyard keeps the mark.
    fn field(self) -> &'static str {
        match self {
            Self::Begin => "switchyard_begin_of_document",
            Self::End => "switchyard_end_of_document",
        }
    }

    /// Key of the configuration that names it.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Begin => "data.tokenizer.file.begin_of_document",
            Self::End => "data.tokenizer.file.end_of_document",
        }
    }
}

/// Longest text that a normalizer or a decoder may put in the place of another: those in use put a
/// few bytes.
const MAX_REPLACEMENT_BYTES: usize = 64;
/// Characters of a name that a message shows.
const SHOWN_CHARS: usize = 40;

/// A vocabulary with the `tokenizer.json` that defines it.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    inner: Arc<tokenizers::Tokenizer>,
    json: Arc<[u8]>,
    vocab_size: usize,
    /// The id that begins a document; none unless the user named one.
    begin_of_document: Option<u32>,
    end_of_document: Option<u32>,
    /// Whether the user named the id that ends a document.
    is_end_named: bool,
    /// The id that stands for text which the vocabulary cannot spell.
    unknown_id: Option<u32>,
    /// What is done with text that it cannot spell and has no id for.
    on_unknown_text: OnTrouble,
    /// Whether the ids of a text are those of its [`words`], one after the other.
    is_word_by_word: bool,
    /// Where a text may be cut without a change of its ids.
    seams: Seams,
    /// Shortest piece of a text that is cut: small in tests, so that every place is tried.
    min_piece_bytes: usize,
}

impl Vocabulary {
    /// The vocabulary that a `tokenizer.json` defines; `parsed` is the content of `json`.
    pub(crate) fn from_json(json: Vec<u8>, mut parsed: Value) -> Result<Self, String> {
        let [begin_mark, end_mark] =
            [take_mark(&mut parsed, Mark::Begin)?, take_mark(&mut parsed, Mark::End)?];
        check_growth(&parsed)?;
        let has_marks = begin_mark.is_some() || end_mark.is_some();
        let stripped = if has_marks { parsed.to_string().into_bytes() } else { Vec::new() };
        let inner = load(if has_marks { &stripped } else { &json })?;
        let max_id = inner.get_vocab(true).into_values().max().ok_or("the vocabulary is empty")?;
        if max_id as usize >= MAX_VOCAB_SIZE {
            return Err(format!("it holds the id {max_id}; ids below {MAX_VOCAB_SIZE} are expected"));
        }
        let named =
            |mark: Mark, name: Option<TokenName>| name.map(|name| id_of(&inner, mark, &name)).transpose();
        let begin_of_document = named(Mark::Begin, begin_mark)?;
        let named_end = named(Mark::End, end_mark)?;
        let usual_end = || END_MARK_NAMES.iter().find_map(|name| inner.token_to_id(name));
        Ok(Self {
            vocab_size: max_id as usize + 1,
            begin_of_document,
            end_of_document: named_end.or_else(usual_end),
            is_end_named: named_end.is_some(),
            unknown_id: unknown_id(&parsed, &inner),
            on_unknown_text: OnTrouble::Stop,
            is_word_by_word: is_word_by_word(&parsed),
            seams: Seams::of(&inner),
            min_piece_bytes: MIN_PIECE_BYTES,
            inner: Arc::new(inner),
            json: json.into(),
        })
    }

    /// The content of the `tokenizer.json`.
    pub(crate) fn json(&self) -> &[u8] {
        &self.json
    }

    pub(crate) fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    pub(crate) fn with_vocab_size(self, vocab_size: usize) -> Self {
        Self { vocab_size: vocab_size.max(self.vocab_size), ..self }
    }

    pub(crate) fn on_unknown_text(self, on_unknown_text: OnTrouble) -> Self {
        Self { on_unknown_text, ..self }
    }

    /// The same vocabulary, which cuts texts after fewer bytes.
    #[cfg(test)]
    pub(crate) fn with_min_piece_bytes(self, min_piece_bytes: usize) -> Self {
        Self { min_piece_bytes, ..self }
    }

    pub(crate) fn begin_of_document(&self) -> Option<u32> {
        self.begin_of_document
    }

    pub(crate) fn end_of_document(&self) -> Option<u32> {
        self.end_of_document
    }

    pub(crate) fn is_end_named(&self) -> bool {
        self.is_end_named
    }

    pub(crate) fn seams(&self) -> Seams {
        self.seams
    }

    pub(crate) fn unknown_id(&self) -> Option<u32> {
        self.unknown_id
    }

    /// `text` in pieces whose ids join to those of the whole.
    pub(crate) fn pieces<'t>(&self, text: &'t str) -> impl Iterator<Item = TextPiece<'t>> + use<'t> {
        pieces(text, self.seams, self.min_piece_bytes)
    }

    /// Ids of a text of any length: those that the crate `tokenizers` gives it in one call.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, DatasetError> {
        let mut ids = Vec::new();
        for piece in self.pieces(text) {
            ids.extend(self.encode_piece(piece)?.ids);
        }
        Ok(ids)
    }

    /// Ids of each of `pieces`, on all cores.
    pub(crate) fn encode_all(&self, pieces: &[TextPiece<'_>]) -> Result<Vec<Encoded>, DatasetError> {
        if self.is_word_by_word && !pieces.iter().any(|piece| has_long_blank(piece.text)) {
            self.encode_by_words(pieces)
        } else {
            pieces.par_iter().map(|piece| self.encode_piece(*piece)).collect()
        }
    }

    /// Encodes each different word once: text repeats its words often.
    fn encode_by_words(&self, pieces: &[TextPiece<'_>]) -> Result<Vec<Encoded>, DatasetError> {
        let words_of_piece: Vec<Vec<&str>> = pieces
            .par_iter()
            .map(|piece| words(piece.text).map_err(vocabulary_error))
            .collect::<Result<_, _>>()?;
        let merge = |left: HashSet<_>, right: HashSet<_>| {
            let (mut larger, smaller) = if left.len() < right.len() { (right, left) } else { (left, right) };
            larger.extend(smaller);
            larger
        };
        let different: HashSet<&str> = words_of_piece
            .par_iter()
            .fold(HashSet::new, |mut set, words| {
                set.extend(words);
                set
            })
            .reduce(HashSet::new, merge);
        let encoded_word: HashMap<&str, Encoded> = different
            .into_par_iter()
            .map(|word| Ok((word, self.encode_piece(TextPiece::whole(word))?)))
            .collect::<Result<_, DatasetError>>()?;
        let join = |words: &Vec<&str>| {
            let encoded = || words.iter().map(|word| &encoded_word[word]);
            Encoded {
                ids: encoded().flat_map(|encoded| &encoded.ids).copied().collect(),
                lost_bytes: encoded().map(|encoded| encoded.lost_bytes).sum(),
            }
        };
        Ok(words_of_piece.par_iter().map(join).collect())
    }

    /// Ids of one piece, as they are within its text.
    pub(crate) fn encode_piece(&self, piece: TextPiece<'_>) -> Result<Encoded, DatasetError> {
        let encoder = || Encoder::new(&self.inner, self.on_unknown_text, piece.continues);
        guarded(|| encoder().encode(piece.text)).unwrap_or_else(|panic| Err(crate_failed(&panic)))
    }

    pub(crate) fn decode(&self, ids: &[u32]) -> Result<String, DatasetError> {
        let decoded = guarded(|| self.inner.decode(ids, false));
        decoded.map_err(|panic| crate_failed(&panic))?.map_err(vocabulary_error)
    }
}

/// Names the token for `mark` in the content of a `tokenizer.json`.
pub(crate) fn name_mark(parsed: &mut Value, mark: Mark, name: &TokenName) -> Result<(), String> {
    let object = parsed.as_object_mut().ok_or("it is no object")?;
    let name = match name {
        TokenName::Text(text) => Value::from(text.as_str()),
        TokenName::Id(id) => Value::from(*id),
    };
    object.insert(mark.field().to_owned(), name);
    Ok(())
}

fn take_mark(parsed: &mut Value, mark: Mark) -> Result<Option<TokenName>, String> {
    let Some(named) = parsed.as_object_mut().and_then(|object| object.remove(mark.field())) else {
        return Ok(None);
    };
    let problem = |_| format!("its field `{}` is not the name of a token", mark.field());
    serde_json::from_value(named).map(Some).map_err(problem)
}

/// Id of the token that the user named.
fn id_of(inner: &tokenizers::Tokenizer, mark: Mark, name: &TokenName) -> Result<u32, String> {
    let (id, shown) = match name {
        TokenName::Text(text) => (inner.token_to_id(text), excerpt(text, SHOWN_CHARS).to_string()),
        TokenName::Id(id) => (inner.id_to_token(*id).map(|_| *id), id.to_string()),
    };
    let key = mark.key();
    id.ok_or_else(|| format!("it has no token `{shown}`: set `{key}` to a token of the vocabulary"))
}

/// The tokenizer in `json`, without what would make its ids depend on anything but the text.
fn load(json: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    let loaded = guarded(|| -> tokenizers::Result<tokenizers::Tokenizer> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json)?;
        // A corpus is encoded whole, and nothing in it may pass for a special token.
        inner.with_truncation(None)?;
        inner.with_padding(None);
        inner.set_encode_special_tokens(true);
        // Dropout leaves out merges at random: another corpus each time.
        if let ModelWrapper::BPE(bpe) = inner.get_model()
            && bpe.dropout.is_some()
        {
            let mut steady = bpe.clone();
            steady.dropout = None;
            inner.with_model(steady);
        }
        Ok(inner)
    });
    let problem = match loaded {
        Ok(Ok(inner)) => return Ok(inner),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic,
    };
    Err(format!("not a tokenizer.json of the crate `tokenizers`: {}", excerpt(&problem, 4 * SHOWN_CHARS)))
}

/// Id of the token for unknown text.
fn unknown_id(parsed: &Value, inner: &tokenizers::Tokenizer) -> Option<u32> {
    let model = &parsed["model"];
    match (&model["unk_id"], &model["unk_token"]) {
        (Value::Number(id), _) => u32::try_from(id.as_u64()?).ok(),
        (_, Value::String(name)) => inner.token_to_id(name),
        // The models of words have a default.
        _ if model["type"] == "WordPiece" => inner.token_to_id("[UNK]"),
        _ if model["type"] == "WordLevel" => inner.token_to_id("<unk>"),
        _ => None,
    }
}

/// An error if a step in `parsed` puts so much in the place of so little that a short text could
/// fill the memory.
fn check_growth(parsed: &Value) -> Result<(), String> {
    let mut growth = 1_usize;
    for step in steps(&parsed["normalizer"]).into_iter().chain(steps(&parsed["decoder"])) {
        let pattern = &step["pattern"]["String"];
        let replacement = step["content"].as_str().or_else(|| step["prepend"].as_str()).unwrap_or_default();
        if step["type"] == "Replace" && pattern == "" {
            return Err("a `Replace` in it has an empty pattern".to_owned());
        }
        if replacement.len() > MAX_REPLACEMENT_BYTES {
            return Err(format!(
                "a step in it puts {} bytes in the place of others; at most {MAX_REPLACEMENT_BYTES} are accepted",
                replacement.len()
            ));
        }
    }
    for step in steps(&parsed["decoder"]) {
        let pattern_len = step["pattern"]["String"].as_str().map_or(1, str::len).max(1);
        growth =
            growth.saturating_mul(step["content"].as_str().map_or(1, str::len).div_ceil(pattern_len).max(1));
    }
    if growth > MAX_GROWTH * MAX_GROWTH {
        return Err(format!("its decoder can make a token {growth} times as long"));
    }
    Ok(())
}

/// The steps of a normalizer or decoder, those within sequences included.
fn steps(part: &Value) -> Vec<&Value> {
    let inner = ["normalizers", "decoders"].iter().find_map(|name| part[*name].as_array());
    match inner {
        Some(parts) => parts.iter().flat_map(steps).collect(),
        None => vec![part],
    }
}

/// Whether the tokenizer in `parsed` does nothing to a text but to split it by GPT-2's pattern and
/// to encode the words.
fn is_word_by_word(parsed: &Value) -> bool {
    let splitter = &parsed["pre_tokenizer"];
    let has_plain_added_token = parsed["added_tokens"]
        .as_array()
        .is_some_and(|tokens| tokens.iter().any(|token| token["special"] != true));
    parsed["normalizer"].is_null()
        && splitter["type"] == "ByteLevel"
        && splitter["add_prefix_space"] == false
        && splitter["use_regex"] != false
        && !has_plain_added_token
}

fn crate_failed(panic: &str) -> DatasetError {
    let problem = format!(
        "the crate `tokenizers` failed on this text ({}): use another tokenizer.json",
        excerpt(panic, 4 * SHOWN_CHARS)
    );
    DatasetError::Tokenizer { path: None, problem }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::bpe;
    use crate::tokenizer::Tokenizer;

    fn trained() -> Vocabulary {
        let text = "the cat and the hat, the bat";
        let Tokenizer::Vocabulary(vocabulary) = bpe::train([text].into_iter(), 280).unwrap() else {
            panic!("a vocabulary was trained")
        };
        vocabulary
    }

    fn load(tokenizer: &Value) -> Result<Vocabulary, String> {
        Vocabulary::from_json(tokenizer.to_string().into_bytes(), tokenizer.clone())
    }

    /// A `tokenizer.json` with this model and nothing else.
    fn with_model(model: &Value) -> Value {
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null, "model": model,
        })
    }

    fn bpe_of(letters: &str, merges: &[[&str; 2]]) -> Value {
        let joined = merges.iter().map(|[left, right]| format!("{left}{right}"));
        let tokens: Vec<String> = letters.chars().map(String::from).chain(joined).collect();
        let vocab: serde_json::Map<String, Value> =
            tokens.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
        json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges,
        })
    }

    #[test]
    fn encoding_many_texts_is_encoding_each() {
        let vocabulary = trained();
        assert!(vocabulary.is_word_by_word);
        let texts =
            [include_str!("tokenizer.rs"), "the <|endoftext|> ünd\n  hat", "", "  "].map(TextPiece::whole);
        let each: Vec<Encoded> = texts.iter().map(|text| vocabulary.encode_piece(*text).unwrap()).collect();
        assert_eq!(vocabulary.encode_all(&texts).unwrap(), each);
    }

    #[test]
    fn a_tokenizer_that_looks_across_words_is_not_taken_word_by_word() {
        let plain =
            json!({"normalizer": null, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}});
        assert!(is_word_by_word(&plain));
        let text = plain.to_string();
        for other in [
            text.replace("false", "true"),
            text.replace("ByteLevel", "Metaspace"),
            text.replace("null", "{\"type\": \"NFC\"}"),
            text.replace("{\"normalizer", "{\"added_tokens\": [{\"special\": false}], \"normalizer"),
        ] {
            assert!(!is_word_by_word(&serde_json::from_str(&other).unwrap()), "{other}");
        }
    }

    #[test]
    fn text_without_an_id_is_refused_with_its_character_or_counted_on_request() {
        let unigram =
            json!({"type": "Unigram", "unk_id": null, "vocab": [["c", 0.0], ["a", 0.0], ["f", 0.0]]});
        let pieces = json!({
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": {"caf": 0, "##é2": 1},
        });
        let words = json!({"type": "WordLevel", "unk_token": "<unk>", "vocab": {"caf": 0}});
        for model in [bpe_of("caf", &[["c", "a"]]), unigram, pieces, words] {
            let vocabulary = load(&with_model(&model)).unwrap();
            assert!(!vocabulary.encode("caf caf").unwrap().is_empty(), "{model}");
            let error = vocabulary.encode("caf café caf").unwrap_err();
            let message = error.to_string();
            let is_named =
                message.contains("(U+00E9)") || model["type"] == "WordLevel" || model["type"] == "WordPiece";
            assert!(matches!(error, DatasetError::Unspellable { .. }) && is_named, "{message}");
            assert!(
                message.contains("the vocabulary has no id for `") && message.contains("in `café`"),
                "{message}"
            );
            assert!(message.contains("on_unknown_text = \"skip\""), "{message}");
            let lenient = vocabulary.on_unknown_text(OnTrouble::Skip);
            let encoded = lenient.encode_all(&[TextPiece::whole("caf café caf")]).unwrap().remove(0);
            assert!(encoded.lost_bytes >= 2 && !encoded.ids.is_empty(), "{model}: {encoded:?}");
        }
    }

    #[test]
    fn a_byte_level_vocabulary_without_all_bytes_names_the_character() {
        let mut tokenizer = with_model(&bpe_of("caf", &[]));
        tokenizer["pre_tokenizer"] =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let vocabulary = load(&tokenizer).unwrap();
        assert!(vocabulary.is_word_by_word);
        let message = vocabulary.encode_all(&[TextPiece::whole("café")]).unwrap_err().to_string();
        assert!(message.contains("no id for `é` (U+00E9)"), "{message}");
    }

    #[test]
    fn what_a_normalizer_or_a_splitter_drops_is_no_loss() {
        let mut tokenizer = with_model(&bpe_of("cafe", &[]));
        tokenizer["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"}]});
        let vocabulary = load(&tokenizer).unwrap();
        assert_eq!(vocabulary.encode("  Café \n café").unwrap(), [0, 1, 2, 3, 0, 1, 2, 3]);
    }

    #[test]
    fn unknown_text_has_its_id_and_byte_fallback_loses_nothing() {
        let mut model = bpe_of("caf", &[]);
        model["vocab"]["[UNK]"] = json!(3);
        model["unk_token"] = json!("[UNK]");
        let vocabulary = load(&with_model(&model)).unwrap();
        assert_eq!(
            (vocabulary.unknown_id(), vocabulary.encode("café").unwrap()),
            (Some(3), vec![0, 1, 2, 3])
        );
        let mut model = bpe_of("caf", &[]);
        for byte in 0..=255_u32 {
            model["vocab"][format!("<0x{byte:02X}>")] = json!(3 + byte);
        }
        model["byte_fallback"] = json!(true);
        let vocabulary = load(&with_model(&model)).unwrap();
        assert_eq!(vocabulary.encode("café").unwrap(), [0, 1, 2, 3 + 0xc3, 3 + 0xa9]);
        let unigram = json!({"type": "Unigram", "unk_id": 1, "vocab": [["c", 0.0], ["<unk>", 0.0]]});
        assert_eq!(load(&with_model(&unigram)).unwrap().unknown_id(), Some(1));
    }

    #[test]
    fn dropout_in_the_file_changes_no_id() {
        let mut model = bpe_of("abcd", &[["a", "b"], ["ab", "c"], ["abc", "d"]]);
        let steady = load(&with_model(&model)).unwrap();
        model["dropout"] = json!(0.5);
        let dropping = load(&with_model(&model)).unwrap();
        let text = "abcd ".repeat(200);
        assert_eq!(dropping.encode(&text).unwrap(), steady.encode(&text).unwrap());
    }

    #[test]
    fn the_end_mark_has_many_names_and_a_named_one_comes_first_and_is_kept() {
        for name in ["<|endoftext|>", "</s>", "<｜end▁of▁sentence｜>", "[EOS]", "<|im_end|>", "<|eot_id|>"]
        {
            let mut model = bpe_of("ab", &[]);
            model["vocab"][name] = json!(2);
            assert_eq!(load(&with_model(&model)).unwrap().end_of_document(), Some(2), "{name}");
        }
        let mut model = bpe_of("ab", &[]);
        assert_eq!(load(&with_model(&model)).unwrap().end_of_document(), None);
        model["vocab"]["</s>"] = json!(2);
        model["vocab"]["[MY END]"] = json!(3);
        let with_end_mark = |name: &str| {
            let mut parsed = with_model(&model);
            name_mark(&mut parsed, Mark::End, &TokenName::Text(name.to_owned())).unwrap();
            parsed.to_string().into_bytes()
        };
        let json = with_end_mark("[MY END]");
        let vocabulary = Vocabulary::from_json(json.clone(), serde_json::from_slice(&json).unwrap()).unwrap();
        assert_eq!(vocabulary.end_of_document(), Some(3));
        let again = vocabulary.json().to_vec();
        let again = Vocabulary::from_json(again.clone(), serde_json::from_slice(&again).unwrap()).unwrap();
        assert_eq!(again.end_of_document(), Some(3), "what was saved still knows it");
        let json = with_end_mark("[NONE]");
        let message =
            Vocabulary::from_json(json.clone(), serde_json::from_slice(&json).unwrap()).unwrap_err();
        assert!(
            message.starts_with("it has no token `[NONE]`: set `data.tokenizer.file.end_of_document`"),
            "{message}"
        );
    }

    #[test]
    fn a_crafted_file_is_refused_and_neither_panics_nor_fills_the_memory() {
        let refused = |change: &dyn Fn(&mut Value)| {
            let mut tokenizer = with_model(&bpe_of("ab", &[]));
            change(&mut tokenizer);
            load(&tokenizer)
                .and_then(|vocabulary| vocabulary.encode(&"ab ".repeat(1000)).map_err(|e| e.to_string()))
        };
        let replace = |pattern: &str, content: String| json!({"type": "Replace", "pattern": {"String": pattern}, "content": content});
        let bomb = json!({"type": "Sequence", "normalizers": vec![replace("a", "a".repeat(60)); 30]});
        let decoders = json!({"type": "Sequence", "decoders": vec![replace("a", "a".repeat(60)); 30]});
        for (name, result) in [
            ("an empty pattern", refused(&|file| file["normalizer"] = replace("", "x".into()))),
            (
                "an empty pattern, nested",
                refused(&|file| {
                    file["normalizer"] =
                        json!({"type": "Sequence", "normalizers": [replace("", "x".into())]});
                }),
            ),
            ("a long replacement", refused(&|file| file["normalizer"] = replace("a", "x".repeat(10_000)))),
            ("a chain", refused(&|file| file["normalizer"] = bomb.clone())),
            ("a chain of decoders", refused(&|file| file["decoder"] = decoders.clone())),
            ("a decoder that is none", refused(&|file| file["decoder"] = json!({"type": 3}))),
            ("a decoder of no kind", refused(&|file| file["decoder"] = json!("x"))),
            ("a huge id", refused(&|file| file["model"]["vocab"]["c"] = json!(u32::MAX))),
            ("no model", refused(&|file| file["model"] = Value::Null)),
            ("no vocabulary", refused(&|file| file["model"]["vocab"] = json!({}))),
        ] {
            let message = result.expect_err(name);
            assert!(message.len() < 500, "{name}: {message}");
        }
    }
}
