//! From each token's choice of experts to rows packed by expert.

use switchyard_kernels::{Groups, SlotMap};

/// Where every kept assignment goes: rows sorted by expert, and within an expert in token order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DispatchPlan {
    /// Rows of each expert.
    pub groups: Groups,
    /// Slot of each row, and row of each slot.
    pub slots: SlotMap,
}

impl DispatchPlan {
    /// The plan of a choice, by a stable counting sort: O(slots + experts), and the same on every machine.
    ///
    /// # Shapes
    /// - `expert_ids_tk`: `[num_tokens, top_k]`, row-major; `keep_tk`: the same, false where a slot is dropped; absent
    ///   keeps every slot
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
