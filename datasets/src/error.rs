//! Everything about data that a user can get wrong or run into.

use std::io;
use std::path::{Path, PathBuf};

use switchyard_ground::hub_path::HubPathError;
use switchyard_ground::key_error::KeyError;
use thiserror::Error;

/// What stopped the preparation or the reading of data: where, the offending value, what to do
/// next.
#[derive(Debug, Error)]
pub enum DatasetError {
    /// A value in `[data]` that cannot be meant.
    #[error(transparent)]
    Config(Box<KeyError>),

    /// The operating system refused.
    #[error("cannot {action} `{}`: {source}{}", path.display(), hint(source))]
    Io {
        /// What was attempted, such as `read`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    /// A name on the Hugging Face hub is no file here.
    #[error(transparent)]
    OnHub(#[from] HubPathError),

    /// No folder for prepared corpora could be derived.
    #[error("no cache folder: set `data.cache_dir`, or one of SWITCHYARD_CACHE_DIR, XDG_CACHE_HOME and HOME")]
    NoCacheFolder,

    /// Archives of the default corpus are not where cargo keeps them.
    #[error(
        "{num_missing} of {num_wanted} crate archives of the default corpus are not in `{}`: {names}. \
         cargo leaves them there when it builds Switchyard; a vendored build or a binary installed from elsewhere has \
         none. Run `cargo fetch` in Switchyard's source folder (or set CARGO_HOME), or use another source: [data.text] \
         for local files, [data.synthetic] for a generated corpus",
        cache.display()
    )]
    MissingArchives {
        /// cargo's archive cache, in which they were looked for.
        cache: PathBuf,
        /// Archives that are missing.
        num_missing: usize,
        /// Archives that the corpus is made of.
        num_wanted: usize,
        /// The first few of the missing.
        names: String,
    },

    /// An archive differs from what the lockfile pins.
    #[error(
        "`{}` has sha256 {actual}, but Cargo.lock pins {expected}: delete the file and run `cargo fetch`",
        path.display()
    )]
    ArchiveChecksum {
        /// The archive.
        path: PathBuf,
        /// What the lockfile says.
        expected: String,
        /// What the file has.
        actual: String,
    },

    /// The lockfile compiled into the program does not list what the corpus needs.
    #[error("the Cargo.lock compiled into this program {problem}: rebuild from an unmodified checkout")]
    Lockfile {
        /// What is wrong with it.
        problem: String,
    },

    /// A path to read text from has a type that is not known.
    #[error(
        "`{}` is not text that Switchyard reads: use a .txt, .md, .jsonl or .parquet file, the first three also .gz or \
         .zst, or a folder of them",
        path.display()
    )]
    UnknownFileType {
        /// The file.
        path: PathBuf,
    },

    /// Text that is not UTF-8.
    #[error("`{}` is not UTF-8 at byte {offset}{guess}: convert it, or remove it from the folder", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// First offending byte, counted in the uncompressed text.
        offset: u64,
        /// What the bytes look like, if that is known.
        guess: &'static str,
    },

    /// A compressed file that cannot be unpacked.
    #[error("`{}` cannot be decompressed: {problem}", path.display())]
    Compressed {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },

    /// One document is larger than any that is read.
    #[error(
        "`{}`, line {line}: one document of more than {max_bytes} bytes. If it is meant, raise `data.text.max_document_bytes`; \
         several documents in one file are told apart by `data.text.separator`, or as lines of a .jsonl file",
        path.display()
    )]
    DocumentTooLarge {
        /// The file.
        path: PathBuf,
        /// Line on which the document begins, from 1.
        line: u64,
        /// The limit.
        max_bytes: u64,
    },

    /// One document does not fit into the memory.
    #[error(
        "`{}`, line {line}: no memory is left after {num_bytes} bytes of one document. Several documents in one file are told \
         apart by `data.text.separator`, or as lines of a .jsonl file",
        path.display()
    )]
    DocumentBeyondMemory {
        /// The file.
        path: PathBuf,
        /// Line on which the document begins, from 1.
        line: u64,
        /// What did fit.
        num_bytes: u64,
    },

    /// Text for which a vocabulary has no id.
    #[error(
        "{}{problem}. Use a tokenizer that spells every text (bytes, `data.tokenizer.bpe`, or one with a byte fallback), remove the \
         text, or leave such text out with `data.tokenizer.file.on_unknown_text = \"skip\"`",
        document.as_ref().map(|name| format!("`{name}`: ")).unwrap_or_default()
    )]
    Unspellable {
        /// The document, where it is known.
        document: Option<String>,
        /// The character and its surroundings.
        problem: String,
    },

    /// A line of a `.jsonl` file without usable text.
    #[error("`{}`, line {line}: {problem}", path.display())]
    JsonLine {
        /// The file.
        path: PathBuf,
        /// Line number from 1.
        line: u64,
        /// What is wrong and what is expected.
        problem: String,
    },

    /// A Parquet file that cannot be read, or has no usable text where it is looked for.
    #[error("`{}` {problem}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },

    /// The source has no text at all.
    #[error("{description} holds no text{}: {advice}", skipped.iter().map(|note| format!("; {note}")).collect::<String>())]
    NoDocuments {
        /// The source, in words.
        description: String,
        /// What was passed over, and why.
        skipped: Vec<String>,
        /// What to change.
        advice: &'static str,
    },

    /// A split without a single token.
    #[error(
        "the {split} split is empty: {num_documents} document(s) split by {rule}. {}", way_out(*left_out)
    )]
    EmptySplit {
        /// `train`, `validation` or `test`.
        split: &'static str,
        /// Held-out documents that `max_overlap` left out.
        left_out: usize,
        /// Documents in both splits together.
        num_documents: u64,
        /// The rule, in words.
        rule: String,
    },

    /// A tokenizer that cannot be read, trained or applied.
    #[error("tokenizer{}: {problem}", in_file(path))]
    Tokenizer {
        /// The `tokenizer.json`, if one is involved.
        path: Option<PathBuf>,
        /// What is wrong and what to do.
        problem: String,
    },

    /// A prepared file that is damaged, foreign or of another version.
    #[error("`{}` {problem}: delete the folder `{}`, it will be prepared again", path.display(), parent(path).display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },

    /// A file of token ids that cannot be used as it is.
    #[error("`{}` {problem}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },

    /// Fewer tokens than one window needs.
    #[error(
        "the {split} split has {num_tokens} tokens, but one sequence of {seq_len} needs {}: use more data, {}, or a smaller \
         `train.seq_len`",
        seq_len + 1,
        if *split == "train" { "a smaller validation split" } else { "a larger validation split" }
    )]
    TooShort {
        /// `train` or `validation`.
        split: &'static str,
        /// Tokens there are.
        num_tokens: usize,
        /// Inputs of a sequence.
        seq_len: usize,
    },

    /// Not one window for each stream.
    #[error(
        "the train split has {num_tokens} tokens, but {num_streams} streams of {seq_len} need {}: use more text, a smaller \
         `train.batch_tokens` or a shorter `train.seq_len`, or set `train.carry_state` to false",
        num_streams.saturating_mul(*seq_len).max(seq_len + 1)
    )]
    TooShortForStreams {
        /// Tokens there are.
        num_tokens: usize,
        /// Inputs of a window.
        seq_len: usize,
        /// Rows of a step.
        num_streams: usize,
    },

    /// Windows that leave tokens out, or do not move.
    #[error("the stride is {stride}, and windows have {seq_len} tokens: use 1..={seq_len}")]
    Stride {
        /// Tokens from the start of a window to that of the next.
        stride: usize,
        /// Inputs of a window.
        seq_len: usize,
    },

    /// No document that a sequence could be packed from.
    #[error(
        "none of the {num_documents} documents of the train split has two tokens: use other data, or leave out \
         `data.packing`"
    )]
    NothingToPack {
        /// Documents there are.
        num_documents: usize,
    },

    /// A size of zero, where at least one is needed.
    #[error("`{name}` is 0: use at least 1")]
    Zero {
        /// The size.
        name: &'static str,
    },

    /// What stopped one of several sources.
    #[error("source `{name}`: {error}")]
    OfSource {
        /// Its name.
        name: String,
        /// What stopped it.
        error: Box<Self>,
    },

    /// The stop flag was set.
    #[error(
        "interrupted: nothing half-made was kept, run the command again: it goes on after the shards that were finished"
    )]
    Interrupted,

    /// The prefetch thread ended without handing out the next batch.
    #[error("the thread that prefetches batches stopped unexpectedly: its panic message is above")]
    LoaderStopped,
}

