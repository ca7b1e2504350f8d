//! The mixture-of-experts layer: route, dispatch, multiply, combine.
//!
//! Shape letters: t tokens, d model width, e experts, k slots per token.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid;
use switchyard_kernels::{Compute, DispatchPlan, ExpertParallel, FfnOptions, linear};
use switchyard_router::{
    BalanceCount, CapacityConfig, Choice, Router, RouterInput, RouterPass, Routing, Selection, Sequences,
};

use crate::output::{MoeAux, MoeOutput, Route};
use crate::{DenseFfn, Experts, soft};

/// A mixture of experts in place of a dense feed-forward block.
#[derive(Module, Debug)]
pub struct MoeLayer {
    /// Chooses the experts.
    pub router: Router,
    /// The experts to choose from.
    pub experts: Experts,
    /// Sees every token; its output is added to the mixture's.
    pub shared_expert: Option<DenseFfn>,
    /// Weighs the shared expert's output of each token with a sigmoid, `[d_model, 1]` (Qwen2-MoE);
    /// `None` adds it as it is.
    pub shared_gate_d1: Option<Param<Tensor<2>>>,
    #[module(skip)]
    capacity: Option<CapacityConfig>,
}

/// What the layer reads.
#[derive(Debug, Clone)]
pub struct MoeInput<'a> {
    /// What the experts read, `[num_tokens, d_model]`.
    pub x_td: Tensor<2>,
    /// What the router reads; `None` if the same.
    pub router_x_td: Option<Tensor<2>>,
    /// `[num_tokens]`, for routers that go by token id; may be empty for others.
    pub token_ids_t: &'a [u32],
    /// Which tokens are of one sequence.
    pub sequences: Sequences<'a>,
    /// Why: while training there are noise, losses and a capacity.
    pub pass: RouterPass<'a>,
    /// How the experts are computed; the router's products are never rounded.
    pub options: FfnOptions,
}

impl MoeLayer {
    /// A layer of these parts; without a capacity it is dropless.
    ///
    /// # Panics
    /// If router and experts differ in the number of experts.
    pub fn new(
        router: Router,
        experts: Experts,
        shared_expert: Option<DenseFfn>,
        capacity: Option<CapacityConfig>,
    ) -> Self {
        let num_experts = experts.num_experts();
        assert!(
            router.num_experts() == num_experts,
            "the router chooses among {} experts, but the layer has {num_experts}",
            router.num_experts()
        );
        Self { router, experts, shared_expert, shared_gate_d1: None, capacity }
    }

    /// The layer with a gate on its shared expert, `[d_model, 1]`.
    pub fn with_shared_gate(self, shared_gate_d1: Tensor<2>) -> Self {
        Self { shared_gate_d1: Some(Param::from_tensor(shared_gate_d1)), ..self }
    }

    /// The layer with its experts spread over ranks, which all have this layer: what is not of the
    /// experts stays on each, see [`Experts::over_ranks`].
    ///
    /// # Panics
    /// If the experts do not spread evenly over the ranks.
    pub fn over_ranks(self, ranks: ExpertParallel) -> Self {
        Self { experts: self.experts.over_ranks(ranks), ..self }
    }

    /// The layer with all its experts on this rank, see [`Experts::gathered`].
    pub fn gathered(self, gather: impl FnMut(Tensor<1>) -> Tensor<1>) -> Self {
        Self { experts: self.experts.gathered(gather), ..self }
    }

    /// The layer with its router's bias updated, see [`Router::rebalanced`].
    pub fn rebalanced(self, count: &BalanceCount) -> Self {
        Self { router: self.router.rebalanced(count), ..self }
    }

    /// The gate-weighted sum of each token's experts, plus the shared expert. A token whose
    /// assignments were all dropped gets the shared expert only, or zero.
    ///
    /// # Panics
    /// If the device fails to return the gate logits, token ids are missing where the router needs
    /// them, or sequences of several lengths are to be mixed softly.
    pub fn forward(&self, input: MoeInput<'_>) -> MoeOutput {
        let MoeInput { x_td, router_x_td, token_ids_t, sequences, pass, options } = input;
        let router_x_td = router_x_td.unwrap_or_else(|| x_td.clone());
        let router_input = RouterInput { x_td: router_x_td, token_ids_t, sequences, pass };
        let (mixture_td, aux) = match &self.router.config().selection {
            Selection::Soft(_) => {
                soft::forward(&self.router, &self.experts, x_td.clone(), router_input, options)
            }
            _ => self.forward_routed(x_td.clone(), router_input, options),
        };
        let hidden_td = match &self.shared_expert {
            Some(shared_expert) => mixture_td + self.forward_shared(shared_expert, x_td, options),
            None => mixture_td,
        };
        MoeOutput { hidden_td, aux }
    }

