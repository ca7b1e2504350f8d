//! The event files of one process: trouble with one is followed by another.

use std::path::{Path, PathBuf};

use super::{EventFile, MetricsError, Record};

/// Where a run's process writes what TensorBoard shows. A run goes on without, and tries again with
/// every record.
#[derive(Debug)]
pub struct EventLog {
    folder: PathBuf,
    hostname: String,
    /// The step that the next file begins after; `None` before the first.
    last_step: Option<u64>,
    /// `None` after what could not be written.
    file: Option<EventFile>,
    is_told: bool,
}

impl EventLog {
    /// The event files of a run in `folder` that goes on after the step `resumed_from`; `None` if
    /// it begins. If no file can be made now, the first record tries again.
    pub fn new(folder: &Path, hostname: &str, resumed_from: Option<u64>) -> Self {
        Self {
            folder: folder.into(),
            hostname: hostname.into(),
            last_step: resumed_from,
            file: EventFile::create(folder, hostname, resumed_from).ok(),
            is_told: false,
        }
    }

    /// Adds the scalars of `record`; returns what to say the first time that it cannot.
    pub fn append(&mut self, record: &Record) -> Option<String> {
        // Nothing that follows a torn record is read, so the second try is made in a file of its
        // own.
        let Err(error) = self.try_append(record).or_else(|_| self.try_append(record)) else { return None };
        let is_told = std::mem::replace(&mut self.is_told, true);
        (!is_told).then(|| {
            format!(
                "{error}. The run goes on, and TensorBoard shows a part of it; `metrics.jsonl` has all numbers"
            )
        })
    }

    fn try_append(&mut self, record: &Record) -> Result<(), MetricsError> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => EventFile::create(&self.folder, &self.hostname, self.last_step)?,
        };
        file.append(record)?;
        self.last_step = Some(record.step());
        self.file = Some(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::record::tests::{eval, step};

    #[test]
    fn what_cannot_be_written_is_said_once_and_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join("gone");
        let mut log = EventLog::new(&gone, "host", None);
        let said = log.append(&Record::Step(step(1, 2.5, Vec::new()))).unwrap();
        assert!(said.contains("gone`") && said.contains("`metrics.jsonl` has all numbers"), "{said}");
        assert_eq!(log.append(&Record::Step(step(2, 2.5, Vec::new()))), None);
        std::fs::create_dir(&gone).unwrap();
        assert_eq!(log.append(&Record::Eval(eval(2, 2.5))), None);
        assert_eq!(std::fs::read_dir(&gone).unwrap().count(), 1);
        assert_eq!(log.append(&Record::Step(step(3, 2.5, Vec::new()))), None);
        assert_eq!(std::fs::read_dir(&gone).unwrap().count(), 1, "one file for all that goes well");
    }
}
