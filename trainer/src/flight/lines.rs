//! The small half of the flight recorder: files of one JSON object per line, each with its `step`.
//!
//! JSON lines, because rows are few and of several shapes, are appended one at a time, and a person
//! reads them as they are.

use std::io;
use std::marker::PhantomData;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use switchyard_ground::{durable, regular_file};

use crate::metrics::MetricsError;
use switchyard_ground::aside::{Why, set_aside};
use switchyard_ground::line_file::LineFile;

/// A file of rows, open for appending.
#[derive(Debug)]
pub(crate) struct Lines<Row> {
    file: LineFile,
    rows: PhantomData<Row>,
}

/// A row of a flight file.
pub(crate) trait FlightRow: Serialize + DeserializeOwned {
    /// The step that it is of.
    fn step(&self) -> u64;
}

/// A file of rows that goes on.
#[derive(Debug)]
pub(crate) struct ResumedLines<Row> {
    pub(crate) lines: Lines<Row>,
    /// The rows in it.
    pub(crate) rows: Vec<Row>,
    /// What the user should know: some of the file could not be read, and where it is now.
    pub(crate) note: Option<String>,
}

impl<Row: FlightRow> Lines<Row> {
    /// The file at `path` with its rows up to `last_step`, byte for byte; a last line that a kill
    /// tore is dropped. `None` means a new run: no rows. A missing file is empty. A file that
    /// cannot be understood keeps no run from going on: it is set aside, and those of its rows that
    /// can be read are kept.
    ///
    /// # Errors
    /// [`MetricsError::Io`]; nothing has changed then.
    pub(crate) fn rewind(path: &Path, last_step: Option<u64>) -> Result<ResumedLines<Row>, MetricsError> {
        let (all, problem) = match read_with_text::<Row>(path) {
            Ok(read) => read,
            Err(error) if error.is_about_the_file() => (Vec::new(), Some(error)),
            Err(error) => return Err(error),
        };
        let note = problem.map(|problem| aside_note(path, &problem)).transpose()?;
        let is_kept = |row: &Row| last_step.is_some_and(|last_step| row.step() <= last_step);
        let kept: Vec<(String, Row)> = all.into_iter().filter(|(_, row)| is_kept(row)).collect();
        let text: String = kept.iter().map(|(line, _)| format!("{line}\n")).collect();
        let file = LineFile::replace(path, text.as_bytes()).map_err(MetricsError::io("rewrite", path))?;
        let rows = kept.into_iter().map(|(_, row)| row).collect();
        Ok(ResumedLines { lines: Self { file, rows: PhantomData }, rows, note })
    }

    /// Adds rows, each handed to the operating system in one write.
    ///
    /// # Errors
    /// [`MetricsError::Io`], for example when the disk is full: what is not written is written
    /// before the next row.
    pub(crate) fn append_all(&mut self, rows: &[Row]) -> Result<(), MetricsError> {
        // All are tried before the first error counts.
        let mut result = Ok(());
        for row in rows {
            let appended = self.append(row);
            result = result.and(appended);
        }
        result
    }

