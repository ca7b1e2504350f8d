//! Studies whose losses follow published coefficients, written out as the papers state the
//! equations. They share no code with the forms that are fitted to them.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use super::{Form, Observation, Point};

/// Coefficients by their published names.
pub(super) type Planted = &'static [(&'static str, f64)];

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

/// Of the form of arXiv:2509.23678, eq. 11, with a k and an h that matter in a study of this size.
const FIVE_FACTOR: Planted = &[
    ("epsilon", 1.7),
    ("a", 30.0),
    ("alpha", 0.25),
    ("b", 700.0),
    ("beta", 0.32),
    ("c", 20.0),
    ("k", 0.5),
    ("h", 0.05),
    ("e", 0.4),
    ("f", 12.0),
    ("m", 20.0),
    ("n", -12.0),
];
/// Of the form of arXiv:2507.17702, eq. 13, in natural logarithms.
const LEVERAGE: Planted = &[
    ("alpha_D", 20.0),
    ("beta_D", 0.05),
    ("a", 0.6),
    ("d", -0.025),
    ("A_start", 0.02),
    ("beta", -0.1),
    ("gamma", 0.02),
];

const SIZES: [f64; 5] = [1e7, 3e7, 1e8, 3e8, 1e9];
pub(super) const LENGTHS: [f64; 5] = [2e8, 7e8, 2e9, 7e9, 2e10];

pub(super) fn chinchilla(point: &Point) -> f64 {
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

pub(super) fn joint(point: &Point) -> f64 {
    let experts = effective_experts(point.num_experts, 2.0732, 290.4521);
    35.91 * experts.powf(-0.2285) * point.active_params.powf(-0.1889 + 0.0098 * experts.ln())
        + 35.98 * experts.powf(0.5529) * point.tokens.powf(-0.1775 - 0.0259 * experts.ln())
        + 1.3637
}

fn five_factor(point: &Point) -> f64 {
    let (total, active) = (point.total_params, point.active_params);
    let (experts, shared) = (point.granularity, point.shared_ratio);
    let structure = 0.4 * experts + 12.0 / experts + 20.0 * shared * shared - 12.0 * shared;
    let capacity = total.powf(-0.25) + 0.5 * active.powf(-0.25) + 0.05 * active / total;
    structure * capacity
        + 30.0 / total.powf(0.25)
        + 700.0 / point.tokens.powf(0.32)
        + 20.0 / active.powf(0.25)
        + 1.7
}

/// Compute that a dense model would need for the loss at `point`, over the run's own.
pub(super) fn efficiency_leverage(point: &Point) -> f64 {
    let log_granularity = point.width_granularity.ln();
    let exponent = 0.6 - 0.025 * point.training_flops.ln() - 0.1 * log_granularity
        + 0.02 * log_granularity * log_granularity;
    let activation_ratio = point.granularity / point.num_experts;
    if activation_ratio < 1.0 { (activation_ratio + 0.02).powf(exponent) } else { 1.0 }
}

pub(super) fn leverage(point: &Point) -> f64 {
    20.0 / (efficiency_leverage(point) * point.training_flops).powf(0.05)
}

/// A run of `active_params` whose experts hold two thirds of a dense model's parameters.
pub(super) fn point(active_params: f64, expansion_rate: f64, granularity: f64, tokens: f64) -> Point {
    Point {
        active_params,
        total_params: active_params * (1.0 + 2.0 * expansion_rate) / 3.0,
        outer_params: 0.1 * active_params,
        num_experts: expansion_rate * granularity,
        granularity,
        shared_ratio: 0.0,
        // A dense FFN of four times the model's width.
        width_granularity: if expansion_rate > 1.0 { granularity / 2.0 } else { 1.0 },
        tokens,
        training_flops: 6.0 * active_params * tokens,
    }
}

/// Every size with every length; shares of active parameters, numbers of experts and shares of
/// shared ones take turns, so that no two of them go together.
fn five_factor_study() -> Vec<Point> {
    let mut turn = 0;
    let mut points = Vec::new();
    for active_params in SIZES {
        for tokens in LENGTHS {
            for active_share in [0.1, 0.2, 0.4, 0.8] {
                for shared_ratio in [0.0, 0.25, 0.5] {
                    turn += 1;
                    let granularity = [2.0, 4.0, 8.0, 16.0, 1.0][turn % 5];
                    let dense = point(active_params, 1.0 / active_share, granularity, tokens);
                    points.push(Point { total_params: active_params / active_share, shared_ratio, ..dense });
                }
            }
        }
    }
    points
}

/// Runs whose FLOPs per token are half of six per parameter and a constant, at twenty tokens per
/// parameter and at three times as many: where 6 N D would not do for the compute of the law.
pub(super) fn leverage_study(layers: &[(f64, f64)]) -> Vec<Point> {
    let shapes = layers.iter().flat_map(|layer| SIZES.iter().map(move |&size| (*layer, size)));
    let runs = shapes.flat_map(|(layer, size)| [20.0, 60.0].map(|ratio| (layer, size, ratio * size)));
    runs.map(|((rate, granularity), size, tokens)| {
        let training_flops = (3.0 * size + 5e6) * tokens;
        Point { training_flops, ..point(size, rate, granularity, tokens) }
    })
    .collect()
}

/// A dense model and mixtures of every activation ratio and granularity.
pub(super) fn mixtures(rates: &[f64], granularities: &[f64]) -> Vec<(f64, f64)> {
    let sparse = rates.iter().flat_map(|&rate| granularities.iter().map(move |&fine| (rate, fine)));
    [(1.0, 1.0)].into_iter().chain(sparse).collect()
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

pub(super) fn study(form: Form, noise: f64) -> Vec<Observation> {
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
        Form::FiveFactor => observe(&five_factor_study(), five_factor, noise),
        Form::Leverage => {
            let layers = mixtures(&[4.0, 8.0, 16.0, 32.0, 64.0], &[4.0, 8.0, 16.0, 32.0]);
            observe(&leverage_study(&layers), leverage, noise)
        }
    }
}

pub(super) fn planted(form: Form) -> Planted {
    match form {
        Form::Dense => CHINCHILLA,
        Form::Clark => S_BASE,
        Form::Krajewski => FINE_GRAINED,
        Form::Joint => JOINT,
        Form::FiveFactor => FIVE_FACTOR,
        Form::Leverage => LEVERAGE,
    }
}
