//! Changes along the structure of a JSON value: whatever they do, the result is JSON.

use rand::RngExt;
use serde_json::{Map, Number, Value};

use super::mutation::{BOUNDARY_NUMBERS, WORDS, num_changes, pick};
use super::{Random, Seed};

/// Values to change, and what to change them into.
#[derive(Debug, Default)]
pub(crate) struct JsonSeeds {
    /// The values themselves, which also give their parts to others.
    pub(crate) values: Vec<Value>,
    /// Words of the format: keys and names.
    pub(crate) words: Vec<String>,
}

impl JsonSeeds {
    /// Of the `seeds` that are JSON; the words are all their keys and short strings.
    pub(crate) fn of(seeds: &[Seed]) -> Self {
        Self::of_values(seeds.iter().filter_map(|seed| serde_json::from_slice(&seed.bytes).ok()).collect())
    }

    /// Of `values`.
    pub(crate) fn of_values(values: Vec<Value>) -> Self {
        let mut words = Vec::new();
        values.iter().for_each(|value| collect_words(value, &mut words));
        words.sort();
        words.dedup();
        Self { values, words }
    }

    /// Changes `value` in a few places.
    pub(crate) fn mutate(&self, value: &mut Value, random: &mut Random) {
        for _ in 0..num_changes(random) {
            self.change_once(value, random);
        }
    }

    fn change_once(&self, value: &mut Value, random: &mut Random) {
        let places = pointers(value);
        let place: &String = pick(&places, random);
        let source: &String = pick(&places, random);
        let elsewhere = value.pointer(source).cloned().unwrap_or_default();
        let Some(node) = value.pointer_mut(place) else { return };
        match random.random_range(0..9) {
            0..3 => *node = self.fresh(random),
            3 => *node = elsewhere,
            4 if !self.values.is_empty() => {
                let donor = pick(&self.values, random);
                let sources = pointers(donor);
                let source: &String = pick(&sources, random);
                *node = donor.pointer(source).cloned().unwrap_or_default();
            }
            5 => nudge(node, random),
            _ => match node {
                Value::Object(map) => self.change_object(map, elsewhere, random),
                Value::Array(items) => change_array(items, elsewhere, random),
                Value::String(text) => self.change_text(text, random),
                _ => nudge(node, random),
            },
        }
    }

    /// A value that was never in its place.
    fn fresh(&self, random: &mut Random) -> Value {
        match random.random_range(0..9) {
            0 => Value::Null,
            1 => Value::Bool(random.random()),
            2..5 => boundary(random),
            5 => Value::String(self.word(random)),
            6 => Value::Array(Vec::new()),
            7 => Value::Object(Map::new()),
            _ => {
                (0..1 << random.random_range(0..7)).fold(Value::from(1), |inner, _| Value::Array(vec![inner]))
            }
        }
    }

    fn word(&self, random: &mut Random) -> String {
        match random.random_range(0..3) {
            0 => (*pick(&WORDS, random)).to_owned(),
            1 if !self.words.is_empty() => pick(&self.words, random).clone(),
            _ => {
                let letters = ["a", "é", "\u{301}", "\0", " ", "▁", "Ġ", "\u{10ffff}", "0", "/", "\u{1b}"];
                pick(&letters, random).repeat(1 << random.random_range(0..11))
            }
        }
    }

    fn change_object(&self, map: &mut Map<String, Value>, elsewhere: Value, random: &mut Random) {
        let keys: Vec<String> = map.keys().cloned().collect();
        match random.random_range(0..3) {
            0 if !keys.is_empty() => drop(map.remove(pick(&keys, random))),
            1 if !keys.is_empty() => {
                let moved = map.remove(pick(&keys, random)).unwrap_or_default();
                map.insert(self.word(random), moved);
            }
            _ => drop(map.insert(self.word(random), elsewhere)),
        }
    }

    fn change_text(&self, text: &mut String, random: &mut Random) {
        let at = text.floor_char_boundary(random.random_range(0..=text.len()));
        match random.random_range(0..3) {
            0 => text.truncate(at),
            1 => text.insert_str(at, &self.word(random)),
            _ => *text = self.word(random),
        }
    }
}

fn change_array(items: &mut Vec<Value>, elsewhere: Value, random: &mut Random) {
    let at = random.random_range(0..=items.len());
    match random.random_range(0..4) {
        0 if at < items.len() => drop(items.remove(at)),
        1 if at < items.len() => {
            let copies = vec![items[at].clone(); 1 << random.random_range(0..8)];
            items.splice(at..at, copies);
        }
        2 => items.reverse(),
        _ => items.insert(at, elsewhere),
    }
}

/// A number next to the one that was there, or a boundary.
fn nudge(node: &mut Value, random: &mut Random) {
    let close = match node.as_i64() {
        Some(number) => match random.random_range(0..4) {
            0 => number.wrapping_add(1),
            1 => number.wrapping_sub(1),
            2 => number.wrapping_mul(2),
            _ => number.wrapping_neg(),
        },
        None => return *node = boundary(random),
    };
    *node = Value::from(close);
}

fn boundary(random: &mut Random) -> Value {
    let text = *pick(&BOUNDARY_NUMBERS, random);
    text.parse::<Number>().map_or_else(|_| Value::String(text.to_owned()), Value::Number)
}

/// JSON pointers of `value` and everything in it.
fn pointers(value: &Value) -> Vec<String> {
    let mut places = vec![String::new()];
    let mut next = 0;
    while next < places.len() {
        let place = places[next].clone();
        match value.pointer(&place) {
            Some(Value::Object(map)) => {
                let escape = |key: &String| key.replace('~', "~0").replace('/', "~1");
                places.extend(map.keys().map(|key| format!("{place}/{}", escape(key))));
            }
            Some(Value::Array(items)) => {
                places.extend((0..items.len()).map(|index| format!("{place}/{index}")))
            }
            _ => {}
        }
        next += 1;
    }
    places
}

fn collect_words(value: &Value, words: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                words.push(key.clone());
                collect_words(inner, words);
            }
        }
        Value::Array(items) => items.iter().for_each(|inner| collect_words(inner, words)),
        Value::String(text) if text.len() < 40 => words.push(text.clone()),
        _ => {}
    }
}
