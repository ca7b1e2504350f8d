//! `document_losses.jsonl`: the last model's loss on each held-out document.
//!
//! A loss over a split is a mean over its documents, and says as much about other text as they are
//! many and alike.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use switchyard_ground::regular_file;

use super::MetricsError;

/// Far more than the documents of any held-out split take.
const MAX_BYTES: u64 = 4 << 30;

/// What a model's text costs in one document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DocumentLoss {
    /// Its number within the split, from 0.
    pub document: usize,
    /// Number of its domain; 0 where no domains are known.
    pub domain: u16,
    /// Its tokens that were targets.
    pub num_tokens: u64,
    /// Cross-entropy of these tokens, their sum in nats.
    pub nats: f64,
}

/// The documents of one split.
#[derive(Debug, Clone, PartialEq)]
pub struct SplitLosses {
    /// `validation` or `test`.
    pub split: String,
    /// Its documents, in order.
    pub documents: Vec<DocumentLoss>,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    split: String,
    #[serde(flatten)]
    loss: DocumentLoss,
}

/// The file's content.
pub(crate) fn document_loss_lines(splits: &[SplitLosses]) -> String {
    let mut text = String::new();
    for SplitLosses { split, documents } in splits {
        for loss in documents {
            let line = Line { split: split.clone(), loss: loss.clone() };
            // Plain numbers and a name: there is nothing that JSON could not hold.
            text += &serde_json::to_string(&line).unwrap_or_default();
            text.push('\n');
        }
    }
    text
}

/// The losses in the file at `path`, by split; none if there is no such file, as of data without
/// documents and of runs of earlier versions.
///
/// # Errors
/// If it cannot be read, or a line is no record.
pub fn read_document_losses(path: &Path) -> Result<Vec<SplitLosses>, MetricsError> {
    let text = match regular_file::read_to_string(path, MAX_BYTES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(MetricsError::io("read", path))?,
    };
    let mut splits: Vec<SplitLosses> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let Line { split, loss } = serde_json::from_str(line).map_err(|error| MetricsError::Malformed {
            path: path.to_path_buf(),
            line_number: index + 1,
            reason: error.to_string(),
        })?;
        match splits.last_mut().filter(|last| last.split == split) {
            Some(last) => last.documents.push(loss),
            None => splits.push(SplitLosses { split, documents: vec![loss] }),
        }
    }
    Ok(splits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_come_back_from_the_file_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("document_losses.jsonl");
        assert_eq!(read_document_losses(&path).unwrap(), []);
        let loss = |document, nats| DocumentLoss { document, domain: 3, num_tokens: 7, nats };
        let splits = ["validation", "test"].map(|split| SplitLosses {
            split: split.to_owned(),
            documents: vec![loss(0, 0.1 + 0.2), loss(1, 1e-300)],
        });
        std::fs::write(&path, document_loss_lines(&splits)).unwrap();
        assert_eq!(read_document_losses(&path).unwrap(), splits);
        std::fs::write(&path, "{}\n").unwrap();
        assert!(read_document_losses(&path).unwrap_err().to_string().contains("line 1"));
    }
}
