//! Muon against an oracle in plain f64 loops that shares no code with it, and what it promises of
//! singular values, sizes and stacks.

use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use switchyard_kernels::{MuonState, MuonStep, muon_update};

const STEP: MuonStep = MuonStep {
    learning_rate: 0.02,
    momentum: 0.95,
    nesterov: true,
    newton_schulz_steps: 5,
    weight_decay: 0.1,
    gradient_scale: 0.7,
};

fn random(seed: u64, count: usize) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Rounded to f32 first, so that both sides read the same numbers.
    (0..count).map(|_| f64::from((rng.random::<f32>() - 0.5) * 4.0)).collect()
}

fn tensor(values: &[f64]) -> Tensor<1> {
    let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

fn values(tensor: Tensor<1>) -> Vec<f64> {
    tensor.into_data().iter::<f32>().map(f64::from).collect()
}

/// Value and momentum after an update.
fn updated(
    [value, momentum, gradient]: [&[f64]; 3],
    shape: [usize; 3],
    step: &MuonStep,
) -> (Vec<f64>, Vec<f64>) {
    let state = MuonState { value_n: tensor(value), momentum_n: tensor(momentum) };
    let state = muon_update(state, tensor(gradient), shape, step);
    (values(state.value_n), values(state.momentum_n))
}

type Rows = Vec<Vec<f64>>;

fn rows_of(flat: &[f64], columns: usize) -> Rows {
    flat.chunks(columns).map(<[f64]>::to_vec).collect()
}

fn multiplied(a: &Rows, b: &Rows) -> Rows {
    let element = |row: &Vec<f64>, j: usize| row.iter().zip(b).map(|(a, b)| a * b[j]).sum();
    a.iter().map(|row| (0..b[0].len()).map(|j| element(row, j)).collect()).collect()
}

fn transposed(a: &Rows) -> Rows {
    (0..a[0].len()).map(|j| a.iter().map(|row| row[j]).collect()).collect()
}

/// `a x + b x x^T x + c x x^T x x^T x`, five times, of a matrix over its Frobenius norm. The paper's
/// numbers are written out here, and nothing is transposed for speed.
fn oracle_orthogonal(direction: &Rows) -> Rows {
    let norm = direction.iter().flatten().map(|x| x * x).sum::<f64>().sqrt() + 1e-7;
    let mut x: Rows = direction.iter().map(|row| row.iter().map(|x| x / norm).collect()).collect();
    for _ in 0..5 {
        let cube = multiplied(&multiplied(&x, &transposed(&x)), &x);
        let fifth = multiplied(&multiplied(&x, &transposed(&x)), &cube);
        for (i, row) in x.iter_mut().enumerate() {
            for (j, x) in row.iter_mut().enumerate() {
                *x = 3.4445 * *x - 4.7750 * cube[i][j] + 2.0315 * fifth[i][j];
            }
        }
    }
    x
}

/// Value and momentum after [`STEP`], matrix by matrix.
fn oracle([value, momentum, gradient]: [&[f64]; 3], [_, rows, columns]: [usize; 3]) -> (Vec<f64>, Vec<f64>) {
    let momentum: Vec<f64> = momentum.iter().zip(gradient).map(|(m, g)| 0.95 * m + 0.7 * g).collect();
    let direction: Vec<f64> = momentum.iter().zip(gradient).map(|(m, g)| 0.95 * m + 0.7 * g).collect();
    let orthogonal = direction
        .chunks(rows * columns)
        .flat_map(|matrix| oracle_orthogonal(&rows_of(matrix, columns)).concat());
    let size = 0.2 * (rows.max(columns) as f64).sqrt();
    let value = value.iter().zip(orthogonal).map(|(w, o)| w - 0.02 * (size * o + 0.1 * w)).collect();
    (value, momentum)
}

/// f32 against f64: a rounding of 6e-8 grows by up to 3.4445 in each of five iterations, and sums
/// have 100 terms at most; times the rate of 0.02 * 0.2 * sqrt(96), and values of size 2.
const TOLERANCE: f64 = 2e-6;

fn assert_close(what: &str, actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((a - e).abs() <= TOLERANCE, "{what}[{i}]: {a} is not {e}");
    }
}

#[test]
fn muon_follows_the_algorithm_over_several_steps() {
    for shape in [[1, 1, 1], [1, 8, 8], [2, 6, 30], [3, 30, 6], [2, 40, 96], [1, 1, 5]] {
        let n = shape.iter().product();
        let mut found = (random(1, n), vec![0.0; n]);
        for seed in 2..5 {
            let gradient = random(seed, n);
            let before = (found.0.clone(), found.1.clone());
            let expected = oracle([&before.0, &before.1, &gradient], shape);
            found = updated([&before.0, &before.1, &gradient], shape, &STEP);
            assert_close(&format!("value of {shape:?}"), &found.0, &expected.0);
            assert_close(&format!("momentum of {shape:?}"), &found.1, &expected.1);
        }
    }
}

