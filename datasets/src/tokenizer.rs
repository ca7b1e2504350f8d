//! Text to ids and back.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::decode::DecodeStream;
use crate::error::DatasetError;
use crate::words::{cut_before_word, words};

/// Ids of the byte tokenizer.
pub(crate) const BYTES_VOCAB_SIZE: usize = 256;

/// What ends a document in a trained vocabulary.
pub(crate) const END_OF_DOCUMENT: &str = "<|endoftext|>";

/// Names under which other people's vocabularies keep their end-of-document mark, in order of preference.
const END_MARK_NAMES: [&str; 4] = [END_OF_DOCUMENT, "<|end_of_text|>", "</s>", "<eos>"];

/// Longest text handed to a vocabulary in one piece; see [`pieces`].
const MAX_PIECE_BYTES: usize = 1 << 20;
const MIN_PIECE_BYTES: usize = 1 << 16;

/// How text becomes ids and back. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Tokenizer {
    /// One id per byte; 0 doubles as end-of-document mark where a source has several documents.
    Bytes,
    /// A vocabulary of the crate `tokenizers`, trained here or read from a `tokenizer.json`.
    Vocabulary(Vocabulary),
    /// Ids as they are, written as decimal numbers: for sources that are made of ids.
    Ids {
        /// Number of distinct ids.
        vocab_size: usize,
        /// The id that ends a document, if documents end with one.
        end_of_document: Option<u32>,
    },
}

/// A vocabulary with the `tokenizer.json` that defines it.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    inner: Arc<tokenizers::Tokenizer>,
    json: Arc<[u8]>,
    vocab_size: usize,
    end_of_document: Option<u32>,
    /// Whether the ids of a text are those of its [`words`], one after the other.
    is_word_by_word: bool,
}

/// What stands in the saved file of a tokenizer that is no vocabulary.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlainTokenizerFile {
    switchyard_tokenizer: PlainTokenizer,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PlainTokenizer {
    Bytes,
    Ids { vocab_size: usize, end_of_document: Option<u32> },
}

impl Tokenizer {
    /// The tokenizer in the file at `path`: a `tokenizer.json`, or what [`Tokenizer::save`] wrote.
    ///
    /// # Errors
    /// If the file cannot be read, or holds no tokenizer.
    pub fn load(path: &Path) -> Result<Self, DatasetError> {
        let json = std::fs::read(path).map_err(DatasetError::io("read", path))?;
        Self::from_json(json)
            .map_err(|problem| DatasetError::Tokenizer { path: Some(path.to_path_buf()), problem })
    }

