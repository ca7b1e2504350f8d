//! Measures of one routing that cost too much for every step: which experts work together, how much
//! the router still changes, what the experts specialise in, how alike they are.
//!
//! Shape letters: t tokens, e experts, k experts per token.

use std::collections::BTreeMap;

/// Sums that a dot product runs side by side, so that it can be vectorised without changing its
/// order.
const DOT_LANES: usize = 8;

/// How often experts are chosen together.
#[derive(Debug, Clone, PartialEq)]
pub struct CoActivation {
    num_experts: usize,
    tokens_ee: Vec<u64>,
}

impl CoActivation {
    /// Counts over the tokens of one routing.
    ///
    /// # Shapes
    /// - `expert_ids_tk`: `[num_tokens, top_k]`, row-major
    ///
    /// # Panics
    /// If the ids do not divide into rows of `top_k`, or one is not below `num_experts`.
    pub fn measure(expert_ids_tk: &[u32], num_experts: usize, top_k: usize) -> Self {
        let mut tokens_ee = vec![0; num_experts * num_experts];
        for chosen_k in rows(expert_ids_tk, top_k) {
            for &a in chosen_k {
                for &b in chosen_k {
                    assert!((b as usize) < num_experts, "expert {b} of {num_experts}");
                    tokens_ee[a as usize * num_experts + b as usize] += 1;
                }
            }
        }
        Self { num_experts, tokens_ee }
    }

    /// Tokens that chose both experts; for an expert with itself, its load.
    ///
    /// # Shapes
    /// - returns `[num_experts, num_experts]`, row-major, symmetric
    pub fn tokens_ee(&self) -> &[u64] {
        &self.tokens_ee
    }

    /// Share of the row expert's tokens that chose the column expert too (OLMoE, arXiv:2409.02060,
    /// section 5.2): 1 on the diagonal, 0 in the row of an expert without tokens.
    ///
    /// # Shapes
    /// - returns `[num_experts, num_experts]`, row-major
    pub fn share_ee(&self) -> Vec<f64> {
        let row = |(expert, tokens_e): (usize, &[u64])| {
            let load = tokens_e[expert].max(1) as f64; // An idle expert's row is all zeros.
            tokens_e.iter().map(|&tokens| tokens as f64 / load).collect::<Vec<_>>()
        };
        self.tokens_ee.chunks_exact(self.num_experts).enumerate().flat_map(row).collect()
    }
}

/// Mean over tokens of the share of the k experts that two routings of the same tokens have in
/// common, whatever their order: router saturation if one is the final router (OLMoE,
/// arXiv:2409.02060, section 5.1). 1 without tokens.
///
/// # Shapes
/// - `before_tk`, `after_tk`: `[num_tokens, top_k]`, row-major
///
/// # Panics
/// If they are not of the same tokens, or do not divide into rows of `top_k`.
pub fn agreement(before_tk: &[u32], after_tk: &[u32], top_k: usize) -> f64 {
    let common =
        |(before_k, after_k): (&[u32], &[u32])| before_k.iter().filter(|e| after_k.contains(e)).count();
    let num_common: usize = pairs_of_rows(before_tk, after_tk, top_k).map(common).sum();
    if before_tk.is_empty() { 1.0 } else { num_common as f64 / before_tk.len() as f64 }
}

/// Share of tokens whose set of experts changed between two routings; the order within the set does
/// not count. 0 without tokens.
///
/// # Shapes
/// - `before_tk`, `after_tk`: `[num_tokens, top_k]`, row-major
///
/// # Panics
/// As [`agreement`].
pub fn churn(before_tk: &[u32], after_tk: &[u32], top_k: usize) -> f64 {
    let changed = |(before_k, after_k): &(&[u32], &[u32])| before_k.iter().any(|e| !after_k.contains(e));
    let num_changed = pairs_of_rows(before_tk, after_tk, top_k).filter(changed).count();
    num_changed as f64 / (before_tk.len() / top_k).max(1) as f64
}

/// How much the expert that a token goes to says about the token's tag, and the other way round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MutualInformation {
    /// `sum p(e, g) ln (p(e, g) / (p(e) p(g)))` over experts e and tags g, with the observed shares
    /// as probabilities.
    pub nats: f64,
    /// The same over the smaller of the two entropies: 0 is independent, 1 is that one decides the
    /// other. 0 if either never varies.
    pub normalised: f64,
    /// What `nats` is expected to be too high by, because few samples look dependent by chance:
    /// Miller-Madow, `(cells - rows - columns + 1) / 2n` over the cells, rows and columns that
    /// occur, at least 0. Trust `nats` only where it is several times this. The k choices of a
    /// token are counted as k samples although they are not independent, so the true bias lies
    /// between this and k times this.
    pub bias_nats: f64,
}

