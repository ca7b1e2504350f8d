//! Which source each training sequence comes from: a pure function of (weights, seed, position),
//! without state.
//!
//! # The law
//! Between two changes of the weights, source `k` has the share `p_k` of its weight in the sum of
//! all weights. Of the first `n` sequences since the change it has `n p_k`, give or take less than
//! one sequence where there are two sources, and less than [`MAX_EXCESS`] for any number of them, at
//! every `n`: no long run can drift. How many sequences each source has had before any position is
//! found without going through them, so a run resumes from its position alone.
//!
//! # How
//! The sources are the leaves of a Huffman tree over their weights (Huffman, Proc. IRE 1952). A fork
//! of the tree splits the sequences that reach it between a lighter and a heavier side. The lighter
//! one has the share `p <= 1/2`: the positions are cut into strata of length `1 / p`, and it gets
//! one position in each, drawn from the seed. So its count before position `n` is `floor(n p)`, or
//! one more if the draw of the present stratum lies before `n`; the heavier side has the rest. A
//! regular pattern, such as every other sequence, would always give the same source to the same row
//! of a batch; the draw within the stratum does not.

use switchyard_ground::digest::split_mix;

use crate::config::SourceWeights;

/// Bound, in sequences, on how far the count of a source is from its share, for any weights.
///
/// A fork adds less than one to the share `p` of what its own sequences are off by. On a path of a
/// Huffman tree the shares of inner nodes are at most 2/3, those of two in a row at most 1/2
/// together; the sum of the products is below 4.
pub const MAX_EXCESS: f64 = 4.0;

/// The place of a training sequence: its source, and how many that source had before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// Index of the source.
    pub source: usize,
    /// Sequences that the source had before.
    pub index: u64,
}

/// The sources of all training sequences.
#[derive(Debug, Clone)]
pub struct MixtureSchedule {
    num_sources: usize,
    /// In the order of their beginnings; the first begins at 0.
    pieces: Vec<Piece>,
}

/// A stretch of sequences with the same weights.
#[derive(Debug, Clone)]
struct Piece {
    /// Its first sequence.
    first: u64,
    /// Sequences of each source before it.
    drawn_before: Vec<u64>,
    tree: Node,
}

#[derive(Debug, Clone)]
enum Node {
    Leaf(usize),
    Fork(Box<Fork>),
}

#[derive(Debug, Clone)]
struct Fork {
    /// Share of the lighter side in units of 2^-64, in `1..=2^63`.
    share: u64,
    /// What the draws within the strata come from.
    key: u64,
    lighter: Node,
    heavier: Node,
}

impl MixtureSchedule {
    /// The schedule of sources with these weights, in steps of `sequences_per_step`.
    ///
    /// # Panics
    /// If there is no source, a weight is no number of at least 0, or all are 0 at some step: what
    /// [`DataConfig::validate`](crate::DataConfig::validate) refuses.
    pub fn new(weights: &[SourceWeights], sequences_per_step: usize, seed: u64) -> Self {
        let mut steps: Vec<u64> =
            weights.iter().flat_map(|of| &of.changes).map(|change| change.from_step).chain([0]).collect();
        steps.sort_unstable();
        steps.dedup();
        let mut schedule = Self { num_sources: weights.len(), pieces: Vec::new() };
        for step in steps {
            let first = step.saturating_mul(sequences_per_step as u64);
            let now: Vec<f64> = weights.iter().map(|of| of.at(step)).collect();
            let key = split_mix(split_mix(seed) ^ step);
            let drawn_before = if first == 0 { vec![0; now.len()] } else { schedule.drawn_before(first) };
            schedule.pieces.push(Piece { first, drawn_before, tree: tree(&now, key) });
        }
        schedule
    }

    /// Number of sources.
    pub fn num_sources(&self) -> usize {
        self.num_sources
    }

    /// The source of the training sequence at `position`.
    pub fn draw(&self, position: u64) -> Draw {
        let piece = self.piece_of(position);
        let (mut node, mut index) = (&piece.tree, position - piece.first);
        loop {
            match node {
                Node::Leaf(source) => {
                    return Draw { source: *source, index: piece.drawn_before[*source] + index };
                }
                Node::Fork(fork) => {
                    let num_lighter = fork.lighter_before(index);
                    (node, index) = if fork.is_lighter(index) {
                        (&fork.lighter, num_lighter)
                    } else {
                        (&fork.heavier, index - num_lighter)
                    };
                }
            }
        }
    }

