//! The routers, as a user writes them, with values and input to route.

use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use switchyard_router::{
    CosineWeights, GateWeights, Router, RouterConfig, RouterInput, RouterNoise, RouterPass, Routing,
    Selection, Sequences,
};

/// Width of a token.
pub(crate) const D: usize = 5;
/// Width in which the cosine gate compares.
pub(crate) const C: usize = 3;

/// A router under test.
#[derive(Debug, Clone)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) num_experts: usize,
    pub(crate) config: RouterConfig,
}

/// Name and configuration of every router, each with all the losses that it may have.
const KINDS: [(&str, &str); 20] = [
    (
        "mixtral",
        r#"{"top_k": 2, "softmax": "after_selection", "load_balancing_weight": 0.3, "z_loss_weight": 0.2}"#,
    ),
    ("olmoe", r#"{"top_k": 3, "renormalise": false, "load_balancing_weight": 0.3, "z_loss_weight": 0.2}"#),
    (
        "qwen",
        r#"{"top_k": 2, "load_balancing_weight": 0.3, "load_balancing_scope": "global_batch",
                "entropy_weight": -0.4}"#,
    ),
    ("switch", r#"{"top_k": 1, "renormalise": false, "load_balancing_weight": 0.3, "jitter": 0.01}"#),
    (
        "noisy_top_k",
        r#"{"top_k": 2, "softmax": "after_selection",
                "selection": {"noisy": {"importance_weight": 0.3, "load_weight": 0.2}}}"#,
    ),
    (
        "noisy_top_1",
        r#"{"top_k": 1, "renormalise": false,
                "selection": {"noisy": {"importance_weight": 0.3, "load_weight": 0.2}}}"#,
    ),
    ("gshard", r#"{"top_k": 2, "selection": {"random_second": {}}, "load_balancing_weight": 0.3}"#),
    (
        "gshard_sampled",
        r#"{"top_k": 2, "selection": {"random_second": {"sampled": true}}, "load_balancing_weight": 0.3}"#,
    ),
    (
        "deepseek_v3",
        r#"{"top_k": 3, "sigmoid": {"routed_scaling": 2.5}, "bias": {"sign": {"rate": 0.01}},
                "groups": {"num_groups": 4, "top_groups": 2}, "load_balancing_weight": 0.3,
                "load_balancing_scope": "sequence", "entropy_weight": 0.1}"#,
    ),
    (
        "sigmoid_proportional",
        r#"{"top_k": 2, "sigmoid": {}, "renormalise": false, "bias": {"proportional": {"rate": 0.1}},
                "load_balancing_weight": 0.3, "z_loss_weight": 0.1}"#,
    ),
    (
        "group_limited",
        r#"{"top_k": 2, "renormalise": false,
                "groups": {"num_groups": 4, "top_groups": 2, "score": "max"}, "load_balancing_weight": 0.3}"#,
    ),
    ("quantile", r#"{"top_k": 2, "sigmoid": {}, "bias": {"quantile": {}}, "z_loss_weight": 0.1}"#),
    ("quantile_softmax", r#"{"top_k": 2, "bias": {"quantile": {}}}"#),
    (
        "sinkhorn",
        r#"{"top_k": 2, "renormalise": false, "z_loss_weight": 0.1,
                "selection": {"sinkhorn": {"max_iterations": 10000, "tolerance": 1e-10}}}"#,
    ),
    (
        "expert_choice",
        r#"{"top_k": 2, "selection": {"expert_choice": {"generation": "top_k"}}, "z_loss_weight": 0.1}"#,
    ),
    (
        "expert_choice_sigmoid",
        r#"{"top_k": 2, "sigmoid": {"routed_scaling": 1.5},
                "selection": {"expert_choice": {"capacity_factor": 1.5}}}"#,
    ),
    ("hash", r#"{"top_k": 2, "selection": {"hash": {"seed": 42}}}"#),
    (
        "cosine",
        r#"{"top_k": 2, "cosine": {"d_projection": 3}, "load_balancing_weight": 0.3, "z_loss_weight": 0.1}"#,
    ),
    ("random", r#"{"top_k": 2, "selection": {"random": {}}}"#),
    ("forced_uniform", r#"{"top_k": 2, "selection": {"forced_uniform": {}}}"#),
];

/// Every router with its options, for 8 experts.
pub(crate) fn kinds() -> Vec<Kind> {
    KINDS.map(|(name, json)| Kind { name, num_experts: 8, config: config(json) }).into()
}

pub(crate) fn kind(name: &str) -> Kind {
    kinds().into_iter().find(|kind| kind.name == name).unwrap()
}

pub(crate) fn config(json: &str) -> RouterConfig {
    serde_json::from_str(json).unwrap()
}

/// Row-major values of a gate and of what it reads.
#[derive(Debug, Clone)]
pub(crate) struct Values {
    pub(crate) x_td: Vec<f64>,
    pub(crate) weight_de: Vec<f64>,
    pub(crate) noise_weight_de: Vec<f64>,
    pub(crate) projection_dc: Vec<f64>,
    pub(crate) directions_ce: Vec<f64>,
    pub(crate) log_scale_1: Vec<f64>,
    pub(crate) bias_e: Vec<f64>,
    pub(crate) token_ids_t: Vec<u32>,
    pub(crate) seq_len: usize,
}

impl Values {
    /// Two sequences of `seq_len` tokens; values uniform in [-1, 1), biases in a tenth of it.
    pub(crate) fn random(kind: &Kind, seq_len: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut draw = |len: usize, scale: f64| -> Vec<f64> {
            (0..len).map(|_| scale * rng.random_range(-1.0..1.0)).collect()
        };
        let (t, e) = (2 * seq_len, kind.num_experts);
        Self {
            x_td: draw(t * D, 1.0),
            weight_de: draw(D * e, 1.0),
            noise_weight_de: draw(D * e, 1.0),
            projection_dc: draw(D * C, 1.0),
            directions_ce: draw(C * e, 1.0),
            log_scale_1: draw(1, 1.0),
            bias_e: draw(e, 0.1),
            token_ids_t: (0..t as u32).map(|i| (i * 7919).wrapping_add(seed as u32)).collect(),
            seq_len,
        }
    }

    /// Everything that can have a gradient.
    pub(crate) fn leaves_mut(&mut self) -> [(&'static str, &mut Vec<f64>); 6] {
        [
            ("x", &mut self.x_td),
            ("weight", &mut self.weight_de),
            ("noise weight", &mut self.noise_weight_de),
            ("projection", &mut self.projection_dc),
            ("directions", &mut self.directions_ce),
            ("log scale", &mut self.log_scale_1),
        ]
    }

    pub(crate) fn num_tokens(&self) -> usize {
        self.token_ids_t.len()
    }

    pub(crate) fn x_td(&self, dtype: DType) -> Tensor<2> {
        tensor(&self.x_td, [self.num_tokens(), D], dtype)
    }
}

pub(crate) fn tensor<const R: usize>(values: &[f64], shape: [usize; R], dtype: DType) -> Tensor<R> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (&Device::flex().autodiff(), dtype))
}

pub(crate) fn values<const R: usize>(tensor: &Tensor<R>) -> Vec<f64> {
    tensor.to_data().iter::<f64>().collect()
}

/// The router with these values.
pub(crate) fn router(kind: &Kind, values: &Values, dtype: DType) -> Router {
    let (e, config) = (kind.num_experts, &kind.config);
    let linear = config.learns() && config.cosine.is_none();
    let weights = GateWeights {
        weight_de: linear.then(|| tensor(&values.weight_de, [D, e], dtype)),
        logit_bias_e: config.gate_bias.then(|| tensor(&values.bias_e, [e], dtype)),
        noise_weight_de: matches!(config.selection, Selection::Noisy(_))
            .then(|| tensor(&values.noise_weight_de, [D, e], dtype)),
        cosine: config.cosine.as_ref().map(|_| CosineWeights {
            projection_dc: tensor(&values.projection_dc, [D, C], dtype),
            directions_ce: tensor(&values.directions_ce, [C, e], dtype),
            log_scale_1: tensor(&values.log_scale_1, [1], dtype),
        }),
        bias_e: config.bias.as_ref().map(|_| tensor(&values.bias_e, [e], dtype)),
    };
    config.init(e, weights)
}

/// The pass of a training step's first micro-batch.
pub(crate) fn training(seed: u64) -> RouterPass<'static> {
    RouterPass::Training { noise: RouterNoise::new(seed), earlier_tokens_per_expert: &[] }
}

