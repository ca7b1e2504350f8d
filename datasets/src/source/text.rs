//! Local text: files and folders, plain or compressed.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};

use super::{Content, Document, Visit};
use crate::config::TextConfig;
use crate::error::DatasetError;
use crate::hash::sha256_of_file;

const DEFAULT_JSONL_KEY: &str = "text";

/// Domain tags are 16 bits wide; what comes after shares the last one.
const MAX_DOMAINS: usize = 1 << 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// The file is the document.
    Plain,
    /// Each line is one document.
    JsonLines,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

struct TextFile {
    path: PathBuf,
    format: Format,
    compression: Compression,
    domain: u16,
}

/// The files behind `[data.text]`, in the order of their paths.
pub(crate) struct TextSource {
    root: PathBuf,
    jsonl_key: String,
    files: Vec<TextFile>,
    domain_names: Vec<String>,
}

impl TextSource {
    /// The file at `config.path`, or all text files below that folder; other files in a folder are passed over.
    ///
    /// A domain is what stands directly below the folder: a file, or a folder with all that is in it.
    pub(crate) fn open(config: &TextConfig) -> Result<Self, DatasetError> {
        let root = &config.path;
        let metadata = std::fs::metadata(root).map_err(DatasetError::io("read", root))?;
        let mut source = Self {
            root: root.clone(),
            jsonl_key: config.jsonl_key.clone().unwrap_or_else(|| DEFAULT_JSONL_KEY.to_owned()),
            files: Vec::new(),
            domain_names: Vec::new(),
        };
        if metadata.is_dir() {
            for entry in sorted_entries(root)? {
                source.add_domain(&entry)?;
            }
        } else {
            let Some((format, compression)) = classify(root) else {
                return Err(DatasetError::UnknownFileType { path: root.clone() });
            };
            source.files.push(TextFile { path: root.clone(), format, compression, domain: 0 });
            source.domain_names.push(file_name(root));
        }
        Ok(source)
    }

    fn add_domain(&mut self, entry: &Path) -> Result<(), DatasetError> {
        let mut files = Vec::new();
        collect_files(entry, &mut files)?;
        if files.is_empty() {
            return Ok(());
        }
        if self.domain_names.len() < MAX_DOMAINS {
            self.domain_names.push(file_name(entry));
        }
        let domain = (self.domain_names.len() - 1) as u16;
        let file = |(path, format, compression)| TextFile { path, format, compression, domain };
        self.files.extend(files.into_iter().map(file));
        Ok(())
    }

    /// Feeds the files' paths below the root and their contents: a file that changed is another corpus.
    pub(super) fn identify(&self, hasher: &mut Sha256) -> Result<(), DatasetError> {
        hasher.update(format!("text jsonl_key={:?}\n", self.jsonl_key));
        for file in &self.files {
            let relative = file.path.strip_prefix(&self.root).unwrap_or(&file.path);
            // The kind decides how the bytes are read; a file's own name, on the other hand, changes nothing.
            hasher.update(format!("{:?} {:?} {:?}\n", relative, file.format, file.compression));
            hasher.update(sha256_of_file(&file.path)?);
        }
        Ok(())
    }

    pub(super) fn domain_names(&self) -> Vec<String> {
        self.domain_names.clone()
    }

    pub(super) fn description(&self) -> String {
        format!("text in `{}` ({} file(s))", self.root.display(), self.files.len())
    }

    /// Documents in the order of paths and lines; empty ones are passed over.
    pub(super) fn for_each(&self, visit: &mut Visit<'_>) -> Result<(), DatasetError> {
        for file in &self.files {
            match file.format {
                Format::Plain => {
                    let text = file.read_text()?;
                    if !text.is_empty() {
                        visit(file.document(text, file.path.display().to_string()))?;
                    }
                }
                Format::JsonLines => file.for_each_line(&self.jsonl_key, visit)?,
            }
        }
        Ok(())
    }
}

impl TextFile {
    fn document(&self, text: String, name: String) -> Document {
        Document { content: Content::Text(text), domain: self.domain, name }
    }

    fn reader(&self) -> Result<Box<dyn Read>, DatasetError> {
        let file = File::open(&self.path).map_err(DatasetError::io("read", &self.path))?;
        Ok(match self.compression {
            Compression::None => Box::new(file),
            Compression::Gzip => Box::new(MultiGzDecoder::new(BufReader::new(file))),
            Compression::Zstd => {
                Box::new(zstd::Decoder::new(file).map_err(DatasetError::io("decompress", &self.path))?)
            }
        })
    }

