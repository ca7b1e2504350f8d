//! The small half of the flight recorder: files of one JSON object per line, each with its `step`.
//!
//! JSON lines, because rows are few and of several shapes, are appended one at a time, and a person reads them as they
//! are.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::metrics::MetricsError;
use switchyard_ground::durable;

/// A file of rows, open for appending.
#[derive(Debug)]
pub(crate) struct Lines<Row> {
    path: PathBuf,
    file: File,
    rows: PhantomData<Row>,
}

#[derive(Deserialize)]
struct StepOfRow {
    step: u64,
}

impl<Row: Serialize> Lines<Row> {
    /// The file at `path` with its rows up to `last_step`, byte for byte; a last line that a kill tore is dropped.
    /// Absent means a new run: no rows. A missing file is empty.
    ///
    /// # Errors
    /// [`MetricsError::Malformed`], which leaves the file as it is; [`MetricsError::Io`].
    pub(crate) fn rewind(path: &Path, last_step: Option<u64>) -> Result<Self, MetricsError> {
        let mut kept = String::new();
        for (line, row) in read_with_text::<StepOfRow>(path)? {
            if last_step.is_some_and(|last_step| row.step <= last_step) {
                kept.push_str(&line);
                kept.push('\n');
            }
        }
        durable::replace(path, kept.as_bytes()).map_err(io_error("rewrite", path))?;
        let file = OpenOptions::new().append(true).open(path).map_err(io_error("open", path))?;
        Ok(Self { path: path.into(), file, rows: PhantomData })
    }

    /// Adds a row, handed to the operating system in one write.
    ///
    /// # Errors
    /// [`MetricsError::Io`], for example when the disk is full.
    pub(crate) fn append(&mut self, row: &Row) -> Result<(), MetricsError> {
        let failed = io_error("append to", &self.path);
        let mut line = match serde_json::to_vec(row) {
            Ok(line) => line,
            Err(error) => return Err(failed(error.into())),
        };
        line.push(b'\n');
        self.file.write_all(&line).map_err(failed)
    }

    /// Returns once the rows are on the disk itself.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub(crate) fn sync(&self) -> Result<(), MetricsError> {
        self.file.sync_data().map_err(io_error("sync", &self.path))
    }
}

/// Every row of the file at `path`; none if it is missing. A last line that a kill tore is ignored.
///
/// # Errors
/// [`MetricsError::Malformed`], [`MetricsError::Io`].
pub(crate) fn read_rows<Row: DeserializeOwned>(path: &Path) -> Result<Vec<Row>, MetricsError> {
    Ok(read_with_text(path)?.into_iter().map(|(_, row)| row).collect())
}

/// Replaces the file at `path` by these rows.
///
/// # Errors
/// [`MetricsError::Io`].
pub(crate) fn replace_rows<Row: Serialize>(path: &Path, rows: &[Row]) -> Result<(), MetricsError> {
    let mut text = Vec::new();
    for row in rows {
        let written = serde_json::to_writer(&mut text, row).map_err(io::Error::from);
        written.map_err(io_error("write", path))?;
        text.push(b'\n');
    }
    durable::replace(path, &text).map_err(io_error("write", path))
}

fn read_with_text<Row: DeserializeOwned>(path: &Path) -> Result<Vec<(String, Row)>, MetricsError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    let mut rows = Vec::new();
    for (index, line) in text.split_inclusive('\n').enumerate() {
        match serde_json::from_str(line) {
            Ok(row) => rows.push((line.trim_end().to_string(), row)),
            Err(_) if !line.ends_with('\n') => {}
            Err(error) => {
                let (line_number, reason) = (index + 1, error.to_string());
                return Err(MetricsError::Malformed { path: path.into(), line_number, reason });
            }
        }
    }
    Ok(rows)
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MetricsError + use<> {
    let path = path.to_path_buf();
    move |source| MetricsError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Row {
        step: u64,
        value: f64,
    }

    fn row(step: u64) -> Row {
        Row { step, value: 0.1 * step as f64 }
    }

    #[test]
    fn rows_after_the_step_and_a_torn_line_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let mut lines = Lines::rewind(&path, None).unwrap();
        (1..=4).for_each(|step| lines.append(&row(step)).unwrap());
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"step\":5,\"val");
        fs::write(&path, &text).unwrap();
        assert_eq!(read_rows::<Row>(&path).unwrap().len(), 4);
        let mut lines = Lines::rewind(&path, Some(2)).unwrap();
        lines.append(&row(3)).unwrap();
        lines.sync().unwrap();
        assert_eq!(read_rows::<Row>(&path).unwrap(), [row(1), row(2), row(3)]);
        Lines::<Row>::rewind(&path, None).unwrap();
        assert!(read_rows::<Row>(&path).unwrap().is_empty());
    }

    #[test]
    fn a_whole_line_that_is_no_row_is_named_and_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        fs::write(&path, "{\"step\":1,\"value\":2}\nnonsense\n").unwrap();
        let message = Lines::<Row>::rewind(&path, Some(1)).unwrap_err().to_string();
        assert!(message.contains("rows.jsonl` line 2"), "{message}");
        assert!(fs::read_to_string(&path).unwrap().contains("nonsense"));
        assert!(read_rows::<Row>(&folder.path().join("missing")).unwrap().is_empty());
    }
}
