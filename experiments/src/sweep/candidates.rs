//! The candidates of a sweep: list, grid and random draws, without those that are the same.

use std::collections::HashSet;

use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use switchyard_trainer::config_file::config_hash;
use toml::Value;

use super::file::{Distribution, LoadedSweep, RandomConfig, SweepFile};
use crate::failure::Failure;
use crate::study::{Arm, ArmConfig, check_groups, written_arm};

/// Hexadecimal digits of a candidate's name: two of ten thousand share one less than once in a
/// million sweeps.
const ID_DIGITS: usize = 12;

/// Where a candidate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    /// `[[list]]`.
    List,
    /// `[grid]`.
    Grid,
    /// `[random]`.
    Random,
}

/// A candidate, as far as the sweep file alone says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Written {
    /// Where it comes from.
    pub(crate) source: Source,
    /// Its label in the list.
    pub(crate) label: Option<String>,
    /// What it changes, besides what all change: `key=value`.
    pub(crate) overrides: Vec<String>,
}

/// A candidate that can be run.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    /// As written.
    pub(crate) written: Written,
    /// Its recipe. The label is made of a hash of the recipe and not of the position, so that a
    /// sweep that gets more candidates still uses the runs that it has.
    pub(crate) arm: Arm,
}

/// The candidates of `loaded`: those of the list, the grid and the draws, in this order; of those
/// whose recipes are the same the first.
///
/// # Errors
/// A mistake in the recipe or an override, with its place.
pub(crate) fn resolve_candidates(loaded: &LoadedSweep) -> Result<Vec<Candidate>, Failure> {
    let study = loaded.to_study();
    let mut seen = HashSet::new();
    let mut candidates = Vec::new();
    for written in written_candidates(&loaded.sweep) {
        let config = ArmConfig {
            label: written.label.clone().unwrap_or_else(|| written.overrides.join(" ")),
            set: written.overrides.clone(),
            solve: None,
            learning_rates: None,
            learning_rate: None,
        };
        let mut arm = written_arm(&study, &config, Vec::new())?;
        check_groups(&study, &arm)?;
        let hash = config_hash(&arm.config);
        arm.label = format!("c{}", &hash[..ID_DIGITS]);
        if seen.insert(hash) {
            candidates.push(Candidate { written, arm });
        }
    }
    Ok(candidates)
}

fn written_candidates(sweep: &SweepFile) -> Vec<Written> {
    let list = sweep.list.iter().map(|entry| Written {
        source: Source::List,
        label: entry.label.clone(),
        overrides: entry.set.clone(),
    });
    let drawn =
        sweep.random.iter().flat_map(|random| (0..random.count).map(move |index| draw(random, index)));
    let unlabelled = |source| move |overrides| Written { source, label: None, overrides };
    list.chain(grid_points(sweep).into_iter().map(unlabelled(Source::Grid)))
        .chain(drawn.map(unlabelled(Source::Random)))
        .collect()
}

/// Each value of each key with each of the others; the last key varies fastest.
fn grid_points(sweep: &SweepFile) -> Vec<Vec<String>> {
    if sweep.grid.is_empty() {
        return Vec::new();
    }
    sweep.grid.iter().fold(vec![Vec::new()], |points, (key, values)| {
        let with = |point: &Vec<String>, value: &Value| {
            point.iter().cloned().chain([format!("{key}={value}")]).collect::<Vec<_>>()
        };
        points.iter().flat_map(|point| values.iter().map(move |value| with(point, value))).collect()
    })
}

/// The values of the draw at `index`.
fn draw(random: &RandomConfig, index: usize) -> Vec<String> {
    let value = |(key, distribution): (&String, &Distribution)| {
        format!("{key}={}", draw_value(distribution, &mut generator(random.seed, index, key)))
    };
    random.keys.iter().map(value).collect()
}

/// A generator for one value of one candidate: neither another key nor another candidate moves what
/// it draws.
fn generator(seed: u64, index: usize, key: &str) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(Sha256::digest(format!("{seed} {index} {key}")).into())
}

fn draw_value(distribution: &Distribution, rng: &mut ChaCha8Rng) -> Value {
    match distribution {
        Distribution::LogUniform([low, high]) => {
            let share: f64 = rng.random();
            Value::Float(short((low.ln() + share * (high.ln() - low.ln())).exp(), *low, *high))
        }
        Distribution::Uniform([low, high]) => {
            let share: f64 = rng.random();
            Value::Float(short(low + share * (high - low), *low, *high))
        }
        Distribution::Integer([low, high]) => Value::Integer(rng.random_range(*low..=*high)),
        Distribution::Choice(values) => values[rng.random_range(0..values.len())].clone(),
    }
}

