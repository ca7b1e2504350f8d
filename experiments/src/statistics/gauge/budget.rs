//! Samples grouped by the budget that they were measured at.

use std::collections::BTreeMap;

use super::GaugeSample;

/// Relative difference of compute up to which two samples are of one budget: rounding, not another
/// number of steps.
const SAME_BUDGET: f64 = 1e-6;

/// The gaps at one budget.
pub(super) struct Budget {
    /// Training compute in FLOPs: the smallest of its samples.
    pub(super) compute: f64,
    /// Gap by seed.
    pub(super) gaps: BTreeMap<u64, f64>,
}

/// The budgets of `samples`, compute ascending. `None` if a gap is not finite, a compute not finite
/// and above zero, or a seed twice at a budget, since then it would count twice.
pub(super) fn group_by_budget(samples: &[GaugeSample]) -> Option<Vec<Budget>> {
    let valid =
        |sample: &GaugeSample| sample.compute.is_finite() && sample.compute > 0.0 && sample.gap.is_finite();
    if !samples.iter().all(valid) {
        return None;
    }
    let mut samples = samples.to_vec();
    samples.sort_by(|left, right| left.compute.total_cmp(&right.compute));
    let mut budgets: Vec<Budget> = Vec::new();
    for sample in samples {
        match budgets.last_mut().filter(|last| sample.compute / last.compute - 1.0 <= SAME_BUDGET) {
            Some(budget) => {
                if budget.gaps.insert(sample.seed, sample.gap).is_some() {
                    return None;
                }
            }
            None => {
                let gaps = BTreeMap::from([(sample.seed, sample.gap)]);
                budgets.push(Budget { compute: sample.compute, gaps });
            }
        }
    }
    Some(budgets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(compute: f64, seed: u64, gap: f64) -> GaugeSample {
        GaugeSample { compute, seed, gap }
    }

    #[test]
    fn samples_of_one_budget_are_grouped_despite_rounding() {
        let samples = [sample(2e9, 1, 0.3), sample(1e9, 2, 0.2), sample(1e9 + 1.0, 1, 0.1)];
        let budgets = group_by_budget(&samples).unwrap();
        assert_eq!(budgets.len(), 2);
        assert_eq!((budgets[0].compute, budgets[0].gaps.len()), (1e9, 2));
        assert_eq!(budgets[1].gaps[&1], 0.3);
    }

    #[test]
    fn a_seed_that_is_twice_at_a_budget_is_refused() {
        assert!(group_by_budget(&[sample(1e9, 1, 0.1), sample(1e9, 1, 0.1)]).is_none());
    }

    #[test]
    fn what_has_no_place_on_a_logarithmic_axis_is_refused() {
        for (compute, gap) in
            [(0.0, 0.1), (-1.0, 0.1), (f64::NAN, 0.1), (f64::INFINITY, 0.1), (1.0, f64::NAN)]
        {
            assert!(group_by_budget(&[sample(compute, 1, gap)]).is_none(), "{compute} {gap}");
        }
    }
}
