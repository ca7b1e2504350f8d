//! What the user writes in `[data]`.
//!
//! One source table or several sources in shares, at most one tokenizer table and at most one split
//! rule: closed choices are externally tagged enums, each variant a table of its name. An error inside keeps its key and its
//! position in the file, which an internally tagged enum (`type = "text"` beside the keys) would
//! lose.

mod mixture;
mod source;
mod split;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use switchyard_ground::key_error::KeyError;
use switchyard_ground::open_choice::OpenChoice;

pub use mixture::{MixtureSourceConfig, SourceWeights, WeightChange};
pub(crate) use source::is_megatron_index;
pub use source::{CratesConfig, OnTrouble, SyntheticConfig, TextConfig, TokenDtype, TokensConfig};
pub use split::{SplitConfig, SplitFractions};

/// Share of the documents that validates when no split rule is given.
pub const DEFAULT_VALIDATION_FRACTION: f64 = 0.05;

/// Ids of the tokenizer whose ids are bytes.
pub(crate) const BYTES_VOCAB_SIZE: usize = 256;
/// Smallest trained vocabulary: every byte, and the end-of-document mark.
const MIN_BPE_VOCAB_SIZE: usize = BYTES_VOCAB_SIZE + 1;
const MAX_BPE_VOCAB_SIZE: usize = 1 << 18;
/// More ids than any vocabulary has; what is beyond is a mistake, and would ask for gigabytes of
/// embeddings.
pub(crate) const MAX_VOCAB_SIZE: usize = 1 << 24;

/// Text and tokenizer of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "DataTables", into = "DataTables")]
pub struct DataConfig {
    /// Folder of prepared corpora; absent is `SWITCHYARD_CACHE_DIR`, else `switchyard` in the
    /// user's cache folder.
    pub cache_dir: Option<PathBuf>,
    /// Give the model the documents' borders, so that no token attends across one; default false.
    pub mask_documents: bool,
    /// How training sequences are made of documents.
    pub packing: Packing,
    /// Where the text comes from.
    pub source: SourceConfig,
    /// How text becomes ids; absent is bytes. Not for sources of ids.
    pub tokenizer: Option<TokenizerConfig>,
    /// Which part validates; absent is 5 % of the documents, chosen by their hash.
    pub split: Option<SplitConfig>,
}

/// How training sequences are made of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// All documents one after the other, cut every `seq_len` tokens.
    #[default]
    Concatenate,
    /// Whole documents where they fit best, each seen alone; the rest of a sequence is padding, which
    /// does not count (arXiv:2404.10830). Longer documents are cut.
    BestFit,
}

impl Packing {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
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
    /// Several of them, in shares.
    Mixture(Vec<MixtureSourceConfig>),
}

/// Text and tokenizer of a run: [`DataConfig`] as it is written, the source beside the other keys.
// A flattened enum would lose the position of an error, and let misspelt keys pass.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)] // A misspelt key must stop the run, not prepare another corpus.
#[schemars(extend("oneOf" = [
    { "required": ["crates"] }, { "required": ["text"] }, { "required": ["synthetic"] }, { "required": ["tokens"] },
    { "required": ["sources"] }
]))]
struct DataTables {
    /// Folder of prepared corpora; absent is `SWITCHYARD_CACHE_DIR`, else `switchyard` in the
    /// user's cache folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cache_dir: Option<PathBuf>,
    /// Give the model the documents' borders, so that no token attends across one; default false.
    #[serde(default)]
    mask_documents: bool,
    /// How training sequences are made of documents: `concatenate` (default), or `best_fit` for whole
    /// documents with padding.
    #[serde(default, skip_serializing_if = "Packing::is_default")]
    packing: Packing,
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
    /// Several sources in shares, each with a name, a weight and a source table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sources: Option<Vec<MixtureSourceConfig>>,
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
        let DataTables { cache_dir, mask_documents, packing, crates, text, synthetic, tokens, .. } = tables;
        let has_one = crates.is_some() || text.is_some() || synthetic.is_some() || tokens.is_some();
        let source = match tables.sources {
            Some(_) if has_one => None,
            Some(sources) => Some(SourceConfig::Mixture(sources)),
            None => SourceConfig::only_one_of(crates, text, synthetic, tokens),
        };
        let source =
            source.ok_or("wanted exactly one of `crates`, `text`, `synthetic`, `tokens`, `sources`")?;
        let (tokenizer, split) = (tables.tokenizer, tables.split);
        Ok(Self { cache_dir, mask_documents, packing, source, tokenizer, split })
    }
}

impl From<DataConfig> for DataTables {
    fn from(config: DataConfig) -> Self {
        let DataConfig { cache_dir, mask_documents, packing, source, tokenizer, split } = config;
        let (crates, text, synthetic, tokens, sources) = (None, None, None, None, None);
        let tables = Self {
            cache_dir,
            mask_documents,
            packing,
            crates,
            text,
            synthetic,
            tokens,
            sources,
            tokenizer,
            split,
        };
        match source {
            SourceConfig::Crates(crates) => Self { crates: Some(crates), ..tables },
            SourceConfig::Text(text) => Self { text: Some(text), ..tables },
            SourceConfig::Synthetic(synthetic) => Self { synthetic: Some(synthetic), ..tables },
            SourceConfig::Tokens(tokens) => Self { tokens: Some(tokens), ..tables },
            SourceConfig::Mixture(sources) => Self { sources: Some(sources), ..tables },
        }
    }
}

