//! How small a load-balancing loss can be, given the load.
//!
//! The loss is `E * sum_e f_e P_e` (Switch, arXiv:2101.03961, eq. 4), `f_e` the share of the
//! assignments that expert e got and `P_e` the mean of its probabilities. 1 is often given as its
//! bound; it is not: f and P are different numbers, and an expert chosen by a hair by many tokens
//! and avoided by the rest has a large f and a small P.

/// Lower bound of the load-balancing loss of one batch, whichever way the experts were selected:
/// `E * min_e f_e`, because the probabilities sum to 1. For selection by other scores than the
/// probabilities of the loss (a selection bias, noise, hashing). 0 without assignments.
pub fn balancing_bound_of_any_selection(tokens_per_expert: &[u64]) -> f64 {
    let smallest = tokens_per_expert.iter().min().map_or(0, |&smallest| smallest);
    smallest as f64 * scale(tokens_per_expert)
}

/// Lower bound of the load-balancing loss of one batch whose tokens chose the `top_k` experts with
/// the largest probabilities; reached, in the limit, if `top_k` is 1. 0 without assignments.
///
/// A token's loss `sum_e f_e p_e` is smallest at a corner of the set of probabilities that make
/// some expert b its best: all mass spread evenly over b and the m experts of the smallest load,
/// for some m. The best expert is one of the token's chosen ones, and no expert can be the best of
/// more tokens than chose it: the bound gives the tokens the cheapest best experts that the load
/// allows.
pub fn balancing_bound_of_top_k(tokens_per_expert: &[u64], top_k: usize) -> f64 {
    let mut by_load: Vec<(usize, u64)> = tokens_per_expert.iter().copied().enumerate().collect();
    by_load.sort_by_key(|&(_, load)| load);
    let mut costs: Vec<(f64, u64)> =
        by_load.iter().map(|&best| (cheapest_token(best, &by_load), best.1)).collect();
    costs.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let num_tokens = tokens_per_expert.iter().sum::<u64>() / top_k as u64;
    let mut unplaced = num_tokens;
    let mut total = 0.0;
    for (cost, load) in costs {
        let placed = load.min(unplaced);
        total += placed as f64 * cost;
        unplaced -= placed;
    }
    total / num_tokens.max(1) as f64 * scale(tokens_per_expert)
}

/// Smallest `sum_e load_e p_e` of a token whose largest probability is that of `best`.
fn cheapest_token(best: (usize, u64), by_load: &[(usize, u64)]) -> f64 {
    let mut sum = best.1 as f64;
    let mut cheapest = sum;
    let others = by_load.iter().filter(|&&(expert, _)| expert != best.0);
    for (num_sharing, &(_, load)) in (2..).zip(others) {
        sum += load as f64;
        cheapest = cheapest.min(sum / f64::from(num_sharing));
    }
    cheapest
}

/// What a load is to be multiplied by to become `E f_e`.
fn scale(tokens_per_expert: &[u64]) -> f64 {
    let num_assignments = tokens_per_expert.iter().sum::<u64>().max(1);
    tokens_per_expert.len() as f64 / num_assignments as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use switchyard_router::select_top_k;

    use super::*;

    /// The loss and the load of probabilities `[num_tokens, num_experts]`, as written in the paper.
    fn loss_and_load(probs_te: &[f64], num_experts: usize, top_k: usize) -> (f64, Vec<u64>) {
        let num_tokens = probs_te.len() / num_experts;
        let mut load = vec![0; num_experts];
        select_top_k(probs_te, num_experts, top_k).iter().for_each(|&expert| load[expert as usize] += 1);
        let mut loss = 0.0;
        for (expert, &count) in load.iter().enumerate() {
            let mean = probs_te.iter().skip(expert).step_by(num_experts).sum::<f64>() / num_tokens as f64;
            loss += num_experts as f64 * count as f64 / (num_tokens * top_k) as f64 * mean;
        }
        (loss, load)
    }

    #[test]
    fn perfect_balance_costs_one_and_nothing_else() {
        for top_k in [1, 2, 4] {
            assert_eq!(balancing_bound_of_top_k(&[6; 4], top_k), 1.0);
            assert_eq!(balancing_bound_of_any_selection(&[6; 4]), 1.0);
        }
        assert_eq!(balancing_bound_of_top_k(&[7], 1), 1.0);
        assert_eq!(balancing_bound_of_top_k(&[0; 4], 2), 0.0);
    }

    /// Three of four tokens choose expert 0 by a hair, the last avoids it: 0.875, below the 1 of
    /// folklore.
    #[test]
    fn the_bound_for_one_choice_is_reached() {
        let hair = 1e-9;
        let undecided = [0.5 + hair, 0.5 - hair];
        let probs_te = [undecided, undecided, undecided, [0.0, 1.0]].concat();
        let (loss, load) = loss_and_load(&probs_te, 2, 1);
        assert_eq!(balancing_bound_of_top_k(&load, 1), 0.875);
        assert!((loss - 0.875).abs() < 1e-8, "{loss}");
    }

    proptest! {
        #[test]
        fn no_softmax_router_is_below_the_bound(
            logits in prop::collection::vec(prop_oneof![-0.01..0.01_f64, -6.0..6.0_f64], 48),
            num_experts in prop::sample::select(vec![1_usize, 2, 3, 4, 8]),
            share in 0.0..1.0_f64,
        ) {
            let top_k = 1 + (share * num_experts as f64) as usize;
            let probs_te: Vec<f64> = logits.chunks(num_experts).flat_map(|row| {
                let partition: f64 = row.iter().map(|x| x.exp()).sum();
                row.iter().map(|x| x.exp() / partition).collect::<Vec<_>>()
            }).collect();
            let (loss, load) = loss_and_load(&probs_te, num_experts, top_k);
            let bound = balancing_bound_of_top_k(&load, top_k);
            prop_assert!(loss >= bound - 1e-12, "{} below {} with load {:?}", loss, bound, load);
            prop_assert!(bound >= balancing_bound_of_any_selection(&load) - 1e-12);
        }
    }
}