/// The routing of `values` in f64.
pub(crate) fn route(kind: &Kind, values: &Values, pass: RouterPass<'_>) -> Routing {
    route_with(&router(kind, values, DType::F64), values, values.x_td(DType::F64), pass)
}

pub(crate) fn route_with(router: &Router, values: &Values, x_td: Tensor<2>, pass: RouterPass<'_>) -> Routing {
    let sequences = Sequences::OfLen(values.seq_len);
    router.forward(RouterInput { x_td, token_ids_t: &values.token_ids_t, sequences, pass })
}

/// Slots of each token that are choices, as expert and gate.
pub(crate) fn chosen(routing: &Routing) -> Vec<Vec<(u32, f64)>> {
    let k = routing.choice.slots_per_token;
    let gates = values(&routing.gates_tk);
    let slots = routing.choice.expert_ids_tk.iter().zip(&gates).enumerate();
    let mut by_token = vec![Vec::new(); routing.num_tokens()];
    for (slot, (&expert, &gate)) in slots {
        if routing.choice.keep_tk.as_ref().is_none_or(|keep_tk| keep_tk[slot]) {
            by_token[slot / k].push((expert, gate));
        }
    }
    by_token
}

#[test]
fn every_router_under_test_is_a_valid_configuration() {
    for kind in kinds() {
        assert_eq!(kind.config.validate(kind.num_experts), Ok(()), "{}", kind.name);
    }
}
