//! Whether and how queries and keys are normalised: the key `model.attention.qk_norm`.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Root mean square normalisation of queries and keys before rotation, with learned scales
/// (arXiv:2010.04245).
///
/// Written `true` (each head by itself), `false`, or as a table.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum QkNorm {
    /// None.
    #[default]
    Off,
    /// With these settings.
    On(QkNormConfig),
}

/// How queries and keys are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QkNormConfig {
    /// What is normalised together.
    pub over: QkNormOver,
    /// Added to the mean square under the root.
    pub epsilon: f64,
}

/// What is normalised together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QkNormOver {
    /// Each head, with a scale that the heads share (Qwen3).
    #[default]
    Head,
    /// All heads of a token, with a scale of their whole width (OLMoE, arXiv:2409.02060, section
    /// 2).
    Projection,
}

impl Default for QkNormConfig {
    fn default() -> Self {
        Self { over: QkNormOver::Head, epsilon: 1e-6 }
    }
}

impl QkNorm {
    /// The settings; `None` without a norm.
    pub fn settings(&self) -> Option<QkNormConfig> {
        match self {
            Self::Off => None,
            Self::On(settings) => Some(*settings),
        }
    }

    /// Width of the scale of a projection of this width, in heads of width `d_head`; 0 without a
    /// norm.
    pub fn scale_width(&self, width: usize, d_head: usize) -> usize {
        match self {
            Self::Off => 0,
            Self::On(QkNormConfig { over: QkNormOver::Head, .. }) => d_head,
            Self::On(QkNormConfig { over: QkNormOver::Projection, .. }) => width,
        }
    }
}

impl Serialize for QkNorm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_bool(false),
            Self::On(settings) if *settings == QkNormConfig::default() => serializer.serialize_bool(true),
            Self::On(settings) => settings.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for QkNorm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BoolOrTable;
        impl<'de> Visitor<'de> for BoolOrTable {
            type Value = QkNorm;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or a table")
            }
            fn visit_bool<E>(self, is_on: bool) -> Result<QkNorm, E> {
                Ok(if is_on { QkNorm::On(QkNormConfig::default()) } else { QkNorm::Off })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<QkNorm, A::Error> {
                QkNormConfig::deserialize(MapAccessDeserializer::new(map)).map(QkNorm::On)
            }
        }
        // Not an untagged enum, which would lose the place of an error.
        deserializer.deserialize_any(BoolOrTable)
    }
}

impl JsonSchema for QkNorm {
    fn schema_name() -> Cow<'static, str> {
        "QkNorm".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let table = generator.subschema_for::<QkNormConfig>();
        json_schema!({ "anyOf": [{ "type": "boolean" }, table] })
    }
}
