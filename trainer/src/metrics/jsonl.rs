//! `metrics.jsonl`: one [`Record`] per line, complete on disk before the next step starts.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{MetricsError, Record};
use switchyard_ground::durable;

/// `metrics.jsonl`, open for appending.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// An empty file at `path`; what was there is lost.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn create(path: &Path) -> Result<Self, MetricsError> {
        let file = File::create(path).map_err(io_error("create", path))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// The file at `path` with its rows up to and including `last_step`, byte for byte as they were;
    /// later rows, a last line torn by a kill, and the evaluation that ended the run are dropped. A missing file
    /// starts empty. So the rows of a resumed run are those of a run that was never stopped.
    ///
    /// A checkpoint of step n must therefore be written after all rows of step n.
    ///
    /// # Errors
    /// [`MetricsError::Malformed`] for a complete line that is no record: the file is then left as it is.
    /// [`MetricsError::Io`].
    pub fn resume(path: &Path, last_step: u64) -> Result<Self, MetricsError> {
        let mut kept = Vec::new();
        for (line, record) in read_lines(path, Missing::IsEmpty)? {
            let ended_the_run = record.as_eval().is_some_and(|row| row.end_of_run);
            if record.step() <= last_step && !ended_the_run {
                kept.extend_from_slice(line.as_bytes());
                kept.push(b'\n');
            }
        }
        durable::replace(path, &kept).map_err(io_error("rewrite", path))?;
        let file = OpenOptions::new().append(true).open(path).map_err(io_error("open", path))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Adds `record` as one line, handed to the operating system in one write: a killed process loses
    /// at most the line that it was writing.
    ///
    /// # Errors
    /// [`MetricsError::NonFinite`] for a NaN or an infinity; nothing is written then.
    /// [`MetricsError::Io`], for example when the disk is full.
    pub fn append(&mut self, record: &Record) -> Result<(), MetricsError> {
        if let Some((field, value)) = record.first_non_finite() {
            return Err(MetricsError::NonFinite {
                path: self.path.clone(),
                step: record.step(),
                field,
                value,
            });
        }
        let append_error = io_error("append to", &self.path);
        let mut line = match serde_json::to_vec(record) {
            Ok(line) => line,
            Err(error) => return Err(append_error(error.into())),
        };
        line.push(b'\n');
        self.file.write_all(&line).map_err(append_error)
    }

    /// Returns once the rows so far are on the disk itself. Call it before a checkpoint is written, so that a
    /// power failure cannot keep a checkpoint and lose rows that lead to it.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn sync(&self) -> Result<(), MetricsError> {
        self.file.sync_data().map_err(io_error("sync", &self.path))
    }
}

/// All rows of the file at `path`. A last line that is torn, as a killed or still running process leaves it,
/// is ignored.
///
/// # Errors
/// [`MetricsError::Malformed`] for a complete line that is no record; [`MetricsError::Io`].
pub fn read_metrics(path: &Path) -> Result<Vec<Record>, MetricsError> {
    Ok(read_lines(path, Missing::IsError)?.into_iter().map(|(_, record)| record).collect())
}

/// What a file that does not exist means.
#[derive(Clone, Copy, PartialEq)]
enum Missing {
    IsEmpty,
    IsError,
}