    fn append(&mut self, row: &Row) -> Result<(), MetricsError> {
        let failed = MetricsError::io("append to", self.file.path());
        match serde_json::to_vec(row) {
            Ok(line) => self.file.append(line).map_err(failed),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Returns once the rows are on the disk itself, with what others did to the file in the
    /// meantime.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub(crate) fn sync(&mut self) -> Result<Option<String>, MetricsError> {
        let mishap = self.file.sync().map_err(MetricsError::io("sync", self.file.path()))?;
        Ok(mishap.map(|mishap| mishap.describe(self.file.path())))
    }
}

/// Sets the file at `path` aside because of `problem`, and says so.
fn aside_note(path: &Path, problem: &MetricsError) -> Result<String, MetricsError> {
    let aside = set_aside(path, Why::Damaged).map_err(MetricsError::io("rename", path))?;
    Ok(format!(
        "`{}` cannot be read: {}; it is now `{}`, and the rows of it that can be read go on in a new file",
        path.display(),
        problem.problem(),
        aside.display()
    ))
}

/// Every row of the file at `path`; none if it is missing. A last line that a kill tore is
/// ignored.
///
/// # Errors
/// [`MetricsError::Malformed`], [`MetricsError::Io`].
pub(crate) fn read_rows<Row: DeserializeOwned>(path: &Path) -> Result<Vec<Row>, MetricsError> {
    let (rows, problem) = read_with_text(path)?;
    problem.map_or_else(|| Ok(rows.into_iter().map(|(_, row)| row).collect()), Err)
}

/// Replaces the file at `path` by these rows.
///
/// # Errors
/// [`MetricsError::Io`].
pub(crate) fn replace_rows<Row: Serialize>(path: &Path, rows: &[Row]) -> Result<(), MetricsError> {
    let mut text = Vec::new();
    for row in rows {
        let written = serde_json::to_writer(&mut text, row).map_err(io::Error::from);
        written.map_err(MetricsError::io("write", path))?;
        text.push(b'\n');
    }
    durable::replace(path, &text).map_err(MetricsError::io("write", path))
}

/// A row with its text.
type RowText<Row> = (String, Row);

/// The rows that can be read, and the first whole line that cannot.
fn read_with_text<Row: DeserializeOwned>(
    path: &Path,
) -> Result<(Vec<RowText<Row>>, Option<MetricsError>), MetricsError> {
    let bytes = match regular_file::read(path, u64::MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(MetricsError::io("read", path)(error)),
    };
    let (mut rows, mut problem) = (Vec::new(), None);
    for (index, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let text = std::str::from_utf8(line.trim_ascii_end()).map_err(|error| error.to_string());
        match text.and_then(|text| Ok((text, serde_json::from_str(text).map_err(|error| error.to_string())?)))
        {
            Ok((text, row)) => rows.push((text.to_string(), row)),
            Err(_) if !line.ends_with(b"\n") => {}
            Err(reason) => {
                let line_number = index + 1;
                problem.get_or_insert(MetricsError::Malformed { path: path.into(), line_number, reason });
            }
        }
    }
    Ok((rows, problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::fs;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Row {
        step: u64,
        value: f64,
    }

    impl FlightRow for Row {
        fn step(&self) -> u64 {
            self.step
        }
    }

    fn row(step: u64) -> Row {
        Row { step, value: 0.1 * step as f64 }
    }

    #[test]
    fn rows_after_the_step_and_a_torn_line_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let mut lines = Lines::rewind(&path, None).unwrap().lines;
        lines.append_all(&[row(1), row(2), row(3), row(4)]).unwrap();
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"step\":5,\"val");
        fs::write(&path, &text).unwrap();
        assert_eq!(read_rows::<Row>(&path).unwrap().len(), 4);
        let mut resumed = Lines::rewind(&path, Some(2)).unwrap();
        assert_eq!((resumed.note, resumed.rows), (None, vec![row(1), row(2)]));
        resumed.lines.append_all(&[row(3)]).unwrap();
        assert_eq!(resumed.lines.sync().unwrap(), None);
        assert_eq!(read_rows::<Row>(&path).unwrap(), [row(1), row(2), row(3)]);
        Lines::<Row>::rewind(&path, None).unwrap();
        assert!(read_rows::<Row>(&path).unwrap().is_empty());
    }

    #[test]
    fn a_file_that_cannot_be_understood_is_kept_aside_and_the_run_goes_on() {
        for bad in [&b"nonsense"[..], b"{\"step\":2,\"value\":\"\xff\"}", b"{\"step\":1}", b"[]"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("rows.jsonl");
            let text =
                [&b"{\"step\":1,\"value\":2.0}\n"[..], bad, b"\n{\"step\":2,\"value\":3.0}\n"].concat();
            fs::write(&path, &text).unwrap();
            let message = read_rows::<Row>(&path).unwrap_err().to_string();
            assert!(message.contains("rows.jsonl` line 2"), "{message}");
            assert!(!message.contains("space") && !message.contains("--overwrite"), "{message}");
            let resumed = Lines::<Row>::rewind(&path, Some(2)).unwrap();
            let note = resumed.note.unwrap();
            assert!(note.contains("line 2") && note.contains("rows.jsonl.damaged-1"), "{note}");
            assert_eq!(fs::read(folder.path().join("rows.jsonl.damaged-1")).unwrap(), text);
            assert_eq!(read_rows::<Row>(&path).unwrap(), resumed.rows);
            assert_eq!(resumed.rows, [Row { step: 1, value: 2.0 }, Row { step: 2, value: 3.0 }]);
        }
    }

    #[test]
    fn a_missing_file_has_no_rows_and_a_folder_in_its_place_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        assert!(read_rows::<Row>(&path).unwrap().is_empty());
        fs::create_dir(&path).unwrap();
        assert!(Lines::<Row>::rewind(&path, Some(2)).unwrap().note.is_some());
        assert!(path.is_file());
    }
}
