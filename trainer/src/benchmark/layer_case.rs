//! What the user writes to have one feed-forward layer measured.

use std::path::Path;

use serde::Deserialize;
use switchyard_experts::Activation;
use switchyard_ground::key_error::KeyError;

use crate::config_file::{self, ConfigError, Origins, SourcePosition};

/// A feed-forward layer and its input, as written in a TOML file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)] // A misspelt `num_experts` must not measure a dense layer.
pub struct LayerCase {
    /// Tokens of the input.
    pub num_tokens: usize,
    /// Width of a token.
    pub d_model: usize,
    /// Hidden width, of each expert if there are several.
    pub d_ff: usize,
    /// Non-linearity.
    pub activation: Activation,
    /// Experts; absent is a dense layer.
    pub num_experts: Option<usize>,
    /// Experts of each token; together with `num_experts`.
    pub top_k: Option<usize>,
    /// Share of the tokens that have one and the same expert among theirs; absent leaves the choice
    /// to random gate logits.
    pub hot_expert_fraction: Option<f64>,
    /// Seed of weights and input.
    #[serde(default)]
    pub seed: u64,
    /// Threads; absent means all cores.
    pub threads: Option<usize>,
}

/// Elements of the largest tensor that a case may ask for: 8 GB in f32.
const MAX_ELEMENTS: u128 = 1 << 31;

