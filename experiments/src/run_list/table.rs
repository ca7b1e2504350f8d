//! The list as aligned columns.

use serde_json::Value;

use super::{COLUMNS, ListedRun, plain_text};
use crate::comparison::with_si_prefix;

/// A heading, a line per run, and below them why those that cannot be read cannot be.
pub(crate) fn to_text(runs: &[ListedRun]) -> String {
    let mut rows = vec![COLUMNS.map(|column| heading(column).to_string())];
    rows.extend(runs.iter().map(|run| COLUMNS.map(|column| cell(column, run.value(column)))));
    let widths: Vec<usize> = (0..COLUMNS.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &[String; COLUMNS.len()]| {
        let cells = COLUMNS.iter().zip(row).zip(&widths).map(|((column, cell), &width)| {
            if is_text(column) { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string() + "\n"
    };
    let table: String = rows.iter().map(line).collect();
    let errors = runs.iter().filter_map(|run| Some(format!("unreadable: {}\n", run.error.as_ref()?)));
    table + &errors.collect::<String>()
}

fn heading(column: &'static str) -> &'static str {
    match column {
        "total_params" => "total",
        "active_params" => "active",
        "final_loss" => "final",
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
        ("final_loss" | "best_loss", Some(nats)) => format!("{nats:.4}"),
        ("seconds", Some(secs)) => format!("{secs:.1}"),
        ("tokens" | "total_params" | "active_params" | "tokens_per_sec", Some(count)) => {
            with_si_prefix(count)
        }
        _ => plain_text(value),
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
    fn without_runs_there_is_only_the_heading() {
        assert_eq!(to_text(&[]).lines().count(), 1);
    }
}
