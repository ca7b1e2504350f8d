//! A generated mixture of hidden domains whose entropy is known: the controlled corpus for routing
//! experiments.
//!
//! Each domain is a Markov chain over the symbols `1..vocab_size`: every symbol has `branching`
//! possible successors with weights drawn uniformly from the simplex (a flat Dirichlet). A document
//! draws its domain and its first symbol uniformly; before each further token it ends with
//! probability `p = 1 / (document_tokens - 1)`, which emits the end mark 0, so that its length is
//! `1 + Geometric(p)`, `document_tokens` on average.
//!
//! # The floor
//! [`SyntheticSource::entropy_floor_nats`] is the expected cross-entropy per token of a predictor
//! that knows the chains and the domain: `ln(vocab_size - 1)` for a first symbol,
//! `H(p) + (1 - p) H(successors of the symbol)` for every other token, averaged over the visits
//! that documents pay to symbols. It is exact for the process; a finite sample differs by sampling
//! noise. A predictor that must infer the domain from the context pays at most `ln(num_domains)`
//! nats more per document (the information that the document holds about its domain), which is
//! [`SyntheticSource::domain_uncertainty_nats`] per token. So the best reachable loss with
//! unbounded context lies between the floor and the floor plus that number.

use std::collections::HashSet;

use rand::rngs::ChaCha8Rng;
use rand::{Rng, RngExt, SeedableRng};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{Content, Document, Visit};
use crate::config::SyntheticConfig;
use crate::error::DatasetError;

/// Ends each document.
pub(crate) const END_MARK: u32 = 0;

/// Documents generated at a time: enough to occupy the cores, little enough to hold.
const BLOCK_DOCUMENTS: u64 = 4096;

/// RNG stream of the transition tables; documents use streams `0..num_documents`.
const TABLE_STREAM: u64 = u64::MAX;

/// Steps after which a chain that has not settled is taken for periodic.
const MAX_VISIT_STEPS: usize = 4096;

/// Weights are multiples of 2^-32, so that every platform draws the same symbols.
const WEIGHT_ONE: u64 = 1 << 32;

/// The chains, ready to generate.
pub(crate) struct SyntheticSource {
    config: SyntheticConfig,
    /// `[domain][symbol][branch]`: the successor, and the end of its interval in units of 2^-32.
    branches: Vec<(u32, u64)>,
}

impl SyntheticSource {
    /// The chains that `config` and its seed determine.
    ///
    /// # Panics
    /// If the configuration has not been validated.
    pub(crate) fn new(config: &SyntheticConfig) -> Self {
        let mut rng = rng(config.seed, TABLE_STREAM);
        let num_rows = config.num_domains * config.vocab_size;
        let mut branches = Vec::with_capacity(num_rows * config.branching);
        for _ in 0..num_rows {
            let successors = distinct_symbols(&mut rng, config.branching, config.vocab_size);
            // The gaps between sorted uniform points are a flat Dirichlet draw, without floating
            // point.
            let mut ends: Vec<u64> = (1..config.branching).map(|_| u64::from(rng.next_u32())).collect();
            ends.sort_unstable();
            ends.push(WEIGHT_ONE);
            branches.extend(successors.into_iter().zip(ends));
        }
        Self { config: config.clone(), branches }
    }

    pub(super) fn identify(&self, hasher: &mut Sha256) {
        hasher.update(format!("{:?}\n", self.config));
    }

    pub(super) fn domain_names(&self) -> Vec<String> {
        (0..self.config.num_domains).map(|domain| format!("domain {domain}")).collect()
    }

    pub(super) fn description(&self) -> String {
        let SyntheticConfig { num_documents, num_domains, .. } = self.config;
        format!("{num_documents} generated documents of {num_domains} hidden domain(s)")
    }

    pub(super) fn for_each(&self, visit: &mut Visit<'_>) -> Result<(), DatasetError> {
        let mut start = 0;
        while start < self.config.num_documents {
            let end = (start + BLOCK_DOCUMENTS).min(self.config.num_documents);
            let documents: Vec<Document> =
                (start..end).into_par_iter().map(|index| self.document(index)).collect();
            documents.into_iter().try_for_each(&mut *visit)?;
            start = end;
        }
        Ok(())
    }

