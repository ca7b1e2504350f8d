//! Training batches, read ahead by a thread of their own.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use crate::batch::TokenBatch;
use crate::config::Packing;
use crate::dataset::DatasetSource;
use crate::error::DatasetError;
use crate::packing::PackingFacts;
use crate::samples::{Cut, Samples};
use crate::store::TokenStore;

/// Batches read ahead: enough to hide a slow read behind a step.
const PREFETCHED_BATCHES: usize = 4;

/// How a [`Loader`] cuts and orders the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoaderConfig {
    /// Inputs per sequence.
    pub seq_len: usize,
    /// Sequences per batch.
    pub sequences_per_batch: usize,
    /// Seed of the order; see [`Sampler`](crate::sampler::Sampler).
    pub seed: u64,
    /// Fill [`TokenBatch::segment_ids`]; packed sequences always have them.
    pub mask_documents: bool,
    /// How sequences are made of documents; [`Packing::BestFit`] needs their borders.
    pub packing: Packing,
    /// Read a single source as so many streams, one for each sequence of a step, in which windows
    /// follow one another (see [`Streams`](crate::Streams)); `None` shuffles windows.
    pub num_streams: Option<usize>,
}

impl LoaderConfig {
    fn cut(&self) -> Cut {
        let Self { seq_len, mask_documents, packing, num_streams, .. } = *self;
        Cut { seq_len, mask_documents, packing, num_streams }
    }
}

/// An endless stream of training batches with a position that can be stored and resumed.
///
/// Batch `j` holds the samples `cursor..cursor + sequences_per_batch` in order, whatever the
/// prefetch thread does.
#[derive(Debug)]
pub struct Loader {
    samples: Arc<Samples>,
    batches: Option<Receiver<Result<TokenBatch, DatasetError>>>,
    thread: Option<JoinHandle<()>>,
    cursor: u64,
}

impl Loader {
    /// A loader of a single store whose next batch begins with sample `cursor`, 0 for a fresh run.
    ///
    /// # Errors
    /// If the store is too short for one sequence, a size is 0, or no thread can be started.
    pub fn new(store: Arc<TokenStore>, config: LoaderConfig, cursor: u64) -> Result<Self, DatasetError> {
        let samples = Samples::of_store(store, config.cut(), config.seed)?;
        Self::of_samples(samples, config.sequences_per_batch, cursor)
    }

    /// A loader of all `sources` of a corpus in the shares of their weights, whose next batch begins
    /// with sample `cursor`. Of a single source it has the batches of [`Loader::new`].
    ///
    /// `sequences_per_step` places the steps at which weights change.
    ///
    /// # Errors
    /// If a source is too short for one sequence, a size is 0, or no thread can be started.
    pub fn of_sources(
        sources: &[DatasetSource],
        config: LoaderConfig,
        sequences_per_step: usize,
        cursor: u64,
    ) -> Result<Self, DatasetError> {
        let samples = Samples::of_sources(sources, config.cut(), sequences_per_step, config.seed)?;
        Self::of_samples(samples, config.sequences_per_batch, cursor)
    }

    fn of_samples(samples: Samples, sequences_per_batch: usize, cursor: u64) -> Result<Self, DatasetError> {
        if sequences_per_batch == 0 {
            return Err(DatasetError::Zero { name: "sequences_per_batch" });
        }
        let (sender, receiver) = sync_channel(PREFETCHED_BATCHES);
        let samples = Arc::new(samples);
        let of_thread = samples.clone();
        let prefetch = move || {
            let mut next = cursor;
            loop {
                let end = next + sequences_per_batch as u64;
                let batch = of_thread.read(next..end);
                let is_last = batch.is_err();
                // Nobody listens any more once the loader is dropped.
                if sender.send(batch).is_err() || is_last {
                    return;
                }
                next = end;
            }
        };
        let thread = std::thread::Builder::new()
            .name("prefetch".to_owned())
            .spawn(prefetch)
            .map_err(DatasetError::io("start the thread", "prefetch".as_ref()))?;
        Ok(Self { samples, batches: Some(receiver), thread: Some(thread), cursor })
    }

    /// The next batch.
    ///
    /// # Errors
    /// If its tokens cannot be read, or the prefetch thread has stopped.
    pub fn next_batch(&mut self) -> Result<TokenBatch, DatasetError> {
        let receiver = self.batches.as_ref().ok_or(DatasetError::LoaderStopped)?;
        let batch = receiver.recv().map_err(|_| DatasetError::LoaderStopped)??;
        self.cursor += batch.num_sequences as u64;
        Ok(batch)
    }

