//! Distinct experts from independent draws.

/// `top_k` distinct experts, every ordered choice equally likely, from `below(n)` draws uniform in
/// `0..n`.
///
/// # Panics
/// If `top_k` is more than `num_experts`.
pub(crate) fn distinct_experts(
    num_experts: usize,
    top_k: usize,
    mut below: impl FnMut(usize) -> usize,
) -> Vec<u32> {
    assert!(top_k <= num_experts, "cannot choose {top_k} of {num_experts} experts");
    let mut chosen: Vec<u32> = Vec::with_capacity(top_k);
    let mut sorted: Vec<u32> = Vec::with_capacity(top_k);
    for num_chosen in 0..top_k {
        // The n-th of those still free: each chosen one at or below it moves it up.
        let mut expert = below(num_experts - num_chosen) as u32;
        for &taken in &sorted {
            expert += u32::from(taken <= expert);
        }
        chosen.push(expert);
        sorted.insert(sorted.partition_point(|&taken| taken < expert), expert);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All 4 * 3 pairs of draws give all 12 ordered pairs of 4 experts.
    #[test]
    fn every_ordered_choice_comes_from_one_sequence_of_draws() {
        let mut seen = Vec::new();
        for (first, second) in (0..4).flat_map(|first| (0..3).map(move |second| (first, second))) {
            let mut draws = [first, second].into_iter();
            seen.push(distinct_experts(4, 2, |_| draws.next().unwrap()));
        }
        seen.sort();
        let all: Vec<Vec<u32>> =
            (0..4).flat_map(|a| (0..4).filter(move |&b| b != a).map(move |b| vec![a, b])).collect();
        assert_eq!(seen, all);
    }

    #[test]
    fn all_experts_or_none_can_be_drawn() {
        let mut all = distinct_experts(5, 5, |n| n - 1);
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4]);
        assert!(distinct_experts(5, 0, |_| 0).is_empty());
        assert_eq!(distinct_experts(1, 1, |_| 0), [0]);
    }
}