    fn read_text(&self) -> Result<String, DatasetError> {
        let mut bytes = Vec::new();
        self.reader()?.read_to_end(&mut bytes).map_err(DatasetError::io("read", &self.path))?;
        String::from_utf8(bytes).map_err(|error| DatasetError::NotUtf8 {
            path: self.path.clone(),
            offset: error.utf8_error().valid_up_to(),
        })
    }

    fn for_each_line(&self, key: &str, visit: &mut Visit<'_>) -> Result<(), DatasetError> {
        let mut reader = BufReader::with_capacity(1 << 16, self.reader()?);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let num_read =
                reader.read_until(b'\n', &mut line).map_err(DatasetError::io("read", &self.path))?;
            if num_read == 0 {
                break;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            let text = text_of_line(&line, key).map_err(|problem| DatasetError::JsonLine {
                path: self.path.clone(),
                line: number,
                problem,
            })?;
            if !text.is_empty() {
                visit(self.document(text, format!("{}:{number}", self.path.display())))?;
            }
        }
        Ok(())
    }
}

/// The string under `key` in the JSON object `line`, or what is wrong with the line.
fn text_of_line(line: &[u8], key: &str) -> Result<String, String> {
    let value: serde_json::Value = serde_json::from_slice(line)
        .map_err(|error| format!("not JSON ({error}): one object a line is expected"))?;
    let serde_json::Value::Object(mut object) = value else {
        return Err("not an object: one object a line is expected".to_owned());
    };
    match object.remove(key) {
        Some(serde_json::Value::String(text)) => Ok(text),
        Some(other) => Err(format!("field `{key}` is {other}, not a string: set `data.text.jsonl_key`")),
        None => {
            let fields: Vec<_> = object.keys().map(|field| format!("`{field}`")).collect();
            Err(format!("no field `{key}`, only {}: set `data.text.jsonl_key`", fields.join(", ")))
        }
    }
}

fn classify(path: &Path) -> Option<(Format, Compression)> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let (stem, compression) = match name.rsplit_once('.')? {
        (stem, "gz") => (stem, Compression::Gzip),
        (stem, "zst") => (stem, Compression::Zstd),
        _ => (name.as_str(), Compression::None),
    };
    match stem.rsplit_once('.')?.1 {
        "txt" | "md" => Some((Format::Plain, compression)),
        "jsonl" => Some((Format::JsonLines, compression)),
        _ => None,
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn sorted_entries(folder: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let entries = std::fs::read_dir(folder).map_err(DatasetError::io("list", folder))?;
    let paths: Result<Vec<_>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.map_err(DatasetError::io("list", folder))?;
    paths.sort();
    Ok(paths)
}

fn collect_files(path: &Path, files: &mut Vec<(PathBuf, Format, Compression)>) -> Result<(), DatasetError> {
    let kind = std::fs::symlink_metadata(path).map_err(DatasetError::io("read", path))?.file_type();
    // A link to a folder could lead back to itself; a link to a file is as good as the file.
    if kind.is_dir() {
        for entry in sorted_entries(path)? {
            collect_files(&entry, files)?;
        }
    } else if let Some((format, compression)) = classify(path)
        && path.is_file()
    {
        files.push((path.to_path_buf(), format, compression));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn texts(path: &Path) -> Result<Vec<(String, u16)>, DatasetError> {
        let source = TextSource::open(&TextConfig { path: path.to_path_buf(), jsonl_key: None })?;
        let mut texts = Vec::new();
        source.for_each(&mut |document| {
            let Content::Text(text) = document.content else { panic!("text expected") };
            texts.push((text, document.domain));
            Ok(())
        })?;
        Ok(texts)
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
    fn unreadable_inputs_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = texts(&folder.path().join("none.txt")).unwrap_err().to_string();
        assert!(missing.contains("none.txt") && missing.ends_with("check the path"), "{missing}");
        let binary = folder.path().join("a.txt");
        std::fs::write(&binary, b"ab\xff").unwrap();
        assert!(texts(&binary).unwrap_err().to_string().contains("is not UTF-8 at byte 2"));
        let picture = folder.path().join("a.png");
        std::fs::write(&picture, "x").unwrap();
        assert!(texts(&picture).unwrap_err().to_string().contains("use a .txt, .md or .jsonl file"));
    }
}
