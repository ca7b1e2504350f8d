//! The mixture-of-experts layer: route, dispatch, multiply, combine.
//!
//! Shape letters: t tokens, d model width, e experts, k experts per token.

use burn::module::Module;
use burn::tensor::Tensor;
use switchyard_kernels::DispatchPlan;
use switchyard_router::{
    CapacityConfig, RouterStatistics, Routing, TopKRouter, load_balancing_loss, router_z_loss,
};

use crate::{DenseFfn, Experts};

/// A mixture of experts in place of a dense feed-forward block.
#[derive(Module, Debug)]
pub struct MoeLayer {
    /// Chooses the experts.
    pub router: TopKRouter,
    /// The experts to choose from.
    pub experts: Experts,
    /// Sees every token; its output is added to the mixture's.
    pub shared_expert: Option<DenseFfn>,
    #[module(skip)]
    capacity: Option<CapacityConfig>,
}

/// Whether a capacity applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Experts drop what exceeds their capacity, if one is configured.
    Training,
    /// Every token reaches all its experts.
    Evaluation,
}

/// What the layer returns.
#[derive(Debug)]
pub struct MoeOutput {
    /// The block's output, `[num_tokens, d]`.
    pub hidden_td: Tensor<2>,
    /// Losses and statistics of the routing.
    pub aux: MoeAux,
}

/// What the layer learnt besides its output.
#[derive(Debug)]
pub struct MoeAux {
    /// See [`load_balancing_loss`]; unweighted, `[1]`. None unless a weight is configured.
    pub load_balancing_loss: Option<Tensor<1>>,
    /// See [`router_z_loss`]; unweighted, `[1]`. None unless a weight is configured.
    pub router_z_loss: Option<Tensor<1>>,
    /// Counts, gate statistics and dropped assignments.
    pub statistics: RouterStatistics,
}

impl MoeLayer {
    /// A layer of these parts; without a capacity it is dropless.
    ///
    /// # Panics
    /// If router and experts differ in the number of experts.
    pub fn new(
        router: TopKRouter,
        experts: Experts,
        shared_expert: Option<DenseFfn>,
        capacity: Option<CapacityConfig>,
    ) -> Self {
        let ([_, num_routed], [num_experts, _, _]) =
            (router.weight_de.val().dims(), experts.w_up_edf.val().dims());
        assert!(
            num_routed == num_experts,
            "the router chooses among {num_routed} experts, but the layer has {num_experts}"
        );
        Self { router, experts, shared_expert, capacity }
    }

    /// The gate-weighted sum of each token's experts, plus the shared expert. A token whose assignments were all
    /// dropped gets the shared expert only, or zero.
    ///
    /// # Shapes
    /// - `x_td`: `[num_tokens, d]`; `noise_td`: factors for the router's input, see
    ///   [`switchyard_router::jitter_noise`]
    ///
    /// # Panics
    /// If the device fails to return the gate logits.
    pub fn forward(&self, x_td: Tensor<2>, noise_td: Option<Tensor<2>>, mode: Mode) -> MoeOutput {
        let routing = self.router.forward(x_td.clone(), noise_td);
        let keep_tk = match (mode, &self.capacity) {
            (Mode::Training, Some(capacity)) => Some(routing.slots_within(capacity)),
            _ => None,
        };
        let plan =
            DispatchPlan::new(&routing.expert_ids_tk, keep_tk.as_deref(), routing.num_experts, routing.top_k);
        let gates_tk = routing.gates_tk.clone().cast(x_td.dtype());
        let mixture_td = self.experts.forward(x_td.clone(), gates_tk, &plan);
        let hidden_td = match &self.shared_expert {
            Some(shared_expert) => mixture_td + shared_expert.forward(x_td),
            None => mixture_td,
        };
        MoeOutput { hidden_td, aux: self.aux(routing, plan.num_dropped()) }
    }

    fn aux(&self, routing: Routing, num_dropped: usize) -> MoeAux {
        let config = self.router.config();
        let Routing { logits_te, statistics, .. } = routing;
        MoeAux {
            load_balancing_loss: config
                .load_balancing_weight
                .map(|_| load_balancing_loss(logits_te.clone(), statistics.tokens_per_expert())),
            router_z_loss: config.z_loss_weight.map(|_| router_z_loss(logits_te)),
            statistics: statistics.with_dropped(num_dropped as u64),
        }
    }
}
