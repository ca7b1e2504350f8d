//! Routing as the papers write it, one token at a time, in f64 and plain loops.

use switchyard_router::{GroupScore, RouterConfig, Selection, SoftmaxOrder};

use crate::case::{C, D, Kind, Values};

/// Logits of each token without noise.
pub(crate) fn logits(kind: &Kind, values: &Values) -> Vec<Vec<f64>> {
    let gate = |x: &[f64]| match &kind.config.cosine {
        Some(_) => cosine_logits(kind, values, x),
        None => product(x, &values.weight_de, kind.num_experts),
    };
    values.x_td.chunks(D).map(gate).collect()
}

/// Cosine similarity over the temperature (arXiv:2204.09179, eq. 4 and 5).
fn cosine_logits(kind: &Kind, values: &Values, x: &[f64]) -> Vec<f64> {
    let projected = product(x, &values.projection_dc, C);
    let scale = values.log_scale_1[0].exp().min(100.0);
    let logit = |expert: usize| {
        let direction: Vec<f64> =
            (0..C).map(|c| values.directions_ce[c * kind.num_experts + expert]).collect();
        let dot: f64 = projected.iter().zip(&direction).map(|(a, b)| a * b).sum();
        scale * dot / (length(&projected) * length(&direction))
    };
    (0..kind.num_experts).map(logit).collect()
}

fn length(vector: &[f64]) -> f64 {
    vector.iter().map(|x| x * x).sum::<f64>().sqrt()
}

pub(crate) fn product(x: &[f64], matrix: &[f64], num_columns: usize) -> Vec<f64> {
    (0..num_columns)
        .map(|j| x.iter().enumerate().map(|(i, x)| x * matrix[i * num_columns + j]).sum())
        .collect()
}

pub(crate) fn softmax(logits: &[f64]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|x| x.exp()).sum();
    logits.iter().map(|x| x.exp() / sum).collect()
}

pub(crate) fn sigmoids(logits: &[f64]) -> Vec<f64> {
    logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect()
}

/// What selects: sigmoids, or the softmax.
pub(crate) fn scores(config: &RouterConfig, logits: &[f64]) -> Vec<f64> {
    if config.sigmoid.is_some() { sigmoids(logits) } else { softmax(logits) }
}

/// Scores that sum to one, as the balancing loss and the entropy see them.
pub(crate) fn probabilities(config: &RouterConfig, logits: &[f64]) -> Vec<f64> {
    let scores = scores(config, logits);
    let sum: f64 = scores.iter().sum();
    scores.iter().map(|score| score / sum).collect()
}

/// The `k` largest, largest first, the lower index first among equals.
pub(crate) fn largest(scores: &[f64], k: usize) -> Vec<usize> {
    let mut taken = Vec::new();
    while taken.len() < k {
        let mut best: Option<usize> = None;
        for (expert, &score) in scores.iter().enumerate() {
            if !taken.contains(&expert) && best.is_none_or(|best| score > scores[best]) {
                best = Some(expert);
            }
        }
        taken.extend(best);
    }
    taken
}

/// Experts of each token in the order in which the router lists them. `logits` are those that
/// select, noise included; the choice of a random router is not a function of its input.
pub(crate) fn choices(kind: &Kind, values: &Values, logits: &[Vec<f64>], training: bool) -> Vec<Vec<usize>> {
    let (e, k) = (kind.num_experts, kind.config.top_k);
    match &kind.config.selection {
        Selection::Sinkhorn(config) if training => {
            sinkhorn(logits, config.temperature).iter().map(|plan| largest(plan, k)).collect()
        }
        Selection::ExpertChoice(config) => {
            let capacity = (config.capacity_factor * (k * logits.len()) as f64 / e as f64).ceil() as usize;
            experts_choice(kind, logits, capacity)
        }
        Selection::Hash(hash) => values.token_ids_t.iter().map(|&id| hashed(hash.seed, id, e, k)).collect(),
        Selection::ForcedUniform {} => {
            (0..logits.len()).map(|t| (0..k).map(|j| (t * k + j) % e).collect()).collect()
        }
        _ => logits.iter().map(|logits| largest(&biased_scores(kind, values, logits), k)).collect(),
    }
}

/// What token choice ranks experts by: scores plus bias, minus infinity outside the best groups.
fn biased_scores(kind: &Kind, values: &Values, logits: &[f64]) -> Vec<f64> {
    let mut biased = scores(&kind.config, logits);
    if kind.config.bias.is_some() {
        biased.iter_mut().zip(&values.bias_e).for_each(|(score, bias)| *score += bias);
    }
    let Some(groups) = &kind.config.groups else { return biased };
    let group_len = kind.num_experts / groups.num_groups;
    let of_group = |group: usize| {
        let members = &biased[group * group_len..(group + 1) * group_len];
        let counted = if groups.score == GroupScore::Max { 1 } else { 2 };
        largest(members, counted.min(group_len)).iter().map(|&member| members[member]).sum()
    };
    let group_scores: Vec<f64> = (0..groups.num_groups).map(of_group).collect();
    let allowed = largest(&group_scores, groups.top_groups);
    let outside = |expert: usize| !allowed.contains(&(expert / group_len));
    (0..biased.len()).map(|e| if outside(e) { f64::NEG_INFINITY } else { biased[e] }).collect()
}

