//! Noise for tests on simulated studies.

use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

/// Standard normal numbers from a seed.
pub(super) struct NormalNoise(ChaCha8Rng);

impl NormalNoise {
    /// The noise of one simulation.
    pub(super) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// The next number, by the method of Box and Muller.
    pub(super) fn next(&mut self) -> f64 {
        // 1 - u is above zero, and so has a logarithm.
        let radius = (-2.0 * (1.0 - self.0.random::<f64>()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.0.random::<f64>()).cos()
    }
}

/// Share of `num_studies` simulated studies in which `covers` says yes; each gets noise of its own.
pub(super) fn coverage(num_studies: u64, mut covers: impl FnMut(&mut NormalNoise) -> bool) -> f64 {
    let hits = (0..num_studies).filter(|&study| covers(&mut NormalNoise::new(1_000 + study))).count();
    hits as f64 / num_studies as f64
}
