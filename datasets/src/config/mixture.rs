//! `[[data.sources]]`: several sources in one run.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use switchyard_ground::key_error::KeyError;
use switchyard_ground::open_choice::OpenChoice;

use super::source::{CratesConfig, SyntheticConfig, TextConfig, TokensConfig};
use super::split::SplitConfig;
use super::{BYTES_VOCAB_SIZE, DataConfig, SourceConfig, TokenizerConfig};

/// Longest name of a source: it is part of the names of metrics.
const MAX_NAME_LEN: usize = 64;
/// More sources than anybody weighs by hand.
const MAX_SOURCES: usize = 1024;

/// One of several sources: an entry of `[[data.sources]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "MixtureSourceTables", into = "MixtureSourceTables")]
pub struct MixtureSourceConfig {
    /// Its name in metrics and messages: letters, digits, `_` and `-`.
    pub name: String,
    /// Its weight: its share of the training sequences is its weight in the sum of all weights; 0
    /// draws none of it.
    pub weights: SourceWeights,
    /// Where its text comes from; no mixture again.
    pub source: SourceConfig,
    /// Which part of it validates; absent is what `data.split` says.
    pub split: Option<SplitConfig>,
}

/// The weight of a source: `weight` at the first step, `weight_changes` from later ones on.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceWeights {
    /// From step 0 on.
    pub initial: f64,
    /// From later steps on, in their order.
    pub changes: Vec<WeightChange>,
}

/// Another weight from a step on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightChange {
    /// First optimizer step with it, at least 1.
    pub from_step: u64,
    /// The weight.
    pub weight: f64,
}

/// One of several sources: its name and weight, and one source table.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [
    { "required": ["crates"] }, { "required": ["text"] }, { "required": ["synthetic"] }, { "required": ["tokens"] }
]))]
struct MixtureSourceTables {
    /// Its name in metrics and messages: letters, digits, `_` and `-`.
    name: String,
    /// Its weight from the first step on. Its share of the training sequences is its weight in the
    /// sum of all weights; 0 draws none of it.
    weight: f64,
    /// Other weights from later steps on, in their order, as in
    /// `[{ from_step = 1000, weight = 0.2 }]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    weight_changes: Vec<WeightChange>,
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
    /// Which part of it validates; absent is what `data.split` says.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "switchyard_ground::open_choice")]
    #[schemars(with = "OpenChoice<SplitConfig>")]
    split: Option<SplitConfig>,
}

impl TryFrom<MixtureSourceTables> for MixtureSourceConfig {
    type Error = &'static str;

    fn try_from(tables: MixtureSourceTables) -> Result<Self, Self::Error> {
        let MixtureSourceTables { name, weight, weight_changes, crates, text, synthetic, tokens, split } =
            tables;
        let source = SourceConfig::only_one_of(crates, text, synthetic, tokens).ok_or(
            "wanted exactly one of `crates`, `text`, `synthetic`, `tokens` in each of `data.sources`",
        )?;
        Ok(Self { name, weights: SourceWeights { initial: weight, changes: weight_changes }, source, split })
    }
}

impl From<MixtureSourceConfig> for MixtureSourceTables {
    fn from(config: MixtureSourceConfig) -> Self {
        let MixtureSourceConfig { name, weights, source, split } = config;
        let SourceWeights { initial: weight, changes: weight_changes } = weights;
        let (crates, text, synthetic, tokens) = (None, None, None, None);
        let tables = Self { name, weight, weight_changes, crates, text, synthetic, tokens, split };
        match source {
            SourceConfig::Crates(crates) => Self { crates: Some(crates), ..tables },
            SourceConfig::Text(text) => Self { text: Some(text), ..tables },
            SourceConfig::Synthetic(synthetic) => Self { synthetic: Some(synthetic), ..tables },
            SourceConfig::Tokens(tokens) => Self { tokens: Some(tokens), ..tables },
            // Refused by `validate`; as no source at all it is refused once more when it is read.
            SourceConfig::Mixture(_) => tables,
        }
    }
}

impl SourceWeights {
    /// A weight that does not change.
    pub fn constant(weight: f64) -> Self {
        Self { initial: weight, changes: Vec::new() }
    }

    /// The weight at `step`.
    pub fn at(&self, step: u64) -> f64 {
        let last = self.changes.iter().rev().find(|change| change.from_step <= step);
        last.map_or(self.initial, |change| change.weight)
    }
}

impl MixtureSourceConfig {
    /// A source with a weight that does not change.
    pub fn new(name: impl Into<String>, weight: f64, source: SourceConfig) -> Self {
        Self { name: name.into(), weights: SourceWeights::constant(weight), source, split: None }
    }

