//! From each token's choice of experts to rows packed by expert, each a slot of a token.

use std::ops::Range;
use std::sync::Arc;

/// Which rows belong to which group: group g owns rows `offsets[g]..offsets[g + 1]`. Cheap to
/// clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    offsets: Arc<[usize]>,
}

impl Groups {
    /// Groups from their `num_groups + 1` row offsets.
    ///
    /// # Panics
    /// If `offsets` is empty, does not start at 0, or descends.
    pub fn new(offsets: impl Into<Arc<[usize]>>) -> Self {
        let offsets = offsets.into();
        assert!(offsets.first() == Some(&0), "row offsets must start at 0, got {offsets:?}");
        assert!(offsets.is_sorted(), "row offsets must not descend, got {offsets:?}");
        Self { offsets }
    }

    /// The groups of several lists of rows, one list behind the other.
    pub(crate) fn joined(lists: &[Self]) -> Self {
        let mut offsets = vec![0];
        for groups in lists {
            let start = offsets[offsets.len() - 1];
            offsets.extend(groups.offsets[1..].iter().map(|offset| start + offset));
        }
        Self::new(offsets)
    }

    /// The groups with these numbers of rows.
    pub fn of_sizes(num_rows: impl IntoIterator<Item = usize>) -> Self {
        let mut offsets = vec![0];
        for num_rows in num_rows {
            offsets.push(offsets[offsets.len() - 1] + num_rows);
        }
        Self::new(offsets)
    }

    /// Number of groups, empty ones included.
    pub fn num_groups(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Rows of all groups together.
    pub fn num_rows(&self) -> usize {
        self.offsets[self.num_groups()]
    }

    /// Rows of one group.
    ///
    /// # Panics
    /// If `group` is not below [`Groups::num_groups`].
    pub fn rows(&self, group: usize) -> Range<usize> {
        self.offsets[group]..self.offsets[group + 1]
    }

    /// The groups that own rows, with their rows, in order.
    pub fn occupied(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        (0..self.num_groups()).map(|group| (group, self.rows(group))).filter(|(_, rows)| !rows.is_empty())
    }
}

/// Which packed row holds which slot. Slot `t * top_k + s` is the s-th expert choice of token t; a
/// slot without a row was dropped. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotMap {
    num_tokens: usize,
    top_k: usize,
    slot_of_row: Arc<[u32]>,
    row_of_slot: Arc<[Option<u32>]>,
}

impl SlotMap {
    /// The map in which packed row r holds slot `slot_of_row[r]`.
    ///
    /// # Panics
    /// If a slot is not below `num_tokens * top_k` or has two rows.
    pub fn new(slot_of_row: impl Into<Arc<[u32]>>, num_tokens: usize, top_k: usize) -> Self {
        let slot_of_row = slot_of_row.into();
        let mut row_of_slot = vec![None; num_tokens * top_k];
        for (row, &slot) in (0u32..).zip(slot_of_row.iter()) {
            let earlier = row_of_slot[slot as usize].replace(row);
            assert!(earlier.is_none(), "slot {slot} is in rows {earlier:?} and {row}");
        }
        Self { num_tokens, top_k, slot_of_row, row_of_slot: row_of_slot.into() }
    }

    /// Tokens, those without any row included.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Slots of each token.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Packed rows; `num_tokens * top_k` unless slots were dropped.
    pub fn num_rows(&self) -> usize {
        self.slot_of_row.len()
    }

    /// Slot that each packed row holds.
    pub fn slot_of_row(&self) -> &[u32] {
        &self.slot_of_row
    }

    /// Packed row of each slot, `None` where the slot was dropped.
    pub fn row_of_slot(&self) -> &[Option<u32>] {
        &self.row_of_slot
    }

    /// Token that each packed row belongs to.
    pub(crate) fn token_of_row(&self) -> impl Iterator<Item = usize> {
        self.slot_of_row.iter().map(|&slot| slot as usize / self.top_k)
    }

    /// Whether a slot has no row.
    pub fn drops_slots(&self) -> bool {
        self.num_rows() < self.row_of_slot.len()
    }
}

/// Where every kept assignment goes: rows sorted by expert, and within an expert in token order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DispatchPlan {
    /// Rows of each expert.
    pub groups: Groups,
    /// Slot of each row, and row of each slot.
    pub slots: SlotMap,
}

