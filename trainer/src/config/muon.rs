//! `[train.muon]`: which parameters Muon trains instead of AdamW, and how.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use switchyard_model::Role;

/// `[train.muon]`: Muon (K. Jordan et al., 2024) for the matrices between hidden units, each on its own,
/// those of experts too; AdamW trains all other parameters. Updates are as large as AdamW's
/// (arXiv:2502.16982, eq. 4), so that its learning rate and schedule hold for both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MuonConfig {
    /// Whose matrices; absent is those of all four, as far as the model has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<Vec<MuonRole>>,
    /// Share of the momentum that a step keeps; default 0.95.
    #[serde(default = "default_momentum")]
    pub momentum: f64,
    /// Look one step of the momentum ahead; default true.
    #[serde(default = "super::enabled")]
    pub nesterov: bool,
    /// Newton-Schulz iterations that make an update orthogonal; default 5.
    #[serde(default = "default_newton_schulz_steps")]
    pub newton_schulz_steps: usize,
    /// Decoupled weight decay; absent is as `train.adamw` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
}

/// Parameters whose matrices Muon may train, by the words of `[[train.groups]]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MuonRole {
    /// Projections of attention: queries, keys, values and outputs, each on its own.
    Attention,
    /// Matrices of dense feed-forward blocks.
    Dense,
    /// Matrices of routed experts, each expert's on its own.
    Experts,
    /// Matrices of shared experts.
    SharedExperts,
}

impl MuonRole {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Attention, Self::Dense, Self::Experts, Self::SharedExperts];

    /// The word for it, which is that of the parameters' [group](Role::group).
    pub fn word(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Dense => "dense",
            Self::Experts => "experts",
            Self::SharedExperts => "shared_experts",
        }
    }
}

impl MuonConfig {
    /// Whether Muon trains parameters of this role.
    pub fn takes(&self, role: Role) -> bool {
        let roles = self.roles.as_deref().unwrap_or(&MuonRole::ALL);
        role.is_hidden_matrix() && roles.iter().any(|taken| taken.word() == role.group())
    }
}

fn default_momentum() -> f64 {
    0.95
}

fn default_newton_schulz_steps() -> usize {
    5
}
