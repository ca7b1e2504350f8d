//! One order of summation for any number of ranks.
//!
//! The leaves are numbered from 0. A *block* of level `l` holds the leaves from `i 2^l` to
//! `(i + 1) 2^l - 1`, as far as there are such leaves. Its sum is that of its left half plus that of
//! its right half, or that of its left half alone if the right one has no leaves. The sum of all
//! leaves is that of the smallest block that holds them. Which additions are made, and in which
//! order, thus depends on the number of leaves alone. A rank that holds whole blocks of one level
//! sums each of them by itself, and the sums of the ranks are leaves of the same tree above.

/// Sums leaves that come one after another. Holds one sum for each binary digit of their number
/// that is 1, and so at most one for each doubling.
#[derive(Debug, Clone)]
pub struct TreeSum<T> {
    /// Sums of whole blocks with their levels, the levels falling.
    blocks: Vec<(u32, T)>,
}

impl<T> Default for TreeSum<T> {
    fn default() -> Self {
        Self { blocks: Vec::new() }
    }
}

impl<T> TreeSum<T> {
    /// The next leaf. `add` gets the left sum, then the right one.
    pub fn push(&mut self, leaf: T, mut add: impl FnMut(T, T) -> T) {
        let (mut level, mut sum) = (0, leaf);
        while let Some((_, left)) = self.blocks.pop_if(|(of_left, _)| *of_left == level) {
            (level, sum) = (level + 1, add(left, sum));
        }
        self.blocks.push((level, sum));
    }

    /// The sum of all leaves; `None` without any.
    pub fn finish(mut self, mut add: impl FnMut(T, T) -> T) -> Option<T> {
        let (_, mut sum) = self.blocks.pop()?;
        while let Some((_, left)) = self.blocks.pop() {
            sum = add(left, sum);
        }
        Some(sum)
    }
}

/// The sum of all leaves; `None` without any.
pub fn tree_sum<T>(leaves: impl IntoIterator<Item = T>, mut add: impl FnMut(T, T) -> T) -> Option<T> {
    let mut sum = TreeSum::default();
    for leaf in leaves {
        sum.push(leaf, &mut add);
    }
    sum.finish(add)
}

/// Whether `num_leaves` spread evenly over `num_ranks`, in order, are whole blocks for each rank, so
/// that ranks may sum their own first.
pub fn spreads_over(num_leaves: usize, num_ranks: usize) -> bool {
    num_ranks == 1 || (num_leaves.is_multiple_of(num_ranks) && (num_leaves / num_ranks).is_power_of_two())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition: a block is its left half plus its right half.
    fn block(leaves: &[String], first: usize, len: usize) -> Option<String> {
        if first >= leaves.len() {
            return None;
        }
        if len == 1 {
            return Some(leaves[first].clone());
        }
        let [left, right] = [first, first + len / 2].map(|first| block(leaves, first, len / 2));
        match (left, right) {
            (Some(left), Some(right)) => Some(format!("({left}+{right})")),
            (left, _) => left,
        }
    }

    fn names(num: usize) -> Vec<String> {
        (0..num).map(|leaf| leaf.to_string()).collect()
    }

    fn add(left: String, right: String) -> String {
        format!("({left}+{right})")
    }

    #[test]
    fn seven_leaves_are_added_as_the_tree_says() {
        assert_eq!(tree_sum(names(7), add).as_deref(), Some("(((0+1)+(2+3))+((4+5)+6))"));
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_definition(num in 0_usize..70) {
            let leaves = names(num);
            prop_assert_eq!(tree_sum(leaves.clone(), add), block(&leaves, 0, num.next_power_of_two().max(1)));
        }

        #[test]
        fn ranks_that_sum_their_own_leaves_first_make_the_same_additions(ranks in 1_usize..9, level in 0_u32..4) {
            let per_rank = 1 << level;
            let leaves = names(ranks * per_rank);
            prop_assert!(spreads_over(leaves.len(), ranks));
            let of_ranks = leaves.chunks(per_rank).filter_map(|part| tree_sum(part.to_vec(), add));
            prop_assert_eq!(tree_sum(of_ranks, add), tree_sum(leaves.clone(), add));
        }

        #[test]
        fn at_most_one_sum_is_held_for_each_doubling(num in 1_usize..200) {
            let mut sum = TreeSum::default();
            for leaf in 0..num {
                sum.push(leaf, |left, right| left + right);
                prop_assert_eq!(sum.blocks.len(), (leaf + 1).count_ones() as usize);
            }
        }
    }
}
