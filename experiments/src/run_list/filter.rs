//! Which runs are asked for: `KEY=VALUE`, `KEY<VALUE`, `KEY>VALUE`, `KEY~TEXT`.

use std::cmp::Ordering;

use serde_json::Value;

use super::{COLUMNS, ListedRun, plain_text};

/// One condition.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Filter {
    key: String,
    condition: Condition,
    value: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Equal,
    Less,
    Greater,
    /// In capitals or not.
    Contains,
}

impl Filter {
    /// The condition that `text` says.
    ///
    /// # Errors
    /// What a condition looks like.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let condition = |(place, sign): (usize, char)| {
            let condition = match sign {
                '=' => Condition::Equal,
                '<' => Condition::Less,
                '>' => Condition::Greater,
                '~' => Condition::Contains,
                _ => return None,
            };
            Some((place, condition))
        };
        let Some((place, condition)) =
            text.char_indices().find_map(condition).filter(|(place, _)| *place > 0)
        else {
            return Err("write KEY=VALUE, KEY<VALUE, KEY>VALUE or KEY~TEXT, such as final_loss<2.5".into());
        };
        // The signs are of one byte each.
        let (key, value) = (text[..place].trim(), text[place + 1..].trim());
        Ok(Self { key: key.into(), condition, value: value.into() })
    }

    /// What is compared.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Whether the run has the key and its value fits.
    pub(crate) fn accepts(&self, run: &ListedRun) -> bool {
        let Some(value) = run.value(&self.key) else { return false };
        match self.condition {
            Condition::Equal => self.order(value) == Some(Ordering::Equal),
            Condition::Less => self.order(value) == Some(Ordering::Less),
            Condition::Greater => self.order(value) == Some(Ordering::Greater),
            Condition::Contains => plain_text(value).to_lowercase().contains(&self.value.to_lowercase()),
        }
    }

    /// A run's value relative to the condition's: as numbers if both are, else as text, in which
    /// points in time are in order too. A number is neither less nor more than a word.
    fn order(&self, value: &Value) -> Option<Ordering> {
        match (value.as_f64(), self.value.parse::<f64>()) {
            (Some(value), Ok(bound)) => value.partial_cmp(&bound),
            (Some(_), Err(_)) => None,
            (None, _) => Some(plain_text(value).as_str().cmp(&self.value)),
        }
    }
}

/// What is wrong with a key that neither is a column nor has a value in any run: most likely it is
/// misspelt.
pub(crate) fn unknown_key<'a>(mut keys: impl Iterator<Item = &'a str>, runs: &[ListedRun]) -> Option<String> {
    let is_unknown = |key: &&str| !COLUMNS.contains(key) && runs.iter().all(|run| run.value(key).is_none());
    let key = keys.find(is_unknown)?;
    Some(format!(
        "no run has `{key}`: name a column ({}), a key of the configuration such as model.ffn.moe.num_experts, or one of \
         run.json such as plan.counts.total_params",
        COLUMNS.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    fn accepted(filters: &[&str]) -> Vec<String> {
        let runs = [
            run("dense", 1, Some(2.75), "2026-01-01T00:00:00Z"),
            run("Moe-8", 8, Some(2.5), "2026-02-01T00:00:00Z"),
            run("moe-16", 16, None, "2026-03-01T00:00:00Z"),
        ];
        let filters: Vec<Filter> = filters.iter().map(|text| Filter::parse(text).unwrap()).collect();
        let fits = |run: &&ListedRun| filters.iter().all(|filter| filter.accepts(run));
        runs.iter().filter(fits).map(|run| plain_text(run.value("name").unwrap())).collect()
    }

    #[test]
    fn numbers_are_compared_as_numbers() {
        assert_eq!(accepted(&["model.ffn.moe.num_experts>2"]), ["Moe-8", "moe-16"]);
        assert_eq!(accepted(&["model.ffn.moe.num_experts<9"]), ["dense", "Moe-8"]);
        assert_eq!(accepted(&["model.ffn.moe.num_experts=8.0"]), ["Moe-8"]);
        assert_eq!(accepted(&["final_loss<2.6"]), ["Moe-8"]);
        assert_eq!(accepted(&["model.ffn.moe.num_experts=eight"]), [""; 0]);
    }

    #[test]
    fn text_is_compared_as_text_and_so_are_points_in_time() {
        assert_eq!(accepted(&["status=killed"]), ["moe-16"]);
        assert_eq!(accepted(&["started_at>2026-01-15"]), ["Moe-8", "moe-16"]);
        assert_eq!(accepted(&["name~moe"]), ["Moe-8", "moe-16"]);
        assert_eq!(accepted(&["name~moe", "status=finished"]), ["Moe-8"]);
    }

    #[test]
    fn a_run_without_the_key_is_not_accepted() {
        assert_eq!(accepted(&["final_loss>0"]), ["dense", "Moe-8"], "the third has no final loss");
    }

    #[test]
    fn the_first_sign_ends_the_key() {
        let filter = Filter::parse("name = a=b<c").unwrap();
        assert_eq!(
            (filter.key(), filter.condition, filter.value.as_str()),
            ("name", Condition::Equal, "a=b<c")
        );
        for text in ["", "name", "=2", "~"] {
            let message = Filter::parse(text).unwrap_err();
            assert!(message.contains("KEY=VALUE") && message.contains("final_loss<2.5"), "{message}");
        }
    }

    #[test]
    fn a_key_that_no_run_has_is_named_beside_the_columns() {
        let runs = [run("a", 1, None, "")];
        assert_eq!(unknown_key(["name", "seed", "final_loss"].into_iter(), &runs), None);
        let message = unknown_key(["name", "final_los"].into_iter(), &runs).unwrap();
        assert!(message.contains("no run has `final_los`") && message.contains("final_loss"), "{message}");
    }
}
