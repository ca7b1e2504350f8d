//! Several comparisons with one baseline: what still counts when there are many.

/// `p_values` adjusted by Holm's step-down procedure (Scandinavian Journal of Statistics 6, 1979):
/// those that are at most alpha are rejected together with a probability of at most alpha that any
/// of them is wrong, whatever the comparisons have in common. In the order given.
pub(crate) fn holm(p_values: &[f64]) -> Vec<Adjusted> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut adjusted = vec![Adjusted { p_value: 1.0, num_left: 1 }; p_values.len()];
    let mut largest = 0.0_f64;
    for (rank, &index) in order.iter().enumerate() {
        let num_left = p_values.len() - rank;
        largest = largest.max(num_left as f64 * p_values[index]);
        adjusted[index] = Adjusted { p_value: largest.min(1.0), num_left };
    }
    adjusted
}

/// A comparison among several.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Adjusted {
    /// Its p-value, adjusted.
    pub(crate) p_value: f64,
    /// Comparisons, itself included, that are still to be judged when it is its turn: it is judged
    /// at a level so many times smaller.
    pub(crate) num_left: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::anytime::anytime_p_value;
    use crate::statistics::paired::t_test;
    use crate::statistics::simulated::coverage;

    /// p-values of six widths against a dense baseline (`experiments/LOG.md`, expert count), and
    /// what R's `p.adjust(p, "holm")` makes of them.
    #[test]
    fn a_published_family_is_adjusted_as_r_does() {
        let adjusted = holm(&[0.0073, 0.0013, 0.0096, 0.0248, 0.0197, 0.0673]);
        let expected = [0.0365, 0.0078, 0.0384, 0.0591, 0.0591, 0.0673];
        for (adjusted, expected) in adjusted.iter().zip(expected) {
            assert!((adjusted.p_value - expected).abs() < 1e-9, "{adjusted:?} {expected}");
        }
        let num_left: Vec<usize> = adjusted.iter().map(|adjusted| adjusted.num_left).collect();
        assert_eq!(num_left, [5, 6, 4, 2, 3, 1]);
        assert_eq!(holm(&[]), []);
        assert_eq!(holm(&[0.03]), [Adjusted { p_value: 0.03, num_left: 1 }]);
    }

    /// Three arms, none of them better: three seeds are judged by Student's test, and as long as no arm
    /// wins one seed after the other is added, up to twenty, judged by the confidence sequence.
    #[test]
    fn no_stopping_and_no_number_of_arms_wins_by_luck_in_more_than_one_study_of_twenty() {
        let (mut by_rule, mut by_student) = (0, 0);
        let num_studies = 2_000;
        coverage(num_studies, |noise| {
            let losses: Vec<[f64; 4]> = (0..20).map(|_| std::array::from_fn(|_| noise.next())).collect();
            let wins = |num_seeds: usize, test: fn(&[f64], f64) -> Option<f64>| {
                let arms: Vec<Vec<f64>> = (1..4)
                    .map(|arm| losses[..num_seeds].iter().map(|seed| seed[arm] - seed[0]).collect())
                    .collect();
                let p_values: Vec<f64> = arms.iter().map(|arm| test(arm, 0.0).unwrap()).collect();
                let is_ahead = |arm: &Vec<f64>| arm.iter().sum::<f64>() < 0.0;
                arms.iter().zip(holm(&p_values)).any(|(arm, p)| is_ahead(arm) && p.p_value <= 0.05)
            };
            by_rule += u64::from(wins(3, t_test) || (4..=20).any(|n| wins(n, anytime_p_value)));
            by_student += u64::from((3..=20).any(|n| wins(n, t_test)));
            true
        });
        let share = |count: u64| count as f64 / num_studies as f64;
        assert!(share(by_rule) <= 0.05, "{}", share(by_rule));
        assert!(share(by_student) > 0.08, "without the sequence: {}", share(by_student));
    }

    /// Arms that share a baseline, none of them better.
    #[test]
    fn no_number_of_arms_wins_by_luck_more_often_than_one() {
        for num_arms in [1, 2, 3, 6] {
            let (mut alone, mut together) = (0, 0);
            let num_studies = 2_000;
            coverage(num_studies, |noise| {
                let baseline: Vec<f64> = (0..6).map(|_| noise.next()).collect();
                let mut arm = || baseline.iter().map(|theirs| noise.next() - theirs).collect();
                let arms: Vec<Vec<f64>> = (0..num_arms).map(|_| arm()).collect();
                let p_values: Vec<f64> =
                    arms.iter().map(|differences| t_test(differences, 0.0).unwrap()).collect();
                let wins = |p_values: &[f64]| {
                    let is_ahead = |arm: &Vec<f64>| arm.iter().sum::<f64>() < 0.0;
                    u64::from(arms.iter().zip(p_values).any(|(arm, &p)| is_ahead(arm) && p <= 0.05))
                };
                alone += wins(&p_values);
                let adjusted: Vec<f64> = holm(&p_values).iter().map(|adjusted| adjusted.p_value).collect();
                together += wins(&adjusted);
                true
            });
            let share = |count: u64| count as f64 / num_studies as f64;
            // A win is one of the two sides; standard error at 0.025: 0.0035.
            assert!(share(together) <= 0.025 + 0.0105, "{num_arms} arms: {}", share(together));
            if num_arms == 6 {
                assert!(share(alone) > 0.07, "without the adjustment: {}", share(alone));
            }
        }
    }
}
