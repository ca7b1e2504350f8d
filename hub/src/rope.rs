//! Rotary positions as `config.json` has them: `rope_parameters` today, `rope_theta` and
//! `rope_scaling` in older files.

use serde_json::{Map, Value, json};
use switchyard_model::{
    DynamicScaling, LinearScaling, Llama3Scaling, LongropeScaling, RopeConfig, RopeScaling, YarnScaling,
};

use crate::HubError;
use crate::keys::Keys;

/// What a family's class takes for keys that are absent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RopeDefaults {
    pub(crate) theta: f64,
    /// Share of a head that is turned.
    pub(crate) partial: f64,
}

impl Default for RopeDefaults {
    fn default() -> Self {
        Self { theta: 10_000.0, partial: 1.0 }
    }
}

/// The rotary embedding of heads of width `d_head`.
pub(crate) fn read(keys: &Keys, d_head: usize, defaults: RopeDefaults) -> Result<RopeConfig, HubError> {
    let nested = keys.table("rope_parameters")?;
    let scaling = keys.table("rope_scaling")?;
    let tables: Vec<&Keys> = scaling.iter().chain(&nested).collect();
    let number = |key: &str| -> Result<Option<f64>, HubError> {
        for table in tables.iter().copied().chain([keys]) {
            if let Some(value) = table.number(key)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    };
    let theta = number("rope_theta")?.or(number("rotary_emb_base")?).unwrap_or(defaults.theta);
    let partial = number("partial_rotary_factor")?.or(number("rotary_pct")?).unwrap_or(defaults.partial);
    let d_rotary = (d_head as f64 * partial) as usize;
    let scaling = match tables.first() {
        Some(table) => read_scaling(keys, table)?,
        None => None,
    };
    Ok(RopeConfig { theta, d_rotary: (d_rotary != d_head).then_some(d_rotary), scaling })
}

fn read_scaling(keys: &Keys, table: &Keys) -> Result<Option<RopeScaling>, HubError> {
    let (rope_type, key) = match table.text("rope_type")? {
        Some(rope_type) => (rope_type, "rope_type"),
        None => (table.text("type")?.unwrap_or_else(|| "default".into()), "type"),
    };
    let max_len = || keys.size_of(&["max_position_embeddings"]);
    let original_len = || -> Result<usize, HubError> {
        if let Some(len) = keys.size("original_max_position_embeddings")? {
            return Ok(len);
        }
        match table.size("original_max_position_embeddings")? {
            Some(len) => Ok(len),
            None => max_len(),
        }
    };
    let factor = || table.needed_number("factor");
    Ok(Some(match rope_type.as_str() {
        "default" => return Ok(None),
        "linear" => RopeScaling::Linear(LinearScaling { factor: factor()? }),
        "dynamic" => RopeScaling::Dynamic(DynamicScaling { factor: factor()?, original_len: max_len()? }),
        "llama3" => RopeScaling::Llama3(Llama3Scaling {
            factor: factor()?,
            low_freq_factor: table.needed_number("low_freq_factor")?,
            high_freq_factor: table.needed_number("high_freq_factor")?,
            original_len: original_len()?,
        }),
        "yarn" => read_yarn(table, original_len()?, max_len()?)?,
        "longrope" | "su" => read_longrope(table, original_len()?, max_len()?)?,
        _ => {
            let remedy = "default, linear, dynamic, llama3, yarn and longrope are supported";
            return Err(table.unsupported(key, remedy));
        }
    }))
}

fn read_yarn(table: &Keys, original_len: usize, max_len: usize) -> Result<RopeScaling, HubError> {
    let positive = |key: &str| -> Result<Option<f64>, HubError> {
        // A beta of 0 counts as none in the published code.
        Ok(table.number(key)?.filter(|value| *value != 0.0))
    };
    Ok(RopeScaling::Yarn(YarnScaling {
        factor: table.number("factor")?.unwrap_or(max_len as f64 / original_len as f64),
        original_len,
        beta_fast: positive("beta_fast")?.unwrap_or(32.0),
        beta_slow: positive("beta_slow")?.unwrap_or(1.0),
        truncate: table.flag_or("truncate", true)?,
        attention_factor: table.number("attention_factor")?,
        mscale: table.number("mscale")?,
        mscale_all_dim: table.number("mscale_all_dim")?,
    }))
}

fn read_longrope(table: &Keys, original_len: usize, max_len: usize) -> Result<RopeScaling, HubError> {
    let needed =
        |key: &str| -> Result<Vec<f64>, HubError> { table.numbers(key)?.ok_or_else(|| table.missing(key)) };
    let factor = table.number("factor")?.unwrap_or(max_len as f64 / original_len as f64);
    let plain = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original_len as f64).ln()).sqrt() };
    let attention_factor = table.number("attention_factor")?.unwrap_or(plain);
    let short = table.number("short_mscale")?;
    let long = table.number("long_mscale")?;
    Ok(RopeScaling::Longrope(LongropeScaling {
        short_factor: needed("short_factor")?,
        long_factor: needed("long_factor")?,
        original_len,
        short_attention_factor: short.unwrap_or(attention_factor),
        long_attention_factor: long.unwrap_or(attention_factor),
        keeps_short_factor: short.is_some() && long.is_some(),
    }))
}

