//! The tables that a source is given by.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use switchyard_ground::key_error::KeyError;

use super::split::SplitConfig;
use super::{MAX_VOCAB_SIZE, require_range};

/// What 16-bit ids can tell apart.
const MAX_16_BIT_VOCAB_SIZE: usize = 1 << 16;
/// Largest document, unless `data.text.max_document_bytes` says otherwise: a compressed file of a
/// few kilobytes can unpack to more than the memory holds.
const DEFAULT_MAX_DOCUMENT_BYTES: u64 = 2 << 30;
/// Bound on the transition tables of the synthetic source: 8 bytes an entry, so half a gigabyte.
const MAX_SYNTHETIC_TABLE_ENTRIES: usize = 1 << 26;

/// `[data.crates]`: source code and documentation that every machine which built Switchyard already
/// holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields)]
pub struct CratesConfig {
    /// Cut the corpus to at most this many bytes, a fair mixture of all crates; absent takes
    /// everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
}

/// `[data.text]`: a file, or a folder walked in sorted order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// A `.txt`, `.md` or `.jsonl` file, each also `.gz` or `.zst`, a `.parquet` file, or a folder of
    /// them.
    pub path: PathBuf,
    /// Field that holds the text in each line of a `.jsonl` file, `a.b` for field `b` of the object
    /// `a`; absent is `text`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jsonl_key: Option<String>,
    /// Column of a `.parquet` file that holds the text, `a.b` for field `b` of the struct `a`; absent
    /// is `text`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// What to do with a line of a `.jsonl` file, or a row of a `.parquet` file, that has no usable
    /// text; absent is `stop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_bad_line: Option<OnTrouble>,
    /// Text between two documents of a plain file, such as `<|endoftext|>`; it is in neither.
    /// Absent: a file is a document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// Largest document in bytes; absent is 2 GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_document_bytes: Option<u64>,
}

/// What to do with input that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
pub enum OnTrouble {
    /// End with an error that names it.
    #[default]
    Stop,
    /// Leave it out, count it, and say so.
    Skip,
}

/// `[data.synthetic]`: documents of hidden domains, each domain a sparse random Markov chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SyntheticConfig {
    /// Hidden domains; each document is drawn from one of them.
    pub num_domains: usize,
    /// Distinct ids, including id 0, the end-of-document mark.
    pub vocab_size: usize,
    /// Documents to generate, training and validation together.
    pub num_documents: u64,
    /// Mean tokens per document, its end mark included; lengths are geometric, at least 2.
    pub document_tokens: usize,
    /// Possible successors of each symbol within a domain.
    pub branching: usize,
    /// Seed of the chains and of the documents; default 0.
    #[serde(default)]
    pub seed: u64,
}

/// Width of the ids in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenDtype {
    /// 16 bits, as nanoGPT writes them.
    U16,
    /// 32 bits.
    U32,
}

/// `[data.tokens]`: little-endian ids, raw or behind the header of llm.c, or those of a Megatron
/// dataset, read where they lie.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokensConfig {
    /// Ids to train on: a file of them, the `.idx` of a Megatron dataset, which says where the
    /// documents are, a folder of such files, or their names with `*` for any text.
    pub train: PathBuf,
    /// Ids to validate on, in the same forms; absent needs `[data.split.tail]`, which takes them from the end of
    /// `train`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<PathBuf>,
    /// File of the test split, beside one of the validation split; absent makes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<PathBuf>,
    /// Number of distinct ids; each id in the files must be below it.
    pub vocab_size: usize,
    /// Width of the ids. Absent: as a header says, else 16 bits, unless they look like something
    /// else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<TokenDtype>,
}

impl CratesConfig {
    pub(super) fn validate(&self) -> Result<(), KeyError> {
        match self.max_bytes {
            Some(0) => Err(KeyError::new("crates.max_bytes", "is 0", "use at least 1, or leave it out")),
            _ => Ok(()),
        }
    }
}

