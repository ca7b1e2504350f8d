//! `[model.position]`: from what is written to what is built.

use switchyard_ground::key_checks::{not_zero, positive};
use switchyard_ground::key_error::KeyError;

use crate::{
    AlibiConfig, DynamicScaling, LinearScaling, Llama3Scaling, LongropeScaling, PositionConfig, PositionKind,
    RopeConfig, RopeScaling, YarnScaling,
};

const SCALING: &str = "model.position.rope.scaling";

/// # Errors
/// The first key under `model.position` whose value cannot be used.
pub(super) fn resolve_position(config: &PositionConfig) -> Result<PositionKind, KeyError> {
    match config {
        PositionConfig::Rope(RopeConfig { theta, d_rotary, scaling }) => {
            positive("model.position.rope.theta", *theta)?;
            scaling.as_ref().map_or(Ok(()), check_scaling)?;
            Ok(PositionKind::Rope { theta: *theta, d_rotary: *d_rotary, scaling: scaling.clone() })
        }
        PositionConfig::Learned {} => Ok(PositionKind::Learned),
        PositionConfig::Sinusoidal {} => Ok(PositionKind::Sinusoidal),
        PositionConfig::Alibi(AlibiConfig { as_falcon: true }) => Ok(PositionKind::FalconAlibi),
        PositionConfig::Alibi(AlibiConfig { as_falcon: false }) => Ok(PositionKind::Alibi),
    }
}

fn check_scaling(scaling: &RopeScaling) -> Result<(), KeyError> {
    let key = |table: &str, key: &str| format!("{SCALING}.{table}.{key}");
    match scaling {
        RopeScaling::Linear(LinearScaling { factor }) => positive(&key("linear", "factor"), *factor),
        RopeScaling::Dynamic(DynamicScaling { factor, original_len }) => {
            positive(&key("dynamic", "factor"), *factor)?;
            not_zero(&key("dynamic", "original_len"), *original_len == 0, "")
        }
        RopeScaling::Llama3(llama3) => {
            let Llama3Scaling { factor, low_freq_factor: low, high_freq_factor: high, original_len } = llama3;
            positive(&key("llama3", "factor"), *factor)?;
            not_zero(&key("llama3", "original_len"), *original_len == 0, "")?;
            if high <= low || !high.is_finite() {
                let problem = format!("is {high}, not above `low_freq_factor` = {low}");
                let name = key("llama3", "high_freq_factor");
                return Err(KeyError::new(name, problem, "use a larger number"));
            }
            Ok(())
        }
        RopeScaling::Yarn(yarn) => check_yarn(yarn),
        RopeScaling::Longrope(longrope) => check_longrope(longrope),
    }
}

fn check_yarn(yarn: &YarnScaling) -> Result<(), KeyError> {
    let YarnScaling { factor, original_len, beta_fast, beta_slow, attention_factor, .. } = yarn;
    let numbers = [
        ("factor", Some(*factor)),
        ("beta_fast", Some(*beta_fast)),
        ("beta_slow", Some(*beta_slow)),
        ("attention_factor", *attention_factor),
    ];
    for (key, value) in numbers.into_iter().filter_map(|(key, value)| Some((key, value?))) {
        positive(&format!("{SCALING}.yarn.{key}"), value)?;
    }
    not_zero(&format!("{SCALING}.yarn.original_len"), *original_len == 0, "")
}

fn check_longrope(longrope: &LongropeScaling) -> Result<(), KeyError> {
    let lists = [("short_factor", &longrope.short_factor), ("long_factor", &longrope.long_factor)];
    for (key, list) in lists {
        list.iter().try_for_each(|value| positive(&format!("{SCALING}.longrope.{key}"), *value))?;
    }
    not_zero(&format!("{SCALING}.longrope.original_len"), longrope.original_len == 0, "")?;
    positive(&format!("{SCALING}.longrope.short_attention_factor"), longrope.short_attention_factor)?;
    positive(&format!("{SCALING}.longrope.long_attention_factor"), longrope.long_attention_factor)
}
