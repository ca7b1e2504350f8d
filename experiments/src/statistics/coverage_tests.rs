//! How often each printed interval holds what it promises, over 2,000 simulated studies of each
//! design.

use super::simulated::{NormalNoise, coverage};
use super::*;

const NUM_STUDIES: u64 = 2_000;
const TRUTH: f64 = -0.02;

/// What a kind of interval is held to.
#[derive(Clone, Copy)]
enum Promise {
    /// 0.94 to 0.96, with three standard errors of 2,000 studies beyond.
    Exact,
    /// At least 0.94: said to be wider than it need be.
    Conservative,
    /// At least this, which the documents state: it leans on the normal distribution, and the
    /// differences have another.
    Told(f64),
}

/// Counts how often each of several intervals covers its truth, all of the same studies.
struct Tally<const N: usize> {
    names: [(&'static str, Promise); N],
    covered: [u64; N],
}

impl<const N: usize> Tally<N> {
    fn new(
        names: [(&'static str, Promise); N],
        mut covers: impl FnMut(&mut NormalNoise) -> [bool; N],
    ) -> Self {
        let mut covered = [0; N];
        coverage(NUM_STUDIES, |noise| {
            for (covered, hit) in covered.iter_mut().zip(covers(noise)) {
                *covered += u64::from(hit);
            }
            true
        });
        Self { names, covered }
    }

    /// A line for each interval; one that breaks its promise is marked.
    fn lines(&self, design: &str) -> Vec<String> {
        let line = |((name, promise), covered): (&(&str, Promise), &u64)| {
            let share = *covered as f64 / NUM_STUDIES as f64;
            let holds = match promise {
                Promise::Exact => (0.935..=0.965).contains(&share),
                Promise::Conservative => share >= 0.935,
                Promise::Told(low) => share >= *low,
            };
            format!("{} {name:<32} {design:<24} {share:.4}", if holds { "  " } else { "!!" })
        };
        self.names.iter().zip(&self.covered).map(line).collect()
    }
}

fn contains(interval: Option<Interval>, value: f64) -> bool {
    interval.is_some_and(|interval| interval.low <= value && value <= interval.high)
}

/// Differences of pairs, with the tails of a normal or of Student's distribution with 5 degrees of
/// freedom, or an exponential's skew.
fn differences(num_pairs: usize, shape: &str, noise: &mut NormalNoise) -> Vec<f64> {
    let mut draw = || match shape {
        "normal" => noise.next(),
        "t5" => {
            let squares: f64 = (0..5).map(|_| noise.next().powi(2)).sum();
            noise.next() / (squares / 5.0).sqrt()
        }
        _ => 0.5 * (noise.next().powi(2) + noise.next().powi(2)) - 1.0,
    };
    (0..num_pairs).map(|_| TRUTH + 0.02 * draw()).collect()
}

/// Gaps of seeds over four budgets on a line of slope 0.02 per decade, with a slope and a shift of
/// each seed.
fn samples(num_seeds: u64, noise: &mut NormalNoise) -> Vec<GaugeSample> {
    let budgets = [1.0, 2.0, 4.0, 8.0].map(|times| 1e11 * times);
    (0..num_seeds)
        .flat_map(|seed| {
            let (shift, tilt) = (0.01 * noise.next(), 0.01 * noise.next());
            budgets.map(|compute: f64| {
                let decades = (compute / 8e11).log10();
                let gap = TRUTH + shift + (0.02 + tilt) * decades + 0.004 * noise.next();
                GaugeSample { compute, seed, gap }
            })
        })
        .collect()
}

/// `cargo test --release --bin switchyard -- --ignored --nocapture every_printed_interval`
#[test]
#[ignore = "minutes of resampling; the command stands above"]
#[expect(clippy::print_stdout, reason = "it is a measurement, whose numbers are wanted")]
fn every_printed_interval_covers_the_truth_as_often_as_it_says() {
    use Promise::{Conservative, Exact, Told};
    let mut table = Vec::new();
    for num_pairs in [6, 8, 12] {
        for (shape, of_mean) in [("normal", Exact), ("t5", Exact), ("skewed", Told(0.85))] {
            let names = [
                ("Student t", of_mean),
                ("bootstrap", of_mean),
                ("confidence sequence, one look", Conservative),
                // It is of the centre of symmetry, which a skewed distribution does not have.
                ("signed rank", if shape == "skewed" { Told(0.0) } else { Conservative }),
            ];
            let tally = Tally::new(names, |noise| {
                let differences = differences(num_pairs, shape, noise);
                let pairs = PairedDifference::new(&differences, 0.95).unwrap();
                let signed_rank = SignedRankInterval::new(&differences, 0.95).map(|found| found.interval);
                [pairs.t_interval, pairs.bootstrap_interval, pairs.anytime_interval, signed_rank]
                    .map(|interval| contains(interval, TRUTH))
            });
            table.extend(tally.lines(&format!("{num_pairs} pairs, {shape}")));
        }
    }
    for num_seeds in [6, 8, 12] {
        let names = [
            ("gauge: slope", Exact),
            ("gauge: last doubling", Exact),
            ("gauge: gap at the largest budget", Exact),
            ("ratio over seeds", Exact),
        ];
        let tally = Tally::new(names, |noise| {
            let gauge = Gauge::new(&samples(num_seeds, noise), Measure::LOSS_IN_NATS, 0.95).unwrap();
            let last_gap = gauge.points.last().and_then(|point| point.interval);
            let ratios: Vec<f64> = (0..num_seeds).map(|_| (TRUTH + 0.05 * noise.next()).exp()).collect();
            let ratio = RatioEstimate::new(&ratios, 0.95).map(|estimate| estimate.interval);
            [
                contains(gauge.slope_interval, 0.02),
                contains(gauge.straightness.map(|found| found.last_interval), 0.02),
                contains(last_gap, TRUTH),
                contains(ratio, TRUTH.exp()),
            ]
        });
        table.extend(tally.lines(&format!("{num_seeds} seeds, 4 budgets")));
    }
    for line in &table {
        println!("{line}");
    }
    assert!(table.iter().all(|line| !line.starts_with("!!")));
}
