//! The text in one column of a Parquet file, row group by row group: a page of the column is in
//! memory at a time, and a few rows.

use std::fs::File;
use std::path::{Path, PathBuf};

use parquet::basic::Type as PhysicalType;
use parquet::column::reader::{ColumnReaderImpl, get_typed_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use switchyard_ground::regular_file;

use crate::error::DatasetError;
use crate::guard::guarded;

/// Rows decoded at a time.
const BATCH_ROWS: usize = 64;

/// The rows of one file, in order.
pub(super) struct ParquetRows {
    path: PathBuf,
    file: SerializedFileReader<File>,
    /// Which of the leaf columns.
    column: usize,
    /// Definition level of a value that is there; 0 if none can be missing.
    whole_level: i16,
    next_group: usize,
    /// The column in the current row group; `None` before the first and after the last.
    reader: Option<ColumnReaderImpl<ByteArrayType>>,
}

impl ParquetRows {
    /// The column with this name, `a.b` for field `b` of the struct `a`, in the file at `path`.
    ///
    /// # Errors
    /// If the file cannot be read, is not Parquet, or has no such column of text.
    pub(super) fn open(path: &Path, column: &str) -> Result<Self, DatasetError> {
        let file = regular_file::open(path).map_err(DatasetError::io("read", path))?;
        let file = decoded(path, || SerializedFileReader::new(file))?;
        let schema = file.metadata().file_metadata().schema_descr_ptr();
        let wrong = |problem: String| DatasetError::Parquet { path: path.to_path_buf(), problem };
        let names = || -> String {
            let names = schema.columns().iter().map(|column| format!("`{}`", column.path().string()));
            names.collect::<Vec<_>>().join(", ")
        };
        let Some(index) = schema.columns().iter().position(|leaf| leaf.path().string() == column) else {
            return Err(wrong(format!("has no column `{column}`, only {}: set `data.text.column`", names())));
        };
        let leaf = schema.column(index);
        if leaf.max_rep_level() > 0 {
            let remedy = "name a column of plain strings with `data.text.column`";
            return Err(wrong(format!("has lists in its column `{column}`: {remedy}")));
        }
        if leaf.physical_type() != PhysicalType::BYTE_ARRAY {
            return Err(wrong(format!(
                "has {:?} in its column `{column}`, not text: set `data.text.column`, one of {}",
                leaf.physical_type(),
                names()
            )));
        }
        let whole_level = leaf.max_def_level();
        Ok(Self { path: path.to_path_buf(), file, column: index, whole_level, next_group: 0, reader: None })
    }

    /// The bytes of the next few rows, `None` for a row without a value; no rows at the end of the
    /// file.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, or packed in a way that is not read.
    pub(super) fn next_rows(&mut self) -> Result<Vec<Option<ByteArray>>, DatasetError> {
        loop {
            if self.reader.is_none() && !self.open_group()? {
                return Ok(Vec::new());
            }
            let Some(reader) = &mut self.reader else { return Ok(Vec::new()) };
            let whole_level = self.whole_level;
            let rows = decoded(&self.path, || read_rows(reader, whole_level))?;
            if !rows.is_empty() {
                return Ok(rows);
            }
            self.reader = None;
        }
    }

    /// Goes to the next row group; returns whether there is one.
    fn open_group(&mut self) -> Result<bool, DatasetError> {
        if self.next_group == self.file.num_row_groups() {
            return Ok(false);
        }
        let (file, group, column) = (&self.file, self.next_group, self.column);
        self.reader = Some(decoded(&self.path, || {
            Ok(get_typed_column_reader(file.get_row_group(group)?.get_column_reader(column)?))
        })?);
        self.next_group += 1;
        Ok(true)
    }
}

/// The next rows of a row group, as many as are decoded at a time.
fn read_rows(
    reader: &mut ColumnReaderImpl<ByteArrayType>,
    whole_level: i16,
) -> Result<Vec<Option<ByteArray>>, ParquetError> {
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    let (num_rows, ..) = reader.read_records(BATCH_ROWS, Some(&mut levels), None, &mut values)?;
    if whole_level == 0 {
        return Ok(values.into_iter().map(Some).collect());
    }
    let mut values = values.into_iter();
    let row = |level: &i16| if *level == whole_level { values.next() } else { None };
    Ok(levels.iter().take(num_rows).map(row).collect())
}

/// What `read` returns. The decoder trusts its input more than a file from elsewhere deserves, so
/// that damage can be a panic of it as well as an error.
fn decoded<T>(path: &Path, read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, DatasetError> {
    let damaged = |reason: &str| DatasetError::Parquet {
        path: path.to_path_buf(),
        problem: format!(
            "cannot be read ({reason}): it is no Parquet file, cut, damaged, or packed otherwise than plain, snappy or zstd. Copy \
             it again, write it anew with one of these, or remove it from the folder"
        ),
    };
    match guarded(read) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(damaged(&error.to_string())),
        Err(panic) => Err(damaged(&panic)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::basic::{Compression, ZstdLevel};
    use parquet::data_type::Int64Type;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    const SCHEMA: &str = "message rows { REQUIRED INT64 id; OPTIONAL BYTE_ARRAY text (UTF8); \
         OPTIONAL GROUP meta { REQUIRED BYTE_ARRAY body (UTF8); } }";

    /// A file with a row group for each of `groups`, which are its texts.
    fn write(path: &Path, groups: &[&[Option<&str>]], compression: Compression) {
        let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
        let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
        let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, properties).unwrap();
        for rows in groups {
            let mut group = writer.next_row_group().unwrap();
            let values: Vec<ByteArray> = rows.iter().flatten().map(|text| ByteArray::from(*text)).collect();
            let levels: Vec<i16> = rows.iter().map(|text| i16::from(text.is_some())).collect();
            let mut column = group.next_column().unwrap().unwrap();
            let ids: Vec<i64> = (0..rows.len() as i64).collect();
            column.typed::<Int64Type>().write_batch(&ids, None, None).unwrap();
            column.close().unwrap();
            for _ in ["text", "meta.body"] {
                let mut column = group.next_column().unwrap().unwrap();
                column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
                column.close().unwrap();
            }
            group.close().unwrap();
        }
        writer.close().unwrap();
    }

    fn read(path: &Path, column: &str) -> Result<Vec<Option<String>>, DatasetError> {
        let mut rows = ParquetRows::open(path, column)?;
        let mut texts = Vec::new();
        loop {
            let batch = rows.next_rows()?;
            if batch.is_empty() {
                return Ok(texts);
            }
            let text = |row: ByteArray| String::from_utf8_lossy(row.data()).into_owned();
            texts.extend(batch.into_iter().map(|row| row.map(text)));
        }
    }

    #[test]
    fn every_row_of_every_group_is_read_in_order_however_it_is_packed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let many: Vec<String> =
            (0..1000).map(|index| format!("row {index} größer").repeat(index % 7)).collect();
        let mut rows: Vec<Option<&str>> = many.iter().map(|text| Some(text.as_str())).collect();
        rows[500] = None;
        let groups: [&[Option<&str>]; 3] = [&rows[..700], &[], &rows[700..]];
        let zstd = Compression::ZSTD(ZstdLevel::try_new(3).unwrap());
        for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, zstd] {
            write(&path, &groups, compression);
            let expected: Vec<_> = rows.iter().map(|row| row.map(str::to_owned)).collect();
            assert_eq!(read(&path, "text").unwrap(), expected);
            assert_eq!(read(&path, "meta.body").unwrap(), expected);
        }
    }

    #[test]
    fn a_column_that_is_not_there_or_not_text_is_named_with_those_that_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        write(&path, &[&[Some("one")]], Compression::SNAPPY);
        let message = read(&path, "content").unwrap_err().to_string();
        assert!(
            message.ends_with(
                "a.parquet` has no column `content`, only `id`, `text`, `meta.body`: set `data.text.column`"
            ),
            "{message}"
        );
        let message = read(&path, "id").unwrap_err().to_string();
        assert!(message.contains("has INT64 in its column `id`, not text"), "{message}");
    }

    #[test]
    fn damage_is_an_error_with_the_path_and_never_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let texts: Vec<String> = (0..300).map(|index| format!("text {index}")).collect();
        let rows: Vec<Option<&str>> = texts.iter().map(|text| Some(text.as_str())).collect();
        write(&path, &[&rows], Compression::SNAPPY);
        let sound = std::fs::read(&path).unwrap();
        for len in (0..sound.len()).step_by(37) {
            std::fs::write(&path, &sound[..len]).unwrap();
            let message = read(&path, "text").unwrap_err().to_string();
            assert!(message.contains("a.parquet` cannot be read ("), "{message}");
        }
        for at in (0..sound.len()).step_by(11) {
            let mut bytes = sound.clone();
            bytes[at] ^= 0x41;
            std::fs::write(&path, &bytes).unwrap();
            // What is not covered by a check may read as other text; it must end either way.
            let _ = read(&path, "text").map_err(|error| assert!(error.is_users_mistake()));
        }
    }
}
