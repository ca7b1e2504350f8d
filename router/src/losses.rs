//! Auxiliary losses that keep a router usable. Unscaled: the caller applies the configured weights.
//!
//! Shape letters: t tokens, e experts, k slots per token.

use std::ops::Range;

use burn::tensor::activation::{log_sigmoid, log_softmax};
use burn::tensor::{IndexingUpdateOp, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use switchyard_kernels::{expected_load, mean_square_log_partition};

use crate::gate::{GateNoise, GateOutput};
use crate::host::read_to_host;
use crate::{BalancingScope, Choice, RouterConfig, Selection, Sequences, select_top_k};

/// Which loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AuxLossKind {
    /// See [`load_balancing_loss`].
    LoadBalancing,
    /// See [`router_z_loss`].
    RouterZ,
    /// Mean over tokens of the entropy of the normalised scores, in nats.
    GateEntropy,
    /// Squared coefficient of variation of the experts' summed gates (arXiv:1701.06538, eq. 6 and
    /// 7).
    Importance,
    /// Squared coefficient of variation of the experts' expected loads (arXiv:1701.06538, appendix
    /// A).
    Load,
}

impl AuxLossKind {
    /// Name in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::LoadBalancing => "load_balancing_loss",
            Self::RouterZ => "router_z_loss",
            Self::GateEntropy => "gate_entropy_loss",
            Self::Importance => "importance_loss",
            Self::Load => "load_loss",
        }
    }
}

/// A loss with the weight that it was given.
#[derive(Debug, Clone)]
pub struct AuxLoss {
    /// Which loss.
    pub kind: AuxLossKind,
    /// Its value, unweighted, `[1]`.
    pub value_1: Tensor<1>,
    /// Its weight.
    pub weight: f64,
}

/// What losses are made from.
pub(crate) struct LossInput<'a> {
    pub(crate) gate: &'a GateOutput,
    pub(crate) gates_tk: &'a Tensor<2>,
    pub(crate) choice: &'a Choice,
    pub(crate) tokens_per_expert: &'a [u64],
    pub(crate) earlier_tokens_per_expert: &'a [u64],
    pub(crate) sequences: Sequences<'a>,
}

impl RouterConfig {
    /// Every loss with a weight.
    pub(crate) fn losses(&self, input: &LossInput<'_>) -> Vec<AuxLoss> {
        let logits_te = &input.gate.logits_te;
        // Without tokens there is nothing to balance.
        if logits_te.dims()[0] == 0 {
            return Vec::new();
        }
        // The softmax of these is the sigmoids over their sum. No epsilon stands in the sum, with
        // which low scores could bring the loss below its bound.
        let log_scores_te =
            || if self.sigmoid.is_some() { log_sigmoid(logits_te.clone()) } else { logits_te.clone() };
        let (importance_weight, load_weight) = match &self.selection {
            Selection::Noisy(noisy) => (noisy.importance_weight, noisy.load_weight),
            _ => (None, None),
        };
        let mut losses = Vec::new();
        let mut add = |kind, weight: Option<f64>, value: &dyn Fn() -> Tensor<1>| {
            losses.extend(weight.map(|weight| AuxLoss { kind, value_1: value(), weight }));
        };
        let own_weight = self.load_balancing_weight.filter(|_| !self.balances_all_layers());
        add(AuxLossKind::LoadBalancing, own_weight, &|| {
            balancing_in_scope(log_scores_te(), self.load_balancing_scope, input)
        });
        add(AuxLossKind::RouterZ, self.z_loss_weight, &|| router_z_loss(logits_te.clone()));
        add(AuxLossKind::GateEntropy, self.entropy_weight, &|| gate_entropy(log_scores_te()));
        add(AuxLossKind::Importance, importance_weight, &|| importance_loss(input));
        if let Some(noise) = &input.gate.noise {
            add(AuxLossKind::Load, load_weight, &|| load_loss(logits_te, noise, self.top_k));
        }
        losses
    }

