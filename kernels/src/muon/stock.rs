//! The update as stock tensor operations, for every backend.
//!
//! Shape letters: e matrices of the stack, r rows, c columns.

use burn::backend::{Backend, tensor::FloatTensor};
use burn::tensor::Shape;
use switchyard_kernels_cpu::muon::{Factors, MuonStep};
use switchyard_kernels_cpu::newton_schulz::{NORM_EPSILON, QUINTIC};

/// The default body of [`super::Muon::muon`].
pub(super) fn update<B: Backend>(
    value_n: FloatTensor<B>,
    momentum_n: FloatTensor<B>,
    gradient_n: FloatTensor<B>,
    shape: [usize; 3],
    step: MuonStep,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let [_, rows, columns] = shape;
    let factors = Factors::new(&step, [rows, columns]);
    let scaled = |tensor: FloatTensor<B>, factor: f64| B::float_mul_scalar(tensor, factor.into());
    let gradient_n = scaled(gradient_n, factors.gradient_scale);
    let momentum_n = B::float_add(scaled(momentum_n, factors.keep), gradient_n.clone());
    let direction_n =
        B::float_add(scaled(momentum_n.clone(), factors.ahead), scaled(gradient_n, factors.direct));
    let orthogonal_erc = orthogonal::<B>(direction_n, shape, step.newton_schulz_steps);
    let len = shape.iter().product::<usize>();
    let orthogonal_n = B::float_reshape(orthogonal_erc, Shape::new([len]));
    let update_n = scaled(orthogonal_n, factors.rate);
    (B::float_sub(scaled(value_n, factors.decay), update_n), momentum_n)
}

/// The orthogonal factor of each matrix, after so many iterations.
fn orthogonal<B: Backend>(
    direction_n: FloatTensor<B>,
    shape: [usize; 3],
    num_steps: usize,
) -> FloatTensor<B> {
    let [matrices, rows, columns] = shape;
    let scaled = |tensor: FloatTensor<B>, factor: f64| B::float_mul_scalar(tensor, factor.into());
    let by_matrix = B::float_reshape(direction_n, Shape::new([matrices, rows * columns]));
    let squares_e1 = B::float_sum_dim(B::float_mul(by_matrix.clone(), by_matrix.clone()), 1);
    let norm_e1 = B::float_add_scalar(B::float_sqrt(squares_e1), NORM_EPSILON.into());
    let norms = B::float_expand(norm_e1, Shape::new([matrices, rows * columns]));
    let mut x_erc = B::float_reshape(B::float_div(by_matrix, norms), Shape::new(shape));
    let [a, b, c] = QUINTIC;
    for _ in 0..num_steps {
        let transposed = B::float_swap_dims(x_erc.clone(), 1, 2);
        let is_wide = rows <= columns;
        let square = match is_wide {
            true => B::float_matmul(x_erc.clone(), transposed),
            false => B::float_matmul(transposed, x_erc.clone()),
        };
        let fourth = B::float_matmul(square.clone(), square.clone());
        let factor = B::float_add(scaled(square, b), scaled(fourth, c));
        let turned_erc = match is_wide {
            true => B::float_matmul(factor, x_erc.clone()),
            false => B::float_matmul(x_erc.clone(), factor),
        };
        x_erc = B::float_add(scaled(x_erc, a), turned_erc);
    }
    x_erc
}
