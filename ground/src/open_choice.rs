//! serde for a choice that may be left open: `Option` of an externally tagged enum, written as a
//! table that holds one of its variants, or nothing.
//!
//! Use it as `#[serde(default, with = "switchyard_ground::open_choice")]`, and for the JSON schema
//! `#[schemars(with = "OpenChoice<T>")]`. A plain `Option` writes `None` as no table at all, and
//! refuses an empty one.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Error, IgnoredAny, IntoDeserializer, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The JSON schema of a choice that may be left open: that of `T`, or of an empty table.
pub struct OpenChoice<T>(PhantomData<T>);

impl<T: JsonSchema> JsonSchema for OpenChoice<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("OpenChoice_of_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let choice = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [choice, { "type": "object", "maxProperties": 0 }] })
    }
}

/// Writes the choice; an empty table if it is open.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<T: Serialize, S: Serializer>(choice: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    match choice {
        Some(choice) => choice.serialize(serializer),
        None => serializer.serialize_map(Some(0))?.end(),
    }
}

/// Reads the choice; `None` from an empty table.
///
/// # Errors
/// A table of several choices, and what the enum itself refuses, each at its place.
pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    deserializer.deserialize_map(Choice(PhantomData))
}

struct Choice<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Choice<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of at most one choice")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<T>, A::Error> {
        let Some(first) = map.next_key::<String>()? else { return Ok(None) };
        let mut map = Peeked { first: Some(first), map };
        let choice = T::deserialize(MapAccessDeserializer::new(&mut map))?;
        match map.next_key::<IgnoredAny>()? {
            None => Ok(Some(choice)),
            Some(_) => Err(Error::custom("more than one choice")),
        }
    }
}

/// A map whose first key has been read already.
struct Peeked<A> {
    first: Option<String>,
    map: A,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Peeked<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        match self.first.take() {
            Some(first) => seed.deserialize(first.into_deserializer()).map(Some),
            None => self.map.next_key_seed(seed),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case", deny_unknown_fields)]
    enum Shape {
        Round { radius: u32 },
        Flat {},
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Thing {
        #[serde(default, with = "super")]
        shape: Option<Shape>,
    }

    fn read(text: &str) -> Result<Thing, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn an_open_choice_is_an_empty_table_and_each_choice_its_own() {
        for (shape, written) in [
            (None, "[shape]\n"),
            (Some(Shape::Round { radius: 3 }), "[shape.round]\nradius = 3\n"),
            (Some(Shape::Flat {}), "[shape.flat]\n"),
        ] {
            let thing = Thing { shape };
            assert_eq!(toml::to_string(&thing).unwrap(), written);
            assert_eq!(read(written).unwrap(), thing);
        }
        assert_eq!(read("").unwrap(), Thing { shape: None });
    }

    #[test]
    fn two_choices_and_unknown_ones_are_refused() {
        for (text, part) in [
            ("shape = { round = { radius = 3 }, flat = {} }", "more than one choice"),
            ("shape = { square = {} }", "unknown variant `square`"),
            ("shape = { flat = { width = 1 } }", "width"),
            ("shape = { round = {} }", "missing field `radius`"),
            ("shape = 3", "a table of at most one choice"),
        ] {
            let message = read(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
