//! Local text: files and folders, plain or compressed.

use std::ffi::OsString;
use std::path::Path;

use parquet::data_type::ByteArray;
use sha2::{Digest, Sha256};
use switchyard_ground::regular_file;

use super::file_kind::{Compression, Format, classify};
use super::parquet_rows::ParquetRows;
use super::records::{DEFAULT_JSONL_KEY, DocumentReader, Record};
use super::unpack::long_zstd_window;
use super::walk::{Found, shown_name, text_files};
use super::{Content, Document, Visit};
use crate::config::{OnTrouble, TextConfig};
use crate::error::DatasetError;
use crate::hash::sha256_of_file;
use crate::progress::Progress;
use crate::remarks::{Remark, Remarks};
use crate::vocabulary::END_OF_DOCUMENT;

const DEFAULT_COLUMN: &str = "text";

/// Domain tags are 16 bits wide; what comes after shares the last one.
const MAX_DOMAINS: usize = 1 << 16;

struct TextFile {
    found: Found,
    domain: u16,
}

/// The files behind `[data.text]`, in the order of their paths.
pub(crate) struct TextSource {
    config: TextConfig,
    files: Vec<TextFile>,
    domain_names: Vec<String>,
    /// What was passed over on the way to the files.
    remarks: Remarks,
    /// Whose stop flag ends the reading.
    progress: Progress,
}

impl TextSource {
    /// The file at `config.path`, or all text files below that folder.
    ///
    /// A domain is what stands directly below the folder: a file, or a folder with all that is in
    /// it.
    pub(crate) fn open(config: &TextConfig, progress: &Progress) -> Result<Self, DatasetError> {
        let root = &config.path;
        let mut source = Self {
            config: config.clone(),
            files: Vec::new(),
            domain_names: Vec::new(),
            remarks: Remarks::default(),
            progress: progress.clone(),
        };
        let metadata = std::fs::metadata(root).map_err(DatasetError::io("read", root))?;
        if metadata.is_dir() {
            let found = text_files(root, &mut source.remarks, progress)?;
            source.add_domains(found);
        } else {
            regular_file::open(root).map_err(DatasetError::io("read", root))?;
            let Some((format, compression)) = root.file_name().and_then(classify) else {
                return Err(DatasetError::UnknownFileType { path: root.clone() });
            };
            let found = Found { path: root.clone(), format, compression };
            source.files.push(TextFile { found, domain: 0 });
            source.domain_names.push(root.file_name().map(shown_name).unwrap_or_default());
        }
        source.remark_long_windows();
        Ok(source)
    }

    /// Takes files in the order of their paths, in which those of a domain are neighbours.
    fn add_domains(&mut self, found: Vec<Found>) {
        let mut previous: Option<OsString> = None;
        for found in found {
            let below_root = found.path.strip_prefix(&self.config.path).unwrap_or(&found.path);
            let top = below_root.iter().next().unwrap_or_default().to_owned();
            if previous.as_ref() != Some(&top) && self.domain_names.len() < MAX_DOMAINS {
                self.domain_names.push(shown_name(&top));
            }
            previous = Some(top);
            self.files.push(TextFile { found, domain: (self.domain_names.len() - 1) as u16 });
        }
    }

    fn remark_long_windows(&mut self) {
        for TextFile { found: Found { path, compression, .. }, .. } in &self.files {
            if *compression == Compression::Zstd
                && let Some(window_bytes) = long_zstd_window(path)
            {
                let example = || format!("`{}` with {} MiB", path.display(), window_bytes >> 20);
                self.remarks.add(Remark::LongWindow, example);
            }
        }
    }

    /// Feeds the files' paths below the root and their contents: a file that changed is another
    /// corpus.
    pub(super) fn identify(&self, hasher: &mut Sha256, progress: &Progress) -> Result<(), DatasetError> {
        // The limit only decides whether there is a corpus.
        let TextConfig { path: root, jsonl_key, column: _, on_bad_line, separator, max_document_bytes: _ } =
            &self.config;
        let key = jsonl_key.as_deref().unwrap_or(DEFAULT_JSONL_KEY);
        // The number is that of the rules by which files become documents.
        hasher.update(format!("text 2 jsonl_key={key:?}\n"));
        if self.column() != DEFAULT_COLUMN {
            hasher.update(format!("column={:?}\n", self.column()));
        }
        if let Some(separator) = separator {
            hasher.update(format!("separator={separator:?}\n"));
        }
        if *on_bad_line == Some(OnTrouble::Skip) {
            hasher.update("on_bad_line=skip\n");
        }
        for TextFile { found: Found { path, format, compression }, .. } in &self.files {
            let relative = path.strip_prefix(root).unwrap_or(path);
            // The kind decides how the bytes are read; a file's own name, on the other hand,
            // changes nothing. Of a name that is not UTF-8 this format escapes the bytes, so that
            // no two names are alike.
            hasher.update(format!("{relative:?} {format:?} {compression:?}\n"));
            hasher.update(sha256_of_file(path, progress)?);
        }
        Ok(())
    }