/// What to do about an empty split.
fn way_out(left_out: usize) -> String {
    if left_out > 0 {
        return format!(
            "{left_out} held-out document(s) were left out because the train split has too much of them: raise `max_overlap`, or \
             hold out more"
        );
    }
    "For few or long documents use the end of the text: [data.split.tail] with `validation_fraction = 0.1`; otherwise \
     change the fraction"
        .to_owned()
}

impl DatasetError {
    /// Whether the user can mend it by changing the configuration, the arguments or the input.
    pub fn is_users_mistake(&self) -> bool {
        match self {
            Self::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::PermissionDenied
                    | io::ErrorKind::IsADirectory
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::InvalidData
                    // No regular file.
                    | io::ErrorKind::InvalidInput
                    | io::ErrorKind::InvalidFilename
                    | io::ErrorKind::FileTooLarge
                    | io::ErrorKind::AlreadyExists
                    | io::ErrorKind::ReadOnlyFilesystem
                    | io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
                    | io::ErrorKind::Unsupported
            ),
            Self::OfSource { error, .. } => error.is_users_mistake(),
            Self::Interrupted | Self::LoaderStopped => false,
            _ => true,
        }
    }

    /// The error of a key of [`DataConfig`](crate::DataConfig).
    pub(crate) fn of_key(error: KeyError) -> Self {
        Self::Config(Box::new(error.under("data")))
    }

    /// The same, of the source with this name; an interruption is of none.
    pub(crate) fn in_source(self, name: &str) -> Self {
        match self {
            Self::Interrupted => self,
            error => Self::OfSource { name: name.to_owned(), error: Box::new(error) },
        }
    }

    /// A closure for `map_err` that attaches what was attempted, and where.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// [`DatasetError::Damaged`] for `path`.
    pub(crate) fn damaged(path: &Path, problem: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_path_buf(), problem: problem.into() }
    }
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ": free some space, or point `data.cache_dir` at another disk"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            ": change the permissions, or choose another path (prepared data goes to `data.cache_dir`)"
        }
        io::ErrorKind::NotFound => ": check the path",
        io::ErrorKind::InvalidFilename => {
            ": the name is too long or has a character that is not allowed, choose another"
        }
        _ => "",
    }
}

fn in_file(path: &Option<PathBuf>) -> String {
    path.as_ref().map(|path| format!(" `{}`", path.display())).unwrap_or_default()
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}
