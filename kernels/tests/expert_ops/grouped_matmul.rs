use burn::tensor::{DType, Tensor};
use rayon::ThreadPoolBuilder;
use switchyard_kernels::{Groups, grouped_matmul};

use crate::matrix::{Matrix, assert_close, bits, gradient, values};

/// Inputs of one product; the loss is the sum of `y * c`, so that `c` is the gradient of y.
struct Case {
    groups: Groups,
    d: usize,
    f: usize,
    x_nd: Matrix,
    w_edf: Matrix,
    c_nf: Matrix,
}

impl Case {
    fn new(rows_of_group: &[usize], d: usize, f: usize) -> Self {
        let mut offsets = vec![0];
        for rows in rows_of_group {
            offsets.push(offsets[offsets.len() - 1] + rows);
        }
        let groups = Groups::new(offsets);
        let n = groups.num_rows();
        Self {
            d,
            f,
            x_nd: Matrix::random(n, d, 1),
            w_edf: Matrix::random(groups.num_groups() * d, f, 2),
            c_nf: Matrix::random(n, f, 3),
            groups,
        }
    }

    fn shape_edf(&self) -> [usize; 3] {
        [self.groups.num_groups(), self.d, self.f]
    }

    /// y, dX and dW by the definition.
    fn oracle(&self) -> [Matrix; 3] {
        let mut y_nf = Matrix::zeros(self.x_nd.num_rows, self.f);
        let mut dx_nd = Matrix::zeros(self.x_nd.num_rows, self.d);
        let mut dw_edf = Matrix::zeros(self.w_edf.num_rows, self.f);
        for group in 0..self.groups.num_groups() {
            for row in self.groups.rows(group) {
                for i in 0..self.d {
                    for j in 0..self.f {
                        let w = self.w_edf.at(group * self.d + i, j);
                        y_nf.add(row, j, self.x_nd.at(row, i) * w);
                        dx_nd.add(row, i, self.c_nf.at(row, j) * w);
                        dw_edf.add(group * self.d + i, j, self.x_nd.at(row, i) * self.c_nf.at(row, j));
                    }
                }
            }
        }
        [y_nf, dx_nd, dw_edf]
    }

    /// y, dX and dW of the operation.
    fn run(&self, dtype: DType) -> (Tensor<2>, Tensor<2>, Tensor<3>) {
        let x_nd = self.x_nd.leaf(dtype);
        let w_edf = self.w_edf.tensor(self.shape_edf(), dtype).require_grad();
        let y_nf = grouped_matmul(x_nd.clone(), w_edf.clone(), &self.groups);
        let c_nf = self.c_nf.tensor([self.x_nd.num_rows, self.f], dtype);
        let gradients = (y_nf.clone() * c_nf).sum().backward();
        (y_nf, gradient(&x_nd, &gradients), gradient(&w_edf, &gradients))
    }
}

#[test]
fn forward_and_gradients_are_those_of_one_product_per_group() {
    let ragged: [&[usize]; 7] =
        [&[3, 1, 7, 2], &[0, 5, 0, 0, 2], &[4, 0], &[0, 0, 6], &[1], &[0, 1, 0], &[1, 1, 1, 1]];
    for rows_of_group in ragged {
        let case = Case::new(rows_of_group, 5, 3);
        let [y_nf, dx_nd, dw_edf] = case.oracle();
        let (y, dx, dw) = case.run(DType::F64);
        assert_close(&values(&y), &y_nf.values);
        assert_close(&values(&dx), &dx_nd.values);
        assert_close(&values(&dw), &dw_edf.values);
    }
}

#[test]
fn no_rows_at_all_give_no_output_and_zero_weight_gradients() {
    let case = Case::new(&[0, 0], 4, 3);
    let w_edf = case.w_edf.tensor(case.shape_edf(), DType::F32).require_grad();
    let x_nd = Tensor::<2>::zeros([0, 4], &w_edf.device());
    let y_nf = grouped_matmul(x_nd, w_edf.clone(), &case.groups);
    assert_eq!(y_nf.dims(), [0, 3]);
    let gradients = y_nf.sum().backward();
    assert!(values(&gradient(&w_edf, &gradients)).iter().all(|&g| g == 0.0));
}

#[test]
fn one_group_is_the_plain_matmul_bit_for_bit() {
    // Sizes on both sides of where the matrix product starts using threads and other kernels.
    for [n, d, f] in [[1, 1, 1], [1, 64, 48], [7, 5, 3], [64, 32, 1], [200, 224, 256]] {
        let case = Case::new(&[n], d, f);
        let (y, dx, dw) = case.run(DType::F32);
        let x_nd = case.x_nd.leaf(DType::F32);
        let w_df = case.w_edf.leaf(DType::F32);
        let y_nf = x_nd.clone().matmul(w_df.clone());
        let gradients = (y_nf.clone() * case.c_nf.tensor([n, f], DType::F32)).sum().backward();
        assert_eq!(bits(&y), bits(&y_nf), "output of {n} x {d} x {f}");
        assert_eq!(bits(&dx), bits(&gradient(&x_nd, &gradients)), "input gradient of {n} x {d} x {f}");
        assert_eq!(bits(&dw), bits(&gradient(&w_df, &gradients)), "weight gradient of {n} x {d} x {f}");
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let case = Case::new(&[300, 0, 37, 1], 160, 200); // The first group is large enough to be split.
    let run = || {
        let (y, dx, dw) = case.run(DType::F32);
        [bits(&y), bits(&dx), bits(&dw)]
    };
    let with_threads = |threads| ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run);
    let one = with_threads(1);
    assert!(one == with_threads(2), "1 and 2 threads differ");
    assert!(one == with_threads(2), "two runs differ");
}

#[test]
fn a_frozen_input_gets_no_gradient_and_the_other_keeps_its_own() {
    let case = Case::new(&[2, 0, 3], 4, 3);
    let [_, dx_nd, dw_edf] = case.oracle();
    let c_nf = || case.c_nf.tensor([5, 3], DType::F64);

    let x_nd = case.x_nd.leaf(DType::F64);
    let frozen_edf = case.w_edf.tensor(case.shape_edf(), DType::F64);
    let gradients =
        (grouped_matmul(x_nd.clone(), frozen_edf.clone(), &case.groups) * c_nf()).sum().backward();
    assert_close(&values(&gradient(&x_nd, &gradients)), &dx_nd.values);
    assert!(frozen_edf.grad(&gradients).is_none());

    let w_edf = case.w_edf.tensor(case.shape_edf(), DType::F64).require_grad();
    let frozen_nd = case.x_nd.tensor([5, 4], DType::F64);
    let gradients =
        (grouped_matmul(frozen_nd.clone(), w_edf.clone(), &case.groups) * c_nf()).sum().backward();
    assert_close(&values(&gradient(&w_edf, &gradients)), &dw_edf.values);
    assert!(frozen_nd.grad(&gradients).is_none());
}

#[test]
#[should_panic(expected = "rows [5, 4] and matrices [2, 4, 3] do not fit 5 rows in 3 groups")]
fn shapes_that_do_not_fit_the_groups_are_refused() {
    let case = Case::new(&[2, 0, 3], 4, 3);
    let w_edf = Matrix::random(8, 3, 4).tensor([2, 4, 3], DType::F32);
    grouped_matmul(case.x_nd.leaf(DType::F32), w_edf, &case.groups);
}

#[test]
#[should_panic(expected = "row offsets must not descend, got [0, 3, 2]")]
fn descending_offsets_are_refused() {
    Groups::new([0, 3, 2]);
}
