use proptest::prelude::*;

use super::*;
use crate::statistics::simulated::coverage;

/// Hours of sleep gained with one drug minus those with another, by patient: Student, Biometrika 6
/// (1908), p. 20. The expected values below are those of
/// `t.test(extra ~ group, data = sleep, paired = TRUE)` in the manual of R.
const SLEEP: [f64; 10] = [-1.2, -2.4, -1.3, -1.3, 0.0, -1.0, -1.8, -0.8, -4.6, -1.4];

fn paired(differences: &[f64]) -> PairedDifference {
    PairedDifference::new(differences, 0.95).unwrap()
}

fn contains(interval: Option<Interval>, value: f64) -> bool {
    interval.is_some_and(|interval| interval.low <= value && value <= interval.high)
}

#[test]
fn students_sleep_data_give_the_published_interval() {
    let sleep = paired(&SLEEP);
    let interval = sleep.t_interval.unwrap();
    assert!((sleep.mean + 1.58).abs() < 1e-12);
    assert!((sleep.standard_deviation.unwrap() - 1.229_995).abs() < 1e-6);
    assert!((interval.low + 2.459_885_8).abs() < 1e-7 && (interval.high + 0.700_114_2).abs() < 1e-7);
    assert_eq!(sleep.sign_consistency, 0.9);
}

#[test]
fn the_verdict_asks_for_the_whole_interval_beyond_the_margin() {
    let sleep = paired(&SLEEP);
    assert_eq!(sleep.verdict(0.0, Stopping::Planned), Verdict::Wins);
    assert_eq!(sleep.verdict(0.7, Stopping::Planned), Verdict::Wins);
    assert_eq!(sleep.verdict(0.71, Stopping::Planned), Verdict::Undecided);
    assert_eq!(paired(&SLEEP.map(|hours| -hours)).verdict(0.7, Stopping::Planned), Verdict::Loses);
}

/// Differences of 32 experts on text (`experiments/LOG.md`), judged among two arms: Student's interval
/// of eight such pairs would decide, which is not the one that seeds added after a look are judged by.
#[test]
fn the_pairs_to_decide_are_those_of_the_rule_that_will_judge_them() {
    let text = paired(&[-0.04796, -0.04746, -0.05930, -0.01600, -0.01066, 0.01202]);
    // By the definition of the sequence, computed apart.
    assert_eq!(text.pairs_to_decide(0.005, 0.975), Some(20));
    assert_eq!(text.pairs_to_decide(0.005, 0.95), Some(18));
    let sleep = paired(&SLEEP);
    assert_eq!(sleep.pairs_to_decide(1.0, 0.95), Some(50));
    assert_eq!(sleep.pairs_to_decide(1.6, 0.95), None, "the mean is within the margin");
    assert_eq!(sleep.pairs_to_decide(1.5799, 0.95), Some(MOST_PAIRS));
}

#[test]
fn one_pair_is_a_mean_without_an_interval() {
    let one = paired(&[-0.3]);
    assert_eq!((one.mean, one.sign_consistency), (-0.3, 1.0));
    assert_eq!((one.standard_deviation, one.t_interval, one.bootstrap_interval), (None, None, None));
    assert_eq!(
        (one.verdict(0.0, Stopping::Planned), one.pairs_to_decide(0.0, 0.95)),
        (Verdict::Undecided, None)
    );
}

#[test]
fn two_pairs_have_a_t_interval_only() {
    let two = paired(&[-0.3, -0.1]);
    assert!(two.t_interval.is_some() && two.bootstrap_interval.is_none());
}

#[test]
fn equal_differences_have_an_interval_without_width() {
    let equal = paired(&[-0.25; 4]);
    let point = Interval { low: -0.25, high: -0.25 };
    assert_eq!((equal.t_interval, equal.bootstrap_interval), (Some(point), Some(point)));
    assert_eq!(equal.verdict(0.0, Stopping::Planned), Verdict::Wins);
    assert_eq!(equal.verdict(0.25, Stopping::Planned), Verdict::Undecided);
    assert_eq!(equal.pairs_to_decide(0.3, 0.95), None);
}

#[test]
fn equal_arms_are_undecided_for_any_number_of_pairs() {
    let equal = paired(&[0.0; 5]);
    assert_eq!(
        (equal.verdict(0.0, Stopping::Planned), equal.pairs_to_decide(0.0, 0.95)),
        (Verdict::Undecided, None)
    );
    assert_eq!(equal.sign_consistency, 1.0);
    assert_eq!(paired(&[1.0, -1.0]).sign_consistency, 0.0, "no difference is zero as the mean is");
}