    /// The tokenizer that `json` defines: a `tokenizer.json`, or what [`Tokenizer::to_json`] returned.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_json(json: Vec<u8>) -> Result<Self, String> {
        if let Ok(file) = serde_json::from_slice::<PlainTokenizerFile>(&json) {
            return Ok(match file.switchyard_tokenizer {
                PlainTokenizer::Bytes => Self::Bytes,
                PlainTokenizer::Ids { vocab_size, end_of_document } => {
                    Self::Ids { vocab_size, end_of_document }
                }
            });
        }
        Vocabulary::from_json(json).map(Self::Vocabulary)
    }

    /// Writes the tokenizer to `path`; a vocabulary as a `tokenizer.json` that other programs read too.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), DatasetError> {
        std::fs::write(path, self.to_json()).map_err(DatasetError::io("write", path))
    }

    /// The tokenizer as the content of a file; a vocabulary as a `tokenizer.json` that other programs read too.
    pub fn to_json(&self) -> Vec<u8> {
        let plain = match self {
            Self::Vocabulary(vocabulary) => return vocabulary.json.to_vec(),
            Self::Bytes => "\"bytes\"".to_owned(),
            Self::Ids { vocab_size, end_of_document } => {
                let end = end_of_document.map_or("null".to_owned(), |id| id.to_string());
                format!("{{\"ids\":{{\"vocab_size\":{vocab_size},\"end_of_document\":{end}}}}}")
            }
        };
        format!("{{\"switchyard_tokenizer\":{plain}}}\n").into_bytes()
    }

    /// The same tokenizer for a model with `vocab_size` ids, at least as many as there are now; ids that the
    /// vocabulary does not know decode to nothing. No effect on bytes and ids.
    pub fn with_vocab_size(self, vocab_size: usize) -> Self {
        match self {
            Self::Vocabulary(vocabulary) => {
                let vocab_size = vocab_size.max(vocabulary.vocab_size);
                Self::Vocabulary(Vocabulary { vocab_size, ..vocabulary })
            }
            other => other,
        }
    }

    /// Number of ids; each id of [`Tokenizer::encode`] is below it.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Bytes => BYTES_VOCAB_SIZE,
            Self::Vocabulary(vocabulary) => vocabulary.vocab_size,
            Self::Ids { vocab_size, .. } => *vocab_size,
        }
    }

    /// The id that ends a document; none if the vocabulary has no such id.
    pub fn end_of_document(&self) -> Option<u32> {
        match self {
            Self::Bytes => Some(0),
            Self::Vocabulary(vocabulary) => vocabulary.end_of_document,
            Self::Ids { end_of_document, .. } => *end_of_document,
        }
    }

    /// sha256 of the tokenizer's file, in lower-case hexadecimal: equal for equal tokenizers only.
    pub fn hash(&self) -> String {
        crate::hash::hex(&self.hash_bytes())
    }

    pub(crate) fn hash_bytes(&self) -> [u8; 32] {
        Sha256::digest(self.to_json()).into()
    }

    /// Whether this is [`Tokenizer::Bytes`] and so on, in one word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Vocabulary(_) => "vocabulary",
            Self::Ids { .. } => "ids",
        }
    }

    /// Ids of `text`. Text never yields the end-of-document mark of a vocabulary, even where it spells it.
    ///
    /// # Errors
    /// If the vocabulary has no id for some of the text, or, for ids, if a word is not an id.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DatasetError> {
        match self {
            Self::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Self::Vocabulary(vocabulary) => {
                let mut ids = Vec::new();
                for piece in pieces(text) {
                    ids.extend(vocabulary.encode_piece(piece)?);
                }
                Ok(ids)
            }
            Self::Ids { vocab_size, .. } => {
                text.split_whitespace().map(|word| parse_id(word, *vocab_size)).collect()
            }
        }
    }

    /// Ids of each of `texts`, which are [`pieces`], on all cores; the same as encoding one by one.
    pub(crate) fn encode_all(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>, DatasetError> {
        match self {
            Self::Vocabulary(vocabulary) if vocabulary.is_word_by_word => vocabulary.encode_by_words(texts),
            _ => texts.par_iter().map(|text| self.encode(text)).collect(),
        }
    }

    /// Text of `ids`: the inverse of [`Tokenizer::encode`] for bytes and byte-level vocabularies. Bytes that are not
    /// UTF-8 become U+FFFD; unknown ids become nothing.
    ///
    /// # Errors
    /// If the vocabulary's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, DatasetError> {
        match self {
            Self::Bytes => {
                let bytes: Vec<u8> = ids.iter().filter_map(|id| u8::try_from(*id).ok()).collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Self::Vocabulary(vocabulary) => vocabulary.decode(ids),
            Self::Ids { .. } => Ok(ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")),
        }
    }

    /// A decoder that takes ids one at a time and yields text as soon as it is certain.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream::new(self)
    }
}

impl Vocabulary {
    fn from_json(json: Vec<u8>) -> Result<Self, String> {
        let mut inner = tokenizers::Tokenizer::from_bytes(&json)
            .map_err(|error| format!("not a tokenizer.json of the crate `tokenizers`: {error}"))?;
        // A corpus is encoded whole, and nothing in it may pass for a special token.
        inner.with_truncation(None).map_err(|error| error.to_string())?;
        inner.with_padding(None);
        inner.set_encode_special_tokens(true);
        let max_id = inner.get_vocab(true).into_values().max().ok_or("the vocabulary is empty")?;
        let end_of_document = END_MARK_NAMES.iter().find_map(|name| inner.token_to_id(name));
        Ok(Self {
            inner: Arc::new(inner),
            vocab_size: max_id as usize + 1,
            end_of_document,
            is_word_by_word: is_word_by_word(&json),
            json: json.into(),
        })
    }

