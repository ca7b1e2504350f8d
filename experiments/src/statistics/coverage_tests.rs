//! How often each printed interval holds what it promises, over 2,000 simulated studies of each
//! design.

use super::simulated::{NormalNoise, coverage};
use super::*;

const NUM_STUDIES: u64 = 2_000;
const TRUTH: f64 = -0.02;

/// What a kind of interval is held to.
enum Promise {
    /// 0.94 to 0.96, with three standard errors of 2,000 studies beyond.
    Exact,
    /// At least 0.94: said to be wider than it need be.
    Conservative,
}

/// One line of the table.
fn judged(name: &str, promise: &Promise, mut covers: impl FnMut(&mut NormalNoise) -> bool) -> String {
    let covered = coverage(NUM_STUDIES, &mut covers);
    let holds = match promise {
        Promise::Exact => (0.935..=0.965).contains(&covered),
        Promise::Conservative => covered >= 0.935,
    };
    format!("{} {name:<64} {covered:.4}", if holds { "  " } else { "!!" })
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
#[ignore = "half an hour of resampling without optimisation; the command stands above"]
fn every_printed_interval_covers_the_truth_as_often_as_it_says() {
    use Promise::{Conservative, Exact};
    let mut table = Vec::new();
    for num_pairs in [6, 8, 12] {
        for shape in ["normal", "t5", "skewed"] {
            // A skew moves the mean's interval; that is what the signed-rank interval stands beside.
            let of_mean = if shape == "normal" { &Exact } else { &Conservative };
            let name = |kind: &str| format!("{kind}, {num_pairs} pairs, {shape}");
            let pairs = |noise: &mut NormalNoise| {
                PairedDifference::new(&differences(num_pairs, shape, noise), 0.95).unwrap()
            };
            table.push(judged(&name("Student t"), of_mean, |noise| contains(pairs(noise).t_interval, TRUTH)));
            table.push(judged(&name("bootstrap"), of_mean, |noise| {
                contains(pairs(noise).bootstrap_interval, TRUTH)
            }));
            table.push(judged(&name("confidence sequence, one look"), &Conservative, |noise| {
                contains(pairs(noise).anytime_interval, TRUTH)
            }));
            if shape == "skewed" {
                continue; // Its centre of symmetry, which the interval is of, is not its mean.
            }
            table.push(judged(&name("signed rank"), &Conservative, |noise| {
                let found = SignedRankInterval::new(&differences(num_pairs, shape, noise), 0.95);
                contains(found.map(|found| found.interval), TRUTH)
            }));
        }
    }
    for num_seeds in [6, 8, 12] {
        let gauge = |noise: &mut NormalNoise| Gauge::new(&samples(num_seeds, noise), 0.95).unwrap();
        let name = |kind: &str| format!("{kind}, {num_seeds} seeds, 4 budgets");
        table
            .push(judged(&name("gauge: slope"), &Exact, |noise| contains(gauge(noise).slope_interval, 0.02)));
        table.push(judged(&name("gauge: last doubling"), &Exact, |noise| {
            contains(gauge(noise).straightness.map(|found| found.last_interval), 0.02)
        }));
        table.push(judged(&name("gauge: gap at the largest budget"), &Exact, |noise| {
            contains(gauge(noise).points.last().and_then(|point| point.interval), TRUTH)
        }));
        table.push(judged(&name("ratio over seeds"), &Exact, |noise| {
            let ratios: Vec<f64> = (0..num_seeds).map(|_| (TRUTH + 0.05 * noise.next()).exp()).collect();
            let estimate = RatioEstimate::new(&ratios, 0.95);
            contains(estimate.map(|estimate| estimate.interval), TRUTH.exp())
        }));
    }
    for line in &table {
        println!("{line}");
    }
    assert!(table.iter().all(|line| !line.starts_with("!!")));
}
