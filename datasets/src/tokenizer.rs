//! Text to ids and back.

use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use switchyard_ground::hub_path::local;
use switchyard_ground::printable::excerpt;
use switchyard_ground::regular_file;

use crate::config::{
    BYTES_VOCAB_SIZE, DataConfig, FileTokenizerConfig, MAX_VOCAB_SIZE, SourceConfig, TokenizerConfig,
};
use crate::encoded::Encoded;
use crate::error::DatasetError;
use crate::pieces::{MIN_PIECE_BYTES, TextPiece, pieces};
use crate::seams::Seams;
use crate::vocabulary::{Mark, Vocabulary, name_mark};

/// Far more than any `tokenizer.json` has.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// Characters of a message of others, or of a word, that a message shows.
const SHOWN_CHARS: usize = 80;

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

impl DataConfig {
    /// Number of distinct ids, known before anything is prepared. A BPE that finds fewer merges
    /// than asked for keeps the configured number.
    ///
    /// # Errors
    /// An invalid configuration, or a `tokenizer.json` that cannot be read.
    pub fn vocab_size(&self) -> Result<usize, DatasetError> {
        self.validate().map_err(DatasetError::of_key)?;
        // All sources of a mixture have the ids of one tokenizer.
        let source = match &self.source {
            SourceConfig::Mixture(sources) => {
                let with_text = sources.iter().find(|source| !source.source.is_of_ids());
                with_text.or(sources.first()).map_or(&self.source, |source| &source.source)
            }
            single => single,
        };
        match (source, &self.tokenizer) {
            (SourceConfig::Synthetic(synthetic), _) => Ok(synthetic.vocab_size),
            (SourceConfig::Tokens(tokens), _) => Ok(tokens.vocab_size),
            (_, Some(TokenizerConfig::Bpe(bpe))) => Ok(bpe.vocab_size),
            (_, Some(TokenizerConfig::File(file))) => Ok(Tokenizer::of_config(file)?.vocab_size()),
            (_, Some(TokenizerConfig::Bytes {}) | None) => Ok(BYTES_VOCAB_SIZE),
        }
    }
}

impl Tokenizer {
    /// The tokenizer in the file at `path`: a `tokenizer.json`, or what [`Tokenizer::save`] wrote.
    ///
    /// # Errors
    /// If the file cannot be read, or holds no tokenizer.
    pub fn load(path: &Path) -> Result<Self, DatasetError> {
        Self::from_json(read(path)?).map_err(|problem| in_file(path, problem))
    }

    /// The tokenizer that `config` names, with the marks and the rule for unknown text that it
    /// asks for.
    ///
    /// # Errors
    /// If the file cannot be read, holds no tokenizer, or lacks a token that `config` names.
    pub fn of_config(config: &FileTokenizerConfig) -> Result<Self, DatasetError> {
        let FileTokenizerConfig { path, begin_of_document, end_of_document, on_unknown_text } = config;
        let mut json = read(&local(path, |_, _| false)?)?;
        let marks = [(Mark::Begin, begin_of_document), (Mark::End, end_of_document)];
        let mut named = marks.iter().filter_map(|(mark, name)| Some((*mark, name.as_ref()?))).peekable();
        let first_named = named.peek().map(|(mark, _)| *mark);
        if first_named.is_some() {
            let mut parsed = parse(&json).map_err(|problem| in_file(path, problem))?;
            named
                .try_for_each(|(mark, name)| name_mark(&mut parsed, mark, name))
                .map_err(|problem| in_file(path, problem))?;
            json = parsed.to_string().into_bytes();
        }
        match (Self::from_json(json).map_err(|problem| in_file(path, problem))?, first_named) {
            (Self::Vocabulary(vocabulary), _) => {
                Ok(Self::Vocabulary(vocabulary.on_unknown_text(on_unknown_text.unwrap_or_default())))
            }
            (other, None) => Ok(other),
            (_, Some(mark)) => Err(in_file(path, format!("it has no named tokens: remove `{}`", mark.key()))),
        }
    }

