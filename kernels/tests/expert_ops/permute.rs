use burn::tensor::{DType, Tensor};
use proptest::prelude::*;
use switchyard_kernels::{SlotMap, combine_rows, gather_rows};

use crate::matrix::{Matrix, assert_close, bits, gradient, values};

const D: usize = 3;

/// Maps of up to 6 tokens with 1 to 3 slots each, rows in any order, some slots dropped.
fn slot_maps() -> impl Strategy<Value = SlotMap> {
    (1_usize..=6, 1_usize..=3).prop_flat_map(|(num_tokens, top_k)| {
        let slots: Vec<u32> = (0..(num_tokens * top_k) as u32).collect();
        let num_rows = 1..=slots.len();
        let rows = (Just(slots).prop_shuffle(), num_rows).prop_map(|(slots, n)| slots[..n].to_vec());
        rows.prop_map(move |slot_of_row| SlotMap::new(slot_of_row, num_tokens, top_k))
    })
}

/// Calls `visit(row, token, choice)` for every packed row.
fn for_each_row(slots: &SlotMap, mut visit: impl FnMut(usize, usize, usize)) {
    for (row, &slot) in slots.slot_of_row().iter().enumerate() {
        visit(row, slot as usize / slots.top_k(), slot as usize % slots.top_k());
    }
}

fn weighted_sum(y: &Tensor<2>, weights: &Matrix) -> Tensor<1> {
    (y.clone() * weights.tensor(y.dims(), y.dtype())).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn gather_copies_token_rows_and_sums_their_gradients(slots in slot_maps()) {
        let x = Matrix::random(slots.num_tokens(), D, 1);
        let c = Matrix::random(slots.num_rows(), D, 2);
        let mut y = Matrix::zeros(slots.num_rows(), D);
        let mut dx = Matrix::zeros(slots.num_tokens(), D);
        for_each_row(&slots, |row, token, _| for i in 0..D {
            y.add(row, i, x.at(token, i));
            dx.add(token, i, c.at(row, i));
        });

        let x_td = x.leaf(DType::F64);
        let y_nd = gather_rows(x_td.clone(), &slots);
        let gradients = weighted_sum(&y_nd, &c).backward();
        assert_close(&values(&y_nd), &y.values);
        assert_close(&values(&gradient(&x_td, &gradients)), &dx.values);
    }

    #[test]
    fn combine_weights_rows_with_their_gates(slots in slot_maps()) {
        let y = Matrix::random(slots.num_rows(), D, 1);
        let gates = Matrix::random(slots.num_tokens(), slots.top_k(), 2);
        let c = Matrix::random(slots.num_tokens(), D, 3);
        let mut out = Matrix::zeros(slots.num_tokens(), D);
        let mut dy = Matrix::zeros(slots.num_rows(), D);
        let mut dgates = Matrix::zeros(slots.num_tokens(), slots.top_k());
        for_each_row(&slots, |row, token, choice| for i in 0..D {
            out.add(token, i, gates.at(token, choice) * y.at(row, i));
            dy.add(row, i, gates.at(token, choice) * c.at(token, i));
            dgates.add(token, choice, y.at(row, i) * c.at(token, i));
        });

        let (y_nd, gates_tk) = (y.leaf(DType::F64), gates.leaf(DType::F64));
        let out_td = combine_rows(y_nd.clone(), gates_tk.clone(), &slots);
        let gradients = weighted_sum(&out_td, &c).backward();
        assert_close(&values(&out_td), &out.values);
        assert_close(&values(&gradient(&y_nd, &gradients)), &dy.values);
        assert_close(&values(&gradient(&gates_tk, &gradients)), &dgates.values);
    }
}

#[test]
fn one_slot_with_gate_one_passes_rows_through_bit_for_bit() {
    let slots = SlotMap::new([2, 0, 1], 3, 1);
    let mut x = Matrix::random(3, D, 5);
    x.values[0] = -0.0;
    let ones = Matrix { num_rows: 3, num_columns: 1, values: vec![1.0; 3] };
    let (x_td, c) = (x.leaf(DType::F32), Matrix::random(3, D, 6));
    let out_td = combine_rows(gather_rows(x_td.clone(), &slots), ones.leaf(DType::F32), &slots);
    let gradients = weighted_sum(&out_td, &c).backward();
    assert_eq!(bits(&out_td), bits(&x_td));
    assert_eq!(bits(&gradient(&x_td, &gradients)), bits(&c.tensor([3, D], DType::F32)));
}

#[test]
fn a_token_whose_slots_were_all_dropped_combines_to_zero() {
    let slots = SlotMap::new([3, 0], 3, 2); // Token 2 has no row.
    let y_nd = Matrix::random(2, D, 1).leaf(DType::F32);
    let gates_tk = Matrix::random(3, 2, 2).leaf(DType::F32);
    let out = values(&combine_rows(y_nd, gates_tk, &slots));
    assert_eq!(out[2 * D..], [0.0; D]);
    assert!(out[..2 * D].iter().all(|&x| x != 0.0));
}

#[test]
fn results_repeat_bit_for_bit() {
    let slots = SlotMap::new((0..512).rev().filter(|s| s % 5 != 0).collect::<Vec<u32>>(), 128, 4);
    let run = || {
        let x_td = Matrix::random(128, 64, 1).leaf(DType::F32);
        let gates_tk = Matrix::random(128, 4, 2).leaf(DType::F32);
        let out_td = combine_rows(gather_rows(x_td.clone(), &slots), gates_tk.clone(), &slots);
        let gradients = weighted_sum(&out_td, &Matrix::random(128, 64, 3)).backward();
        [bits(&out_td), bits(&gradient(&x_td, &gradients)), bits(&gradient(&gates_tk, &gradients))]
    };
    assert_eq!(run(), run());
}

#[test]
#[should_panic(expected = "slot 1 is in rows Some(0) and 2")]
fn a_slot_with_two_rows_is_refused() {
    SlotMap::new([1, 0, 1], 2, 1);
}
