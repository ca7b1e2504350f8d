//! Token-choice routing: each token picks the k experts with the highest gate logits.
//!
//! Shape letters: t tokens, d model width, e experts, k experts per token.

use burn::module::{Module, Param};
use burn::tensor::{DType, Int, Tensor, TensorData, activation::softmax};

use crate::{
    CapacityConfig, DropPolicy, RouterStatistics, SoftmaxOrder, TopKRouterConfig, expert_capacity,
    keep_earliest, keep_largest_gates, select_top_k,
};

/// A linear gate and the choice of its k best experts.
#[derive(Module, Debug)]
pub struct TopKRouter {
    /// Gate matrix, `[d_model, num_experts]`.
    pub weight_de: Param<Tensor<2>>,
    #[module(skip)]
    config: TopKRouterConfig,
}

/// Which experts each token goes to, with everything the router learnt on the way.
#[derive(Debug, Clone)]
pub struct Routing {
    /// Experts of each token, best first: `[t, k]`, row-major.
    pub expert_ids_tk: Vec<u32>,
    /// Weight of each chosen expert's output: `[num_tokens, top_k]`.
    pub gates_tk: Tensor<2>,
    /// Gate logits: `[num_tokens, num_experts]`.
    pub logits_te: Tensor<2>,
    /// Softmax of the logits over all experts: `[num_tokens, num_experts]`.
    pub probs_te: Tensor<2>,
    /// Experts of the layer.
    pub num_experts: usize,
    /// Experts each token chose.
    pub top_k: usize,
    /// Counts and gate statistics, before capacity.
    pub statistics: RouterStatistics,
}

impl TopKRouterConfig {
    /// A router with this gate matrix.
    ///
    /// # Shapes
    /// - `weight_de`: `[d_model, num_experts]`
    ///
    /// # Panics
    /// If `top_k` is not in `1..=num_experts`; [`TopKRouterConfig::validate`] reports that as an error.
    pub fn init(&self, weight_de: Tensor<2>) -> TopKRouter {
        let [_, num_experts] = weight_de.dims();
        assert!(
            (1..=num_experts).contains(&self.top_k),
            "cannot choose {} of {num_experts} experts",
            self.top_k
        );
        TopKRouter { weight_de: Param::from_tensor(weight_de), config: self.clone() }
    }
}

impl TopKRouter {
    /// The configuration it was made from.
    pub fn config(&self) -> &TopKRouterConfig {
        &self.config
    }

    /// Routes every token. Logits, softmax and gates are computed in f32 even if `x_td` has a shorter float type.
    /// Selection is by logit, which orders experts as their probabilities do and still tells them apart where the
    /// softmax rounds to 0.
    ///
    /// The choice is made on the host: one device read of the `[t, e]` logits per call.
    ///
    /// # Shapes
    /// - `x_td`: `[num_tokens, d_model]`; `noise_td`: factors for `x_td`, see [`crate::jitter_noise`]
    ///
    /// # Panics
    /// If the device fails to return the logits.
    pub fn forward(&self, x_td: Tensor<2>, noise_td: Option<Tensor<2>>) -> Routing {
        let x_td = at_least_f32(x_td);
        let x_td = match noise_td {
            Some(noise_td) => x_td.clone() * noise_td.cast(x_td.dtype()),
            None => x_td,
        };
        let logits_te = x_td.matmul(at_least_f32(self.weight_de.val()));
        let [num_tokens, num_experts] = logits_te.dims();
        let top_k = self.config.top_k;
        let host_logits_te = read_to_host::<f64>(&logits_te);
        let expert_ids_tk = select_top_k(&host_logits_te, num_experts, top_k);
        let probs_te = softmax(logits_te.clone(), 1);
        let ids_tk = upload_ids(&expert_ids_tk, [num_tokens, top_k], &logits_te);
        let gates_tk = match self.config.softmax {
            SoftmaxOrder::AfterSelection => softmax(logits_te.clone().gather(1, ids_tk), 1),
            SoftmaxOrder::BeforeSelection => {
                let chosen_tk = probs_te.clone().gather(1, ids_tk);
                if self.config.renormalise { chosen_tk.clone() / chosen_tk.sum_dim(1) } else { chosen_tk }
            }
        };
        let statistics = RouterStatistics::measure(&host_logits_te, &expert_ids_tk, num_experts, top_k);
        Routing { expert_ids_tk, gates_tk, logits_te, probs_te, num_experts, top_k, statistics }
    }
}

impl Routing {
    /// Number of routed tokens.
    pub fn num_tokens(&self) -> usize {
        self.expert_ids_tk.len() / self.top_k
    }

    /// Assignments to each expert, before capacity.
    pub fn tokens_per_expert(&self) -> &[u64] {
        self.statistics.tokens_per_expert()
    }

    /// Whether each slot `t * top_k + s` stays within `capacity`. Dropping by probability reads the gates from the
    /// device.
    ///
    /// # Panics
    /// If the device fails to return the gates.
    pub fn slots_within(&self, capacity: &CapacityConfig) -> Vec<bool> {
        let limit = expert_capacity(capacity.factor, self.top_k, self.num_tokens(), self.num_experts);
        match capacity.drop {
            DropPolicy::Position => keep_earliest(&self.expert_ids_tk, self.num_experts, limit),
            DropPolicy::Probability => {
                let gates_tk = read_to_host::<f32>(&self.gates_tk);
                keep_largest_gates(&self.expert_ids_tk, &gates_tk, self.num_experts, limit)
            }
        }
    }
}

fn at_least_f32(x: Tensor<2>) -> Tensor<2> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(DType::F32),
        _ => x,
    }
}

fn read_to_host<E: burn::tensor::Element>(values: &Tensor<2>) -> Vec<E> {
    // A device that cannot return a tensor is lost: burn's own operations panic on it too.
    values
        .try_to_vec_as::<E>()
        .unwrap_or_else(|error| panic!("the device did not return routing data: {error}"))
}

fn upload_ids(expert_ids_tk: &[u32], shape: [usize; 2], like: &Tensor<2>) -> Tensor<2, Int> {
    let ids: Vec<i32> = expert_ids_tk.iter().map(|&id| id as i32).collect();
    Tensor::from_data(TensorData::new(ids, shape), &like.device())
}
