use burn::backend::{Flex, flex::FlexTensor, ops::FloatTensorOps};
use burn::tensor::{Shape, TensorData};

use switchyard_kernels_cpu::bf16::Compute;

use super::{HeadLossOp, HeadLossOptions, stock};
use crate::slices::test_support::{assert_agree, bits_with_threads, random_flex};
use crate::slices::{contiguous, elements, from_elements};

const EVERYTHING: HeadLossOptions =
    HeadLossOptions { ignored_target: Some(-1), z_loss_weight: Some(0.125), compute: Compute::F32 };

/// Every third token is ignored.
fn targets(t: usize, v: usize) -> FlexTensor {
    let id = |i: usize| if i % 3 == 1 { -1 } else { (i * 7919 % v) as i32 };
    FlexTensor::from_data(TensorData::new((0..t).map(id).collect::<Vec<_>>(), [t]))
}

/// Rows and matrix; the matrix as the transpose of one that lies in order if `tied`.
fn inputs([t, d, v]: [usize; 3], tied: bool) -> (FlexTensor, FlexTensor) {
    let small = |tensor: FlexTensor| Flex::float_mul_scalar(tensor, 0.25.into());
    let w_dv = match tied {
        true => random_flex(2, [v, d]).transpose(0, 1),
        false => random_flex(2, [d, v]),
    };
    (small(random_flex(1, [t, d])), w_dv)
}

#[test]
fn fused_loss_agrees_with_the_stock_body() {
    // The last sizes take several chunks, of which the last one is not whole.
    for shape in [[1, 1, 1], [1, 3, 17], [5, 16, 16], [70, 33, 1003], [1100, 5, 4099]] {
        for (tied, options) in [
            (false, EVERYTHING),
            (true, EVERYTHING),
            (true, HeadLossOptions { z_loss_weight: None, ..EVERYTHING }),
        ] {
            let (x_td, w_dv) = inputs(shape, tied);
            let ids_t = targets(shape[0], shape[2]);
            let stock =
                stock::losses_and_gradients::<Flex>(x_td.clone(), w_dv.clone(), ids_t.clone(), options);
            let alone = Flex::head_loss(x_td.clone(), w_dv.clone(), ids_t.clone(), options);
            let fused = Flex::head_loss_and_gradients(x_td, w_dv, ids_t, options);
            for losses in [&alone, &fused.0] {
                assert_agree("total", &losses.total_1, &stock.0.total_1);
                assert_agree("cross-entropy", &losses.cross_entropy_1, &stock.0.cross_entropy_1);
                assert_agree("squared log-partition", &losses.square_1, &stock.0.square_1);
            }
            assert_agree("rows", &fused.1, &stock.1);
            assert_eq!(
                fused.2.is_contiguous(),
                !tied || shape[1] == 1,
                "the gradient lies as the matrix does"
            );
            assert_agree("matrix", &contiguous(fused.2), &stock.2);
        }
    }
}

#[test]
fn a_matrix_that_runs_backwards_through_memory_is_multiplied_as_its_copy() {
    for (tied, axes) in [(false, &[0][..]), (false, &[1]), (true, &[0, 1])] {
        let (x_td, w_dv) = inputs([5, 3, 7], tied);
        let flipped_dv = Flex::float_flip(w_dv, axes);
        assert!(flipped_dv.layout().strides().iter().any(|stride| *stride < 0), "nothing was copied yet");
        let loss = |w_dv| Flex::head_loss_and_gradients(x_td.clone(), w_dv, targets(5, 7), EVERYTHING);
        let (flipped, copied) = (loss(flipped_dv.clone()), loss(contiguous(flipped_dv)));
        assert_eq!(elements(&flipped.0.total_1), elements(&copied.0.total_1));
        assert_eq!(elements(&flipped.1), elements(&copied.1));
        assert_eq!(elements(&flipped.2), elements(&copied.2));
    }
}

#[test]
fn without_an_ignored_target_every_token_counts() {
    let (x_td, w_dv) = inputs([5, 3, 7], false);
    let ids_t = FlexTensor::from_data(TensorData::new(vec![0i32, 6, 3, 3, 1], [5]));
    let options = HeadLossOptions::default();
    let stock = stock::losses::<Flex>(x_td.clone(), w_dv.clone(), ids_t.clone(), options);
    let fused = Flex::head_loss(x_td, w_dv, ids_t, options);
    assert_agree("total", &fused.total_1, &stock.total_1);
    assert_eq!(elements(&fused.total_1), elements(&fused.cross_entropy_1), "nothing is added");
}