    /// What the loss of all layers together needs of this one; `None` if each has its own.
    pub(crate) fn pooled_balance(
        &self,
        logits_te: &Tensor<2>,
        host_logits_te: &[f64],
    ) -> Option<PooledBalance> {
        let weight = self.load_balancing_weight.filter(|_| self.balances_all_layers())?;
        let [num_tokens, num_experts] = logits_te.dims();
        let mut tokens_per_expert = vec![0; num_experts];
        for expert in select_top_k(host_logits_te, num_experts, self.top_k) {
            tokens_per_expert[expert as usize] += 1;
        }
        (num_tokens > 0).then(|| PooledBalance { logits_te: logits_te.clone(), tokens_per_expert, weight })
    }

    fn balances_all_layers(&self) -> bool {
        self.load_balancing_scope == BalancingScope::AllLayers
    }
}

/// One layer's part in a load-balancing loss of all layers together: the rows of all of them
/// count as one layer's. It goes by the logits alone, whatever bias or groups the choice heeds, as
/// Hugging Face's `load_balancing_loss_func` does, which reports `top_k` times this value.
#[derive(Debug, Clone)]
pub struct PooledBalance {
    logits_te: Tensor<2>,
    tokens_per_expert: Vec<u64>,
    weight: f64,
}

impl PooledBalance {
    /// Assignments to each expert in all layers together.
    pub fn loads(layers: &[Self]) -> Vec<u64> {
        let num_experts = layers.iter().map(|layer| layer.tokens_per_expert.len()).max().unwrap_or(0);
        let mut loads = vec![0; num_experts];
        for layer in layers {
            loads.iter_mut().zip(&layer.tokens_per_expert).for_each(|(sum, load)| *sum += load);
        }
        loads
    }

    /// The loss of this layer against the `loads` of all; their mean is the loss of all layers.
    ///
    /// # Panics
    /// As [`load_balancing_loss`].
    pub fn loss(self, loads: &[u64]) -> AuxLoss {
        AuxLoss {
            kind: AuxLossKind::LoadBalancing,
            value_1: load_balancing_loss(self.logits_te, loads),
            weight: self.weight,
        }
    }
}

fn balancing_in_scope(log_scores_te: Tensor<2>, scope: BalancingScope, input: &LossInput<'_>) -> Tensor<1> {
    let counts = input.tokens_per_expert;
    match scope {
        BalancingScope::MicroBatch | BalancingScope::AllLayers => balancing_or_nothing(log_scores_te, counts),
        BalancingScope::GlobalBatch if input.earlier_tokens_per_expert.is_empty() => {
            balancing_or_nothing(log_scores_te, counts)
        }
        BalancingScope::GlobalBatch => {
            let so_far: Vec<u64> = counts
                .iter()
                .zip(input.earlier_tokens_per_expert)
                .map(|(now, earlier)| now + earlier)
                .collect();
            balancing_or_nothing(log_scores_te, &so_far)
        }
        BalancingScope::Sequence => sequence_balancing_loss(log_scores_te, input.choice, input.sequences),
    }
}

/// [`load_balancing_loss`], or 0 where no expert got a token, so that there are no loads: rounding to
/// tiles can leave all of them without.
fn balancing_or_nothing(log_scores_te: Tensor<2>, tokens_per_expert: &[u64]) -> Tensor<1> {
    if tokens_per_expert.iter().all(|&count| count == 0) {
        return no_loss(log_scores_te);
    }
    load_balancing_loss(log_scores_te, tokens_per_expert)
}

/// 0, on the tape of the scores.
fn no_loss(log_scores_te: Tensor<2>) -> Tensor<1> {
    // A score may be minus infinity, which times 0 is no number.
    log_scores_te.clamp(-1.0, 1.0).mul_scalar(0.0).sum()
}

