//! How rotary angles are stretched for sequences longer than those of pre-training: the key
//! `model.position.rope.scaling`.
//!
//! Letters in formulas: r turned channels of a head, m number of a pair of them, `f = theta^(-2m/r)`
//! its frequency, s factor, L original length, T length of the sequence.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The frequencies that take the place of f; exactly one of the tables. Each is what the published
/// models of the families that have it compute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// `f / s` (position interpolation, arXiv:2306.15595).
    Linear(LinearScaling),
    /// For T above L, theta becomes `theta (s T / L - (s - 1))^(r / (r - 2))` (NTK-aware scaling as
    /// in Hugging Face's `dynamic`).
    Dynamic(DynamicScaling),
    /// Slow pairs are divided by s, fast ones are not, and there is a ramp between (Llama 3.1,
    /// arXiv:2407.21783, section 3.4.2, its published code).
    Llama3(Llama3Scaling),
    /// YaRN (arXiv:2309.00071, section 3.2 and 3.4).
    Yarn(YarnScaling),
    /// A factor for each pair (LongRoPE, arXiv:2402.13753).
    Longrope(LongropeScaling),
}

/// `[model.position.rope.scaling.linear]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinearScaling {
    /// s.
    pub factor: f64,
}

/// `[model.position.rope.scaling.dynamic]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DynamicScaling {
    /// s.
    pub factor: f64,
    /// L.
    pub original_len: usize,
}

/// `[model.position.rope.scaling.llama3]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Llama3Scaling {
    /// s.
    pub factor: f64,
    /// Turns over L below which a pair is divided by s.
    pub low_freq_factor: f64,
    /// Turns over L above which a pair stays.
    pub high_freq_factor: f64,
    /// L.
    pub original_len: usize,
}

/// `[model.position.rope.scaling.yarn]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct YarnScaling {
    /// s.
    pub factor: f64,
    /// L.
    pub original_len: usize,
    /// Turns over L above which a pair stays; default 32.
    #[serde(default = "default_beta_fast")]
    pub beta_fast: f64,
    /// Turns over L below which a pair is divided by s; default 1.
    #[serde(default = "default_beta_slow")]
    pub beta_slow: f64,
    /// Whether the ends of the ramp between them are whole numbers of pairs; default true.
    #[serde(default = "enabled")]
    pub truncate: bool,
    /// Factor on cosines and sines; absent is `G(mscale) / G(mscale_all_dim)` where both are given
    /// and not 0, else `G(1)`, of `G(x) = 0.1 x ln s + 1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_factor: Option<f64>,
    /// See `attention_factor` (DeepSeek-V2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mscale: Option<f64>,
    /// See `attention_factor`; where attention is latent, scores are multiplied by the square of
    /// `G(mscale_all_dim)` too (DeepSeek-V2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mscale_all_dim: Option<f64>,
}

/// `[model.position.rope.scaling.longrope]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LongropeScaling {
    /// What divides the frequency of each pair in sequences of at most L tokens.
    pub short_factor: Vec<f64>,
    /// The same in longer sequences.
    pub long_factor: Vec<f64>,
    /// L.
    pub original_len: usize,
    /// Factor on cosines and sines in sequences of at most L tokens.
    pub short_attention_factor: f64,
    /// The same in longer sequences.
    pub long_attention_factor: f64,
    /// Divide by the short factors in longer sequences too, as transformers 5 does for Phi-MoE;
    /// default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps_short_factor: bool,
}

fn default_beta_fast() -> f64 {
    32.0
}

fn default_beta_slow() -> f64 {
    1.0
}

fn enabled() -> bool {
    true
}

