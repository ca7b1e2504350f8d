//! Studies whose losses follow published coefficients, written out as the papers state the
//! equations. They share no code with the forms that are fitted to them.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use super::{Coefficient, Fit, FitOptions, Form, Observation, Point};

/// Coefficients by their published names.
type Planted = &'static [(&'static str, f64)];

/// arXiv:2203.15556, eq. 10.
const CHINCHILLA: Planted = &[("E", 1.69), ("A", 406.4), ("alpha", 0.34), ("B", 410.7), ("beta", 0.28)];
/// arXiv:2202.01169, Table 3, S-BASE.
const S_BASE: Planted =
    &[("d", 1.104), ("a", -0.082), ("b", -0.108), ("c", 0.009), ("E_start", 1.847), ("E_max", 314.478)];
/// arXiv:2402.07871, Table 1.
const FINE_GRAINED: Planted =
    &[("c", 0.47), ("a", 18.1), ("alpha", 0.115), ("b", 30.8), ("beta", 0.147), ("g", 2.1), ("gamma", 0.58)];
/// arXiv:2502.05172, Table 3.
const JOINT: Planted = &[
    ("c", 1.3637),
    ("a", 35.91),
    ("alpha", -0.1889),
    ("b", 35.98),
    ("beta", -0.1775),
    ("delta", -0.2285),
    ("gamma", 0.0098),
    ("omega", 0.5529),
    ("zeta", -0.0259),
    ("E_start", 2.0732),
    ("E_max", 290.4521),
];

const QUICK: FitOptions = FitOptions { num_bootstrap_samples: 0, seed: 7 };
const THOROUGH: FitOptions = FitOptions { num_bootstrap_samples: 100, seed: 7 };

const SIZES: [f64; 5] = [1e7, 3e7, 1e8, 3e8, 1e9];
const LENGTHS: [f64; 5] = [2e8, 7e8, 2e9, 7e9, 2e10];

fn chinchilla(point: &Point) -> f64 {
    1.69 + 406.4 / point.active_params.powf(0.34) + 410.7 / point.tokens.powf(0.28)
}

fn effective_experts(experts: f64, start: f64, max: f64) -> f64 {
    1.0 / (1.0 / (experts - 1.0 + 1.0 / (1.0 / start - 1.0 / max)) + 1.0 / max)
}

fn s_base(point: &Point) -> f64 {
    let (size, experts) =
        (point.active_params.log10(), effective_experts(point.num_experts, 1.847, 314.478).log10());
    10_f64.powf(-0.082 * size - 0.108 * experts + 0.009 * size * experts + 1.104)
}

fn fine_grained(point: &Point) -> f64 {
    0.47 + (2.1 / point.granularity.powf(0.58) + 18.1) / point.inner_params().powf(0.115)
        + 30.8 / point.tokens.powf(0.147)
}

fn joint(point: &Point) -> f64 {
    let experts = effective_experts(point.num_experts, 2.0732, 290.4521);
    35.91 * experts.powf(-0.2285) * point.active_params.powf(-0.1889 + 0.0098 * experts.ln())
        + 35.98 * experts.powf(0.5529) * point.tokens.powf(-0.1775 - 0.0259 * experts.ln())
        + 1.3637
}

/// A run of `active_params` whose experts hold two thirds of a dense model's parameters.
pub(super) fn point(active_params: f64, expansion_rate: f64, granularity: f64, tokens: f64) -> Point {
    Point {
        active_params,
        total_params: active_params * (1.0 + 2.0 * expansion_rate) / 3.0,
        outer_params: 0.1 * active_params,
        num_experts: expansion_rate * granularity,
        granularity,
        tokens,
        training_flops: 6.0 * active_params * tokens,
    }
}

/// Every size with every length, at each pair of expansion rate and granularity.
pub(super) fn grid(layers: &[(f64, f64)], lengths: &[f64]) -> Vec<Point> {
    let shapes = layers.iter().flat_map(|layer| SIZES.iter().map(move |&size| (*layer, size)));
    shapes
        .flat_map(|((rate, granularity), size)| {
            lengths.iter().map(move |&tokens| point(size, rate, granularity, tokens))
        })
        .collect()
}

/// One run per point, whose loss is off by a normal `noise`, relatively.
pub(super) fn observe(points: &[Point], loss: fn(&Point) -> f64, noise: f64) -> Vec<Observation> {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    // Twelve uniform numbers have the variance of one standard normal.
    let mut normal = || (0..12).map(|_| random.random_range(-0.5..0.5)).sum::<f64>();
    let observe = |(index, point): (usize, &Point)| Observation {
        point: *point,
        has_counted_flops: true,
        loss_nats: loss(point) * (noise * normal()).exp(),
        weight: 1.0,
        label: format!("run {index}"),
    };
    points.iter().enumerate().map(observe).collect()
}

fn study(form: Form, noise: f64) -> Vec<Observation> {
    let with_granularity_1 = |rates: &[f64]| rates.iter().map(|&rate| (rate, 1.0)).collect::<Vec<_>>();
    match form {
        Form::Dense => observe(&grid(&[(1.0, 1.0)], &LENGTHS), chinchilla, noise),
        Form::Clark => {
            let layers = with_granularity_1(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]);
            observe(&grid(&layers, &[1e10]), s_base, noise)
        }
        Form::Krajewski => {
            let layers = [1.0, 2.0, 4.0, 8.0, 16.0].map(|granularity| (64.0, granularity));
            observe(&grid(&layers, &LENGTHS), fine_grained, noise)
        }
        Form::Joint => {
            let layers = with_granularity_1(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 128.0]);
            observe(&grid(&layers, &LENGTHS), joint, noise)
        }
    }
}

