//! Random numbers of one router in one pass while training.

use burn::tensor::{Device, Tensor, TensorData};
use rand::distr::{Distribution, Open01};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

/// Source of a router's random numbers in one pass. They depend on its seed alone, not on the
/// device's generator, so a resumed run draws the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterNoise {
    seed: u64,
}

/// What random numbers are for. Each purpose has a stream of its own: turning one on leaves the
/// others as they were.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    Jitter,
    Logits,
    SecondExpert,
    Experts,
    Dropping,
}

impl RouterNoise {
    /// The numbers of one router in one pass.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    pub(crate) fn generator(self, purpose: Purpose) -> ChaCha8Rng {
        let mut generator = ChaCha8Rng::seed_from_u64(self.seed);
        generator.set_stream(purpose as u64);
        generator
    }

    /// Factors for the router's input: uniform in `[1 - jitter, 1 + jitter]` (Switch,
    /// arXiv:2101.03961, appendix C).
    ///
    /// # Shapes
    /// - returns `[num_tokens, d_model]`
    pub(crate) fn jitter(self, jitter: f64, shape_td: [usize; 2], device: &Device) -> Tensor<2> {
        let mut generator = self.generator(Purpose::Jitter);
        drawn(shape_td, device, || 1.0 + jitter * (2.0 * generator.random::<f64>() - 1.0))
    }

    /// Standard normal numbers.
    ///
    /// # Shapes
    /// - returns `[num_tokens, num_experts]`
    pub(crate) fn standard_normal(self, shape_te: [usize; 2], device: &Device) -> Tensor<2> {
        let mut generator = self.generator(Purpose::Logits);
        // Box and Muller's transform, of which one of the two numbers is taken.
        drawn(shape_te, device, || {
            let radius: f64 = Open01.sample(&mut generator);
            let angle: f64 = generator.random();
            (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
        })
    }
}

fn drawn(shape: [usize; 2], device: &Device, mut draw: impl FnMut() -> f64) -> Tensor<2> {
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(|_| draw() as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn values(tensor: Tensor<2>) -> Vec<f64> {
        tensor.into_data().iter::<f64>().collect()
    }

    fn mean(values: impl Iterator<Item = f64>, len: usize) -> f64 {
        values.sum::<f64>() / len as f64
    }

    #[test]
    fn jitter_repeats_with_its_seed_and_fills_its_interval() {
        let draw = |seed| values(RouterNoise::new(seed).jitter(0.25, [64, 32], &Device::flex()));
        let noise = draw(7);
        assert_eq!(noise, draw(7));
        assert_ne!(noise, draw(8));
        assert!(noise.iter().all(|x| (0.75..=1.25).contains(x)));
        // 2048 uniform draws: the mean's standard deviation is 0.25 / sqrt(3 * 2048) = 0.003.
        let mean = mean(noise.iter().copied(), noise.len());
        assert!((mean - 1.0).abs() < 0.016, "mean {mean}");
    }

    #[test]
    fn normal_numbers_have_mean_0_and_variance_1() {
        let noise = values(RouterNoise::new(3).standard_normal([128, 64], &Device::flex()));
        // 8192 draws: the standard deviations of mean and variance are 0.011 and 0.016.
        let (mean, square) =
            (mean(noise.iter().copied(), noise.len()), mean(noise.iter().map(|x| x * x), noise.len()));
        assert!(mean.abs() < 0.05 && (square - 1.0).abs() < 0.07, "mean {mean}, square {square}");
    }

    #[test]
    fn purposes_do_not_share_numbers() {
        // A list that a new purpose cannot be left out of.
        let place = |purpose| match purpose {
            Purpose::Jitter => 0,
            Purpose::Logits => 1,
            Purpose::SecondExpert => 2,
            Purpose::Experts => 3,
            Purpose::Dropping => 4,
        };
        let purposes =
            [Purpose::Jitter, Purpose::Logits, Purpose::SecondExpert, Purpose::Experts, Purpose::Dropping];
        assert!(purposes.into_iter().map(place).eq(0..5));
        // Of 10,000 numbers of 64 bits two are equal by chance once in 4e11 times.
        for seed in [0, 1, u64::MAX] {
            let numbers: Vec<u64> = purposes
                .into_iter()
                .flat_map(|purpose| {
                    let mut generator = RouterNoise::new(seed).generator(purpose);
                    (0..2000).map(move |_| generator.random::<u64>())
                })
                .collect();
            assert_eq!(numbers.iter().collect::<HashSet<_>>().len(), numbers.len(), "seed {seed}");
        }
    }
}