#[test]
fn ignored_tokens_are_as_if_they_were_not_there() {
    let options =
        HeadLossOptions { ignored_target: Some(-1), z_loss_weight: Some(0.5), compute: Compute::F32 };
    let (x_td, w_dv) = inputs([4, 3, 7], false);
    let ids = |ids: &[i32]| FlexTensor::from_data(TensorData::new(ids.to_vec(), [ids.len()]));
    let some = Flex::head_loss_and_gradients(x_td.clone(), w_dv.clone(), ids(&[2, 0, -1, -1]), options);
    let only = Flex::head_loss_and_gradients(x_td.narrow(0, 0, 2), w_dv.clone(), ids(&[2, 0]), options);
    assert_agree("total", &some.0.total_1, &only.0.total_1);
    // Sums of another length may be summed in another order.
    assert_agree("matrix", &some.2, &only.2);
    assert_eq!(elements(&some.1)[6..], [0.0; 6]);
    let none = Flex::head_loss_and_gradients(x_td, w_dv, ids(&[-1; 4]), options);
    assert_eq!((elements(&none.0.total_1), elements(&none.2)), (&[0.0][..], &[0.0; 21][..]));
}

/// Central differences of the default body's loss are good to about 1e-9 in f64.
#[test]
fn stock_gradients_are_those_of_the_stock_loss() {
    let f64s =
        |values: &[f64], shape: [usize; 2]| FlexTensor::from_data(TensorData::new(values.to_vec(), shape));
    let [t, d, v] = [3, 2, 4];
    let (x, w): (Vec<f64>, Vec<f64>) = (
        (0..t * d).map(|i| (i as f64).sin()).collect(),
        (0..d * v).map(|i| (3.0 * i as f64).cos()).collect(),
    );
    let both = [x, w].concat();
    let split = |both: &[f64]| (f64s(&both[..t * d], [t, d]), f64s(&both[t * d..], [d, v]));
    let loss = |both: &[f64]| {
        let (x_td, w_dv) = split(both);
        stock::losses::<Flex>(x_td, w_dv, targets(t, v), EVERYTHING).total_1.storage::<f64>()[0]
    };
    let (x_td, w_dv) = split(&both);
    let (_, dx_td, dw_dv) = stock::losses_and_gradients::<Flex>(x_td, w_dv, targets(t, v), EVERYTHING);
    let gradients =
        [dx_td, dw_dv].map(|gradient| gradient.to_contiguous().storage::<f64>().to_vec()).concat();
    for (i, gradient) in gradients.into_iter().enumerate() {
        let moved = |by: f64| {
            let mut both = both.clone();
            both[i] += by;
            loss(&both)
        };
        let difference = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        assert!((gradient - difference).abs() < 1e-8, "[{i}]: {gradient} is not {difference}");
    }
}

#[test]
fn the_loss_repeats_bit_for_bit_for_any_number_of_threads() {
    for tied in [false, true] {
        let compute = || {
            let (x_td, w_dv) = inputs([1100, 33, 4099], tied);
            let (losses, dx_td, dw_dv) =
                Flex::head_loss_and_gradients(x_td, w_dv, targets(1100, 4099), EVERYTHING);
            vec![losses.total_1, losses.cross_entropy_1, losses.square_1, dx_td, contiguous(dw_dv)]
        };
        assert_eq!(bits_with_threads(1, compute), bits_with_threads(2, compute));
    }
}

#[test]
fn gradients_are_scaled_in_place_and_left_alone_by_one() {
    let scalar = |value: f32| from_elements(vec![value], Shape::new([1]));
    for tied in [false, true] {
        let (_, w_dv) = inputs([1, 5, 7], tied);
        let (before, address) = (elements(&contiguous(w_dv.clone())).to_vec(), w_dv.bytes().as_ptr());
        let same = Flex::scaled_gradient(w_dv, scalar(1.0));
        let doubled = Flex::scaled_gradient(same, scalar(2.0));
        assert_eq!(doubled.bytes().as_ptr(), address);
        let expected: Vec<f32> = before.iter().map(|value| 2.0 * value).collect();
        assert_eq!(elements(&contiguous(doubled)), expected);
    }
}

#[test]
fn a_logit_that_is_no_number_makes_the_loss_none() {
    let (x_td, w_dv) = (
        from_elements(vec![1.0], Shape::new([1, 1])),
        from_elements(vec![0.0, f32::NAN, 1.0], Shape::new([1, 3])),
    );
    let losses = Flex::head_loss(x_td, w_dv, targets(1, 3), EVERYTHING);
    assert!(elements(&losses.total_1)[0].is_nan());
}

#[test]
#[should_panic(expected = "target 3 lies outside a vocabulary of 3")]
fn a_target_outside_the_vocabulary_is_named() {
    let ids = FlexTensor::from_data(TensorData::new(vec![3i32], [1]));
    Flex::head_loss(random_flex(1, [1, 1]), random_flex(1, [1, 3]), ids, EVERYTHING);
}
