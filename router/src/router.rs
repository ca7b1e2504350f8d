//! One layer's router: gate, choice, gates of the chosen, losses and statistics.
//!
//! Shape letters: t tokens, d model width, e experts, k slots per token.

mod logits;

use burn::module::{Module, Param};
use burn::tensor::activation::{log_sigmoid, sigmoid};
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};
use switchyard_kernels::{GateSoftmax, top_k_gates};

use crate::choice::{HostScores, statistics};
use crate::gate::{GateOutput, in_gate_precision};
use crate::host::read_to_host;
use crate::losses::LossInput;
use crate::noise::Purpose;
use crate::{
    AuxLoss, BiasRule, BiasUpdate, CapacityConfig, Choice, CosineGate, DropPolicy, GateWeights,
    PooledBalance, QuantileHistogram, RouterConfig, RouterInput, RouterNoise, RouterPass, RouterStatistics,
    Selection, SoftmaxOrder, expert_capacity, keep_earliest, keep_largest_gates, keep_random, sparse_mixer,
};

/// A gate and the choice of experts by what it says.
#[derive(Module, Debug)]
pub struct Router {
    /// Linear gate, `[d_model, num_experts]`.
    pub weight_de: Option<Param<Tensor<2>>>,
    /// Bias of the linear gate's logits, `[num_experts]`.
    pub logit_bias_e: Option<Param<Tensor<1>>>,
    /// Gate of the noise's size, `[d_model, num_experts]`.
    pub noise_weight_de: Option<Param<Tensor<2>>>,
    /// Cosine gate.
    pub cosine: Option<CosineGate>,
    /// Bias of each expert in the selection; no gradient reaches it, see [`Router::rebalanced`].
    pub bias_e: Option<Param<Tensor<1>>>,
    #[module(skip)]
    num_experts: usize,
    #[module(skip)]
    config: RouterConfig,
}

/// Which experts each token goes to, with everything the router learnt on the way.
#[derive(Debug, Clone)]
pub struct Routing {
    /// Who goes where, before capacity.
    pub choice: Choice,
    /// Weight of each slot's output: `[num_tokens, slots_per_token]`. Without meaning in slots that
    /// are no choice.
    pub gates_tk: Tensor<2>,
    /// What the gate said, noise included: `[num_tokens, num_experts]`; `None` if nothing is
    /// learned.
    pub logits_te: Option<Tensor<2>>,
    /// The same on the host, row-major; zeros if nothing is learned.
    pub host_logits_te: Vec<f64>,
    /// Experts of the layer.
    pub num_experts: usize,
    /// Experts of each token on average, as configured.
    pub top_k: usize,
    /// Counts and gate statistics, before capacity.
    pub statistics: RouterStatistics,
    /// Losses with a weight; only while training.
    pub losses: Vec<AuxLoss>,
    /// The layer's part in a load-balancing loss of all layers; only while training with one.
    pub pooled_balance: Option<PooledBalance>,
    /// What [`Router::rebalanced`] needs; only while training a router with a bias.
    pub balance: Option<BalanceCount>,
    noise: RouterNoise,
}

/// What a step's tokens say about an expert bias.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BalanceCount {
    /// Assignments to each expert.
    pub tokens_per_expert: Vec<u64>,
    /// Biases that tokens would have required; only for quantile balancing.
    pub required_biases: Option<QuantileHistogram>,
}

impl BalanceCount {
    /// Adds another micro-batch of the same step.
    ///
    /// # Panics
    /// If it is of another router.
    pub fn merge(&mut self, other: &Self) {
        assert!(
            self.tokens_per_expert.len() == other.tokens_per_expert.len(),
            "cannot merge counts of {} and {} experts",
            self.tokens_per_expert.len(),
            other.tokens_per_expert.len()
        );
        self.tokens_per_expert.iter_mut().zip(&other.tokens_per_expert).for_each(|(sum, more)| *sum += more);
        if let (Some(histogram), Some(other)) = (&mut self.required_biases, &other.required_biases) {
            histogram.merge(other);
        }
    }
}

