//! Keys whose values differ between two tables.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::flatten::flatten;

/// A value that is not the same.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Difference {
    pub(crate) key: String,
    pub(crate) a: Value,
    pub(crate) b: Value,
}

impl Difference {
    /// Whether `other`, a key of the plan, is this one once more: the last part of its name and
    /// both values are the same.
    pub(crate) fn says(&self, other: &Self) -> bool {
        let last_part = |key: &str| key.rsplit('.').next().map(str::to_string);
        last_part(&self.key) == last_part(&other.key) && (&self.a, &self.b) == (&other.a, &other.b)
    }
}

/// The keys whose values differ, in the order of their names; what is absent is null.
pub(crate) fn differences(a: &Value, b: &Value) -> Vec<Difference> {
    let (a, b) = (flatten(a), flatten(b));
    let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
    let value = |side: &BTreeMap<String, Value>, key: &str| side.get(key).cloned().unwrap_or_default();
    let mut differences: Vec<Difference> = keys
        .map(|key| Difference { key: key.clone(), a: value(&a, key), b: value(&b, key) })
        .filter(|difference| difference.a != difference.b)
        .collect();
    differences.sort_by(|a, b| a.key.cmp(&b.key));
    differences
}