impl TextConfig {
    /// The file or folder at `path`, with the defaults.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            jsonl_key: None,
            column: None,
            on_bad_line: None,
            separator: None,
            max_document_bytes: None,
        }
    }

    pub(crate) fn max_document_bytes(&self) -> u64 {
        self.max_document_bytes.unwrap_or(DEFAULT_MAX_DOCUMENT_BYTES)
    }

    pub(super) fn validate(&self) -> Result<(), KeyError> {
        if self.separator.as_deref() == Some("") {
            let remedy = "give the text between two documents, or leave it out";
            return Err(KeyError::new("text.separator", "is empty", remedy));
        }
        if self.jsonl_key.as_deref() == Some("") {
            return Err(KeyError::new("text.jsonl_key", "is empty", "name a field, or leave it out"));
        }
        if self.column.as_deref() == Some("") {
            return Err(KeyError::new("text.column", "is empty", "name a column, or leave it out"));
        }
        if self.max_document_bytes == Some(0) {
            let remedy = "use at least 1, or leave it out";
            return Err(KeyError::new("text.max_document_bytes", "is 0", remedy));
        }
        Ok(())
    }
}

impl TokensConfig {
    pub(super) fn validate(&self, split: Option<&SplitConfig>, mask_documents: bool) -> Result<(), KeyError> {
        require_range("tokens.vocab_size", self.vocab_size, 2, MAX_VOCAB_SIZE)?;
        if self.dtype == Some(TokenDtype::U16) {
            require_range("tokens.vocab_size", self.vocab_size, 2, MAX_16_BIT_VOCAB_SIZE)?;
        }
        if mask_documents && !self.have_documents() {
            let problem = "is true, but files of token ids carry no document borders";
            let remedy = "set it to false, or name the `.idx` files of a Megatron dataset";
            return Err(KeyError::new("mask_documents", problem, remedy));
        }
        if self.test.is_some() && self.validation.is_none() {
            let problem = "is given without `tokens.validation`";
            let remedy =
                "name a validation file too, or take both from the end of `tokens.train` with `split.tail`";
            let error = KeyError::new("tokens.test", problem, remedy).naming("tokens.validation");
            return Err(error.naming("tokens.train").naming("split.tail"));
        }
        if split.is_some_and(|split| split.fractions().max_overlap.is_some()) {
            let problem = "is given, but files of token ids carry no documents that could be left out";
            return Err(KeyError::new("split.tail.max_overlap", problem, "leave it out"));
        }
        match (&self.validation, split) {
            (Some(_), None) | (None, Some(SplitConfig::Tail(_))) => Ok(()),
            (Some(_), Some(_)) => {
                let problem = "is given beside `tokens.validation`, which is the validation split";
                Err(KeyError::new("split", problem, "remove one of them").naming("tokens.validation"))
            }
            (None, _) => {
                let remedy = "name a validation file, or take the end of `tokens.train` with `split.tail`";
                let error = KeyError::new("tokens.validation", "is missing", remedy);
                Err(error.naming("tokens.train").naming("split.tail"))
            }
        }
    }

    /// Whether every file comes with the borders of its documents.
    pub(crate) fn have_documents(&self) -> bool {
        let files = [Some(&self.train), self.validation.as_ref(), self.test.as_ref()];
        files.into_iter().flatten().all(|path| is_megatron_index(path))
    }
}

/// Whether `path` names the index of a Megatron dataset: by its ending.
pub(crate) fn is_megatron_index(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("idx"))
}

impl SyntheticConfig {
    pub(super) fn validate(&self) -> Result<(), KeyError> {
        require_range("synthetic.num_domains", self.num_domains, 1, usize::from(u16::MAX))?;
        require_range("synthetic.vocab_size", self.vocab_size, 3, MAX_VOCAB_SIZE)?;
        require_range("synthetic.document_tokens", self.document_tokens, 2, 1 << 24)?;
        require_range("synthetic.branching", self.branching, 1, self.vocab_size - 1)?;
        if self.num_documents < 2 {
            let problem = format!("is {}", self.num_documents);
            let remedy = "use at least 2, one for each split";
            return Err(KeyError::new("synthetic.num_documents", problem, remedy));
        }
        let entries = [self.num_domains, self.vocab_size, self.branching]
            .iter()
            .try_fold(1_usize, |product, factor| product.checked_mul(*factor));
        if entries.is_none_or(|entries| entries > MAX_SYNTHETIC_TABLE_ENTRIES) {
            let problem = format!(
                "asks for num_domains * vocab_size * branching = {} * {} * {} entries",
                self.num_domains, self.vocab_size, self.branching
            );
            let remedy = format!("keep the product within {MAX_SYNTHETIC_TABLE_ENTRIES}");
            return Err(KeyError::new("synthetic", problem, remedy));
        }
        Ok(())
    }
}
