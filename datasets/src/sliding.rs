//! Evaluation with context: windows that overlap, each target counted once.

use std::sync::Arc;

use crate::batch::TokenBatch;
use crate::error::DatasetError;
use crate::store::TokenStore;

/// Windows that begin `stride` tokens after one another and count the targets that no window before
/// them has: all of the first, then the last `stride` of each. Every target after the first window
/// follows `seq_len - stride + 1` tokens at least, but for those of the last window, which ends with
/// the split and may be shorter. Every token of the split but its first is counted once.
///
/// This is Hugging Face's recipe for the perplexity of models of fixed length, with a `max_length`
/// of `seq_len + 1`: there the length includes the last target.
#[derive(Debug, Clone)]
pub struct SlidingWindows {
    store: Arc<TokenStore>,
    seq_len: usize,
    stride: usize,
    /// Targets that are counted.
    num_targets: usize,
    mask_documents: bool,
}

/// One window: its inputs, and how many of its targets, at its end, are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    start: usize,
    len: usize,
    num_counted: usize,
}

impl SlidingWindows {
    /// The windows of `store` with `seq_len` inputs, `stride` apart.
    ///
    /// # Errors
    /// If the store is too short for one window, a size is 0, or windows would leave tokens out.
    pub fn new(store: Arc<TokenStore>, seq_len: usize, stride: usize) -> Result<Self, DatasetError> {
        store.require_sequence(seq_len)?;
        if stride == 0 || stride > seq_len {
            return Err(DatasetError::Stride { stride, seq_len });
        }
        let num_targets = store.len() - 1;
        Ok(Self { store, seq_len, stride, num_targets, mask_documents: false })
    }

    /// The first windows only: as many as have `max_tokens` counted targets together, rounded down
    /// to whole windows and up to one window.
    pub fn with_max_tokens(self, max_tokens: usize) -> Self {
        if max_tokens >= self.num_targets {
            return self;
        }
        let after_first = max_tokens.saturating_sub(self.seq_len) / self.stride * self.stride;
        Self { num_targets: (self.seq_len + after_first).min(self.num_targets), ..self }
    }

    /// The same windows with or without [`TokenBatch::segment_ids`]; without is the default.
    pub fn with_document_masking(self, mask_documents: bool) -> Self {
        Self { mask_documents, ..self }
    }

    /// Number of targets that are counted.
    pub fn num_tokens(&self) -> usize {
        self.num_targets
    }

    fn num_windows(&self) -> usize {
        1 + self.num_targets.saturating_sub(self.seq_len).div_ceil(self.stride)
    }

    fn window(&self, index: usize) -> Window {
        let start = index * self.stride;
        let len = self.seq_len.min(self.num_targets - start);
        let counted_before = if index == 0 { 0 } else { start - self.stride + self.seq_len };
        Window { start, len, num_counted: start + len - counted_before }
    }

    /// The windows in batches of `sequences_per_batch`, with [`TokenBatch::target_mask`]; a shorter
    /// last window is a batch of its own. A batch is an error if its tokens cannot be read.
    ///
    /// # Panics
    /// If `sequences_per_batch` is 0.
    pub fn batches(
        &self,
        sequences_per_batch: usize,
    ) -> impl Iterator<Item = Result<TokenBatch, DatasetError>> + '_ {
        assert!(sequences_per_batch > 0, "evaluation in batches of 0 sequences");
        let num_windows = self.num_windows();
        let num_whole = num_windows - usize::from(self.window(num_windows - 1).len < self.seq_len);
        let whole = (0..num_whole).step_by(sequences_per_batch);
        let of_whole = whole.map(move |first| first..(first + sequences_per_batch).min(num_whole));
        let rest = (num_whole < num_windows).then_some(num_whole..num_windows);
        of_whole.chain(rest).map(|indices| self.batch(indices.map(|index| self.window(index)).collect()))
    }

    /// The batch of `windows`, which have one length.
    fn batch(&self, windows: Vec<Window>) -> Result<TokenBatch, DatasetError> {
        let len = windows[0].len;
        let starts: Vec<usize> = windows.iter().map(|window| window.start).collect();
        let batch = TokenBatch::read(&self.store, &starts, len, self.mask_documents)?;
        let counts = |window: &Window| {
            let first = len - window.num_counted;
            (0..len).map(move |place| place >= first)
        };
        let target_mask = windows.iter().flat_map(counts);
        Ok(TokenBatch { target_mask: Some(target_mask.collect()), ..batch })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::tests::counting_store;

    /// The windows of Hugging Face's page on perplexity: begin, end, number of targets.
    fn recipe(num_tokens: usize, max_length: usize, stride: usize) -> Vec<(usize, usize, usize)> {
        let (mut windows, mut previous_end) = (Vec::new(), 0);
        for begin in (0..num_tokens).step_by(stride) {
            let end = (begin + max_length).min(num_tokens);
            windows.push((begin, end, end - previous_end));
            previous_end = end;
            if end == num_tokens {
                break;
            }
        }
        // The first token of all is no target.
        windows[0].2 -= 1;
        windows
    }

    proptest! {
        #[test]
        fn the_windows_are_those_of_the_recipe_and_count_each_target_once(
            num_tokens in 2usize..120, seq_len in 1usize..20, stride in 1usize..20, per_batch in 1usize..5,
        ) {
            prop_assume!(num_tokens > seq_len && stride <= seq_len);
            let store = Arc::new(counting_store(&[&[num_tokens]]));
            let windows = SlidingWindows::new(store, seq_len, stride).unwrap();
            let found: Vec<_> = (0..windows.num_windows())
                .map(|index| windows.window(index))
                .map(|window| (window.start, window.start + window.len + 1, window.num_counted))
                .collect();
            prop_assert_eq!(found, recipe(num_tokens, seq_len + 1, stride));
            let mut counted = Vec::new();
            for batch in windows.batches(per_batch) {
                let batch = batch.unwrap();
                let mask = batch.target_mask.clone().unwrap();
                prop_assert_eq!(mask.len(), batch.input_ids.len());
                for (place, target) in batch.target_ids.iter().enumerate().filter(|(place, _)| mask[*place]) {
                    let context = place % batch.seq_len + 1;
                    // Ids count up from 0, so an id is its own position.
                    prop_assert!(context == *target as usize || context > seq_len - stride);
                    counted.push(*target);
                }
            }
            prop_assert_eq!(counted, (1..num_tokens as i32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_limit_takes_the_first_windows() {
        let windows = SlidingWindows::new(Arc::new(counting_store(&[&[33]])), 8, 4).unwrap();
        let limited = |max: usize| windows.clone().with_max_tokens(max).num_tokens();
        assert_eq!([1, 8, 11, 12, 31, 32, 99].map(limited), [8, 8, 8, 12, 28, 32, 32]);
    }

    #[test]
    fn a_stride_that_leaves_tokens_out_is_refused() {
        let store = Arc::new(counting_store(&[&[33]]));
        for stride in [0, 9] {
            let message = SlidingWindows::new(store.clone(), 8, stride).unwrap_err().to_string();
            assert!(message.contains(&format!("{stride}")) && message.contains("1..=8"), "{message}");
        }
    }
}
