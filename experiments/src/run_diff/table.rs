//! Differences as a page.

use serde_json::Value;

use switchyard_ground::printable::excerpt;

use super::{DataDiff, Difference, RunDiff};
use crate::comparison::DataRelation;

/// Characters of a value in the table; JSON has all of it.
const MOST_CHARS: usize = 48;

/// Characters of a path in the heading.
const MOST_PATH_CHARS: usize = 4096;

/// Characters of a key.
const MOST_KEY_CHARS: usize = 120;

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
        let (a, b) = (excerpt(&self.a, MOST_PATH_CHARS), excerpt(&self.b, MOST_PATH_CHARS));
        let notes: String = self.notes.iter().map(|note| format!("- {note}\n")).collect();
        let notes = if notes.is_empty() { notes } else { format!("\n{notes}") };
        format!("A {a}\nB {b}\n{}{}{notes}", self.data.to_text(), sections.collect::<String>())
    }
}

impl DataDiff {
    fn to_text(&self) -> String {
        let key = |key: &Option<String>| key.as_deref().map_or("-".into(), |key| excerpt(key, 12));
        let (a, b) = (key(&self.key_a), key(&self.key_b));
        let what = match (self.relation, self.places.is_empty(), &self.key_a) {
            (DataRelation::Same, true, _) => "no difference".into(),
            (DataRelation::Same, false, _) => format!("the same content (key {a}) at other places"),
            (DataRelation::Different, ..) if self.key_a.is_some() && self.key_b.is_some() => {
                format!("different content (keys {a} and {b})")
            }
            (DataRelation::Different, ..) => "different by its keys".into(),
            (DataRelation::Unknown, true, _) => {
                "at the same place; whether the content is the same is not known".into()
            }
            (DataRelation::Unknown, false, _) => {
                "at other places; whether the content is the same is not known".into()
            }
        };
        let places = if self.places.is_empty() { String::new() } else { rows(&self.places) };
        format!("\ndata: {what}\n{places}")
    }
}

fn section(title: &str, differences: &[Difference]) -> String {
    if differences.is_empty() {
        return format!("\n{title}: no difference\n");
    }
    format!("\n{title}\n{}", rows(differences))
}

fn rows(differences: &[Difference]) -> String {
    let rows: Vec<[String; 4]> = differences.iter().map(row).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let (key_width, a_width, b_width) = (width(0), width(1), width(2));
    let line = |[key, a, b, change]: &[String; 4]| {
        let line = format!("  {key:<key_width$}  {a:<a_width$}  {b:<b_width$}  {change}");
        line.trim_end().to_string() + "\n"
    };
    rows.iter().map(line).collect()
}

fn row(difference: &Difference) -> [String; 4] {
    let Difference { key, a, b } = difference;
    [excerpt(key, MOST_KEY_CHARS), shown(a), shown(b), change(a, b)]
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::Null => return "-".into(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    if text.chars().count() <= MOST_CHARS {
        excerpt(&text, MOST_CHARS)
    } else {
        excerpt(&text, MOST_CHARS - 3)
    }
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

    use super::super::Side;
    use super::super::tests::{configuration, run};
    use super::*;

    #[test]
    fn a_page_has_a_section_for_each_kind_of_difference() {
        let diff = RunDiff::new(&run("runs/a", 8, 2.5), &run("runs/b", 16, 2.25));
        insta::assert_snapshot!(diff.to_text(), @r"
        A runs/a
        B runs/b

        data: no difference

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
            "A a.toml\nB b.toml\n\ndata: no difference\n\nconfiguration: no difference\n\nwhat it resolves to: no difference\n"
        );
    }

    #[test]
    fn what_is_known_of_the_data_is_said_with_its_places() {
        let side = |label: &str, path: &str, key: Option<&str>| {
            let mut side = if key.is_some() { run(label, 8, 2.5) } else { configuration(label, 8) };
            side.config["data"] = json!({ "text": { "path": path } });
            side.data_key = key.map(str::to_string);
            side
        };
        let data = |a: &Side, b: &Side| RunDiff::new(a, b).data.to_text();
        let places = "  data.text.path  x.txt  y.txt\n";
        assert_eq!(
            data(&side("a", "x.txt", Some("k")), &side("b", "y.txt", Some("k"))),
            format!("\ndata: the same content (key k) at other places\n{places}")
        );
        assert_eq!(
            data(&side("a", "x.txt", Some("k")), &side("b", "x.txt", Some("l"))),
            "\ndata: different content (keys k and l)\n"
        );
        assert_eq!(
            data(&side("a.toml", "x.txt", None), &side("b.toml", "y.txt", None)),
            format!("\ndata: at other places; whether the content is the same is not known\n{places}")
        );
        assert_eq!(
            data(&side("a.toml", "x.txt", None), &side("b.toml", "x.txt", None)),
            "\ndata: no difference\n"
        );
        let since = data(&side("a", "x.txt", Some("k")), &side("b.toml", "x.txt", None));
        assert_eq!(since, "\ndata: at the same place; whether the content is the same is not known\n");
    }

    #[test]
    fn nothing_from_a_file_reaches_the_terminal_with_control_characters() {
        let mut side = run("runs/\u{1b}[2J", 8, 2.5);
        side.config["data"] = json!({ "a\u{9b}31m": "\u{1b}]52;c;eA==\u{7}" });
        let page = RunDiff::new(&side, &run("b", 8, 2.5)).to_text();
        assert!(!page.contains(|letter: char| letter.is_control() && letter != '\n'), "{page:?}");
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