impl SourceConfig {
    /// Whether the source is made of ids, which no tokenizer here has made.
    pub fn is_of_ids(&self) -> bool {
        match self {
            Self::Synthetic(_) | Self::Tokens(_) => true,
            Self::Crates(_) | Self::Text(_) => false,
            Self::Mixture(sources) => sources.iter().all(|source| source.source.is_of_ids()),
        }
    }

    /// The name of its table.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Crates(_) => "crates",
            Self::Text(_) => "text",
            Self::Synthetic(_) => "synthetic",
            Self::Tokens(_) => "tokens",
            Self::Mixture(_) => "sources",
        }
    }

    /// The source that is given, unless it is none or several.
    fn only_one_of(
        crates: Option<CratesConfig>,
        text: Option<TextConfig>,
        synthetic: Option<SyntheticConfig>,
        tokens: Option<TokensConfig>,
    ) -> Option<Self> {
        let sources = [
            crates.map(Self::Crates),
            text.map(Self::Text),
            synthetic.map(Self::Synthetic),
            tokens.map(Self::Tokens),
        ];
        let mut given = sources.into_iter().flatten();
        given.next().filter(|_| given.next().is_none())
    }

    /// For a single source of ids its table and the number of ids.
    fn vocab_size_of_ids(&self) -> Option<(&'static str, usize)> {
        match self {
            Self::Synthetic(synthetic) => Some((self.name(), synthetic.vocab_size)),
            Self::Tokens(tokens) => Some((self.name(), tokens.vocab_size)),
            Self::Crates(_) | Self::Text(_) | Self::Mixture(_) => None,
        }
    }

    /// Nothing, if the values of a single source make sense in `data` under `split`.
    fn validate(&self, split: Option<&SplitConfig>, data: &DataConfig) -> Result<(), KeyError> {
        if let Self::Tokens(tokens) = self
            && !data.packing.is_default()
            && !tokens.have_documents()
        {
            let problem = "is \"best_fit\", but files of token ids carry no document borders";
            let remedy = "leave it out, or name the `.idx` files of a Megatron dataset";
            return Err(KeyError::new("packing", problem, remedy));
        }
        match self {
            Self::Crates(crates) => crates.validate(),
            Self::Text(text) => text.validate(),
            Self::Synthetic(synthetic) => synthetic.validate(),
            Self::Tokens(tokens) => tokens.validate(split, data.mask_documents),
            Self::Mixture(_) => Ok(()),
        }
    }
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
    /// The token that begins each document, such as `<s>`, or its id; absent is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begin_of_document: Option<TokenName>,
    /// The token that ends each document, such as `[EOS]`, or its id; absent is the first of the
    /// usual names that the vocabulary has, where a source has several documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_of_document: Option<TokenName>,
    /// What to do with text for which the vocabulary has no id, not even one for unknown text;
    /// absent is `stop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_unknown_text: Option<OnTrouble>,
}

/// A token of a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "the text of a token or its id is expected")]
pub enum TokenName {
    /// Its id.
    Id(u32),
    /// Its text.
    Text(String),
}

impl From<&str> for TokenName {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl FileTokenizerConfig {
    /// The `tokenizer.json` at `path`, with the defaults.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), begin_of_document: None, end_of_document: None, on_unknown_text: None }
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
        let packing = Packing::default();
        Self { cache_dir: None, mask_documents: false, packing, source, tokenizer: None, split: None }
    }

    /// Whether some of the text is kept for the last word; of several sources, of any.
    pub fn has_test_split(&self) -> bool {
        if let SourceConfig::Mixture(sources) = &self.source {
            return sources.iter().any(|source| source.alone(self).has_test_split());
        }
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
            SourceConfig::Mixture(sources) => mixture::validate(sources, self),
            source => source.validate(self.split.as_ref(), self),
        }
    }

    fn validate_tokenizer(&self) -> Result<(), KeyError> {
        let Some(tokenizer) = &self.tokenizer else { return Ok(()) };
        if !self.source.is_of_ids() {
            return tokenizer.validate();
        }
        let source = self.source.name();
        let path = format!("tokenizer.{}", tokenizer.name());
        let problem = format!("has no effect on `{source}`, which is made of ids already");
        Err(KeyError::new(path, problem, "remove it").naming(source))
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
        let packed = format!("packing = 'best_fit'\n{tokens}validation = 'b.bin'\n");
        assert!(message(&packed).starts_with("`packing` is \"best_fit\", but files of token ids"));
        assert!(parse(&packed.replace(".bin", ".idx")).validate().is_ok());
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
