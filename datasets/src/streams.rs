//! The order in which training sees the data where a model's state goes from window to window: each
//! row of the steps reads a stretch of the data from its beginning to its end.
//!
//! # The law
//! The `n` tokens form a ring, rotated in epoch `e` by an offset drawn from `(seed, e)`, as by
//! [`Sampler`](crate::Sampler). From there it is cut into as many streams as there are rows, each of
//! `floor(n / (rows * seq_len))` windows. Sample `i` is row `i mod rows` of its step, and step by
//! step a row has the windows of its stream, one after the other. Within an epoch each token is a
//! target at most once, and all but `n mod (rows * seq_len)` are one.

use switchyard_ground::digest::split_mix;

use crate::error::DatasetError;

/// Start positions of training windows that follow one another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streams {
    num_tokens: u64,
    seq_len: u64,
    num_streams: u64,
    windows_per_stream: u64,
    seed: u64,
}

/// A window of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamWindow {
    /// Position of its first input, below the number of tokens.
    pub start: usize,
    /// Whether a window of the same stream lies before it.
    pub follows: bool,
}

impl Streams {
    /// `num_streams` streams of `num_tokens` training tokens in windows of `seq_len` inputs.
    ///
    /// # Errors
    /// If there is not one window for each stream, or a size is 0.
    pub fn new(
        num_tokens: usize,
        seq_len: usize,
        num_streams: usize,
        seed: u64,
    ) -> Result<Self, DatasetError> {
        for (name, size) in [("seq_len", seq_len), ("num_streams", num_streams)] {
            if size == 0 {
                return Err(DatasetError::Zero { name });
            }
        }
        let step_tokens = seq_len.saturating_mul(num_streams);
        if num_tokens < step_tokens.max(seq_len + 1) {
            return Err(DatasetError::TooShortForStreams { num_tokens, seq_len, num_streams });
        }
        Ok(Self {
            num_tokens: num_tokens as u64,
            seq_len: seq_len as u64,
            num_streams: num_streams as u64,
            windows_per_stream: (num_tokens / step_tokens) as u64,
            seed,
        })
    }

    /// Windows in one pass over the data.
    pub fn samples_per_epoch(&self) -> u64 {
        self.windows_per_stream * self.num_streams
    }

    /// The window of sample `index`.
    pub fn window(&self, index: u64) -> StreamWindow {
        let (step, stream) = (index / self.num_streams, index % self.num_streams);
        let (epoch, window) = (step / self.windows_per_stream, step % self.windows_per_stream);
        let rotation = split_mix(split_mix(self.seed) ^ epoch) % self.num_tokens;
        let place = (stream * self.windows_per_stream + window) * self.seq_len;
        StreamWindow { start: ((rotation + place) % self.num_tokens) as usize, follows: window > 0 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_epoch_has_every_token_as_target_at_most_once_and_each_row_goes_on(
            num_tokens in 2_usize..3000, seq_len in 1_usize..40, rows in 1_usize..9, seed in any::<u64>(), epoch in 0_u64..1_000_000,
        ) {
            prop_assume!(num_tokens > seq_len && num_tokens >= seq_len * rows);
            let streams = Streams::new(num_tokens, seq_len, rows, seed).unwrap();
            let (first, rows) = (epoch * streams.samples_per_epoch(), rows as u64);
            let mut targeted = vec![0; num_tokens];
            for index in first..first + streams.samples_per_epoch() {
                let StreamWindow { start, follows } = streams.window(index);
                (1..=seq_len).for_each(|offset| targeted[(start + offset) % num_tokens] += 1);
                prop_assert_eq!(follows, index >= first + rows);
                if follows {
                    let before = streams.window(index - rows).start;
                    prop_assert_eq!(start, (before + seq_len) % num_tokens);
                }
            }
            prop_assert!(targeted.iter().all(|count| *count <= 1));
            let left_over = targeted.iter().filter(|count| **count == 0).count();
            prop_assert_eq!(left_over, num_tokens % (seq_len * rows as usize));
        }
    }

    #[test]
    fn epochs_and_seeds_begin_elsewhere() {
        let start = |seed, epoch: u64| {
            let streams = Streams::new(6413, 64, 4, seed).unwrap();
            streams.window(epoch * streams.samples_per_epoch()).start
        };
        assert_ne!(start(1, 0), start(1, 1));
        assert_ne!(start(1, 0), start(2, 0));
    }

    /// Resumed runs rely on these numbers: a change of the order is a change of every run's data.
    #[test]
    fn the_order_is_pinned() {
        let streams = Streams::new(1000, 10, 3, 42).unwrap();
        assert_eq!([0, 1, 2, 3, 99].map(|index| streams.window(index).start), PINNED);
    }

    const PINNED: [usize; 5] = [668, 998, 328, 678, 893];

    #[test]
    fn too_little_data_is_refused_with_its_numbers() {
        let message = Streams::new(191, 64, 3, 0).unwrap_err().to_string();
        assert!(message.contains("has 191 tokens, but 3 streams of 64 need 192"), "{message}");
        assert_eq!(Streams::new(64, 64, 0, 0).unwrap_err().to_string(), "`num_streams` is 0: use at least 1");
    }
}
