//! The file of `generate --trace`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use switchyard_trainer::generate::TokenTrace;

use crate::failure::Failure;

/// A line of JSON for each token that went through the network.
pub(super) struct TraceFile {
    path: PathBuf,
    file: BufWriter<File>,
}

impl TraceFile {
    /// A new file at `path`.
    pub(super) fn create(path: &Path) -> Result<Self, Failure> {
        let file = File::create(path).map_err(|error| refused(path, &error))?;
        Ok(Self { path: path.to_path_buf(), file: BufWriter::new(file) })
    }

    pub(super) fn write(&mut self, token: &TokenTrace) -> io::Result<()> {
        serde_json::to_writer(&mut self.file, token)?;
        self.file.write_all(b"\n")
    }

    /// Writes what is left.
    pub(super) fn finish(mut self) -> Result<(), Failure> {
        self.file.flush().map_err(|error| refused(&self.path, &error))
    }
}

fn refused(path: &Path, error: &io::Error) -> Failure {
    Failure::Mistake(format!(
        "`--trace {}`: it cannot be written ({error}): name a file in a folder that can be written",
        path.display()
    ))
}