    /// Encodes each different word once: text repeats its words often.
    fn encode_by_words(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>, DatasetError> {
        let words_of_text: Vec<Vec<&str>> =
            texts.par_iter().map(|text| words(text).map_err(vocabulary_error)).collect::<Result<_, _>>()?;
        let merge = |left: HashSet<_>, right: HashSet<_>| {
            let (mut larger, smaller) = if left.len() < right.len() { (right, left) } else { (left, right) };
            larger.extend(smaller);
            larger
        };
        let different: HashSet<&str> = words_of_text
            .par_iter()
            .fold(HashSet::new, |mut set, words| {
                set.extend(words);
                set
            })
            .reduce(HashSet::new, merge);
        let ids_of_word: HashMap<&str, Vec<u32>> = different
            .into_par_iter()
            .map(|word| Ok((word, self.encode_piece(word)?)))
            .collect::<Result<_, DatasetError>>()?;
        let join = |words: &Vec<&str>| words.iter().flat_map(|word| &ids_of_word[word]).copied().collect();
        Ok(words_of_text.par_iter().map(join).collect())
    }

    fn encode_piece(&self, piece: &str) -> Result<Vec<u32>, DatasetError> {
        let encoding = self.inner.encode_fast(piece, false).map_err(vocabulary_error)?;
        Ok(encoding.get_ids().to_vec())
    }

    fn decode(&self, ids: &[u32]) -> Result<String, DatasetError> {
        self.inner.decode(ids, false).map_err(vocabulary_error)
    }
}

/// Whether the tokenizer in `json` does nothing to a text but to split it by GPT-2's pattern and to encode the words.
fn is_word_by_word(json: &[u8]) -> bool {
    let Ok(tokenizer) = serde_json::from_slice::<serde_json::Value>(json) else { return false };
    let splitter = &tokenizer["pre_tokenizer"];
    let has_plain_added_token = tokenizer["added_tokens"]
        .as_array()
        .is_some_and(|tokens| tokens.iter().any(|token| token["special"] != true));
    tokenizer["normalizer"].is_null()
        && splitter["type"] == "ByteLevel"
        && splitter["add_prefix_space"] == false
        && splitter["use_regex"] != false
        && !has_plain_added_token
}

pub(crate) fn vocabulary_error(error: tokenizers::Error) -> DatasetError {
    DatasetError::Tokenizer { path: None, problem: format!("{error}: use another tokenizer for this text") }
}

fn parse_id(word: &str, vocab_size: usize) -> Result<u32, DatasetError> {
    match word.parse::<u32>() {
        Ok(id) if (id as usize) < vocab_size => Ok(id),
        _ => Err(DatasetError::Tokenizer {
            path: None,
            problem: format!(
                "`{word}` is not an id: this data is made of ids, give numbers below {vocab_size}"
            ),
        }),
    }
}

/// `text` in pieces that are encoded on their own, so that a long document needs bounded memory and several cores.
///
/// A piece ends where GPT-2's pattern ends a word anyhow: cutting there changes no id of a byte-level vocabulary. Text
/// without such a place is cut at [`MAX_PIECE_BYTES`].
pub(crate) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, after) = rest.split_at(piece_len(rest));
        rest = after;
        Some(piece)
    })
}

