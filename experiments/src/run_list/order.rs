//! The order of runs.

use std::cmp::Ordering;

use serde_json::Value;

use super::{ListedRun, plain_text};

/// What runs are sorted by unless something else is asked for: the newest then stands last, beside
/// the next prompt.
pub(crate) const DEFAULT_KEY: &str = "started_at";

/// Sorts by the value of `key`, numbers before text, equal runs by path. Runs without the key come
/// last, reversed or not.
pub(crate) fn sort(runs: &mut [ListedRun], key: &str, reverse: bool) {
    runs.sort_by(|a, b| {
        let by_value = match (a.value(key), b.value(key)) {
            (Some(a), Some(b)) if reverse => compare(b, a),
            (Some(a), Some(b)) => compare(a, b),
            (a, b) => a.is_none().cmp(&b.is_none()),
        };
        let path = |run: &ListedRun| run.value("path").map(plain_text);
        by_value.then_with(|| path(a).cmp(&path(b)))
    });
}

fn compare(a: &Value, b: &Value) -> Ordering {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        (a_number, b_number) => {
            let numbers_first = a_number.is_none().cmp(&b_number.is_none());
            numbers_first.then_with(|| plain_text(a).cmp(&plain_text(b)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::tests::run;
    use super::*;

    fn sorted(key: &str, reverse: bool) -> Vec<String> {
        let mut runs = [
            ListedRun::unreadable(Path::new("runs/x"), "torn".into()),
            run("c", 16, None, "2026-01-01T00:00:00Z"),
            run("a", 8, Some(2.5), "2026-03-01T00:00:00Z"),
            run("b", 8, Some(2.25), "2026-02-01T00:00:00Z"),
        ];
        sort(&mut runs, key, reverse);
        runs.iter().map(|run| plain_text(run.value("name").unwrap())).collect()
    }

    #[test]
    fn numbers_are_sorted_by_size_and_equal_runs_by_path() {
        assert_eq!(sorted("model.ffn.moe.num_experts", false), ["a", "b", "c", "x"]);
        assert_eq!(sorted("model.ffn.moe.num_experts", true), ["c", "a", "b", "x"]);
    }

    #[test]
    fn runs_without_the_value_come_last_reversed_or_not() {
        assert_eq!(sorted("final_loss", false), ["b", "a", "c", "x"]);
        assert_eq!(sorted("final_loss", true), ["a", "b", "c", "x"]);
    }

    #[test]
    fn the_newest_run_is_next_to_the_prompt() {
        assert_eq!(sorted(DEFAULT_KEY, false), ["c", "b", "a", "x"]);
    }

    #[test]
    fn numbers_come_before_text() {
        let (two, ten, word) = (Value::from(2), Value::from(10), Value::from("1st"));
        assert_eq!(compare(&two, &ten), Ordering::Less);
        assert_eq!(compare(&word, &ten), Ordering::Greater);
        assert_eq!(compare(&ten, &word), Ordering::Less);
    }
}
