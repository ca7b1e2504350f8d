//! Multiplicative noise on the router's input.

use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, RngExt};

/// Noise for [`crate::TopKRouter::forward`]: uniform in `[1 - jitter, 1 + jitter]` (Switch, arXiv:2101.03961,
/// appendix C). It depends on `rng` alone, not on the device's generator, so a resumed run draws the same.
///
/// # Shapes
/// - returns `[num_tokens, d_model]`
pub fn jitter_noise(
    jitter: f64,
    [num_tokens, d_model]: [usize; 2],
    rng: &mut impl Rng,
    device: &Device,
) -> Tensor<2> {
    let mut draw = || (1.0 + jitter * (2.0 * rng.random::<f64>() - 1.0)) as f32;
    let noise: Vec<f32> = (0..num_tokens * d_model).map(|_| draw()).collect();
    Tensor::from_data(TensorData::new(noise, [num_tokens, d_model]), device)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::ChaCha8Rng};

    use super::*;

    fn draw(seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        jitter_noise(0.25, [64, 32], &mut rng, &Device::flex()).into_data().try_into_vec().unwrap()
    }

    #[test]
    fn noise_repeats_with_its_seed_and_fills_its_interval() {
        let noise = draw(7);
        assert_eq!(noise, draw(7));
        assert_ne!(noise, draw(8));
        assert!(noise.iter().all(|&x| (0.75..=1.25).contains(&x)));
        // 2048 uniform draws: the mean's standard deviation is 0.25 / sqrt(3 * 2048) = 0.003.
        let mean = noise.iter().map(|&x| f64::from(x)).sum::<f64>() / noise.len() as f64;
        assert!((mean - 1.0).abs() < 0.016, "mean {mean}");
    }
}