    /// The tokenizer that `json` defines: a `tokenizer.json`, or what [`Tokenizer::to_json`]
    /// returned.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_json(json: Vec<u8>) -> Result<Self, String> {
        let parsed = parse(&json)?;
        if parsed.get("switchyard_tokenizer").is_none() {
            return Vocabulary::from_json(json, parsed).map(Self::Vocabulary);
        }
        let file: PlainTokenizerFile =
            serde_json::from_value(parsed).map_err(|error| format!("`switchyard_tokenizer`: {error}"))?;
        match file.switchyard_tokenizer {
            PlainTokenizer::Bytes => Ok(Self::Bytes),
            PlainTokenizer::Ids { vocab_size, end_of_document } => {
                let has_end_mark = end_of_document.is_none_or(|id| (id as usize) < vocab_size);
                if vocab_size > MAX_VOCAB_SIZE || !has_end_mark {
                    let end_mark = end_of_document.map_or("none".to_owned(), |id| id.to_string());
                    return Err(format!(
                        "it has {vocab_size} ids, and {end_mark} for the end of a document: at most {MAX_VOCAB_SIZE} ids and an \
                         end mark below their number are expected"
                    ));
                }
                Ok(Self::Ids { vocab_size, end_of_document })
            }
        }
    }

    /// Writes the tokenizer to `path`; a vocabulary as a `tokenizer.json` that other programs read
    /// too.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), DatasetError> {
        switchyard_ground::durable::write_synced(path, &self.to_json())
            .map_err(DatasetError::io("write", path))
    }

    /// The tokenizer as the content of a file; a vocabulary as a `tokenizer.json` that other
    /// programs read too.
    pub fn to_json(&self) -> Vec<u8> {
        let plain = match self {
            Self::Vocabulary(vocabulary) => return vocabulary.json().to_vec(),
            Self::Bytes => "\"bytes\"".to_owned(),
            Self::Ids { vocab_size, end_of_document } => {
                let end = end_of_document.map_or("null".to_owned(), |id| id.to_string());
                format!("{{\"ids\":{{\"vocab_size\":{vocab_size},\"end_of_document\":{end}}}}}")
            }
        };
        format!("{{\"switchyard_tokenizer\":{plain}}}\n").into_bytes()
    }

    /// The same tokenizer for a model with `vocab_size` ids, at least as many as there are now; ids
    /// that the vocabulary does not know decode to nothing. No effect on bytes and ids.
    pub fn with_vocab_size(self, vocab_size: usize) -> Self {
        match self {
            Self::Vocabulary(vocabulary) => Self::Vocabulary(vocabulary.with_vocab_size(vocab_size)),
            other => other,
        }
    }

    /// Number of ids; each id of [`Tokenizer::encode`] is below it.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Bytes => BYTES_VOCAB_SIZE,
            Self::Vocabulary(vocabulary) => vocabulary.vocab_size(),
            Self::Ids { vocab_size, .. } => *vocab_size,
        }
    }

    /// The id that begins a document; `None` unless the configuration names one.
    pub fn begin_of_document(&self) -> Option<u32> {
        match self {
            Self::Vocabulary(vocabulary) => vocabulary.begin_of_document(),
            Self::Bytes | Self::Ids { .. } => None,
        }
    }

    /// The id that ends a document; `None` if the vocabulary has no such id.
    pub fn end_of_document(&self) -> Option<u32> {
        match self {
            Self::Bytes => Some(0),
            Self::Vocabulary(vocabulary) => vocabulary.end_of_document(),
            Self::Ids { end_of_document, .. } => *end_of_document,
        }
    }

    /// Whether the configuration names the id that ends a document.
    pub(crate) fn is_end_named(&self) -> bool {
        matches!(self, Self::Vocabulary(vocabulary) if vocabulary.is_end_named())
    }

    /// The number of the rules by which a tokenizer of a file is applied: another number where
    /// another version may have found other ids.
    ///
    /// Rules 2 cut a long text before a space between two words, and any text after a megabyte
    /// without one. Of tokenizers with all seams, that changed only what the second cut split.
    pub(crate) fn rules(&self) -> u32 {
        match self {
            Self::Vocabulary(vocabulary) if vocabulary.seams() != Seams::Words => 3,
            // Rules 2 gave no end mark to a single document.
            Self::Vocabulary(vocabulary) if vocabulary.is_end_named() => 3,
            Self::Vocabulary(_) | Self::Bytes | Self::Ids { .. } => 2,
        }
    }

    /// `text` in pieces whose ids, one after the other, are those of the text.
    pub(crate) fn pieces<'t>(&self, text: &'t str) -> Vec<TextPiece<'t>> {
        match self {
            Self::Vocabulary(vocabulary) => vocabulary.pieces(text).collect(),
            Self::Bytes | Self::Ids { .. } => pieces(text, Seams::Anywhere, MIN_PIECE_BYTES).collect(),
        }
    }

    /// The id that stands for text which the vocabulary cannot spell; `None` if it has no such id.
    pub(crate) fn unknown_id(&self) -> Option<u32> {
        match self {
            Self::Vocabulary(vocabulary) => vocabulary.unknown_id(),
            Self::Bytes | Self::Ids { .. } => None,
        }
    }

    /// sha256 of the tokenizer's file, in lower-case hexadecimal: equal for equal tokenizers only.
    pub fn hash(&self) -> String {
        switchyard_ground::digest::hex(&self.hash_bytes())
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

    /// Ids of `text`, without the marks of a document: of a vocabulary, those that the crate
    /// `tokenizers` gives the whole text in one call. Text never yields a special token of a
    /// vocabulary, such as the end-of-document mark, even where it spells it.
    ///
    /// # Errors
    /// If the vocabulary has no id for some of the text, or, for ids, if a word is not an id.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DatasetError> {
        match self {
            Self::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Self::Vocabulary(vocabulary) => vocabulary.encode(text),
            Self::Ids { vocab_size, .. } => {
                text.split_whitespace().map(|word| parse_id(word, *vocab_size)).collect()
            }
        }
    }

    /// Ids of each of `texts`, on all cores: pieces of a text give, one after the other, the ids of
    /// the text.
    pub(crate) fn encode_all(&self, texts: &[TextPiece<'_>]) -> Result<Vec<Encoded>, DatasetError> {
        match self {
            Self::Vocabulary(vocabulary) => vocabulary.encode_all(texts),
            Self::Bytes | Self::Ids { .. } => {
                texts.par_iter().map(|piece| self.encode(piece.text).map(Encoded::of_ids)).collect()
            }
        }
    }

    /// Text of `ids`: the inverse of [`Tokenizer::encode`] for bytes and byte-level vocabularies.
    /// Bytes that are not UTF-8 become U+FFFD; unknown ids become nothing.
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
}

