//! One layer with its input, as plain values for the oracle and as tensors for the layer.

use burn::module::Param;
use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use switchyard_experts::{
    Activation, CapacityConfig, DenseFfn, DenseFfnWeights, DropPolicy, Experts, ExpertsWeights, FfnOptions,
    MoeAux, MoeInput, MoeLayer, MoeOutput,
};
use switchyard_router::{
    AuxLossKind, GateWeights, RouterConfig, RouterNoise, RouterPass, Selection, Sequences,
};

/// Sizes and choices of a layer.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) num_tokens: usize,
    pub(crate) d_model: usize,
    pub(crate) num_experts: usize,
    /// Columns of the gate per expert: more than one under soft mixing.
    pub(crate) slots_per_expert: usize,
    pub(crate) d_expert: usize,
    pub(crate) d_shared_expert: Option<usize>,
    pub(crate) activation: Activation,
    pub(crate) router: RouterConfig,
    pub(crate) capacity: Option<CapacityConfig>,
}

impl Setup {
    pub(crate) fn small(num_tokens: usize, num_experts: usize, top_k: usize) -> Self {
        Self {
            num_tokens,
            d_model: 3,
            num_experts,
            slots_per_expert: 1,
            d_expert: 4,
            d_shared_expert: None,
            activation: Activation::Swiglu,
            router: RouterConfig {
                load_balancing_weight: Some(0.5),
                z_loss_weight: Some(0.25),
                ..RouterConfig::top_k(top_k)
            },
            capacity: None,
        }
    }
}

/// Row-major values of every parameter and of the input; `c_td` weighs the output into one number.
#[derive(Debug, Clone)]
pub(crate) struct Values {
    pub(crate) x_td: Vec<f64>,
    pub(crate) c_td: Vec<f64>,
    pub(crate) router_de: Vec<f64>,
    pub(crate) w_gate_edf: Vec<f64>,
    pub(crate) w_up_edf: Vec<f64>,
    pub(crate) w_down_efd: Vec<f64>,
    pub(crate) shared_gate_df: Vec<f64>,
    pub(crate) shared_up_df: Vec<f64>,
    pub(crate) shared_down_fd: Vec<f64>,
}

impl Values {
    /// Uniform in [-1, 1), representable in f32.
    pub(crate) fn random(setup: &Setup, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut draw =
            |len: usize| (0..len).map(|_| f64::from(rng.random_range(-1.0_f32..1.0))).collect::<Vec<f64>>();
        let Setup { num_tokens: t, d_model: d, num_experts: e, d_expert: f, .. } = *setup;
        let shared = setup.d_shared_expert.unwrap_or(0);
        Self {
            x_td: draw(t * d),
            c_td: draw(t * d),
            router_de: draw(d * e * setup.slots_per_expert),
            w_gate_edf: draw(e * d * f),
            w_up_edf: draw(e * d * f),
            w_down_efd: draw(e * f * d),
            shared_gate_df: draw(d * shared),
            shared_up_df: draw(d * shared),
            shared_down_fd: draw(shared * d),
        }
    }

    /// Everything that has a gradient, with its name.
    pub(crate) fn leaves_mut(&mut self) -> [(&'static str, &mut Vec<f64>); 8] {
        [
            ("x", &mut self.x_td),
            ("router", &mut self.router_de),
            ("gate", &mut self.w_gate_edf),
            ("up", &mut self.w_up_edf),
            ("down", &mut self.w_down_efd),
            ("shared gate", &mut self.shared_gate_df),
            ("shared up", &mut self.shared_up_df),
            ("shared down", &mut self.shared_down_fd),
        ]
    }
}

pub(crate) fn tensor<const D: usize>(values: &[f64], shape: [usize; D], dtype: DType) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (&Device::flex().autodiff(), dtype))
}

pub(crate) fn layer(setup: &Setup, values: &Values, dtype: DType) -> MoeLayer {
    let Setup { d_model: d, num_experts: e, d_expert: f, activation, .. } = *setup;
    let gated = activation.is_gated();
    let experts = ExpertsWeights {
        w_gate_edf: gated.then(|| tensor(&values.w_gate_edf, [e, d, f], dtype)),
        w_up_edf: tensor(&values.w_up_edf, [e, d, f], dtype),
        w_down_efd: tensor(&values.w_down_efd, [e, f, d], dtype),
        biases: None,
    };
    let shared_expert = setup.d_shared_expert.map(|f| {
        let weights = DenseFfnWeights {
            w_gate_df: gated.then(|| tensor(&values.shared_gate_df, [d, f], dtype)),
            w_up_df: tensor(&values.shared_up_df, [d, f], dtype),
            w_down_fd: tensor(&values.shared_down_fd, [f, d], dtype),
            b_gate_f: None,
            b_up_f: None,
            b_down_d: None,
        };
        DenseFfn::new(weights, activation)
    });
    let gate = || tensor(&values.router_de, [d, e * setup.slots_per_expert], dtype);
    let weights = GateWeights {
        weight_de: setup.router.learns().then(gate),
        logit_bias_e: None,
        noise_weight_de: matches!(setup.router.selection, Selection::Noisy(_))
            .then(|| tensor(&vec![0.25; d * e], [d, e], dtype)),
        cosine: None,
        bias_e: setup.router.bias.as_ref().map(|_| tensor(&vec![0.0; e], [e], dtype)),
    };
    let router = setup.router.init(e, weights);
    MoeLayer::new(router, Experts::new(experts, activation), shared_expert, setup.capacity.clone())
}

