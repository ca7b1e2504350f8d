//! What a recurrent model hands from one window of a text to the next.

use burn::tensor::Tensor;

use crate::{LstmState, MixerSpec, ModelSpec};

/// What a recurrent model hands from one window of a text to the next, of each sequence of a batch.
#[derive(Debug, Clone)]
pub struct ModelState {
    /// First layer first.
    pub layers: Vec<LstmState>,
}

/// A part of a state, with the name that checkpoints have for it.
#[derive(Debug, Clone)]
pub struct StateTensor {
    /// Such as `blocks.0.lstm.cell`.
    pub name: String,
    /// `[sequences, width]`
    pub values_bw: Tensor<2>,
}

impl ModelState {
    /// That of `len` sequences, from number `first` on.
    pub fn rows(&self, first: usize, len: usize) -> Self {
        Self { layers: self.layers.iter().map(|layer| layer.rows(first, len)).collect() }
    }

    /// Those of several batches as one; `None` if one of them has none, or there are no batches.
    pub fn stacked(states: Vec<Option<Self>>) -> Option<Self> {
        let states = states.into_iter().collect::<Option<Vec<_>>>()?;
        let num_layers = states.first()?.layers.len();
        let of_layer = |layer: usize| states.iter().map(|state| state.layers[layer].clone()).collect();
        Some(Self { layers: (0..num_layers).map(|layer| LstmState::stacked(of_layer(layer))).collect() })
    }

    /// Its parts, first layer first.
    pub fn tensors(&self) -> Vec<StateTensor> {
        let parts = |(layer, state): (usize, &LstmState)| {
            let [hidden, cell] = names(layer);
            [(hidden, &state.hidden_bd), (cell, &state.cell_bh)]
                .map(|(name, values_bw)| StateTensor { name, values_bw: values_bw.clone() })
        };
        self.layers.iter().enumerate().flat_map(parts).collect()
    }
}

impl ModelSpec {
    /// Name and width of each part of the state of one sequence, in the order of
    /// [`ModelState::tensors`]; none unless the model is recurrent.
    pub fn state_parts(&self) -> Vec<(String, usize)> {
        let mut parts = Vec::new();
        for (layer, spec) in self.layers.iter().enumerate() {
            if let MixerSpec::Lstm(lstm) = &spec.mixer {
                parts.extend(names(layer).into_iter().zip([self.d_model, lstm.d_hidden]));
            }
        }
        parts
    }

    /// The state whose parts have these values.
    ///
    /// # Shapes
    /// - `values`: `[sequences, width]` for each of [`ModelSpec::state_parts`]
    pub fn state_of(&self, values: Vec<Tensor<2>>) -> ModelState {
        let of_layer =
            |parts: &[Tensor<2>]| LstmState { hidden_bd: parts[0].clone(), cell_bh: parts[1].clone() };
        ModelState { layers: values.as_chunks::<2>().0.iter().map(|parts| of_layer(parts)).collect() }
    }
}

/// What checkpoints call the parts of a layer's state: what its last step gave, and its cells.
fn names(layer: usize) -> [String; 2] {
    ["hidden", "cell"].map(|part| format!("blocks.{layer}.lstm.{part}"))
}
