//! Every random number of a run, each a pure function of the run's seed and of where it is used.
//!
//! Nothing is drawn from a shared stream, so there is no generator state to checkpoint: a resumed
//! run repeats its numbers, an added layer does not change another layer's, and an MoE model starts
//! from the values of its dense counterpart.

use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use rayon::prelude::*;
use switchyard_ground::digest::split_mix;
use switchyard_router::RouterNoise;

/// Initial parameter values, each drawn from the run's seed and the parameter's own key.
#[derive(Debug, Clone)]
pub struct ParameterSource {
    /// `None` for an outline.
    seed: Option<u64>,
    device: Device,
}

impl ParameterSource {
    /// Source of the values of one run, placed on `device`.
    pub fn new(seed: u64, device: &Device) -> Self {
        Self { seed: Some(seed), device: device.clone() }
    }

    /// Source of parameters that have shapes, but hardly any memory: one zero stands for all values
    /// of each. On the CPU only, whose tensors may repeat one value.
    pub fn outline() -> Self {
        Self { seed: None, device: Device::flex().autodiff() }
    }

    /// Where the values are placed.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Normal values with mean 0 and deviation `std`, a pure function of (seed, key, shape).
    pub fn normal<const D: usize>(&self, key: &str, shape: [usize; D], std: f64) -> Tensor<D> {
        let Some(seed) = self.seed else { return self.one_zero(shape) };
        let values = normal_values(stream_key(seed, key), shape.iter().product(), std);
        Tensor::from_data(TensorData::new(values, shape), &self.device)
    }

    /// One normal matrix per expert, stacked. Expert 0 has the key of the dense block that it
    /// stands for, so that a mixture of one expert starts equal to the dense model.
    ///
    /// # Shapes
    /// - returns `[num_experts, rows, columns]`
    pub fn normal_per_expert(
        &self,
        dense_key: &str,
        [num_experts, rows, columns]: [usize; 3],
        std: f64,
    ) -> Tensor<3> {
        let Some(seed) = self.seed else { return self.one_zero([num_experts, rows, columns]) };
        let of_expert = |expert: usize| {
            let key = if expert == 0 { dense_key.to_string() } else { format!("{dense_key}#{expert}") };
            normal_values(stream_key(seed, &key), rows * columns, std)
        };
        let values: Vec<f32> = (0..num_experts).into_par_iter().flat_map_iter(of_expert).collect();
        Tensor::from_data(TensorData::new(values, [num_experts, rows, columns]), &self.device)
    }

    fn one_zero<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        Tensor::<D>::zeros([1; D], &self.device).expand(shape)
    }

    /// Ones, where a norm's scale starts.
    pub fn ones(&self, width: usize) -> Tensor<1> {
        Tensor::ones([width], &self.device)
    }

    /// Zeros, where the biases of stacked experts start.
    pub fn zeros_per_expert(&self, num_experts: usize, width: usize) -> Tensor<2> {
        Tensor::zeros([num_experts, width], &self.device)
    }

    /// Zeros, where a bias starts.
    pub fn zeros(&self, width: usize) -> Tensor<1> {
        Tensor::zeros([width], &self.device)
    }
}

/// Noise of one forward pass while training: dropout and the routers' noise.
#[derive(Debug, Clone, Copy)]
pub struct StepNoise {
    key: u64,
}

impl StepNoise {
    /// Noise of one micro-batch of one step, a pure function of the three numbers.
    pub fn new(seed: u64, step: u64, micro_batch: u64) -> Self {
        Self { key: split_mix(split_mix(split_mix(seed) ^ step) ^ micro_batch) }
    }

