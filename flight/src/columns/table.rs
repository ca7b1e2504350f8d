//! A table of numbers as the bytes of one Parquet file, and back.

use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, Encoding, LogicalType, Repetition, Type as PhysicalType, ZstdLevel};
use parquet::column::reader::get_typed_column_reader;
use parquet::column::writer::ColumnWriterImpl;
use parquet::data_type::{BoolType, DataType, DoubleType, FloatType, Int32Type, Int64Type};
use parquet::errors::{ParquetError, Result};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::{ColumnPath, Type, TypePtr};

/// CRC-32C of the file without it, little-endian, just before the footer. Parquet finds the footer
/// from the end and the pages through the footer, so every reader skips it. Without it a flipped
/// bit in a page would be read as another number, and one in the footer makes the library panic.
const CHECKSUM_BYTES: usize = 4;

/// A result whose error says what is wrong with the file.
type Reason<T> = std::result::Result<T, String>;

/// A named column.
pub(super) struct Column {
    name: &'static str,
    values: Values,
}

/// The numbers of a column; an absent one is a null in the file.
pub(super) enum Values {
    U32(Vec<u32>),
    OptionalU32(Vec<Option<u32>>),
    U64(Vec<u64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    OptionalF64(Vec<Option<f64>>),
    Bool(Vec<bool>),
}

impl Column {
    pub(super) fn new(name: &'static str, values: Values) -> Self {
        Self { name, values }
    }

    fn schema(&self) -> Result<TypePtr> {
        let (physical, bits) = match self.values {
            Values::U32(_) | Values::OptionalU32(_) => (PhysicalType::INT32, Some(32)),
            Values::U64(_) => (PhysicalType::INT64, Some(64)),
            Values::F32(_) => (PhysicalType::FLOAT, None),
            Values::F64(_) | Values::OptionalF64(_) => (PhysicalType::DOUBLE, None),
            Values::Bool(_) => (PhysicalType::BOOLEAN, None),
        };
        let repetition = match self.values {
            Values::OptionalU32(_) | Values::OptionalF64(_) => Repetition::OPTIONAL,
            _ => Repetition::REQUIRED,
        };
        let column = Type::primitive_type_builder(self.name, physical)
            .with_repetition(repetition)
            .with_logical_type(bits.map(|bits| LogicalType::integer(bits, false)))
            .build()?;
        Ok(Arc::new(column))
    }

    fn write(&self, group: &mut SerializedRowGroupWriter<'_, Vec<u8>>) -> Result<()> {
        // An unsigned number is stored as the signed one with the same bits, which the logical type
        // says.
        match &self.values {
            Values::U32(values) => write::<Int32Type>(group, values.iter().map(|&x| x as i32).collect()),
            Values::U64(values) => write::<Int64Type>(group, values.iter().map(|&x| x as i64).collect()),
            Values::F32(values) => write::<FloatType>(group, values.clone()),
            Values::F64(values) => write::<DoubleType>(group, values.clone()),
            Values::Bool(values) => write::<BoolType>(group, values.clone()),
            Values::OptionalU32(values) => {
                write_optional::<Int32Type>(group, values.iter().map(|x| x.map(|x| x as i32)))
            }
            Values::OptionalF64(values) => write_optional::<DoubleType>(group, values.iter().copied()),
        }
    }

    /// Floats that rarely repeat compress better with their bytes sorted by significance.
    fn splits_bytes(&self) -> bool {
        matches!(self.values, Values::F32(_) | Values::F64(_) | Values::OptionalF64(_))
    }
}

fn write<T: DataType>(group: &mut SerializedRowGroupWriter<'_, Vec<u8>>, values: Vec<T::T>) -> Result<()> {
    with_next_column::<T>(group, |column| column.write_batch(&values, None, None))
}

fn write_optional<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, Vec<u8>>,
    values: impl Iterator<Item = Option<T::T>> + Clone,
) -> Result<()> {
    let levels: Vec<i16> = values.clone().map(|value| i16::from(value.is_some())).collect();
    let present: Vec<T::T> = values.flatten().collect();
    with_next_column::<T>(group, |column| column.write_batch(&present, Some(&levels), None))
}

fn with_next_column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, Vec<u8>>,
    write: impl FnOnce(&mut ColumnWriterImpl<'_, T>) -> Result<usize>,
) -> Result<()> {
    let missing = || ParquetError::General("more columns than the schema has".into());
    let mut column = group.next_column()?.ok_or_else(missing)?;
    write(column.typed::<T>())?;
    column.close()
}

