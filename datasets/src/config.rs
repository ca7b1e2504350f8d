//! What the user writes in `[data]`.
//!
//! One source table, at most one tokenizer table and at most one split rule: closed choices are
//! externally tagged enums, each variant a table of its name. An error inside keeps its key and its
//! position in the file, which an internally tagged enum (`type = "text"` beside the keys) would
//! lose.

mod split;

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use switchyard_ground::key_error::KeyError;
use switchyard_ground::open_choice::OpenChoice;

pub use split::{SplitConfig, SplitFractions};

/// Share of the documents that validates when no split rule is given.
pub const DEFAULT_VALIDATION_FRACTION: f64 = 0.05;

/// Smallest trained vocabulary: every byte, and the end-of-document mark.
/// Ids of the tokenizer whose ids are bytes.
pub(crate) const BYTES_VOCAB_SIZE: usize = 256;
/// One more than the bytes.
const MIN_BPE_VOCAB_SIZE: usize = BYTES_VOCAB_SIZE + 1;
const MAX_BPE_VOCAB_SIZE: usize = 1 << 18;
/// What 16-bit ids can tell apart.
const MAX_16_BIT_VOCAB_SIZE: usize = 1 << 16;
/// More ids than any vocabulary has; what is beyond is a mistake, and would ask for gigabytes of
/// embeddings.
pub(crate) const MAX_VOCAB_SIZE: usize = 1 << 24;
/// Largest document, unless `data.text.max_document_bytes` says otherwise: a compressed file of a
/// few kilobytes can unpack to more than the memory holds.
const DEFAULT_MAX_DOCUMENT_BYTES: u64 = 2 << 30;
/// Bound on the transition tables of the synthetic source: 8 bytes an entry, so half a gigabyte.
const MAX_SYNTHETIC_TABLE_ENTRIES: usize = 1 << 26;

/// Text and tokenizer of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "DataTables", into = "DataTables")]
pub struct DataConfig {
    /// Folder of prepared corpora; absent is `SWITCHYARD_CACHE_DIR`, else `switchyard` in the
    /// user's cache folder.
    pub cache_dir: Option<PathBuf>,
    /// Give the model the documents' borders, so that no token attends across one; default false.
    pub mask_documents: bool,
    /// Where the text comes from.
    pub source: SourceConfig,
    /// How text becomes ids; absent is bytes. Not for sources of ids.
    pub tokenizer: Option<TokenizerConfig>,
    /// Which part validates; absent is 5 % of the documents, chosen by their hash.
    pub split: Option<SplitConfig>,
}

/// Where the text of a run comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceConfig {
    /// The archives of the crates that Switchyard itself is built from.
    Crates(CratesConfig),
    /// Local text.
    Text(TextConfig),
    /// A generated mixture of hidden domains with a known entropy floor.
    Synthetic(SyntheticConfig),
    /// Files of token ids, as nanoGPT, llm.c and Megatron-LM write them.
    Tokens(TokensConfig),
}

/// Text and tokenizer of a run: [`DataConfig`] as it is written, the source beside the other keys.
// A flattened enum would lose the position of an error, and let misspelt keys pass.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)] // A misspelt key must stop the run, not prepare another corpus.
#[schemars(extend("oneOf" = [
    { "required": ["crates"] }, { "required": ["text"] }, { "required": ["synthetic"] }, { "required": ["tokens"] }
]))]
struct DataTables {
    /// Folder of prepared corpora; absent is `SWITCHYARD_CACHE_DIR`, else `switchyard` in the
    /// user's cache folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cache_dir: Option<PathBuf>,
    /// Give the model the documents' borders, so that no token attends across one; default false.
    #[serde(default)]
    mask_documents: bool,
    /// Source: the archives of the crates that Switchyard itself is built from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crates: Option<CratesConfig>,
    /// Source: local text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<TextConfig>,
    /// Source: a generated mixture of hidden domains with a known entropy floor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    synthetic: Option<SyntheticConfig>,
    /// Source: files of token ids, as nanoGPT, llm.c and Megatron-LM write them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tokens: Option<TokensConfig>,
    /// How text becomes ids; absent is bytes. Not for `synthetic` and `tokens`, which are ids
    /// already.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "switchyard_ground::open_choice")]
    #[schemars(with = "OpenChoice<TokenizerConfig>")]
    tokenizer: Option<TokenizerConfig>,
    /// Which part validates; absent is 5 % of the documents, chosen by their hash.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "switchyard_ground::open_choice")]
    #[schemars(with = "OpenChoice<SplitConfig>")]
    split: Option<SplitConfig>,
}

impl TryFrom<DataTables> for DataConfig {
    type Error = &'static str;

    fn try_from(tables: DataTables) -> Result<Self, Self::Error> {
        let DataTables { cache_dir, mask_documents, crates, text, synthetic, tokens, tokenizer, split } =
            tables;
        let sources = [
            crates.map(SourceConfig::Crates),
            text.map(SourceConfig::Text),
            synthetic.map(SourceConfig::Synthetic),
            tokens.map(SourceConfig::Tokens),
        ];
        let mut given = sources.into_iter().flatten();
        match (given.next(), given.next()) {
            (Some(source), None) => Ok(Self { cache_dir, mask_documents, source, tokenizer, split }),
            _ => Err("wanted exactly one of `crates`, `text`, `synthetic`, `tokens`"),
        }
    }
}

