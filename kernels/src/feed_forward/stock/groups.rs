//! One matrix product per group of rows.

use std::ops::Range;

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};
use burn::tensor::{Shape, Slice};

use switchyard_kernels_cpu::dispatch::Groups;

/// `x_nd` times matrix g for the rows of each group g: `[n, f]`. The stack is `[e, d, f]`, or `[d,
/// f]` of one group.
pub(super) fn multiply_groups<B: Backend>(
    x_nd: FloatTensor<B>,
    stack: FloatTensor<B>,
    groups: &Groups,
) -> FloatTensor<B> {
    multiply::<B>(x_nd, stack, groups, Orientation::AsStored)
}

/// As [`multiply_groups`], with the matrices transposed.
pub(super) fn multiply_groups_transposed<B: Backend>(
    dy_nf: FloatTensor<B>,
    stack: FloatTensor<B>,
    groups: &Groups,
) -> FloatTensor<B> {
    multiply::<B>(dy_nf, stack, groups, Orientation::Transposed)
}

/// Per group, the transposed rows of `x_nd` times those of `dy_nf`: `[e, d, f]`.
pub(super) fn weight_gradient<B: Backend>(
    x_nd: FloatTensor<B>,
    dy_nf: FloatTensor<B>,
    groups: &Groups,
) -> FloatTensor<B> {
    let (d, f) = (x_nd.shape()[1], dy_nf.shape()[1]);
    let gradient_of = |group| {
        let rows = groups.rows(group);
        if rows.is_empty() {
            return B::float_zeros(Shape::new([1, d, f]), &dy_nf.device(), dy_nf.dtype().into());
        }
        let x_td = take_rows::<B>(&x_nd, rows.clone());
        let dw_df = B::float_matmul(B::float_transpose(x_td), take_rows::<B>(&dy_nf, rows));
        B::float_reshape(dw_df, Shape::new([1, d, f]))
    };
    // One concatenation at the end: writing each group into a zeroed stack would copy the whole
    // stack per group.
    B::float_cat((0..groups.num_groups()).map(gradient_of).collect(), 0)
}

/// The bias of each row's group: `[n, f]`. The biases are `[e, f]`, or `[f]` of one group.
pub(super) fn bias_of_rows<B: Backend>(biases: FloatTensor<B>, groups: &Groups) -> FloatTensor<B> {
    let f = *biases.shape().last().expect("a bias has a width");
    let biases_ef = B::float_reshape(biases, Shape::new([groups.num_groups(), f]));
    let of_group = |(group, rows): (usize, Range<usize>)| {
        let bias_1f = take_rows::<B>(&biases_ef, group..group + 1);
        B::float_expand(bias_1f, Shape::new([rows.len(), f]))
    };
    let rows: Vec<_> = groups.occupied().map(of_group).collect();
    if rows.is_empty() {
        return B::float_zeros(Shape::new([0, f]), &biases_ef.device(), biases_ef.dtype().into());
    }
    B::float_cat(rows, 0)
}

/// The sum of each group's rows: `[e, f]`.
pub(super) fn sum_groups<B: Backend>(dy_nf: FloatTensor<B>, groups: &Groups) -> FloatTensor<B> {
    let f = dy_nf.shape()[1];
    let sum_of = |group| {
        let rows = groups.rows(group);
        if rows.is_empty() {
            return B::float_zeros(Shape::new([1, f]), &dy_nf.device(), dy_nf.dtype().into());
        }
        B::float_sum_dim(take_rows::<B>(&dy_nf, rows), 0)
    };
    B::float_cat((0..groups.num_groups()).map(sum_of).collect(), 0)
}

/// How a group's matrix enters the product.
#[derive(Clone, Copy)]
enum Orientation {
    AsStored,
    Transposed,
}

fn multiply<B: Backend>(
    x_nd: FloatTensor<B>,
    stack: FloatTensor<B>,
    groups: &Groups,
    orientation: Orientation,
) -> FloatTensor<B> {
    let shape = stack.shape();
    let (d, f) = (shape[shape.num_dims() - 2], shape[shape.num_dims() - 1]);
    let w_edf = B::float_reshape(stack, Shape::new([groups.num_groups(), d, f]));
    let product_of = |(group, rows)| {
        let w_1df = B::float_slice(w_edf.clone(), &[Slice::from(group..group + 1)]);
        let w_df = B::float_reshape(w_1df, Shape::new([d, f]));
        let w = match orientation {
            Orientation::AsStored => w_df,
            Orientation::Transposed => B::float_transpose(w_df),
        };
        B::float_matmul(take_rows::<B>(&x_nd, rows), w)
    };
    let products: Vec<_> = groups.occupied().map(product_of).collect();
    if products.is_empty() {
        let width = match orientation {
            Orientation::AsStored => f,
            Orientation::Transposed => d,
        };
        return B::float_zeros(Shape::new([0, width]), &x_nd.device(), x_nd.dtype().into());
    }
    B::float_cat(products, 0)
}

fn take_rows<B: Backend>(x_nd: &FloatTensor<B>, rows: Range<usize>) -> FloatTensor<B> {
    B::float_slice(x_nd.clone(), &[Slice::from(rows)])
}