    /// The split rule of this source, where `shared` is that of all. Files of ids with a validation
    /// file of their own have no use for a shared one.
    pub(crate) fn split_in<'a>(&'a self, shared: Option<&'a SplitConfig>) -> Option<&'a SplitConfig> {
        let has_file = matches!(&self.source, SourceConfig::Tokens(tokens) if tokens.validation.is_some());
        self.split.as_ref().or(if has_file { None } else { shared })
    }

    /// The configuration of this source alone, beside the other keys of `data`.
    pub(crate) fn alone(&self, data: &DataConfig) -> DataConfig {
        let tokenizer = if self.source.is_of_ids() { None } else { data.tokenizer.clone() };
        let split = self.split_in(data.split.as_ref()).cloned();
        DataConfig { source: self.source.clone(), tokenizer, split, ..data.clone() }
    }

    fn validate(&self) -> Result<(), KeyError> {
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == '-';
        if self.name.is_empty() || self.name.len() > MAX_NAME_LEN || !self.name.chars().all(is_plain) {
            let remedy = format!("use 1 to {MAX_NAME_LEN} letters, digits, `_` and `-`");
            return Err(KeyError::new("name", format!("is {:?}", self.name), remedy));
        }
        let weights = self.weights.changes.iter().map(|change| ("weight_changes", change.weight));
        for (key, weight) in [("weight", self.weights.initial)].into_iter().chain(weights) {
            if !(weight >= 0.0 && weight.is_finite()) {
                return Err(KeyError::new(key, format!("has {weight}"), "use a number of at least 0"));
            }
        }
        let steps = self.weights.changes.iter().map(|change| change.from_step);
        if !std::iter::once(0).chain(steps).is_sorted_by(|before, after| before < after) {
            let problem = "has a `from_step` of 0, or not after the one before it";
            return Err(KeyError::new(
                "weight_changes",
                problem,
                "give the changes in the order of their steps",
            ));
        }
        Ok(())
    }
}

/// Nothing, if the sources of `data` make sense, alone and together.
pub(super) fn validate(sources: &[MixtureSourceConfig], data: &DataConfig) -> Result<(), KeyError> {
    if sources.is_empty() || sources.len() > MAX_SOURCES {
        let problem = format!("has {} sources", sources.len());
        return Err(KeyError::new("sources", problem, format!("give 1 to {MAX_SOURCES}")));
    }
    let mut names = HashSet::new();
    for (index, source) in sources.iter().enumerate() {
        let at = |error: KeyError| error.under(&format!("sources[{index}]"));
        source.validate().map_err(at)?;
        if !names.insert(&source.name) {
            let problem = format!("is {:?}, as of an earlier source", source.name);
            return Err(at(KeyError::new("name", problem, "give each a name of its own")));
        }
        if let SourceConfig::Mixture(_) = source.source {
            return Err(at(KeyError::new("", "is a mixture itself", "list its sources beside the others")));
        }
        source.split.as_ref().map_or(Ok(()), SplitConfig::validate).map_err(at)?;
        let is_own = |error: &KeyError| source.split.is_some() || !error.path.starts_with("split");
        let is_of_all = |error: &KeyError| ["mask_documents", "packing"].contains(&error.path.as_str());
        let split = source.split_in(data.split.as_ref());
        let valid = source.source.validate(split, data);
        valid.map_err(|error| if !is_of_all(&error) && is_own(&error) { at(error) } else { error })?;
    }
    validate_weights(sources)?;
    validate_vocabularies(sources, data)
}

/// Nothing, if some source has a weight at every step.
fn validate_weights(sources: &[MixtureSourceConfig]) -> Result<(), KeyError> {
    let changes = sources.iter().flat_map(|source| &source.weights.changes).map(|change| change.from_step);
    for step in changes.chain([0]) {
        let sum: f64 = sources.iter().map(|source| source.weights.at(step)).sum();
        if !(sum > 0.0 && sum.is_finite()) {
            let problem = format!("have weights with the sum {sum} from step {step} on");
            return Err(KeyError::new("sources", problem, "give at least one a weight above 0"));
        }
    }
    Ok(())
}

