//! `metrics.jsonl` while a run writes it: only what is new.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use switchyard_ground::regular_file;
use switchyard_trainer::metrics::{MetricsError, Record, StepRecord};

/// Enough for the last rows of a run with thousands of experts per step.
const LAST_ROWS_BYTES: u64 = 1 << 20;

/// More than this at one look is no log of a run.
const MAX_NEW_BYTES: u64 = 8 << 30;

/// A reader that remembers how far it came.
#[derive(Debug)]
pub(crate) struct MetricsTail {
    path: PathBuf,
    /// Bytes of the complete lines read so far.
    offset: u64,
    num_lines: usize,
    /// The last of these lines: a run that goes on from a checkpoint replaces the file, and what is
    /// then at this place is another line, by its timings if nothing else.
    last_line: Vec<u8>,
}

/// What a look at the file found.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct NewRows {
    /// Whether the rows of earlier looks no longer hold: these are all there are.
    pub(crate) begins_anew: bool,
    pub(crate) records: Vec<Record>,
}

impl MetricsTail {
    /// A reader at the start of the file at `path`, which need not exist yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, offset: 0, num_lines: 0, last_line: Vec::new() }
    }

    /// The complete rows that came since the last look. A last line without its end waits for the
    /// next.
    ///
    /// # Errors
    /// [`MetricsError::Malformed`] for a complete line that is no row; [`MetricsError::Io`].
    pub(crate) fn read_new(&mut self) -> Result<NewRows, MetricsError> {
        let mut begins_anew = false;
        let bytes = match self.read_from_last_line()? {
            Some(bytes) => bytes,
            None => {
                begins_anew = true;
                *self = Self::new(self.path.clone());
                self.read_from_last_line()?.unwrap_or_default()
            }
        };
        let new = &bytes[self.last_line.len()..];
        let end = new.iter().rposition(|&byte| byte == b'\n').map_or(0, |place| place + 1);
        let lines = new[..end].split_inclusive(|&byte| byte == b'\n');
        let records = lines.map(|line| self.take(line)).collect::<Result<_, _>>()?;
        Ok(NewRows { begins_anew, records })
    }

    /// The file from its last line that was read on; `None` if that line is no longer there.
    fn read_from_last_line(&self) -> Result<Option<Vec<u8>>, MetricsError> {
        let start = self.offset - self.last_line.len() as u64;
        match read_from(&self.path, |len| {
            if len.saturating_sub(start) > MAX_NEW_BYTES {
                let message = format!("it has grown by more than {MAX_NEW_BYTES} bytes");
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
            }
            Ok(start)
        }) {
            Ok(bytes) => Ok(bytes.starts_with(&self.last_line).then_some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((self.offset == 0).then(Vec::new)),
            Err(error) => Err(read_error(&self.path, error)),
        }
    }

    fn take(&mut self, line: &[u8]) -> Result<Record, MetricsError> {
        let record = serde_json::from_slice(line).map_err(|error| MetricsError::Malformed {
            path: self.path.clone(),
            line_number: self.num_lines + 1,
            reason: error.to_string(),
        })?;
        self.offset += line.len() as u64;
        self.num_lines += 1;
        self.last_line = line.to_vec();
        Ok(record)
    }
}

/// The newest step of the file at `path`, from its end alone; `None` if there is none, or no file.
///
/// # Errors
/// [`MetricsError::Io`].
pub(crate) fn newest_step(path: &Path) -> Result<Option<StepRecord>, MetricsError> {
    let end = match read_from(path, |len| Ok(len.saturating_sub(LAST_ROWS_BYTES))) {
        Ok(end) => end,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(read_error(path, error)),
    };
    let rows = end.split(|&byte| byte == b'\n').rev();
    // The first piece may begin inside a row, and the last may end inside one.
    Ok(rows.filter_map(|line| serde_json::from_slice::<Record>(line).ok()).find_map(|record| match record {
        Record::Step(row) => Some(row),
        Record::Eval(_) => None,
    }))
}

