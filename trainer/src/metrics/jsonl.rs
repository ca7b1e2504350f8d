//! `metrics.jsonl`: one [`Record`] per line, complete on disk before the next step starts.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use switchyard_ground::regular_file;

use super::{MetricsError, Record};
use switchyard_ground::aside::{Why, set_aside};
use switchyard_ground::digest::hex;
use switchyard_ground::line_file::{LineFile, Mishap};

/// What a checkpoint says of the log, to know it again: which rows lead to the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogMark {
    /// Rows in the file.
    pub num_rows: u64,
    /// SHA-256 of the rows without their clock readings, in hexadecimal: a run that was interrupted
    /// and resumed has the same as one that was not.
    pub sha256: String,
}

/// `metrics.jsonl`, open for appending.
#[derive(Debug)]
pub struct MetricsFile {
    file: LineFile,
    rows: RowHash,
}

/// A log that goes on.
#[derive(Debug)]
pub struct ResumedLog {
    /// The file.
    pub file: MetricsFile,
    /// The rows in it.
    pub rows: Vec<Record>,
    /// What the user should know: the log was not what the checkpoint was written with, and where
    /// it is now.
    pub note: Option<String>,
}

/// The hash of the rows so far.
#[derive(Debug, Clone, Default)]
struct RowHash {
    num_rows: u64,
    hasher: Sha256,
}

impl RowHash {
    fn add(&mut self, record: &Record) -> serde_json::Result<()> {
        self.hasher.update(serde_json::to_vec(&record.without_timings())?);
        self.num_rows += 1;
        Ok(())
    }

    fn mark(&self) -> LogMark {
        LogMark { num_rows: self.num_rows, sha256: hex(&self.hasher.clone().finalize()) }
    }
}

impl MetricsFile {
    /// An empty file at `path`. Rows that are there already are not lost: the second value is where
    /// they are now.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn create(path: &Path) -> Result<(Self, Option<PathBuf>), MetricsError> {
        let is_empty = path.symlink_metadata().map_or(true, |found| found.is_file() && found.len() == 0);
        let earlier = if is_empty { None } else { Some(set_aside(path, Why::Earlier)) };
        let earlier = earlier.transpose().map_err(MetricsError::io("rename", path))?;
        let file = LineFile::replace(path, b"").map_err(MetricsError::io("create", path))?;
        Ok((Self { file, rows: RowHash::default() }, earlier))
    }

    /// The file at `path` with the rows that the checkpoint of `last_step` was written with, byte
    /// for byte as they were: those that `mark` counts, or where an earlier version left none those
    /// up to `last_step`. Later rows and a last line torn by a kill are dropped. So the rows of a
    /// resumed run are those of a run that was never stopped.
    ///
    /// A log with other rows, or with a line that is no row, is set aside, and a new one begun: a
    /// run needs no log to go on, and two runs must not share one.
    ///
    /// # Errors
    /// [`MetricsError::Io`]; nothing has changed then.
    pub fn resume(path: &Path, last_step: u64, mark: Option<&LogMark>) -> Result<ResumedLog, MetricsError> {
        let problem = match rows_of_checkpoint(path, last_step, mark) {
            Ok(rows) => {
                let text: String = rows.iter().map(|(line, _)| format!("{line}\n")).collect();
                let (file, hash) = (LineFile::replace(path, text.as_bytes()), row_hash(&rows));
                let file = file.map_err(MetricsError::io("rewrite", path))?;
                let rows = rows.into_iter().map(|(_, record)| record).collect();
                return Ok(ResumedLog { file: Self { file, rows: hash }, rows, note: None });
            }
            Err(NotOurs::Unreadable(error)) => return Err(error),
            Err(NotOurs::Other(problem)) => problem,
        };
        let kept = match set_aside(path, Why::Damaged) {
            Ok(aside) => format!("it is now `{}`", aside.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => "nothing is left of it".into(),
            Err(error) => return Err(MetricsError::io("rename", path)(error)),
        };
        let file = LineFile::replace(path, b"").map_err(MetricsError::io("create", path))?;
        let note = format!(
            "`{}` is not the log that the checkpoint of step {last_step} was written with: {problem}; {kept}, and a new log \
             begins with step {}",
            path.display(),
            last_step + 1
        );
        Ok(ResumedLog { file: Self { file, rows: RowHash::default() }, rows: Vec::new(), note: Some(note) })
    }

    /// Adds `record` as one line, handed to the operating system in one write: a killed process
    /// loses at most the line that it was writing.
    ///
    /// # Errors
    /// [`MetricsError::NonFinite`] for a NaN or an infinity; nothing is written then.
    /// [`MetricsError::Io`], for example when the disk is full: the row is written before the next
    /// one.
    pub fn append(&mut self, record: &Record) -> Result<(), MetricsError> {
        let path = self.file.path().to_path_buf();
        if let Some((field, value)) = record.first_non_finite() {
            return Err(MetricsError::NonFinite { path, step: record.step(), field, value });
        }
        let failed = MetricsError::io("append to", &path);
        let line = match serde_json::to_vec(record).and_then(|line| self.rows.add(record).map(|()| line)) {
            Ok(line) => line,
            Err(error) => return Err(failed(error.into())),
        };
        self.file.append(line).map_err(failed)
    }

    /// The log as it is now.
    pub fn mark(&self) -> LogMark {
        self.rows.mark()
    }

    /// Returns once the rows so far are on the disk itself. Call it before a checkpoint is written,
    /// so that a power failure cannot keep a checkpoint and lose rows that lead to it. Whatever
    /// another process did to the file in the meantime is noticed, put right as far as it can be,
    /// and told.
    ///
    /// # Errors
    /// [`MetricsError::Io`].
    pub fn sync(&mut self) -> Result<Option<String>, MetricsError> {
        let mishap = self.file.sync().map_err(MetricsError::io("sync", self.file.path()))?;
        if matches!(mishap, Some(Mishap::BegunAnew(_))) {
            self.rows = RowHash::default();
        }
        Ok(mishap.map(|mishap| mishap.describe(self.file.path())))
    }
}

