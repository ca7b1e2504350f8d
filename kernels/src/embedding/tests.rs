use burn::backend::{Flex, flex::FlexTensor, ops::FloatTensorOps};
use burn::tensor::{Shape, TensorData};

use super::{Embed, stock};
use crate::slices::test_support::{assert_agree, bits_with_threads, random_flex};
use crate::slices::{elements, from_elements};

fn ids(ids: &[i32]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(ids.to_vec(), [ids.len()]))
}

/// Ids that leave some rows of the table without a token and give others many.
fn uneven_ids(num_tokens: usize, vocab_size: usize) -> FlexTensor {
    let id = |token: usize| (token * token % 97 * vocab_size / 97) as i32;
    ids(&(0..num_tokens).map(id).collect::<Vec<_>>())
}

#[test]
fn rows_and_their_gradient_agree_with_the_stock_operations() {
    for [t, d, v] in [[0, 3, 2], [1, 1, 1], [7, 5, 3], [300, 33, 200], [2000, 16, 97]] {
        let (table_vd, dy_td) = (random_flex(1, [v, d]), random_flex(2, [t, d]));
        let ids_t = uneven_ids(t, v);
        let rows_td = Flex::embed(table_vd.clone(), ids_t.clone());
        assert_agree("rows", &rows_td, &Flex::float_select(table_vd, 0, ids_t.clone()));
        let stock_vd = stock::gradient::<Flex>(ids_t.clone(), dy_td.clone(), v);
        assert_agree("gradient", &Flex::embed_gradient(ids_t, dy_td, v), &stock_vd);
    }
}

#[test]
fn a_row_gets_its_tokens_in_order_and_a_row_without_any_zeros() {
    // In this order the first two cancel and the third remains; in any other it is lost to
    // rounding.
    let dy_td = from_elements(vec![1e8, -1e8, 1.0, 7.0], Shape::new([4, 1]));
    let dtable_vd = Flex::embed_gradient(ids(&[2, 2, 2, 0]), dy_td, 4);
    assert_eq!(elements(&dtable_vd), [7.0, 0.0, 1.0, 0.0]);
}

#[test]
fn the_gradient_repeats_bit_for_bit_for_any_number_of_threads() {
    let compute = || vec![Flex::embed_gradient(uneven_ids(3000, 700), random_flex(2, [3000, 48]), 700)];
    assert_eq!(bits_with_threads(1, compute), bits_with_threads(2, compute));
}

#[test]
fn tables_and_gradients_may_be_views() {
    let table_vd = random_flex(1, [5, 9]).transpose(0, 1);
    let stock_td = Flex::float_select(table_vd.clone(), 0, ids(&[8, 0]));
    assert_agree("rows", &Flex::embed(table_vd, ids(&[8, 0])), &stock_td);
    let dy_td = random_flex(2, [4, 2]).transpose(0, 1);
    let stock_vd = stock::gradient::<Flex>(ids(&[1, 1]), dy_td.clone(), 3);
    assert_agree("gradient", &Flex::embed_gradient(ids(&[1, 1]), dy_td, 3), &stock_vd);
}

#[test]
#[should_panic(expected = "id 3 lies outside a vocabulary of 3")]
fn an_id_outside_the_vocabulary_is_named() {
    Flex::embed(random_flex(1, [3, 2]), ids(&[0, 3]));
}
