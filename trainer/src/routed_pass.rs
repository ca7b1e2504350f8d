//! Who went where in one forward pass of a training step.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use switchyard_experts::{MoeAux, Route};
use switchyard_model::{ModelInput, ModelOutput, Transformer};
use switchyard_router::{AuxLossKind, RouterStatistics};

use crate::balancing_bound::balancing_bound;
use crate::readings::{Reading, Readings, Values};

/// The routing of one micro-batch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RoutedPass {
    /// Tokens, padding left out.
    pub num_tokens: usize,
    /// `[num_tokens]`; empty where the route of each token is left out too.
    #[serde(serialize_with = "write_ids", deserialize_with = "read_ids")]
    pub token_ids_t: Arc<[u32]>,
    /// Domain of each sequence.
    pub domains: Vec<u16>,
    /// Tokens of each sequence.
    pub seq_lens: Vec<usize>,
    /// The mixtures, first layer first.
    pub layers: Vec<RoutedLayer>,
}

/// The routing of one layer in one micro-batch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RoutedLayer {
    /// Index of the Transformer block, from 0.
    pub layer: usize,
    /// Tokens sent to each expert, dropped ones included.
    pub tokens_per_expert: Vec<u64>,
    /// Assignments of each expert that were over its capacity.
    pub dropped_per_expert: Vec<u64>,
    /// Experts that each token chooses; `None` where that differs between tokens, and where they are
    /// mixed softly.
    pub top_k: Option<usize>,
    /// Load-balancing loss of the micro-batch, unweighted; `None` without one.
    pub load_balancing_loss: Option<f64>,
    /// The least that this loss can be at these loads; `None` where nothing is known of it.
    pub load_balancing_bound: Option<f64>,
    /// Who went where; `None` where tokens are mixed softly.
    pub route: Option<Route>,
}

impl RoutedPass {
    /// What `output` of `model` tells, without its tensors; `earlier` is the routing of the step's
    /// passes before it. The losses are [`Self::with_losses`]'s.
    pub(crate) fn new(
        (model, input): (&Transformer, &ModelInput),
        domains: Vec<u16>,
        earlier: &[(usize, RouterStatistics)],
        output: ModelOutput,
    ) -> Self {
        let seq_lens = input.seq_lens();
        let layer = |(layer, aux): (usize, MoeAux)| {
            let before = earlier.iter().find(|(of, _)| *of == layer);
            let before = before.map_or(&[][..], |(_, statistics)| statistics.tokens_per_expert());
            let bound = aux.route.as_ref().zip(model.moe(layer)).and_then(|(route, moe)| {
                let loads = [aux.statistics.tokens_per_expert(), before];
                balancing_bound(route, moe.router.config(), loads, &seq_lens)
            });
            RoutedLayer::new(layer, aux, bound)
        };
        let layers = output.moe_layers.into_iter().map(layer).collect();
        let token_ids_t = input.routed_token_ids().clone();
        Self { num_tokens: token_ids_t.len(), token_ids_t, domains, seq_lens, layers }
    }

    /// Where the load-balancing loss of each layer will be; `None` for a layer without one.
    pub(crate) fn losses(output: &ModelOutput, readings: &mut Readings) -> Vec<Option<Reading>> {
        let balancing = |aux: &MoeAux| {
            let loss = aux.losses.iter().find(|loss| loss.kind == AuxLossKind::LoadBalancing)?;
            Some(readings.add(&loss.value_1))
        };
        output.moe_layers.iter().map(|(_, aux)| aux).map(balancing).collect()
    }

    /// The pass with what `losses` have become.
    pub(crate) fn with_losses(mut self, losses: &[Option<Reading>], values: &Values) -> Self {
        for (layer, loss) in self.layers.iter_mut().zip(losses) {
            layer.load_balancing_loss = loss.as_ref().map(|reading| values.scalar(reading));
        }
        self
    }

    /// The pass without what there is of each token.
    pub(crate) fn without_tokens(&self) -> Self {
        let layers = self.layers.iter().map(RoutedLayer::without_route).collect();
        let (domains, seq_lens) = (self.domains.clone(), self.seq_lens.clone());
        Self { num_tokens: self.num_tokens, token_ids_t: Arc::default(), domains, seq_lens, layers }
    }

    /// Domain of each token's sequence.
    pub fn domains_of_tokens(&self) -> impl Iterator<Item = u32> {
        let of_sequences = self.domains.iter().zip(&self.seq_lens);
        of_sequences.flat_map(|(&domain, &len)| std::iter::repeat_n(u32::from(domain), len))
    }

    /// The routing of a layer.
    pub fn layer(&self, layer: usize) -> Option<&RoutedLayer> {
        self.layers.iter().find(|routed| routed.layer == layer)
    }
}

impl RoutedLayer {
    fn new(layer: usize, aux: MoeAux, load_balancing_bound: Option<f64>) -> Self {
        let tokens_per_expert = aux.statistics.tokens_per_expert().to_vec();
        let num_experts = tokens_per_expert.len();
        let route = aux.route;
        let choice = route.as_ref().map(|route| &route.choice);
        Self {
            layer,
            dropped_per_expert: dropped_per_expert(route.as_ref(), num_experts),
            tokens_per_expert,
            top_k: choice.filter(|choice| choice.keep_tk.is_none()).map(|choice| choice.slots_per_token),
            load_balancing_loss: None,
            load_balancing_bound,
            route,
        }
    }

    fn without_route(&self) -> Self {
        Self {
            layer: self.layer,
            tokens_per_expert: self.tokens_per_expert.clone(),
            dropped_per_expert: self.dropped_per_expert.clone(),
            top_k: self.top_k,
            load_balancing_loss: self.load_balancing_loss,
            load_balancing_bound: self.load_balancing_bound,
            route: None,
        }
    }
}

/// Assignments of each expert that did not reach it.
fn dropped_per_expert(route: Option<&Route>, num_experts: usize) -> Vec<u64> {
    let mut dropped = vec![0; num_experts];
    let Some(route) = route else { return dropped };
    let Some(kept_tk) = &route.kept_tk else { return dropped };
    for (slot, &expert) in route.choice.expert_ids_tk.iter().enumerate() {
        let is_choice = route.choice.keep_tk.as_ref().is_none_or(|keep_tk| keep_tk[slot]);
        dropped[expert as usize] += u64::from(is_choice && !kept_tk[slot]);
    }
    dropped
}

fn write_ids<S: Serializer>(ids_t: &Arc<[u32]>, serializer: S) -> Result<S::Ok, S::Error> {
    ids_t.as_ref().serialize(serializer)
}

fn read_ids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[u32]>, D::Error> {
    Vec::deserialize(deserializer).map(Arc::from)
}