impl RouterConfig {
    /// A router of `num_experts` experts with these values.
    ///
    /// # Panics
    /// If the configuration does not fit the experts, which [`RouterConfig::validate`] reports as
    /// an error, or the values are not those that it needs.
    pub fn init(&self, num_experts: usize, weights: GateWeights) -> Router {
        assert!(
            (1..=num_experts).contains(&self.top_k),
            "cannot choose {} of {num_experts} experts",
            self.top_k
        );
        let GateWeights { weight_de, logit_bias_e, noise_weight_de, cosine, bias_e } = weights;
        let needed = (
            self.learns() && self.cosine.is_none(),
            self.gate_bias,
            matches!(self.selection, Selection::Noisy(_)),
            self.cosine.is_some(),
            self.bias.is_some(),
        );
        let given = (
            weight_de.is_some(),
            logit_bias_e.is_some(),
            noise_weight_de.is_some(),
            cosine.is_some(),
            bias_e.is_some(),
        );
        assert!(
            needed == given,
            "linear, its bias, noise, cosine and selection bias: {needed:?} needed, {given:?} given"
        );
        Router {
            weight_de: weight_de.map(Param::from_tensor),
            logit_bias_e: logit_bias_e.map(Param::from_tensor),
            noise_weight_de: noise_weight_de.map(Param::from_tensor),
            cosine: cosine.map(CosineGate::new),
            bias_e: bias_e.map(|bias_e| Param::from_tensor(bias_e).set_require_grad(false)),
            num_experts,
            config: self.clone(),
        }
    }
}

impl Router {
    /// The configuration it was made from.
    pub fn config(&self) -> &RouterConfig {
        &self.config
    }

    /// Experts to choose from.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// Routes every token. The gate computes in f32 or longer whatever the type of `x_td`.
    ///
    /// The choice is made on the host: one device read of the `[t, e]` logits per call.
    ///
    /// # Panics
    /// If the device fails to return the logits, token ids are missing where they are needed, or
    /// the router mixes softly.
    pub fn forward(&self, input: RouterInput<'_>) -> Routing {
        let [num_tokens, _] = input.x_td.dims();
        let noise = input.pass.noise();
        let gate = self.gate_output(&input, noise);
        let logits_te = match &gate {
            Some(gate) => read_to_host::<f64>(&gate.logits_te),
            None => vec![0.0; num_tokens * self.num_experts],
        };
        let bias_e = self.bias_on_host();
        let scores =
            HostScores { logits_te: &logits_te, bias_e: bias_e.as_deref(), num_experts: self.num_experts };
        let (choice, gates_tk) = self.chosen(gate.as_ref(), scores, &input);
        let required_biases =
            bias_e.as_ref().filter(|_| noise.is_some() && self.config.balances_by_quantile()).map(|bias_e| {
                let mut histogram = QuantileHistogram::new(bias_e, self.config.top_k);
                histogram.add(&self.config.scores(scores));
                histogram
            });
        let statistics = statistics(&self.config.log_scores(&logits_te), &choice, self.num_experts);
        let losses = match (&gate, input.pass) {
            (Some(gate), RouterPass::Training { earlier_tokens_per_expert, .. }) => {
                self.config.losses(&LossInput {
                    gate,
                    gates_tk: &gates_tk,
                    choice: &choice,
                    tokens_per_expert: statistics.tokens_per_expert(),
                    earlier_tokens_per_expert,
                    sequences: input.sequences,
                })
            }
            _ => Vec::new(),
        };
        let pooled_balance = gate
            .as_ref()
            .filter(|_| noise.is_some())
            .and_then(|gate| self.config.pooled_balance(&gate.logits_te, &logits_te));
        let tokens_per_expert = statistics.tokens_per_expert().to_vec();
        let balance =
            bias_e.filter(|_| noise.is_some()).map(|_| BalanceCount { tokens_per_expert, required_biases });
        Routing {
            choice,
            gates_tk,
            logits_te: gate.map(|gate| gate.logits_te),
            host_logits_te: logits_te,
            num_experts: self.num_experts,
            top_k: self.config.top_k,
            statistics,
            losses,
            pooled_balance,
            balance,
            noise: noise.unwrap_or(RouterNoise::new(0)),
        }
    }

    /// Who goes where, and the gate of each slot.
    fn chosen(
        &self,
        gate: Option<&GateOutput>,
        scores: HostScores<'_>,
        input: &RouterInput<'_>,
    ) -> (Choice, Tensor<2>) {
        let plain = self.config.choose(scores, input);
        let Some(gate) = gate else {
            let shape_tk = [input.x_td.dims()[0], plain.slots_per_token];
            let gates_tk = Tensor::full(shape_tk, 1.0 / self.config.top_k as f64, &input.x_td.device());
            return (plain, gates_tk);
        };
        let logits_te = gate.logits_te.clone();
        match input.pass.noise().and_then(|_| self.config.rounded(&plain, scores)) {
            Some(rounded) => {
                let gates_tk = self.rounded_gates((logits_te, scores.logits_te), &plain, &rounded);
                (rounded, gates_tk)
            }
            None => {
                let gates_tk = self.gates(logits_te, scores.logits_te, &plain);
                (plain, gates_tk)
            }
        }
    }