impl RopeScaling {
    /// Frequencies of the pairs of `d_rotary` channels in a sequence of `seq_len` tokens.
    pub fn frequencies(&self, d_rotary: usize, theta: f64, seq_len: usize) -> Vec<f64> {
        let r = d_rotary as f64;
        let plain = frequencies(d_rotary, theta);
        match self {
            Self::Linear(LinearScaling { factor }) => plain.iter().map(|f| f / factor).collect(),
            Self::Dynamic(DynamicScaling { factor, original_len }) => {
                if seq_len <= *original_len {
                    return plain;
                }
                let stretch = factor * seq_len as f64 / *original_len as f64 - (factor - 1.0);
                frequencies(d_rotary, theta * stretch.powf(r / (r - 2.0)))
            }
            Self::Llama3(llama3) => plain.iter().map(|&f| llama3.frequency(f)).collect(),
            Self::Yarn(yarn) => {
                let ramp = yarn.ramp(d_rotary, theta);
                plain.iter().zip(ramp).map(|(f, ramp)| f * (1.0 - ramp) + f * ramp / yarn.factor).collect()
            }
            Self::Longrope(longrope) => {
                let factors = longrope.of_length(seq_len).0;
                plain.iter().zip(factors).map(|(f, factor)| f / factor).collect()
            }
        }
    }

    /// Factor on cosines and sines in a sequence of `seq_len` tokens.
    pub fn attention_factor(&self, seq_len: usize) -> f64 {
        match self {
            Self::Linear(_) | Self::Dynamic(_) | Self::Llama3(_) => 1.0,
            Self::Yarn(yarn) => yarn.attention_factor(),
            Self::Longrope(longrope) => longrope.of_length(seq_len).1,
        }
    }

    /// Factor on the scores of latent attention.
    pub fn latent_score_factor(&self) -> f64 {
        match self {
            Self::Yarn(yarn) => yarn.gain(yarn.mscale_all_dim.unwrap_or(0.0)).powi(2),
            _ => 1.0,
        }
    }
}

/// `theta^(-2m/r)` of each pair m of r channels (arXiv:2104.09864, eq. 15).
pub(crate) fn frequencies(d_rotary: usize, theta: f64) -> Vec<f64> {
    (0..d_rotary / 2).map(|m| theta.powf(-2.0 * m as f64 / d_rotary as f64)).collect()
}

impl Llama3Scaling {
    fn frequency(&self, f: f64) -> f64 {
        let turns = self.original_len as f64 * f / std::f64::consts::TAU;
        let kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
        let kept = kept.clamp(0.0, 1.0);
        f * (kept + (1.0 - kept) / self.factor)
    }
}

impl YarnScaling {
    /// `0.1 x ln s + 1`, and 1 for a factor of at most 1.
    fn gain(&self, x: f64) -> f64 {
        if self.factor <= 1.0 { 1.0 } else { 0.1 * x * self.factor.ln() + 1.0 }
    }

    fn attention_factor(&self) -> f64 {
        let given = |scale: Option<f64>| scale.filter(|scale| *scale != 0.0);
        match (self.attention_factor, given(self.mscale), given(self.mscale_all_dim)) {
            (Some(factor), ..) => factor,
            (None, Some(mscale), Some(all_dim)) => self.gain(mscale) / self.gain(all_dim),
            (None, ..) => self.gain(1.0),
        }
    }

    /// How far each pair is divided by s: 0 for fast pairs, 1 for slow ones.
    fn ramp(&self, d_rotary: usize, theta: f64) -> Vec<f64> {
        let r = d_rotary as f64;
        let pair_with_turns = |turns: f64| {
            let length = self.original_len as f64 / (std::f64::consts::TAU * turns);
            r * length.ln() / (2.0 * theta.ln())
        };
        let (low, high) = (pair_with_turns(self.beta_fast), pair_with_turns(self.beta_slow));
        let (low, high) = if self.truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(r - 1.0));
        let high = if low == high { high + 0.001 } else { high };
        (0..d_rotary / 2).map(|m| ((m as f64 - low) / (high - low)).clamp(0.0, 1.0)).collect()
    }
}

impl LongropeScaling {
    fn of_length(&self, seq_len: usize) -> (&[f64], f64) {
        match seq_len <= self.original_len {
            true => (&self.short_factor, self.short_attention_factor),
            false if self.keeps_short_factor => (&self.short_factor, self.long_attention_factor),
            false => (&self.long_factor, self.long_attention_factor),
        }
    }
}
