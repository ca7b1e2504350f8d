//! `[train.muon]`: from what is written to what is done.

use switchyard_ground::key_checks::{below_one, in_range, not_negative};
use switchyard_ground::key_error::KeyError;
use switchyard_model::{ModelSpec, hidden_matrices};

use crate::config::{MuonConfig, MuonRole, TrainConfig};

/// Far more than bring anything: the fifth iteration is near enough.
const MAX_NEWTON_SCHULZ_STEPS: usize = 100;

/// Muon with every default filled in; `None` if AdamW trains everything.
///
/// # Errors
/// A number that cannot be used, roles of which the model has no matrix, or a parametrisation.
pub(super) fn resolve(train: &TrainConfig, model: &ModelSpec) -> Result<Option<MuonConfig>, KeyError> {
    let Some(muon) = &train.muon else { return Ok(None) };
    below_one("train.muon.momentum", muon.momentum)?;
    in_range("train.muon.newton_schulz_steps", muon.newton_schulz_steps, 1..=MAX_NEWTON_SCHULZ_STEPS)?;
    let weight_decay = muon.weight_decay.unwrap_or(train.adamw.weight_decay);
    not_negative("train.muon.weight_decay", weight_decay)?;
    if model.parametrisation.is_some() {
        let problem = "cannot go with `model.parametrisation`, whose learning-rate factors are AdamW's";
        return Err(KeyError::new("train.muon", problem, "remove one of the two tables"));
    }
    let roles = resolve_roles(muon.roles.as_deref(), model)?;
    Ok(Some(MuonConfig { roles: Some(roles), weight_decay: Some(weight_decay), ..muon.clone() }))
}

fn resolve_roles(wanted: Option<&[MuonRole]>, model: &ModelSpec) -> Result<Vec<MuonRole>, KeyError> {
    const KEY: &str = "train.muon.roles";
    let matrices = hidden_matrices(model);
    let is_there = |role: &MuonRole| matrices.iter().any(|matrix| matrix.name.role.group() == role.word());
    let there: Vec<MuonRole> = MuonRole::ALL.into_iter().filter(is_there).collect();
    let quoted = |roles: &[MuonRole]| {
        let words: Vec<String> = roles.iter().map(|role| format!("\"{}\"", role.word())).collect();
        words.join(", ")
    };
    if there.is_empty() {
        let problem = "has nothing to train: the model has neither attention nor whole feed-forward matrices";
        return Err(KeyError::new("train.muon", problem, "remove the table, and AdamW trains everything"));
    }
    let remedy = format!("use some of {}, or remove the key for all of them", quoted(&there));
    let Some(wanted) = wanted else { return Ok(there) };
    if wanted.is_empty() {
        return Err(KeyError::new(KEY, "is empty, so that Muon trains nothing", remedy));
    }
    for (index, role) in wanted.iter().enumerate() {
        if !is_there(role) {
            let problem = format!("has \"{}\", of which the model has no matrix", role.word());
            return Err(KeyError::new(KEY, problem, remedy));
        }
        if wanted[..index].contains(role) {
            return Err(KeyError::new(KEY, format!("has \"{}\" twice", role.word()), remedy));
        }
    }
    Ok(wanted.to_vec())
}
