//! The documents in a file of bytes: the whole file, what stands between separators, or its lines.

use super::file_kind::{Format, guess_encoding};
use super::json_line::text_of_line;
use super::unpack::{RecordEnd, Unpacked};
use super::walk::Found;
use crate::config::{OnTrouble, TextConfig};
use crate::error::DatasetError;
use crate::progress::Progress;
use crate::remarks::{Remark, Remarks};

pub(super) const DEFAULT_JSONL_KEY: &str = "text";

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// One document of a file, with the name of its place.
pub(super) struct Record {
    pub(super) text: String,
    pub(super) name: String,
}

/// The documents of one file of bytes.
pub(super) struct DocumentReader<'a> {
    found: &'a Found,
    config: &'a TextConfig,
    reader: Unpacked<'a>,
    bytes: Vec<u8>,
    /// Records read.
    num_records: u64,
    /// Bytes and lines before the next record.
    offset: u64,
    line: u64,
    is_at_end: bool,
}

impl<'a> DocumentReader<'a> {
    /// The file that was found, to be read from its start; Parquet has rows of its own.
    pub(super) fn open(
        found: &'a Found,
        config: &'a TextConfig,
        progress: &'a Progress,
    ) -> Result<Self, DatasetError> {
        let reader = Unpacked::open(&found.path, found.compression, progress)?;
        Ok(Self {
            found,
            config,
            reader,
            bytes: Vec::new(),
            num_records: 0,
            offset: 0,
            line: 1,
            is_at_end: false,
        })
    }

    /// What stands between two records; `None` if there is only one.
    fn delimiter(&self) -> Option<&'a [u8]> {
        match self.found.format {
            Format::JsonLines => Some(b"\n"),
            Format::Plain | Format::Parquet => self.config.separator.as_deref().map(str::as_bytes),
        }
    }

    /// The next document; none at the end of the file.
    pub(super) fn next_document(&mut self, remarks: &mut Remarks) -> Result<Option<Record>, DatasetError> {
        while !self.is_at_end {
            let (offset, line) = (self.offset, self.line);
            self.read_record()?;
            let mark_len = if offset == 0 && self.bytes.starts_with(BYTE_ORDER_MARK) {
                BYTE_ORDER_MARK.len()
            } else {
                0
            };
            let record = match self.found.format {
                Format::Plain | Format::Parquet => {
                    let name = self.name(self.num_records);
                    Record { text: self.take_text(mark_len, offset)?, name }
                }
                Format::JsonLines => {
                    let json = &self.bytes[mark_len..];
                    if json.trim_ascii().is_empty() {
                        continue;
                    }
                    let key = self.config.jsonl_key.as_deref().unwrap_or(DEFAULT_JSONL_KEY);
                    match text_of_line(json, key) {
                        Ok(text) => Record { text, name: self.name(line) },
                        Err(problem) if self.config.on_bad_line == Some(OnTrouble::Skip) => {
                            remarks.add(Remark::BadLine, || format!("`{}`: {problem}", self.name(line)));
                            continue;
                        }
                        Err(problem) => {
                            return Err(DatasetError::JsonLine {
                                path: self.found.path.clone(),
                                line,
                                problem,
                            });
                        }
                    }
                }
            };
            return Ok(Some(record));
        }
        Ok(None)
    }

    fn read_record(&mut self) -> Result<(), DatasetError> {
        let path = &self.found.path;
        let (delimiter, max_bytes) = (self.delimiter(), self.config.max_document_bytes());
        let end = self.reader.read_record(delimiter, max_bytes, &mut self.bytes)?;
        let line = self.line;
        match end {
            RecordEnd::Limit => {
                return Err(DatasetError::DocumentTooLarge { path: path.clone(), line, max_bytes });
            }
            RecordEnd::Memory => {
                let num_bytes = self.bytes.len() as u64;
                return Err(DatasetError::DocumentBeyondMemory { path: path.clone(), line, num_bytes });
            }
            RecordEnd::Delimiter | RecordEnd::File => {}
        }
        let delimiter = delimiter.filter(|_| end == RecordEnd::Delimiter).unwrap_or_default();
        let num_line_ends = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.line += num_line_ends(&self.bytes) + num_line_ends(delimiter);
        self.offset += (self.bytes.len() + delimiter.len()) as u64;
        self.num_records += 1;
        self.is_at_end = end == RecordEnd::File;
        Ok(())
    }

    /// The record as text, without its first `mark_len` bytes; `offset` is where it begins in the
    /// file.
    fn take_text(&mut self, mark_len: usize, offset: u64) -> Result<String, DatasetError> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.drain(..mark_len);
        String::from_utf8(bytes).map_err(|error| {
            let first = error.utf8_error().valid_up_to();
            DatasetError::NotUtf8 {
                path: self.found.path.clone(),
                offset: offset + (mark_len + first) as u64,
                guess: guess_encoding(error.as_bytes()),
            }
        })
    }

    /// The file, and the record's or line's number where there are several.
    fn name(&self, number: u64) -> String {
        let path = self.found.path.display();
        if self.delimiter().is_some() { format!("{path}:{number}") } else { path.to_string() }
    }
}