    pub(super) fn domain_names(&self) -> Vec<String> {
        self.domain_names.clone()
    }

    pub(super) fn description(&self) -> String {
        format!("text in `{}` ({} file(s))", self.config.path.display(), self.files.len())
    }

    /// What was passed over on the way to the files.
    pub(super) fn remarks(&self) -> &Remarks {
        &self.remarks
    }

    /// Column of Parquet files that holds the text.
    fn column(&self) -> &str {
        self.config.column.as_deref().unwrap_or(DEFAULT_COLUMN)
    }

    /// Documents in the order of paths and lines; what is passed over in the files is remarked.
    pub(super) fn for_each(&self, remarks: &mut Remarks, visit: &mut Visit<'_>) -> Result<(), DatasetError> {
        for file in &self.files {
            let mut visit_text = |record: Record, remarks: &mut Remarks| {
                if record.text.trim().is_empty() {
                    if !record.text.is_empty() {
                        remarks.add(Remark::BlankDocument, || format!("`{}`", record.name));
                    }
                    return Ok(());
                }
                if file.found.format == Format::Plain && record.text.contains(END_OF_DOCUMENT) {
                    remarks.add(Remark::EndMarkAsText, || format!("`{}`", record.name));
                }
                let content = Content::Text(record.text);
                visit(Document { content, domain: file.domain, name: record.name })
            };
            if file.found.format == Format::Parquet {
                self.for_each_row(&file.found.path, remarks, &mut visit_text)?;
                continue;
            }
            let mut reader = DocumentReader::open(&file.found, &self.config, &self.progress)?;
            while let Some(record) = reader.next_document(remarks)? {
                visit_text(record, remarks)?;
            }
        }
        Ok(())
    }

    /// The rows of the Parquet file at `path`; those without usable text as `on_bad_line` says.
    fn for_each_row(
        &self,
        path: &Path,
        remarks: &mut Remarks,
        visit: &mut dyn FnMut(Record, &mut Remarks) -> Result<(), DatasetError>,
    ) -> Result<(), DatasetError> {
        let mut rows = ParquetRows::open(path, self.column())?;
        let mut number = 0_u64;
        loop {
            self.progress.check()?;
            let batch = rows.next_rows()?;
            if batch.is_empty() {
                return Ok(());
            }
            for row in batch {
                number += 1;
                let name = format!("{}:{number}", path.display());
                match text_of_row(row.as_ref().map(ByteArray::data), self.config.max_document_bytes()) {
                    Ok(text) => visit(Record { text, name }, remarks)?,
                    Err(problem) if self.config.on_bad_line == Some(OnTrouble::Skip) => {
                        remarks.add(Remark::BadLine, || format!("`{name}`: {problem}"));
                    }
                    Err(problem) => {
                        let problem = format!("row {number} of column `{}` {problem}", self.column());
                        return Err(DatasetError::Parquet { path: path.to_path_buf(), problem });
                    }
                }
            }
        }
    }
}

