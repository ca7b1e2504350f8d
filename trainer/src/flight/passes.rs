//! What one forward pass of a training step tells the recorder.

use std::sync::Arc;

use switchyard_experts::{MoeAux, Route};
use switchyard_model::{ModelInput, ModelOutput};
use switchyard_router::{AuxLossKind, BalancingScope, RouterConfig, Selection};

use super::alarms::{balancing_bound_of_any_selection, balancing_bound_of_top_k};
use crate::TrainError;
use crate::step::read_scalar;

/// The routing of one micro-batch.
#[derive(Debug, Clone)]
pub struct RoutedPass {
    /// `[num_tokens]`
    pub token_ids_t: Arc<[u32]>,
    /// Domain of each sequence.
    pub domains: Vec<u16>,
    /// Tokens of one sequence.
    pub seq_len: usize,
    /// The mixtures, first layer first.
    pub layers: Vec<RoutedLayer>,
}

/// The routing of one layer in one micro-batch.
#[derive(Debug, Clone)]
pub struct RoutedLayer {
    /// Index of the Transformer block, from 0.
    pub layer: usize,
    /// Tokens sent to each expert, dropped ones included.
    pub tokens_per_expert: Vec<u64>,
    /// Load-balancing loss of the micro-batch, unweighted; absent without one.
    pub load_balancing_loss: Option<f64>,
    /// Who went where; absent where tokens are mixed softly.
    pub route: Option<Route>,
}

impl RoutedPass {
    /// What `output` tells, without its tensors.
    ///
    /// # Errors
    /// [`TrainError::Device`] if a loss cannot be read.
    pub fn new(
        input: &ModelInput,
        domains: Vec<u16>,
        seq_len: usize,
        output: ModelOutput,
    ) -> Result<Self, TrainError> {
        let layers = output.moe_layers.into_iter().map(|(layer, aux)| RoutedLayer::new(layer, aux));
        Ok(Self {
            token_ids_t: input.token_ids_t.clone(),
            domains,
            seq_len,
            layers: layers.collect::<Result<_, _>>()?,
        })
    }

    /// Domain of each token's sequence.
    pub fn domains_of_tokens(&self) -> impl Iterator<Item = u32> {
        self.domains.iter().flat_map(|&domain| std::iter::repeat_n(u32::from(domain), self.seq_len))
    }

    /// The routing of a layer.
    pub fn layer(&self, layer: usize) -> Option<&RoutedLayer> {
        self.layers.iter().find(|routed| routed.layer == layer)
    }
}

impl RoutedLayer {
    fn new(layer: usize, aux: MoeAux) -> Result<Self, TrainError> {
        let balancing = aux.losses.iter().find(|loss| loss.kind == AuxLossKind::LoadBalancing);
        Ok(Self {
            layer,
            tokens_per_expert: aux.statistics.tokens_per_expert().to_vec(),
            load_balancing_loss: balancing.map(|loss| read_scalar(&loss.value_1)).transpose()?,
            route: aux.route,
        })
    }

    /// Assignments of each expert that were over its capacity.
    pub fn dropped_per_expert(&self) -> Vec<u64> {
        let mut dropped = vec![0; self.tokens_per_expert.len()];
        let Some(route) = &self.route else { return dropped };
        let Some(kept_tk) = &route.kept_tk else { return dropped };
        for (slot, &expert) in route.choice.expert_ids_tk.iter().enumerate() {
            let is_choice = route.choice.keep_tk.as_ref().is_none_or(|keep_tk| keep_tk[slot]);
            dropped[expert as usize] += u64::from(is_choice && !kept_tk[slot]);
        }
        dropped
    }

    /// Experts that each token chooses; absent where that differs between tokens.
    pub fn top_k(&self) -> Option<usize> {
        let choice = &self.route.as_ref()?.choice;
        choice.keep_tk.is_none().then_some(choice.slots_per_token)
    }

    /// Lower bound of the load-balancing loss, given the loads that it counted: those of this pass, or with the step's
    /// earlier passes.
    pub(super) fn balancing_bound(
        &self,
        config: &RouterConfig,
        earlier: &[&RoutedLayer],
        seq_len: usize,
    ) -> Option<f64> {
        let route = self.route.as_ref()?;
        let chooses_largest = matches!(config.selection, Selection::TopK | Selection::Noisy(_))
            && config.bias.is_none()
            && config.groups.is_none();
        let bound = |loads: &[u64]| match chooses_largest {
            true => balancing_bound_of_top_k(loads, config.top_k),
            false => balancing_bound_of_any_selection(loads),
        };
        match config.load_balancing_scope {
            BalancingScope::MicroBatch => Some(bound(&self.tokens_per_expert)),
            // The probabilities are those of this pass alone, so its tokens need not have made these loads.
            BalancingScope::GlobalBatch => {
                let sums = self.tokens_per_expert.iter().enumerate().map(|(expert, load)| {
                    load + earlier.iter().map(|layer| layer.tokens_per_expert[expert]).sum::<u64>()
                });
                Some(balancing_bound_of_any_selection(&sums.collect::<Vec<_>>()))
            }
            BalancingScope::Sequence => {
                mean_over_sequences(route, self.tokens_per_expert.len(), seq_len, bound)
            }
        }
    }
}

fn mean_over_sequences(
    route: &Route,
    num_experts: usize,
    seq_len: usize,
    bound: impl Fn(&[u64]) -> f64,
) -> Option<f64> {
    if route.choice.keep_tk.is_some() {
        return None;
    }
    let sequences = route.choice.expert_ids_tk.chunks(seq_len * route.choice.slots_per_token);
    let num_sequences = sequences.len();
    let bounds = sequences.map(|ids| {
        let mut loads = vec![0; num_experts];
        ids.iter().for_each(|&expert| loads[expert as usize] += 1);
        bound(&loads)
    });
    Some(bounds.sum::<f64>() / num_sequences.max(1) as f64)
}