/// All rows of the file at `path`. A last line that is torn, as a killed or still running process
/// leaves it, is ignored.
///
/// # Errors
/// [`MetricsError::Malformed`] for a complete line that is no record; [`MetricsError::Io`].
pub fn read_metrics(path: &Path) -> Result<Vec<Record>, MetricsError> {
    Ok(read_lines(path, usize::MAX)?.into_iter().map(|(_, record)| record).collect())
}

/// Why the rows of a checkpoint cannot be had.
enum NotOurs {
    /// The system failed, which says nothing about the log.
    Unreadable(MetricsError),
    /// They are not there.
    Other(String),
}

/// The rows that lead to the checkpoint of `last_step`, with their text.
fn rows_of_checkpoint(
    path: &Path,
    last_step: u64,
    mark: Option<&LogMark>,
) -> Result<Vec<(String, Record)>, NotOurs> {
    let max_rows = mark.map_or(usize::MAX, |mark| usize::try_from(mark.num_rows).unwrap_or(usize::MAX));
    let mut rows = match read_lines(path, max_rows) {
        Ok(rows) => rows,
        Err(MetricsError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) if error.is_about_the_file() => return Err(NotOurs::Other(error.problem())),
        Err(error) => return Err(NotOurs::Unreadable(error)),
    };
    let problem = match mark {
        Some(mark) => {
            let found = row_hash(&rows).mark();
            let has = format!("it has {} of {} rows", found.num_rows, mark.num_rows);
            match found == *mark {
                true => None,
                false if found.num_rows < mark.num_rows => Some(has),
                false => Some("its rows are others".into()),
            }
        }
        None => {
            // An evaluation at the end of a run that goes on was not the end.
            let is_later =
                |row: &Record| row.step() > last_step || row.as_eval().is_some_and(|row| row.end_of_run);
            rows.retain(|(_, row)| !is_later(row));
            gap(&rows, last_step)
        }
    };
    problem.map_or(Ok(rows), |problem| Err(NotOurs::Other(problem)))
}

fn row_hash(rows: &[(String, Record)]) -> RowHash {
    let mut hash = RowHash::default();
    for (_, record) in rows {
        // What was read from JSON can be written as JSON.
        drop(hash.add(record));
    }
    hash
}

/// What is missing of the steps 1 to `last_step`, each once and in order, with evaluations after
/// the steps that they are of.
fn gap(rows: &[(String, Record)], last_step: u64) -> Option<String> {
    let mut done = 0;
    for (_, row) in rows {
        let wanted = if row.as_step().is_some() { done + 1 } else { done };
        if row.step() != wanted {
            return Some(format!("after step {done} comes a row of step {}", row.step()));
        }
        done = wanted;
    }
    (done < last_step).then(|| format!("its last step is {done}"))
}

