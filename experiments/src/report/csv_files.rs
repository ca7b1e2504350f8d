//! All numbers of the report as CSV, unrounded.

mod of_comparisons;
mod of_runs;

use anyhow::{Context, Result};
use serde::Serialize;
use switchyard_ground::printable::printable;

use super::content::Content;
use super::series::RunSeries;
use of_comparisons::{axis_rows, gauge_rows, pair_rows};
use of_runs::{alarm_rows, curve_rows, load_rows, routing_rows, source_rows};

/// Each file's name and content. Those about comparisons only with a study.
///
/// # Errors
/// Those of the writer.
pub(super) fn all(content: &Content) -> Result<Vec<(String, Vec<u8>)>> {
    let sparse_arms = content.longest_runs();
    let shown: Vec<&RunSeries> = sparse_arms.iter().filter_map(|arm| arm.sparse_run()).collect();
    let mut files = vec![
        file("curves.csv", content.runs.iter().flat_map(curve_rows))?,
        file("sources.csv", content.runs.iter().flat_map(source_rows))?,
        file("runs.csv", content.run_rows())?,
        file("load.csv", shown.iter().flat_map(|run| load_rows(run)))?,
        file("routing.csv", shown.iter().flat_map(|run| routing_rows(run)))?,
        file("alarms.csv", content.runs.iter().flat_map(alarm_rows))?,
    ];
    if let Some(result) = content.result {
        files
            .push(file("comparisons.csv", result.comparisons.iter().flat_map(|arm| axis_rows(arm, result)))?);
        files.push(file("pairs.csv", result.comparisons.iter().flat_map(pair_rows))?);
        files.push(file("gauge.csv", result.comparisons.iter().flat_map(gauge_rows))?);
    }
    Ok(files)
}

/// A file of `rows` under a line of their fields' names, which stands there without rows too: an
/// empty file is no table.
fn file<T: Default + Serialize>(name: &str, rows: impl IntoIterator<Item = T>) -> Result<(String, Vec<u8>)> {
    let in_file = || format!("cannot write a row of {name}");
    // The writer learns the names from a row, so that a row of defaults is written and left out.
    let mut names = csv::Writer::from_writer(Vec::new());
    names.serialize(T::default()).with_context(in_file)?;
    let names = names.into_inner().with_context(in_file)?;
    let end_of_line = names.iter().position(|&byte| byte == b'\n').map_or(names.len(), |at| at + 1);

    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(names[..end_of_line].to_vec());
    for row in rows {
        writer.serialize(row).with_context(in_file)?;
    }
    let bytes = writer.into_inner().with_context(in_file)?;
    // A table is looked at in a terminal too, and its names and messages are whatever the files of
    // the runs say.
    Ok((name.into(), printable(&String::from_utf8_lossy(&bytes)).into_owned().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_without_rows_still_says_what_its_columns_are() {
        #[derive(Default, Serialize)]
        struct Row {
            arm: &'static str,
            low: Option<f64>,
        }
        let text = |rows: Vec<Row>| String::from_utf8(file("table.csv", rows).unwrap().1).unwrap();
        assert_eq!(text(vec![]), "arm,low\n");
        assert_eq!(text(vec![Row { arm: "a", low: Some(0.5) }, Row::default()]), "arm,low\na,0.5\n,\n");
    }
}
