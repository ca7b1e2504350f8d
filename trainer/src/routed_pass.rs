//! Who went where in one forward pass of a training step.

use std::sync::Arc;

use switchyard_experts::{MoeAux, Route};
use switchyard_model::{ModelInput, ModelOutput};
use switchyard_router::AuxLossKind;

use crate::readings::{Reading, Readings, Values};

/// The routing of one micro-batch.
#[derive(Debug, Clone)]
pub struct RoutedPass {
    /// `[num_tokens]`, padding left out.
    pub token_ids_t: Arc<[u32]>,
    /// Domain of each sequence.
    pub domains: Vec<u16>,
    /// Tokens of each sequence.
    pub seq_lens: Vec<usize>,
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
    /// Load-balancing loss of the micro-batch, unweighted; `None` without one.
    pub load_balancing_loss: Option<f64>,
    /// Who went where; `None` where tokens are mixed softly.
    pub route: Option<Route>,
}

impl RoutedPass {
    /// What `output` tells, without its tensors. The losses are [`Self::with_losses`]'s.
    pub(crate) fn new(input: &ModelInput, domains: Vec<u16>, output: ModelOutput) -> Self {
        let layers = output.moe_layers.into_iter().map(|(layer, aux)| RoutedLayer::new(layer, aux));
        Self {
            token_ids_t: input.routed_token_ids().clone(),
            domains,
            seq_lens: input.seq_lens(),
            layers: layers.collect(),
        }
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
    fn new(layer: usize, aux: MoeAux) -> Self {
        let tokens_per_expert = aux.statistics.tokens_per_expert().to_vec();
        Self { layer, tokens_per_expert, load_balancing_loss: None, route: aux.route }
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

    /// Experts that each token chooses; `None` where that differs between tokens.
    pub fn top_k(&self) -> Option<usize> {
        let choice = &self.route.as_ref()?.choice;
        choice.keep_tk.is_none().then_some(choice.slots_per_token)
    }
}