/// Mutual information between the experts of the tokens and their tags, such as domains or token
/// ids, each of a token's k choices one sample. Tokens without a tag do not count.
///
/// # Shapes
/// - `expert_ids_tk`: `[num_tokens, top_k]`, row-major; `tags_t`: `[num_tokens]`
///
/// # Panics
/// If the ids do not divide into rows of `top_k`, or there is not one tag per token.
pub fn mutual_information(expert_ids_tk: &[u32], tags_t: &[Option<u32>], top_k: usize) -> MutualInformation {
    let (mut cells, mut experts, mut tags) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    assert!(
        rows(expert_ids_tk, top_k).len() == tags_t.len(),
        "{} tags for {} expert ids with top_k {top_k}",
        tags_t.len(),
        expert_ids_tk.len()
    );
    for (chosen_k, tag) in rows(expert_ids_tk, top_k).zip(tags_t) {
        for (&expert, &tag) in chosen_k.iter().flat_map(|expert| tag.iter().map(move |tag| (expert, tag))) {
            *cells.entry((expert, tag)).or_insert(0_u64) += 1;
            *experts.entry(expert).or_insert(0) += 1;
            *tags.entry(tag).or_insert(0) += 1;
        }
    }
    let num_samples: u64 = tags.values().sum();
    let (expert_nats, tag_nats) = (entropy_nats(experts.values()), entropy_nats(tags.values()));
    let nats = (expert_nats + tag_nats - entropy_nats(cells.values())).max(0.0);
    let smaller = expert_nats.min(tag_nats);
    let extra_cells = (cells.len() + 1).saturating_sub((experts.len() + tags.len()).max(1));
    MutualInformation {
        nats,
        normalised: if smaller > 0.0 { (nats / smaller).min(1.0) } else { 0.0 },
        bias_nats: extra_cells as f64 / (2 * num_samples.max(1)) as f64,
    }
}

/// Entropy of the shares that these counts are; 0 without counts.
fn entropy_nats<'a>(counts: impl Iterator<Item = &'a u64> + Clone) -> f64 {
    let total = counts.clone().sum::<u64>() as f64;
    counts.map(|&count| count as f64 / total).map(|share| -share * share.ln()).sum::<f64>().max(0.0)
}

/// How alike the weights of a layer's experts are.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertSimilarity {
    /// Cosine of each pair of experts, `[num_experts, num_experts]`, row-major; 0 with an expert
    /// whose weights are zero.
    pub cosine_ee: Vec<f64>,
    /// Mean over pairs of different experts; `None` with fewer than two.
    pub mean: Option<f64>,
    /// The most similar pair of different experts; `None` with fewer than two.
    pub max: Option<f64>,
}

/// Pairwise cosines of the experts' weights, each expert's matrices one after the other in one
/// slice. Accumulated in f64: a million products in f32 would lose the third digit.
///
/// # Panics
/// If two experts have different numbers of weights.
pub fn expert_similarity(weights_of_experts: &[&[f32]]) -> ExpertSimilarity {
    let num_experts = weights_of_experts.len();
    let norms: Vec<f64> = weights_of_experts.iter().map(|weights| dot(weights, weights).sqrt()).collect();
    let mut cosine_ee = vec![0.0; num_experts * num_experts];
    let mut pairs = Vec::with_capacity(num_experts * num_experts.saturating_sub(1) / 2);
    for (a, weights) in weights_of_experts.iter().enumerate() {
        for b in 0..=a {
            let norm = norms[a] * norms[b];
            let cosine = if norm > 0.0 { dot(weights, weights_of_experts[b]) / norm } else { 0.0 };
            cosine_ee[a * num_experts + b] = cosine;
            cosine_ee[b * num_experts + a] = cosine;
            pairs.extend((a != b).then_some(cosine));
        }
    }
    let mean = (!pairs.is_empty()).then(|| pairs.iter().sum::<f64>() / pairs.len() as f64);
    ExpertSimilarity { cosine_ee, mean, max: pairs.into_iter().reduce(f64::max) }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    assert!(a.len() == b.len(), "experts of {} and {} weights", a.len(), b.len());
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks::<DOT_LANES>(), b.as_chunks::<DOT_LANES>());
    let mut sums = [0.0; DOT_LANES];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum += f64::from(a) * f64::from(b);
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(&a, &b)| f64::from(a) * f64::from(b));
    sums.into_iter().chain(rest).sum()
}

