//! A corpus in numbers: what `switchyard data stats` prints.

use std::cmp::Reverse;

use serde::Serialize;

use crate::dataset::Dataset;
use crate::error::DatasetError;
use crate::manifest::{Overlap, Repeats, SplitManifest};
use crate::store::TokenStore;

/// Tokens and domains listed at most.
const TOP: usize = 20;
const BLOCK_TOKENS: usize = 1 << 16;

/// Sizes, entropy and the most frequent tokens of a corpus.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DatasetStatistics {
    /// The source in words.
    pub source: String,
    /// `bytes`, `vocabulary` or `ids`.
    pub tokenizer: String,
    /// Number of ids.
    pub vocab_size: usize,
    /// Ids that the training split uses.
    pub num_used_ids: usize,
    /// Entropy of the training split's tokens taken alone, in nats: the loss of a model that has
    /// learned their frequencies and nothing else.
    pub unigram_entropy_nats: f64,
    /// Cross-entropy of the validation split under those frequencies with one added to each count,
    /// in nats.
    pub validation_unigram_cross_entropy_nats: f64,
    /// Best expected loss with the domain known, where it is known.
    pub entropy_floor_nats: Option<f64>,
    /// The training split.
    pub train: SplitStatistics,
    /// The validation split.
    pub validation: SplitStatistics,
    /// The test split; `None` without one.
    pub test: Option<SplitStatistics>,
    /// Documents that equal an earlier one, byte for byte.
    pub repeats: Repeats,
    /// What a person should know about the corpus.
    pub notes: Vec<String>,
    /// The largest domains of the training split.
    pub top_domains: Vec<DomainStatistics>,
    /// The most frequent tokens of the training split.
    pub top_tokens: Vec<TokenStatistics>,
}

/// Sizes of one split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SplitStatistics {
    /// Documents; 0 where no borders are known.
    pub num_documents: u64,
    /// Bytes of text; 0 for sources made of ids.
    pub num_bytes: u64,
    /// Tokens.
    pub num_tokens: u64,
    /// Mean bytes of text per token; `None` for sources made of ids.
    pub bytes_per_token: Option<f64>,
    /// Tokens of the largest document; 0 where no borders are known.
    pub largest_document_tokens: u64,
    /// Tokens that stand for text which the vocabulary cannot spell.
    pub unknown_tokens: u64,
    /// Text that the training split has too; `None` for that split itself.
    pub overlap: Option<Overlap>,
}

/// One domain's share.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DomainStatistics {
    /// Name of the domain.
    pub name: String,
    /// Its tokens in the training split.
    pub num_tokens: u64,
    /// Their share of the training split.
    pub share: f64,
}

/// One token's share.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenStatistics {
    /// The id.
    pub id: u32,
    /// What it decodes to.
    pub text: String,
    /// Occurrences in the training split.
    pub count: u64,
    /// Their share of the training split.
    pub share: f64,
}

impl DatasetStatistics {
    /// The numbers of `dataset`; reads all its tokens.
    ///
    /// # Errors
    /// If tokens cannot be read or decoded.
    pub fn compute(dataset: &Dataset) -> Result<Self, DatasetError> {
        let manifest = &dataset.manifest;
        let train_counts = count_ids(&dataset.train, manifest.vocab_size)?;
        let validation_counts = count_ids(&dataset.validation, manifest.vocab_size)?;
        Ok(Self {
            source: manifest.source.clone(),
            tokenizer: manifest.tokenizer.clone(),
            vocab_size: manifest.vocab_size,
            num_used_ids: train_counts.iter().filter(|count| **count > 0).count(),
            unigram_entropy_nats: cross_entropy_nats(&train_counts, &train_counts, 0),
            validation_unigram_cross_entropy_nats: cross_entropy_nats(&validation_counts, &train_counts, 1),
            entropy_floor_nats: manifest.entropy_floor_nats,
            train: SplitStatistics::of(&manifest.train),
            validation: SplitStatistics::of(&manifest.validation),
            test: manifest.test.as_ref().map(SplitStatistics::of),
            repeats: manifest.repeats,
            notes: manifest.notes.clone(),
            top_domains: top_domains(&manifest.train, &manifest.domain_names),
            top_tokens: top_tokens(dataset, &train_counts)?,
        })
    }
}

