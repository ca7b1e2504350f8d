//! Group-limited choice: a token's experts come from its few best groups of experts.
//!
//! Where a group lives on one device or node, this bounds how many of them a token is sent to.
//!
//! Shape letters: t tokens, e experts, g groups.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::select_top_k;

/// Experts in equal groups of neighbours (`num_experts / num_groups` each), of which every token
/// may use the best `top_groups`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpertGroups {
    /// Number of groups; divides the number of experts.
    pub num_groups: usize,
    /// Groups each token may use, in `1..=num_groups`. Their experts must be at least `top_k`.
    pub top_groups: usize,
    /// What ranks the groups.
    #[serde(default)]
    pub score: GroupScore,
}

/// How good a group is for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
pub enum GroupScore {
    /// The score of its best expert (device-limited routing of DeepSeek-V2, arXiv:2405.04434,
    /// section 2.1.3).
    Max,
    /// The sum of its two best experts' scores (node-limited routing of DeepSeek-V3,
    /// arXiv:2412.19437, section 2.1.2: the highest `top_k / top_groups` scores, with 8 experts
    /// from 4 nodes).
    #[default]
    SumOfTopTwo,
}

impl ExpertGroups {
    /// The scores with those outside each token's best groups set to minus infinity, for
    /// [`select_top_k`]: `[t, e]`, row-major. Ties between groups go to the lower index.
    ///
    /// Allowed experts keep their order but are raised above minus infinity, to the lowest finite
    /// values where they are NaN or minus infinity themselves: one of them is always chosen before
    /// a masked one.
    ///
    /// # Shapes
    /// - `scores_te`: `[num_tokens, num_experts]`, row-major; with a selection bias, the biased
    ///   scores
    ///
    /// # Panics
    /// If `num_groups` does not divide `num_experts`, `top_groups` is not in `1..=num_groups`, or
    /// the scores do not divide into rows.
    pub fn mask_scores(&self, scores_te: &[f64], num_experts: usize) -> Vec<f64> {
        let group_len = self.group_len(num_experts);
        let scores_tg: Vec<f64> =
            scores_te.chunks_exact(group_len).map(|group| self.score.of(group)).collect();
        let best_groups = select_top_k(&scores_tg, self.num_groups, self.top_groups);
        let mut masked_te = vec![f64::NEG_INFINITY; scores_te.len()];
        for (slot, &group) in best_groups.iter().enumerate() {
            let token = slot / self.top_groups;
            let start = token * num_experts + group as usize * group_len;
            let allowed = start..start + group_len;
            for (masked, &score) in masked_te[allowed.clone()].iter_mut().zip(&scores_te[allowed]) {
                *masked = above_minus_infinity(score);
            }
        }
        masked_te
    }

    fn group_len(&self, num_experts: usize) -> usize {
        let Self { num_groups, top_groups, .. } = *self;
        assert!(
            num_groups > 0 && num_experts > 0 && num_experts.is_multiple_of(num_groups),
            "{num_experts} experts do not divide into {num_groups} groups"
        );
        assert!((1..=num_groups).contains(&top_groups), "cannot choose {top_groups} of {num_groups} groups");
        num_experts / num_groups
    }
}

impl GroupScore {
    fn of(self, scores: &[f64]) -> f64 {
        let num_counted = match self {
            Self::Max => 1,
            Self::SumOfTopTwo => scores.len().min(2),
        };
        select_top_k(scores, scores.len(), num_counted).iter().map(|&expert| scores[expert as usize]).sum()
    }
}