/// `value` in four significant digits, within the range. More would say nothing to a person, and
/// the last ones of a logarithm differ between machines.
fn short(value: f64, low: f64, high: f64) -> f64 {
    let rounded = format!("{value:.3e}").parse().unwrap_or(value);
    f64::clamp(rounded, low, high)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use proptest::prelude::*;

    fn sweep(tail: &str) -> SweepFile {
        let text = format!("name = \"s\"\nbase = \"b.toml\"\nseeds = [0]\nnum_steps = 9\n{tail}");
        toml::from_str(&text).unwrap()
    }

    fn random(tail: &str) -> RandomConfig {
        sweep(&format!("[random]\ncount = 8\nseed = 3\n{tail}")).random.unwrap()
    }

    const RATE: &str = "[random.keys.\"train.adamw.learning_rate\"]\nlog_uniform = [1e-4, 1e-1]\n";

    #[test]
    fn the_sweep_of_the_repository_has_only_candidates_that_can_be_run() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("studies/learning-rate.toml");
        let loaded = LoadedSweep::read(&file).unwrap();
        assert_eq!(resolve_candidates(&loaded).unwrap().len(), loaded.sweep.num_written());
    }

    #[test]
    fn a_grid_is_the_full_product_with_the_last_key_fastest() {
        let grid = sweep("[grid]\n\"a.x\" = [1, 2]\n\"b\" = [\"u\", 0.5, { c = true }]\n");
        let points: Vec<String> = grid_points(&grid).iter().map(|point| point.join(" ")).collect();
        assert_eq!(
            points,
            [
                "a.x=1 b=\"u\"",
                "a.x=1 b=0.5",
                "a.x=1 b={ c = true }",
                "a.x=2 b=\"u\"",
                "a.x=2 b=0.5",
                "a.x=2 b={ c = true }"
            ]
        );
        assert!(grid_points(&sweep("")).is_empty());
    }

    #[test]
    fn another_key_or_another_candidate_does_not_move_a_draw() {
        let one = random(RATE);
        let two = random(&format!("{RATE}[random.keys.\"a.first\"]\ninteger = [1, 1000]\n"));
        for index in 0..one.count {
            assert!(draw(&two, index).contains(&draw(&one, index)[0]), "{index}");
        }
        let more = RandomConfig { count: 100, ..one.clone() };
        assert!((0..one.count).all(|index| draw(&one, index) == draw(&more, index)));
    }

    #[test]
    fn another_seed_draws_other_values() {
        let one = random(RATE);
        let other = RandomConfig { seed: 4, ..one.clone() };
        assert!((0..one.count).all(|index| draw(&one, index) != draw(&other, index)));
    }

    #[test]
    fn log_uniform_draws_put_as_many_into_each_decade() {
        let distribution = Distribution::LogUniform([1e-4, 1e-1]);
        let mut counts = [0_usize; 3];
        for index in 0..3000 {
            let value = draw_value(&distribution, &mut generator(0, index, "k")).as_float().unwrap();
            counts[((value.log10() + 4.0) as usize).min(2)] += 1;
        }
        // Five standard deviations of a binomial of 3000 and 1/3: 5 * sqrt(3000 * 2 / 9) = 129.
        assert!(counts.iter().all(|count| count.abs_diff(1000) < 129), "{counts:?}");
    }

    #[test]
    fn every_choice_and_both_ends_of_an_integer_range_are_drawn() {
        let drawn = |distribution: &Distribution| -> HashSet<String> {
            (0..200)
                .map(|index| draw_value(distribution, &mut generator(1, index, "k")).to_string())
                .collect()
        };
        assert_eq!(drawn(&Distribution::Integer([-1, 2])).len(), 4);
        let choice =
            Distribution::Choice(vec![Value::Boolean(true), Value::Integer(4), Value::String("x".into())]);
        assert_eq!(drawn(&choice), ["true", "4", "\"x\""].map(String::from).into());
    }

    proptest! {
        #[test]
        fn a_draw_lies_in_its_range(low in 1e-6..1.0_f64, ratio in 1.001..1e4_f64, index in 0..1000_usize) {
            let high = low * ratio;
            for distribution in [Distribution::LogUniform([low, high]), Distribution::Uniform([low, high])] {
                let value = draw_value(&distribution, &mut generator(0, index, "k")).as_float().unwrap();
                prop_assert!((low..=high).contains(&value), "{value}");
            }
        }
    }
}