impl LayerCase {
    /// The case in the file `path`.
    ///
    /// # Errors
    /// The first mistake, with its place, the key and its value.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = config_file::read(path)?;
        let origins = Origins::read(&text, path, &[]).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            ConfigError::Syntax {
                location: format!("{}:{}", path.display(), SourcePosition::of(&text, start)),
                message: error.message().trim().replace('\n', ", "),
            }
        })?;
        let invalid =
            |key: &str, message: String| ConfigError::Invalid { location: origins.locate(key), message };
        let case: Self = toml::Deserializer::parse(&text)
            .map_err(|error| invalid("", error.message().to_owned()))
            .and_then(|text| {
                serde_path_to_error::deserialize(text).map_err(|error| {
                    let (key, problem) = (error.path().to_string(), error.inner().message());
                    // serde names keys that are unknown or missing, but not those whose value is of
                    // another type.
                    let is_named = problem.contains("field `");
                    let message = if is_named { problem.to_owned() } else { format!("`{key}`: {problem}") };
                    invalid(&key, message)
                })
            })?;
        case.check().map_err(|error| invalid(&error.path, error.to_string()))?;
        Ok(case)
    }

    fn check(&self) -> Result<(), KeyError> {
        for (key, size) in [("num_tokens", self.num_tokens), ("d_model", self.d_model), ("d_ff", self.d_ff)] {
            if size == 0 {
                return Err(KeyError::new(key, "is 0", "use at least 1"));
            }
        }
        if self.threads == Some(0) {
            let remedy = "use at least 1, or remove the key to use all cores";
            return Err(KeyError::new("threads", "is 0", remedy));
        }
        self.check_mixture()?;
        self.check_size()
    }

    fn check_mixture(&self) -> Result<(), KeyError> {
        let (num_experts, top_k) = match (self.num_experts, self.top_k) {
            (Some(num_experts), Some(top_k)) => (num_experts, top_k),
            (None, None) if self.hot_expert_fraction.is_some() => {
                let problem = "is given, but a dense layer has no experts";
                let remedy = "give `num_experts` and `top_k` too";
                return Err(KeyError::new("hot_expert_fraction", problem, remedy));
            }
            (None, None) => return Ok(()),
            (Some(_), None) => {
                return Err(KeyError::new("num_experts", "is given without `top_k`", "give both or none"));
            }
            (None, Some(_)) => {
                return Err(KeyError::new("top_k", "is given without `num_experts`", "give both or none"));
            }
        };
        if !(1..=num_experts).contains(&top_k) {
            let problem = format!("is {top_k}, but the layer has {num_experts} experts");
            return Err(KeyError::new("top_k", problem, format!("use 1..={num_experts}")));
        }
        match self.hot_expert_fraction {
            Some(fraction) if !(fraction > 0.0 && fraction <= 1.0) => {
                let remedy = "use a number above 0 and at most 1, or remove the key";
                Err(KeyError::new("hot_expert_fraction", format!("is {fraction}"), remedy))
            }
            Some(fraction) if fraction < 1.0 && top_k == num_experts => {
                let problem = format!("is {fraction}, but every token has all {num_experts} experts");
                Err(KeyError::new("hot_expert_fraction", problem, "use a smaller `top_k`"))
            }
            _ => Ok(()),
        }
    }

    fn check_size(&self) -> Result<(), KeyError> {
        let product = |sizes: &[usize]| sizes.iter().map(|&size| size as u128).product::<u128>();
        let slots = product(&[self.num_tokens, self.top_k.unwrap_or(1)]);
        let widest = self.d_model.max(self.d_ff) as u128;
        let weights = product(&[self.num_experts.unwrap_or(1), self.d_model, self.d_ff]);
        if slots.saturating_mul(widest) > MAX_ELEMENTS {
            let problem =
                format!("is {}, and the layer's hidden values would not fit into 8 GB", self.num_tokens);
            return Err(KeyError::new("num_tokens", problem, "use fewer"));
        }
        if weights > MAX_ELEMENTS {
            let problem = format!("is {}, and one stack of weights would not fit into 8 GB", self.d_ff);
            return Err(KeyError::new("d_ff", problem, "use a smaller width, or fewer experts"));
        }
        Ok(())
    }

    /// Whether the layer is a mixture.
    pub fn is_mixture(&self) -> bool {
        self.num_experts.is_some()
    }

    /// Hidden width of what one token passes through.
    pub fn active_width(&self) -> usize {
        self.top_k.unwrap_or(1) * self.d_ff
    }

    /// Multiplies and adds of one forward and backward pass: three times those of the matrix
    /// products of the forward pass. The router is not counted.
    pub fn training_flops(&self) -> f64 {
        let matrices = if self.activation.is_gated() { 3.0 } else { 2.0 };
        6.0 * matrices * self.num_tokens as f64 * self.d_model as f64 * self.active_width() as f64
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SOUND: &str = "num_tokens = 64\nd_model = 16\nd_ff = 8\nactivation = \"swiglu\"\nnum_experts = 4\ntop_k = 2\n\
                         hot_expert_fraction = 0.5\n";

    fn load(text: &str) -> Result<LayerCase, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("layer.toml");
        fs::write(&path, text).unwrap();
        // The folder's name differs from run to run.
        LayerCase::load(&path)
            .map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    /// The error of the sound case after replacing `from` by `to`.
    fn broken(from: &str, to: &str) -> String {
        assert!(SOUND.contains(from), "nothing to replace: {from}");
        load(&SOUND.replacen(from, to, 1)).unwrap_err()
    }

    #[test]
    fn a_sound_case_is_read() {
        let case = load(SOUND).unwrap();
        assert_eq!((case.num_experts, case.top_k, case.seed, case.threads), (Some(4), Some(2), 0, None));
        assert_eq!(case.training_flops(), 18.0 * 64.0 * 16.0 * 16.0);
        let dense = load("num_tokens = 64\nd_model = 16\nd_ff = 8\nactivation = \"relu\"\n").unwrap();
        assert_eq!(dense.training_flops(), 12.0 * 64.0 * 16.0 * 8.0);
        assert!(case.is_mixture() && !dense.is_mixture());
    }

    #[test]
    fn a_key_that_is_unknown_missing_or_of_another_type_is_named() {
        insta::assert_snapshot!(broken("d_ff = 8", "d_f = 8"), @"layer.toml:3:1: unknown field `d_f`, expected one of `num_tokens`, `d_model`, `d_ff`, `activation`, `num_experts`, `top_k`, `hot_expert_fraction`, `seed`, `threads`");
        insta::assert_snapshot!(broken("d_ff = 8\n", ""), @"layer.toml: missing field `d_ff`");
        insta::assert_snapshot!(broken("d_model = 16", "d_model = \"wide\""), @r#"layer.toml:2:1: `d_model`: invalid type: string "wide", expected usize"#);
        insta::assert_snapshot!(broken("num_tokens = 64", "num_tokens = -1"), @"layer.toml:1:1: `num_tokens`: invalid value: integer `-1`, expected usize");
        insta::assert_snapshot!(broken("\"swiglu\"", "\"swish\""), @"layer.toml:4:1: `activation`: unknown variant `swish`, expected one of `swiglu`, `clamped_swiglu`, `gelu`, `gelu_tanh`, `relu`");
        insta::assert_snapshot!(broken("d_ff = 8", "d_ff 8"), @"layer.toml:3:6: not valid TOML: key with no value, expected `=`");
    }

    #[test]
    fn a_value_that_cannot_be_measured_is_named() {
        insta::assert_snapshot!(broken("d_ff = 8", "d_ff = 0"), @"layer.toml:3:1: `d_ff` is 0: use at least 1");
        insta::assert_snapshot!(broken("top_k = 2", "top_k = 5"), @"layer.toml:6:1: `top_k` is 5, but the layer has 4 experts: use 1..=4");
        insta::assert_snapshot!(broken("top_k = 2\n", ""), @"layer.toml:5:1: `num_experts` is given without `top_k`: give both or none");
        insta::assert_snapshot!(broken("num_experts = 4\n", ""), @"layer.toml:5:1: `top_k` is given without `num_experts`: give both or none");
        insta::assert_snapshot!(broken("num_experts = 4\ntop_k = 2\n", ""), @"layer.toml:5:1: `hot_expert_fraction` is given, but a dense layer has no experts: give `num_experts` and `top_k` too");
        insta::assert_snapshot!(broken("= 0.5", "= 1.5"), @"layer.toml:7:1: `hot_expert_fraction` is 1.5: use a number above 0 and at most 1, or remove the key");
        insta::assert_snapshot!(broken("top_k = 2", "top_k = 4"), @"layer.toml:7:1: `hot_expert_fraction` is 0.5, but every token has all 4 experts: use a smaller `top_k`");
        insta::assert_snapshot!(broken("num_tokens = 64", "num_tokens = 64_000_000_000"), @"layer.toml:1:1: `num_tokens` is 64000000000, and the layer's hidden values would not fit into 8 GB: use fewer");
        insta::assert_snapshot!(broken("num_experts = 4", "num_experts = 400_000_000"), @"layer.toml:3:1: `d_ff` is 8, and one stack of weights would not fit into 8 GB: use a smaller width, or fewer experts");
        insta::assert_snapshot!(broken("d_ff = 8", "d_ff = 8\nthreads = 0"), @"layer.toml:4:1: `threads` is 0: use at least 1, or remove the key to use all cores");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let message = LayerCase::load(Path::new("no/such.toml")).unwrap_err().to_string();
        assert!(message.contains("`no/such.toml`"), "{message}");
    }
}
