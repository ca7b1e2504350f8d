use burn::backend::Flex;
use switchyard_kernels_cpu::blocks::BLOCK_LEN;

use super::{Centre, Norm, NormalizeRows, stock};
use crate::slices::test_support::{assert_agree, bits_with_threads, random_flex};
use crate::slices::{elements, from_elements};

const NORMS: [Norm; 2] =
    [Norm { centre: Centre::Zero, epsilon: 1e-5 }, Norm { centre: Centre::Mean, epsilon: 1e-5 }];
/// No multiple of a block, one row, one column, a row wider than a block, more than one block.
const SHAPES: [[usize; 2]; 5] = [[1, 1], [3, 17], [7, 1], [2, BLOCK_LEN + 5], [67, 521]];

#[test]
fn fused_norms_agree_with_the_stock_bodies() {
    for shape in SHAPES {
        for norm in NORMS {
            let (x, dy) = (random_flex(1, shape), random_flex(2, shape));
            let (scale, bias) = (random_flex(3, [shape[1]]), random_flex(4, [shape[1]]));
            let fused = <Flex as NormalizeRows>::normalize_rows(x.clone(), scale.clone(), norm);
            let stock = stock::normalize::<Flex>(x.clone(), scale.clone(), None, norm);
            assert_agree("rows", &fused, &stock);
            let fused = <Flex as NormalizeRows>::normalize_rows_with_bias(
                x.clone(),
                scale.clone(),
                bias.clone(),
                norm,
            );
            let stock = stock::normalize::<Flex>(x.clone(), scale.clone(), Some(bias), norm);
            assert_agree("rows with bias", &fused, &stock);
            let fused =
                <Flex as NormalizeRows>::normalize_rows_gradients(x.clone(), scale.clone(), dy.clone(), norm);
            let stock = stock::gradients::<Flex>(x, scale, dy.clone(), norm);
            assert_agree("gradient of rows", &fused.0, &stock.0);
            assert_agree("gradient of scale", &fused.1, &stock.1);
            let sum = <Flex as NormalizeRows>::sum_rows(dy.clone());
            assert_agree("gradient of bias", &sum, &stock::sum_rows::<Flex>(dy));
        }
    }
}

#[test]
fn a_row_far_from_zero_is_centred_before_it_is_squared() {
    let x = from_elements((0..64).map(|i| 1000.0 + (i % 2) as f32).collect(), [1, 64].into());
    let ones = from_elements(vec![1.0; 64], [64].into());
    let y = <Flex as NormalizeRows>::normalize_rows(x, ones, Norm { epsilon: 0.0, ..NORMS[1] });
    assert_eq!(elements(&y)[..2], [-1.0, 1.0]);
}

#[test]
fn no_rows_give_no_output_and_a_zero_scale_gradient() {
    let (x, scale) = (random_flex(1, [0, 4]), random_flex(2, [4]));
    let (dx, dscale) = <Flex as NormalizeRows>::normalize_rows_gradients(x.clone(), scale, x, NORMS[0]);
    assert_eq!((elements(&dx), elements(&dscale)), (&[][..], &[0.0; 4][..]));
}

#[test]
fn norms_repeat_bit_for_bit_for_any_number_of_threads() {
    let compute = || {
        let (x, dy, scale) = (random_flex(1, [67, 521]), random_flex(2, [67, 521]), random_flex(3, [521]));
        let y = <Flex as NormalizeRows>::normalize_rows(x.clone(), scale.clone(), NORMS[1]);
        let (dx, dscale) = <Flex as NormalizeRows>::normalize_rows_gradients(x, scale, dy.clone(), NORMS[1]);
        vec![y, dx, dscale, <Flex as NormalizeRows>::sum_rows(dy)]
    };
    assert_eq!(bits_with_threads(1, compute), bits_with_threads(2, compute));
}
