//! What kind of text a file holds, by its name and its first bytes.

use std::ffi::OsStr;
use std::path::Path;

/// How a file divides into documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Format {
    /// The file is the document, or several with a separator between them.
    Plain,
    /// Each line is one document.
    JsonLines,
    /// Each row is one document.
    Parquet,
}

/// How its bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Whether a file of this name, whatever its folder, is taken for text.
pub(crate) fn is_text_name(name: &str) -> bool {
    Path::new(name).file_name().and_then(classify).is_some()
}

/// How the bytes of a file with this name are read; `None` if it is not taken for text.
pub(super) fn classify(name: &OsStr) -> Option<(Format, Compression)> {
    let name = name.as_encoded_bytes().to_ascii_lowercase();
    let (stem, compression) = if let Some(stem) = name.strip_suffix(b".gz") {
        (stem, Compression::Gzip)
    } else if let Some(stem) = name.strip_suffix(b".zst") {
        (stem, Compression::Zstd)
    } else {
        (name.as_slice(), Compression::None)
    };
    let has_type = |suffix: &str| stem.ends_with(suffix.as_bytes());
    if has_type(".txt") || has_type(".md") {
        Some((Format::Plain, compression))
    } else if has_type(".jsonl") {
        Some((Format::JsonLines, compression))
    } else if has_type(".parquet") && compression == Compression::None {
        // It is packed inside, page by page.
        Some((Format::Parquet, compression))
    } else {
        None
    }
}

/// What text that is not UTF-8 looks like.
pub(super) fn guess_encoding(bytes: &[u8]) -> &'static str {
    match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => " (it begins like UTF-16)",
        _ if bytes.contains(&0) => " (it has zeros in it, so it may be no text at all)",
        _ => "",
    }
}
