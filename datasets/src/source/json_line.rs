//! The text in one line of a `.jsonl` file.
//!
//! Of the object in the line only the asked field is read; whatever else it holds has to be JSON,
//! as Python writes it.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use switchyard_ground::printable::excerpt;

use super::file_kind::guess_encoding;

/// Characters of a value or a name that a message shows, and names that it lists.
const MAX_SHOWN_CHARS: usize = 80;
const MAX_SHOWN_FIELDS: usize = 8;

/// The string under `key` in the JSON object `line`, or what is wrong with the line. `a.b` is the
/// field of that name, or else field `b` of the object under `a`.
pub(super) fn text_of_line(line: &[u8], key: &str) -> Result<String, String> {
    if !line.trim_ascii_start().starts_with(b"{") {
        let start = String::from_utf8_lossy(&line[..line.len().min(4 * MAX_SHOWN_CHARS)]).into_owned();
        return Err(format!(
            "not an object but `{}`{}: one JSON object a line is expected",
            shown(start.trim()),
            guess_encoding(line)
        ));
    }
    let found = find(line, key).or_else(|error| match with_null_for_python_numbers(line) {
        Some(plain) => find(&plain, key).map_err(|_| error),
        None => Err(error),
    });
    let key = shown(key);
    match found.map_err(|error| cause(&error))? {
        Value::Text(text) => Ok(text),
        Value::Null => Err(format!(
            "field `{key}` is null, not a string: remove the line, or pass such lines over with `data.text.on_bad_line = \
             \"skip\"`"
        )),
        Value::Object(fields) if !fields.listed.is_empty() => Err(format!(
            "field `{key}` is an object with {fields}: name the one with the text, such as `data.text.jsonl_key = \
             \"{key}.{}\"`",
            fields.listed[0]
        )),
        Value::Object(_) => Err(format!("field `{key}` is an empty object, not a string")),
        Value::Other(value) => {
            Err(format!("field `{key}` is {value}, not a string: set `data.text.jsonl_key`"))
        }
        Value::Missing(fields) => Err(format!("no field `{key}`, only {fields}: set `data.text.jsonl_key`")),
    }
}

/// Why a line cannot be read, as its author would say it.
fn cause(error: &serde_json::Error) -> String {
    let reason = error.to_string();
    if reason.contains("surrogate") || reason.contains("end of hex escape") {
        return format!(
            "half of a surrogate pair, such as `\\ud800`, which stands for no character ({reason}): repair the line, or pass \
             such lines over with `data.text.on_bad_line = \"skip\"`"
        );
    }
    format!("not JSON ({}): one object a line is expected", excerpt(&reason, 2 * MAX_SHOWN_CHARS))
}

/// What stands under a key.
enum Value {
    Text(String),
    Null,
    Object(Fields),
    /// Anything else, in words.
    Other(String),
    /// Nothing: there are these fields.
    Missing(Fields),
}

/// Names of an object's fields, the first few.
#[derive(Default)]
struct Fields {
    listed: Vec<String>,
    num_more: usize,
}

impl Fields {
    fn add(&mut self, name: &str) {
        let name = excerpt(name, MAX_SHOWN_CHARS);
        if self.listed.contains(&name) {
            // JSON allows a name twice.
        } else if self.listed.len() < MAX_SHOWN_FIELDS {
            self.listed.push(name);
        } else {
            self.num_more += 1;
        }
    }
}

impl fmt::Display for Fields {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed: Vec<String> = self.listed.iter().map(|name| format!("`{name}`")).collect();
        formatter.write_str(&listed.join(", "))?;
        match (self.listed.len(), self.num_more) {
            (0, _) => formatter.write_str("an empty object"),
            (_, 0) => Ok(()),
            (_, num_more) => write!(formatter, " and {num_more} more"),
        }
    }
}

fn find(line: &[u8], key: &str) -> serde_json::Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_slice(line);
    let value = Lookup { key: Some(key) }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

fn shown(text: &str) -> String {
    excerpt(text, MAX_SHOWN_CHARS)
}

/// Returns what stands under `key` in a value, or what the value itself is if there is no key left.
#[derive(Clone, Copy)]
struct Lookup<'k> {
    key: Option<&'k str>,
}

impl Lookup<'_> {
    /// `value` where the key has led, nothing where it leads further.
    fn scalar<E: Error>(self, value: impl FnOnce() -> Value) -> Result<Value, E> {
        Ok(if self.key.is_some() { Value::Missing(Fields::default()) } else { value() })
    }
}