/// Nothing, if all sources can have the ids of one tokenizer; that of a `tokenizer.json` is compared
/// when it is read.
fn validate_vocabularies(sources: &[MixtureSourceConfig], data: &DataConfig) -> Result<(), KeyError> {
    let has_text = sources.iter().any(|source| !source.source.is_of_ids());
    let mut expected = match &data.tokenizer {
        _ if !has_text => None,
        Some(TokenizerConfig::File(_)) => None,
        Some(TokenizerConfig::Bpe(bpe)) => Some(bpe.vocab_size),
        Some(TokenizerConfig::Bytes {}) | None => Some(BYTES_VOCAB_SIZE),
    };
    for (index, source) in sources.iter().enumerate() {
        let Some((table, vocab_size)) = source.source.vocab_size_of_ids() else { continue };
        let path = format!("sources[{index}].{table}");
        if has_text && matches!(data.tokenizer, Some(TokenizerConfig::Bpe(_))) {
            let problem = "has ids already, which cannot be of a tokenizer that is trained for this run";
            let remedy = "use `tokenizer.file` with the one that made the ids";
            return Err(KeyError::new(path, problem, remedy).naming("tokenizer.file"));
        }
        match expected {
            Some(expected) if expected != vocab_size => {
                let problem = format!("is {vocab_size}, but another source has {expected} ids");
                let remedy = "use the ids of one tokenizer in all sources";
                return Err(KeyError::new(format!("{path}.vocab_size"), problem, remedy));
            }
            _ => expected = Some(vocab_size),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "[[sources]]\nname = 'web'\nweight = 0.7\n[sources.text]\npath = 'web'\n\
                       [[sources]]\nname = 'code'\nweight = 0.3\nweight_changes = [{ from_step = 10, weight = 1.0 }]\n\
                       [sources.crates]\n";

    fn message(text: &str) -> String {
        toml::from_str::<DataConfig>(text).unwrap().validate().unwrap_err().to_string()
    }

    fn ids(name: &str, rest: &str) -> String {
        format!("[[sources]]\nname = '{name}'\nweight = 1.0\n[sources.tokens]\ntrain = 'a.bin'\n{rest}\n")
    }

    #[test]
    fn what_was_parsed_is_what_is_written_back() {
        let config: DataConfig = toml::from_str(TWO).unwrap();
        config.validate().unwrap();
        let SourceConfig::Mixture(sources) = &config.source else { panic!("a mixture is expected") };
        assert_eq!(sources[1].weights.changes, [WeightChange { from_step: 10, weight: 1.0 }]);
        assert_eq!(toml::from_str::<DataConfig>(&toml::to_string(&config).unwrap()).unwrap(), config);
        assert!(toml::from_str::<DataConfig>(&format!("crates = {{}}\n{TWO}")).is_err());
        assert!(toml::from_str::<DataConfig>("[[sources]]\nname = 'a'\nweight = 1.0").is_err());
    }

    #[test]
    fn errors_name_the_source_by_its_place() {
        let changed = |from: &str, to: &str| message(&TWO.replacen(from, to, 1));
        assert_eq!(
            changed("'code'", "'web'"),
            "`sources[1].name` is \"web\", as of an earlier source: give each a name of its own"
        );
        assert!(changed("'web'", "'w b'").starts_with("`sources[0].name` is \"w b\": use 1 to 64 letters"));
        assert!(changed("0.7", "-1.0").starts_with("`sources[0].weight` has -1: use a number of at least 0"));
        assert!(
            changed("from_step = 10", "from_step = 0")
                .starts_with("`sources[1].weight_changes` has a `from_step` of 0")
        );
        let none = TWO.replace("0.7", "0.0").replace("weight = 1.0", "weight = 0.0");
        assert!(
            message(&none).starts_with("`sources` have weights with the sum 0 from step 10 on"),
            "{}",
            message(&none)
        );
        assert!(
            changed("path = 'web'", "path = 'web'\ncolumn = ''")
                .starts_with("`sources[0].text.column` is empty")
        );
    }

    #[test]
    fn files_of_ids_have_a_split_of_their_own_or_the_shared_one() {
        let missing = message(&ids("a", "vocab_size = 256"));
        assert!(missing.starts_with("`sources[0].tokens.validation` is missing"), "{missing}");
        let shared = format!("split.tail.validation_fraction = 0.1\n{}", ids("a", "vocab_size = 256"));
        toml::from_str::<DataConfig>(&shared).unwrap().validate().unwrap();
        let file = format!(
            "split.tail.validation_fraction = 0.1\n{}",
            ids("a", "vocab_size = 256\nvalidation = 'b.bin'")
        );
        toml::from_str::<DataConfig>(&file).unwrap().validate().unwrap();
    }

    #[test]
    fn all_sources_have_the_ids_of_one_tokenizer() {
        let two = |vocab_size: usize| {
            format!("{TWO}{}", ids("ids", &format!("vocab_size = {vocab_size}\nvalidation = 'b.bin'")))
        };
        toml::from_str::<DataConfig>(&two(256)).unwrap().validate().unwrap();
        assert!(
            message(&two(300))
                .starts_with("`sources[2].tokens.vocab_size` is 300, but another source has 256 ids")
        );
        let trained = format!("tokenizer.bpe.vocab_size = 300\n{}", two(300));
        assert!(
            message(&trained).starts_with("`sources[2].tokens` has ids already"),
            "{}",
            message(&trained)
        );
    }
}