    /// `x_td` with each element zeroed with probability `p` and the rest scaled by `1 / (1 - p)`
    /// (arXiv:1207.0580). `site` tells one use in the model from another.
    pub fn dropout(&self, site: &str, x_td: Tensor<2>, p: f64) -> Tensor<2> {
        if p == 0.0 {
            return x_td;
        }
        let scale = (1.0 / (1.0 - p)) as f32;
        let mask =
            self.values(site, x_td.dims(), |u| if f64::from(u) < p { 0.0 } else { scale }, &x_td.device());
        x_td * mask
    }

    /// The random numbers of one router.
    pub fn of_router(&self, site: &str) -> RouterNoise {
        RouterNoise::new(stream_key(self.key, site))
    }

    fn values(
        &self,
        site: &str,
        shape: [usize; 2],
        of_uniform: impl Fn(f32) -> f32 + Sync,
        device: &Device,
    ) -> Tensor<2> {
        let key = stream_key(self.key, site);
        let mut values = vec![0.0f32; shape[0] * shape[1]];
        values.par_iter_mut().with_min_len(4096).enumerate().for_each(|(index, value)| {
            *value = of_uniform(uniform_f32(split_mix(key.wrapping_add(index as u64))));
        });
        Tensor::from_data(TensorData::new(values, shape), device)
    }
}

/// A uniform number in `[0, 1)`, a pure function of its three arguments; drives text generation.
pub fn uniform(seed: u64, stream: &str, index: u64) -> f64 {
    (split_mix(stream_key(seed, stream) ^ split_mix(index)) >> 11) as f64 / (1u64 << 53) as f64
}

fn normal_values(key: u64, count: usize, std: f64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(key);
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        // Box-Muller: two normals from two uniforms, the first kept away from zero for the
        // logarithm.
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * std;
        let angle = std::f64::consts::TAU * rng.random::<f64>();
        values.extend([(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]);
    }
    values.truncate(count);
    values
}

/// Key of the random stream `name` under a seed: FNV-1a over the name, mixed with the seed.
pub fn stream_key(seed: u64, name: &str) -> u64 {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    split_mix(seed ^ name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv))
}

fn uniform_f32(bits: u64) -> f32 {
    (bits >> 40) as f32 / (1u32 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_values_have_the_asked_moments() {
        let values = normal_values(7, 100_000, 0.5);
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / 1e5;
        let variance = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / 1e5;
        // Five standard errors: 0.5 / sqrt(1e5) for the mean, 0.25 * sqrt(2 / 1e5) for the
        // variance.
        assert!(mean.abs() < 5.0 * 0.00158, "{mean}");
        assert!((variance - 0.25).abs() < 5.0 * 0.00112, "{variance}");
    }

    #[test]
    fn expert_zero_starts_as_the_dense_block() {
        let source = ParameterSource::new(3, &Device::flex());
        let dense = source.normal("blocks.0.ffn.up", [4, 5], 0.02).into_data();
        let experts = source.normal_per_expert("blocks.0.ffn.up", [3, 4, 5], 0.02);
        assert_eq!(experts.clone().narrow(0, 0, 1).reshape([4, 5]).into_data(), dense);
        assert_ne!(experts.narrow(0, 1, 1).reshape([4, 5]).into_data(), dense);
    }

    #[test]
    fn dropout_keeps_the_mean_and_differs_between_steps_and_sites() {
        let device = Device::flex();
        let ones = Tensor::<2>::ones([200, 500], &device);
        let masked = |step, site| StepNoise::new(1, step, 0).dropout(site, ones.clone(), 0.25).into_data();
        let values = masked(0, "a").try_into_vec::<f32>().unwrap();
        let kept = values.iter().filter(|&&v| v != 0.0).count() as f64 / 1e5;
        // Five standard errors of a Bernoulli(0.75) mean over 1e5 draws.
        assert!((kept - 0.75).abs() < 5.0 * 0.00137, "{kept}");
        assert_eq!(masked(0, "a"), masked(0, "a"));
        assert_ne!(masked(0, "a"), masked(1, "a"));
        assert_ne!(masked(0, "a"), masked(0, "b"));
    }
}
