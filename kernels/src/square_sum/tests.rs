use burn::backend::Flex;
use burn::tensor::Shape;
use switchyard_kernels_cpu::blocks::BLOCK_LEN;

use super::{SquareSums, stock};
use crate::slices::elements;
use crate::slices::test_support::random_flex;

#[test]
fn parts_add_up_to_the_sum_of_squares() {
    for n in [1, 15, 16, BLOCK_LEN + 3] {
        let x_n = random_flex(1, [n]);
        let expected: f64 = elements(&x_n).iter().map(|&x| f64::from(x).powi(2)).sum();
        let parts: f64 = Flex::square_sums(x_n, 1).into_data().iter::<f64>().sum();
        assert!((parts - expected).abs() <= 1e-12 * expected, "{parts} is not {expected}");
    }
}

/// The oracle sums each row alone; the stock body is the one of other devices.
#[test]
fn rows_have_sums_of_their_own() {
    for row_len in [1, 17, BLOCK_LEN + 3] {
        let x_n = random_flex(2, [3 * row_len]);
        let expected: Vec<f64> = elements(&x_n)
            .chunks(row_len)
            .map(|row| row.iter().map(|&x| f64::from(x).powi(2)).sum())
            .collect();
        let parts: Vec<f64> = Flex::square_sums(x_n.clone(), 3).into_data().iter::<f64>().collect();
        let sums: Vec<f64> = parts.chunks(parts.len() / 3).map(|parts| parts.iter().sum()).collect();
        let stock: Vec<f64> = stock::square_sums::<Flex>(x_n, 3).into_data().iter::<f64>().collect();
        for ((sum, stock), expected) in sums.iter().zip(stock).zip(expected) {
            assert!((sum - expected).abs() <= 1e-12 * expected, "{sum} is not {expected}");
            // One f32 sum of up to 16,387 terms.
            assert!((stock - expected).abs() <= 1e-3 * expected, "{stock} is not {expected}");
        }
    }
}

#[test]
fn a_value_that_is_no_number_makes_the_sum_none() {
    let x_n = crate::slices::from_elements(vec![1.0, f32::NAN], Shape::new([2]));
    assert!(Flex::square_sums(x_n, 1).into_data().iter::<f64>().sum::<f64>().is_nan());
}