impl From<DataConfig> for DataTables {
    fn from(config: DataConfig) -> Self {
        let DataConfig { cache_dir, mask_documents, source, tokenizer, split } = config;
        let (crates, text, synthetic, tokens) = (None, None, None, None);
        let tables = Self { cache_dir, mask_documents, crates, text, synthetic, tokens, tokenizer, split };
        match source {
            SourceConfig::Crates(crates) => Self { crates: Some(crates), ..tables },
            SourceConfig::Text(text) => Self { text: Some(text), ..tables },
            SourceConfig::Synthetic(synthetic) => Self { synthetic: Some(synthetic), ..tables },
            SourceConfig::Tokens(tokens) => Self { tokens: Some(tokens), ..tables },
        }
    }
}

impl SourceConfig {
    /// Whether the source is made of ids, which no tokenizer here has made.
    pub fn is_of_ids(&self) -> bool {
        matches!(self, Self::Synthetic(_) | Self::Tokens(_))
    }
}

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
    /// Ids to train on: a file of them, or the `.idx` of a Megatron dataset, which says where the
    /// documents are.
    pub train: PathBuf,
    /// Ids to validate on; absent needs `[data.split.tail]`, which takes them from the end of
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

/// `[data.tokenizer]`: at most one of the tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TokenizerConfig {
    /// One id per byte: 256 ids, nothing to train.
    Bytes {},
    /// Byte-level byte-pair encoding (arXiv:1508.07909), trained on the training split.
    Bpe(BpeTokenizerConfig),
    /// A `tokenizer.json` made elsewhere.
    File(FileTokenizerConfig),
}

/// `[data.tokenizer.bpe]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BpeTokenizerConfig {
    /// Number of ids: 256 bytes, the end-of-document mark, the rest merges; in `257..=262144`.
    pub vocab_size: usize,
}

/// `[data.tokenizer.file]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileTokenizerConfig {
    /// The `tokenizer.json`.
    pub path: PathBuf,
    /// The token that ends a document, such as `[EOS]`; absent is the first of the usual names that
    /// the vocabulary has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_of_document: Option<String>,
    /// What to do with text for which the vocabulary has no id, not even one for unknown text;
    /// absent is `stop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_unknown_text: Option<OnTrouble>,
}

impl FileTokenizerConfig {
    /// The `tokenizer.json` at `path`, with the defaults.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), end_of_document: None, on_unknown_text: None }
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

    fn validate(&self) -> Result<(), KeyError> {
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

impl TokenizerConfig {
    fn validate(&self) -> Result<(), KeyError> {
        match self {
            Self::Bpe(bpe) => require_range(
                "tokenizer.bpe.vocab_size",
                bpe.vocab_size,
                MIN_BPE_VOCAB_SIZE,
                MAX_BPE_VOCAB_SIZE,
            ),
            Self::Bytes {} | Self::File(_) => Ok(()),
        }
    }

    /// The name of its table.
    fn name(&self) -> &'static str {
        match self {
            Self::Bytes {} => "bytes",
            Self::Bpe(_) => "bpe",
            Self::File(_) => "file",
        }
    }
}

impl DataConfig {
    /// The text of `source`, as bytes, with the default split and cache.
    pub fn new(source: SourceConfig) -> Self {
        Self { cache_dir: None, mask_documents: false, source, tokenizer: None, split: None }
    }

    /// Whether some of the text is kept for the last word.
    pub fn has_test_split(&self) -> bool {
        let has_file = matches!(&self.source, SourceConfig::Tokens(tokens) if tokens.test.is_some());
        has_file || self.split.as_ref().is_some_and(|split| split.fractions().test_fraction > 0.0)
    }

    /// Nothing, if the values make sense together; touches no file.
    ///
    /// # Errors
    /// The first offending key, with what is allowed.
    pub fn validate(&self) -> Result<(), KeyError> {
        self.validate_tokenizer()?;
        self.split.as_ref().map_or(Ok(()), SplitConfig::validate)?;
        match &self.source {
            SourceConfig::Crates(CratesConfig { max_bytes: Some(0) }) => {
                Err(KeyError::new("crates.max_bytes", "is 0", "use at least 1, or leave it out"))
            }
            SourceConfig::Crates(_) => Ok(()),
            SourceConfig::Text(text) => text.validate(),
            SourceConfig::Synthetic(synthetic) => synthetic.validate(),
            SourceConfig::Tokens(tokens) => self.validate_tokens(tokens),
        }
    }

    fn validate_tokenizer(&self) -> Result<(), KeyError> {
        let Some(tokenizer) = &self.tokenizer else { return Ok(()) };
        let source = match &self.source {
            SourceConfig::Synthetic(_) => "synthetic",
            SourceConfig::Tokens(_) => "tokens",
            SourceConfig::Crates(_) | SourceConfig::Text(_) => return tokenizer.validate(),
        };
        let path = format!("tokenizer.{}", tokenizer.name());
        let problem = format!("has no effect on `{source}`, which is made of ids already");
        Err(KeyError::new(path, problem, "remove it").naming(source))
    }