/// The bytes of a Parquet file with one row group for each of `groups`: the same columns, all of the
/// same length within a group. `None` without groups.
pub(super) fn encode<Columns: AsRef<[Column]>>(
    groups: impl IntoIterator<Item = Columns>,
) -> Result<Option<Vec<u8>>> {
    let mut groups = groups.into_iter().peekable();
    let Some(first) = groups.peek() else { return Ok(None) };
    let fields = first.as_ref().iter().map(Column::schema).collect::<Result<Vec<_>>>()?;
    let schema = Arc::new(Type::group_type_builder("schema").with_fields(fields).build()?);
    let properties = Arc::new(properties(first.as_ref())?);
    let mut file = SerializedFileWriter::new(Vec::new(), schema, properties)?;
    for columns in groups {
        let mut group = file.next_row_group()?;
        columns.as_ref().iter().try_for_each(|column| column.write(&mut group))?;
        group.close()?;
    }
    let mut bytes = file.into_inner()?;
    let footer_start = footer_start(&bytes).ok_or_else(|| ParquetError::General("no footer".into()))?;
    let checksum = crc32c::crc32c(&bytes).to_le_bytes();
    bytes.splice(footer_start..footer_start, checksum);
    Ok(Some(bytes))
}

fn properties(columns: &[Column]) -> Result<WriterProperties> {
    let splits_bytes = columns.iter().filter(|column| column.splits_bytes());
    let all = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        // A file is read whole: an index of its pages would only make it larger.
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_offset_index_disabled(true)
        .set_created_by(format!("switchyard {}", env!("CARGO_PKG_VERSION")));
    let properties = splits_bytes.fold(all, |properties, column| {
        let path = ColumnPath::from(column.name);
        properties
            .set_column_dictionary_enabled(path.clone(), false)
            .set_column_encoding(path, Encoding::BYTE_STREAM_SPLIT)
    });
    Ok(properties.build())
}

/// A file that is whole. Errors are reasons, without the file's name.
pub(super) struct Table {
    file: SerializedFileReader<Bytes>,
}

impl Table {
    /// The table in the file that holds `bytes`: read as a whole, so that no trouble of the system
    /// is taken for damage.
    pub(super) fn open(bytes: Vec<u8>) -> Reason<Self> {
        check(&bytes)?;
        let file = SerializedFileReader::new(Bytes::from(bytes)).map_err(|error| error.to_string())?;
        Ok(Self { file })
    }

    pub(super) fn u32(&self, name: &str) -> Reason<Vec<u32>> {
        Ok(self.required::<Int32Type>(name)?.into_iter().map(|x| x as u32).collect())
    }

    pub(super) fn optional_u32(&self, name: &str) -> Reason<Vec<Option<u32>>> {
        Ok(self.optional::<Int32Type>(name)?.into_iter().map(|x| x.map(|x| x as u32)).collect())
    }

    pub(super) fn u64(&self, name: &str) -> Reason<Vec<u64>> {
        Ok(self.required::<Int64Type>(name)?.into_iter().map(|x| x as u64).collect())
    }

    pub(super) fn f32(&self, name: &str) -> Reason<Vec<f32>> {
        self.required::<FloatType>(name)
    }

    pub(super) fn f64(&self, name: &str) -> Reason<Vec<f64>> {
        self.required::<DoubleType>(name)
    }

    pub(super) fn optional_f64(&self, name: &str) -> Reason<Vec<Option<f64>>> {
        self.optional::<DoubleType>(name)
    }

    pub(super) fn bool(&self, name: &str) -> Reason<Vec<bool>> {
        self.required::<BoolType>(name)
    }

    fn required<T: DataType>(&self, name: &str) -> Reason<Vec<T::T>> {
        self.optional::<T>(name)?
            .into_iter()
            .map(|value| value.ok_or_else(|| format!("its column `{name}` has an empty value")))
            .collect()
    }

    fn optional<T: DataType>(&self, name: &str) -> Reason<Vec<Option<T::T>>> {
        let schema = self.file.metadata().file_metadata().schema_descr();
        let index = (0..schema.num_columns())
            .find(|&index| {
                let column = schema.column(index);
                column.name() == name && column.physical_type() == T::get_physical_type()
            })
            .ok_or_else(|| format!("it has no column `{name}` of the right type"))?;
        let mut all = Vec::new();
        for group in 0..self.file.num_row_groups() {
            let values = self.file.get_row_group(group).and_then(|group| read::<T>(group.as_ref(), index));
            all.extend(values.map_err(|error| format!("its column `{name}` cannot be read: {error}"))?);
        }
        Ok(all)
    }
}

/// Where the footer starts; `None` if the file does not end as a Parquet file does.
fn footer_start(bytes: &[u8]) -> Option<usize> {
    let (rest, [footer_len @ .., b'P', b'A', b'R', b'1']) = bytes.split_last_chunk::<8>()? else {
        return None;
    };
    rest.len().checked_sub(u32::from_le_bytes(*footer_len) as usize)
}

