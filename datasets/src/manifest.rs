//! What a prepared corpus is: sizes, domains, provenance. Stored beside the shards as
//! `manifest.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use switchyard_ground::{durable, regular_file};

use crate::error::DatasetError;
use crate::split::Split;
use switchyard_ground::digest::hex;

/// Version of the layout of a prepared folder. It is part of the folder's name, so that versions do
/// not meet.
pub const FORMAT_VERSION: u32 = 3;

/// Far more than a manifest has.
const MAX_BYTES: u64 = 256 << 20;

/// Name of the manifest in a prepared folder; it is written last, so a folder that has one is
/// complete.
pub(crate) const MANIFEST_NAME: &str = "manifest.json";

/// Facts about a prepared corpus.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT_VERSION`] of the program that prepared it.
    pub format_version: u32,
    /// sha256, in hexadecimal, of all that determines the tokens: source content, tokenizer, split,
    /// rules.
    pub key: String,
    /// The source in words.
    pub source: String,
    /// The split rule in words.
    pub split: String,
    /// `bytes`, `vocabulary` or `ids`.
    pub tokenizer: String,
    /// sha256 of the tokenizer's file, in hexadecimal.
    pub tokenizer_hash: String,
    /// Number of ids that the model needs.
    pub vocab_size: usize,
    /// The id in front of each document; `None` unless one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begin_of_document: Option<u32>,
    /// The id after each document; `None` where documents are not marked, as in a single text.
    pub end_of_document: Option<u32>,
    /// Expected loss, in nats per token, of a predictor that knows how the data is generated and
    /// each document's domain; known for synthetic data only.
    pub entropy_floor_nats: Option<f64>,
    /// Nats per token that not knowing the domain costs at most: the best reachable loss lies
    /// between the floor and the floor plus this. Known for synthetic data only.
    pub domain_uncertainty_nats: Option<f64>,
    /// Names of the domains, by number; empty where no domains are known.
    pub domain_names: Vec<String>,
    /// The training split.
    pub train: SplitManifest,
    /// The validation split.
    pub validation: SplitManifest,
    /// The test split; `None` if the rule makes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<SplitManifest>,
    /// Documents that are there more than once.
    pub repeats: Repeats,
    /// What a person should know about the corpus; said each time it is used.
    pub notes: Vec<String>,
}

/// Documents that equal an earlier one, byte for byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Repeats {
    /// How many there are.
    pub documents: u64,
    /// Their length together: bytes of text, or number of ids.
    pub len: u64,
    /// Validation and test documents that are in the training split too; 0 for a split by hash,
    /// which keeps copies together.
    pub held_out_documents_in_train: u64,
}

/// A manifest as it is stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored<M> {
    manifest: M,
    /// sha256 of the manifest alone, written in the same way.
    sha256: String,
}

/// Facts about one split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct SplitManifest {
    /// Documents; a document that the tail split cuts counts in both. 0 where no borders are known.
    pub num_documents: u64,
    /// Bytes of text; 0 for sources made of ids.
    pub num_bytes: u64,
    /// Tokens, marks included.
    pub num_tokens: u64,
    /// Tokens of the largest document, marks included; 0 where no borders are known.
    pub largest_document_tokens: u64,
    /// Tokens that stand for text which the vocabulary cannot spell.
    pub unknown_tokens: u64,
    /// Bytes of text for which the vocabulary has no token at all, left out on request.
    pub lost_bytes: u64,
    /// Tokens of each domain, by number.
    pub tokens_per_domain: Vec<u64>,
    /// Text that the training split has too; `None` for the training split itself, and where no
    /// documents are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<Overlap>,
    /// The files, in order.
    pub shards: Vec<ShardManifest>,
}

/// Text of a held-out split that lies in passages which the training split has word for word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Overlap {
    /// Shortest passage that counts, in bytes of text or ids.
    pub passage_len: u64,
    /// Documents measured: all, or a sample of a large split.
    pub documents: u64,
    /// Their length, in bytes of text or ids.
    pub len: u64,
    /// The part of it that lies in such passages.
    pub shared_len: u64,
    /// Documents of which that is more than half.
    pub near_duplicates: u64,
    /// Documents that were left out for it, as `max_overlap` says; part of the numbers above.
    pub documents_left_out: u64,
}

impl Overlap {
    /// Share of the text that lies in such passages.
    pub fn share(&self) -> f64 {
        if self.len == 0 { 0.0 } else { self.shared_len as f64 / self.len as f64 }
    }
}

