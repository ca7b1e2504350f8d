//! Several arms against one baseline: the more there are, the more often one is ahead by luck.

use super::evidence::AXES;
use super::result::{ArmComparison, AxisComparison, Question};
use crate::statistics::{Adjusted, Stopping, Verdict, holm};

/// On each axis, adjusts the p-values and the intervals of `comparisons` for their number, and takes
/// back the verdicts that do not survive.
pub(super) fn adjust(comparisons: &mut [ArmComparison], question: &Question, stopping: Stopping) {
    let level = 1.0 - question.confidence;
    for axis in AXES {
        let mut of_axis: Vec<&mut AxisComparison> = comparisons
            .iter_mut()
            .filter_map(|comparison| comparison.axes.iter_mut().find(|on| on.axis == axis))
            .filter(|on| on.p_value.is_some())
            .collect();
        let num_arms = of_axis.len();
        let p_values: Vec<f64> = of_axis.iter().filter_map(|on| on.p_value).collect();
        for (on, Adjusted { p_value, num_left }) in of_axis.iter_mut().zip(holm(&p_values)) {
            on.adjusted_p_value = Some(p_value);
            let confidence = 1.0 - level / num_left as f64;
            on.adjusted_interval = on.difference.interval_at(confidence, stopping);
            if on.verdict.is_decided() && p_value > level {
                on.reasons.push(format!(
                    "By itself it {}, but not among {num_arms} arms (p = {p_value:.3} by Holm's procedure).",
                    on.verdict.word()
                ));
                on.verdict = Verdict::Undecided;
            }
            // What is decided needs no more seeds.
            on.seeds_to_decide = on
                .difference
                .pairs_to_decide(question.margin, confidence)
                .filter(|_| !on.verdict.is_decided());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::result::Axis;

    #[test]
    fn a_verdict_that_is_right_for_one_arm_may_be_undecided_among_several() {
        let question = Question::of_nats(Axis::Tokens, 0.0);
        let narrow = || ArmComparison::of_differences(&[-0.01, -0.02, -0.03, -0.005, -0.012, 0.002]);
        let clear = || ArmComparison::of_differences(&[-0.1, -0.11, -0.12, -0.1, -0.11, -0.12]);
        let verdicts = |mut arms: Vec<ArmComparison>| {
            adjust(&mut arms, &question, Stopping::Planned);
            arms.iter().map(|arm| arm.axes[0].verdict).collect::<Vec<_>>()
        };
        assert_eq!(verdicts(vec![narrow()]), [Verdict::Wins]);
        let three = vec![
            narrow(),
            ArmComparison::of_differences(&[0.1, -0.1, 0.2]),
            ArmComparison::of_differences(&[0.0, 0.01, -0.01]),
            clear(),
        ];
        assert_eq!(
            verdicts(three),
            [Verdict::Undecided, Verdict::Undecided, Verdict::Undecided, Verdict::Wins]
        );
    }

    #[test]
    fn seeds_are_asked_for_only_where_they_could_decide() {
        let question = Question::of_nats(Axis::Tokens, 0.0);
        let seeds = |differences: &[f64]| {
            let mut arms = [ArmComparison::of_differences(differences)];
            adjust(&mut arms, &question, Stopping::Planned);
            (arms[0].axes[0].verdict, arms[0].axes[0].seeds_to_decide)
        };
        assert_eq!(seeds(&[-0.1, -0.11, -0.12, -0.1, -0.11, -0.12]), (Verdict::Wins, None));
        let (verdict, wanted) = seeds(&[-0.1, 0.02, -0.05, 0.01, -0.03, 0.02]);
        assert!(verdict == Verdict::Undecided && wanted.is_some_and(|seeds| seeds > 6), "{wanted:?}");
    }
}
