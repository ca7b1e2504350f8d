//! The feed-forward block with block-sparse matrices, and what the user writes about it.
//!
//! Shape letters: t tokens, d model width, f hidden width, n blocks, b side of a block.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::activation::{gelu, gelu_approximate, relu, sigmoid, silu};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use switchyard_ground::key_error::KeyError;
use switchyard_ground::open_choice::OpenChoice;
use switchyard_kernels::{Activation, BlockTopology, block_sparse_linear};

use crate::topology::{TopologyKind, generate, num_blocks};

/// Feed-forward blocks whose matrices have only some blocks, in a fixed topology (Gray, Radford and
/// Kingma, "GPU kernels for block-sparse weights", 2017), in the place of the dense ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BlockSparseConfig {
    /// Side of a block, a divisor of `d_model` and `d_ff`; default 32.
    #[serde(default = "default_block")]
    pub block: usize,
    /// Hidden width.
    pub d_ff: usize,
    /// Blocks that are there, as a share of all, above 0 and up to 1; at least as many as leave no
    /// row and no column of blocks empty.
    pub density: f64,
    /// Seed of the topology, apart from the run's; default 0.
    #[serde(default)]
    pub seed: u64,
    /// Which blocks are there; `random` if none is given.
    #[serde(default, with = "switchyard_ground::open_choice")]
    #[schemars(with = "OpenChoice<TopologyKind>")]
    pub topology: Option<TopologyKind>,
}

impl BlockSparseConfig {
    /// Checks everything beside the model's width.
    ///
    /// # Errors
    /// The first key whose value cannot be used.
    pub fn validate(&self, d_model: usize) -> Result<(), KeyError> {
        if self.block == 0 || !d_model.is_multiple_of(self.block) {
            let problem = format!("is {}, which does not divide `model.d_model` = {d_model}", self.block);
            return Err(KeyError::new("block", problem, "use a divisor"));
        }
        if self.d_ff == 0 || !self.d_ff.is_multiple_of(self.block) {
            let remedy = format!("use a multiple of `block` = {}", self.block);
            return Err(KeyError::new("d_ff", format!("is {}", self.d_ff), remedy));
        }
        if !(self.density > 0.0 && self.density <= 1.0) {
            let problem = format!("is {}", self.density);
            return Err(KeyError::new("density", problem, "use a number above 0 and up to 1"));
        }
        match self.topology {
            Some(TopologyKind::SmallWorld { rewiring }) if !(0.0..=1.0).contains(&rewiring) => {
                let problem = format!("is {rewiring}");
                Err(KeyError::new("topology.small_world.rewiring", problem, "use a number in 0..=1"))
            }
            _ => Ok(()),
        }
    }

    /// Blocks of each matrix.
    pub fn num_blocks(&self, d_model: usize) -> usize {
        num_blocks([d_model / self.block, self.d_ff / self.block], self.density)
    }

    /// Which topology.
    pub fn kind(&self) -> TopologyKind {
        self.topology.unwrap_or(TopologyKind::Random {})
    }

    /// Topologies of the up (and gate) and of the down projection of layer `layer`, each its own.
    pub fn topologies(&self, d_model: usize, layer: usize) -> [BlockTopology; 2] {
        let (d, f) = (d_model / self.block, self.d_ff / self.block);
        let number_of = |shape: [usize; 2], matrix: u64| {
            // Far apart for neighbouring seeds and layers.
            let seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (2 * layer as u64 + matrix);
            BlockTopology::new(self.block, shape, generate(self.kind(), shape, self.density, seed))
        };
        [number_of([d, f], 0), number_of([f, d], 1)]
    }
}

/// Initial values of a [`BlockSparseFfn`].
#[derive(Debug, Clone)]
pub struct BlockSparseWeights {
    /// Blocks of the gate projection `[n, b, b]`, exactly for gated activations.
    pub gate_nbb: Option<Tensor<3>>,
    /// Blocks of the up projection `[n, b, b]`.
    pub up_nbb: Tensor<3>,
    /// Blocks of the down projection `[n, b, b]`.
    pub down_nbb: Tensor<3>,
}

/// `activation(x W_gate, x W_up) W_down` with block-sparse matrices.
#[derive(Module, Debug)]
pub struct BlockSparseFfn {
    /// Blocks of the gate projection; `None` unless the activation is gated.
    pub gate_nbb: Option<Param<Tensor<3>>>,
    /// Blocks of the up projection.
    pub up_nbb: Param<Tensor<3>>,
    /// Blocks of the down projection.
    pub down_nbb: Param<Tensor<3>>,
    #[module(skip)]
    up_topology: BlockTopology,
    #[module(skip)]
    down_topology: BlockTopology,
    #[module(skip)]
    activation: Activation,
}