fn rows(expert_ids_tk: &[u32], top_k: usize) -> std::slice::ChunksExact<'_, u32> {
    let rows = expert_ids_tk.chunks_exact(top_k);
    assert!(rows.remainder().is_empty(), "{} expert ids with top_k {top_k}", expert_ids_tk.len());
    rows
}

fn pairs_of_rows<'a>(
    before_tk: &'a [u32],
    after_tk: &'a [u32],
    top_k: usize,
) -> impl Iterator<Item = (&'a [u32], &'a [u32])> {
    assert!(
        before_tk.len() == after_tk.len(),
        "routings of different tokens: {} and {} expert ids",
        before_tk.len(),
        after_tk.len()
    );
    rows(before_tk, top_k).zip(rows(after_tk, top_k))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn assert_close(actual: f64, expected: f64) {
        assert!((actual - expected).abs() < 1e-12, "{actual} instead of {expected}");
    }

    /// Three tokens: {0, 1}, {0, 2}, {1, 0}; expert 3 is idle.
    #[test]
    fn co_activation_by_hand() {
        let together = CoActivation::measure(&[0, 1, 0, 2, 1, 0], 4, 2);
        assert_eq!(together.tokens_ee(), [3, 2, 1, 0, 2, 2, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0]);
        let share_ee = together.share_ee();
        assert_close(share_ee[1], 2.0 / 3.0); // Of the three tokens of expert 0, two went to expert 1 too.
        assert_close(share_ee[4], 1.0); // Both tokens of expert 1 went to expert 0 too.
        assert_eq!(share_ee[12..], [0.0; 4]);
    }

    #[test]
    fn agreement_is_the_share_of_experts_in_common_and_churn_the_share_of_tokens_that_moved() {
        let (before, after) = ([0, 1, 2, 3, 4, 5], [1, 0, 2, 4, 6, 7]);
        assert_close(agreement(&before, &after, 2), 0.5); // 2 + 1 + 0 of 6.
        assert_close(churn(&before, &after, 2), 2.0 / 3.0);
        assert_eq!((agreement(&[], &[], 2), churn(&[], &[], 2)), (1.0, 0.0));
    }

    /// Experts decide the domain in half of the tokens: counts 2 1 / 0 1 over experts x domains.
    #[test]
    fn mutual_information_by_hand() {
        let tags = [Some(0), Some(0), Some(1), Some(1), None];
        let information = mutual_information(&[0, 0, 0, 1, 9], &tags, 1);
        let (expert, tag, joint) =
            (-(0.75 * 0.75_f64.ln() + 0.25 * 0.25_f64.ln()), 2.0_f64.ln(), 1.5 * 2.0_f64.ln());
        assert_close(information.nats, expert + tag - joint);
        assert_close(information.normalised, (expert + tag - joint) / expert);
        assert_close(information.bias_nats, 0.0); // 3 cells of 2 + 2 - 1 degrees of freedom.
    }

    #[test]
    fn an_expert_per_domain_has_all_the_information_and_a_single_expert_none() {
        let tags: Vec<_> = (0..90).map(|t| Some(t % 3)).collect();
        let per_domain: Vec<u32> = (0..90).map(|t| 5 - t % 3).collect();
        let information = mutual_information(&per_domain, &tags, 1);
        assert_close(information.nats, 3.0_f64.ln());
        assert_close(information.normalised, 1.0);
        let nothing = MutualInformation { nats: 0.0, normalised: 0.0, bias_nats: 0.0 };
        assert_eq!(mutual_information(&[7; 90], &tags, 1), nothing);
        assert_eq!(mutual_information(&[7; 90], &[None; 90], 1), nothing);
        assert_eq!(mutual_information(&[], &[], 2), nothing);
    }

    /// SplitMix64.
    fn splitmix(seed: u64) -> u64 {
        let z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Independent by construction of a hash: what is left of the plug-in estimate is its bias.
    #[test]
    fn the_bias_note_predicts_the_information_that_chance_alone_shows() {
        let experts: Vec<u32> = (0..2000).map(|t| splitmix(t) as u32 % 16).collect();
        let tags: Vec<_> = (7000..9000).map(|t| Some(splitmix(t) as u32 % 16)).collect();
        let information = mutual_information(&experts, &tags, 1);
        // 225 degrees of freedom: the estimate's own standard deviation is bias * sqrt(2 / 225),
        // 9%.
        assert!((information.nats / information.bias_nats - 1.0).abs() < 0.3, "{information:?}");
    }

    #[test]
    fn similarity_is_the_cosine_of_the_weights() {
        let (a, b, c, idle) = ([1.0, 0.0], [-2.0, 0.0], [3.0, 3.0], [0.0, 0.0]);
        let similarity = expert_similarity(&[&a, &b, &c, &idle]);
        let root = 0.5_f64.sqrt();
        let expected = [[1.0, -1.0, root, 0.0], [-1.0, 1.0, -root, 0.0], [root, -root, 1.0, 0.0], [0.0; 4]];
        for (&actual, expected) in similarity.cosine_ee.iter().zip(expected.concat()) {
            assert_close(actual, expected);
        }
        assert_close(similarity.mean.unwrap(), -1.0 / 6.0);
        assert_close(similarity.max.unwrap(), root);
        assert_eq!(expert_similarity(&[&a]).mean, None);
    }

    #[test]
    #[should_panic(expected = "routings of different tokens: 2 and 4 expert ids")]
    fn routings_of_different_tokens_are_refused() {
        agreement(&[0, 1], &[0, 1, 2, 3], 2);
    }

    /// `num_tokens` choices of two different experts of six, twice.
    fn two_routings() -> impl Strategy<Value = (Vec<u32>, Vec<u32>)> {
        let choice = (0_u32..6, 1_u32..6).prop_map(|(a, by)| [a, (a + by) % 6]);
        prop::collection::vec((choice.clone(), choice), 1..30).prop_map(|choices| {
            let (before, after): (Vec<_>, Vec<_>) = choices.into_iter().unzip();
            (before.concat(), after.concat())
        })
    }

    proptest! {
        /// The oracle compares sets.
        #[test]
        fn agreement_and_churn_see_sets((before, after) in two_routings()) {
            let sets = |ids: &[u32]| ids.chunks(2).map(|k| k.iter().copied().collect::<BTreeSet<_>>()).collect::<Vec<_>>();
            let (before_sets, after_sets) = (sets(&before), sets(&after));
            let pairs = || before_sets.iter().zip(&after_sets);
            let common: usize = pairs().map(|(a, b)| a.intersection(b).count()).sum();
            let moved = pairs().filter(|(a, b)| a != b).count();
            prop_assert_eq!(agreement(&before, &after, 2), common as f64 / before.len() as f64);
            prop_assert_eq!(churn(&before, &after, 2), moved as f64 / before_sets.len() as f64);
            prop_assert_eq!(agreement(&before, &after, 2), agreement(&after, &before, 2));
            prop_assert_eq!((agreement(&before, &before, 2), churn(&before, &before, 2)), (1.0, 0.0));
        }

        #[test]
        fn co_activation_is_symmetric_and_each_token_counts_k_times_k((ids, _) in two_routings()) {
            let together = CoActivation::measure(&ids, 6, 2);
            let counts = together.tokens_ee();
            prop_assert_eq!(counts.iter().sum::<u64>() as usize, 2 * ids.len());
            for (a, b) in (0..36).map(|i| (i / 6, i % 6)) {
                prop_assert_eq!(counts[a * 6 + b], counts[b * 6 + a]);
                prop_assert!((0.0..=1.0).contains(&together.share_ee()[a * 6 + b]));
            }
        }

        /// The oracle is the definition, a sum over all cells.
        #[test]
        fn mutual_information_is_its_definition(
            samples in prop::collection::vec((0_u32..4, 0_u32..3), 1..60),
        ) {
            let (experts, tags): (Vec<u32>, Vec<u32>) = samples.iter().copied().unzip();
            let optional: Vec<_> = tags.iter().copied().map(Some).collect();
            let share = |keep: &dyn Fn(&(u32, u32)) -> bool| {
                samples.iter().filter(|sample| keep(sample)).count() as f64 / samples.len() as f64
            };
            let mut expected = 0.0;
            for (e, g) in (0..4).flat_map(|e| (0..3).map(move |g| (e, g))) {
                let joint = share(&|&sample| sample == (e, g));
                if joint > 0.0 {
                    expected += joint * (joint / share(&|s| s.0 == e) / share(&|s| s.1 == g)).ln();
                }
            }
            let information = mutual_information(&experts, &optional, 1);
            prop_assert!((information.nats - expected).abs() < 1e-12, "{:?} {}", information, expected);
            let swapped: Vec<_> = experts.iter().copied().map(Some).collect();
            prop_assert!((mutual_information(&tags, &swapped, 1).nats - information.nats).abs() < 1e-12);
            prop_assert!((0.0..=1.0).contains(&information.normalised));
        }
    }
}
