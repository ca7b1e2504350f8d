//! Products with matrices, and the head with its loss.
//!
//! Shape letters: t rows, d input width, f output width, v vocabulary, b side of a block.

use switchyard_kernels_cpu::bf16::Compute;
use switchyard_kernels_cpu::block_sparse::{self, BlockTopology, Direction};
use switchyard_kernels_cpu::head_loss::Head;
use switchyard_kernels_cpu::linear;
use switchyard_kernels_cpu::matrix::Matrix;

use crate::{ALL, Computed, check, irregular};

/// `x w` plus `bias`, if there is one, with `x` of t rows.
fn project(x: &[f64], w: &[f64], bias: Option<&[f64]>, [t, d, f]: [usize; 3]) -> Vec<f64> {
    let element = |i: usize, j: usize| {
        (0..d).map(|p| x[i * d + p] * w[p * f + j]).sum::<f64>() + bias.map_or(0.0, |bias| bias[j])
    };
    (0..t * f).map(|at| element(at / f, at % f)).collect()
}

#[test]
fn projections_are_their_definition() {
    let shapes = [[1, 1, 1], [5, 17, 3], [7, 4, 33], [3, 2, 70]];
    for (compute, [t, d, f]) in ALL.into_iter().flat_map(|compute| shapes.map(|shape| (compute, shape))) {
        let (x, w, bias, dy) =
            (irregular(1, t * d), irregular(2, d * f), irregular(3, f), irregular(4, t * f));
        let [x_td, w_df, dy_tf] =
            [(&x, d), (&w, f), (&dy, f)].map(|(values, columns)| Matrix::row_major(values, columns));
        let y = linear::project(x_td, w_df, Some(&bias), compute);
        let gradients = [
            linear::project(dy_tf, w_df.transposed(), None, compute),
            linear::weight_gradient(x_td, dy_tf, compute),
            linear::sum_rows(dy_tf),
        ];
        let computed = Computed { compute, y: &y, dy: &dy, gradients: &gradients };
        check(&format!("{t} x {d} x {f}"), computed, &[&x, &w, &bias], |inputs| {
            project(&inputs[0], &inputs[1], Some(&inputs[2]), [t, d, f])
        });
    }
}

#[test]
fn products_with_blocks_are_those_of_the_matrix_with_zeros() {
    let (t, b) = (5, 3);
    let topology = BlockTopology::new(b, [3, 4], vec![[0, 1], [0, 3], [2, 0], [2, 1]]);
    let (d, f, n) = (topology.d_input(), topology.d_output(), topology.num_blocks());
    let (x, blocks, dy) = (irregular(1, t * d), irregular(2, n * b * b), irregular(3, t * f));
    let (x_td, dy_tf) = (Matrix::row_major(&x, d), Matrix::row_major(&dy, f));
    let y = block_sparse::product(x_td, &blocks, &topology, Direction::Forward);
    let gradients = [
        block_sparse::product(dy_tf, &blocks, &topology, Direction::Backward),
        block_sparse::weight_gradient(x_td, dy_tf, &topology),
    ];
    check(
        "blocks",
        Computed { compute: Compute::F32, y: &y, dy: &dy, gradients: &gradients },
        &[&x, &blocks],
        |inputs| {
            let mut w = vec![0.0; d * f];
            for (index, [row, column]) in topology.places().iter().enumerate() {
                for at in 0..b * b {
                    w[(row * b + at / b) * f + column * b + at % b] = inputs[1][index * b * b + at];
                }
            }
            project(&inputs[0], &w, None, [t, d, f])
        },
    );
}

/// The total loss of tokens whose target is there.
fn loss(x: &[f64], w: &[f64], targets: &[Option<usize>], [d, v]: [usize; 2], z_loss_weight: f64) -> f64 {
    let counted: Vec<_> =
        targets.iter().enumerate().filter_map(|(i, target)| Some((i, (*target)?))).collect();
    let terms = counted.iter().map(|&(i, target)| {
        let logits = project(&x[i * d..][..d], w, None, [1, d, v]);
        let log_partition = logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
        log_partition - logits[target] + z_loss_weight * log_partition * log_partition
    });
    terms.sum::<f64>() / counted.len() as f64
}

#[test]
fn the_loss_of_the_head_is_its_definition() {
    for [t, d, v] in [[1, 1, 2], [5, 3, 17], [4, 2, 70]] {
        let (x, w) = (irregular(1, t * d), irregular(2, d * v));
        let targets: Vec<_> = (0..t).map(|i| (i % 3 != 1).then_some(i * 7 % v)).collect();
        let by_columns: Vec<f32> = (0..d * v).map(|at| w[at % d * v + at / d]).collect();
        for (tied, compute) in [false, true].into_iter().flat_map(|tied| ALL.map(|compute| (tied, compute))) {
            let w_dv = match tied {
                true => Matrix::row_major(&by_columns, d).transposed(),
                false => Matrix::row_major(&w, v),
            };
            let x_td = Matrix::row_major(&x, d);
            let head = Head { x: x_td, w: w_dv, targets: &targets, z_loss_weight: 0.125, compute };
            let (means, gradients) = head.losses_and_gradients(tied);
            assert_eq!(head.losses(), means, "the losses alone are those with gradients");
            let dw = match tied {
                true => (0..d * v).map(|at| gradients.dw[at % v * d + at / v]).collect(),
                false => gradients.dw,
            };
            let gradients = [gradients.dx, dw];
            let computed = Computed { compute, y: &[means.total as f32], dy: &[1.0], gradients: &gradients };
            check(&format!("{t} x {d} x {v}, tied: {tied}"), computed, &[&x, &w], |inputs| {
                vec![loss(&inputs[0], &inputs[1], &targets, [d, v], 0.125)]
            });
        }
    }
}