/// Eigenvalues of a symmetric matrix, by Jacobi's rotations.
fn eigenvalues(mut a: Rows) -> Vec<f64> {
    let n = a.len();
    for _ in 0..20 {
        for p in 0..n {
            for q in p + 1..n {
                let angle = 0.5 * (2.0 * a[p][q]).atan2(a[q][q] - a[p][p]);
                let (sin, cos) = angle.sin_cos();
                // The rotation of columns, then that of rows.
                for _ in 0..2 {
                    for row in &mut a {
                        (row[p], row[q]) = (cos * row[p] - sin * row[q], sin * row[p] + cos * row[q]);
                    }
                    a = transposed(&a);
                }
            }
        }
    }
    (0..n).map(|i| a[i][i]).collect()
}

/// The direction of an update without decay, and without the factor of its size.
fn direction(gradient: &[f64], shape: [usize; 3]) -> Vec<f64> {
    let [_, rows, columns] = shape;
    let step = MuonStep { learning_rate: 1.0, weight_decay: 0.0, ..STEP };
    let zeros = vec![0.0; gradient.len()];
    let (value, _) = updated([&zeros, &zeros, gradient], shape, &step);
    let size = 0.2 * (rows.max(columns) as f64).sqrt();
    value.iter().map(|value| -value / size).collect()
}

/// Whatever the singular values of the gradient are: the quintic sends those above a thousandth of
/// the norm to 0.68 to 1.13 (K. Jordan et al., 2024).
#[test]
fn singular_values_of_the_update_are_near_one() {
    for shape in [[1, 12, 40], [1, 40, 12], [1, 24, 24]] {
        let [_, rows, columns] = shape;
        // A random square matrix may have a singular value near zero: it gets a diagonal.
        let mut gradient = random(7, rows * columns);
        (0..rows.min(columns)).for_each(|i| gradient[i * columns + i] += 3.0);
        let x = rows_of(&direction(&gradient, shape), columns);
        let x = if rows <= columns { x } else { transposed(&x) };
        let squares = eigenvalues(multiplied(&x, &transposed(&x)));
        assert_eq!(squares.len(), rows.min(columns));
        for square in squares {
            let singular = square.sqrt();
            assert!((0.65..1.2).contains(&singular), "{singular} of {shape:?}");
        }
    }
}

/// An orthogonal matrix times 0.2 sqrt(max(rows, columns)) has a root mean square of 0.2, whatever
/// its shape; with singular values between 0.68 and 1.13, nearly.
#[test]
fn the_root_mean_square_of_an_update_is_that_of_adamw() {
    for shape in [[1, 16, 64], [1, 64, 16], [1, 48, 48]] {
        let [_, rows, columns] = shape;
        let zeros = vec![0.0; rows * columns];
        let step = MuonStep { learning_rate: 1.0, weight_decay: 0.0, ..STEP };
        // The scale of a gradient does not count.
        for scale in [1e-3, 1.0, 1e4] {
            let gradient: Vec<f64> = random(3, rows * columns).iter().map(|g| g * scale).collect();
            let (value, _) = updated([&zeros, &zeros, &gradient], shape, &step);
            let rms = (value.iter().map(|x| x * x).sum::<f64>() / value.len() as f64).sqrt();
            assert!((0.13..0.24).contains(&rms), "{rms} of {shape:?} with {scale}");
        }
    }
}

#[test]
fn each_matrix_of_a_stack_is_updated_as_if_it_were_alone() {
    let [matrices, rows, columns] = [5, 24, 40];
    let len = rows * columns;
    let [value, momentum, gradient] = [1, 2, 3].map(|seed| random(seed, matrices * len));
    let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let stack = updated([&value, &momentum, &gradient], [matrices, rows, columns], &STEP);
    for matrix in 0..matrices {
        let of = |all: &[f64]| all[matrix * len..][..len].to_vec();
        let alone = updated([&of(&value), &of(&momentum), &of(&gradient)], [1, rows, columns], &STEP);
        assert_eq!(bits(&of(&stack.0)), bits(&alone.0), "value of matrix {matrix}");
        assert_eq!(bits(&of(&stack.1)), bits(&alone.1), "momentum of matrix {matrix}");
    }
}

/// An expert that no token ever went to only decays.
#[test]
fn a_matrix_without_gradient_and_momentum_only_decays() {
    let value = random(1, 12);
    let zeros = vec![0.0; 12];
    let (moved, momentum) = updated([&value, &zeros, &zeros], [1, 3, 4], &STEP);
    assert_eq!(momentum, zeros);
    for (moved, value) in moved.iter().zip(&value) {
        assert!((moved - value * (1.0 - 0.02 * 0.1)).abs() < 1e-6, "{moved} from {value}");
    }
}

#[test]
#[should_panic(expected = "value, momentum and gradient of [2, 2, 2] have the lengths [8, 8, 7]")]
fn lengths_that_are_not_those_of_the_stack_are_refused() {
    let state = MuonState { value_n: tensor(&[0.0; 8]), momentum_n: tensor(&[0.0; 8]) };
    muon_update(state, tensor(&[0.0; 7]), [2, 2, 2], &STEP);
}