/// Rows scaled to 1 and columns to t / e, in turn, until nothing moves.
fn sinkhorn(logits: &[Vec<f64>], temperature: f64) -> Vec<Vec<f64>> {
    let (t, e) = (logits.len(), logits[0].len());
    let mut plan: Vec<Vec<f64>> =
        logits.iter().map(|row| row.iter().map(|x| (x / temperature).exp()).collect()).collect();
    for _ in 0..20_000 {
        for row in &mut plan {
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|p| *p /= sum);
        }
        for expert in 0..e {
            let sum: f64 = plan.iter().map(|row| row[expert]).sum();
            plan.iter_mut().for_each(|row| row[expert] *= t as f64 / e as f64 / sum);
        }
    }
    plan
}

/// Experts that rank a token among their `capacity` best, ascending (arXiv:2202.09368, eq. 1-3).
fn experts_choice(kind: &Kind, logits: &[Vec<f64>], capacity: usize) -> Vec<Vec<usize>> {
    let scores: Vec<Vec<f64>> = logits.iter().map(|logits| scores(&kind.config, logits)).collect();
    let takes = |expert: usize, token: usize| {
        let precedes = |other: usize| {
            let (theirs, own) = (scores[other][expert], scores[token][expert]);
            theirs > own || (theirs == own && other < token)
        };
        (0..scores.len()).filter(|&other| precedes(other)).count() < capacity
    };
    (0..scores.len())
        .map(|token| (0..kind.num_experts).filter(|&expert| takes(expert, token)).collect())
        .collect()
}

/// Experts drawn by SplitMix64 from those still there.
fn hashed(seed: u64, id: u32, num_experts: usize, k: usize) -> Vec<usize> {
    fn mix(state: u64) -> u64 {
        let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    let mut left: Vec<usize> = (0..num_experts).collect();
    let mut state = mix(seed) ^ u64::from(id);
    let mut draw = || {
        state = mix(state);
        left.remove(((u128::from(state) * left.len() as u128) >> 64) as usize)
    };
    (0..k).map(|_| draw()).collect()
}

/// Gates of one token's experts.
pub(crate) fn gates(config: &RouterConfig, logits: &[f64], experts: &[usize]) -> Vec<f64> {
    if !config.learns() {
        return vec![1.0 / config.top_k as f64; experts.len()];
    }
    let scores = scores(config, logits);
    let chosen: Vec<f64> = experts.iter().map(|&expert| scores[expert]).collect();
    let by_experts = matches!(config.selection, Selection::ExpertChoice(_));
    let after = config.softmax == SoftmaxOrder::AfterSelection && config.sigmoid.is_none();
    let sum = if !by_experts && (config.renormalise || after) { chosen.iter().sum() } else { 1.0 };
    let scaling = config.sigmoid.as_ref().map_or(1.0, |sigmoid| sigmoid.routed_scaling);
    chosen.iter().map(|score| scaling * score / sum).collect()
}

/// `E sum_e f_e P_e`, with the loads counted beforehand.
pub(crate) fn load_balancing(config: &RouterConfig, logits: &[Vec<f64>], loads: &[u64]) -> f64 {
    let (mut loss, total) = (0.0, loads.iter().sum::<u64>() as f64);
    for logits in logits {
        for (probability, &load) in probabilities(config, logits).iter().zip(loads) {
            loss += probability * load as f64;
        }
    }
    loss * loads.len() as f64 / total / logits.len() as f64
}

pub(crate) fn z_loss(logits: &[Vec<f64>]) -> f64 {
    let squares = logits.iter().map(|logits| logits.iter().map(|x| x.exp()).sum::<f64>().ln().powi(2));
    squares.sum::<f64>() / logits.len() as f64
}

pub(crate) fn entropy(config: &RouterConfig, logits: &[Vec<f64>]) -> f64 {
    let of_token = |logits: &Vec<f64>| -> f64 {
        probabilities(config, logits).iter().map(|p| if *p > 0.0 { -p * p.ln() } else { 0.0 }).sum()
    };
    logits.iter().map(of_token).sum::<f64>() / logits.len() as f64
}

/// Variance over squared mean of the experts' summed gates (arXiv:1701.06538, eq. 6 and 7).
pub(crate) fn importance(config: &RouterConfig, logits: &[Vec<f64>], choices: &[Vec<usize>]) -> f64 {
    let mut sums = vec![0.0; logits[0].len()];
    for (logits, experts) in logits.iter().zip(choices) {
        for (expert, gate) in experts.iter().zip(gates(config, logits, experts)) {
            sums[*expert] += gate;
        }
    }
    let mean = sums.iter().sum::<f64>() / sums.len() as f64;
    sums.iter().map(|sum| (sum - mean).powi(2)).sum::<f64>() / sums.len() as f64 / mean.powi(2)
}

pub(crate) fn loads(choices: &[Vec<usize>], num_experts: usize) -> Vec<u64> {
    let mut loads = vec![0; num_experts];
    choices.iter().flatten().for_each(|&expert| loads[expert] += 1);
    loads
}