/// The score, with NaN and minus infinity, in this order, as the two lowest finite numbers.
fn above_minus_infinity(score: f64) -> f64 {
    if score.is_nan() { f64::MIN } else { score.max(f64::MIN.next_up()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOW: f64 = f64::NEG_INFINITY;

    fn groups(num_groups: usize, top_groups: usize, score: GroupScore) -> ExpertGroups {
        ExpertGroups { num_groups, top_groups, score }
    }

    /// Groups (0.9, 0.1, 0.1), (0.6, 0.5, 0.0), (0.3, 0.3, 0.3): the maxima favour the first, the
    /// sums of two the second.
    #[test]
    fn golden_values() {
        let scores = [0.9, 0.1, 0.1, 0.6, 0.5, 0.0, 0.3, 0.3, 0.3];
        let by_max = groups(3, 1, GroupScore::Max).mask_scores(&scores, 9);
        assert_eq!(by_max, [0.9, 0.1, 0.1, LOW, LOW, LOW, LOW, LOW, LOW]);
        let by_sum = groups(3, 1, GroupScore::SumOfTopTwo).mask_scores(&scores, 9);
        assert_eq!(by_sum, [LOW, LOW, LOW, 0.6, 0.5, 0.0, LOW, LOW, LOW]);
        let two = groups(3, 2, GroupScore::SumOfTopTwo).mask_scores(&scores, 9);
        assert_eq!(two, [0.9, 0.1, 0.1, 0.6, 0.5, 0.0, LOW, LOW, LOW]);
    }

    #[test]
    fn ties_go_to_the_lower_group() {
        assert_eq!(groups(2, 1, GroupScore::Max).mask_scores(&[1.0, 0.0, 0.0, 1.0], 4), [1.0, 0.0, LOW, LOW]);
    }

    #[test]
    fn groups_of_one_expert_have_its_score() {
        for score in [GroupScore::Max, GroupScore::SumOfTopTwo] {
            assert_eq!(groups(3, 1, score).mask_scores(&[1.0, 3.0, 2.0], 3), [LOW, 3.0, LOW]);
            assert_eq!(groups(1, 1, score).mask_scores(&[-1e4, 1e4], 1), [-1e4, 1e4]);
        }
    }

    #[test]
    fn no_tokens_stay_none() {
        assert!(groups(2, 1, GroupScore::Max).mask_scores(&[], 4).is_empty());
    }

    #[test]
    #[should_panic(expected = "6 experts do not divide into 4 groups")]
    fn unequal_groups_are_refused() {
        groups(4, 1, GroupScore::Max).mask_scores(&[], 6);
    }

    /// The group's score by the definition: sort it all, NaN below everything.
    fn oracle_group_score(group: &[f64], count: usize) -> f64 {
        let mut sorted: Vec<f64> = group.iter().map(|&s| if s.is_nan() { LOW } else { s }).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        sorted.iter().take(count).sum()
    }

    fn score() -> impl Strategy<Value = f64> {
        prop_oneof![4 => -3.0..3.0_f64, 1 => prop::sample::select(vec![f64::NAN, LOW, 1e4, -1e4, 0.0])]
    }

    proptest! {
        #[test]
        fn chosen_experts_lie_in_the_best_groups(
            scores in prop::collection::vec(score(), 24),
            (num_groups, top_groups) in prop::sample::select(vec![(1, 1), (2, 1), (3, 2), (4, 2), (6, 5), (12, 3)]),
            by_sum in any::<bool>(),
            share in 0.0..1.0_f64,
        ) {
            let rule = if by_sum { GroupScore::SumOfTopTwo } else { GroupScore::Max };
            let group_len = 12 / num_groups;
            let top_k = 1 + (share * (top_groups * group_len) as f64) as usize;
            let masked = groups(num_groups, top_groups, rule).mask_scores(&scores, 12);
            let chosen = select_top_k(&masked, 12, top_k);
            for (scores_e, chosen_k) in scores.chunks(12).zip(chosen.chunks(top_k)) {
                let group_score = |g: usize| {
                    oracle_group_score(&scores_e[g * group_len..][..group_len], if by_sum { 2 } else { 1 })
                };
                let used: Vec<usize> = chosen_k.iter().map(|&e| e as usize / group_len).collect();
                for &group in &used {
                    let better = (0..num_groups).filter(|&g| group_score(g) > group_score(group)).count();
                    prop_assert!(better < top_groups);
                }
                let mut distinct = used;
                distinct.sort_unstable();
                distinct.dedup();
                prop_assert!(distinct.len() <= top_groups);
            }
        }

        #[test]
        fn all_groups_allowed_is_plain_top_k(
            scores in prop::collection::vec(score(), 24),
            num_groups in prop::sample::select(vec![1_usize, 2, 4, 8]),
            top_k in 1_usize..=8,
        ) {
            let masked = groups(num_groups, num_groups, GroupScore::SumOfTopTwo).mask_scores(&scores, 8);
            prop_assert_eq!(select_top_k(&masked, 8, top_k), select_top_k(&scores, 8, top_k));
        }

        /// Even where everything allowed is NaN or minus infinity.
        #[test]
        fn an_allowed_expert_outranks_every_masked_one(
            scores in prop::collection::vec(prop::sample::select(vec![f64::NAN, LOW]), 8),
            top_groups in 1_usize..4,
        ) {
            let masked = groups(4, top_groups, GroupScore::Max).mask_scores(&scores, 8);
            let allowed = masked.iter().filter(|&&score| score > LOW).count();
            prop_assert_eq!(allowed, 2 * top_groups);
            let chosen = select_top_k(&masked, 8, allowed);
            prop_assert!(chosen.iter().all(|&expert| masked[expert as usize] > LOW));
        }
    }
}
