//! A made-up study for tests: three arms, five seeds, four budgets.

use super::axes::AXES;
use super::series::{AlarmRow, EvalPoint, LayerSeries, ParamCounts, RunSeries};
use crate::statistics::{
    DocumentDifference, Gauge, GaugeSample, Measure, PairedDifference, RatioEstimate, SeedComponents,
    SignedRankInterval, Stopping, Verdict,
};
use crate::study::metric::JudgedSplit;
use crate::study::result::{
    ArmComparison, ArmResult, Axis, AxisComparison, EffectiveSpeedup, HeldEqual, Provenance, Question,
    RunResult, StudyResult, TimeToLoss,
};

const SEEDS: [u64; 5] = [1, 2, 3, 4, 5];
const BUDGETS: [u64; 4] = [500, 1000, 2000, 4000];
const TOKENS_PER_STEP: u64 = 8192;
const MARGIN: f64 = 0.005;

/// What an arm is made of.
struct ArmModel {
    label: String,
    num_experts: usize,
    total_params: u64,
    flops_per_token: f64,
    secs_per_step: f64,
    /// Nats gained on the dense arm per decade of tokens.
    gain: f64,
}

fn models(last_label: &str) -> [ArmModel; 3] {
    let model = |label: &str, num_experts, total_params, secs_per_step, gain| ArmModel {
        label: label.into(),
        num_experts,
        total_params,
        flops_per_token: 7.2e7,
        secs_per_step,
        gain,
    };
    [
        model("dense", 0, 12_400_000, 0.21, 0.0),
        model("top-2 of 8", 8, 31_200_000, 0.27, 0.016),
        model(last_label, 32, 98_700_000, 0.36, 0.019),
    ]
}