#[test]
fn what_is_no_number_is_refused() {
    for differences in [&[][..], &[f64::NAN], &[1.0, f64::INFINITY], &[f64::MAX, f64::MAX], &[1e200, -1e200]]
    {
        assert_eq!(PairedDifference::new(differences, 0.95), None, "{differences:?}");
    }
    for confidence in [0.0, 1.0, f64::NAN] {
        assert_eq!(PairedDifference::new(&[0.1, 0.2, 0.3], confidence), None);
    }
}

#[test]
fn both_intervals_cover_the_true_mean_about_as_often_as_they_say() {
    for num_pairs in [3, 5, 10] {
        let mut bootstrap_hits = 0;
        let t_coverage = coverage(400, |noise| {
            let differences: Vec<f64> = (0..num_pairs).map(|_| 0.7 + 0.2 * noise.next()).collect();
            let difference = paired(&differences);
            bootstrap_hits += u32::from(contains(difference.bootstrap_interval, 0.7));
            contains(difference.t_interval, 0.7)
        });
        let bootstrap_coverage = f64::from(bootstrap_hits) / 400.0;
        // The standard error of a coverage of 0.95 over 400 studies is 0.011.
        assert!((t_coverage - 0.95).abs() < 0.033, "t, {num_pairs} pairs: {t_coverage}");
        assert!(
            (bootstrap_coverage - 0.95).abs() < 0.045,
            "bootstrap, {num_pairs} pairs: {bootstrap_coverage}"
        );
    }
}

#[test]
fn the_bootstrap_of_many_pairs_is_the_t_interval() {
    let mut noise = crate::statistics::simulated::NormalNoise::new(7);
    let differences: Vec<f64> = (0..300).map(|_| noise.next()).collect();
    let (t, bootstrap) =
        (paired(&differences).t_interval.unwrap(), paired(&differences).bootstrap_interval.unwrap());
    // The interval is 0.23 wide; its ends move by about 0.002 with the resamples.
    assert!((t.low - bootstrap.low).abs() < 0.01 && (t.high - bootstrap.high).abs() < 0.01);
}

proptest! {
    #[test]
    fn swapping_the_arms_negates(differences in prop::collection::vec(-1.0..1.0_f64, 2..8), margin in 0.0..0.2_f64) {
        let swapped: Vec<f64> = differences.iter().map(|difference| -difference).collect();
        let (forward, backward) = (paired(&differences), paired(&swapped));
        let (there, back) = (forward.t_interval.unwrap(), backward.t_interval.unwrap());
        prop_assert_eq!(forward.mean, -backward.mean);
        prop_assert_eq!((there.low, there.high), (-back.high, -back.low));
        prop_assert_eq!(forward.sign_consistency, backward.sign_consistency);
        let to_decide = |of: &PairedDifference| of.pairs_to_decide(margin, 0.95);
        prop_assert_eq!(to_decide(&forward), to_decide(&backward));
        let opposite = match forward.verdict(margin, Stopping::Planned) {
            Verdict::Wins => Verdict::Loses,
            Verdict::Loses => Verdict::Wins,
            other => other,
        };
        prop_assert_eq!(backward.verdict(margin, Stopping::Planned), opposite);
    }

    #[test]
    fn the_mean_is_inside_its_intervals(differences in prop::collection::vec(-1.0..1.0_f64, 3..8)) {
        let difference = paired(&differences);
        prop_assert!(contains(difference.t_interval, difference.mean));
        prop_assert!(contains(difference.bootstrap_interval, difference.mean));
    }

    #[test]
    fn the_pairs_to_decide_decide_and_one_less_do_not(
        differences in prop::collection::vec(-1.0..1.0_f64, 2..8), margin in 0.0..0.2_f64,
    ) {
        let difference = paired(&differences);
        let to_decide = difference.pairs_to_decide(margin, 0.95);
        if let Some(pairs) = to_decide.filter(|&pairs| pairs < MOST_PAIRS) {
            let deviation = difference.standard_deviation.unwrap();
            let reach = |pairs: u64| anytime_reach(0.95, pairs as usize).unwrap_or(f64::INFINITY);
            let half = |pairs: u64| reach(pairs) * deviation / (pairs as f64).sqrt();
            let edge = |pairs| difference.mean.abs() - half(pairs);
            prop_assert!(pairs > differences.len() as u64 && edge(pairs) > margin);
            prop_assert!(pairs == differences.len() as u64 + 1 || edge(pairs - 1) <= margin);
        }
    }
}
