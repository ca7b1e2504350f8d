//! The order in which training sees the data: the i-th sample is a pure function of (seed, i),
//! found in O(1).
//!
//! # The law
//! The `n` tokens form a ring: after the last comes the first. In epoch `e` the ring is rotated by
//! an offset drawn from `(seed, e)` and cut into `floor(n / seq_len)` windows of `seq_len` inputs,
//! each of which has the `seq_len` tokens that follow its inputs as targets. Within an epoch
//! - each window is sampled exactly once, in a pseudo-random order drawn from `(seed, e)`;
//! - each token is a target at most once, and all but `n mod seq_len` tokens, fewer than `seq_len`,
//!   are one;
//! - at most one window contains the seam, where the end of the data is continued by its beginning.
//!
//! The order is a keyed permutation: a balanced Feistel network on the next even power of two,
//! iterated until the result is a window (cycle walking; Black and Rogaway, CT-RSA 2002). So no
//! list of windows is kept or shuffled, and resuming at sample i costs nothing.

use switchyard_ground::digest::split_mix;

use crate::error::DatasetError;
use crate::split::Split;

const ROUNDS: u64 = 6;

/// Start positions of training windows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sampler {
    num_tokens: u64,
    seq_len: u64,
    samples_per_epoch: u64,
    /// Half the width of the Feistel network.
    half_bits: u32,
    seed: u64,
}

impl Sampler {
    /// The sampler of `num_tokens` training tokens in windows of `seq_len` inputs.
    ///
    /// # Errors
    /// If there are not `seq_len + 1` tokens, or `seq_len` is 0.
    pub fn new(num_tokens: usize, seq_len: usize, seed: u64) -> Result<Self, DatasetError> {
        if seq_len == 0 {
            return Err(DatasetError::Zero { name: "seq_len" });
        }
        if num_tokens <= seq_len {
            return Err(DatasetError::TooShort { split: Split::Train.name(), num_tokens, seq_len });
        }
        let samples_per_epoch = (num_tokens / seq_len) as u64;
        let bits = u64::BITS - (samples_per_epoch - 1).leading_zeros();
        let half_bits = bits.div_ceil(2).max(1);
        Ok(Self {
            num_tokens: num_tokens as u64,
            seq_len: seq_len as u64,
            samples_per_epoch,
            half_bits,
            seed,
        })
    }

    /// Windows in one pass over the data.
    pub fn samples_per_epoch(&self) -> u64 {
        self.samples_per_epoch
    }

    /// Position of the first input of sample `index`, below the number of tokens.
    pub fn sample(&self, index: u64) -> usize {
        let (epoch, rank) = (index / self.samples_per_epoch, index % self.samples_per_epoch);
        let key = split_mix(split_mix(self.seed) ^ epoch);
        let rotation = key % self.num_tokens;
        ((rotation + self.permute(rank, key) * self.seq_len) % self.num_tokens) as usize
    }

    /// A permutation of `0..samples_per_epoch`, chosen by `key`.
    fn permute(&self, rank: u64, key: u64) -> u64 {
        let mut value = rank;
        // The network permutes a range at most four times as large, so few steps are outside; the
        // walk ends, because a permutation leads back to where it began.
        loop {
            value = self.feistel(value, key);
            if value < self.samples_per_epoch {
                return value;
            }
        }
    }

    fn feistel(&self, value: u64, key: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..ROUNDS {
            let mixed = split_mix(right ^ split_mix(key ^ (round << 56))) & mask;
            (left, right) = (right, left ^ mixed);
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_epoch_has_every_token_as_target_at_most_once_and_nearly_all(
            num_tokens in 2_usize..3000, seq_len in 1_usize..70, seed in any::<u64>(), epoch in 0_u64..1_000_000,
        ) {
            prop_assume!(num_tokens > seq_len);
            let sampler = Sampler::new(num_tokens, seq_len, seed).unwrap();
            let mut targeted = vec![0; num_tokens];
            for rank in 0..sampler.samples_per_epoch() {
                let start = sampler.sample(epoch * sampler.samples_per_epoch() + rank);
                prop_assert!(start < num_tokens);
                for offset in 1..=seq_len {
                    targeted[(start + offset) % num_tokens] += 1;
                }
            }
            prop_assert!(targeted.iter().all(|count| *count <= 1));
            let left_over = targeted.iter().filter(|count| **count == 0).count();
            prop_assert_eq!(left_over, num_tokens % seq_len);
        }

        #[test]
        fn any_window_can_follow_in_huge_data(index in any::<u64>(), seed in any::<u64>()) {
            let num_tokens = 10_usize.pow(13);
            let sampler = Sampler::new(num_tokens, 1024, seed).unwrap();
            prop_assert!(sampler.sample(index) < num_tokens);
        }
    }

    #[test]
    fn order_and_rotation_differ_between_epochs_and_seeds() {
        let starts = |seed, epoch: u64| {
            let sampler = Sampler::new(64 * 100 + 13, 64, seed).unwrap();
            (0..100).map(|rank| sampler.sample(epoch * 100 + rank)).collect::<Vec<_>>()
        };
        let (first, second, other) = (starts(1, 0), starts(1, 1), starts(2, 0));
        assert_ne!(first, second);
        assert_ne!(first, other);
        assert_ne!(first[0] % 64, second[0] % 64, "the windows are cut elsewhere");
        let in_order = first.windows(2).filter(|pair| pair[1] > pair[0]).count();
        // 99 coin flips: within five standard deviations (about 2.9 for a random permutation) of
        // one half.
        assert!((35..=64).contains(&in_order), "{in_order}");
    }

    /// Resumed runs rely on these numbers: a change of the order is a change of every run's data.
    #[test]
    fn the_order_is_pinned() {
        let sampler = Sampler::new(1000, 10, 42).unwrap();
        assert_eq!([0, 1, 2, 100, 101].map(|index| sampler.sample(index)), PINNED);
    }

    const PINNED: [usize; 5] = [998, 688, 468, 663, 343];

    #[test]
    fn too_little_data_is_refused_with_its_numbers() {
        let message = Sampler::new(64, 64, 0).unwrap_err().to_string();
        assert!(message.contains("has 64 tokens, but one sequence of 64 needs 65"), "{message}");
        assert_eq!(Sampler::new(64, 0, 0).unwrap_err().to_string(), "`seq_len` is 0: use at least 1");
    }
}
