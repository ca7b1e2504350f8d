use proptest::prelude::*;

use super::*;
use crate::statistics::simulated::{NormalNoise, coverage};

fn gauge_of(samples: &[GaugeSample]) -> Option<Gauge> {
    Gauge::new(samples, Measure::LOSS_IN_NATS, 0.95)
}

const BUDGETS: [f64; 5] = [1e15, 3e15, 1e16, 3e16, 1e17];

/// A study whose true gap is `slope` per decade and zero at `crossing`, with noise per seed and per
/// run.
#[derive(Clone, Copy)]
struct Planted {
    slope: f64,
    crossing: f64,
    seed_level_noise: f64,
    seed_slope_noise: f64,
    run_noise: f64,
}

impl Planted {
    const fn exact(slope: f64, crossing: f64) -> Self {
        Self { slope, crossing, seed_level_noise: 0.0, seed_slope_noise: 0.0, run_noise: 0.0 }
    }

    const fn noisy(slope: f64, crossing: f64) -> Self {
        Self { slope, crossing, seed_level_noise: 0.004, seed_slope_noise: 0.002, run_noise: 0.003 }
    }

    fn samples(self, num_seeds: u64, noise: &mut NormalNoise) -> Vec<GaugeSample> {
        let mut samples = Vec::new();
        for seed in 0..num_seeds {
            let level = self.seed_level_noise * noise.next();
            let slope = self.slope + self.seed_slope_noise * noise.next();
            for compute in BUDGETS {
                let true_gap = self.slope * (compute / self.crossing).log10();
                let from_seed = level + (slope - self.slope) * (compute / 1e16).log10();
                let gap = true_gap + from_seed + self.run_noise * noise.next();
                samples.push(GaugeSample { compute, seed, gap });
            }
        }
        samples
    }

    fn gauge(self, num_seeds: u64, noise_seed: u64) -> Gauge {
        gauge_of(&self.samples(num_seeds, &mut NormalNoise::new(noise_seed))).unwrap()
    }
}

fn covers(crossing: Crossing, compute: f64) -> bool {
    let (Crossing::WithinRange { interval, .. } | Crossing::Extrapolated { interval, .. }) = crossing else {
        return false;
    };
    let CrossingInterval { low, high } = interval.unwrap();
    low.is_none_or(|low| low <= compute) && high.is_none_or(|high| compute <= high)
}

#[test]
fn without_noise_a_crossing_is_exact_inside_and_beyond_the_range() {
    for (planted, inside) in [(2e15, true), (4e16, true), (5e17, false), (3e20, false)] {
        for (slope, num_seeds) in [(0.02, 1), (-0.02, 2), (0.02, 4)] {
            let gauge = Planted::exact(slope, planted).gauge(num_seeds, 0);
            let (Crossing::WithinRange { compute, interval } | Crossing::Extrapolated { compute, interval }) =
                gauge.crossing
            else {
                panic!("{planted} {slope}: {gauge:?}");
            };
            assert_eq!(matches!(gauge.crossing, Crossing::WithinRange { .. }), inside, "{planted}");
            assert!((compute / planted - 1.0).abs() < 1e-9, "{compute} {planted}");
            assert!((gauge.slope_per_decade - slope).abs() < 1e-12);
            assert_eq!(interval.is_some(), num_seeds >= 3);
        }
    }
}

#[test]
fn a_planted_crossing_is_found() {
    for noise_seed in 0..8 {
        let inside = Planted::noisy(0.02, 2e16).gauge(4, noise_seed);
        assert!(matches!(inside.crossing, Crossing::WithinRange { .. }), "{}", inside.sentence);
        let beyond = Planted::noisy(0.02, 1e18).gauge(4, noise_seed);
        assert!(matches!(beyond.crossing, Crossing::Extrapolated { .. }), "{}", beyond.sentence);
        assert_eq!((inside.trend, beyond.trend), (Trend::ArmLosesGround, Trend::ArmLosesGround));
    }
}

