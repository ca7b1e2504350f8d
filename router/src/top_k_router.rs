//! Token-choice routing: each token picks the k experts with the highest gate logits.
//!
//! Shape letters: t tokens, d model width, e experts, k experts per token.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor};
use rayon::prelude::*;
use switchyard_kernels::{GateSoftmax, linear, top_k_gates};

use crate::{
    CapacityConfig, DropPolicy, RouterStatistics, SoftmaxOrder, TopKRouterConfig, expert_capacity,
    keep_earliest, keep_largest_gates, select_top_k,
};

/// Tokens whose choice is made at once.
const BLOCK_TOKENS: usize = 256;

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
        let logits_te = linear(x_td, at_least_f32(self.weight_de.val()), None);
        let [_, num_experts] = logits_te.dims();
        let top_k = self.config.top_k;
        let host_logits_te = read_to_host::<f64>(&logits_te);
        let (expert_ids_tk, statistics) = choose(&host_logits_te, num_experts, top_k);
        let softmax = match self.config.softmax {
            SoftmaxOrder::AfterSelection => GateSoftmax::OverChosen,
            SoftmaxOrder::BeforeSelection if self.config.renormalise => GateSoftmax::OverChosen,
            SoftmaxOrder::BeforeSelection => GateSoftmax::OverAll,
        };
        let gates_tk = top_k_gates(logits_te.clone(), expert_ids_tk.as_slice(), softmax);
        Routing { expert_ids_tk, gates_tk, logits_te, num_experts, top_k, statistics }
    }
}

/// The choice of every token and its statistics, in one pass over the logits. Tokens are cut into blocks that do not
/// depend on the number of threads, and the blocks' sums are added in order.
fn choose(logits_te: &[f64], num_experts: usize, top_k: usize) -> (Vec<u32>, RouterStatistics) {
    let blocks: Vec<_> = logits_te
        .par_chunks(BLOCK_TOKENS * num_experts)
        .map(|logits_te| {
            let expert_ids_tk = select_top_k(logits_te, num_experts, top_k);
            let statistics = RouterStatistics::measure(logits_te, &expert_ids_tk, num_experts, top_k);
            (expert_ids_tk, statistics)
        })
        .collect();
    let mut all = (Vec::new(), RouterStatistics::measure(&[], &[], num_experts, top_k));
    for (expert_ids_tk, statistics) in blocks {
        all.0.extend(expert_ids_tk);
        all.1.merge(&statistics);
    }
    all
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
        let limits_e = vec![limit; self.num_experts];
        match capacity.drop {
            DropPolicy::Position => keep_earliest(&self.expert_ids_tk, &limits_e),
            DropPolicy::Probability => {
                let gates_tk = read_to_host::<f32>(&self.gates_tk);
                keep_largest_gates(&self.expert_ids_tk, &gates_tk, &limits_e)
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