/// What is said of a tokenizer that several sources share, where a corpus has its [`Manifest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredTokenizer {
    /// sha256, in hexadecimal, of all that determines it.
    pub(crate) key: String,
    /// sha256 of its file, in hexadecimal.
    pub(crate) tokenizer_hash: String,
}

impl StoredTokenizer {
    pub(crate) fn write(&self, folder: &Path) -> Result<(), DatasetError> {
        let path = folder.join(MANIFEST_NAME);
        let written = serde_json::to_vec_pretty(self)
            .map_err(std::io::Error::from)
            .and_then(|bytes| durable::write_synced(&path, &bytes));
        written.map_err(DatasetError::io("write", &path))
    }

    /// What is said in `folder`.
    ///
    /// # Errors
    /// If it cannot be read, is damaged, or not of `key`.
    pub(crate) fn read(folder: &Path, key: &str) -> Result<Self, DatasetError> {
        let path = folder.join(MANIFEST_NAME);
        let json = regular_file::read(&path, MAX_BYTES).map_err(DatasetError::io("read", &path))?;
        let stored: Self = serde_json::from_slice(&json)
            .map_err(|error| DatasetError::damaged(&path, format!("is not of a tokenizer ({error})")))?;
        if stored.key != key {
            return Err(DatasetError::damaged(
                &path,
                format!("is of another tokenizer (key {})", stored.key),
            ));
        }
        Ok(stored)
    }
}

/// One file of tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardManifest {
    /// Name within the prepared folder.
    pub file: String,
    /// Tokens in it.
    pub num_tokens: u64,
    /// Its checksum, in hexadecimal.
    pub sha256: String,
}

impl SplitManifest {
    /// Mean bytes of text per token; `None` for sources made of ids, whose bytes are not known.
    pub fn bytes_per_token(&self) -> Option<f64> {
        let is_known = self.num_bytes > 0 && self.num_tokens > 0;
        is_known.then(|| self.num_bytes as f64 / self.num_tokens as f64)
    }

    /// The loss in bits per byte of text that a loss of `nats_per_token` on this split is; `None`
    /// for sources made of ids, whose bytes are not known. Compares between tokenizers, as a loss
    /// per token does not.
    pub fn bits_per_byte(&self, nats_per_token: f64) -> Option<f64> {
        let is_known = self.num_bytes > 0 && self.num_tokens > 0;
        is_known
            .then(|| nats_per_token * self.num_tokens as f64 / self.num_bytes as f64 / std::f64::consts::LN_2)
    }
}

impl Manifest {
    /// The held-out splits: validation, and test if there is one, by name.
    pub fn held_out(&self) -> impl Iterator<Item = (&'static str, &SplitManifest)> {
        [(Split::Validation, Some(&self.validation)), (Split::Test, self.test.as_ref())]
            .into_iter()
            .filter_map(|(split, facts)| Some((split.name(), facts?)))
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<(), DatasetError> {
        let path = folder.join(MANIFEST_NAME);
        let written = self.to_bytes().and_then(|bytes| durable::write_synced(&path, &bytes));
        written.map_err(DatasetError::io("write", &path))
    }

    /// The manifest in `folder`.
    ///
    /// # Errors
    /// If it cannot be read, is damaged, of another version, or not of `key`.
    pub(crate) fn read(folder: &Path, key: &str) -> Result<Self, DatasetError> {
        let path = folder.join(MANIFEST_NAME);
        let json = regular_file::read(&path, MAX_BYTES).map_err(DatasetError::io("read", &path))?;
        let Stored::<Self> { manifest, .. } = serde_json::from_slice(&json)
            .map_err(|error| DatasetError::damaged(&path, format!("is not a manifest ({error})")))?;
        if manifest.format_version != FORMAT_VERSION {
            let problem = format!(
                "has format version {}, this program reads {FORMAT_VERSION}",
                manifest.format_version
            );
            return Err(DatasetError::damaged(&path, problem));
        }
        // The same manifest is always written as the same bytes, its checksum among them.
        if manifest.to_bytes().map_err(DatasetError::io("read", &path))? != json {
            return Err(DatasetError::damaged(&path, "does not match its checksum"));
        }
        if manifest.key != key {
            return Err(DatasetError::damaged(&path, format!("is of other data (key {})", manifest.key)));
        }
        Ok(manifest)
    }

    fn to_bytes(&self) -> std::io::Result<Vec<u8>> {
        let sha256 = hex(&Sha256::digest(serde_json::to_vec(self)?));
        Ok(serde_json::to_vec_pretty(&Stored { manifest: self, sha256 })?)
    }
}