#[test]
fn the_intervals_of_crossing_and_slope_cover_the_truth_about_as_often_as_they_say() {
    for num_seeds in [3, 5] {
        for crossing in [2e16, 1e18] {
            let planted = Planted::noisy(0.02, crossing);
            let (mut slope_hits, mut num_bent) = (0, 0);
            let crossing_coverage = coverage(200, |noise| {
                let gauge = gauge_of(&planted.samples(num_seeds, noise)).unwrap();
                // Of these the line's crossing is not printed.
                let is_bent = gauge.straightness.unwrap().is_bent(0.95);
                num_bent += u32::from(is_bent);
                let slope = gauge.slope_interval.unwrap();
                slope_hits += u32::from(slope.low <= 0.02 && 0.02 <= slope.high);
                is_bent || covers(gauge.crossing, crossing)
            });
            assert!(num_bent <= 20, "{num_bent} of 200 straight gaps are called bent");
            let slope_coverage = f64::from(slope_hits) / 200.0;
            // The standard error of a coverage of 0.95 over 200 studies is 0.015.
            assert!(
                (crossing_coverage - 0.95).abs() < 0.05,
                "{num_seeds}, {crossing:e}: {crossing_coverage}"
            );
            assert!((slope_coverage - 0.95).abs() < 0.05, "{num_seeds}, slope: {slope_coverage}");
        }
    }
}

#[test]
fn a_seed_whose_gaps_drift_together_counts_as_one_measurement() {
    let drifting = Planted { seed_slope_noise: 0.01, run_noise: 1e-4, ..Planted::noisy(0.02, 1e18) };
    let slope_coverage = coverage(200, |noise| {
        let slope = gauge_of(&drifting.samples(5, noise)).unwrap().slope_interval.unwrap();
        slope.low <= 0.02 && 0.02 <= slope.high
    });
    assert!((slope_coverage - 0.95).abs() < 0.05, "{slope_coverage}");
}

/// Gaps of an arm with 32 experts to the dense model at 50, 100, 200 and 400 steps, five seeds, from
/// `figures/experts/runs.csv`: a line through them finds nothing, while the advantage has begun to
/// shrink.
#[test]
fn an_advantage_that_bends_back_is_called_shrinking() {
    let gaps = [
        [-0.07406, -0.07239, -0.08591, -0.05424, -0.06119],
        [-0.09376, -0.10177, -0.10422, -0.09551, -0.09952],
        [-0.08913, -0.10094, -0.08700, -0.09503, -0.09313],
        [-0.02995, -0.04539, -0.08756, -0.07184, -0.05647],
    ];
    let compute = [1.561e11, 3.122e11, 6.244e11, 1.2488e12];
    let samples: Vec<GaugeSample> = compute
        .iter()
        .zip(gaps)
        .flat_map(|(&compute, gaps)| {
            (0..).zip(gaps).map(move |(seed, gap)| GaugeSample { compute, seed, gap })
        })
        .collect();
    let gauge = gauge_of(&samples).unwrap();
    let line = gauge.slope_interval.unwrap();
    assert!(line.low < 0.0 && line.high > 0.0, "the line alone is undecided: {line:?}");
    let straightness = gauge.straightness.unwrap();
    // Recomputed without this code: quadratic contrast t(4), p = 0.006; last interval +0.116
    // [+0.014, +0.217].
    assert!((straightness.p_value - 0.006).abs() < 0.001, "{straightness:?}");
    assert!((straightness.last_slope - 0.116).abs() < 0.001, "{straightness:?}");
    assert!((straightness.last_interval.low - 0.014).abs() < 0.001, "{straightness:?}");
    assert!((straightness.last_interval.high - 0.217).abs() < 0.001, "{straightness:?}");
    assert_eq!(gauge.trend, Trend::ArmLosesGround);
    assert_eq!(gauge.crossing, Crossing::NotWithinReach);
    assert!(
        gauge.sentence.starts_with("The arm's advantage shrinks with compute: no straight line fits"),
        "{}",
        gauge.sentence
    );
}

/// The same truth with noise of its size, in 2,000 studies: the line alone is undecided in most.
#[test]
fn a_gap_that_bends_is_called_by_its_last_budgets_in_nine_studies_of_ten() {
    let truth = [-0.0696, -0.0990, -0.0930, -0.0582];
    let called = coverage(2_000, |noise| {
        let mut samples = Vec::new();
        for seed in 0..5 {
            let level = 0.004 * noise.next();
            for (budget, gap) in truth.iter().enumerate() {
                let spread = [0.011, 0.004, 0.005, 0.022][budget];
                let gap = gap + level + spread * noise.next();
                samples.push(GaugeSample { compute: 1.561e11 * 2_f64.powi(budget as i32), seed, gap });
            }
        }
        let budgets = group_by_budget(&samples).unwrap();
        let found = Straightness::new(&budgets, 0.95).unwrap();
        found.is_bent(0.95) && found.last_slope > 0.0
    });
    assert!(called > 0.9, "{called}");
}