/// The mean over sequences of [`load_balancing_loss`] (DeepSeek-V3, arXiv:2412.19437, eq. 17-20). A
/// sequence of which no expert takes a token has no loads, and no part in the mean.
fn sequence_balancing_loss(log_scores_te: Tensor<2>, choice: &Choice, sequences: Sequences<'_>) -> Tensor<1> {
    let [num_tokens, num_experts] = log_scores_te.dims();
    let of_sequence = |tokens: Range<usize>| {
        let slots = tokens.start * choice.slots_per_token..tokens.end * choice.slots_per_token;
        let mut counts = vec![0; num_experts];
        for slot in slots.filter(|&slot| choice.keep_tk.as_ref().is_none_or(|keep_tk| keep_tk[slot])) {
            counts[choice.expert_ids_tk[slot] as usize] += 1;
        }
        let is_routed = counts.iter().any(|&count| count > 0);
        is_routed.then(|| {
            load_balancing_loss(log_scores_te.clone().narrow(0, tokens.start, tokens.len()), &counts)
        })
    };
    let losses: Vec<_> = sequences.ranges(num_tokens).into_iter().filter_map(of_sequence).collect();
    if losses.is_empty() {
        return no_loss(log_scores_te);
    }
    Tensor::cat(losses, 0).mean()
}

/// Mean over tokens of the entropy of the softmax over all experts, in nats.
///
/// # Shapes
/// - `log_scores_te`: `[num_tokens, num_experts]`; returns `[1]`
pub(crate) fn gate_entropy(log_scores_te: Tensor<2>) -> Tensor<1> {
    let log_p_te = log_softmax(log_scores_te, 1);
    (log_p_te.clone().exp() * log_p_te).sum_dim(1).mean().neg()
}

/// Squared coefficient of variation of the experts' summed gates.
fn importance_loss(input: &LossInput<'_>) -> Tensor<1> {
    let (logits_te, gates_tk) = (&input.gate.logits_te, input.gates_tk);
    let ids_tk = input.choice.upload(&gates_tk.device());
    let zeros_te = Tensor::<2>::zeros(logits_te.dims(), (&gates_tk.device(), gates_tk.dtype()));
    let gates_te = zeros_te.scatter(1, ids_tk, gates_tk.clone(), IndexingUpdateOp::Add);
    squared_variation(gates_te.sum_dim(0))
}

/// Squared coefficient of variation of the experts' loads, each the sum over tokens of the
/// probability that fresh noise would choose it (arXiv:1701.06538, eq. 8-11).
fn load_loss(noisy_logits_te: &Tensor<2>, noise: &GateNoise, top_k: usize) -> Tensor<1> {
    let [t, e] = noisy_logits_te.dims();
    if top_k == e {
        // Everybody is always chosen.
        return Tensor::zeros([1], (&noisy_logits_te.device(), noisy_logits_te.dtype()));
    }
    let thresholds_te: Vec<f64> = read_to_host::<f64>(noisy_logits_te)
        .chunks_exact(e)
        .flat_map(|row| others_kth_highest(row, top_k))
        .collect();
    let GateNoise { clean_logits_te, std_te } = noise;
    let thresholds_te =
        Tensor::<2>::from_data(TensorData::new(thresholds_te, [t, e]), (&std_te.device(), std_te.dtype()));
    let distance_te = (clean_logits_te.clone() - thresholds_te) / std_te.clone();
    // Not divided by the root of 2: burn's gradient of a division by a number computes its inverse
    // in f32.
    let in_erf_units_te = distance_te.mul_scalar(std::f64::consts::FRAC_1_SQRT_2);
    let probability_te = in_erf_units_te.erf().add_scalar(1.0).mul_scalar(0.5);
    squared_variation(probability_te.sum_dim(0))
}

/// For each expert the `top_k`-th highest logit of the others, which its own must exceed to be
/// chosen.
fn others_kth_highest(logits_e: &[f64], top_k: usize) -> Vec<f64> {
    let mut sorted = logits_e.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let (kth, next) = (sorted[top_k - 1], sorted[top_k]);
    logits_e.iter().map(|&logit| if logit >= kth { next } else { kth }).collect()
}