    /// Index of the next sample that has not been handed out; batches read ahead do not count. A
    /// loader that is started with this cursor continues with the same batches.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// What packing makes of each source, padding among it; `None` where documents are concatenated.
    pub fn packing_per_source(&self) -> Vec<Option<PackingFacts>> {
        self.samples.packing()
    }

    /// How many sequences of each source have been handed out, from the run's first on: a function of
    /// the cursor, so a resumed loader knows it too.
    pub fn sequences_per_source(&self) -> Vec<u64> {
        self.samples.drawn_before(self.cursor)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // The thread may wait for room in the channel: closing it first lets the thread see that it
        // is done.
        drop(self.batches.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed, and `next_batch` has reported it.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::counting_store;

    fn config(seq_len: usize, sequences_per_batch: usize) -> LoaderConfig {
        LoaderConfig {
            seq_len,
            sequences_per_batch,
            seed: 3,
            mask_documents: true,
            packing: Packing::default(),
            num_streams: None,
        }
    }

    #[test]
    fn a_resumed_loader_continues_with_the_same_batches() {
        let store = Arc::new(counting_store(&[&[50, 7, 120], &[30]]));
        let mut loader = Loader::new(store.clone(), config(8, 3), 0).unwrap();
        for _ in 0..11 {
            loader.next_batch().unwrap();
        }
        assert_eq!(loader.cursor(), 33);
        let mut resumed = Loader::new(store, config(8, 3), loader.cursor()).unwrap();
        for _ in 0..40 {
            assert_eq!(resumed.next_batch().unwrap(), loader.next_batch().unwrap());
        }
    }

    #[test]
    fn rows_of_streams_go_on_and_say_which_document_they_go_on_with() {
        let store = Arc::new(counting_store(&[&[10, 5, 9, 40]]));
        let config = LoaderConfig { num_streams: Some(2), ..config(6, 2) };
        let mut loader = Loader::new(store.clone(), config, 0).unwrap();
        let mut ends = [0; 2];
        // 5 windows in each of 2 streams of 64 tokens.
        for step in 0..10 {
            let batch = loader.next_batch().unwrap();
            assert_eq!(batch.follows, step % 5 > 0);
            let segments = batch.segment_ids.unwrap();
            for row in 0..2 {
                let first = batch.input_ids[row * 6] as usize;
                let is_new = store.document_index(first) != store.document_index((first + 63) % 64);
                if batch.follows {
                    assert_eq!(first, (ends[row] + 1) % 64);
                    assert_eq!(segments[row * 6], i32::from(is_new));
                }
                ends[row] = batch.input_ids[row * 6 + 5] as usize;
            }
        }
    }

    #[test]
    fn targets_are_the_next_tokens_and_segments_follow_documents() {
        let store = Arc::new(counting_store(&[&[10, 5, 9]]));
        let mut loader = Loader::new(store.clone(), config(6, 4), 0).unwrap();
        let batch = loader.next_batch().unwrap();
        assert_eq!((batch.num_tokens(), batch.num_sequences, batch.seq_len), (24, 4, 6));
        let segments = batch.segment_ids.unwrap();
        for row in 0..4 {
            let inputs = &batch.input_ids[row * 6..][..6];
            for column in 0..6 {
                // Ids count up from 0, so an id is its own position.
                let position = inputs[column] as usize;
                assert_eq!(batch.target_ids[row * 6 + column] as usize, (position + 1) % 24);
                let starts_document = column > 0 && [0, 10, 15].contains(&position);
                let step =
                    if column > 0 { segments[row * 6 + column] - segments[row * 6 + column - 1] } else { 0 };
                assert_eq!(step, i32::from(starts_document));
            }
            assert_eq!(segments[row * 6], 0);
            assert_eq!(usize::from(batch.domains[row]), store.document_index(inputs[0] as usize).unwrap());
        }
    }

    #[test]
    fn a_dropped_loader_ends_its_thread() {
        let store = Arc::new(counting_store(&[&[50]]));
        let loader = Loader::new(store.clone(), config(8, 1), 0).unwrap();
        drop(loader);
        assert_eq!(Arc::strong_count(&store), 1, "the thread held the other reference");
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let store = Arc::new(counting_store(&[&[8]]));
        let message = |config| Loader::new(store.clone(), config, 0).unwrap_err().to_string();
        assert!(message(config(8, 1)).contains("has 8 tokens"));
        assert_eq!(message(config(4, 0)), "`sequences_per_batch` is 0: use at least 1");
    }
}
