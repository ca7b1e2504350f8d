//! Each operation against its definition in plain f64 loops that share no code with it: values
//! directly, gradients by central differences of the loops. And laws on sizes that take many tasks.
//!
//! Tolerances: the operations work in f32 (relative rounding 6e-8) over sums of at most some
//! hundred terms of size one, hence 1e-5. Central differences in f64 with a step of 1e-5 are good
//! to about 1e-9.

mod attention;
mod feed_forward;
mod projections;
mod rows;
mod threads;

const TOLERANCE: f64 = 1e-5;

/// Numbers between -1 and 1 whose sums do round.
fn irregular(seed: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| (((i + 1) * (7919 + 2 * seed) % 100_003) as f32 * 0.7).sin()).collect()
}

fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

#[track_caller]
fn assert_close(what: &str, actual: &[f32], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    let scale = expected.iter().fold(1.0_f64, |scale, value| scale.max(value.abs()));
    for (i, (&a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((f64::from(a) - e).abs() <= TOLERANCE * scale, "{what}[{i}]: {a} is not {e} (scale {scale})");
    }
}

/// What an operation returned: its result, and the gradients of its inputs from `dy`, that of the
/// result.
struct Computed<'a> {
    y: &'a [f32],
    dy: &'a [f32],
    gradients: &'a [Vec<f32>],
}

/// Holds an operation to `oracle`, a function of the inputs' values.
#[track_caller]
fn check(what: &str, computed: Computed<'_>, inputs: &[&[f32]], oracle: impl Fn(&[Vec<f64>]) -> Vec<f64>) {
    let inputs: Vec<Vec<f64>> = inputs.iter().map(|input| doubles(input)).collect();
    assert_close(what, computed.y, &oracle(&inputs));
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
        assert_close(&format!("{what}: gradient of input {index}"), gradient, &expected);
    }
}
