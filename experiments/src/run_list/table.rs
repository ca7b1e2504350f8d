//! The list as aligned columns.

use serde_json::Value;
use switchyard_ground::printable::excerpt;
use switchyard_ground::units::compact;

use super::{COLUMNS, ListedRun, plain_text};

/// Characters of a cell: enough for any path.
const MOST_CHARS: usize = 4096;

/// Characters of an error message.
const MOST_ERROR_CHARS: usize = 1000;

/// A heading, a line per run, and below them why those that cannot be read cannot be.
pub(crate) fn to_text(runs: &[ListedRun]) -> String {
    // Not every corpus tells its bytes.
    let is_shown =
        |column: &&str| *column != "bits_per_byte" || runs.iter().any(|run| run.value(column).is_some());
    let columns: Vec<&'static str> = COLUMNS.into_iter().filter(is_shown).collect();
    let mut rows = vec![columns.iter().map(|column| heading(column).to_string()).collect::<Vec<_>>()];
    rows.extend(
        runs.iter().map(|run| columns.iter().map(|column| cell(column, run.value(column))).collect()),
    );
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells = columns.iter().zip(row).zip(&widths).map(|((column, cell), &width)| {
            if is_text(column) { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string() + "\n"
    };
    let table: String = rows.iter().map(line).collect();
    let error = |error: &String| format!("unreadable: {}\n", excerpt(error, MOST_ERROR_CHARS));
    let errors = runs.iter().filter_map(|run| run.error.as_ref().map(error));
    table + &errors.collect::<String>()
}

fn heading(column: &'static str) -> &'static str {
    match column {
        "total_params" => "total",
        "active_params" => "active",
        "final_loss" => "final",
        "bits_per_byte" => "bits/byte",
        "best_loss" => "best",
        "tokens_per_sec" => "tok/s",
        "started_at" => "started",
        column => column,
    }
}

fn is_text(column: &str) -> bool {
    ["name", "status", "started_at", "path"].contains(&column)
}

fn cell(column: &str, value: Option<&Value>) -> String {
    let Some(value) = value else { return "-".into() };
    match (column, value.as_f64()) {
        ("final_loss" | "best_loss" | "bits_per_byte", Some(nats)) => format!("{nats:.4}"),
        ("seconds", Some(secs)) => format!("{secs:.1}"),
        ("tokens" | "total_params" | "active_params" | "tokens_per_sec", Some(count)) => compact(count),
        _ => excerpt(&plain_text(value), MOST_CHARS),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::tests::run;
    use super::*;

    #[test]
    fn numbers_are_aligned_and_a_broken_run_is_explained_below() {
        let runs = [
            run("dense", 1, Some(2.75), "2026-01-01T00:00:00Z"),
            run("a-longer-name", 8, None, "2026-02-01T00:00:00Z"),
            ListedRun::unreadable(
                Path::new("runs/torn"),
                "`runs/torn/run.json` is not the manifest of a run".into(),
            ),
        ];
        insta::assert_snapshot!(to_text(&runs), @r"
        name           status      steps  tokens  total  active   final    best  seconds  tok/s  alarms  started               path
        dense          finished       40   20.5k  4.70M   1.31M  2.7500  2.7500     10.0  2.05k       2  2026-01-01T00:00:00Z  runs/dense
        a-longer-name  killed         40   20.5k  4.70M   1.31M       -       -     10.0  2.05k       2  2026-02-01T00:00:00Z  runs/a-longer-name
        torn           unreadable      -       -      -       -       -       -        -      -       -  -                     runs/torn
        unreadable: `runs/torn/run.json` is not the manifest of a run
        ");
    }

    #[test]
    fn names_and_errors_from_files_bring_no_control_characters_and_no_lines() {
        let runs = [
            run("a\u{1b}]52;c;eA==\u{7}\nb", 8, Some(2.0), "\u{9b}31m"),
            ListedRun::unreadable(Path::new("runs/x"), "expected `\u{1b}[2J`".into()),
        ];
        let table = to_text(&runs);
        assert!(!table.contains(|letter: char| letter.is_control() && letter != '\n'), "{table:?}");
        assert_eq!(table.lines().count(), 4, "a heading, two runs and an error");
    }

    #[test]
    fn without_runs_there_is_only_the_heading() {
        assert_eq!(to_text(&[]).lines().count(), 1);
    }
}