fn read_lines(path: &Path, missing: Missing) -> Result<Vec<(String, Record)>, MetricsError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if missing == Missing::IsEmpty && error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    let mut rows = Vec::new();
    for (index, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let is_complete = line.ends_with(b"\n");
        let text = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
        match serde_json::from_str(&text) {
            Ok(record) => rows.push((text, record)),
            // Only the last line can lack its line break. A record cut short never parses, its closing
            // brace being its last byte, so one that does parse is whole.
            Err(_) if !is_complete => {}
            Err(error) => {
                let reason = error.to_string();
                return Err(MetricsError::Malformed { path: path.into(), line_number: index + 1, reason });
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
    use super::super::record::tests::{eval, layer, step};
    use super::*;

    fn rows() -> Vec<Record> {
        vec![
            Record::Step(step(1, 5.25, vec![layer(0, &[3, 1])])),
            Record::Step(step(2, 0.1 + 0.2, vec![layer(0, &[2, 2])])),
            Record::Eval(eval(2, 4.5)),
            Record::Step(step(3, 4.0, vec![layer(0, &[4, 0])])),
        ]
    }

    fn written(folder: &tempfile::TempDir, rows: &[Record]) -> PathBuf {
        let path = folder.path().join("metrics.jsonl");
        let mut file = MetricsFile::create(&path).unwrap();
        rows.iter().for_each(|row| file.append(row).unwrap());
        file.sync().unwrap();
        path
    }

    #[test]
    fn rows_are_read_back_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(&folder, &rows());
        assert_eq!(read_metrics(&path).unwrap(), rows());
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 4);
    }

    #[test]
    fn a_row_is_in_the_file_as_soon_as_it_is_appended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut file = MetricsFile::create(&path).unwrap();
        for (index, row) in rows().iter().enumerate() {
            file.append(row).unwrap();
            assert_eq!(read_metrics(&path).unwrap().len(), index + 1);
        }
    }

    #[test]
    fn resume_keeps_the_bytes_up_to_the_step_and_appends_after_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(&folder, &rows());
        let before = fs::read(&path).unwrap();
        let mut file = MetricsFile::resume(&path, 2).unwrap();
        let kept = fs::read(&path).unwrap();
        assert!(before.starts_with(&kept));
        assert_eq!(read_metrics(&path).unwrap(), rows()[..3]);
        file.append(&rows()[3]).unwrap();
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file was left behind");
    }

    #[test]
    fn a_resumed_run_forgets_the_evaluation_that_ended_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut last = eval(3, 4.5);
        last.end_of_run = true;
        let path = written(&folder, &[rows(), vec![Record::Eval(last)]].concat());
        MetricsFile::resume(&path, 3).unwrap();
        assert_eq!(read_metrics(&path).unwrap(), rows());
    }

    #[test]
    fn a_line_torn_at_any_byte_is_dropped_and_the_rest_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(&folder, &rows());
        let whole = fs::read(&path).unwrap();
        let last_line_start = whole[..whole.len() - 1].iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
        for cut in last_line_start..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            // Only the line break is missing from the longest cut: that row is whole.
            let expected = if cut == whole.len() - 1 { 4 } else { 3 };
            assert_eq!(read_metrics(&path).unwrap().len(), expected, "cut at {cut}");
            MetricsFile::resume(&path, 9).unwrap();
            assert_eq!(read_metrics(&path).unwrap(), rows()[..expected], "cut at {cut}");
        }
    }

    #[test]
    fn a_damaged_line_is_reported_with_its_number_and_the_file_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(&folder, &rows());
        let damaged = fs::read_to_string(&path).unwrap().replacen("4.5", "null", 1);
        fs::write(&path, &damaged).unwrap();
        let message = MetricsFile::resume(&path, 9).unwrap_err().to_string();
        assert!(message.contains("metrics.jsonl` line 3: invalid type: null, expected f64"), "{message}");
        assert!(message.contains("--overwrite"), "{message}");
        assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
    }

    #[test]
    fn a_diverged_row_is_refused_by_name_and_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(&folder, &[]);
        let mut file = MetricsFile::resume(&path, 0).unwrap();
        let mut row = step(7, 2.0, Vec::new());
        row.grad_norm = f64::NAN;
        let message = file.append(&Record::Step(row)).unwrap_err().to_string();
        assert!(message.starts_with("step 7: `grad_norm` is NaN"), "{message}");
        assert_eq!(fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn a_missing_file_is_an_error_to_a_reader_and_empty_to_a_resumed_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let message = read_metrics(&path).unwrap_err().to_string();
        assert!(message.starts_with("cannot read `") && message.contains("metrics.jsonl"), "{message}");
        MetricsFile::resume(&path, 5).unwrap().append(&rows()[0]).unwrap();
        assert_eq!(read_metrics(&path).unwrap().len(), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_that_names_the_file() {
        let mut file = MetricsFile::create(Path::new("/dev/full")).unwrap();
        let message = file.append(&rows()[0]).unwrap_err().to_string();
        assert!(message.contains("cannot append to `/dev/full`: No space left on device"), "{message}");
    }
}