    fn validate_tokens(&self, tokens: &TokensConfig) -> Result<(), KeyError> {
        require_range("tokens.vocab_size", tokens.vocab_size, 2, MAX_VOCAB_SIZE)?;
        if tokens.dtype == Some(TokenDtype::U16) {
            require_range("tokens.vocab_size", tokens.vocab_size, 2, MAX_16_BIT_VOCAB_SIZE)?;
        }
        if self.mask_documents && !tokens.have_documents() {
            let problem = "is true, but files of token ids carry no document borders";
            let remedy = "set it to false, or name the `.idx` files of a Megatron dataset";
            return Err(KeyError::new("mask_documents", problem, remedy));
        }
        if tokens.test.is_some() && tokens.validation.is_none() {
            let problem = "is given without `tokens.validation`";
            let remedy =
                "name a validation file too, or take both from the end of `tokens.train` with `split.tail`";
            let error = KeyError::new("tokens.test", problem, remedy).naming("tokens.validation");
            return Err(error.naming("tokens.train").naming("split.tail"));
        }
        if self.split.as_ref().is_some_and(|split| split.fractions().max_overlap.is_some()) {
            let problem = "is given, but files of token ids carry no documents that could be left out";
            return Err(KeyError::new("split.tail.max_overlap", problem, "leave it out"));
        }
        match (&tokens.validation, &self.split) {
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
}

impl TokensConfig {
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
    fn validate(&self) -> Result<(), KeyError> {
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

fn require_range(key: &str, value: usize, min: usize, max: usize) -> Result<(), KeyError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(KeyError::new(key, format!("is {value}"), format!("use {min}..={max}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> DataConfig {
        toml::from_str(text).unwrap()
    }

    fn message(text: &str) -> String {
        parse(text).validate().unwrap_err().to_string()
    }

    #[test]
    fn exactly_one_source_is_accepted() {
        assert!(parse("crates = {}").validate().is_ok());
        for text in ["", "crates = {}\n[text]\npath = 'a.txt'"] {
            let message = toml::from_str::<DataConfig>(text).unwrap_err().to_string();
            assert!(message.contains("exactly one of `crates`, `text`"), "{message}");
        }
    }

    #[test]
    fn an_empty_table_is_the_default_choice() {
        let config = parse("crates = {}\ntokenizer = {}\nsplit = {}");
        assert_eq!(config, parse("crates = {}"));
        assert_eq!(toml::to_string(&config).unwrap(), "mask_documents = false\n\n[crates]\n");
    }

    #[test]
    fn a_misspelt_key_is_refused() {
        let error = toml::from_str::<DataConfig>("[crates]\nmax_byte = 3").unwrap_err().to_string();
        assert!(error.contains("max_byte"), "{error}");
    }

    #[test]
    fn values_out_of_range_name_key_value_and_range() {
        assert_eq!(
            message("crates = {}\ntokenizer.bpe.vocab_size = 200"),
            "`tokenizer.bpe.vocab_size` is 200: use 257..=262144"
        );
        assert_eq!(
            message("crates = {}\nsplit.tail.validation_fraction = 1.0"),
            "`split.tail.validation_fraction` is 1: use a share above 0 and below 1, such as 0.05"
        );
        assert_eq!(
            message("crates = {}\nsplit.tail.validation_fraction = nan"),
            "`split.tail.validation_fraction` is NaN: use a share above 0 and below 1, such as 0.05"
        );
    }

    #[test]
    fn sources_of_ids_refuse_a_tokenizer() {
        let synthetic = "[synthetic]\nnum_domains = 2\nvocab_size = 16\nnum_documents = 9\ndocument_tokens = 5\n\
                         branching = 2\n";
        assert_eq!(parse(synthetic).vocab_size().unwrap(), 16);
        assert_eq!(
            message(&format!("tokenizer.bytes = {{}}\n{synthetic}")),
            "`tokenizer.bytes` has no effect on `synthetic`, which is made of ids already: remove it"
        );
    }

    #[test]
    fn token_files_need_one_validation_split() {
        let tokens = "[tokens]\ntrain = 'a.bin'\nvocab_size = 100\n";
        assert!(message(tokens).starts_with("`tokens.validation` is missing"));
        assert!(parse(&format!("split.tail.validation_fraction = 0.1\n{tokens}")).validate().is_ok());
        let both = format!("split.tail.validation_fraction = 0.1\n{tokens}validation = 'b.bin'\n");
        assert!(message(&both).starts_with("`split` is given beside"));
    }

    #[test]
    fn what_was_parsed_is_what_is_written_back() {
        let config =
            parse("crates = {}\ntokenizer.bpe.vocab_size = 1000\nsplit.tail.validation_fraction = 0.1");
        assert_eq!(parse(&toml::to_string(&config).unwrap()), config);
        assert_eq!(config.vocab_size().unwrap(), 1000);
        assert_eq!(parse("crates = {}").vocab_size().unwrap(), 256);
    }
}