#[test]
fn a_straight_gap_is_called_bent_as_often_as_the_level_says() {
    let planted = Planted::noisy(0.02, 1e18);
    let bent = coverage(2_000, |noise| {
        let budgets = group_by_budget(&planted.samples(5, noise)).unwrap();
        Straightness::new(&budgets, 0.95).unwrap().is_bent(0.95)
    });
    // Three standard errors of 2,000 studies at 0.05.
    assert!((bent - 0.05).abs() < 0.015, "{bent}");
}

#[test]
fn an_advantage_that_grows_never_crosses() {
    let gauge = Planted::exact(-0.02, 1e14).gauge(3, 0);
    assert_eq!((gauge.trend, gauge.crossing), (Trend::ArmGains, Crossing::NotWithinReach));
    assert!(gauge.intercept_at_largest < 0.0);
    assert!(
        gauge.sentence.ends_with(
            "It leads away from zero, and no mean gap changes its sign within the range measured."
        )
    );
}

#[test]
fn an_arm_that_falls_further_behind_never_crosses() {
    let gauge = Planted::exact(0.02, 1e14).gauge(3, 0);
    assert_eq!((gauge.trend, gauge.crossing), (Trend::ArmLosesGround, Crossing::NotWithinReach));
    assert!(gauge.intercept_at_largest > 0.0);
}

#[test]
fn a_crossing_many_decades_away_is_not_within_reach() {
    let gauge = Planted::exact(0.001, 2e23).gauge(3, 0);
    assert_eq!((gauge.trend, gauge.crossing), (Trend::ArmLosesGround, Crossing::NotWithinReach));
    assert!(gauge.sentence.ends_with("more than six decades beyond the largest budget."));
    assert_ne!(Planted::exact(0.001, 5e22).gauge(3, 0).crossing, Crossing::NotWithinReach);
}

#[test]
fn noise_without_a_trend_is_rarely_taken_for_one_and_never_extrapolated() {
    let shared = Planted::noisy(0.0, 1e16);
    // The regression of one seed cannot see a drift that all its gaps share.
    let independent = Planted { seed_slope_noise: 0.0, ..shared };
    for (planted, num_seeds) in [(independent, 1), (shared, 3), (shared, 5)] {
        let undecided = coverage(200, |noise| {
            let ahead = |sample: GaugeSample| GaugeSample { gap: sample.gap - 0.02, ..sample };
            let samples: Vec<_> = planted.samples(num_seeds, noise).into_iter().map(ahead).collect();
            let gauge = gauge_of(&samples).unwrap();
            assert!(gauge.trend != Trend::Undecided || gauge.crossing == Crossing::NotWithinReach);
            gauge.trend == Trend::Undecided
        });
        // False alarms are the complement of the confidence, 5%, with a standard error of 1.5%.
        assert!(undecided > 0.9, "{num_seeds} seeds: {undecided}");
    }
}

#[test]
fn a_gap_that_stays_the_same_has_no_trend_and_no_crossing() {
    for num_seeds in [1, 3] {
        let samples = |gap: f64| {
            BUDGETS
                .into_iter()
                .flat_map(move |compute| (0..num_seeds).map(move |seed| GaugeSample { compute, seed, gap }))
        };
        for gap in [0.0, -0.1, 0.3] {
            let gauge = gauge_of(&samples(gap).collect::<Vec<_>>()).unwrap();
            assert_eq!((gauge.trend, gauge.crossing), (Trend::Undecided, Crossing::NotWithinReach), "{gap}");
            assert!((gauge.intercept_at_largest - gap).abs() < 1e-12);
        }
    }
}

#[test]
fn fewer_than_three_seeds_have_a_crossing_without_an_interval() {
    for num_seeds in [1, 2] {
        let gauge = Planted { run_noise: 1e-4, ..Planted::exact(0.02, 1e18) }.gauge(num_seeds, 3);
        assert_eq!(gauge.slope_method, SlopeMethod::RegressionT);
        let Crossing::Extrapolated { compute, interval } = gauge.crossing else { panic!("{gauge:?}") };
        assert!(interval.is_none() && (compute / 1e18).log10().abs() < 0.1);
        assert!(gauge.sentence.contains("no interval: too few seeds"));
    }
}