/// Variance over squared mean: no root stands in it, whose gradient at perfect balance would be 0
/// / 0.
fn squared_variation(sums_1e: Tensor<2>) -> Tensor<1> {
    let mean_11 = sums_1e.clone().mean_dim(1);
    let variance = (sums_1e - mean_11.clone()).square().mean();
    variance / mean_11.square().reshape([1])
}

/// How unevenly the experts are used: `E * sum_e f_e P_e` with
/// `f_e = tokens_per_expert[e] / (T * k)` and `P_e` the mean over tokens of the softmax over all
/// experts (Switch, arXiv:2101.03961, eq. 4-6; GShard, arXiv:2006.16668, section 2.2). Only `P_e`
/// has a gradient. Perfect balance is 1, whatever `top_k` is; the worst case is `E / k`, all tokens
/// on the same k experts. Libraries that divide the counts by T alone (Hugging Face's
/// `load_balancing_loss_func`) report k times this value.
///
/// # Shapes
/// - `logits_te`: `[num_tokens, num_experts]`; returns `[1]`
///
/// # Panics
/// If `tokens_per_expert` has not one count per expert, or counts nothing.
pub fn load_balancing_loss(logits_te: Tensor<2>, tokens_per_expert: &[u64]) -> Tensor<1> {
    let [_, num_experts] = logits_te.dims();
    assert!(
        tokens_per_expert.len() == num_experts,
        "{} counts for {num_experts} experts",
        tokens_per_expert.len()
    );
    let num_assignments: u64 = tokens_per_expert.iter().sum();
    assert!(num_assignments > 0, "no token was assigned to any of the {num_experts} experts");
    let scale = num_experts as f64 / num_assignments as f64;
    let load_e: Vec<f64> = tokens_per_expert.iter().map(|&count| count as f64 * scale).collect();
    expected_load(logits_te, &load_e)
}