impl<'de> DeserializeSeed<'de> for Lookup<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Lookup<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let (mut own, mut nested) = (None, None);
        let mut fields = Fields::default();
        while let Some(name) = map.next_key::<String>()? {
            let rest = self.key.and_then(|key| key.strip_prefix(name.as_str()));
            // Of a field that is there twice the last counts, as everywhere.
            match (rest, rest.and_then(|rest| rest.strip_prefix('.'))) {
                (Some(""), _) => own = Some(map.next_value_seed(Lookup { key: None })?),
                (_, Some(below)) => match map.next_value_seed(Lookup { key: Some(below) })? {
                    Value::Missing(below) if !below.listed.is_empty() => {
                        below.listed.iter().for_each(|field| fields.add(&format!("{name}.{field}")));
                        continue;
                    }
                    Value::Missing(_) => {}
                    found => nested = Some(found),
                },
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
            fields.add(&name);
        }
        match self.key {
            Some(_) => Ok(own.or(nested).unwrap_or(Value::Missing(fields))),
            None => Ok(Value::Object(fields)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut num_items = 0_u64;
        while items.next_element::<IgnoredAny>()?.is_some() {
            num_items += 1;
        }
        self.scalar(|| Value::Other(format!("a list of {num_items} value(s)")))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        self.scalar(|| Value::Text(text.to_owned()))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.scalar(|| Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.scalar(|| Value::Other(value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.scalar(|| Value::Other(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.scalar(|| Value::Other(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.scalar(|| Value::Other(value.to_string()))
    }
}

/// `line` with `null` for the numbers that Python's `json` writes and JSON does not have; `None` if
/// it has none of them.
fn with_null_for_python_numbers(line: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(line.len());
    let (mut rest, mut in_string, mut is_changed) = (line, false, false);
    while let Some((byte, after)) = rest.split_first() {
        let number = ["NaN", "-Infinity", "Infinity"].iter().find(|name| rest.starts_with(name.as_bytes()));
        if let (false, Some(name)) = (in_string, number) {
            plain.extend_from_slice(b"null");
            rest = &rest[name.len()..];
            is_changed = true;
            continue;
        }
        plain.push(*byte);
        rest = after;
        match (byte, after.split_first()) {
            (b'"', _) => in_string = !in_string,
            (b'\\', Some((escaped, after))) if in_string => {
                plain.push(*escaped);
                rest = after;
            }
            _ => {}
        }
    }
    is_changed.then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(line: &str) -> Result<String, String> {
        text_of_line(line.as_bytes(), "text")
    }

    #[test]
    fn only_the_asked_field_has_to_be_text() {
        for other in
            ["NaN", "[Infinity, -Infinity]", r#""\ud800""#, r#"{"text": NaN}"#, "null", r#""a \" NaN""#]
        {
            let line = format!(r#"{{"x": {other}, "text": "it is NaN, \"Infinity\"", "y": {other}}}"#);
            assert_eq!(text(&line).as_deref(), Ok("it is NaN, \"Infinity\""), "{line}");
        }
    }

    #[test]
    fn what_stands_in_the_asked_field_is_named_with_what_to_do() {
        let message = |line: &str| text(line).unwrap_err();
        for (line, start) in [
            (r#"{"text": null}"#, "field `text` is null, not a string: remove the line, or pass"),
            (r#"{"text": NaN}"#, "field `text` is null, not a string: remove the line"),
            (r#"{"text": 3}"#, "field `text` is 3, not a string: set `data.text.jsonl_key`"),
            (r#"{"text": [1, 2]}"#, "field `text` is a list of 2 value(s), not a string"),
            (r#"{"text": {}}"#, "field `text` is an empty object"),
            (
                r#"{"text": {"en": "x"}}"#,
                "field `text` is an object with `en`: name the one with the text, such as `data.text.jsonl_key = \"text.en\"`",
            ),
            (r#"{"text": "\ud800"}"#, "half of a surrogate pair, such as `\\ud800`"),
            (r#"{"body": "x", "id": 1}"#, "no field `text`, only `body`, `id`: set"),
            ("\u{0}{\u{0}", "not an object but"),
            (r#"{"body": "x", "body": "y"}"#, "no field `text`, only `body`: set"),
            ("{}", "no field `text`, only an empty object: set"),
            ("[1]", "not an object but `[1]`: one JSON object a line"),
            ("{", "not JSON (EOF"),
            (r#"{"text": "x"} {}"#, "not JSON (trailing characters"),
        ] {
            assert!(message(line).starts_with(start), "{}", message(line));
        }
        assert!(message("\u{0}{\u{0}").contains("zeros in it, so it may be no text at all"));
    }

    #[test]
    fn a_dotted_key_reaches_into_objects_and_a_field_of_that_name_comes_first() {
        let nested = |line: &str| text_of_line(line.as_bytes(), "a.b.c");
        assert_eq!(nested(r#"{"x": 1, "a": {"b": {"c": "deep"}}}"#).as_deref(), Ok("deep"));
        assert_eq!(nested(r#"{"a": {"b.c": "half"}}"#).as_deref(), Ok("half"));
        assert_eq!(nested(r#"{"a": {"b": {"c": "deep"}}, "a.b.c": "flat"}"#).as_deref(), Ok("flat"));
        assert!(nested(r#"{"a": {"b": {"d": 1}}, "e": 2}"#).unwrap_err().contains("only `a.b.d`, `e`:"));
        assert!(nested(r#"{"a": "x"}"#).unwrap_err().contains("only `a`:"));
    }

    #[test]
    fn messages_stay_short_whatever_the_line_holds() {
        let long = "x".repeat(1_000_000);
        let many: Vec<String> = (0..100_000).map(|index| format!("\"field {index}\": 1")).collect();
        for line in [
            format!(r#"{{"{long}": 1}}"#),
            format!(r#"{{"text": {{"{long}": 1}}}}"#),
            format!(r#"{{"text": ["{long}"]}}"#),
            format!("{{{}}}", many.join(",")),
            long.clone(),
        ] {
            let message = text(&line).unwrap_err();
            assert!(message.len() < 500, "{} bytes", message.len());
        }
        assert!(text_of_line(b"{}", &long).unwrap_err().len() < 500);
    }
}
