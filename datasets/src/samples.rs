//! Which window of which source each training sequence is: a pure function of (seed, position).

use std::sync::Arc;

use sha2::{Digest, Sha256};
use switchyard_ground::digest::split_mix;

use crate::batch::TokenBatch;
use crate::config::SourceWeights;
use crate::dataset::DatasetSource;
use crate::error::DatasetError;
use crate::mixture::{Draw, MixtureSchedule};
use crate::sampler::Sampler;
use crate::store::TokenStore;

/// How training sequences are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) seq_len: usize,
    pub(crate) mask_documents: bool,
}

/// The training sequences of a run, by position.
#[derive(Debug, Clone)]
pub(crate) struct Samples {
    cut: Cut,
    schedule: MixtureSchedule,
    sources: Vec<SourceSamples>,
}

#[derive(Debug, Clone)]
struct SourceSamples {
    store: Arc<TokenStore>,
    sampler: Sampler,
}

impl Samples {
    /// The sequences of a single source.
    ///
    /// # Errors
    /// If the store is too short for one sequence, or a size is 0.
    pub(crate) fn of_store(store: Arc<TokenStore>, cut: Cut, seed: u64) -> Result<Self, DatasetError> {
        let schedule = MixtureSchedule::new(&[SourceWeights::constant(1.0)], 1, seed);
        Ok(Self { cut, schedule, sources: vec![SourceSamples::new(store, cut, seed)?] })
    }

    /// The sequences of several sources in the shares of their weights, which change at steps of
    /// `sequences_per_step`. A single source has the sequences of [`Samples::of_store`].
    ///
    /// # Errors
    /// If a source that has a weight is too short for one sequence, or a size is 0.
    pub(crate) fn of_sources(
        sources: &[DatasetSource],
        cut: Cut,
        sequences_per_step: usize,
        seed: u64,
    ) -> Result<Self, DatasetError> {
        if let [source] = sources {
            return Self::of_store(source.train.clone(), cut, seed);
        }
        if sequences_per_step == 0 {
            return Err(DatasetError::Zero { name: "sequences_per_step" });
        }
        let weights: Vec<SourceWeights> = sources.iter().map(|source| source.weights.clone()).collect();
        let of_source = |source: &DatasetSource| {
            let samples = SourceSamples::new(source.train.clone(), cut, seed_of(&source.name, seed));
            samples.map_err(|error| error.in_source(&source.name))
        };
        let schedule = MixtureSchedule::new(&weights, sequences_per_step, seed);
        Ok(Self { cut, schedule, sources: sources.iter().map(of_source).collect::<Result<_, _>>()? })
    }

    /// The sequences at `positions`, one below the other.
    ///
    /// # Errors
    /// If their tokens cannot be read.
    pub(crate) fn read(&self, positions: std::ops::Range<u64>) -> Result<TokenBatch, DatasetError> {
        let Cut { seq_len, mask_documents } = self.cut;
        if let [source] = self.sources.as_slice() {
            let starts: Vec<usize> = positions.map(|position| source.sampler.sample(position)).collect();
            return TokenBatch::read(&source.store, &starts, seq_len, mask_documents);
        }
        let row = |position: u64| {
            let Draw { source, index } = self.schedule.draw(position);
            let SourceSamples { store, sampler } = &self.sources[source];
            let batch = TokenBatch::read(store, &[sampler.sample(index)], seq_len, mask_documents)?;
            Ok(TokenBatch { source_ids_b: vec![source as u16], ..batch })
        };
        let rows = positions.map(row).collect::<Result<Vec<_>, DatasetError>>()?;
        TokenBatch::stacked(rows).ok_or(DatasetError::Zero { name: "sequences_per_batch" })
    }

    /// How many sequences of each source come before `position`.
    pub(crate) fn drawn_before(&self, position: u64) -> Vec<u64> {
        self.schedule.drawn_before(position)
    }
}

impl SourceSamples {
    fn new(store: Arc<TokenStore>, cut: Cut, seed: u64) -> Result<Self, DatasetError> {
        store.require_sequence(cut.seq_len)?;
        let sampler = Sampler::new(store.len(), cut.seq_len, seed)?;
        Ok(Self { store, sampler })
    }
}

/// The seed of the order within the source of this name: whatever other sources there are, it stays.
fn seed_of(name: &str, seed: u64) -> u64 {
    let hash = Sha256::digest(name.as_bytes());
    let front = hash[..8].iter().fold(0_u64, |front, byte| front << 8 | u64::from(*byte));
    split_mix(split_mix(seed) ^ front)
}