    /// How many of the training sequences before `position` are of each source.
    pub fn drawn_before(&self, position: u64) -> Vec<u64> {
        let piece = self.piece_of(position);
        let mut drawn = piece.drawn_before.clone();
        piece.tree.count(position - piece.first, &mut drawn);
        drawn
    }

    fn piece_of(&self, position: u64) -> &Piece {
        let after = self.pieces.partition_point(|piece| piece.first <= position);
        &self.pieces[after - 1]
    }
}

impl Node {
    /// Adds to `drawn` how many of the first `len` sequences that reach this node each source has.
    fn count(&self, len: u64, drawn: &mut [u64]) {
        match self {
            Self::Leaf(source) => drawn[*source] += len,
            Self::Fork(fork) => {
                let num_lighter = fork.lighter_before(len);
                fork.lighter.count(num_lighter, drawn);
                fork.heavier.count(len - num_lighter, drawn);
            }
        }
    }
}

impl Fork {
    /// The stratum that holds `index`.
    fn stratum(&self, index: u64) -> u64 {
        ((u128::from(index) * u128::from(self.share)) >> 64) as u64
    }

    /// The index in `stratum` that the lighter side gets.
    fn chosen(&self, stratum: u64) -> u128 {
        let start = |stratum: u64| (u128::from(stratum) << 64).div_ceil(u128::from(self.share));
        let (first, end) = (start(stratum), start(stratum + 1));
        first + u128::from(split_mix(self.key ^ split_mix(stratum))) % (end - first)
    }

    fn is_lighter(&self, index: u64) -> bool {
        self.chosen(self.stratum(index)) == u128::from(index)
    }

    /// How many indices before `index` the lighter side gets.
    fn lighter_before(&self, index: u64) -> u64 {
        let stratum = self.stratum(index);
        stratum + u64::from(self.chosen(stratum) < u128::from(index))
    }
}

