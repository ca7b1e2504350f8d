//! Successive halving (Jamieson and Talwalkar, arXiv:1502.07943): many candidates are tried for a
//! few steps, the better ones for more.
//!
//! There the losses are those of one run that is continued. Here each rung is a run of its own,
//! with its own schedule from warm-up to the last decay: the loss of a run that is cut off while
//! its learning rate is still high says little about the loss at the end, because most of the last
//! gain comes from the decay. The price is that the steps of a rung are not used again: where steps
//! grow threefold, half as many more for a candidate that reaches the end. What remains is a bet: a
//! candidate that is slow at first and best at the end is stopped.

use switchyard_trainer::config::{ScheduleConfig, ScheduleShapeConfig};

use super::file::HalvingConfig;

/// One round of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rung {
    /// Optimizer steps of its runs.
    pub(crate) num_steps: u64,
    /// Candidates that take part, unless more diverged before.
    pub(crate) num_candidates: usize,
}

/// The rounds of a sweep of `num_candidates`, the last at `num_steps`; one round without `halving`.
/// Steps grow by the factor, candidates shrink by it, rounded up. A single candidate that is left
/// has nothing to be compared with and goes to the last round at once.
///
/// # Panics
/// If the factor is below 2 or the first round has no steps, which the sweep file's checks exclude.
pub(crate) fn rungs(num_candidates: usize, halving: Option<&HalvingConfig>, num_steps: u64) -> Vec<Rung> {
    let mut rungs = Vec::new();
    let mut left = num_candidates;
    if let Some(&HalvingConfig { factor, first_steps }) = halving {
        assert!(factor >= 2 && first_steps >= 1, "factor {factor}, first steps {first_steps}");
        let mut steps = first_steps;
        while steps < num_steps && left > 1 {
            rungs.push(Rung { num_steps: steps, num_candidates: left });
            left = left.div_ceil(factor);
            steps = steps.saturating_mul(factor as u64);
        }
    }
    rungs.push(Rung { num_steps, num_candidates: left });
    rungs
}

/// Positions in `mean_losses_nats` from the best to the worst. A loss is `None` if any run of the
/// candidate diverged: these come last. Equals stay in their order.
pub(crate) fn ranked(mean_losses_nats: &[Option<f64>]) -> Vec<usize> {
    let loss =
        |position: usize| mean_losses_nats[position].filter(|nats| nats.is_finite()).unwrap_or(f64::INFINITY);
    let mut order: Vec<usize> = (0..mean_losses_nats.len()).collect();
    order.sort_by(|&a, &b| loss(a).total_cmp(&loss(b)));
    order
}

/// Positions of the best `num_places`, in their order of position; fewer if the others diverged.
pub(crate) fn going_on(mean_losses_nats: &[Option<f64>], num_places: usize) -> Vec<usize> {
    let has_loss = |position: &usize| mean_losses_nats[*position].is_some_and(f64::is_finite);
    let mut positions: Vec<usize> =
        ranked(mean_losses_nats).into_iter().filter(has_loss).take(num_places).collect();
    positions.sort_unstable();
    positions
}