fn planted(form: Form) -> Planted {
    match form {
        Form::Dense => CHINCHILLA,
        Form::Clark => S_BASE,
        Form::Krajewski => FINE_GRAINED,
        Form::Joint => JOINT,
    }
}

fn fit(form: Form, observations: &[Observation], options: &FitOptions) -> Fit {
    Fit::new(form, observations, options).unwrap()
}

fn with_planted(fit: &Fit) -> impl Iterator<Item = (&Coefficient, f64)> {
    fit.coefficients.iter().zip(planted(fit.form)).map(|(coefficient, &(name, value))| {
        assert_eq!(coefficient.name, name);
        (coefficient, value)
    })
}

fn assert_recovered(fit: &Fit, tolerance: f64) {
    for (coefficient, value) in with_planted(fit) {
        let error = (coefficient.value / value - 1.0).abs();
        assert!(error < tolerance, "{:?} {}: {} for {value}", fit.form, coefficient.name, coefficient.value);
    }
}

#[test]
fn exact_losses_give_the_planted_coefficients_back() {
    for form in Form::ALL {
        let fit = fit(form, &study(form, 0.0), &QUICK);
        assert_recovered(&fit, 1e-3);
        assert!(fit.r_squared > 1.0 - 1e-9 && fit.converged_starts > 1, "{fit:?}");
    }
}

/// The noise of a small study's seeds: a thousandth of the loss.
#[test]
fn planted_coefficients_lie_in_the_intervals_of_noisy_losses() {
    for form in Form::ALL {
        let fit = fit(form, &study(form, 1e-3), &THOROUGH);
        for (coefficient, value) in with_planted(&fit) {
            let (low, high) = coefficient.interval.unwrap();
            assert!(
                low <= value && value <= high,
                "{form:?} {}: {value} not in {low} .. {high}",
                coefficient.name
            );
        }
    }
}

#[test]
fn runs_left_out_are_predicted_within_one_percent() {
    for form in Form::ALL {
        let fit = fit(form, &study(form, 1e-3), &QUICK);
        assert_eq!(fit.held_out.len(), 2, "{form:?}");
        for held_out in &fit.held_out {
            assert!(held_out.max_relative_error < 0.01, "{form:?} {held_out:?}");
            assert!(held_out.mean_relative_error <= held_out.max_relative_error);
        }
    }
}

#[test]
fn one_wild_run_does_not_move_the_fit() {
    for form in Form::ALL {
        let mut observations = study(form, 0.0);
        observations[12].loss_nats *= 1.5;
        let fit = fit(form, &observations, &QUICK);
        let moved = |run: &Observation| (fit.predict(&run.point) / run.loss_nats - 1.0).abs();
        let largest =
            observations.iter().enumerate().filter(|(index, _)| *index != 12).map(|(_, run)| moved(run));
        let largest = largest.fold(0.0, f64::max);
        assert!(largest < 2e-3, "{form:?}: {largest}");
    }
}

#[test]
fn a_prediction_is_the_planted_loss_beyond_the_study() {
    for (form, loss) in [(Form::Dense, chinchilla as fn(&Point) -> f64), (Form::Joint, joint)] {
        let fit = fit(form, &study(form, 0.0), &QUICK);
        let beyond = point(4e9, 1.0, 1.0, 8e10);
        assert!((fit.predict(&beyond) / loss(&beyond) - 1.0).abs() < 1e-5, "{form:?}");
    }
}

#[test]
fn the_same_options_give_the_same_fit() {
    let observations = study(Form::Dense, 1e-3);
    assert_eq!(fit(Form::Dense, &observations, &THOROUGH), fit(Form::Dense, &observations, &THOROUGH));
}

#[test]
fn repeats_with_other_seeds_do_not_narrow_the_intervals() {
    let once = study(Form::Dense, 1e-3);
    let thrice: Vec<Observation> = [once.clone(), once.clone(), once.clone()].concat();
    let width = |observations: &[Observation]| {
        let (low, high) = fit(Form::Dense, observations, &THOROUGH).coefficients[2].interval.unwrap();
        high - low
    };
    assert!((width(&thrice) / width(&once) - 1.0).abs() < 1e-2);
}

#[test]
fn a_weight_counts_as_that_many_repeats() {
    let mut weighted = study(Form::Dense, 3e-3);
    let repeated = [weighted.clone(), vec![weighted[3].clone(), weighted[3].clone()]].concat();
    weighted[3].weight = 3.0;
    let (weighted, repeated) = (fit(Form::Dense, &weighted, &QUICK), fit(Form::Dense, &repeated, &QUICK));
    assert!((weighted.huber_loss / repeated.huber_loss - 1.0).abs() < 1e-6);
}

#[test]
fn a_coefficient_that_the_study_does_not_determine_is_noted() {
    let without_floor = |point: &Point| chinchilla(point) - 1.69;
    let fit = fit(Form::Dense, &observe(&grid(&[(1.0, 1.0)], &LENGTHS), without_floor, 1e-3), &THOROUGH);
    assert!(
        fit.notes.iter().any(|note| note.starts_with("the interval of E reaches the bound")),
        "{:?}",
        fit.notes
    );
}

#[test]
fn too_few_expert_counts_leave_the_transform_as_published() {
    let mut observations = study(Form::Joint, 0.0);
    observations.retain(|run| run.point.num_experts <= 4.0);
    let fit = fit(Form::Joint, &observations, &THOROUGH);
    assert_recovered(&fit, 1e-3);
    assert!(fit.coefficients[9].interval.is_none() && fit.coefficients[8].interval.is_some());
    assert!(
        fit.notes.iter().any(|note| note.contains("E_max = 290.45") && note.contains("held as published"))
    );
}