    /// Logits of the slots of a router that mixes softly: `[num_tokens, num_slots]`.
    ///
    /// # Panics
    /// If the router has no gate.
    pub fn soft_logits(&self, input: &RouterInput<'_>) -> Tensor<2> {
        let gate = self.gate_output(input, input.pass.noise());
        gate.unwrap_or_else(|| panic!("{:?} has no gate", self.config)).logits_te
    }

    /// Logits of the gate with jitter and noise as the pass asks for; `None` if nothing is learned.
    pub(crate) fn gate_output(
        &self,
        input: &RouterInput<'_>,
        noise: Option<RouterNoise>,
    ) -> Option<GateOutput> {
        let device = input.x_td.device();
        let x_td = in_gate_precision(input.x_td.clone(), self.config.precision);
        let x_td = match (self.config.jitter, noise) {
            (Some(jitter), Some(noise)) => {
                let factors_td = noise.jitter(jitter, x_td.dims(), &device);
                let dtype = x_td.dtype();
                x_td * factors_td.cast(dtype)
            }
            _ => x_td,
        };
        self.gate_logits(x_td, |shape_te| noise.map(|noise| noise.standard_normal(shape_te, &device)))
    }

    /// The gate of each slot.
    fn gates(&self, logits_te: Tensor<2>, host_logits_te: &[f64], choice: &Choice) -> Tensor<2> {
        let ids = choice.expert_ids_tk.as_slice();
        if ids.is_empty() {
            let shape_tk = [0, choice.slots_per_token];
            return Tensor::zeros(shape_tk, (&logits_te.device(), logits_te.dtype()));
        }
        self.unscaled_gates(logits_te, host_logits_te, choice).mul_scalar(self.config.gate_scale())
    }

    /// The gate of each slot of `rounded`: the slot's own score, over the sum of those that the token
    /// chose in `plain` where gates are renormalised. So a slot that stays keeps its gate whatever the
    /// token's others do, and has in training the gate that it has in evaluation.
    fn rounded_gates(
        &self,
        (logits_te, host_logits_te): (Tensor<2>, &[f64]),
        plain: &Choice,
        rounded: &Choice,
    ) -> Tensor<2> {
        let sums_to_one = self.config.renormalise || self.config.softmax == SoftmaxOrder::AfterSelection;
        if !sums_to_one || rounded.expert_ids_tk.is_empty() {
            return self.gates(logits_te, host_logits_te, rounded);
        }
        let log_scores_te = if self.config.sigmoid.is_some() { log_sigmoid(logits_te) } else { logits_te };
        let of_all = |choice: &Choice| {
            top_k_gates(log_scores_te.clone(), choice.expert_ids_tk.as_slice(), GateSoftmax::OverAll)
        };
        let gates_tk = of_all(rounded) / of_all(plain).sum_dim(1);
        gates_tk.mul_scalar(self.config.gate_scale())
    }

    /// As [`Router::gates`], before the factor on all of them.
    fn unscaled_gates(&self, logits_te: Tensor<2>, host_logits_te: &[f64], choice: &Choice) -> Tensor<2> {
        let ids = choice.expert_ids_tk.as_slice();
        if let Selection::SparseMixer(config) = &self.config.selection {
            return sparse_mixer::gates(logits_te, host_logits_te, ids, config.jitter);
        }
        // An expert that picks its tokens weighs each by its own score: the token's other experts
        // do not matter.
        let among_chosen = !matches!(self.config.selection, Selection::ExpertChoice(_));
        if self.config.sigmoid.is_none() {
            let sums_to_one = self.config.renormalise || self.config.softmax == SoftmaxOrder::AfterSelection;
            let softmax =
                if among_chosen && sums_to_one { GateSoftmax::OverChosen } else { GateSoftmax::OverAll };
            return top_k_gates(logits_te, ids, softmax);
        }
        if among_chosen && self.config.renormalise {
            // Sigmoids over their sum, which would round to 0 / 0 where all logits are low.
            top_k_gates(log_sigmoid(logits_te), ids, GateSoftmax::OverChosen)
        } else {
            let ids_tk = choice.upload(&logits_te.device());
            sigmoid(logits_te.gather(1, ids_tk))
        }
    }