/// `rope_parameters` of heads of width `d_head`.
pub(crate) fn write(rope: &RopeConfig, d_head: usize) -> Value {
    let mut table = Map::new();
    let mut set = |key: &str, value: Value| {
        table.insert(key.to_owned(), value);
    };
    set("rope_theta", json!(rope.theta));
    if let Some(d_rotary) = rope.d_rotary {
        // The smallest share of which the integer part is the width.
        set("partial_rotary_factor", json!(d_rotary as f64 / d_head as f64));
    }
    let original = "original_max_position_embeddings";
    match &rope.scaling {
        None => set("rope_type", json!("default")),
        Some(RopeScaling::Linear(LinearScaling { factor })) => {
            set("rope_type", json!("linear"));
            set("factor", json!(factor));
        }
        Some(RopeScaling::Dynamic(DynamicScaling { factor, .. })) => {
            set("rope_type", json!("dynamic"));
            set("factor", json!(factor));
        }
        Some(RopeScaling::Llama3(llama3)) => {
            set("rope_type", json!("llama3"));
            set("factor", json!(llama3.factor));
            set("low_freq_factor", json!(llama3.low_freq_factor));
            set("high_freq_factor", json!(llama3.high_freq_factor));
            set(original, json!(llama3.original_len));
        }
        Some(RopeScaling::Yarn(yarn)) => {
            set("rope_type", json!("yarn"));
            set("factor", json!(yarn.factor));
            set(original, json!(yarn.original_len));
            set("beta_fast", json!(yarn.beta_fast));
            set("beta_slow", json!(yarn.beta_slow));
            set("truncate", json!(yarn.truncate));
            let optional = [
                ("attention_factor", yarn.attention_factor),
                ("mscale", yarn.mscale),
                ("mscale_all_dim", yarn.mscale_all_dim),
            ];
            optional
                .into_iter()
                .filter_map(|(key, it)| Some((key, it?)))
                .for_each(|(key, it)| set(key, json!(it)));
        }
        Some(RopeScaling::Longrope(longrope)) => {
            set("rope_type", json!("longrope"));
            set("short_factor", json!(longrope.short_factor));
            set("long_factor", json!(longrope.long_factor));
            set(original, json!(longrope.original_len));
            if longrope.keeps_short_factor {
                set("short_mscale", json!(longrope.short_attention_factor));
                set("long_mscale", json!(longrope.long_attention_factor));
            } else {
                set("attention_factor", json!(longrope.short_attention_factor));
            }
        }
    }
    Value::Object(table)
}
