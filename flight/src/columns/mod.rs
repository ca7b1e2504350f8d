//! The large half of the flight recorder: one row per expert and step, and at intervals one row per
//! token and expert, as Parquet files. DuckDB, pandas and polars read them without Switchyard:
//! `select * from 'flight/experts-*.parquet' where dead_steps > 100`.
//!
//! A file is written once, to a temporary name, forced to the disk and renamed: it is whole or
//! absent. Nothing is ever appended to a file, which Parquet, with its footer at the end, could not
//! survive.

mod experts;
mod scores;
mod table;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub use experts::{ExpertLog, ExpertRow, read_experts, read_experts_between};
pub use scores::{EncodedScores, ScoreRow, read_scores, recorded_score_steps};

use switchyard_ground::line_file::is_still_at;
use switchyard_ground::{durable, regular_file};
use table::{Column, Table};

use switchyard_ground::advice::advice;
use switchyard_ground::aside::is_aside;

/// What `durable::replace` adds to a table's name while it writes, and leaves when the process is
/// killed inside it.
const TEMPORARY_EXTENSION: &str = ".tmp";

/// A recording that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ColumnsError {
    /// The file system refused; a full disk ends here.
    #[error("cannot {action} `{path}`: {source}; {}", advice(action, source))]
    Io {
        /// What was tried: `read`, `write`, `remove`, ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file that is not what was written.
    #[error(
        "`{path}` is damaged: {reason}; move it away or restore it from a copy. Training needs no recording: without the \
         file only its steps are missing from what is asked later"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// Rows that Parquet cannot hold.
    #[error("cannot encode `{path}`: {reason}; this is a fault of Switchyard, please report it")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The encoder's reason.
        reason: String,
    },
    /// Scores of a step at which none were recorded.
    #[error("`{folder}` holds no gate scores of step {step}: {recorded}")]
    NotRecorded {
        /// The folder of recordings.
        folder: PathBuf,
        /// The step asked for.
        step: u64,
        /// Which steps there are.
        recorded: String,
    },
}

impl ColumnsError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

/// Bring `folder` to the state after `last_step`, creating it if it is missing: later rows and
/// score files go, a part that straddles the step is rewritten, and what a killed process left
/// unfinished goes. `None` means a new run: every recording goes. Other people's files stay.
/// Returns what the user should know: parts that were damaged are set aside.
///
/// # Errors
/// [`ColumnsError::Io`].
pub fn rewind(folder: &Path, last_step: Option<u64>) -> Result<Vec<String>, ColumnsError> {
    durable::create_dir_all(folder).map_err(ColumnsError::io("create", folder))?;
    for name in file_names(folder)? {
        if is_temporary(&name) {
            remove(&folder.join(name))?;
        }
    }
    scores::rewind(folder, last_step)?;
    experts::rewind(folder, last_step)
}

/// Whether `name` is one that recordings are written under, unfinished and damaged ones included.
pub fn is_recording(name: &str) -> bool {
    let aside_of = name.rsplit_once('.').map(|(original, _)| original);
    is_table(name)
        || is_temporary(name)
        || aside_of.is_some_and(|original| is_table(original) && is_aside(name, original))
}

fn is_temporary(name: &str) -> bool {
    name.strip_suffix(TEMPORARY_EXTENSION).is_some_and(is_table)
}

fn is_table(name: &str) -> bool {
    experts::steps_of(name).is_some() || scores::step_of(name).is_some()
}

/// A step as it is written in a file's name.
fn step_in_name(digits: &str) -> Option<u64> {
    let step: u64 = digits.parse().ok()?;
    (step.to_string() == digits).then_some(step)
}

/// Names of the files in `folder`, sorted; none if it does not exist.
fn file_names(folder: &Path) -> Result<Vec<String>, ColumnsError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ColumnsError::io("read", folder)(error)),
    };
    let mut names = entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(ColumnsError::io("read", folder))?;
    names.sort();
    Ok(names)
}

/// A folder that is written to by its path, and that the path must name still: it may be removed, and
/// another run's put in its place.
#[derive(Debug)]
pub struct HeldFolder {
    path: PathBuf,
    /// `None` where folders cannot be opened.
    open: Option<File>,
}

impl HeldFolder {
    /// That at `path`.
    pub fn new(path: &Path) -> Self {
        Self { path: path.into(), open: File::open(path).ok() }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the file `name` in it. The folder is looked at last of all before.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), ColumnsError> {
        let path = self.path.join(name);
        let is_held = self.open.as_ref().map_or(Ok(true), |open| is_still_at(open, &self.path));
        is_held
            .and_then(|is_held| match is_held {
                true => durable::replace(&path, bytes),
                false => Err(io::Error::new(io::ErrorKind::NotFound, "its folder was moved or replaced")),
            })
            .map_err(ColumnsError::io("write", &path))
    }
}

#[cfg(test)]
fn write(path: &Path, columns: &[Column]) -> Result<(), ColumnsError> {
    fs::write(path, encoded(path, columns)?).map_err(ColumnsError::io("write", path))
}

fn encoded(path: &Path, columns: &[Column]) -> Result<Vec<u8>, ColumnsError> {
    let bytes = table::encode(std::iter::once(columns))
        .map_err(|error| ColumnsError::Unwritable { path: path.into(), reason: error.to_string() })?;
    Ok(bytes.unwrap_or_default())
}

fn read<Row>(
    path: &Path,
    rows: impl FnOnce(&Table) -> Result<Vec<Row>, String>,
) -> Result<Vec<Row>, ColumnsError> {
    let mut file = regular_file::open(path).map_err(ColumnsError::io("read", path))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(ColumnsError::io("read", path))?;
    Table::open(bytes)
        .and_then(|table| rows(&table))
        .map_err(|reason| ColumnsError::Damaged { path: path.into(), reason })
}

fn remove(path: &Path) -> Result<(), ColumnsError> {
    fs::remove_file(path).map_err(ColumnsError::io("remove", path))
}
