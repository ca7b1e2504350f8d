//! How many distinct values the runs of a study have, of each quantity that a form may depend on.

use super::{Observation, Point};

/// Relative difference below which two sizes are one: a router's weights do not make another size.
const SAME_SIZE: f64 = 0.02;

/// What a form depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quantity {
    /// What the form calls N.
    Sizes,
    /// Active parameters over all.
    ActiveShares,
    Tokens,
    ExpansionRates,
    Granularities,
    /// Experts of a token, shared ones included.
    ActiveExperts,
    /// Share of the shared ones among them.
    SharedRatios,
    /// Of mixtures, as [`Point::width_granularity`] counts it.
    WidthGranularities,
    /// Compute of dense runs.
    DenseBudgets,
    /// Compute of mixtures.
    MixtureBudgets,
}

impl Quantity {
    /// How many distinct values `observations` have; `size` is what the form calls N.
    pub(super) fn count(self, size: impl Fn(&Point) -> f64, observations: &[&Observation]) -> usize {
        num_distinct(observations.iter().filter_map(|run| self.value(&size, &run.point)).collect())
    }

    /// The value at `point`; `None` where the quantity is one of other models.
    fn value(self, size: impl Fn(&Point) -> f64, point: &Point) -> Option<f64> {
        match self {
            Self::Sizes => Some(size(point)),
            Self::ActiveShares => Some(point.active_params / point.total_params),
            Self::Tokens => Some(point.tokens),
            Self::ExpansionRates => Some(point.expansion_rate()),
            Self::Granularities | Self::ActiveExperts => Some(point.granularity),
            // From 1, since sizes are compared by their ratio and most models share nothing.
            Self::SharedRatios => Some(1.0 + point.shared_ratio),
            Self::WidthGranularities => point.is_sparse().then_some(point.width_granularity),
            Self::DenseBudgets => (!point.is_sparse()).then_some(point.training_flops),
            Self::MixtureBudgets => point.is_sparse().then_some(point.training_flops),
        }
    }

    /// "1 granularity", "2 granularities".
    pub(super) fn in_words(self, count: usize) -> String {
        let (one, several) = match self {
            Self::Sizes => ("model size", "model sizes"),
            Self::ActiveShares => ("share of active parameters", "shares of active parameters"),
            Self::Tokens => ("token count", "token counts"),
            Self::ExpansionRates => ("number of experts", "numbers of experts"),
            Self::Granularities | Self::WidthGranularities => ("granularity", "granularities"),
            Self::ActiveExperts => ("number of active experts", "numbers of active experts"),
            Self::SharedRatios => ("share of shared experts", "shares of shared experts"),
            Self::DenseBudgets => ("compute of dense runs", "computes of dense runs"),
            Self::MixtureBudgets => ("compute of mixtures", "computes of mixtures"),
        };
        format!("{count} {}", if count == 1 { one } else { several })
    }
}

/// "3 model sizes, 3 token counts and 2 granularities".
pub(super) fn counts_in_words(counts: &[(Quantity, usize)]) -> String {
    let counts: Vec<String> = counts.iter().map(|&(quantity, count)| quantity.in_words(count)).collect();
    match counts.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    }
}

/// Whether two sizes count as one.
pub(super) fn is_same_size(one: f64, other: f64) -> bool {
    (one / other).ln().abs() <= SAME_SIZE
}

/// How many of `values` differ from the ones below them by more than [`SAME_SIZE`].
fn num_distinct(mut values: Vec<f64>) -> usize {
    values.sort_by(f64::total_cmp);
    values.chunk_by(|one, next| is_same_size(*next, *one)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_differ_by_a_router_are_one() {
        assert_eq!(num_distinct(vec![1.01e7, 1e7, 3e7, 1e9]), 3);
        assert_eq!(num_distinct(Vec::new()), 0);
    }

    #[test]
    fn counts_are_a_sentence() {
        let counts = [(Quantity::Sizes, 3), (Quantity::Tokens, 1), (Quantity::Granularities, 2)];
        assert_eq!(counts_in_words(&counts), "3 model sizes, 1 token count and 2 granularities");
        assert_eq!(counts_in_words(&counts[..1]), "3 model sizes");
        assert_eq!(counts_in_words(&[]), "");
    }
}