#[test]
fn seeds_missing_at_large_budgets_are_no_obstacle() {
    let samples = Planted::noisy(0.02, 1e18).samples(4, &mut NormalNoise::new(5));
    let kept: Vec<_> =
        samples.into_iter().filter(|s| s.compute < 1e16 || s.seed < 2 || s.seed == 3).collect();
    let gauge = gauge_of(&kept).unwrap();
    assert_eq!(gauge.slope_method, SlopeMethod::SeedBootstrap);
    assert_eq!(gauge.points.iter().map(|point| point.num_seeds).collect::<Vec<_>>(), [4, 4, 3, 3, 3]);
    assert!(covers(gauge.crossing, 1e18), "{}", gauge.sentence);
}

#[test]
fn too_few_budgets_and_broken_samples_have_no_gauge() {
    let samples = Planted::exact(0.02, 1e16).samples(3, &mut NormalNoise::new(0));
    let at_most = |compute: f64| samples.iter().copied().filter(|s| s.compute <= compute).collect::<Vec<_>>();
    assert!(gauge_of(&at_most(1e16)).is_none(), "three budgets");
    assert!(gauge_of(&at_most(3e16)).is_some(), "four budgets");
    assert!(gauge_of(&[]).is_none());
    let broken = |sample: GaugeSample| [samples.clone(), vec![sample]].concat();
    for sample in
        [GaugeSample { gap: f64::NAN, ..samples[0] }, GaugeSample { compute: 0.0, ..samples[0] }, samples[0]]
    {
        assert!(gauge_of(&broken(sample)).is_none(), "{sample:?}");
    }
    assert!(Gauge::new(&samples, Measure::LOSS_IN_NATS, 1.0).is_none());
}

#[test]
fn the_points_are_the_means_with_their_intervals() {
    let samples = Planted::noisy(0.02, 1e18).samples(3, &mut NormalNoise::new(1));
    let gauge = gauge_of(&samples).unwrap();
    for (point, compute) in gauge.points.iter().zip(BUDGETS) {
        let gaps: Vec<f64> = samples.iter().filter(|s| s.compute == compute).map(|s| s.gap).collect();
        let mean = gaps.iter().sum::<f64>() / 3.0;
        let squares: f64 = gaps.iter().map(|gap| (gap - mean).powi(2)).sum();
        let half = 4.302_653 * (squares / 2.0).sqrt() / 3_f64.sqrt();
        assert!((point.mean_gap - mean).abs() < 1e-12 && point.compute == compute);
        assert!((point.interval.unwrap().high - mean - half).abs() < 1e-7);
    }
}

#[test]
fn the_sentence_warns_of_the_end_of_an_advantage() {
    let gauge = Planted::exact(0.02, 1e18).gauge(3, 0);
    assert_eq!(
        gauge.sentence,
        "The arm's advantage shrinks with compute: it changes by +0.0200 nats per decade (95% interval +0.0200 to \
         +0.0200, from resampled seeds). At the largest budget the mean gap is -0.0200 nats (95% interval -0.0200 to \
         -0.0200): the arm is ahead. If this went on, it loses its advantage at 1.00e18 FLOPs (interval 1.00e18 to \
         1.00e18), 10.0 times the largest budget."
    );
    let inside = Planted::exact(-0.02, 2e16).gauge(1, 0);
    assert!(inside.sentence.ends_with(
        "Within the range measured the arm overtakes the baseline, at 2.00e16 FLOPs (no interval: too few seeds), as far \
         as the mean gaps say: no larger budget shows it yet."
    ));
}