fn check(bytes: &[u8]) -> Reason<()> {
    let (before, footer) = footer_start(bytes)
        .and_then(|start| bytes.split_at_checked(start))
        .ok_or("it does not end as a Parquet file does")?;
    let (pages, expected) = before.split_last_chunk::<CHECKSUM_BYTES>().ok_or("it has no checksum")?;
    let (actual, expected) =
        (crc32c::crc32c_append(crc32c::crc32c(pages), footer), u32::from_le_bytes(*expected));
    if actual == expected { Ok(()) } else { Err(format!("its checksum is {actual:08x}, not {expected:08x}")) }
}

/// One column of a row group; a required column has no absent value.
fn read<T: DataType>(group: &dyn RowGroupReader, index: usize) -> Result<Vec<Option<T::T>>> {
    let num_rows = usize::try_from(group.metadata().num_rows())
        .map_err(|_| ParquetError::General("a negative number of rows".into()))?;
    let mut column = get_typed_column_reader::<T>(group.get_column_reader(index)?);
    let (mut levels, mut present) = (Vec::new(), Vec::new());
    let (num_read, _, _) = column.read_records(num_rows, Some(&mut levels), None, &mut present)?;
    if num_read != num_rows {
        return Err(ParquetError::General(format!("{num_read} rows instead of {num_rows}")));
    }
    if group.metadata().column(index).column_descr().max_def_level() == 0 {
        return Ok(present.into_iter().map(Some).collect());
    }
    let mut present = present.into_iter();
    Ok(levels.into_iter().map(|level| if level > 0 { present.next() } else { None }).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{ColumnsError, read, write};
    use super::*;

    fn columns() -> Vec<Column> {
        vec![
            Column::new("count", Values::U64(vec![u64::MAX, 0, 7])),
            Column::new("norm", Values::F64(vec![0.5, -0.0, 1e300])),
            Column::new("bias", Values::OptionalF64(vec![None, Some(0.25), None])),
            Column::new("domain", Values::OptionalU32(vec![Some(u32::MAX), None, Some(0)])),
            Column::new("kept", Values::Bool(vec![true, false, true])),
        ]
    }

    type Numbers = (u64, f64, Option<f64>, Option<u32>, bool);

    fn numbers(table: &Table) -> Reason<Vec<Numbers>> {
        let (counts, norms, biases) = (table.u64("count")?, table.f64("norm")?, table.optional_f64("bias")?);
        let (domains, kept) = (table.optional_u32("domain")?, table.bool("kept")?);
        Ok((0..counts.len()).map(|i| (counts[i], norms[i], biases[i], domains[i], kept[i])).collect())
    }

    #[test]
    fn a_table_is_read_back_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.parquet");
        write(&path, &columns()).unwrap();
        let expected = [
            (u64::MAX, 0.5, None, Some(u32::MAX), true),
            (0, -0.0, Some(0.25), None, false),
            (7, 1e300, None, Some(0), true),
        ];
        assert_eq!(read(&path, numbers).unwrap(), expected);
    }

    #[test]
    fn a_file_cut_or_changed_at_any_byte_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.parquet");
        write(&path, &columns()).unwrap();
        let whole = fs::read(&path).unwrap();
        let cut = (0..whole.len()).map(|len| whole[..len].to_vec());
        let changed = (0..whole.len()).flat_map(|at| [1, 0x80].map(|flip| (at, flip))).map(|(at, flip)| {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            bytes
        });
        for damaged in cut.chain(changed) {
            fs::write(&path, &damaged).unwrap();
            let error = read(&path, numbers).unwrap_err();
            assert!(matches!(error, ColumnsError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains("table.parquet` is damaged: "), "{error}");
        }
    }

    #[test]
    fn a_missing_column_and_another_type_are_damage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.parquet");
        write(&path, &columns()).unwrap();
        let message = read(&path, |table| table.u64("gate")).unwrap_err().to_string();
        assert!(message.contains("table.parquet` is damaged: it has no column `gate`"), "{message}");
        let message = read(&path, |table| table.f32("norm")).unwrap_err().to_string();
        assert!(message.contains("it has no column `norm` of the right type"), "{message}");
        let message = read(&path, |table| table.required::<DoubleType>("bias")).unwrap_err().to_string();
        assert!(message.contains("its column `bias` has an empty value"), "{message}");
    }

    #[test]
    fn no_rows_are_a_file_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.parquet");
        write(&path, &[Column::new("count", Values::U64(Vec::new()))]).unwrap();
        assert!(read(&path, |table| table.u64("count")).unwrap().is_empty());
    }
}