    /// The `index`-th document: a pure function of the seed and the index.
    fn document(&self, index: u64) -> Document {
        let mut rng = rng(self.config.seed, index);
        let domain = rng.random_range(0..self.config.num_domains as u32);
        let mut symbol = rng.random_range(1..self.config.vocab_size as u32);
        let mut ids = vec![symbol];
        while u64::from(rng.next_u32()) >= self.end_weight() {
            let point = u64::from(rng.next_u32());
            let row = self.row(domain as usize, symbol as usize);
            symbol = row[row.partition_point(|(_, end)| *end <= point)].0;
            ids.push(symbol);
        }
        ids.push(END_MARK);
        Document { content: Content::Ids(ids), domain: domain as u16, name: format!("document {index}") }
    }

    fn row(&self, domain: usize, symbol: usize) -> &[(u32, u64)] {
        let start = (domain * self.config.vocab_size + symbol) * self.config.branching;
        &self.branches[start..start + self.config.branching]
    }

    /// Probability of the end mark after each symbol, in units of 2^-32.
    fn end_weight(&self) -> u64 {
        WEIGHT_ONE / (self.config.document_tokens as u64 - 1)
    }

    /// Expected cross-entropy per token, in nats, if chains and domain are known; see the module's
    /// documentation.
    pub(crate) fn entropy_floor_nats(&self) -> f64 {
        let end = self.end_weight() as f64 / WEIGHT_ONE as f64;
        let per_domain = |domain| {
            let visits = self.expected_visits(domain, end);
            let nats =
                |symbol| visits[symbol] * (binary_entropy(end) + (1.0 - end) * self.row_nats(domain, symbol));
            (1..self.config.vocab_size).map(nats).sum::<f64>()
        };
        let num_domains = self.config.num_domains;
        let later_nats = (0..num_domains).into_par_iter().map(per_domain).sum::<f64>() / num_domains as f64;
        let first_nats = ((self.config.vocab_size - 1) as f64).ln();
        (first_nats + later_nats) / (1.0 + 1.0 / end)
    }

    /// Upper bound of what not knowing the domain costs, in nats per token.
    pub(crate) fn domain_uncertainty_nats(&self) -> f64 {
        (self.config.num_domains as f64).ln() / self.config.document_tokens as f64
    }

    /// How often a document of `domain` visits each symbol: the solution `n` of
    /// `n = u + (1 - p) n T`.
    fn expected_visits(&self, domain: usize, end: f64) -> Vec<f64> {
        let vocab_size = self.config.vocab_size;
        let mut arriving = vec![1.0 / (vocab_size - 1) as f64; vocab_size];
        arriving[END_MARK as usize] = 0.0;
        let mut visits = arriving.clone();
        let mut mass: f64 = 1.0;
        for _ in 0..MAX_VISIT_STEPS {
            let next = self.step(domain, 1.0 - end, &arriving);
            let change: f64 =
                next.iter().zip(&arriving).map(|(new, old)| (new - old * (1.0 - end)).abs()).sum();
            visits.iter_mut().zip(&next).for_each(|(sum, new)| *sum += new);
            arriving = next;
            mass *= 1.0 - end;
            if change <= 1e-12 * mass || mass <= 1e-12 {
                break;
            }
        }
        // The distribution no longer moves, or circles (a periodic chain): the mean of the visits
        // so far stands for all that are left, a geometric series.
        let left = mass * (1.0 - end) / end;
        let is_settled =
            self.step(domain, 1.0, &arriving).iter().zip(&arriving).all(|(a, b)| (a - b).abs() < 1e-9);
        let shape = if is_settled { arriving } else { visits.clone() };
        let total: f64 = shape.iter().sum();
        if total > 0.0 {
            visits.iter_mut().zip(&shape).for_each(|(sum, share)| *sum += left * share / total);
        }
        visits
    }

    /// `survival * distribution * T`.
    fn step(&self, domain: usize, survival: f64, distribution: &[f64]) -> Vec<f64> {
        let mut next = vec![0.0; distribution.len()];
        for (symbol, mass) in distribution.iter().enumerate().skip(1) {
            for (successor, weight) in weights(self.row(domain, symbol)) {
                next[successor as usize] += survival * mass * weight;
            }
        }
        next
    }

    /// Entropy of the successors of `symbol`, in nats.
    fn row_nats(&self, domain: usize, symbol: usize) -> f64 {
        weights(self.row(domain, symbol))
            .filter(|(_, weight)| *weight > 0.0)
            .map(|(_, weight)| -weight * weight.ln())
            .sum()
    }
}

fn weights(row: &[(u32, u64)]) -> impl Iterator<Item = (u32, f64)> + '_ {
    let starts = std::iter::once(0).chain(row.iter().map(|(_, end)| *end));
    row.iter().zip(starts).map(|((symbol, end), start)| (*symbol, (end - start) as f64 / WEIGHT_ONE as f64))
}