/// Gaps of six seeds that scatter widely at the small budgets, as those of 8 experts on text: their
/// line lies below what was measured at the largest budget, and crosses zero elsewhere.
#[test]
fn the_gauge_says_what_was_measured_and_not_what_its_line_says() {
    let gaps = [[0.40, 0.35, 0.02, -0.05], [0.10, -0.10, 0.03, 0.02], [0.30, 0.40, 0.01, -0.04]];
    let samples: Vec<GaugeSample> = (0..6_u64)
        .flat_map(|seed| {
            let of_seed = gaps[seed as usize % 3];
            [1e11, 2e11, 4e11, 8e11].into_iter().zip(of_seed).map(move |(compute, gap)| {
                let gap = gap + 0.002 * (seed as f64 - 2.5);
                GaugeSample { compute, seed, gap }
            })
        })
        .collect();
    let gauge = gauge_of(&samples).unwrap();
    let last = gauge.points.last().unwrap();
    assert!(last.interval.unwrap().high > 0.0 && last.mean_gap < 0.0);
    assert!((gauge.intercept_at_largest - last.mean_gap).abs() > 0.01, "{}", gauge.intercept_at_largest);
    assert!(gauge.sentence.contains("which of the two is ahead is undecided there"), "{}", gauge.sentence);
    assert!(!gauge.sentence.contains("advantage"), "{}", gauge.sentence);
    // The mean gap changes its sign between the last two budgets, and so the crossing lies there.
    if let Crossing::WithinRange { compute, .. } = gauge.crossing {
        assert!((4e11..=8e11).contains(&compute), "{compute}");
    } else {
        assert_eq!(gauge.trend, Trend::Undecided, "{}", gauge.sentence);
    }
}

#[test]
fn a_gauge_survives_json() {
    for gauge in [Planted::noisy(0.02, 1e18).gauge(3, 0), Planted::exact(-0.02, 1e14).gauge(1, 0)] {
        let text = serde_json::to_string(&gauge).unwrap();
        assert_eq!(serde_json::from_str::<Gauge>(&text).unwrap(), gauge);
    }
    let json = serde_json::to_value(Planted::noisy(0.02, 1e18).gauge(3, 0)).unwrap();
    assert_eq!(json["crossing"]["kind"], "extrapolated");
    assert_eq!(json["slope_method"], "seed_bootstrap");
    assert_eq!(json["trend"], "arm_loses_ground");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn swapping_the_arms_negates_the_gap_and_leaves_the_crossing(
        slope in -0.05..0.05_f64, decades in -2.0..3.0_f64, num_seeds in 1..5_u64, noise_seed in 0..1_000_u64,
    ) {
        let planted = Planted::noisy(slope, 1e16 * 10_f64.powf(decades));
        let samples = planted.samples(num_seeds, &mut NormalNoise::new(noise_seed));
        let swapped: Vec<_> = samples.iter().map(|&sample| GaugeSample { gap: -sample.gap, ..sample }).collect();
        let (forward, backward) = (gauge_of(&samples).unwrap(), gauge_of(&swapped).unwrap());
        let (there, back) = (forward.slope_interval.unwrap(), backward.slope_interval.unwrap());
        prop_assert_eq!(forward.slope_per_decade, -backward.slope_per_decade);
        prop_assert_eq!(forward.crossing, backward.crossing);
        prop_assert!((there.low + back.high).abs() < 1e-12 && (there.high + back.low).abs() < 1e-12);
    }

    #[test]
    fn the_order_of_the_samples_does_not_matter(noise_seed in 0..1_000_u64, num_seeds in 1..5_u64) {
        let samples = Planted::noisy(0.02, 1e18).samples(num_seeds, &mut NormalNoise::new(noise_seed));
        let reversed: Vec<_> = samples.iter().rev().copied().collect();
        prop_assert_eq!(gauge_of(&samples), gauge_of(&reversed));
    }

    #[test]
    fn another_unit_of_compute_moves_the_crossing_and_nothing_else(noise_seed in 0..1_000_u64) {
        let samples = Planted::noisy(0.02, 1e18).samples(3, &mut NormalNoise::new(noise_seed));
        let scaled: Vec<_> =
            samples.iter().map(|&sample| GaugeSample { compute: sample.compute * 1e-12, ..sample }).collect();
        let (before, after) = (gauge_of(&samples).unwrap(), gauge_of(&scaled).unwrap());
        prop_assert!((before.slope_per_decade - after.slope_per_decade).abs() < 1e-12);
        prop_assert_eq!(before.trend, after.trend);
        if let (Crossing::Extrapolated { compute: far, .. }, Crossing::Extrapolated { compute: near, .. }) =
            (before.crossing, after.crossing)
        {
            prop_assert!((near / far / 1e-12 - 1.0).abs() < 1e-9);
        }
    }
}