/// A number in -1..1 that depends on nothing but `key`.
fn noise(key: u64) -> f64 {
    let mixed = (key + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    ((mixed ^ (mixed >> 32)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

fn loss(model: &ArmModel, seed: u64, tokens: f64) -> f64 {
    let decades = (tokens / 1e6).log10().max(0.0);
    let wobble = 0.004 * noise(seed * 1000 + tokens as u64 / 100_000 + model.num_experts as u64);
    2.1 + 9.0 * (tokens + 2e5).powf(-0.17) - model.gain * decades + 0.02 * noise(seed) + wobble
}

/// The study and the rows of its runs; the last arm has the label given.
pub(super) fn study(last_label: &str) -> (StudyResult, Vec<RunSeries>) {
    let models = models(last_label);
    let runs = models.iter().flat_map(|model| {
        BUDGETS.iter().flat_map(move |&steps| SEEDS.iter().map(move |&seed| run(model, seed, steps)))
    });
    let [dense, sparse @ ..] = &models;
    let comparisons = sparse.iter().map(|arm| comparison(arm, dense)).collect();
    let result = StudyResult {
        study: "does-sparsity-pay".into(),
        headline: format!(
            "{last_label} beats dense by 0.030 nats at equal active FLOPs; at equal seconds it loses."
        ),
        verdict: Verdict::Wins,
        question: Question::of_nats(Axis::ActiveFlops, MARGIN),
        stopping: Stopping::Planned,
        held_equal: HeldEqual::ActiveFlops,
        baseline: "dense".into(),
        arms: models.iter().map(arm_result).collect(),
        comparisons,
        unequal: vec![format!("total parameters: dense 12.4 M, {last_label} 98.7 M")],
        notes: vec!["Five seeds: an interval says little about the tails.".into()],
        provenance: provenance(),
    };
    (result, runs.collect())
}

fn run(model: &ArmModel, seed: u64, num_steps: u64) -> RunSeries {
    let eval = |index: u64| {
        let step = num_steps * index / 25;
        let tokens = step * TOKENS_PER_STEP;
        EvalPoint {
            step,
            tokens,
            active_flops: tokens as f64 * model.flops_per_token,
            secs: step as f64 * model.secs_per_step * (1.0 + 0.03 * noise(seed)),
            loss_nats: loss(model, seed, tokens as f64),
            bits_per_byte: Some(loss(model, seed, tokens as f64) / std::f64::consts::LN_2 / 4.0),
        }
    };
    let num_layers = if model.num_experts > 0 { 4 } else { 0 };
    let alarm = AlarmRow {
        step: 140,
        name: "dead_expert".into(),
        message: "layer 3: expert 5 has had no token for 100 steps".into(),
    };
    RunSeries {
        label: format!("runs/{}-{num_steps}-s{seed}", model.label),
        arm: model.label.clone(),
        seed,
        num_steps,
        params: Some(ParamCounts { total: model.total_params, active: 12_400_000 }),
        train_secs: Some(num_steps as f64 * 0.6),
        final_test_loss_nats: None,
        energy_joules: Some(num_steps as f64 * 9.4),
        data_passes: Some(num_steps as f64 / 800.0),
        evals: (0..=25).map(eval).collect(),
        sources: Vec::new(),
        layers: (1..=num_layers).map(|layer| layer_series(model.num_experts, layer, num_steps)).collect(),
        alarms: if model.num_experts == 32 && seed == 1 { vec![alarm] } else { Vec::new() },
    }
}

fn layer_series(num_experts: usize, layer: usize, num_steps: u64) -> LayerSeries {
    const BINS: u64 = 60;
    let steps: Vec<u64> = (0..BINS).map(|bin| bin * num_steps / BINS).collect();
    // Uneven at first, balanced later.
    let settled = |bin: u64| 1.0 - (-(bin as f64) / 15.0).exp();
    let shares = |bin: u64| {
        let weight = |expert: usize| {
            let taste = noise((layer * 100 + expert) as u64);
            (taste * 1.6 * (1.0 - 0.9 * settled(bin))
                + 0.1 * noise(bin * 7919 + (layer * 31 + expert) as u64))
            .exp()
        };
        let weights: Vec<f64> = (0..num_experts).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| (weight / sum) as f32).collect()
    };
    let over_time = |value: &dyn Fn(u64) -> f64| -> Vec<(u64, f64)> {
        (0..BINS).map(|bin| (steps[bin as usize], value(bin))).collect()
    };
    let ripple = |bin: u64| 0.02 * noise(bin + layer as u64 * 977);
    let most = (num_experts as f64).ln();
    LayerSeries {
        layer,
        num_experts,
        load_shares: (0..BINS).map(shares).collect(),
        entropy: over_time(&|bin| most * (0.95 - 0.3 * settled(bin)) - 0.05 * layer as f64 + ripple(bin)),
        dropped_fraction: over_time(&|bin| (0.12 * (1.0 - settled(bin)) + 0.1 * ripple(bin)).max(0.0)),
        max_violation: over_time(&|bin| 1.8 * (1.0 - 0.85 * settled(bin)) + ripple(bin)),
        steps,
    }
}

fn arm_result(model: &ArmModel) -> ArmResult {
    let run = |num_steps: u64, seed: u64| {
        let tokens = num_steps * TOKENS_PER_STEP;
        RunResult {
            seed,
            num_steps,
            run: format!("runs/{}-{num_steps}-s{seed}", model.label),
            final_loss_nats: Some(loss(model, seed, tokens as f64)),
            final_test_loss_nats: None,
            final_bits_per_byte: None,
            final_test_bits_per_byte: None,
            acc: None,
            acc_norm: None,
            elapsed_secs: Some(num_steps as f64 * model.secs_per_step),
            tokens,
            active_flops: tokens as f64 * model.flops_per_token,
            train_secs: num_steps as f64 * model.secs_per_step,
            energy_joules: (seed < 5).then_some(num_steps as f64 * 9.4),
            cost: Some(num_steps as f64 * model.secs_per_step * 0.4 / 3600.0),
            num_alarms: usize::from(model.num_experts == 32 && seed == 1),
        }
    };
    ArmResult {
        label: model.label.clone(),
        overrides: match model.num_experts {
            0 => vec!["model.d_ff=1024".into()],
            count => vec![format!("model.moe.num_experts={count}"), "model.moe.top_k=2".into()],
        },
        total_params: model.total_params,
        active_params: 12_400_000,
        training_flops_per_token: model.flops_per_token as u64,
        memory_bytes: model.total_params * 16,
        measured_peak_bytes: None,
        equality: 1.0,
        learning_rate: 1e-3,
        learning_rate_grid: vec![(5e-4, Some(2.68)), (1e-3, Some(2.64)), (2e-3, None)],
        diverged: Vec::new(),
        sees_later_tokens: None,
        runs: BUDGETS.iter().flat_map(|&steps| SEEDS.iter().map(move |&seed| run(steps, seed))).collect(),
    }
}

fn comparison(arm: &ArmModel, dense: &ArmModel) -> ArmComparison {
    let end = (BUDGETS[3] * TOKENS_PER_STEP) as f64;
    let gap = |seed: u64, tokens: f64, of_seconds: bool| {
        let slower = if of_seconds { dense.secs_per_step / arm.secs_per_step } else { 1.0 };
        loss(arm, seed, tokens * slower) - loss(dense, seed, tokens)
    };
    let axis = |axis: Axis| {
        let gaps: Vec<f64> = SEEDS.iter().map(|&seed| gap(seed, end, axis == Axis::Seconds)).collect();
        let difference = PairedDifference::new(&gaps, 0.95).unwrap();
        let verdict = difference.verdict(MARGIN, Stopping::Planned);
        AxisComparison {
            axis,
            seeds: SEEDS.to_vec(),
            p_value: difference.p_value(MARGIN, Stopping::Planned),
            adjusted_p_value: difference.p_value(MARGIN, Stopping::Planned),
            adjusted_interval: difference.interval_at(0.975, Stopping::Planned),
            reasons: Vec::new(),
            signed_rank: SignedRankInterval::new(&gaps, 0.95),
            split: JudgedSplit::Validation,
            reads_unfinished_schedules: false,
            documents: DocumentDifference::new(&[vec![-4.0, 1.0, -2.0]], &[90, 40, 60], 0.95),
            verdict,
            seeds_to_decide: difference.pairs_to_decide(MARGIN, 0.95),
            sentence: format!("The mean difference is {:+.3} nats over five seeds.", difference.mean),
            difference,
        }
    };
    let at = |axis: Axis, seed: u64| 0.55 + 0.1 * noise(seed) + if axis == Axis::Seconds { 0.4 } else { 0.0 };
    let samples: Vec<GaugeSample> = BUDGETS
        .iter()
        .flat_map(|&steps| {
            let tokens = (steps * TOKENS_PER_STEP) as f64;
            let compute = tokens * arm.flops_per_token;
            SEEDS.map(|seed| GaugeSample { compute, seed, gap: gap(seed, tokens, false) })
        })
        .collect();
    ArmComparison {
        arm: arm.label.clone(),
        axes: AXES.map(axis).to_vec(),
        time_to_loss: AXES
            .map(|axis| time_to_loss(axis, SEEDS.map(|seed| at(axis, seed)), end, dense))
            .to_vec(),
        effective_speedup: AXES
            .map(|axis| effective_speedup(axis, SEEDS.map(|seed| 1.0 / at(axis, seed))))
            .to_vec(),
        gauge: Gauge::new(&samples, Measure::LOSS_IN_NATS, 0.95),
        noise_floor: Some(0.002),
        seed_components: SeedComponents::new(&[vec![-0.04, -0.03], vec![-0.05, -0.045]]),
    }
}

/// In seconds, the last seed never reached the target.
fn time_to_loss(axis: Axis, ratios: [f64; 5], end: f64, dense: &ArmModel) -> TimeToLoss {
    let is_censored = axis == Axis::Seconds;
    let seen = |(index, ratio): (usize, f64)| (!is_censored || index < 4).then_some(ratio);
    TimeToLoss {
        axis,
        seeds: SEEDS.to_vec(),
        targets: SEEDS.map(|seed| loss(dense, seed, end)).to_vec(),
        ratios: ratios.into_iter().enumerate().map(seen).collect(),
        estimate: if is_censored { None } else { RatioEstimate::new(&ratios, 0.95) },
    }
}

/// In tokens, the baseline never came as far as the first seed.
fn effective_speedup(axis: Axis, ratios: [f64; 5]) -> EffectiveSpeedup {
    let is_censored = axis == Axis::Tokens;
    let seen = |(index, ratio): (usize, f64)| (!is_censored || index > 0).then_some(ratio);
    EffectiveSpeedup {
        axis,
        num_steps: 400,
        seeds: SEEDS.to_vec(),
        ratios: ratios.into_iter().enumerate().map(seen).collect(),
        lower_bounds: vec![1.0; 5],
        at_most: vec![false; 5],
        estimate: if is_censored { None } else { RatioEstimate::new(&ratios, 0.95) },
    }
}

fn provenance() -> Provenance {
    let digest = |digit: &str| digit.repeat(64);
    Provenance {
        command:
            "switchyard study experiments/does-sparsity-pay.toml --out studies/does-sparsity-pay --threads 2"
                .into(),
        study_sha256: digest("1"),
        base_sha256: digest("2"),
        version: "0.1.0".into(),
        commit: Some("0123456789abcdef0123456789abcdef01234567".into()),
        cargo_lock_sha256: digest("3"),
        machines: vec!["a machine of 2 cores".into()],
        devices: vec!["cpu, 2 threads".into()],
        started_at: Some("2026-01-02T03:04:05Z".into()),
        ended_at: Some("2026-01-03T03:04:05Z".into()),
        total_train_secs: 12_600.0,
    }
}