/// The first `max_rows` rows and their text.
fn read_lines(path: &Path, max_rows: usize) -> Result<Vec<(String, Record)>, MetricsError> {
    let bytes = regular_file::read(path, u64::MAX).map_err(MetricsError::io("read", path))?;
    let mut rows = Vec::new();
    for (index, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        if rows.len() == max_rows {
            break;
        }
        let is_complete = line.ends_with(b"\n");
        let text = std::str::from_utf8(line.trim_ascii_end()).map_err(|error| error.to_string());
        match text.and_then(|text| Ok((text, serde_json::from_str(text).map_err(|error| error.to_string())?)))
        {
            Ok((text, record)) => rows.push((text.to_string(), record)),
            // Only the last line can lack its line break. A record cut short never parses, its
            // closing brace being its last byte, so one that does parse is whole.
            Err(_) if !is_complete => {}
            Err(reason) => {
                return Err(MetricsError::Malformed { path: path.into(), line_number: index + 1, reason });
            }
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{eval, layer, step};
    use super::*;
    use std::fs;

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
        let mut file = MetricsFile::create(&path).unwrap().0;
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
        let mut file = MetricsFile::create(&path).unwrap().0;
        for (index, row) in rows().iter().enumerate() {
            file.append(row).unwrap();
            assert_eq!(read_metrics(&path).unwrap().len(), index + 1);
        }
    }

    /// The mark of a log with these rows.
    fn mark(rows: &[Record]) -> LogMark {
        let folder = tempfile::tempdir().unwrap();
        let mut file = MetricsFile::create(&folder.path().join("metrics.jsonl")).unwrap().0;
        rows.iter().for_each(|row| file.append(row).unwrap());
        file.mark()
    }

    /// The marks with which a checkpoint of step 2 goes on: its own, and that of an earlier
    /// version.
    fn marks() -> [Option<LogMark>; 2] {
        [Some(mark(&rows()[..3])), None]
    }

    #[test]
    fn resume_keeps_the_bytes_of_the_checkpoint_and_appends_after_them() {
        for mark in marks() {
            let folder = tempfile::tempdir().unwrap();
            let path = written(&folder, &rows());
            let before = fs::read(&path).unwrap();
            let resumed = MetricsFile::resume(&path, 2, mark.as_ref()).unwrap();
            assert_eq!((resumed.note, resumed.rows.as_slice()), (None, &rows()[..3]));
            assert!(before.starts_with(&fs::read(&path).unwrap()));
            assert_eq!(read_metrics(&path).unwrap(), rows()[..3]);
            let mut file = resumed.file;
            file.append(&rows()[3]).unwrap();
            assert_eq!(fs::read(&path).unwrap(), before);
            assert_eq!(file.mark(), super::tests::mark(&rows()), "the mark of the unbroken log");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file was left behind");
        }
    }

    #[test]
    fn a_resumed_run_forgets_the_evaluation_that_ended_it_and_one_that_was_broken_off() {
        let mut last = eval(3, 4.5);
        last.end_of_run = true;
        for (mark, last) in
            [(None, last.clone()), (Some(mark(&rows())), last), (Some(mark(&rows())), eval(3, 4.5))]
        {
            let folder = tempfile::tempdir().unwrap();
            let path = written(&folder, &[rows(), vec![Record::Eval(last)]].concat());
            assert_eq!(MetricsFile::resume(&path, 3, mark.as_ref()).unwrap().note, None);
            assert_eq!(read_metrics(&path).unwrap(), rows());
        }
    }

    #[test]
    fn a_line_torn_at_any_byte_after_the_checkpoint_is_dropped_and_the_rest_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(&folder, &rows());
        let whole = fs::read(&path).unwrap();
        let last_line_start = whole[..whole.len() - 1].iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
        for cut in last_line_start..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            // Only the line break is missing from the longest cut: that row is whole.
            let expected = if cut == whole.len() - 1 { 4 } else { 3 };
            assert_eq!(read_metrics(&path).unwrap().len(), expected, "cut at {cut}");
            for mark in marks() {
                let resumed = MetricsFile::resume(&path, 2, mark.as_ref()).unwrap();
                assert_eq!((resumed.note, resumed.rows.as_slice()), (None, &rows()[..3]), "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_log_with_holes_or_of_another_run_is_set_aside_and_said() {
        let other =
            vec![rows()[0].clone(), Record::Step(step(2, 9.0, Vec::new())), Record::Eval(eval(2, 1.0))];
        let cases = [
            (rows()[3..].to_vec(), "it has 1 of 3 rows", "its last step is 0"),
            (rows()[..1].to_vec(), "it has 1 of 3 rows", "its last step is 1"),
            (
                [&rows()[..1], &rows()[2..]].concat(),
                "its rows are others",
                "after step 1 comes a row of step 2",
            ),
            (other, "its rows are others", ""),
        ];
        for (found, with_mark, without) in cases {
            for (mark, problem) in marks().into_iter().zip([with_mark, without]) {
                let folder = tempfile::tempdir().unwrap();
                let path = written(&folder, &found);
                let before = fs::read(&path).unwrap();
                let resumed = MetricsFile::resume(&path, 2, mark.as_ref()).unwrap();
                if problem.is_empty() {
                    continue; // An earlier version's checkpoint cannot tell.
                }
                let note = resumed.note.unwrap();
                assert!(note.contains(problem) && note.contains("metrics.jsonl.damaged-1"), "{note}");
                assert_eq!(fs::read(folder.path().join("metrics.jsonl.damaged-1")).unwrap(), before);
                assert!(resumed.rows.is_empty() && fs::read(&path).unwrap().is_empty());
            }
        }
    }

    #[test]
    fn a_damaged_line_is_named_and_keeps_no_run_from_going_on() {
        for damage in [&b"null"[..], b"4.5\xff"] {
            let folder = tempfile::tempdir().unwrap();
            let path = written(&folder, &rows());
            let text = fs::read(&path).unwrap();
            let place = text.windows(3).position(|window| window == b"4.5").unwrap();
            let damaged = [&text[..place], damage, &text[place + 3..]].concat();
            fs::write(&path, &damaged).unwrap();
            let message = read_metrics(&path).unwrap_err().to_string();
            assert!(message.contains("metrics.jsonl` line 3: "), "{message}");
            assert!(!message.contains("--overwrite"), "{message}");
            for mark in marks() {
                fs::write(&path, &damaged).unwrap();
                let note = MetricsFile::resume(&path, 2, mark.as_ref()).unwrap().note.unwrap();
                assert!(note.contains("line 3") && note.contains("damaged-"), "{note}");
            }
            assert_eq!(fs::read(folder.path().join("metrics.jsonl.damaged-2")).unwrap(), damaged);
        }
    }

    #[test]
    fn rows_of_a_run_that_begins_again_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(&folder, &rows());
        let before = fs::read(&path).unwrap();
        let (_, earlier) = MetricsFile::create(&path).unwrap();
        assert_eq!(fs::read(earlier.unwrap()).unwrap(), before);
        assert_eq!(MetricsFile::create(&path).unwrap().1, None, "an empty log is nothing to keep");
    }

    #[cfg(unix)]
    #[test]
    fn a_log_that_is_removed_while_the_run_goes_on_is_noticed_and_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut file = MetricsFile::create(&path).unwrap().0;
        file.append(&rows()[0]).unwrap();
        fs::remove_file(&path).unwrap();
        file.append(&rows()[1]).unwrap();
        let note = file.sync().unwrap().unwrap();
        assert!(note.contains("metrics.jsonl` was removed or replaced"), "{note}");
        file.append(&rows()[2]).unwrap();
        assert_eq!(
            (read_metrics(&path).unwrap().as_slice(), file.mark()),
            (&rows()[..3], mark(&rows()[..3]))
        );
    }

    #[test]
    fn a_diverged_row_is_refused_by_name_and_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(&folder, &[]);
        let mut file = MetricsFile::resume(&path, 0, None).unwrap().file;
        let mut row = step(7, 2.0, Vec::new());
        row.grad_norm = f64::NAN;
        let message = file.append(&Record::Step(row)).unwrap_err().to_string();
        assert!(message.starts_with("step 7: `grad_norm` is NaN"), "{message}");
        assert_eq!(fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn a_missing_file_is_an_error_to_a_reader_and_said_to_a_resumed_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let message = read_metrics(&path).unwrap_err().to_string();
        assert!(message.starts_with("cannot read `") && message.contains("metrics.jsonl"), "{message}");
        for mark in marks() {
            let mut resumed = MetricsFile::resume(&path, 2, mark.as_ref()).unwrap();
            let note = resumed.note.unwrap();
            assert!(note.contains("nothing is left of it"), "{note}");
            resumed.file.append(&rows()[3]).unwrap();
            assert_eq!(read_metrics(&path).unwrap().len(), 1);
            fs::remove_file(&path).unwrap();
        }
    }
}
