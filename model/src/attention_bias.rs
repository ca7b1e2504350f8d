//! Which projections of attention have a bias: the key `model.attention.bias`.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::AttentionPart;

/// Biases on the projections of attention: written `false`, `true` or `"qkv"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttentionBias {
    /// None.
    #[default]
    Off,
    /// On all four (GPT-2).
    All,
    /// On those of queries, keys and values (Qwen2).
    Qkv,
}

impl AttentionBias {
    /// Whether this projection has one.
    pub fn is_on(self, part: AttentionPart) -> bool {
        match self {
            Self::Off => false,
            Self::All => true,
            Self::Qkv => part != AttentionPart::Output,
        }
    }
}

impl Serialize for AttentionBias {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_bool(false),
            Self::All => serializer.serialize_bool(true),
            Self::Qkv => serializer.serialize_str("qkv"),
        }
    }
}

impl<'de> Deserialize<'de> for AttentionBias {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BoolOrName;
        impl Visitor<'_> for BoolOrName {
            type Value = AttentionBias;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or \"qkv\"")
            }
            fn visit_bool<E>(self, is_on: bool) -> Result<AttentionBias, E> {
                Ok(if is_on { AttentionBias::All } else { AttentionBias::Off })
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<AttentionBias, E> {
                match name {
                    "qkv" => Ok(AttentionBias::Qkv),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(name), &self)),
                }
            }
        }
        // Not an untagged enum, which would lose the place of an error.
        deserializer.deserialize_any(BoolOrName)
    }
}

impl JsonSchema for AttentionBias {
    fn schema_name() -> Cow<'static, str> {
        "AttentionBias".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "boolean" }, { "const": "qkv" }] })
    }
}
