//! Each operation against its definition in plain f64 loops that share no code with it: values
//! directly, gradients by central differences of the loops. And laws on sizes that take many tasks.
//!
//! Tolerances: in f32 the operations round relatively by 6e-8 over sums of at most some hundred
//! terms of size one, hence 1e-5 for each element. With factors in bf16 a factor is rounded by 1.65e-3
//! (the root mean square of numbers spread evenly between two powers of two) and a product of two by
//! the root of two of that, 2.4e-3; a gradient comes through three products in a row, 4.1e-3, and a
//! gate's is a sum of some twenty such terms of either sign, which are larger than it is; hence 2e-2
//! for the root of the mean square of all elements. Central differences in f64 with a step of 1e-5
//! are good to about 1e-9.

mod attention;
mod feed_forward;
mod moments;
mod projections;
mod rows;
mod threads;

use switchyard_kernels_cpu::bf16::Compute;

const TOLERANCE: f64 = 1e-5;
const TOLERANCE_BF16: f64 = 2e-2;
const ALL: [Compute; 3] = [Compute::F32, Compute::Bf16, Compute::PortableBf16];

/// Numbers between -1 and 1 whose sums do round.
fn irregular(seed: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| (((i + 1) * (7919 + 2 * seed) % 100_003) as f32 * 0.7).sin()).collect()
}

fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

#[track_caller]
fn assert_close(what: &str, compute: Compute, actual: &[f32], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    let error = |(&actual, expected): (&f32, &f64)| (f64::from(actual) - expected).abs();
    match compute {
        Compute::F32 => {
            let scale = expected.iter().fold(1.0_f64, |scale, value| scale.max(value.abs()));
            for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
                assert!(error((a, e)) <= TOLERANCE * scale, "{what}[{i}]: {a} is not {e} (scale {scale})");
            }
        }
        Compute::Bf16 | Compute::PortableBf16 => {
            let root = |squares: f64| (squares / expected.len() as f64).sqrt();
            let size = root(expected.iter().map(|value| value * value).sum()).max(0.1);
            let error = root(actual.iter().zip(expected).map(|pair| error(pair).powi(2)).sum());
            assert!(error <= TOLERANCE_BF16 * size, "{what} in bf16: an error of {error} (size {size})");
        }
    }
}

/// What an operation returned: its result, and the gradients of its inputs from `dy`, that of the
/// result.
struct Computed<'a> {
    compute: Compute,
    y: &'a [f32],
    dy: &'a [f32],
    gradients: &'a [Vec<f32>],
}

/// Holds an operation to `oracle`, a function of the inputs' values.
#[track_caller]
fn check(what: &str, computed: Computed<'_>, inputs: &[&[f32]], oracle: impl Fn(&[Vec<f64>]) -> Vec<f64>) {
    let inputs: Vec<Vec<f64>> = inputs.iter().map(|input| doubles(input)).collect();
    assert_close(what, computed.compute, computed.y, &oracle(&inputs));
    let weighted = |inputs: &[Vec<f64>]| -> f64 {
        oracle(inputs).iter().zip(computed.dy).map(|(y, &dy)| y * f64::from(dy)).sum()
    };
    for (index, gradient) in computed.gradients.iter().enumerate() {
        let slope = |i: usize| {
            let moved = |by: f64| {
                let mut inputs = inputs.clone();
                inputs[index][i] += by;
                weighted(&inputs)
            };
            (moved(1e-5) - moved(-1e-5)) / 2e-5
        };
        let expected: Vec<f64> = (0..inputs[index].len()).map(slope).collect();
        let what = format!("{what}: gradient of input {index}");
        assert_close(&what, computed.compute, gradient, &expected);
    }
}