/// Mean squared log-partition of the gate; keeps logits small enough for low precision.
/// ST-MoE, arXiv:2202.08906, eq. 5.
///
/// # Shapes
/// - `logits_te`: `[num_tokens, num_experts]`; returns `[1]`
pub fn router_z_loss(logits_te: Tensor<2>) -> Tensor<1> {
    mean_square_log_partition(logits_te)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device, Tensor, TensorData};
    use proptest::prelude::*;

    use super::*;

    const E: usize = 3;

    fn leaf(logits_te: &[f64], num_experts: usize) -> Tensor<2> {
        let data = TensorData::new(logits_te.to_vec(), [logits_te.len() / num_experts, num_experts]);
        Tensor::from_data(data, (&Device::flex().autodiff(), DType::F64)).require_grad()
    }

    fn value(loss: &Tensor<1>) -> f64 {
        loss.clone().into_scalar()
    }

    /// Central differences of `loss`: error 1e-10 from truncation plus 1e-10 from rounding, for
    /// values of size 1.
    fn differences(logits_te: &[f64], loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
        let step = 1e-5;
        let shifted = |i: usize, by: f64| {
            let mut logits_te = logits_te.to_vec();
            logits_te[i] += by;
            loss(&logits_te)
        };
        (0..logits_te.len()).map(|i| (shifted(i, step) - shifted(i, -step)) / (2.0 * step)).collect()
    }

    #[track_caller]
    fn assert_gradient(leaf: &Tensor<2>, loss: Tensor<1>, expected: &[f64]) {
        let gradient = leaf.grad(&loss.backward()).unwrap().into_data().try_into_vec::<f64>().unwrap();
        for (actual, expected) in gradient.iter().zip(expected) {
            assert!((actual - expected).abs() < 1e-8, "{gradient:?} instead of {expected:?}");
        }
    }

    #[test]
    fn where_no_expert_gets_a_token_nothing_is_balanced() {
        let logits_te = leaf(&[0.5, f64::NEG_INFINITY, -3.0], E);
        let loss = balancing_or_nothing(logits_te.clone(), &[0; E]);
        assert_eq!(value(&loss), 0.0);
        assert_gradient(&logits_te, loss, &[0.0; E]);
    }

    fn oracle_z_loss(logits_te: &[f64]) -> f64 {
        let rows = logits_te.chunks(E).map(|row| row.iter().map(|x| x.exp()).sum::<f64>().ln().powi(2));
        rows.sum::<f64>() / (logits_te.len() / E) as f64
    }

    fn oracle_load_balancing(logits_te: &[f64], counts: &[u64]) -> f64 {
        let (num_tokens, total) = ((logits_te.len() / E) as f64, counts.iter().sum::<u64>() as f64);
        let mut loss = 0.0;
        for row in logits_te.chunks(E) {
            let partition: f64 = row.iter().map(|x| x.exp()).sum();
            for (x, &count) in row.iter().zip(counts) {
                loss += E as f64 * count as f64 / total * x.exp() / partition / num_tokens;
            }
        }
        loss
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn z_loss_and_its_gradient_are_those_of_the_definition(
            logits in prop::collection::vec(-3.0..3.0_f64, 4 * E),
        ) {
            let logits_te = leaf(&logits, E);
            let loss = router_z_loss(logits_te.clone());
            prop_assert!((value(&loss) - oracle_z_loss(&logits)).abs() < 1e-12);
            assert_gradient(&logits_te, loss, &differences(&logits, oracle_z_loss));
        }

        #[test]
        fn load_balancing_loss_and_its_gradient_are_those_of_the_definition(
            logits in prop::collection::vec(-3.0..3.0_f64, 4 * E),
            counts in prop::collection::vec(1_u64..9, E),
        ) {
            let logits_te = leaf(&logits, E);
            let loss = load_balancing_loss(logits_te.clone(), &counts);
            prop_assert!((value(&loss) - oracle_load_balancing(&logits, &counts)).abs() < 1e-12);
            assert_gradient(&logits_te, loss, &differences(&logits, |x| oracle_load_balancing(x, &counts)));
        }
    }

    #[test]
    fn even_probabilities_or_even_loads_cost_one_whatever_k() {
        let uniform = leaf(&[0.0; 8], 4);
        assert!((value(&load_balancing_loss(uniform, &[4, 0, 0, 0])) - 1.0).abs() < 1e-12);
        let decided = leaf(&[5.0, 0.0, -3.0, 1.0], 4);
        for count in [1, 2, 7] {
            assert!((value(&load_balancing_loss(decided.clone(), &[count; 4])) - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn a_collapsed_router_costs_the_number_of_experts() {
        let certain = leaf(&[1e4, 0.0, 0.0, 0.0], 4);
        assert!((value(&load_balancing_loss(certain, &[1, 0, 0, 0])) - 4.0).abs() < 1e-12);
    }

    #[test]
    fn one_expert_costs_exactly_one_without_gradient() {
        let logits_t1 = leaf(&[0.3, -2.0, 1e4], 1);
        let loss = load_balancing_loss(logits_t1.clone(), &[3]);
        assert_eq!(value(&loss), 1.0);
        assert_gradient(&logits_t1, loss, &[0.0; 3]);
    }

    #[test]
    fn huge_logits_stay_finite() {
        for logits in [[1e4, -1e4, 0.0], [-1e4; 3], [1e4; 3]] {
            let logits_te = leaf(&logits, E);
            let loss = router_z_loss(logits_te.clone()) + load_balancing_loss(logits_te.clone(), &[1, 0, 0]);
            assert!(value(&loss).is_finite());
            let gradient = logits_te.grad(&loss.backward()).unwrap().into_data();
            assert!(gradient.iter::<f64>().all(f64::is_finite), "{gradient:?}");
        }
    }

    #[test]
    #[should_panic(expected = "2 counts for 3 experts")]
    fn a_wrong_number_of_counts_is_refused() {
        load_balancing_loss(leaf(&[0.0; 3], E), &[1, 1]);
    }
}