impl SplitStatistics {
    fn of(split: &SplitManifest) -> Self {
        Self {
            num_documents: split.num_documents,
            num_bytes: split.num_bytes,
            num_tokens: split.num_tokens,
            bytes_per_token: split.bytes_per_token(),
            largest_document_tokens: split.largest_document_tokens,
            unknown_tokens: split.unknown_tokens,
            overlap: split.overlap,
        }
    }
}

fn count_ids(store: &TokenStore, vocab_size: usize) -> Result<Vec<u64>, DatasetError> {
    let mut counts = vec![0; vocab_size];
    let mut block = vec![0; BLOCK_TOKENS];
    for start in (0..store.len()).step_by(BLOCK_TOKENS) {
        let ids = &mut block[..BLOCK_TOKENS.min(store.len() - start)];
        store.read(start, ids)?;
        ids.iter().for_each(|id| counts[*id as usize] += 1);
    }
    Ok(counts)
}

/// Mean of `-ln q(id)` over `counts`, where `q` is `model` with `smoothing` added to each count.
fn cross_entropy_nats(counts: &[u64], model: &[u64], smoothing: u64) -> f64 {
    let total: u64 = counts.iter().sum();
    let model_total = (model.iter().sum::<u64>() + smoothing * model.len() as u64) as f64;
    let nats = counts
        .iter()
        .zip(model)
        .filter(|(count, _)| **count > 0)
        .map(|(count, seen)| *count as f64 * (model_total / (seen + smoothing) as f64).ln());
    nats.sum::<f64>() / total as f64
}

fn top_domains(train: &SplitManifest, names: &[String]) -> Vec<DomainStatistics> {
    let mut domains: Vec<DomainStatistics> = names
        .iter()
        .zip(&train.tokens_per_domain)
        .map(|(name, num_tokens)| DomainStatistics {
            name: name.clone(),
            num_tokens: *num_tokens,
            share: *num_tokens as f64 / train.num_tokens as f64,
        })
        .collect();
    domains.sort_by_key(|domain| Reverse(domain.num_tokens));
    domains.truncate(TOP);
    domains
}

fn top_tokens(dataset: &Dataset, counts: &[u64]) -> Result<Vec<TokenStatistics>, DatasetError> {
    let total: u64 = counts.iter().sum();
    let mut ids: Vec<u32> = (0..counts.len() as u32).filter(|id| counts[*id as usize] > 0).collect();
    ids.sort_by_key(|id| (Reverse(counts[*id as usize]), *id));
    ids.truncate(TOP);
    let statistics = |id: u32| {
        let count = counts[id as usize];
        let text = dataset.tokenizer.decode(&[id])?;
        Ok(TokenStatistics { id, text, count, share: count as f64 / total as f64 })
    };
    ids.into_iter().map(statistics).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::counting_store;

    #[test]
    fn counts_and_entropy_are_those_of_the_definition() {
        let counts = count_ids(&counting_store(&[&[3, 2]]), 8).unwrap();
        assert_eq!(counts, [1, 1, 1, 1, 1, 0, 0, 0]);
        assert!((cross_entropy_nats(&counts, &counts, 0) - 5.0_f64.ln()).abs() < 1e-12);
        // Two of eight smoothed counts of 2 out of 13, and the unseen id at 1 out of 13.
        let expected = (2.0 * (13.0_f64 / 2.0).ln() + 13.0_f64.ln()) / 3.0;
        assert!((cross_entropy_nats(&[1, 1, 0, 0, 0, 0, 0, 1], &counts, 1) - expected).abs() < 1e-12);
    }
}
