//! Which assignments stay when an expert takes only so many tokens.
//!
//! Slot `t * k + s` is the s-th choice of token t. A token never chooses one expert twice, so inside an expert the
//! order of slots is the order of tokens.

/// Tokens one expert takes: `ceil(factor * top_k * num_tokens / num_experts)`, at least 1
/// (Switch, arXiv:2101.03961, eq. 3, with the factor k of GShard).
pub fn expert_capacity(factor: f64, top_k: usize, num_tokens: usize, num_experts: usize) -> usize {
    let even_share = (top_k * num_tokens) as f64 / num_experts as f64;
    ((factor * even_share).ceil() as usize).max(1)
}

/// Whether each slot stays when every expert keeps its `capacity` earliest tokens of the batch, whichever of the
/// token's choices it was: `[t * k]`.
///
/// # Panics
/// If an expert id is not below `num_experts`.
pub fn keep_earliest(expert_ids_tk: &[u32], num_experts: usize, capacity: usize) -> Vec<bool> {
    let mut taken = vec![0_usize; num_experts];
    expert_ids_tk
        .iter()
        .map(|&expert| {
            taken[expert as usize] += 1;
            taken[expert as usize] <= capacity
        })
        .collect()
}

/// Whether each slot stays when every expert keeps its `capacity` largest gates: `[t * k]`. Ties go to the earlier
/// token; NaN ranks lowest.
///
/// # Panics
/// If an expert id is not below `num_experts`, or there is not one gate per id.
pub fn keep_largest_gates(
    expert_ids_tk: &[u32],
    gates_tk: &[f32],
    num_experts: usize,
    capacity: usize,
) -> Vec<bool> {
    assert!(
        expert_ids_tk.len() == gates_tk.len(),
        "{} expert ids but {} gates",
        expert_ids_tk.len(),
        gates_tk.len()
    );
    let mut slots_of_expert = vec![Vec::new(); num_experts];
    for (slot, &expert) in expert_ids_tk.iter().enumerate() {
        slots_of_expert[expert as usize].push(slot);
    }
    let rank = |slot: usize| if gates_tk[slot].is_nan() { f32::NEG_INFINITY } else { gates_tk[slot] };
    let mut keep = vec![false; expert_ids_tk.len()];
    for mut slots in slots_of_expert {
        slots.sort_by(|&a, &b| rank(b).total_cmp(&rank(a))); // Stable: equal gates stay in token order.
        for &slot in slots.iter().take(capacity) {
            keep[slot] = true;
        }
    }
    keep
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn capacity_rounds_up_and_is_never_zero() {
        assert_eq!(expert_capacity(1.0, 2, 6, 4), 3);
        assert_eq!(expert_capacity(1.25, 1, 10, 4), 4); // 3.125
        assert_eq!(expert_capacity(0.01, 1, 8, 8), 1);
    }

    #[test]
    fn position_drops_the_later_tokens() {
        let ids = [0, 1, 0, 1, 0, 2]; // 3 tokens, k = 2
        assert_eq!(keep_earliest(&ids, 3, 2), [true, true, true, true, false, true]);
    }

    #[test]
    fn probability_drops_the_smallest_gates() {
        let ids = [0, 0, 0, 1];
        assert_eq!(keep_largest_gates(&ids, &[0.2, 0.9, 0.5, 0.1], 2, 2), [false, true, true, true]);
        assert_eq!(keep_largest_gates(&ids, &[0.5, 0.5, f32::NAN, 0.1], 2, 1), [true, false, false, true]);
    }

    proptest! {
        #[test]
        fn every_expert_keeps_the_smaller_of_load_and_capacity(
            slots in prop::collection::vec((0_u32..5, 0.0_f32..1.0), 0..60),
            capacity in 1_usize..12,
        ) {
            let (ids, gates): (Vec<u32>, Vec<f32>) = slots.into_iter().unzip();
            let kept_by = |keep: &[bool], expert| {
                ids.iter().zip(keep).filter(|&(&id, &kept)| id == expert && kept).count()
            };
            let earliest = keep_earliest(&ids, 5, capacity);
            let largest = keep_largest_gates(&ids, &gates, 5, capacity);
            for expert in 0..5 {
                let load = ids.iter().filter(|&&id| id == expert).count();
                prop_assert_eq!(kept_by(&earliest, expert), load.min(capacity));
                prop_assert_eq!(kept_by(&largest, expert), load.min(capacity));
                let gates_where = |kept| {
                    let slots = ids.iter().zip(&gates).zip(&largest);
                    slots.filter(move |&((&id, _), &keep)| id == expert && keep == kept).map(|((_, &g), _)| g)
                };
                let smallest_kept = gates_where(true).fold(f32::INFINITY, f32::min);
                prop_assert!(gates_where(false).all(|gate| gate <= smallest_kept));
            }
        }
    }
}
