//! Where documents come from: one file per source, each yielding its documents in an order that
//! never changes.

mod crates;
mod file_kind;
mod json_line;
mod parquet_rows;
mod records;
mod synthetic;
mod text;
mod unpack;
mod walk;

use sha2::{Digest, Sha256};

pub(crate) use crates::CratesSource;
pub(crate) use file_kind::is_text_name;
pub(crate) use synthetic::SyntheticSource;
pub(crate) use text::TextSource;

use crate::error::DatasetError;
use crate::progress::Progress;
use crate::remarks::Remarks;

/// One document, before tokenization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Document {
    pub(crate) content: Content,
    /// Index into [`Source::domain_names`].
    pub(crate) domain: u16,
    /// For messages and logs: path or number.
    pub(crate) name: String,
}

/// What a document holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Text(String),
    /// Ids of a source that is made of ids, its end mark included.
    Ids(Vec<u32>),
}

impl Document {
    /// Length in the unit that the tail split counts: bytes of text, or ids.
    pub(crate) fn len(&self) -> u64 {
        match &self.content {
            Content::Text(text) => text.len() as u64,
            Content::Ids(ids) => ids.len() as u64,
        }
    }

    /// sha256 of the content, which neither name nor domain enters.
    pub(crate) fn hash(&self) -> [u8; 32] {
        match &self.content {
            Content::Text(text) => Sha256::digest(text.as_bytes()).into(),
            Content::Ids(ids) => {
                let mut hasher = Sha256::new();
                ids.iter().for_each(|id| hasher.update(id.to_le_bytes()));
                hasher.finalize().into()
            }
        }
    }
}

/// What a source does with each document that it visits.
pub(crate) type Visit<'a> = dyn FnMut(Document) -> Result<(), DatasetError> + 'a;

/// A source that has been found, though not read yet.
pub(crate) enum Source {
    Crates(CratesSource),
    Text(TextSource),
    Synthetic(SyntheticSource),
}

impl Source {
    /// Feeds `hasher` with what determines the documents.
    pub(crate) fn identify(&self, hasher: &mut Sha256, progress: &Progress) -> Result<(), DatasetError> {
        match self {
            Self::Crates(source) => source.identify(hasher),
            Self::Text(source) => source.identify(hasher, progress)?,
            Self::Synthetic(source) => source.identify(hasher),
        }
        Ok(())
    }

    /// Calls `visit` with every document, always in the same order; stops at the first error.
    pub(crate) fn for_each(&self, visit: &mut Visit<'_>) -> Result<(), DatasetError> {
        self.for_each_with_remarks(&mut Remarks::default(), visit)
    }

    /// The same; what is passed over or odd in the documents is remarked.
    pub(crate) fn for_each_with_remarks(
        &self,
        remarks: &mut Remarks,
        visit: &mut Visit<'_>,
    ) -> Result<(), DatasetError> {
        match self {
            Self::Crates(source) => source.for_each(visit),
            Self::Text(source) => source.for_each(remarks, visit),
            Self::Synthetic(source) => source.for_each(visit),
        }
    }

    /// Names of the domains, by number.
    pub(crate) fn domain_names(&self) -> Vec<String> {
        match self {
            Self::Crates(source) => source.domain_names(),
            Self::Text(source) => source.domain_names(),
            Self::Synthetic(source) => source.domain_names(),
        }
    }

    /// The source in words, for the manifest and for messages.
    pub(crate) fn description(&self) -> String {
        match self {
            Self::Crates(source) => source.description(),
            Self::Text(source) => source.description(),
            Self::Synthetic(source) => source.description(),
        }
    }

    /// What was passed over on the way to the documents.
    pub(crate) fn remarks(&self) -> Remarks {
        match self {
            Self::Text(source) => source.remarks().clone(),
            Self::Crates(_) | Self::Synthetic(_) => Remarks::default(),
        }
    }

    /// What to change if the source turns out to hold nothing.
    pub(crate) fn advice_when_empty(&self) -> &'static str {
        match self {
            Self::Crates(_) => "raise `data.crates.max_bytes`",
            Self::Text(_) => {
                "name a file, or a folder with .txt, .md, .jsonl or .parquet files, or links to them"
            }
            Self::Synthetic(_) => "raise `data.synthetic.num_documents`",
        }
    }
}