fn piece_len(text: &str) -> usize {
    let head = &text[..text.floor_char_boundary(MAX_PIECE_BYTES)];
    if head.len() <= MIN_PIECE_BYTES {
        return head.len();
    }
    cut_before_word(head, MIN_PIECE_BYTES).unwrap_or(head.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpe;

    fn trained() -> Tokenizer {
        bpe::train(["the cat and the hat, the bat".to_owned()].iter().map(String::as_str), 280).unwrap()
    }

    #[test]
    fn pieces_join_to_the_text_and_change_no_id() {
        let text = "the cat's hat\n\n  and   12 bats, ünd the… ".repeat(6000);
        let cut: Vec<&str> = pieces(&text).collect();
        assert!(cut.len() > 2 && cut.concat() == text);
        let Tokenizer::Vocabulary(vocabulary) = trained() else { panic!("a vocabulary was trained") };
        let whole = vocabulary.encode_piece(&text).unwrap();
        assert_eq!(Tokenizer::Vocabulary(vocabulary).encode(&text).unwrap(), whole);
        let solid = "é".repeat(MAX_PIECE_BYTES);
        assert_eq!(pieces(&solid).map(str::len).collect::<Vec<_>>(), [MAX_PIECE_BYTES, MAX_PIECE_BYTES]);
    }

    #[test]
    fn encoding_many_texts_is_encoding_each() {
        let Tokenizer::Vocabulary(vocabulary) = trained() else { panic!("a vocabulary was trained") };
        assert!(vocabulary.is_word_by_word);
        let texts = [include_str!("tokenizer.rs"), "the <|endoftext|> ünd\n  hat", "", "  "];
        let each: Vec<Vec<u32>> = texts.iter().map(|text| vocabulary.encode_piece(text).unwrap()).collect();
        assert_eq!(Tokenizer::Vocabulary(vocabulary).encode_all(&texts).unwrap(), each);
    }

    #[test]
    fn a_tokenizer_that_looks_across_words_is_not_taken_word_by_word() {
        let plain =
            r#"{"normalizer": null, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}}"#;
        assert!(is_word_by_word(plain.as_bytes()));
        for other in [
            plain.replace("false", "true"),
            plain.replace("ByteLevel", "Metaspace"),
            plain.replace("null", "{\"type\": \"NFC\"}"),
            plain.replace("{\"normalizer", "{\"added_tokens\": [{\"special\": false}], \"normalizer"),
        ] {
            assert!(!is_word_by_word(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn text_never_encodes_to_the_end_mark() {
        let tokenizer = trained();
        let end = tokenizer.end_of_document().unwrap();
        let ids = tokenizer.encode("the <|endoftext|> cat").unwrap();
        assert!(!ids.contains(&end));
        assert_eq!(tokenizer.decode(&ids).unwrap(), "the <|endoftext|> cat");
        assert_eq!(tokenizer.decode(&[end]).unwrap(), END_OF_DOCUMENT);
    }

    #[test]
    fn what_was_saved_loads_as_the_same_tokenizer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let ids = Tokenizer::Ids { vocab_size: 30, end_of_document: Some(0) };
        for tokenizer in [Tokenizer::Bytes, ids, trained()] {
            tokenizer.save(&path).unwrap();
            let loaded = Tokenizer::load(&path).unwrap();
            assert_eq!(loaded.hash(), tokenizer.hash());
            assert_eq!(loaded.kind(), tokenizer.kind());
            assert_eq!(loaded.end_of_document(), tokenizer.end_of_document());
        }
    }

    #[test]
    fn a_wider_model_keeps_its_vocabulary_size() {
        let tokenizer = trained().with_vocab_size(5000);
        assert_eq!(tokenizer.vocab_size(), 5000);
        assert_eq!(tokenizer.decode(&[4999]).unwrap(), "");
    }

    #[test]
    fn a_file_that_is_no_tokenizer_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, "{}").unwrap();
        let message = Tokenizer::load(&path).unwrap_err().to_string();
        assert!(message.contains("tokenizer.json`: not a tokenizer.json of the crate"), "{message}");
    }

    #[test]
    fn ids_are_numbers_below_the_vocabulary_size() {
        let tokenizer = Tokenizer::Ids { vocab_size: 30, end_of_document: None };
        assert_eq!(tokenizer.encode("1 2\n29").unwrap(), [1, 2, 29]);
        assert_eq!(tokenizer.decode(&[1, 2, 29]).unwrap(), "1 2 29");
        assert_eq!(
            tokenizer.encode("30").unwrap_err().to_string(),
            "tokenizer: `30` is not an id: this data is made of ids, give numbers below 30"
        );
    }
}