impl DispatchPlan {
    /// The plan of a choice, by a stable counting sort: O(slots + experts), and the same on every
    /// machine.
    ///
    /// # Shapes
    /// - `expert_ids_tk`: `[num_tokens, top_k]`, row-major; `keep_tk`: the same, false where a slot
    ///   is dropped; `None` keeps every slot
    ///
    /// # Panics
    /// If an expert id is not below `num_experts`, or the lengths do not fit.
    pub fn new(expert_ids_tk: &[u32], keep_tk: Option<&[bool]>, num_experts: usize, top_k: usize) -> Self {
        let num_slots = expert_ids_tk.len();
        assert!(
            num_slots.is_multiple_of(top_k) && keep_tk.is_none_or(|keep_tk| keep_tk.len() == num_slots),
            "{num_slots} expert ids do not fit top_k {top_k} and the slots kept"
        );
        let kept_slots = || {
            let kept = move |&(slot, _): &(usize, &u32)| keep_tk.is_none_or(|keep_tk| keep_tk[slot]);
            expert_ids_tk.iter().enumerate().filter(kept)
        };
        let mut offsets = vec![0; num_experts + 1];
        for (_, &expert) in kept_slots() {
            offsets[expert as usize + 1] += 1;
        }
        for expert in 0..num_experts {
            offsets[expert + 1] += offsets[expert];
        }
        let mut next_row = offsets.clone();
        let mut slot_of_row = vec![0; offsets[num_experts]];
        for (slot, &expert) in kept_slots() {
            slot_of_row[next_row[expert as usize]] = slot as u32;
            next_row[expert as usize] += 1;
        }
        Self { groups: Groups::new(offsets), slots: SlotMap::new(slot_of_row, num_slots / top_k, top_k) }
    }

    /// Assignments without a row.
    pub fn num_dropped(&self) -> usize {
        self.slots.num_tokens() * self.slots.top_k() - self.slots.num_rows()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Choices of `num_tokens` tokens among 6 experts, and which of them to keep.
    fn choices(top_k: usize) -> impl Strategy<Value = (Vec<u32>, Vec<bool>)> {
        (0_usize..20).prop_flat_map(move |num_tokens| {
            let slots = num_tokens * top_k;
            (prop::collection::vec(0_u32..6, slots), prop::collection::vec(any::<bool>(), slots))
        })
    }

    proptest! {
        #[test]
        fn dropless_keeps_every_token((ids, _) in choices(3)) {
            let plan = DispatchPlan::new(&ids, None, 6, 3);
            let mut slots = plan.slots.slot_of_row().to_vec();
            slots.sort_unstable();
            prop_assert_eq!(slots, (0..ids.len() as u32).collect::<Vec<_>>());
            prop_assert_eq!(plan.num_dropped(), 0);
        }

        #[test]
        fn rows_are_a_stable_sort_of_the_kept_slots((ids, keep) in choices(2)) {
            let plan = DispatchPlan::new(&ids, Some(&keep), 6, 2);
            let mut expected: Vec<u32> = (0..ids.len() as u32).filter(|&slot| keep[slot as usize]).collect();
            expected.sort_by_key(|&slot| ids[slot as usize]); // The standard library's stable sort.
            prop_assert_eq!(plan.slots.slot_of_row(), expected);
            prop_assert_eq!(plan.num_dropped(), keep.iter().filter(|&&kept| !kept).count());
        }

        #[test]
        fn every_row_lies_in_its_experts_group((ids, keep) in choices(2)) {
            let plan = DispatchPlan::new(&ids, Some(&keep), 6, 2);
            for expert in 0..6 {
                for row in plan.groups.rows(expert) {
                    prop_assert_eq!(ids[plan.slots.slot_of_row()[row] as usize] as usize, expert);
                }
            }
            prop_assert_eq!(plan.groups.num_rows(), plan.slots.num_rows());
        }

        #[test]
        fn the_two_indices_are_inverse((ids, keep) in choices(2)) {
            let plan = DispatchPlan::new(&ids, Some(&keep), 6, 2);
            for (slot, row) in plan.slots.row_of_slot().iter().enumerate() {
                prop_assert_eq!(row.is_some(), keep[slot]);
                if let Some(row) = row {
                    prop_assert_eq!(plan.slots.slot_of_row()[*row as usize] as usize, slot);
                }
            }
        }
    }
}
