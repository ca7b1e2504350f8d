//! Solving for the width at which an arm costs what the baseline costs.

use switchyard_trainer::plan::RunPlan;

use super::result::HeldEqual;

/// What `held_equal` compares of a plan; `None` if no width can change it.
pub(crate) fn quantity(held_equal: HeldEqual, plan: &RunPlan) -> Option<f64> {
    match held_equal {
        HeldEqual::ActiveFlops => Some(plan.counts.training_flops_per_token as f64),
        HeldEqual::TotalParams => Some(plan.counts.total_params as f64),
        // The process around the run is the same for each arm: with it, small arms would look
        // equal.
        HeldEqual::Memory => Some(plan.memory.run_bytes() as f64),
        HeldEqual::WallClock | HeldEqual::Tokens => None,
    }
}

/// Widths beyond this mean that the key does not change the quantity.
const WIDEST: usize = 1 << 22;

/// The multiple of `multiple` at which the rising function `quantity_at` comes nearest to `target`,
/// in ratio.
///
/// # Errors
/// Those of `quantity_at`. No width is found if even the smallest costs more than twice the target,
/// or none reaches it.
pub(crate) fn nearest_width<E>(
    target: f64,
    multiple: usize,
    mut quantity_at: impl FnMut(usize) -> Result<f64, E>,
) -> Result<Option<usize>, E> {
    let mut at = |count: usize| quantity_at(count * multiple);
    if at(1)? > 2.0 * target {
        return Ok(None);
    }
    let (mut low, mut high) = (1, 2);
    while at(high)? < target {
        if high * multiple > WIDEST {
            return Ok(None);
        }
        (low, high) = (high, high * 2);
    }
    // at(low) < target <= at(high), unless the smallest is above the target already.
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if at(middle)? < target { low = middle } else { high = middle }
    }
    let distance = |quantity: f64| (quantity / target).ln().abs();
    let nearest = if distance(at(low)?) <= distance(at(high)?) { low } else { high };
    Ok(Some(nearest * multiple))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn solve(target: f64, multiple: usize, at: impl Fn(usize) -> f64) -> Option<usize> {
        let Ok(width) = nearest_width(target, multiple, |width| Ok::<_, Infallible>(at(width)));
        width
    }

    #[test]
    fn a_planted_width_is_found_exactly() {
        for planted in [8, 16, 24, 192, 4096, 65_528] {
            let cost = |width: usize| 1000.0 + 7.0 * width as f64;
            assert_eq!(solve(cost(planted), 8, cost), Some(planted));
        }
    }

    #[test]
    fn between_two_multiples_the_nearer_in_ratio_is_taken() {
        assert_eq!(solve(103.0, 8, |width| width as f64), Some(104));
        assert_eq!(solve(99.0, 8, |width| width as f64), Some(96));
    }

    #[test]
    fn a_target_that_no_width_can_meet_is_no_width() {
        assert_eq!(solve(10.0, 8, |width| 100.0 + width as f64), None);
        assert_eq!(solve(60.0, 8, |width| 100.0 + width as f64), Some(8));
        assert_eq!(solve(60.0, 8, |_| 50.0), None, "a key that changes nothing");
    }
}
