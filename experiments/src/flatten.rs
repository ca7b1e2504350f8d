//! Nested tables as dotted keys.

use std::collections::BTreeMap;

use serde_json::Value;

/// The values of all dotted keys. A list of plain values is one value; an element of a list of
/// tables has its place in the key, from 0: `router_overrides[0].top_k`. Nulls are left out; an
/// empty table is a value, because `selection.random = {}` asks for something.
pub(crate) fn flatten(value: &Value) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    collect(String::new(), value, &mut found);
    found
}

fn collect(key: String, value: &Value, found: &mut BTreeMap<String, Value>) {
    match value {
        Value::Null => {}
        Value::Object(table) if !table.is_empty() => {
            for (name, value) in table {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                collect(key, value, found);
            }
        }
        Value::Array(elements) if elements.iter().any(Value::is_object) => {
            for (index, value) in elements.iter().enumerate() {
                collect(format!("{key}[{index}]"), value, found);
            }
        }
        // The whole value is an empty table: nothing differs in it.
        Value::Object(_) if key.is_empty() => {}
        plain => {
            found.insert(key, plain.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_become_dotted_keys_and_lists_of_numbers_stay_whole() {
        let found = flatten(&json!({
            "seed": 3,
            "model": { "layers": ["dense", "moe"], "moe": { "selection": { "random": {} }, "capacity": null } },
            "overrides": [{ "layers": [0], "top_k": 1 }, { "top_k": 2 }],
        }));
        let expected = [
            ("model.layers", json!(["dense", "moe"])),
            ("model.moe.selection.random", json!({})),
            ("overrides[0].layers", json!([0])),
            ("overrides[0].top_k", json!(1)),
            ("overrides[1].top_k", json!(2)),
            ("seed", json!(3)),
        ];
        let expected: BTreeMap<String, Value> =
            expected.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn nothing_has_no_keys() {
        assert!(flatten(&json!({})).is_empty());
        assert!(flatten(&Value::Null).is_empty());
    }
}
