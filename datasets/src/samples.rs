//! Which window of which source each training sequence is: a pure function of (seed, position).

use std::sync::Arc;

use sha2::{Digest, Sha256};
use switchyard_ground::digest::split_mix;

use crate::batch::TokenBatch;
use crate::config::{Packing, SourceWeights};
use crate::dataset::DatasetSource;
use crate::error::DatasetError;
use crate::mixture::{Draw, MixtureSchedule};
use crate::packing::{PackedSequences, PackingFacts};
use crate::sampler::Sampler;
use crate::store::TokenStore;
use crate::streams::Streams;

/// How training sequences are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) seq_len: usize,
    pub(crate) mask_documents: bool,
    pub(crate) packing: Packing,
    pub(crate) num_streams: Option<usize>,
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
    order: Order,
}

/// What the i-th sequence of a source is.
#[derive(Debug, Clone)]
enum Order {
    /// A window of the concatenated documents.
    Windows(Sampler),
    /// A window of the stream that its row reads.
    Streams(Streams),
    /// One of the packed sequences, all of them once in each pass; `None` orders a single one.
    Packed(PackedSequences, Option<Sampler>),
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
        if let [SourceSamples { store, order: Order::Windows(sampler) }] = self.sources.as_slice() {
            let starts: Vec<usize> = positions.map(|position| sampler.sample(position)).collect();
            return TokenBatch::read(store, &starts, self.cut.seq_len, self.cut.mask_documents);
        }
        if let [SourceSamples { store, order: Order::Streams(streams) }] = self.sources.as_slice() {
            return self.read_streams(store, streams, positions);
        }
        let row = |position: u64| {
            let Draw { source, index } = self.schedule.draw(position);
            let batch = self.sources[source].read(index, self.cut)?;
            Ok(TokenBatch { source_ids_b: vec![source as u16], ..batch })
        };
        let rows = positions.map(row).collect::<Result<Vec<_>, DatasetError>>()?;
        TokenBatch::stacked(rows).ok_or(DatasetError::Zero { name: "sequences_per_batch" })
    }

    /// The windows at `positions`, which are of one step.
    fn read_streams(
        &self,
        store: &TokenStore,
        streams: &Streams,
        positions: std::ops::Range<u64>,
    ) -> Result<TokenBatch, DatasetError> {
        let follows = streams.window(positions.start).follows;
        let starts: Vec<usize> = positions.map(|position| streams.window(position).start).collect();
        let batch = TokenBatch::read(store, &starts, self.cut.seq_len, self.cut.mask_documents)?;
        Ok(if follows { batch.following(store, &starts) } else { batch })
    }

    /// What packing makes of each source; `None` where documents are concatenated.
    pub(crate) fn packing(&self) -> Vec<Option<PackingFacts>> {
        let facts = |source: &SourceSamples| match &source.order {
            Order::Windows(_) | Order::Streams(_) => None,
            Order::Packed(packed, _) => Some(packed.facts()),
        };
        self.sources.iter().map(facts).collect()
    }

    /// How many sequences of each source come before `position`.
    pub(crate) fn drawn_before(&self, position: u64) -> Vec<u64> {
        self.schedule.drawn_before(position)
    }
}

impl SourceSamples {
    fn new(store: Arc<TokenStore>, cut: Cut, seed: u64) -> Result<Self, DatasetError> {
        store.require_sequence(cut.seq_len)?;
        let order = match (cut.packing, cut.num_streams) {
            (Packing::Concatenate, Some(num_streams)) => {
                Order::Streams(Streams::new(store.len(), cut.seq_len, num_streams, seed)?)
            }
            (Packing::Concatenate, None) => Order::Windows(Sampler::new(store.len(), cut.seq_len, seed)?),
            (Packing::BestFit, _) => {
                let packed = PackedSequences::new(&store, cut.seq_len)?;
                let num_sequences = packed.num_sequences() as usize;
                // Windows of one sequence: a pass is a permutation of all.
                let sampler =
                    (num_sequences > 1).then(|| Sampler::new(num_sequences, 1, seed)).transpose()?;
                Order::Packed(packed, sampler)
            }
        };
        Ok(Self { store, order })
    }

    /// The sequence with this index as a batch of one row.
    fn read(&self, index: u64, cut: Cut) -> Result<TokenBatch, DatasetError> {
        match &self.order {
            Order::Windows(sampler) => {
                TokenBatch::read(&self.store, &[sampler.sample(index)], cut.seq_len, cut.mask_documents)
            }
            Order::Streams(streams) => {
                let start = streams.window(index).start;
                TokenBatch::read(&self.store, &[start], cut.seq_len, cut.mask_documents)
            }
            Order::Packed(packed, sampler) => {
                let number = sampler.as_ref().map_or(0, |sampler| sampler.sample(index) as u64);
                TokenBatch::packed(&self.store, &packed.spans(&self.store, number), cut.seq_len)
            }
        }
    }
}

/// The seed of the order within the source of this name: whatever other sources there are, it stays.
fn seed_of(name: &str, seed: u64) -> u64 {
    let hash = Sha256::digest(name.as_bytes());
    let front = hash[..8].iter().fold(0_u64, |front, byte| front << 8 | u64::from(*byte));
    split_mix(split_mix(seed) ^ front)
}