fn read(path: &Path) -> Result<Vec<u8>, DatasetError> {
    regular_file::read(path, MAX_FILE_BYTES).map_err(DatasetError::io("read", path))
}

fn parse(json: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(json).map_err(|error| {
        let remedy = match json {
            [0xEF, 0xBB, 0xBF, ..] => "it begins with a byte order mark: save it without one",
            [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => "it is UTF-16: save it as UTF-8",
            _ if error.is_eof() => "it was cut short: get it again",
            _ => "a `tokenizer.json` is expected",
        };
        format!("it is not JSON ({error}): {remedy}")
    })
}

fn in_file(path: &Path, problem: String) -> DatasetError {
    DatasetError::Tokenizer { path: Some(path.to_path_buf()), problem }
}

fn parse_id(word: &str, vocab_size: usize) -> Result<u32, DatasetError> {
    match word.parse::<u32>() {
        Ok(id) if (id as usize) < vocab_size => Ok(id),
        _ => Err(DatasetError::Tokenizer {
            path: None,
            problem: format!(
                "`{}` is not an id: this data is made of ids, give numbers below {vocab_size}",
                excerpt(word, SHOWN_CHARS)
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpe;
    use crate::vocabulary::END_OF_DOCUMENT;

    fn trained() -> Tokenizer {
        bpe::train(["the cat and the hat, the bat".to_owned()].iter().map(String::as_str), 280).unwrap()
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
    fn what_is_wrong_with_a_file_is_said_as_it_is() {
        let utf16: Vec<u8> = "{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let ids = |ids: &str| format!("{{\"switchyard_tokenizer\":{ids}}}").into_bytes();
        for (file, reason) in [
            ("\u{feff}{}".into(), "byte order mark"),
            ([&[0xFF, 0xFE], &utf16[..]].concat(), "UTF-16"),
            ("{\"model\":".into(), "cut short"),
            ("nonsense".into(), "a `tokenizer.json` is expected"),
            ("[".repeat(100_000).into(), "recursion limit exceeded"),
            (ids("{}"), "`switchyard_tokenizer`: "),
            (ids("{\"ids\":{\"vocab_size\":9,\"end_of_document\":50}}"), "it has 9 ids, and 50 for the end"),
        ] {
            let problem = Tokenizer::from_json(file).unwrap_err();
            assert!(problem.contains(reason), "{reason:?} is not in {problem}");
        }
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
