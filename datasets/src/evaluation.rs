//! Validation batches: every window of a split once, in order.

use std::sync::Arc;

use crate::batch::TokenBatch;
use crate::error::DatasetError;
use crate::store::TokenStore;

/// Non-overlapping windows from the first token on: window `j` has the inputs
/// `j * seq_len..(j + 1) * seq_len` and as targets the tokens one further. All
/// `floor((tokens - 1) / seq_len)` windows, unless limited.
#[derive(Debug, Clone)]
pub struct EvaluationWindows {
    store: Arc<TokenStore>,
    seq_len: usize,
    num_windows: usize,
    mask_documents: bool,
    follow: bool,
}

impl EvaluationWindows {
    /// All windows of `store` with `seq_len` inputs.
    ///
    /// # Errors
    /// If the store is too short for one window, or `seq_len` is 0.
    pub fn new(store: Arc<TokenStore>, seq_len: usize) -> Result<Self, DatasetError> {
        store.require_sequence(seq_len)?;
        let num_windows = (store.len() - 1) / seq_len;
        Ok(Self { store, seq_len, num_windows, mask_documents: false, follow: false })
    }

    /// The first windows only: as many as have `max_tokens` targets together, rounded up to one
    /// window at least.
    pub fn with_max_tokens(self, max_tokens: usize) -> Self {
        let num_windows = self.num_windows.min((max_tokens / self.seq_len).max(1));
        Self { num_windows, ..self }
    }

    /// The same windows with or without [`TokenBatch::segment_ids`]; without is the default.
    pub fn with_document_masking(self, mask_documents: bool) -> Self {
        Self { mask_documents, ..self }
    }

    /// The same windows as one stream: each but the first follows the one before it
    /// ([`TokenBatch::follows`]).
    pub fn as_stream(self) -> Self {
        Self { follow: true, ..self }
    }

    /// Number of windows.
    pub fn num_windows(&self) -> usize {
        self.num_windows
    }

    /// Number of targets: what an average over all batches is an average of.
    pub fn num_tokens(&self) -> usize {
        self.num_windows * self.seq_len
    }

    /// Number of targets that the split has: every token but the first. Up to `seq_len - 1` of
    /// them, at the end, are in no whole window, and in no average.
    pub fn num_tokens_in_split(&self) -> usize {
        self.store.len() - 1
    }

    /// The windows in batches of `sequences_per_batch`; the last may be smaller. A batch is an
    /// error if its tokens cannot be read.
    ///
    /// # Panics
    /// If `sequences_per_batch` is 0, or above 1 of a stream.
    pub fn batches(
        &self,
        sequences_per_batch: usize,
    ) -> impl Iterator<Item = Result<TokenBatch, DatasetError>> + '_ {
        assert!(sequences_per_batch > 0, "evaluation in batches of 0 sequences");
        assert!(!self.follow || sequences_per_batch == 1, "rows that follow one another");
        (0..self.num_windows).step_by(sequences_per_batch).map(move |first| {
            let last = (first + sequences_per_batch).min(self.num_windows);
            let starts: Vec<usize> = (first..last).map(|window| window * self.seq_len).collect();
            let batch = TokenBatch::read(&self.store, &starts, self.seq_len, self.mask_documents)?;
            Ok(if self.follow && first > 0 { batch.following(&self.store, &starts) } else { batch })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::counting_store;

    #[test]
    fn every_token_but_the_first_and_a_rest_is_a_target_once_in_order() {
        let store = Arc::new(counting_store(&[&[20, 13]]));
        let windows = EvaluationWindows::new(store, 5).unwrap();
        assert_eq!((windows.num_windows(), windows.num_tokens(), windows.num_tokens_in_split()), (6, 30, 32));
        for sequences_per_batch in 1..8 {
            let targets: Vec<i32> =
                windows.batches(sequences_per_batch).flat_map(|batch| batch.unwrap().target_ids).collect();
            assert_eq!(targets, (1..=30).collect::<Vec<_>>());
        }
        let sizes: Vec<usize> = windows.batches(4).map(|batch| batch.unwrap().num_sequences).collect();
        assert_eq!(sizes, [4, 2]);
    }

    #[test]
    fn a_limit_takes_the_first_windows() {
        let windows = EvaluationWindows::new(Arc::new(counting_store(&[&[33]])), 5).unwrap();
        assert_eq!(windows.clone().with_max_tokens(14).num_windows(), 2);
        assert_eq!(windows.clone().with_max_tokens(1).num_windows(), 1);
        assert_eq!(windows.with_max_tokens(1000).num_windows(), 6);
    }

    #[test]
    fn segments_are_given_on_request() {
        let windows = EvaluationWindows::new(Arc::new(counting_store(&[&[3, 8]])), 5).unwrap();
        assert_eq!(windows.batches(1).next().unwrap().unwrap().segment_ids, None);
        let masked = windows.with_document_masking(true);
        assert_eq!(masked.batches(1).next().unwrap().unwrap().segment_ids, Some(vec![0, 0, 0, 1, 1]));
    }
}