/// The text in a row, or what keeps it from being one and what to do.
fn text_of_row(row: Option<&[u8]>, max_bytes: u64) -> Result<String, String> {
    let Some(bytes) = row else {
        return Err("is null: remove the row, or set `data.text.on_bad_line = \"skip\"`".to_owned());
    };
    if bytes.len() as u64 > max_bytes {
        let remedy = "if it is meant, raise `data.text.max_document_bytes`";
        return Err(format!("has {} bytes, more than {max_bytes}: {remedy}", bytes.len()));
    }
    String::from_utf8(bytes.to_vec()).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        format!("is not UTF-8 at byte {at}: mend it, or set `data.text.on_bad_line = \"skip\"`")
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::sync::Arc;

    use super::*;

    fn texts(path: &Path) -> Result<Vec<(String, u16)>, DatasetError> {
        read(&TextConfig::new(path)).map(|(texts, _)| texts)
    }

    /// Texts with their domains, and all remarks.
    type Read = (Vec<(String, u16)>, Vec<String>);

    fn read(config: &TextConfig) -> Result<Read, DatasetError> {
        let source = TextSource::open(config, &Progress::silent())?;
        let mut texts = Vec::new();
        let mut remarks = source.remarks().clone();
        source.for_each(&mut remarks, &mut |document| {
            let Content::Text(text) = document.content else { panic!("text expected") };
            texts.push((text, document.domain));
            Ok(())
        })?;
        Ok((texts, remarks.sentences()))
    }

    fn key_of(config: &TextConfig) -> Vec<u8> {
        let mut hasher = Sha256::new();
        let source = TextSource::open(config, &Progress::silent()).unwrap();
        source.identify(&mut hasher, &Progress::silent()).unwrap();
        hasher.finalize().to_vec()
    }

    #[test]
    fn folders_are_walked_in_sorted_order_and_top_entries_are_domains() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("b/deep")).unwrap();
        std::fs::write(folder.path().join("b/deep/2.md"), "two").unwrap();
        std::fs::write(folder.path().join("b/1.txt"), "one").unwrap();
        std::fs::write(folder.path().join("a.txt"), "zero").unwrap();
        std::fs::write(folder.path().join("c.png"), "picture").unwrap();
        let expected = [("zero", 0), ("one", 1), ("two", 1)].map(|(text, domain)| (text.to_owned(), domain));
        assert_eq!(texts(folder.path()).unwrap(), expected);
    }

    #[test]
    fn compressed_text_reads_as_its_plain_form() {
        let folder = tempfile::tempdir().unwrap();
        let gz = folder.path().join("a.jsonl.gz");
        let mut encoder =
            flate2::write::GzEncoder::new(File::create(&gz).unwrap(), flate2::Compression::default());
        encoder.write_all(b"{\"text\": \"one\"}\n\n{\"text\": \"two\"}").unwrap();
        encoder.finish().unwrap();
        std::fs::write(folder.path().join("b.txt.zst"), zstd::encode_all(&b"three"[..], 3).unwrap()).unwrap();
        let expected = [("one", 0), ("two", 0), ("three", 1)].map(|(text, domain)| (text.to_owned(), domain));
        assert_eq!(texts(folder.path()).unwrap(), expected);
    }

    #[test]
    fn bad_lines_are_named_with_file_line_and_fields() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, "{\"text\": \"fine\"}\n{\"body\": \"x\", \"id\": 1}\n").unwrap();
        let message = texts(&path).unwrap_err().to_string();
        assert!(
            message.ends_with("line 2: no field `text`, only `body`, `id`: set `data.text.jsonl_key`"),
            "{message}"
        );
        std::fs::write(&path, "{\"text\": 3}").unwrap();
        assert!(texts(&path).unwrap_err().to_string().contains("line 1: field `text` is 3, not a string"));
        std::fs::write(&path, "{").unwrap();
        assert!(texts(&path).unwrap_err().to_string().contains("line 1: not JSON"));
    }

    #[test]
    fn bad_lines_are_passed_over_on_request_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let lines = b"\xef\xbb\xbf{\"text\": \"one\"}\r\n\n{\"text\": null}\nnonsense\n{\"text\": \"\xff\"}\n{\"text\": \"two\"}";
        std::fs::write(&path, lines).unwrap();
        assert!(texts(&path).unwrap_err().to_string().contains("line 3: field `text` is null"));
        let config = TextConfig { on_bad_line: Some(OnTrouble::Skip), ..TextConfig::new(&path) };
        let (texts, remarks) = read(&config).unwrap();
        assert_eq!(texts, [("one".to_owned(), 0), ("two".to_owned(), 0)]);
        assert_eq!(remarks.len(), 1);
        assert!(remarks[0].starts_with("3 lines or rows without usable text passed over"), "{}", remarks[0]);
        assert!(
            remarks[0].contains("the first `") && remarks[0].contains("a.jsonl:3`: field `text` is null")
        );
        assert_ne!(key_of(&config), key_of(&TextConfig::new(&path)), "other documents have another key");
    }

    #[test]
    fn a_byte_order_mark_is_no_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        std::fs::write(&path, b"\xef\xbb\xbftext").unwrap();
        assert_eq!(texts(&path).unwrap()[0].0, "text");
        std::fs::write(&path, b"\xef\xbb\xbft\xff").unwrap();
        assert!(texts(&path).unwrap_err().to_string().contains("not UTF-8 at byte 4:"));
        std::fs::write(&path, b"\xff\xfet\0").unwrap();
        let message = texts(&path).unwrap_err().to_string();
        assert!(message.contains("not UTF-8 at byte 0 (it begins like UTF-16): convert it"), "{message}");
    }

    #[test]
    fn a_separator_splits_plain_files_and_is_in_no_document() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        std::fs::write(&path, "one\n<|endoftext|>two<|endoftext|>\n<|endoftext|>").unwrap();
        let (texts, remarks) = read(&TextConfig::new(&path)).unwrap();
        assert_eq!(texts.len(), 1);
        assert!(remarks[0].starts_with("1 document with the text `<|endoftext|>`"), "{}", remarks[0]);
        let config = TextConfig { separator: Some("<|endoftext|>".into()), ..TextConfig::new(&path) };
        let (texts, remarks) = read(&config).unwrap();
        assert_eq!(texts, [("one\n".to_owned(), 0), ("two".to_owned(), 0)]);
        assert!(
            remarks[0].starts_with("1 document of nothing but white space passed over: `"),
            "{}",
            remarks[0]
        );
        assert_ne!(key_of(&config), key_of(&TextConfig::new(&path)));
    }

    #[test]
    fn a_document_beyond_the_limit_is_refused_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl.zst");
        let line = |len: usize| format!("{{\"text\": \"{}\"}}\n", "x".repeat(len));
        let packed = zstd::encode_all((line(10) + &line(1 << 24)).as_bytes(), 3).unwrap();
        assert!(packed.len() < 1 << 16, "a small file");
        std::fs::write(&path, packed).unwrap();
        let config = TextConfig { max_document_bytes: Some(1000), ..TextConfig::new(&path) };
        let message = read(&config).unwrap_err().to_string();
        assert!(message.contains("a.jsonl.zst`, line 2: one document of more than 1000 bytes"), "{message}");
        assert!(message.contains("raise `data.text.max_document_bytes`"), "{message}");
        assert_eq!(texts(&path).unwrap().len(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn names_that_differ_only_in_bytes_that_are_not_utf8_are_other_corpora() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let key_of_name = |name: &[u8]| {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join(OsStr::from_bytes(name)), "same").unwrap();
            assert_eq!(texts(folder.path()).unwrap().len(), 1);
            key_of(&TextConfig::new(folder.path()))
        };
        assert_ne!(key_of_name(b"caf\xe9.txt"), key_of_name(b"caf\xe8.txt"));
        assert_ne!(key_of_name(b"caf\xe9.txt"), key_of_name(b"caf\\xe9.txt"));
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("a.txt");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let error = texts(&pipe).unwrap_err();
        assert!(error.is_users_mistake() && error.to_string().contains("not a regular file"), "{error}");
    }

    #[test]
    fn unreadable_inputs_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = texts(&folder.path().join("none.txt")).unwrap_err().to_string();
        assert!(missing.contains("none.txt") && missing.ends_with("check the path"), "{missing}");
        let binary = folder.path().join("a.txt");
        std::fs::write(&binary, b"ab\xff").unwrap();
        assert!(texts(&binary).unwrap_err().to_string().contains("is not UTF-8 at byte 2"));
        let picture = folder.path().join("a.png");
        std::fs::write(&picture, "x").unwrap();
        assert!(
            texts(&picture).unwrap_err().to_string().contains("use a .txt, .md, .jsonl or .parquet file")
        );
    }

    #[test]
    fn rows_of_parquet_files_are_documents_beside_those_of_other_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.parquet");
        write_parquet(&path, &[Some(b"one"), None, Some(b"t\xff"), Some(b"two"), Some(b" ")]);
        std::fs::write(folder.path().join("a.txt"), "zero").unwrap();
        let message = texts(folder.path()).unwrap_err().to_string();
        assert!(message.contains("b.parquet` row 2 of column `text` is null"), "{message}");
        let config = TextConfig { on_bad_line: Some(OnTrouble::Skip), ..TextConfig::new(folder.path()) };
        let (texts, remarks) = read(&config).unwrap();
        let expected = [("zero", 0), ("one", 1), ("two", 1)].map(|(text, domain)| (text.to_owned(), domain));
        assert_eq!(texts, expected);
        assert!(remarks[0].starts_with("2 lines or rows without usable text passed over"), "{remarks:?}");
        assert!(remarks[1].starts_with("1 document of nothing but white space"), "{remarks:?}");
        let limited = TextConfig { max_document_bytes: Some(2), ..TextConfig::new(&path) };
        let message = read(&limited).unwrap_err().to_string();
        assert!(message.contains("row 1 of column `text` has 3 bytes, more than 2"), "{message}");
        let by_column =
            |column: &str| key_of(&TextConfig { column: Some(column.to_owned()), ..TextConfig::new(&path) });
        assert_eq!(by_column("text"), key_of(&TextConfig::new(&path)));
        assert_ne!(by_column("body"), by_column("text"));
    }

    fn write_parquet(path: &Path, rows: &[Option<&[u8]>]) {
        use parquet::data_type::ByteArrayType;
        use parquet::file::writer::SerializedFileWriter;
        let schema = "message rows { OPTIONAL BYTE_ARRAY text (UTF8); }";
        let schema = Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
        let file = File::create(path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = rows.iter().flatten().map(|row| ByteArray::from(row.to_vec())).collect();
        let levels: Vec<i16> = rows.iter().map(|row| i16::from(row.is_some())).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
    }
}