/// Shorten the parts of a schedule that are counted in steps from a run of `full_steps` to one of
/// `num_steps`.
pub(crate) fn shorten_schedule(schedule: &mut ScheduleConfig, num_steps: u64, full_steps: u64) {
    let shorten = |steps: u64| (steps as f64 * num_steps as f64 / full_steps as f64).round() as u64;
    schedule.warmup_steps = shorten(schedule.warmup_steps);
    if let Some(ScheduleShapeConfig::Wsd(wsd)) = &mut schedule.shape {
        wsd.decay_steps = shorten(wsd.decay_steps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use switchyard_trainer::config::WsdConfig;

    fn pairs(num_candidates: usize, factor: usize, first_steps: u64, num_steps: u64) -> Vec<(u64, usize)> {
        let halving = HalvingConfig { factor, first_steps };
        let rungs = rungs(num_candidates, Some(&halving), num_steps);
        rungs.iter().map(|rung| (rung.num_steps, rung.num_candidates)).collect()
    }

    #[test]
    fn steps_grow_and_candidates_shrink_by_the_factor() {
        assert_eq!(pairs(27, 3, 50, 1350), [(50, 27), (150, 9), (450, 3), (1350, 1)]);
        assert_eq!(pairs(12, 3, 50, 400), [(50, 12), (150, 4), (400, 2)]);
    }

    #[test]
    fn a_single_candidate_goes_to_the_full_length_at_once() {
        assert_eq!(pairs(1, 3, 50, 400), [(400, 1)]);
        assert_eq!(pairs(2, 2, 10, 10_000), [(10, 2), (10_000, 1)]);
    }

    #[test]
    fn without_halving_all_run_at_full_length() {
        assert_eq!(rungs(12, None, 400), [Rung { num_steps: 400, num_candidates: 12 }]);
        assert_eq!(pairs(12, 3, 400, 400), [(400, 12)]);
    }

    #[test]
    fn a_diverged_candidate_is_the_worst_and_takes_no_place() {
        let losses = [None, Some(3.0), Some(f64::NAN), Some(2.0)];
        assert_eq!(ranked(&losses), [3, 1, 0, 2]);
        assert_eq!(going_on(&losses, 3), [1, 3]);
        assert_eq!(going_on(&[None, None], 1), [0_usize; 0]);
    }

    #[test]
    fn equals_stay_in_their_order() {
        assert_eq!(ranked(&[Some(2.0), Some(1.0), Some(2.0), Some(1.0)]), [1, 3, 0, 2]);
    }

    #[test]
    fn a_shortened_schedule_keeps_its_shares_and_the_full_one_its_numbers() {
        let wsd = WsdConfig { decay_steps: 100, min_learning_rate: 0.0 };
        let schedule = ScheduleConfig { warmup_steps: 40, shape: Some(ScheduleShapeConfig::Wsd(wsd)) };
        let at = |num_steps: u64| {
            let mut shortened = schedule.clone();
            shorten_schedule(&mut shortened, num_steps, 400);
            let Some(ScheduleShapeConfig::Wsd(wsd)) = shortened.shape else { panic!("another shape") };
            (shortened.warmup_steps, wsd.decay_steps)
        };
        assert_eq!((at(400), at(100)), ((40, 100), (10, 25)));
    }

    proptest! {
        #[test]
        fn the_last_round_is_of_full_length_and_has_someone(
            num_candidates in 1..500_usize, factor in 2..6_usize, first_steps in 1..500_u64, more in 0..5000_u64
        ) {
            let num_steps = first_steps + more;
            let rungs = pairs(num_candidates, factor, first_steps, num_steps);
            prop_assert_eq!(rungs[0].1, num_candidates);
            prop_assert_eq!(rungs[rungs.len() - 1].0, num_steps);
            prop_assert!(rungs.iter().all(|rung| rung.1 >= 1));
            for pair in rungs.windows(2) {
                prop_assert!(pair[0].0 < pair[1].0 && pair[0].1 > pair[1].1);
                prop_assert_eq!(pair[1].1, pair[0].1.div_ceil(factor));
            }
        }

        #[test]
        fn whoever_stops_is_no_better_than_whoever_goes_on(
            losses in prop::collection::vec(prop::option::of(1.0..9.0_f64), 1..40), num_places in 1..10_usize
        ) {
            let staying = going_on(&losses, num_places);
            let finite = losses.iter().flatten().count();
            prop_assert_eq!(staying.len(), num_places.min(finite));
            let worst = staying.iter().filter_map(|&position| losses[position]).fold(0.0, f64::max);
            for position in (0..losses.len()).filter(|position| !staying.contains(position)) {
                prop_assert!(losses[position].is_none_or(|nats| nats >= worst || staying.len() < num_places));
            }
        }

        #[test]
        fn a_ranking_names_every_position_once(losses in prop::collection::vec(prop::option::of(1.0..9.0_f64), 0..40)) {
            let mut order = ranked(&losses);
            order.sort_unstable();
            prop_assert_eq!(order, (0..losses.len()).collect::<Vec<_>>());
        }
    }
}
