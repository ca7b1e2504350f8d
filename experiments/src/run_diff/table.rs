//! Differences as a page.

use serde_json::Value;

use super::{Difference, RunDiff};

/// Characters of a value in the table; JSON has all of it.
const MOST_CHARS: usize = 48;

impl RunDiff {
    /// A section for each kind of difference.
    pub(crate) fn to_text(&self) -> String {
        let sections = [
            ("configuration", Some(&self.config)),
            ("what it resolves to", Some(&self.plan)),
            ("results", self.results.as_ref()),
            ("alarms", self.alarms.as_ref()),
            ("provenance", self.provenance.as_ref()),
        ];
        let sections = sections.into_iter().filter_map(|(title, found)| Some(section(title, found?)));
        format!("A {}\nB {}\n{}", self.a, self.b, sections.collect::<String>())
    }
}

fn section(title: &str, differences: &[Difference]) -> String {
    if differences.is_empty() {
        return format!("\n{title}: no difference\n");
    }
    let rows: Vec<[String; 4]> = differences.iter().map(row).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let (key_width, a_width, b_width) = (width(0), width(1), width(2));
    let line = |[key, a, b, change]: &[String; 4]| {
        let line = format!("  {key:<key_width$}  {a:<a_width$}  {b:<b_width$}  {change}");
        line.trim_end().to_string() + "\n"
    };
    format!("\n{title}\n{}", rows.iter().map(line).collect::<String>())
}

fn row(difference: &Difference) -> [String; 4] {
    let Difference { key, a, b } = difference;
    [key.clone(), shown(a), shown(b), change(a, b)]
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::Null => return "-".into(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    if text.chars().count() <= MOST_CHARS {
        return text;
    }
    text.chars().take(MOST_CHARS - 3).collect::<String>() + "..."
}

/// How much larger B is than A, in percent; nothing unless both are numbers of one sign.
fn change(a: &Value, b: &Value) -> String {
    let (Some(a), Some(b)) = (a.as_f64(), b.as_f64()) else { return String::new() };
    if a * b <= 0.0 {
        return String::new();
    }
    format!("{:+.1}%", 100.0 * (b / a - 1.0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{configuration, run};
    use super::*;

    #[test]
    fn a_page_has_a_section_for_each_kind_of_difference() {
        let diff = RunDiff::new(&run("runs/a", 8, 2.5), &run("runs/b", 16, 2.25));
        insta::assert_snapshot!(diff.to_text(), @r"
        A runs/a
        B runs/b

        configuration
          model.ffn.moe.num_experts  8  16  +100.0%

        what it resolves to
          counts.total_params  8000  16000  +100.0%

        results
          final_validation_cross_entropy_nats  2.5  2.25  -10.0%

        alarms
          dead_expert  1  2  +100.0%

        provenance: no difference
        ");
    }

    #[test]
    fn configurations_alone_have_two_sections() {
        let diff = RunDiff::new(&configuration("a.toml", 8), &configuration("b.toml", 8));
        assert_eq!(
            diff.to_text(),
            "A a.toml\nB b.toml\n\nconfiguration: no difference\n\nwhat it resolves to: no difference\n"
        );
    }

    #[test]
    fn a_long_value_is_cut_and_an_absent_one_is_a_dash() {
        let long = shown(&json!("x".repeat(100)));
        assert_eq!((long.chars().count(), &long[44..]), (MOST_CHARS, "x..."));
        assert_eq!(
            (shown(&Value::Null), shown(&json!("a b")), shown(&json!([1, 2]))),
            ("-".into(), "a b".into(), "[1,2]".into())
        );
    }

    #[test]
    fn a_change_needs_two_numbers_of_one_sign() {
        assert_eq!(change(&json!(200), &json!(150.0)), "-25.0%");
        for (a, b) in
            [(json!(0), json!(1)), (json!(-1), json!(1)), (json!("1"), json!(2)), (Value::Null, json!(1))]
        {
            assert_eq!(change(&a, &b), "");
        }
    }
}