/// The Huffman tree over `weights`, without sources of weight 0.
fn tree(weights: &[f64], key: u64) -> Node {
    assert!(weights.iter().all(|weight| *weight >= 0.0 && weight.is_finite()), "weights {weights:?}");
    // Nodes that have no parent yet, heaviest first; of equal ones the latest first.
    let leaves = weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0);
    let mut open: Vec<(f64, Node)> = leaves.map(|(source, weight)| (*weight, Node::Leaf(source))).collect();
    open.sort_by(|one, other| other.0.total_cmp(&one.0));
    let mut num_forks = 0_u64;
    loop {
        let Some((light, lighter)) = open.pop() else { panic!("no source has a weight: {weights:?}") };
        let Some((heavy, heavier)) = open.pop() else { return lighter };
        num_forks += 1;
        // Scaled by 2^64; the cast saturates, and a share of 0 would be no share at all.
        let share = (light / (light + heavy) * 2.0_f64.powi(64)) as u64;
        let fork = Fork { share: share.clamp(1, 1 << 63), key: split_mix(key ^ num_forks), lighter, heavier };
        let at = open.partition_point(|(weight, _)| *weight > light + heavy);
        open.insert(at, (light + heavy, Node::Fork(Box::new(fork))));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::WeightChange;

    fn constant(weights: &[f64]) -> Vec<SourceWeights> {
        weights.iter().map(|weight| SourceWeights::constant(*weight)).collect()
    }

    fn shares(weights: &[f64]) -> Vec<f64> {
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / sum).collect()
    }

    /// Largest distance of a count from its share over the first `len` positions.
    fn largest_excess(weights: &[f64], seed: u64, len: u64) -> f64 {
        let schedule = MixtureSchedule::new(&constant(weights), 1, seed);
        let shares = shares(weights);
        let mut counts = vec![0_u64; weights.len()];
        let mut largest = 0.0_f64;
        for position in 0..len {
            let draw = schedule.draw(position);
            assert_eq!(draw.index, counts[draw.source], "the index counts what came before");
            counts[draw.source] += 1;
            for (count, share) in counts.iter().zip(&shares) {
                largest = largest.max((*count as f64 - share * (position + 1) as f64).abs());
            }
        }
        assert_eq!(schedule.drawn_before(len), counts, "counting in one step is going through all");
        largest
    }

    /// Weights of very different sizes, some of them 0.
    fn weights() -> impl Strategy<Value = Vec<f64>> {
        let weight = prop_oneof![1 => Just(0.0), 6 => (-12_i32..12).prop_map(|power| 1.7_f64.powi(power))];
        proptest::collection::vec(weight, 1..9)
            .prop_filter("one has a weight", |weights| weights.iter().any(|weight| *weight > 0.0))
    }

    proptest! {
        #[test]
        fn every_prefix_has_the_shares_of_the_weights(weights in weights(), seed in any::<u64>()) {
            let excess = largest_excess(&weights, seed, 3000);
            prop_assert!(excess < MAX_EXCESS, "{excess}");
        }

        #[test]
        fn two_sources_are_never_off_by_a_whole_sequence(weight in 0.001_f64..1.0, seed in any::<u64>()) {
            let excess = largest_excess(&[weight, 1.0], seed, 3000);
            prop_assert!(excess < 1.0, "{excess}");
        }

        #[test]
        fn the_law_holds_from_each_change_of_the_weights_on(
            before in proptest::collection::vec(0.1_f64..9.0, 3),
            after in proptest::collection::vec(0.1_f64..9.0, 3),
            from_step in 1_u64..200, sequences_per_step in 1_usize..9, seed in any::<u64>(),
        ) {
            let weights: Vec<SourceWeights> = before
                .iter()
                .zip(&after)
                .map(|(initial, weight)| SourceWeights {
                    initial: *initial,
                    changes: vec![WeightChange { from_step, weight: *weight }],
                })
                .collect();
            let schedule = MixtureSchedule::new(&weights, sequences_per_step, seed);
            let (change, shares) = (from_step * sequences_per_step as u64, shares(&after));
            let constant = MixtureSchedule::new(&constant(&before), sequences_per_step, seed);
            let at_change = schedule.drawn_before(change);
            prop_assert_eq!(&at_change, &constant.drawn_before(change));
            for len in 0..500 {
                let now = schedule.drawn_before(change + len);
                for source in 0..3 {
                    let excess = (now[source] - at_change[source]) as f64 - shares[source] * len as f64;
                    prop_assert!(excess.abs() < MAX_EXCESS, "{excess}");
                }
            }
        }

        #[test]
        fn a_position_says_all_that_a_resumed_run_needs(
            weights in weights(), seed in any::<u64>(), position in 0_u64..1 << 50,
        ) {
            let schedule = MixtureSchedule::new(&constant(&weights), 4, seed);
            let mut counts = schedule.drawn_before(position);
            prop_assert_eq!(counts.iter().sum::<u64>(), position);
            for next in position..position + 50 {
                let draw = schedule.draw(next);
                prop_assert_eq!(draw.index, counts[draw.source]);
                counts[draw.source] += 1;
            }
            prop_assert_eq!(counts, schedule.drawn_before(position + 50));
        }
    }

    #[test]
    fn the_excess_of_common_mixtures_is_below_two_sequences() {
        let mixtures: [&[f64]; 6] = [
            &[1.0; 8],
            &[0.67, 0.15, 0.045, 0.045, 0.045, 0.025, 0.02],
            &[1.0, 0.5, 0.25, 0.125, 0.0625],
            &[1.0, 1.0, 2.0, 3.0, 5.0, 8.0],
            &[0.9, 0.09, 0.009, 0.001],
            &[0.7, 0.3],
        ];
        for weights in mixtures {
            let largest = (0..20).map(|seed| largest_excess(weights, seed, 5000)).fold(0.0, f64::max);
            assert!(largest < 2.0, "{weights:?}: {largest}");
        }
    }

    #[test]
    fn rows_of_a_batch_are_of_no_fixed_source() {
        let schedule = MixtureSchedule::new(&constant(&[1.0, 1.0]), 2, 7);
        let even = (0..2000).filter(|step| schedule.draw(2 * step).source == 0).count();
        // 2,000 coin flips: five standard deviations.
        assert!((888..=1112).contains(&even), "{even}");
    }

    #[test]
    fn a_source_without_weight_is_never_drawn_and_one_alone_always() {
        let schedule = MixtureSchedule::new(&constant(&[0.0, 3.0, 0.0]), 1, 1);
        assert!((0..100).all(|position| schedule.draw(position) == Draw { source: 1, index: position }));
    }

    /// Resumed runs rely on it: another schedule is other data for every run of a mixture.
    #[test]
    fn the_schedule_is_pinned() {
        let schedule = MixtureSchedule::new(&constant(&[0.5, 0.3, 0.2]), 1, 42);
        let sources: String =
            (0..40).map(|position| char::from(b'a' + schedule.draw(position).source as u8)).collect();
        assert_eq!(sources, PINNED);
    }

    const PINNED: &str = "bacabaacababbacaabacabacabacabbaacbaabac";
}
