//! How long a run still takes.

use switchyard_trainer::metrics::StepRecord;

/// Steps that the pace is taken from: enough to even out evaluations, few enough to follow a
/// change.
const PACE_STEPS: usize = 50;

/// Seconds until step `num_steps` at the pace of the newest steps, evaluations and checkpoints
/// between them included; none before the first step.
pub(super) fn secs_left(steps: &[&StepRecord], num_steps: u64) -> Option<f64> {
    let newest = steps.last()?;
    let recent = &steps[steps.len().saturating_sub(PACE_STEPS + 1)..];
    let (num_recent, secs) = recent.first().map_or((0, 0.0), |first| {
        (newest.step.saturating_sub(first.step), newest.elapsed_secs - first.elapsed_secs)
    });
    let secs_per_step = if num_recent > 0 { secs / num_recent as f64 } else { newest.step_secs };
    Some(num_steps.saturating_sub(newest.step) as f64 * secs_per_step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::sample_rows::step;

    /// Steps of a second each, the last ten of two.
    fn steps(num_steps: u64) -> Vec<StepRecord> {
        let elapsed = |step: u64| step as f64 + step.saturating_sub(num_steps - 10) as f64;
        let row = |number: u64| {
            let row = step(number, 3.0, Vec::new()).as_step().unwrap().clone();
            StepRecord { elapsed_secs: elapsed(number), step_secs: 7.0, ..row }
        };
        (1..=num_steps).map(row).collect()
    }

    fn left(steps: &[StepRecord], num_steps: u64) -> Option<f64> {
        secs_left(&steps.iter().collect::<Vec<_>>(), num_steps)
    }

    #[test]
    fn the_pace_is_that_of_the_newest_steps() {
        // Fifty steps back: forty of one second, ten of two.
        assert_eq!(left(&steps(100), 150), Some(50.0 * 60.0 / 50.0));
        assert_eq!(left(&steps(11), 21), Some(10.0 * 2.0));
    }

    #[test]
    fn one_step_is_judged_by_its_own_duration() {
        assert_eq!(left(&steps(100)[99..], 102), Some(14.0));
        assert_eq!(left(&[], 10), None);
    }

    #[test]
    fn a_run_beyond_its_plan_has_no_time_left() {
        assert_eq!(left(&steps(100), 80), Some(0.0));
    }
}
