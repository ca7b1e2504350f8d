use burn::backend::{Flex, TensorMetadata, flex::FlexTensor, ops::FloatTensorOps};
use burn::tensor::Shape;

use switchyard_kernels_cpu::bf16::Compute;

use super::{Project, stock};
use crate::slices::elements;
use crate::slices::test_support::{assert_agree, bits_with_threads, random_flex};

/// Output and gradients of one product with a bias.
fn fused([t, d, f]: [usize; 3]) -> Vec<FlexTensor> {
    let (x_td, w_df, dy_tf) = (random_flex(1, [t, d]), random_flex(2, [d, f]), random_flex(3, [t, f]));
    vec![
        Flex::project(x_td.clone(), w_df.clone(), Compute::F32),
        Flex::project_with_bias(x_td.clone(), w_df.clone(), random_flex(4, [f]), Compute::F32),
        Flex::project_input_gradient(dy_tf.clone(), w_df, Compute::F32),
        Flex::project_weight_gradient(x_td, dy_tf.clone(), Compute::F32),
        Flex::project_bias_gradient(dy_tf),
    ]
}

#[test]
fn fused_projection_agrees_with_the_stock_operations() {
    for [t, d, f] in [[1, 1, 1], [5, 17, 3], [129, 40, 33], [300, 64, 128]] {
        let (x_td, w_df, dy_tf) = (random_flex(1, [t, d]), random_flex(2, [d, f]), random_flex(3, [t, f]));
        let stock = [
            Flex::float_matmul(x_td.clone(), w_df.clone()),
            stock::project_with_bias::<Flex>(x_td.clone(), w_df.clone(), random_flex(4, [f])),
            Flex::float_matmul(dy_tf.clone(), Flex::float_transpose(w_df)),
            Flex::float_matmul(Flex::float_transpose(x_td), dy_tf.clone()),
            stock::bias_gradient::<Flex>(dy_tf),
        ];
        for (fused, stock) in fused([t, d, f]).iter().zip(&stock) {
            assert_agree("projection or gradient", fused, stock);
        }
    }
}

#[test]
fn projections_read_transposed_views() {
    let (x_td, w_df) = (random_flex(1, [9, 40]).transpose(0, 1), random_flex(2, [5, 9]).transpose(0, 1));
    let stock = Flex::float_matmul(x_td.clone(), w_df.clone());
    assert_agree("product", &Flex::project(x_td, w_df, Compute::F32), &stock);
}

#[test]
fn no_rows_at_all_have_a_product_and_zero_gradients() {
    let (x_td, w_df) = (random_flex(1, [0, 4]), random_flex(2, [4, 3]));
    assert_eq!(Flex::project(x_td.clone(), w_df, Compute::F32).shape(), Shape::new([0, 3]));
    let dw_df = Flex::project_weight_gradient(x_td, random_flex(3, [0, 3]), Compute::F32);
    assert_eq!(elements(&dw_df), [0.0; 12]);
}

#[test]
fn projections_repeat_bit_for_bit_for_any_number_of_threads() {
    let compute = || fused([517, 160, 200]);
    assert_eq!(bits_with_threads(1, compute), bits_with_threads(2, compute));
}