/// The same factor for all experts; evaluation is dropless.
pub(crate) fn capacity(factor: f64, drop: DropPolicy) -> CapacityConfig {
    CapacityConfig { factor, factor_per_expert: None, drop, evaluation_factor: None }
}

/// The pass of a training step without noise.
pub(crate) fn training() -> RouterPass<'static> {
    RouterPass::Training { noise: RouterNoise::new(0), earlier_tokens_per_expert: &[] }
}

pub(crate) fn forward(layer: &MoeLayer, x_td: Tensor<2>, pass: RouterPass<'_>) -> MoeOutput {
    forward_in(layer, x_td, pass, FfnOptions::default())
}

/// As [`forward`], the experts computed as `options` say.
pub(crate) fn forward_in(
    layer: &MoeLayer,
    x_td: Tensor<2>,
    pass: RouterPass<'_>,
    options: FfnOptions,
) -> MoeOutput {
    let [seq_len, _] = x_td.dims();
    forward_of(layer, x_td, seq_len, pass, options)
}

/// As [`forward`], in sequences of `seq_len` tokens; token i has the id i.
pub(crate) fn forward_in_sequences(
    layer: &MoeLayer,
    x_td: Tensor<2>,
    seq_len: usize,
    pass: RouterPass<'_>,
) -> MoeOutput {
    forward_of(layer, x_td, seq_len, pass, FfnOptions::default())
}

fn forward_of(
    layer: &MoeLayer,
    x_td: Tensor<2>,
    seq_len: usize,
    pass: RouterPass<'_>,
    options: FfnOptions,
) -> MoeOutput {
    let token_ids: Vec<u32> = (0..x_td.dims()[0] as u32).collect();
    layer.forward(MoeInput {
        x_td,
        router_x_td: None,
        token_ids_t: &token_ids,
        sequences: Sequences::OfLen(seq_len),
        pass,
        options,
    })
}

/// A loss of the layer, unweighted.
pub(crate) fn loss_of(aux: &MoeAux, kind: AuxLossKind) -> Option<Tensor<1>> {
    aux.losses.iter().find(|loss| loss.kind == kind).map(|loss| loss.value_1.clone())
}

/// Gradients of the input and of the layer's parameters, in the order of [`Values::leaves_mut`];
/// empty where the layer has no such parameter.
pub(crate) fn layer_gradients(x_td: &Tensor<2>, layer: &MoeLayer, gradients: &Gradients) -> [Tensor<1>; 8] {
    let shared = layer.shared_expert.as_ref();
    [
        flat_gradient(x_td, gradients),
        param_gradient(layer.router.weight_de.as_ref(), gradients),
        param_gradient(layer.experts.w_gate_edf.as_ref(), gradients),
        param_gradient(Some(&layer.experts.w_up_edf), gradients),
        param_gradient(Some(&layer.experts.w_down_efd), gradients),
        param_gradient(shared.and_then(|shared| shared.w_gate_df.as_ref()), gradients),
        param_gradient(shared.map(|shared| &shared.w_up_df), gradients),
        param_gradient(shared.map(|shared| &shared.w_down_fd), gradients),
    ]
}

pub(crate) fn param_gradient<const D: usize>(
    param: Option<&Param<Tensor<D>>>,
    gradients: &Gradients,
) -> Tensor<1> {
    param.map_or_else(|| Tensor::zeros([0], &Device::flex()), |param| flat_gradient(&param.val(), gradients))
}

pub(crate) fn flat_gradient<const D: usize>(leaf: &Tensor<D>, gradients: &Gradients) -> Tensor<1> {
    let gradient =
        leaf.grad(gradients).unwrap_or_else(|| panic!("no gradient for a leaf of shape {:?}", leaf.dims()));
    let len = gradient.shape().num_elements();
    gradient.reshape([len])
}

pub(crate) fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f64> {
    tensor.to_data().iter::<f64>().collect()
}

pub(crate) fn bits<const D: usize>(tensor: &Tensor<D>) -> Vec<u32> {
    tensor.to_data().iter::<f32>().map(f32::to_bits).collect()
}