impl BlockSparseFfn {
    /// A block with these values, in the topologies of the up (and gate) and of the down
    /// projection.
    ///
    /// # Panics
    /// If a gate projection is missing or superfluous for `activation`.
    pub fn new(weights: BlockSparseWeights, topologies: [BlockTopology; 2], activation: Activation) -> Self {
        assert!(
            weights.gate_nbb.is_some() == activation.is_gated(),
            "{activation:?} with gate projection = {}",
            weights.gate_nbb.is_some()
        );
        let [up_topology, down_topology] = topologies;
        Self {
            gate_nbb: weights.gate_nbb.map(Param::from_tensor),
            up_nbb: Param::from_tensor(weights.up_nbb),
            down_nbb: Param::from_tensor(weights.down_nbb),
            up_topology,
            down_topology,
            activation,
        }
    }

    /// The block applied to every token.
    ///
    /// # Shapes
    /// - `x_td`: `[num_tokens, d]`; returns `[num_tokens, d]`
    pub fn forward(&self, x_td: Tensor<2>) -> Tensor<2> {
        let up_tf = block_sparse_linear(x_td.clone(), self.up_nbb.val(), &self.up_topology);
        let gate_tf = self
            .gate_nbb
            .as_ref()
            .map(|gate_nbb| block_sparse_linear(x_td, gate_nbb.val(), &self.up_topology));
        let hidden_tf = match (self.activation, gate_tf) {
            (Activation::Swiglu, Some(gate_tf)) => silu(gate_tf) * up_tf,
            (Activation::ClampedSwiglu { alpha, limit }, Some(gate_tf)) => {
                let gate_tf = gate_tf.clamp_max(limit);
                gate_tf.clone() * sigmoid(gate_tf * alpha) * (up_tf.clamp(-limit, limit) + 1.0)
            }
            (Activation::Gelu, None) => gelu(up_tf),
            (Activation::GeluTanh, None) => gelu_approximate(up_tf),
            (Activation::Relu, None) => relu(up_tf),
            (activation, gate_tf) => panic!("{activation:?} with a gate projection = {}", gate_tf.is_some()),
        };
        block_sparse_linear(hidden_tf, self.down_nbb.val(), &self.down_topology)
    }
}

fn default_block() -> usize {
    32
}

#[cfg(test)]
mod tests {
    use burn::module::ModuleMapper;
    use burn::tensor::{Device, TensorData};

    use super::*;

    /// Another value for every element: what an optimizer does, at its worst.
    struct Overwrite;