    /// The bias of each expert; `None` without one.
    ///
    /// # Panics
    /// If the device fails to return it.
    pub fn bias_on_host(&self) -> Option<Vec<f64>> {
        let bias_e = self.bias_e.as_ref()?.val();
        let values = bias_e.try_to_vec_as::<f64>();
        Some(values.unwrap_or_else(|error| panic!("the device did not return the expert bias: {error}")))
    }

    /// The router with its bias updated by what a step's tokens said; to be called once per
    /// optimizer step. A router without a bias stays as it is.
    ///
    /// # Panics
    /// If the counts are of another router, or the device fails to return the bias.
    pub fn rebalanced(self, count: &BalanceCount) -> Self {
        let (Some(rule), Some(mut bias_e)) = (&self.config.bias, self.bias_on_host()) else {
            return self;
        };
        let loads_e = &count.tokens_per_expert;
        match (rule, &count.required_biases) {
            (BiasRule::Sign(config), _) => BiasUpdate::Sign.apply(&mut bias_e, loads_e, config.rate),
            (BiasRule::Proportional(config), _) => {
                BiasUpdate::Proportional.apply(&mut bias_e, loads_e, config.rate);
            }
            (BiasRule::Quantile {}, Some(required)) => bias_e = required.solve(),
            (BiasRule::Quantile {}, None) => panic!("quantile balancing without a histogram"),
            (BiasRule::Fixed {}, _) => return self,
        }
        let bias_e = self.bias_e.map(|param| {
            param.map(|old_e| {
                let data = TensorData::new(bias_e, old_e.dims());
                let new_e = Tensor::from_data(data, (&old_e.device(), old_e.dtype()));
                new_e.set_require_grad(false)
            })
        });
        Self { bias_e, ..self }
    }
}

impl RouterPass<'_> {
    fn noise(self) -> Option<RouterNoise> {
        match self {
            Self::Training { noise, .. } => Some(noise),
            Self::Evaluation | Self::Generation => None,
        }
    }
}

impl Routing {
    /// Number of routed tokens.
    pub fn num_tokens(&self) -> usize {
        self.choice.expert_ids_tk.len() / self.choice.slots_per_token
    }

    /// Assignments to each expert, before capacity.
    pub fn tokens_per_expert(&self) -> &[u64] {
        self.statistics.tokens_per_expert()
    }

    /// Whether each slot is a choice and stays within the capacity of `factor`, or the expert's own
    /// factor. Dropping by probability reads the gates from the device.
    ///
    /// # Panics
    /// If the device fails to return the gates.
    pub fn slots_within(&self, capacity: &CapacityConfig, factor: f64) -> Vec<bool> {
        let factor_of =
            |expert: usize| capacity.factor_per_expert.as_ref().map_or(factor, |factors| factors[expert]);
        let capacity_of =
            |expert| expert_capacity(factor_of(expert), self.top_k, self.num_tokens(), self.num_experts);
        let capacities_e: Vec<usize> = (0..self.num_experts).map(capacity_of).collect();
        self.only_choices(|ids, gates_tk| match capacity.drop {
            DropPolicy::Position => keep_earliest(ids, &capacities_e),
            DropPolicy::Probability => keep_largest_gates(ids, &gates_tk(), &capacities_e),
            DropPolicy::Random => {
                keep_random(ids, &capacities_e, &mut self.noise.generator(Purpose::Dropping))
            }
        })
    }

    /// Applies `keep` to the slots that are choices; the others are not kept.
    fn only_choices(&self, keep: impl Fn(&[u32], &dyn Fn() -> Vec<f32>) -> Vec<bool>) -> Vec<bool> {
        let Choice { expert_ids_tk, keep_tk, .. } = &self.choice;
        let read_gates = || read_to_host::<f32>(&self.gates_tk);
        let Some(keep_tk) = keep_tk else { return keep(expert_ids_tk, &read_gates) };
        let chosen = |index: &usize| keep_tk[*index];
        let slots: Vec<usize> = (0..keep_tk.len()).filter(chosen).collect();
        let ids: Vec<u32> = slots.iter().map(|&slot| expert_ids_tk[slot]).collect();
        let gates = || {
            let all = read_gates();
            slots.iter().map(|&slot| all[slot]).collect()
        };
        let mut kept = vec![false; keep_tk.len()];
        for (slot, keep) in slots.iter().zip(keep(&ids, &gates)) {
            kept[*slot] = keep;
        }
        kept
    }
}
