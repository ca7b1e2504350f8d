//! `[model.lstm]`: from what is written to the LSTM of each layer.

use switchyard_ground::key_checks::in_range;
use switchyard_ground::key_error::KeyError;

use super::limits::MAX_HIDDEN_WIDTH;
use crate::{LstmConfig, LstmSpec, ModelConfig};

/// # Errors
/// The first key under `model.lstm` whose value cannot be used, and keys of `[model]` that say where
/// a token stands, which an LSTM knows from going there.
pub(super) fn resolve_lstm(model: &ModelConfig, config: &LstmConfig) -> Result<LstmSpec, KeyError> {
    let without_effect =
        [("position", model.position.is_some()), ("num_positions", model.num_positions.is_some())];
    if let Some((key, _)) = without_effect.iter().find(|(_, given)| *given) {
        let problem = "has no meaning for an LSTM, which knows the order of tokens from its steps";
        return Err(KeyError::new(format!("model.{key}"), problem, "remove it"));
    }
    let d_hidden = config.d_hidden.unwrap_or(model.d_model);
    in_range("model.lstm.d_hidden", d_hidden, 1..=MAX_HIDDEN_WIDTH)?;
    let forget_bias = config.forget_bias;
    if !forget_bias.is_finite() {
        let problem = format!("is {forget_bias}");
        return Err(KeyError::new("model.lstm.forget_bias", problem, "use a finite number"));
    }
    Ok(LstmSpec { d_hidden, forget_bias })
}