    impl ModuleMapper for Overwrite {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|value| value.clone().powi_scalar(2) + value.mul_scalar(0.5) + 0.25)
        }
    }

    fn ramp<const D: usize>(shape: [usize; D]) -> Tensor<D> {
        let values: Vec<f32> = (0..shape.iter().product()).map(|i| 0.02 * (i % 29) as f32 - 0.25).collect();
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    /// The blocks at their places in a matrix of zeros.
    fn dense_matrix(blocks_nbb: &Param<Tensor<3>>, topology: &BlockTopology) -> Vec<Vec<f32>> {
        let [_, b, _] = blocks_nbb.val().dims();
        let values = blocks_nbb.val().into_data().try_into_vec::<f32>().unwrap();
        let mut matrix = vec![vec![0.0; topology.d_output()]; topology.d_input()];
        for ([row, column], block) in topology.places().iter().zip(values.chunks(b * b)) {
            for (i, value) in block.iter().enumerate() {
                matrix[row * b + i / b][column * b + i % b] = *value;
            }
        }
        matrix
    }

    fn product(x: &[f32], matrix: &[Vec<f32>]) -> Vec<f32> {
        let column = |j: usize| x.iter().zip(matrix).map(|(x, row)| x * row[j]).sum();
        (0..matrix[0].len()).map(column).collect()
    }

    /// The definition, for a unit whose projections are `up` and `gate`.
    fn activation(activation: Activation, up: f32, gate: f32) -> f32 {
        match activation {
            Activation::Swiglu => gate / (1.0 + (-gate).exp()) * up,
            Activation::ClampedSwiglu { alpha, limit } => {
                let (alpha, limit) = (alpha as f32, limit as f32);
                let gate = gate.min(limit);
                gate / (1.0 + (-alpha * gate).exp()) * (up.max(-limit).min(limit) + 1.0)
            }
            Activation::Gelu | Activation::GeluTanh => {
                let inner = (2.0 / std::f32::consts::PI).sqrt() * (up + 0.044715 * up.powi(3));
                0.5 * up * (1.0 + inner.tanh())
            }
            Activation::Relu => up.max(0.0),
        }
    }

    #[test]
    fn every_activation_is_its_definition() {
        let clamped = Activation::ClampedSwiglu { alpha: 1.702, limit: 0.125 };
        for kind in [Activation::Swiglu, clamped, Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
            let d_model = 8;
            let config = BlockSparseConfig { block: 2, d_ff: 12, density: 0.5, seed: 3, topology: None };
            let [up, down] = config.topologies(d_model, 0);
            let blocks = || ramp([config.num_blocks(d_model), 2, 2]);
            let gate_nbb = kind.is_gated().then(|| blocks().mul_scalar(-3.0));
            let weights = BlockSparseWeights { gate_nbb, up_nbb: blocks(), down_nbb: blocks() };
            let ffn = BlockSparseFfn::new(weights, [up.clone(), down.clone()], kind);
            let [up_matrix, down_matrix] =
                [(&ffn.up_nbb, &up), (&ffn.down_nbb, &down)].map(|(blocks, at)| dense_matrix(blocks, at));
            let gate_matrix = ffn.gate_nbb.as_ref().map(|blocks| dense_matrix(blocks, &up));
            let x_td = ramp([5, d_model]);
            let rows = x_td.clone().into_data().try_into_vec::<f32>().unwrap();
            let expected: Vec<f32> = rows
                .chunks(d_model)
                .flat_map(|x| {
                    let ups = product(x, &up_matrix);
                    let gates = gate_matrix.as_ref().map_or(ups.clone(), |matrix| product(x, matrix));
                    let hidden: Vec<f32> =
                        ups.iter().zip(gates).map(|(&up, gate)| activation(kind, up, gate)).collect();
                    product(&hidden, &down_matrix)
                })
                .collect();
            let actual = ffn.forward(x_td).into_data().try_into_vec::<f32>().unwrap();
            for (actual, expected) in actual.iter().zip(expected) {
                // GELU and its formula differ by less than 5e-4 a unit.
                let tolerance = if kind == Activation::Gelu { 1e-3 } else { 1e-5 };
                assert!((actual - expected).abs() < tolerance, "{kind:?}: {actual} instead of {expected}");
            }
        }
    }

    #[test]
    fn a_layer_keeps_the_places_of_its_blocks_whatever_becomes_of_their_values() {
        let (d_model, layer) = (8, 1);
        for kind in ["random", "small_world", "barabasi_albert"] {
            let topology: TopologyKind = serde_json::from_str(&format!("{{\"{kind}\": {{}}}}")).unwrap();
            let topology = Some(topology);
            let config = BlockSparseConfig { block: 2, d_ff: 12, density: 0.4, seed: 3, topology };
            let [up, down] = config.topologies(d_model, layer);
            let shape = [config.num_blocks(d_model), 2, 2];
            let weights = BlockSparseWeights { gate_nbb: None, up_nbb: ramp(shape), down_nbb: ramp(shape) };
            let ffn = BlockSparseFfn::new(weights, [up.clone(), down.clone()], Activation::Relu)
                .map(&mut Overwrite);
            let (up, down) = (dense_matrix(&ffn.up_nbb, &up), dense_matrix(&ffn.down_nbb, &down));
            assert!(up.iter().flatten().any(|value| *value == 0.0), "{kind} leaves no place empty");
            let x_td = ramp([5, d_model]);
            let rows = x_td.clone().into_data().try_into_vec::<f32>().unwrap();
            let expected = rows.chunks(d_model).flat_map(|x| {
                let hidden: Vec<f32> = product(x, &up).into_iter().map(|value| value.max(0.0)).collect();
                product(&hidden, &down)
            });
            let actual = ffn.forward(x_td).into_data().try_into_vec::<f32>().unwrap();
            for (actual, expected) in actual.iter().zip(expected) {
                // Sums of some dozen terms below 1 in f32.
                assert!((actual - expected).abs() < 1e-5, "{kind}: {actual} instead of {expected}");
            }
        }
    }
}
