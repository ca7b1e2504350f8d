//! All numbers of the report as CSV, unrounded.

mod of_comparisons;
mod of_runs;

use anyhow::{Context, Result};
use serde::Serialize;

use super::content::Content;
use super::series::RunSeries;
use of_comparisons::{axis_rows, gauge_rows, pair_rows};
use of_runs::{alarm_rows, curve_rows, load_rows, routing_rows};

/// Each file's name and content. Those about comparisons only with a study.
///
/// # Errors
/// Those of the writer.
pub(super) fn all(content: &Content) -> Result<Vec<(String, Vec<u8>)>> {
    let sparse_arms = content.longest_runs();
    let shown: Vec<&RunSeries> = sparse_arms.iter().filter_map(|arm| arm.sparse_run()).collect();
    let mut files = vec![
        file("curves.csv", content.runs.iter().flat_map(curve_rows))?,
        file("runs.csv", content.run_rows())?,
        file("load.csv", shown.iter().flat_map(|run| load_rows(run)))?,
        file("routing.csv", shown.iter().flat_map(|run| routing_rows(run)))?,
        file("alarms.csv", content.runs.iter().flat_map(alarm_rows))?,
    ];
    if let Some(result) = content.result {
        let baseline = result.baseline.as_str();
        files.push(file(
            "comparisons.csv",
            result.comparisons.iter().flat_map(|arm| axis_rows(arm, baseline)),
        )?);
        files.push(file("pairs.csv", result.comparisons.iter().flat_map(pair_rows))?);
        files.push(file("gauge.csv", result.comparisons.iter().flat_map(gauge_rows))?);
    }
    Ok(files)
}

/// A file of `rows` under a line of their fields' names; empty without rows.
fn file<T: Serialize>(name: &str, rows: impl IntoIterator<Item = T>) -> Result<(String, Vec<u8>)> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer.serialize(row).with_context(|| format!("cannot write a row of {name}"))?;
    }
    let bytes = writer.into_inner().with_context(|| format!("cannot finish {name}"))?;
    Ok((name.into(), bytes))
}