    fn forward_shared(&self, shared_expert: &DenseFfn, x_td: Tensor<2>, options: FfnOptions) -> Tensor<2> {
        let hidden_td = shared_expert.forward(x_td.clone(), options);
        match &self.shared_gate_d1 {
            Some(gate_d1) => hidden_td * sigmoid(linear(x_td, gate_d1.val(), None, Compute::F32)),
            None => hidden_td,
        }
    }

    fn forward_routed(
        &self,
        x_td: Tensor<2>,
        input: RouterInput<'_>,
        options: FfnOptions,
    ) -> (Tensor<2>, MoeAux) {
        let pass = input.pass;
        let routing = self.router.forward(input);
        let within_capacity_tk =
            self.capacity_factor(pass).map(|(capacity, factor)| routing.slots_within(capacity, factor));
        let Routing {
            choice,
            gates_tk,
            host_logits_te,
            num_experts,
            statistics,
            losses,
            pooled_balance,
            balance,
            ..
        } = routing;
        let num_dropped = |kept_tk: &Vec<bool>| {
            let num_kept = kept_tk.iter().filter(|kept| **kept).count() as u64;
            statistics.tokens_per_expert().iter().sum::<u64>() - num_kept
        };
        let num_dropped = within_capacity_tk.as_ref().map_or(0, num_dropped);
        let kept_tk = within_capacity_tk.or_else(|| choice.keep_tk.clone());
        let plan =
            DispatchPlan::new(&choice.expert_ids_tk, kept_tk.as_deref(), num_experts, choice.slots_per_token);
        let gates_tk = gates_tk.cast(x_td.dtype());
        let mixture_td = self.experts.forward(x_td, gates_tk, &plan, options);
        let aux = MoeAux {
            losses,
            statistics: statistics.with_dropped(num_dropped),
            pooled_balance,
            balance,
            route: Some(Route { logits_te: host_logits_te, choice, kept_tk }),
        };
        (mixture_td, aux)
    }

    /// The first expert whose output for one of its tokens is not finite; `None` if all are. Runs
    /// every expert alone. Where experts are spread over ranks, it is of this rank's own: a rank
    /// may ask alone, and no other answers.
    ///
    /// # Panics
    /// If `route` is not of these tokens, or the device fails to return the outputs.
    pub fn first_non_finite_expert(
        &self,
        x_td: &Tensor<2>,
        route: &Route,
        options: FfnOptions,
    ) -> Option<usize> {
        let Choice { expert_ids_tk, slots_per_token: k, .. } = &route.choice;
        let own = self.experts.own();
        let ones_tk = Tensor::ones([expert_ids_tk.len() / k, *k], (&x_td.device(), x_td.dtype()));
        own.clone().find(|&expert| {
            let is_its = |(slot, &id): (usize, &u32)| {
                id as usize == expert && route.kept_tk.as_ref().is_none_or(|kept_tk| kept_tk[slot])
            };
            let its_slots: Vec<bool> = expert_ids_tk.iter().enumerate().map(is_its).collect();
            // Its place among the own ones, for every slot: the others are dropped.
            let ids_tk = vec![(expert - own.start) as u32; expert_ids_tk.len()];
            let plan = DispatchPlan::new(&ids_tk, Some(&its_slots), own.len(), *k);
            let output_td = self.experts.forward_own(x_td.clone(), ones_tk.clone(), &plan, options);
            !output_td.to_data().iter::<f32>().all(f32::is_finite)
        })
    }

    /// The capacity that applies, and its factor.
    fn capacity_factor(&self, pass: RouterPass<'_>) -> Option<(&CapacityConfig, f64)> {
        let capacity = self.capacity.as_ref()?;
        match pass {
            RouterPass::Training { .. } => Some((capacity, capacity.factor)),
            RouterPass::Evaluation | RouterPass::Generation => Some((capacity, capacity.evaluation_factor?)),
        }
    }
}
