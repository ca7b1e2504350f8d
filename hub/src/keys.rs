//! `config.json`, read key by key: what a family did not ask for is known afterwards.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::HubError;

/// The keys of one table of a `config.json`.
#[derive(Debug)]
pub(crate) struct Keys {
    path: PathBuf,
    /// Path of the table, such as `rope_scaling.`; empty at the top.
    table: String,
    values: Map<String, Value>,
    asked: RefCell<BTreeSet<String>>,
}

impl Keys {
    pub(crate) fn new(path: &Path, values: Map<String, Value>) -> Self {
        Self { path: path.to_path_buf(), table: String::new(), values, asked: RefCell::default() }
    }

    /// The value of a key; `None` if it is absent or null.
    fn value(&self, key: &str) -> Option<&Value> {
        self.asked.borrow_mut().insert(key.to_owned());
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there, be it null.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.asked.borrow_mut().insert(key.to_owned());
        self.values.contains_key(key)
    }

    fn read<T>(
        &self,
        key: &str,
        wanted: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, HubError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(self.error(key, format!("is {value}"), format!("expected {wanted}"))),
        }
    }

    /// A whole number that is not negative.
    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>, HubError> {
        self.read(key, "a whole number", |value| value.as_u64()?.try_into().ok())
    }

    /// The first of several spellings that is there.
    pub(crate) fn size_of(&self, keys: &[&str]) -> Result<usize, HubError> {
        for key in keys {
            if let Some(size) = self.size(key)? {
                return Ok(size);
            }
        }
        Err(self.missing(keys[0]))
    }

    /// A number.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, HubError> {
        self.read(key, "a number", Value::as_f64)
    }

    /// A number that must be there.
    pub(crate) fn needed_number(&self, key: &str) -> Result<f64, HubError> {
        self.number(key)?.ok_or_else(|| self.missing(key))
    }

    /// True or false.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, HubError> {
        self.read(key, "true or false", Value::as_bool)
    }

    /// True or false, with the value that absence means.
    pub(crate) fn flag_or(&self, key: &str, default: bool) -> Result<bool, HubError> {
        Ok(self.flag(key)?.unwrap_or(default))
    }

    /// A text.
    pub(crate) fn text(&self, key: &str) -> Result<Option<String>, HubError> {
        self.read(key, "a text", |value| value.as_str().map(str::to_owned))
    }

    /// A list of texts.
    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<String>>, HubError> {
        self.list(key, "a list of texts", |value| value.as_str().map(str::to_owned))
    }

    /// A list of numbers.
    pub(crate) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, HubError> {
        self.list(key, "a list of numbers", Value::as_f64)
    }

    /// A list of whole numbers.
    pub(crate) fn sizes(&self, key: &str) -> Result<Option<Vec<usize>>, HubError> {
        self.list(key, "a list of whole numbers", |value| value.as_u64()?.try_into().ok())
    }

    fn list<T>(
        &self,
        key: &str,
        wanted: &str,
        of: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, HubError> {
        self.read(key, wanted, |value| value.as_array()?.iter().map(of).collect())
    }

    /// A table inside.
    pub(crate) fn table(&self, key: &str) -> Result<Option<Self>, HubError> {
        let values = self.read(key, "a table", |value| value.as_object().cloned())?;
        let table = format!("{}{key}.", self.table);
        Ok(values.map(|values| Self { path: self.path.clone(), table, values, asked: RefCell::default() }))
    }

    /// Ok if the key is absent or has this value: another would change what the model computes.
    pub(crate) fn must_be(&self, key: &str, only: &Value) -> Result<(), HubError> {
        match self.value(key) {
            Some(value) if value != only && value.as_f64().is_none_or(|it| Some(it) != only.as_f64()) => {
                Err(self.unsupported(key, &format!("only {only} is supported")))
            }
            _ => Ok(()),
        }
    }

    /// The error of a value that no model here can have.
    pub(crate) fn unsupported(&self, key: &str, remedy: &str) -> HubError {
        let value = self.values.get(key).unwrap_or(&Value::Null);
        self.error(key, format!("is {value}"), remedy)
    }

    pub(crate) fn missing(&self, key: &str) -> HubError {
        self.error(key, "is missing", "is the file complete?")
    }

    pub(crate) fn error(&self, key: &str, problem: impl Into<String>, remedy: impl Into<String>) -> HubError {
        HubError::Key {
            path: self.path.clone(),
            key: format!("{}{key}", self.table),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    /// Keys that nobody asked for, with their values.
    pub(crate) fn left_over(&self) -> Vec<(String, Value)> {
        let asked = self.asked.borrow();
        let others = self.values.iter().filter(|(key, value)| !asked.contains(*key) && !value.is_null());
        others.map(|(key, value)| (format!("{}{key}", self.table), value.clone())).collect()
    }
}
