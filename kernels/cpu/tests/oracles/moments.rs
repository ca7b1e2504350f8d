//! AdamW with bf16 moments: the update held to plain f64 loops, and what becomes of the moments over
//! many steps.

use switchyard_kernels_cpu::adamw::{self, AdamWStep, State};
use switchyard_kernels_cpu::bf16::{Bf16, Compute};
use switchyard_kernels_cpu::blocks::{BLOCK_LEN, InPlace};

use crate::{assert_close, irregular};

/// The update of step `step`, whose random bits are other ones at each.
fn constants(beta2: f64, step: u64) -> AdamWStep {
    AdamWStep {
        learning_rate: 0.01,
        beta1: 0.9,
        beta2,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step,
        gradient_scale: 0.5,
        rounding_key: step.wrapping_mul(0x2545_f491_4f6c_dd1d),
        first_element: 0,
    }
}

fn own<T>(target: &mut [T]) -> InPlace<'_, T> {
    InPlace { target, source: None }
}

fn numbers(moments: &[Bf16]) -> Vec<f32> {
    moments.iter().map(|moment| moment.to_f32()).collect()
}

/// In place, and from a source. A rounded moment is one of the two bf16 beside what the loops say.
#[test]
fn an_update_with_bf16_moments_follows_the_algorithm_and_rounds_last() {
    let n = BLOCK_LEN + 13;
    let step = constants(0.95, 3);
    let [value, moment1, moment2, gradient] = [1, 2, 3, 4].map(|seed| irregular(seed, n));
    let moment1: Vec<Bf16> = moment1.iter().map(|&value| Bf16::from_f32(value)).collect();
    let moment2: Vec<Bf16> = moment2.iter().map(|value| Bf16::from_f32(value * value)).collect();
    let doubled = |moment: Bf16| f64::from(moment.to_f32());
    let g = |i: usize| 0.5 * f64::from(gradient[i]);
    let m: Vec<f64> = (0..n).map(|i| 0.9 * doubled(moment1[i]) + 0.1 * g(i)).collect();
    let v: Vec<f64> = (0..n).map(|i| 0.95 * doubled(moment2[i]) + 0.05 * g(i) * g(i)).collect();
    let expected: Vec<f64> = (0..n)
        .map(|i| {
            let (m_hat, v_hat) = (m[i] / (1.0 - 0.9f64.powi(3)), v[i] / (1.0 - 0.95f64.powi(3)));
            let value = f64::from(value[i]);
            value - 0.01 * (m_hat / (v_hat.sqrt() + 1e-8) + 0.1 * value)
        })
        .collect();
    for copied in [false, true] {
        let blank = vec![Bf16::from_f32(f32::NAN); n];
        let mut new_value = if copied { vec![f32::NAN; n] } else { value.clone() };
        let [mut new1, mut new2] =
            [&moment1, &moment2].map(|moment| if copied { blank.clone() } else { moment.clone() });
        let state = State {
            value: InPlace { target: &mut new_value, source: copied.then_some(&value[..]) },
            moment1: InPlace { target: &mut new1, source: copied.then_some(&moment1[..]) },
            moment2: InPlace { target: &mut new2, source: copied.then_some(&moment2[..]) },
        };
        adamw::update(state, &gradient, &step);
        assert_close(&format!("value, copied: {copied}"), Compute::F32, &new_value, &expected);
        for (name, new, exact) in [("first", &new1, &m), ("second", &new2, &v)] {
            let mut num_up = 0;
            for (i, (&new, &exact)) in new.iter().zip(exact).enumerate() {
                let new = doubled(new);
                // The distance of two neighbours is at most 2^-7 of either; and what f32 rounds.
                let allowed = exact.abs() / 128.0 + 1e-7;
                assert!((new - exact).abs() <= allowed, "{name}[{i}] is {new}, not beside {exact}");
                num_up += usize::from(new.abs() > exact.abs());
            }
            // The exact numbers lie anywhere between their neighbours.
            let share = num_up as f64 / n as f64;
            assert!((share - 0.5).abs() < 0.03, "{name}: {share} are rounded away from zero");
        }
    }
}

/// The second moment goes to the square of a gradient that stays, however small a part of it one
/// update adds; rounded to the nearest bf16 it would stand still far below.
#[test]
fn a_bf16_second_moment_does_not_stall() {
    const N: usize = 4096;
    for (beta2, num_steps) in [(0.95, 400), (0.999, 12_000)] {
        let gradient: Vec<f32> = (0..N).map(|i| 2.0 * (0.5 + i as f32 / N as f32)).collect();
        let mut value = vec![0.0f32; N];
        let [mut moment1, mut moment2] = [(); 2].map(|()| vec![Bf16::default(); N]);
        let mut nearest = vec![Bf16::default(); N];
        for number in 1..=num_steps {
            let step = constants(beta2, number);
            let state =
                State { value: own(&mut value), moment1: own(&mut moment1), moment2: own(&mut moment2) };
            adamw::update(state, &gradient, &step);
            for (nearest, &g) in nearest.iter_mut().zip(&gradient) {
                let next = beta2 * f64::from(nearest.to_f32()) + (1.0 - beta2) * f64::from(0.5 * g).powi(2);
                *nearest = Bf16::from_f32(next as f32);
            }
        }
        let ratio = |moments: &[Bf16]| {
            let of_square = |(v, g): (f32, &f32)| f64::from(v) / f64::from(0.5 * g).powi(2);
            numbers(moments).into_iter().zip(&gradient).map(of_square).sum::<f64>() / N as f64
        };
        let (found, stalled) = (ratio(&moment2), ratio(&nearest));
        // An element wanders around its aim by at most some 3 % (half of 2^-8 at each step, over
        // the root of 2 (1 - beta2)), the mean of 4096 of them by 0.05 %; beta2^n is below 1e-5.
        assert!((found - 1.0).abs() < 0.003, "beta2 = {beta2}: {found} of the square");
        assert!(stalled < 0.97, "beta2 = {beta2}: {stalled} by the nearest");
        let first =
            numbers(&moment1).iter().zip(&gradient).map(|(m, g)| f64::from(m / (0.5 * g))).sum::<f64>();
        assert!((first / N as f64 - 1.0).abs() < 0.001, "the first moment: {first}");
    }
}

#[test]
fn rounding_depends_on_key_and_element_alone() {
    let n = 3 * BLOCK_LEN + 5;
    let gradient = irregular(4, n);
    let moments = |key: u64, num_threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().expect("a pool");
        let mut value = irregular(1, n);
        let [mut moment1, mut moment2] = [(); 2].map(|()| vec![Bf16::default(); n]);
        pool.install(|| {
            let state =
                State { value: own(&mut value), moment1: own(&mut moment1), moment2: own(&mut moment2) };
            adamw::update(state, &gradient, &AdamWStep { rounding_key: key, ..constants(0.95, 1) });
        });
        (value, moment1, moment2)
    };
    assert!(moments(7, 1) == moments(7, 3), "1 and 3 threads differ");
    for other in [8, 7 + (1 << 32)] {
        let (this, that) = (moments(7, 1), moments(other, 1));
        assert!(this.0 == that.0, "the value does not depend on the key");
        let same = |a: &[Bf16], b: &[Bf16]| a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / n as f64;
        // Two independent roundings up with probability p agree with 1 - 2 p (1 - p), which is 2/3
        // where p is anything.
        for (a, b) in [(&this.1, &that.1), (&this.2, &that.2)] {
            assert!((same(a, b) - 2.0 / 3.0).abs() < 0.02, "keys 7 and {other}: {} agree", same(a, b));
        }
    }
}
