//! Token rounding: each expert's tokens are rounded to a multiple of a tile, so that a kernel that
//! works on whole tiles pads nothing (SonicMoE, arXiv:2512.14080, section 5).
//!
//! Shape letters: t tokens, e experts, k experts per token.

use rayon::prelude::*;

use crate::selection::best_first;

/// The experts of each token after every expert's number of tokens is rounded to the nearest multiple
/// of `tile`, a half to the even multiple; to the largest that there are tokens for, at most. An
/// expert drops its chosen tokens with the lowest scores, or adds those with the highest scores of the
/// tokens that did not choose it. Ties go to the earlier token; NaN ranks below everything. A token's
/// chosen experts stay in their order, and added ones follow, ascending; it may be left with none.
///
/// A token's experts depend on the other tokens of the batch, later ones included: for training only.
///
/// # Shapes
/// - `expert_ids_tk`: `[num_tokens, top_k]`, distinct in each row; `scores_te`:
///   `[num_tokens, num_experts]`; both row-major
///
/// # Panics
/// If the tile or a size is 0, or the lengths do not fit.
pub fn round_tokens(
    (expert_ids_tk, top_k): (&[u32], usize),
    (scores_te, num_experts): (&[f64], usize),
    tile: usize,
) -> Vec<Vec<u32>> {
    let num_tokens = scores_te.len() / num_experts;
    assert!(
        tile > 0 && scores_te.len() == num_tokens * num_experts && expert_ids_tk.len() == num_tokens * top_k,
        "{} expert ids and {} scores do not fit top_k {top_k}, {num_experts} experts and a tile of {tile}",
        expert_ids_tk.len(),
        scores_te.len(),
    );
    let mut chosen_by = vec![vec![false; num_tokens]; num_experts];
    for (slot, &expert) in expert_ids_tk.iter().enumerate() {
        chosen_by[expert as usize][slot / top_k] = true;
    }
    let score = |expert: usize, token: usize| scores_te[token * num_experts + expert];
    let changes: Vec<Change> = chosen_by
        .par_iter()
        .enumerate()
        .map(|(expert, is_chosen)| Change::of(is_chosen, tile, |token| score(expert, token)))
        .collect();
    let mut experts_of_token: Vec<Vec<u32>> = expert_ids_tk.chunks(top_k).map(<[u32]>::to_vec).collect();
    for (expert, change) in (0_u32..).zip(changes) {
        for token in change.dropped {
            experts_of_token[token].retain(|&id| id != expert);
        }
        for token in change.added {
            experts_of_token[token].push(expert);
        }
    }
    experts_of_token
}

/// Tokens that an expert loses and gets, one list empty.
struct Change {
    dropped: Vec<usize>,
    added: Vec<usize>,
}

impl Change {
    fn of(is_chosen: &[bool], tile: usize, score: impl Fn(usize) -> f64) -> Self {
        let (chosen, others): (Vec<usize>, Vec<usize>) =
            (0..is_chosen.len()).partition(|&token| is_chosen[token]);
        let target = rounded(chosen.len(), is_chosen.len(), tile);
        let num_kept = target.min(chosen.len());
        Self {
            dropped: split_best(chosen, num_kept, &score).split_off(num_kept),
            added: best(others, target - num_kept, &score),
        }
    }
}

/// The multiple of `tile` that is nearest to `load`, of those up to `num_tokens`.
fn rounded(load: usize, num_tokens: usize, tile: usize) -> usize {
    let (tiles, rest) = (load / tile, load % tile);
    // An even number of tiles takes a half down, an odd one up: loads keep their mean.
    let rounds_up = 2 * rest > tile || (2 * rest == tile && tiles % 2 == 1);
    (tiles + usize::from(rounds_up)).min(num_tokens / tile) * tile
}

/// The tokens with the `num_best` best ones in front.
fn split_best(mut tokens: Vec<usize>, num_best: usize, score: &impl Fn(usize) -> f64) -> Vec<usize> {
    if num_best > 0 && num_best < tokens.len() {
        // The token makes every key distinct, so that the parts are the same on each machine.
        tokens.select_nth_unstable_by(num_best - 1, |&a, &b| best_first(score(a), score(b)).then(a.cmp(&b)));
    }
    tokens
}

fn best(tokens: Vec<usize>, num_best: usize, score: &impl Fn(usize) -> f64) -> Vec<usize> {
    let mut tokens = split_best(tokens, num_best, score);
    tokens.truncate(num_best);
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select_top_k;

    /// Tokens 0 to 2 choose expert 0, tokens 3 and 4 expert 1.
    #[test]
    fn golden_values() {
        let scores = [0.9, 0.1, 0.8, 0.2, 0.6, 0.4, 0.3, 0.7, 0.1, 0.9];
        let ids = select_top_k(&scores, 2, 1);
        let found = round_tokens((&ids, 1), (&scores, 2), 2);
        // 3 is a half between 2 and 4: the even number of tiles is 4, of which there are tokens for.
        assert_eq!(found, [vec![0], vec![0], vec![0], vec![1, 0], vec![1]]);
        // Of tiles of 4, 3 is nearer to 4, and 2 lies in the middle of 0 and 4.
        assert_eq!(
            round_tokens((&ids, 1), (&scores, 2), 4),
            [vec![0], vec![0], vec![0], vec![0], Vec::new()]
        );
        // No tile is full.
        assert_eq!(round_tokens((&ids, 1), (&scores, 2), 8), vec![Vec::<u32>::new(); 5]);
    }

    #[test]
    fn halves_go_to_the_even_multiple_and_no_load_is_above_the_tokens() {
        for (load, num_tokens, tile, expected) in [
            (64, 1000, 128, 0),
            (65, 1000, 128, 128),
            (192, 1000, 128, 256),
            (320, 1000, 128, 256),
            (990, 1000, 128, 896),
            (128, 1000, 128, 128),
            (7, 7, 8, 0),
            (5, 7, 1, 5),
        ] {
            assert_eq!(rounded(load, num_tokens, tile), expected, "{load} of {num_tokens} by {tile}");
        }
    }

    #[test]
    fn no_tokens_choose_nothing() {
        assert!(round_tokens((&[], 2), (&[], 4), 8).is_empty());
    }
}
