//! One error for a key of the configuration whose value cannot be used.

use std::error::Error;
use std::fmt;

/// A value, or a combination of values, of the configuration that cannot be used.
///
/// A component knows its own keys only: `path` is relative to it, and whoever holds the component
/// puts the path of its table in front, by [`KeyError::under`].
///
/// ```
/// use switchyard_ground::key_error::KeyError;
///
/// let error = KeyError::new("top_k", "is 9, but the layer has 8 experts", "use 1..=8");
/// assert_eq!(
///     error.under("model.ffn.moe.router").to_string(),
///     "`model.ffn.moe.router.top_k` is 9, but the layer has 8 experts: use 1..=8"
/// );
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyError {
    /// Path of the key; empty for the component's table itself.
    pub path: String,
    /// The value and what is wrong with it, in words that go on from the key, as in "is 0".
    pub problem: String,
    /// What to do, as in "use at least 1".
    pub remedy: String,
    /// Other keys of the component that the words name in backticks, relative as `path` is.
    others: Vec<String>,
}

impl KeyError {
    /// An error about the key at `path`.
    pub fn new(path: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { path: path.into(), problem: problem.into(), remedy: remedy.into(), others: Vec::new() }
    }

    /// The same error, whose words name `key` of the same component in backticks.
    #[must_use]
    pub fn naming(mut self, key: impl Into<String>) -> Self {
        self.others.push(key.into());
        self
    }

    /// The same error, seen from where the component is the table at `table`.
    #[must_use]
    pub fn under(self, table: &str) -> Self {
        let Self { path, mut problem, mut remedy, mut others } = self;
        for other in &mut others {
            let (relative, whole) = (format!("`{other}`"), format!("`{table}.{other}`"));
            problem = problem.replace(&relative, &whole);
            remedy = remedy.replace(&relative, &whole);
            *other = format!("{table}.{other}");
        }
        let path = if path.is_empty() { table.to_owned() } else { format!("{table}.{path}") };
        Self { path, problem, remedy, others }
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, problem, remedy, .. } = self;
        if !path.is_empty() {
            write!(f, "`{path}` ")?;
        }
        write!(f, "{problem}: {remedy}")
    }
}

impl Error for KeyError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_around_is_put_in_front_of_every_key_that_is_named() {
        let error = KeyError::new("softmax", "has no effect on `sigmoid` scores", "remove it, or `sigmoid`")
            .naming("sigmoid")
            .under("router")
            .under("moe");
        assert_eq!(error.path, "moe.router.softmax");
        assert_eq!(
            error.to_string(),
            "`moe.router.softmax` has no effect on `moe.router.sigmoid` scores: remove it, or `moe.router.sigmoid`"
        );
    }

    #[test]
    fn a_component_itself_is_named_by_its_table() {
        let error = KeyError::new("", "is empty", "give `every` or `list`");
        assert_eq!(error.to_string(), "is empty: give `every` or `list`");
        let error = error.under("layers").under("moe");
        assert_eq!(error.to_string(), "`moe.layers` is empty: give `every` or `list`");
    }
}