fn binary_entropy(p: f64) -> f64 {
    let term = |p: f64| if p > 0.0 { -p * p.ln() } else { 0.0 };
    term(p) + term(1.0 - p)
}

fn rng(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

/// `count` different symbols out of `1..vocab_size` (Floyd's sampling).
fn distinct_symbols(rng: &mut impl Rng, count: usize, vocab_size: usize) -> Vec<u32> {
    let num_symbols = vocab_size as u32 - 1;
    let (mut chosen, mut taken) = (Vec::with_capacity(count), HashSet::with_capacity(count));
    for last in num_symbols - count as u32 + 1..=num_symbols {
        let candidate = rng.random_range(1..=last);
        let symbol = if taken.contains(&candidate) { last } else { candidate };
        taken.insert(symbol);
        chosen.push(symbol);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn config() -> SyntheticConfig {
        SyntheticConfig {
            num_domains: 3,
            vocab_size: 24,
            num_documents: 20_000,
            document_tokens: 12,
            branching: 3,
            seed: 7,
        }
    }

    fn documents(config: &SyntheticConfig) -> Vec<(u16, Vec<u32>)> {
        let mut documents = Vec::new();
        let mut visit = |document: Document| {
            let Content::Ids(ids) = document.content else { panic!("ids expected") };
            documents.push((document.domain, ids));
            Ok(())
        };
        SyntheticSource::new(config).for_each(&mut visit).unwrap();
        documents
    }

    /// The entropy measured from counted frequencies alone: no access to the tables.
    #[test]
    fn counted_frequencies_have_the_reported_entropy() {
        let config = config();
        let documents = documents(&config);
        let mut counts: HashMap<(u16, u32), HashMap<u32, f64>> = HashMap::new();
        let mut num_tokens = 0.0;
        for (domain, ids) in &documents {
            num_tokens += ids.len() as f64;
            for pair in ids.windows(2) {
                *counts.entry((*domain, pair[0])).or_default().entry(pair[1]).or_default() += 1.0;
            }
        }
        let mut nats = documents.len() as f64 * (config.vocab_size as f64 - 1.0).ln();
        for successors in counts.values() {
            let total: f64 = successors.values().sum();
            nats -= successors.values().map(|count| count * (count / total).ln()).sum::<f64>();
        }
        let empirical = nats / num_tokens;
        let floor = SyntheticSource::new(&config).entropy_floor_nats();
        // Standard error: per-token surprisal has a deviation of about 1 nat over 240,000 tokens,
        // correlated within the 20,000 documents; plus a plug-in bias of (3 * 23 contexts * 3) /
        // (2 * 240,000) = 0.0004.
        assert!((empirical - floor).abs() < 0.012, "{empirical} against {floor}");
    }

    #[test]
    fn documents_have_the_configured_mean_length_and_end_once() {
        let config = config();
        let documents = documents(&config);
        let mean = documents.iter().map(|(_, ids)| ids.len() as f64).sum::<f64>() / documents.len() as f64;
        // Geometric with mean 11: deviation 10.5, over sqrt(20,000) documents 0.074; four of them.
        assert!((mean - config.document_tokens as f64).abs() < 0.3, "{mean}");
        assert!(
            documents.iter().all(|(_, ids)| ids.iter().position(|id| *id == END_MARK) == Some(ids.len() - 1))
        );
    }

    #[test]
    fn a_document_depends_on_seed_and_index_only() {
        let all = documents(&config());
        let fewer = documents(&SyntheticConfig { num_documents: 50, ..config() });
        assert_eq!(all[..50], fewer[..]);
        assert_ne!(fewer, documents(&SyntheticConfig { num_documents: 50, seed: 8, ..config() }));
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(fewer, alone.install(|| documents(&SyntheticConfig { num_documents: 50, ..config() })));
    }

    #[test]
    fn one_successor_leaves_only_starts_and_ends_uncertain() {
        let config = SyntheticConfig { branching: 1, num_domains: 1, ..config() };
        let end = 1.0 / 11.0;
        let expected = (23.0_f64.ln() + 11.0 * binary_entropy(end)) / 12.0;
        let floor = SyntheticSource::new(&config).entropy_floor_nats();
        assert!((floor - expected).abs() < 1e-6, "{floor} against {expected}");
        assert_eq!(SyntheticSource::new(&config).domain_uncertainty_nats(), 0.0);
    }
}