/// The file from the place that `start` chooses, given its length, to where it ended then.
fn read_from(path: &Path, start: impl FnOnce(u64) -> io::Result<u64>) -> io::Result<Vec<u8>> {
    let mut file = regular_file::open(path)?;
    let len = file.metadata()?.len();
    let start = start(len)?;
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(len.saturating_sub(start)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_error(path: &Path, source: io::Error) -> MetricsError {
    MetricsError::Io { action: "read", path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write;

    use tempfile::TempDir;

    use super::*;
    use crate::figures::sample_rows::{eval, layer, step};

    fn rows() -> Vec<Record> {
        vec![
            step(1, 5.0, vec![layer(0, &[3, 1])]),
            step(2, 4.0, Vec::new()),
            eval(2, 4.5),
            step(3, 3.0, Vec::new()),
        ]
    }

    fn lines(rows: &[Record]) -> String {
        rows.iter().map(|row| serde_json::to_string(row).unwrap() + "\n").collect()
    }

    fn desk() -> (TempDir, PathBuf, MetricsTail) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        (folder, path.clone(), MetricsTail::new(path))
    }

    #[track_caller]
    fn assert_new(tail: &mut MetricsTail, begins_anew: bool, records: &[Record]) {
        assert_eq!(tail.read_new().unwrap(), NewRows { begins_anew, records: records.to_vec() });
    }

    #[test]
    fn whatever_pieces_the_file_grows_by_every_row_comes_once() {
        let text = lines(&rows());
        for piece_bytes in [1, 7, 100, 500, 10_000] {
            let (_folder, path, mut tail) = desk();
            let mut found = Vec::new();
            for piece in text.as_bytes().chunks(piece_bytes) {
                let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
                file.write_all(piece).unwrap();
                let new = tail.read_new().unwrap();
                assert!(!new.begins_anew);
                found.extend(new.records);
            }
            assert_eq!(found, rows(), "in pieces of {piece_bytes} bytes");
        }
    }

    #[test]
    fn a_file_that_is_not_there_yet_has_no_rows() {
        let (_folder, path, mut tail) = desk();
        assert_new(&mut tail, false, &[]);
        fs::write(&path, lines(&rows()[..1])).unwrap();
        assert_new(&mut tail, false, &rows()[..1]);
        assert_new(&mut tail, false, &[]);
    }

    #[test]
    fn a_shorter_file_is_read_anew() {
        let (_folder, path, mut tail) = desk();
        fs::write(&path, lines(&rows())).unwrap();
        assert_new(&mut tail, false, &rows());
        fs::write(&path, lines(&rows()[..2])).unwrap();
        assert_new(&mut tail, true, &rows()[..2]);
        assert_new(&mut tail, false, &[]);
    }

    #[test]
    fn a_file_that_was_rewound_and_has_outgrown_its_old_length_is_read_anew() {
        let (_folder, path, mut tail) = desk();
        fs::write(&path, lines(&rows())).unwrap();
        assert_new(&mut tail, false, &rows());
        let resumed = vec![
            rows()[0].clone(),
            step(2, 4.0, Vec::new()),
            step(3, 3.125, Vec::new()),
            step(4, 2.5, Vec::new()),
            step(5, 2.25, Vec::new()),
        ];
        fs::write(&path, lines(&resumed)).unwrap();
        assert_new(&mut tail, true, &resumed);
    }

    #[test]
    fn a_run_that_was_overwritten_leaves_no_rows_behind() {
        let (_folder, path, mut tail) = desk();
        fs::write(&path, lines(&rows())).unwrap();
        assert_new(&mut tail, false, &rows());
        fs::remove_file(&path).unwrap();
        assert_new(&mut tail, true, &[]);
        assert_new(&mut tail, false, &[]);
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_not_waited_for_and_an_endless_file_not_read() {
        let (_folder, path, mut tail) = desk();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        for message in [tail.read_new().unwrap_err().to_string(), newest_step(&path).unwrap_err().to_string()]
        {
            assert!(message.contains("not a regular file"), "{message}");
        }
        fs::remove_file(&path).unwrap();
        fs::File::create(&path).unwrap().set_len(200 << 30).unwrap();
        assert!(tail.read_new().unwrap_err().to_string().contains("more than"));
        assert_eq!(newest_step(&path).unwrap(), None);
    }

    #[test]
    fn a_complete_line_that_is_no_row_is_named() {
        let (_folder, path, mut tail) = desk();
        fs::write(&path, lines(&rows()[..2]) + "nonsense\n").unwrap();
        let message = tail.read_new().unwrap_err().to_string();
        assert!(message.contains("metrics.jsonl` line 3"), "{message}");
    }

    #[test]
    fn the_newest_step_is_found_from_the_end() {
        let (_folder, path, _) = desk();
        assert_eq!(newest_step(&path).unwrap(), None);
        fs::write(&path, lines(&rows()) + "{\"kind\":\"step\",\"st").unwrap();
        assert_eq!(newest_step(&path).unwrap().as_ref(), rows()[3].as_step());
        fs::write(&path, lines(&[eval(0, 5.0)])).unwrap();
        assert_eq!(newest_step(&path).unwrap(), None);
    }
}
