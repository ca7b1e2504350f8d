//! Validation batches: every token of a split once, in order.

use std::sync::Arc;

use crate::batch::TokenBatch;
use crate::error::DatasetError;
use crate::store::TokenStore;

/// Non-overlapping windows from the first token on: window `j` has the inputs
/// `j * seq_len..(j + 1) * seq_len` and as targets the tokens one further; the last is shorter. All of
/// them, so that every token but the first is a target, unless limited.
#[derive(Debug, Clone)]
pub struct EvaluationWindows {
    store: Arc<TokenStore>,
    seq_len: usize,
    num_windows: usize,
    /// Inputs of a shorter window at the end; 0 for none.
    num_rest: usize,
    mask_documents: bool,
    follow: bool,
}

impl EvaluationWindows {
    /// All windows of `store` with `seq_len` inputs, and a shorter one with what is left at its end.
    ///
    /// # Errors
    /// If the store is too short for one window, or `seq_len` is 0.
    pub fn new(store: Arc<TokenStore>, seq_len: usize) -> Result<Self, DatasetError> {
        store.require_sequence(seq_len)?;
        let (num_windows, num_rest) = ((store.len() - 1) / seq_len, (store.len() - 1) % seq_len);
        Ok(Self { store, seq_len, num_windows, num_rest, mask_documents: false, follow: false })
    }

    /// The first windows only: as many as have `max_tokens` targets together, rounded up to one
    /// window at least.
    pub fn with_max_tokens(self, max_tokens: usize) -> Self {
        if max_tokens >= self.num_tokens() {
            return self;
        }
        let num_windows = self.num_windows.min((max_tokens / self.seq_len).max(1));
        Self { num_windows, num_rest: 0, ..self }
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

    /// Number of windows of `seq_len` inputs.
    pub fn num_windows(&self) -> usize {
        self.num_windows
    }

    /// Number of [`EvaluationWindows::batches`] of so many sequences.
    pub fn num_batches(&self, sequences_per_batch: usize) -> usize {
        self.num_windows.div_ceil(sequences_per_batch) + usize::from(self.num_rest > 0)
    }

    /// Number of targets: what an average over all batches is an average of.
    pub fn num_tokens(&self) -> usize {
        self.num_windows * self.seq_len + self.num_rest
    }

    /// Number of targets that the split has: every token but the first.
    pub fn num_tokens_in_split(&self) -> usize {
        self.store.len() - 1
    }

    /// The windows in batches of `sequences_per_batch`; the last may be smaller, and the shorter window
    /// is a batch of its own. A batch is an error if its tokens cannot be read.
    ///
    /// # Panics
    /// If `sequences_per_batch` is 0, or above 1 of a stream.
    pub fn batches(
        &self,
        sequences_per_batch: usize,
    ) -> impl Iterator<Item = Result<TokenBatch, DatasetError>> + '_ {
        assert!(sequences_per_batch > 0, "evaluation in batches of 0 sequences");
        assert!(!self.follow || sequences_per_batch == 1, "rows that follow one another");
        let whole = (0..self.num_windows).step_by(sequences_per_batch).map(move |first| {
            let last = (first + sequences_per_batch).min(self.num_windows);
            let starts: Vec<usize> = (first..last).map(|window| window * self.seq_len).collect();
            self.batch(&starts, self.seq_len)
        });
        let rest = (self.num_rest > 0).then(|| self.batch(&[self.num_windows * self.seq_len], self.num_rest));
        whole.chain(rest)
    }

    fn batch(&self, starts: &[usize], seq_len: usize) -> Result<TokenBatch, DatasetError> {
        let batch = TokenBatch::read(&self.store, starts, seq_len, self.mask_documents)?;
        let follows = self.follow && starts.first().is_some_and(|first| *first > 0);
        Ok(if follows { batch.following(&self.store, starts) } else { batch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::counting_store;

    #[test]
    fn every_token_but_the_first_is_a_target_once_in_order() {
        let store = Arc::new(counting_store(&[&[20, 13]]));
        let windows = EvaluationWindows::new(store, 5).unwrap();
        assert_eq!((windows.num_windows(), windows.num_tokens(), windows.num_tokens_in_split()), (6, 32, 32));
        for sequences_per_batch in 1..8 {
            let targets: Vec<i32> =
                windows.batches(sequences_per_batch).flat_map(|batch| batch.unwrap().target_ids).collect();
            assert_eq!(targets, (1..=32).collect::<Vec<_>>());
        }
        let sizes: Vec<usize> = windows.batches(4).map(|batch| batch.unwrap().num_sequences).collect();
        assert_eq!(sizes, [4, 2, 1]);
        let lens: Vec<usize> = windows.batches(4).map(|batch| batch.unwrap().seq_len).collect();
        assert_eq!(lens, [5, 5, 2]);
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
