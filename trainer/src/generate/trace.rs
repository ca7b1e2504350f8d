//! The experts of each token.

use serde::Serialize;
use switchyard_experts::MoeAux;
use switchyard_model::Transformer;

use crate::flight::chosen_gates;

/// The experts of one token that has gone through the network.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenTrace {
    /// The prompt's place.
    pub sequence: usize,
    /// The token's place in its text, counted from 0, the prompt's tokens first.
    pub position: usize,
    /// The token.
    pub token_id: u32,
    /// Its experts in each layer that has some and chooses among them.
    pub layers: Vec<LayerTrace>,
}

/// The experts of one token in one layer, in the order of choice.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerTrace {
    /// The layer, counted from 0.
    pub layer: usize,
    /// Ids of the experts that the token reached.
    pub experts: Vec<u32>,
    /// The weight of each.
    pub gates: Vec<f32>,
}

/// The experts of row `row` of a pass over `num_rows`.
pub(super) fn token_traces(
    model: &Transformer,
    moe_layers: &[(usize, MoeAux)],
    num_rows: usize,
    row: usize,
) -> Vec<LayerTrace> {
    let of_layer = |(layer, aux): &(usize, MoeAux)| {
        let (route, moe) = (aux.route.as_ref()?, model.moe(*layer)?);
        let (experts, gates) = chosen_gates(moe.router.config(), route, num_rows, row).into_iter().unzip();
        Some(LayerTrace { layer: *layer, experts, gates })
    };
    moe_layers.iter().filter_map(of_layer).collect()
}
