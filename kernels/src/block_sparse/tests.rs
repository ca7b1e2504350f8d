use burn::backend::{Flex, flex::FlexTensor};
use switchyard_kernels_cpu::block_sparse::Direction;

use super::{BlockTopology, ProjectByBlocks, stock};
use crate::slices::elements;
use crate::slices::test_support::{assert_agree, bits_with_threads, random_flex};

/// Every third block, and no block in row 1 and column 2.
fn ragged(block: usize) -> BlockTopology {
    let all = (0..4).flat_map(|row| (0..5).map(move |column| [row, column]));
    let places = all.filter(|[row, column]| *row != 1 && *column != 2 && (row + 2 * column) % 3 != 0);
    BlockTopology::new(block, [4, 5], places.collect())
}

fn fused(t: usize, topology: &BlockTopology) -> Vec<FlexTensor> {
    let (n, b) = (topology.num_blocks(), topology.block());
    let (x_td, blocks_nbb) = (random_flex(1, [t, 4 * b]), random_flex(2, [n, b, b]));
    let dy_tf = random_flex(3, [t, 5 * b]);
    vec![
        Flex::project_by_blocks(x_td.clone(), blocks_nbb.clone(), topology.clone()),
        Flex::project_by_blocks_input_gradient(dy_tf.clone(), blocks_nbb, topology.clone()),
        Flex::project_by_blocks_weight_gradient(x_td, dy_tf, topology.clone()),
    ]
}

#[test]
fn fused_products_agree_with_the_stock_operations() {
    for (t, block) in [(1, 1), (5, 3), (129, 16), (300, 32)] {
        let topology = ragged(block);
        let (n, b) = (topology.num_blocks(), block);
        let (x_td, blocks_nbb) = (random_flex(1, [t, 4 * b]), random_flex(2, [n, b, b]));
        let dy_tf = random_flex(3, [t, 5 * b]);
        let stock = [
            stock::product::<Flex>(x_td.clone(), blocks_nbb.clone(), &topology, Direction::Forward),
            stock::product::<Flex>(dy_tf.clone(), blocks_nbb, &topology, Direction::Backward),
            stock::weight_gradient::<Flex>(x_td, dy_tf, &topology),
        ];
        for (fused, stock) in fused(t, &topology).iter().zip(&stock) {
            assert_agree("product or gradient", fused, stock);
        }
    }
}

#[test]
fn no_rows_at_all_have_a_product_and_zero_gradients() {
    let results = fused(0, &ragged(4));
    assert!(elements(&results[0]).is_empty() && elements(&results[1]).is_empty());
    assert!(elements(&results[2]).iter().all(|value| *value == 0.0));
}

#[test]
fn products_by_blocks_repeat_bit_for_bit_for_any_number_of_threads() {
    let compute = || fused(517, &ragged(32));
    assert_eq!(bits_with_threads(1, compute), bits_with_threads(2, compute));
}
