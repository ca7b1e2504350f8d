//! What the operation needs of the connections between ranks.

use std::fmt::Debug;

/// Takes lists of numbers from every rank to every other. Each method is a collective: every rank
/// calls the same ones in the same order. There is no error to return: a rank that cannot go on
/// ends its process.
pub trait RowExchange: Debug + Send + Sync {
    /// How many ranks there are.
    fn num_ranks(&self) -> usize;

    /// Which of them this is.
    fn rank(&self) -> usize;

    /// What every rank has for this one, by rank; `parts` are for the others and itself, by rank.
    /// Lengths may differ.
    fn exchange_rows(&self, parts: &[&[f32]]) -> Vec<Vec<f32>>;

    /// The same for counts.
    fn exchange_counts(&self, parts: &[&[u32]]) -> Vec<Vec<u32>>;
}
