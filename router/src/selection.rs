//! The choice of the k best experts of each token.
//!
//! Shape letters: t tokens, e experts, k experts per token.

use std::cmp::Ordering;

/// The `top_k` experts with the highest scores of each token, best first: `[t, k]`, row-major. Ties
/// go to the lower expert index, and NaN ranks below everything, so the choice is a pure function
/// of the scores on every machine.
///
/// # Shapes
/// - `scores_te`: `[num_tokens, num_experts]`, row-major
///
/// # Panics
/// If `top_k` is not in `1..=num_experts`, or the scores do not divide into rows of `num_experts`.
pub fn select_top_k(scores_te: &[f64], num_experts: usize, top_k: usize) -> Vec<u32> {
    assert!((1..=num_experts).contains(&top_k), "cannot choose {top_k} of {num_experts} experts");
    let rows = scores_te.chunks_exact(num_experts);
    assert!(rows.remainder().is_empty(), "{} scores for {num_experts} experts", scores_te.len());
    let mut expert_ids_tk = Vec::with_capacity(rows.len() * top_k);
    let mut best: Vec<(f64, u32)> = Vec::with_capacity(top_k);
    for scores_e in rows {
        best.clear();
        for (expert, &score) in (0_u32..).zip(scores_e) {
            if best.len() == top_k {
                // Most are worse than those already chosen.
                if !beats(score, best[top_k - 1].0) {
                    continue;
                }
                best.pop();
            }
            // Experts come in ascending order and an insertion goes behind its equals: ties keep
            // the lower index.
            let place =
                best.iter().rposition(|&(earlier, _)| !beats(score, earlier)).map_or(0, |last| last + 1);
            best.insert(place, (score, expert));
        }
        expert_ids_tk.extend(best.iter().map(|&(_, expert)| expert));
    }
    expert_ids_tk
}

fn beats(score: f64, other: f64) -> bool {
    score > other || (other.is_nan() && !score.is_nan())
}

/// The order in which every choice ranks two scores: the higher first, NaN last, and 0 equal to -0.
/// A stable sort by it leaves ties with the lower index.
pub(crate) fn best_first(a: f64, b: f64) -> Ordering {
    a.is_nan().cmp(&b.is_nan()).then(b.partial_cmp(&a).unwrap_or(Ordering::Equal))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn best_first_and_ties_go_to_the_lower_index() {
        assert_eq!(select_top_k(&[1.0, 3.0, 3.0, 2.0], 4, 3), [1, 2, 3]);
        assert_eq!(select_top_k(&[0.0; 4], 4, 2), [0, 1]);
        assert_eq!(select_top_k(&[5.0, 6.0, 8.0, 7.0], 2, 1), [1, 0]);
    }

    #[test]
    fn nan_ranks_below_everything() {
        let (nan, low) = (f64::NAN, f64::NEG_INFINITY);
        assert_eq!(select_top_k(&[nan, low, 1.0], 3, 3), [2, 1, 0]);
        assert_eq!(select_top_k(&[nan, nan], 2, 2), [0, 1]);
    }

    #[test]
    fn no_tokens_choose_nothing() {
        assert!(select_top_k(&[], 3, 2).is_empty());
    }

    proptest! {
        #[test]
        fn sorting_best_first_selects_the_same(
            scores in prop::collection::vec(prop::sample::select(vec![-0.0, 0.0, 1.0, f64::NEG_INFINITY, f64::NAN]), 7),
        ) {
            let mut order: Vec<u32> = (0..7).collect();
            order.sort_by(|&a, &b| best_first(scores[a as usize], scores[b as usize]));
            prop_assert_eq!(select_top_k(&scores, 7, 7), order);
        }

        /// The oracle sorts every row in full.
        #[test]
        fn selection_is_a_prefix_of_the_stable_sort(
            scores in prop::collection::vec(prop::sample::select(vec![-1.0, 0.0, 0.5, 2.0, f64::NAN]), 12),
            num_experts in prop::sample::select(vec![1_usize, 2, 3, 4, 6, 12]),
            share in 0.0..1.0_f64,
        ) {
            let top_k = 1 + (share * num_experts as f64) as usize;
            let expected: Vec<u32> = scores.chunks(num_experts).flat_map(|row| {
                let mut order: Vec<u32> = (0..num_experts as u32).collect();
                let key = |&e: &u32| if row[e as usize].is_nan() { -9.0 } else { row[e as usize] };
                order.sort_by(|a, b| key(b).total_cmp(&key(a)));
                order.truncate(top_k);
                order
            }).collect();
            prop_assert_eq!(select_top_k(&scores, num_experts, top_k), expected);
        }
    }
}
