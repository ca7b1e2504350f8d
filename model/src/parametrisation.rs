//! `[model.parametrisation]`: initial values, learning rates and multipliers by role, such that the
//! learning rate that is best for a small model is best for a larger one.
//!
//! Width as in muP (arXiv:2203.03466, table 8), depth as in CompleteP (arXiv:2505.01618, table 1),
//! experts by the width that is active. `docs/parametrisation.md` derives every rule.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Affine, AttentionPart, CosinePart, FfnMatrix, NormPlace, Role, RouterPart};

/// `[model.parametrisation]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ParametrisationConfig {
    /// The shape whose learning rate is transferred. A model of that shape is trained as without
    /// the table, bit for bit.
    pub base: BaseShapeConfig,
}

/// `[model.parametrisation.base]`: a shape of the same architecture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BaseShapeConfig {
    /// Width of its residual stream.
    pub d_model: usize,
    /// Its layers.
    pub num_layers: usize,
    /// Its query heads.
    pub num_heads: usize,
    /// Width of one of its heads; absent is `model.attention.d_head`, or `d_model / num_heads` where
    /// the model has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_head: Option<usize>,
    /// Hidden width of its dense blocks, exactly where the model has dense blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_ff: Option<usize>,
    /// Its routed experts, granularity applied; exactly where the model has a mixture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_experts: Option<usize>,
    /// Hidden width of one of them, granularity applied; exactly where the model has a mixture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_expert: Option<usize>,
    /// Experts of a token, granularity applied; exactly where the model has a mixture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Hidden width of its shared expert, exactly where the model has a shared expert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_shared_expert: Option<usize>,
}

/// The model's sizes over those of the base shape; of parts that it does not have, 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Parametrisation {
    /// Layers of the base shape.
    pub base_num_layers: usize,
    /// Layers.
    pub depth: f64,
    /// Width of the residual stream.
    pub width: f64,
    /// Inputs of the projection to queries: the model's width, or that of the latent vector.
    pub query_inputs: f64,
    /// Inputs of attention's output projection: all heads together.
    pub mixed_width: f64,
    /// Width of one head.
    pub d_head: f64,
    /// Hidden width of dense blocks.
    pub d_ff: f64,
    /// Hidden width of the shared expert.
    pub d_shared_expert: f64,
    /// Hidden width of one routed expert.
    pub d_expert: f64,
    /// Routed experts.
    pub num_experts: f64,
    /// Experts of a token.
    pub top_k: f64,
    /// One gate of a token: the inverse of `top_k` where its gates have one sum, and 1 where each is
    /// a number of its own.
    pub gate: f64,
}

/// What holds for the parameters of a role, over what would hold without a parametrisation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoleFactors {
    /// Standard deviation of the initial values.
    pub std: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// AdamW's epsilon: as gradients shrink, so must it.
    pub epsilon: f64,
}

impl RoleFactors {
    /// Those of a model without a parametrisation.
    pub const NONE: Self = Self { std: 1.0, learning_rate: 1.0, epsilon: 1.0 };

    /// A matrix between layers that sums over `fan_in` times as many inputs.
    fn hidden(fan_in: f64, epsilon: f64) -> Self {
        Self { std: fan_in.sqrt().recip(), learning_rate: fan_in.recip(), epsilon }
    }

    /// Initial values and rate as they are.
    fn unscaled(epsilon: f64) -> Self {
        Self { std: 1.0, learning_rate: 1.0, epsilon }
    }

    /// Decoupled weight decay. AdamW multiplies it by the learning rate; the product, which says in
    /// how many steps a weight is forgotten, stays (arXiv:2505.01618, table 1).
    pub fn weight_decay(&self) -> f64 {
        self.learning_rate.recip()
    }
}

impl Parametrisation {
    /// Factor on what each half of a block adds (arXiv:2505.01618, eq. 1, with alpha = 1).
    pub fn residual_multiplier(&self) -> f64 {
        self.depth.recip()
    }

    /// Factor on the head's scores, whose matrix keeps its initial values and its rate, tied to the
    /// embedding or not (arXiv:2203.03466, table 8).
    pub fn logits_multiplier(&self) -> f64 {
        self.width.recip()
    }

    /// What holds for the parameters of `role`.
    pub fn factors(&self, role: Role) -> RoleFactors {
        let Self { width, depth, .. } = *self;
        // The loss moves by as much as before when all `width` channels move together, so the
        // gradient of one is `width` times smaller, and that of a block's output also `depth` times.
        let (outside, inside) = (1.0 / width, 1.0 / (width * depth));
        match role {
            Role::Embedding(_) | Role::Head | Role::Norm(NormPlace::Final, _) => {
                RoleFactors::unscaled(outside)
            }
            // The multiplier of the scores is theirs too, but no sum over channels makes up for it.
            Role::HeadBias => RoleFactors { learning_rate: width, ..RoleFactors::unscaled(outside) },
            Role::Attention(AttentionPart::Query, Affine::Weight) => {
                RoleFactors::hidden(self.query_inputs, inside)
            }
            Role::Attention(AttentionPart::Output, Affine::Weight) => {
                RoleFactors::hidden(self.mixed_width, inside)
            }
            // Its inputs are the latent vector, as wide as in the base shape.
            Role::Attention(AttentionPart::KeyValue, Affine::Weight) => RoleFactors::unscaled(inside),
            Role::Attention(
                AttentionPart::Key
                | AttentionPart::Value
                | AttentionPart::QueryLatent
                | AttentionPart::KeyValueLatent,
                Affine::Weight,
            ) => RoleFactors::hidden(width, inside),
            Role::Dense(matrix) => self.of_block(matrix, self.d_ff),
            Role::Shared(matrix) => self.of_block(matrix, self.d_shared_expert),
            Role::Expert(matrix) => self.of_experts(matrix),
            Role::ExpertBias(matrix) => self.of_expert_biases(matrix),
            Role::Router(part) => self.of_router(part),
            Role::SharedGate => self.read_out(),
            Role::Norm(..)
            | Role::Attention(_, Affine::Bias)
            | Role::QkNorm(_)
            | Role::AttentionSinks
            | Role::DenseBias(_)
            | Role::SharedBias(_) => RoleFactors::unscaled(inside),
            // The configuration refuses a parametrisation beside them.
            Role::Lstm(_) | Role::BlockSparse(_) => RoleFactors::NONE,
        }
    }

    /// A matrix of a block that every token goes through.
    fn of_block(&self, matrix: FfnMatrix, d_hidden: f64) -> RoleFactors {
        match matrix {
            FfnMatrix::Gate | FfnMatrix::Up => RoleFactors::hidden(self.width, 1.0 / (d_hidden * self.depth)),
            FfnMatrix::Down => RoleFactors::hidden(d_hidden, 1.0 / (self.width * self.depth)),
        }
    }

    /// A matrix of the routed experts. A token's experts are one block of `top_k * d_expert` hidden
    /// units, whose down projection is that of the experts times the gates: that product is to have
    /// the initial values and the rate of a dense block as wide. An expert learns of the tokens that
    /// it gets, `top_k / num_experts` of all, with gradients that are smaller by that.
    fn of_experts(&self, matrix: FfnMatrix) -> RoleFactors {
        let Self { width, depth, d_expert, num_experts, top_k, gate, .. } = *self;
        match matrix {
            FfnMatrix::Gate | FfnMatrix::Up => {
                RoleFactors::hidden(width, 1.0 / (num_experts * d_expert * depth))
            }
            FfnMatrix::Down => RoleFactors {
                std: 1.0 / (gate * (top_k * d_expert).sqrt()),
                learning_rate: 1.0 / (gate * top_k * d_expert),
                epsilon: gate * top_k / (num_experts * width * depth),
            },
        }
    }

    fn of_expert_biases(&self, matrix: FfnMatrix) -> RoleFactors {
        let RoleFactors { epsilon, .. } = self.of_experts(matrix);
        match matrix {
            FfnMatrix::Gate | FfnMatrix::Up => RoleFactors::unscaled(epsilon),
            FfnMatrix::Down => {
                let learning_rate = 1.0 / (self.gate * self.top_k);
                RoleFactors { learning_rate, ..RoleFactors::unscaled(epsilon) }
            }
        }
    }

    fn of_router(&self, part: RouterPart) -> RoleFactors {
        let epsilon = 1.0 / self.depth;
        match part {
            RouterPart::Weight | RouterPart::Noise => self.read_out(),
            // Cosines do not know lengths, but how far a step turns the projection.
            RouterPart::Cosine(CosinePart::Projection) => RoleFactors::hidden(self.width, epsilon),
            RouterPart::Cosine(CosinePart::Directions | CosinePart::LogScale) | RouterPart::Bias => {
                RoleFactors::unscaled(epsilon)
            }
            // No optimizer moves it.
            RouterPart::SelectionBias => RoleFactors::NONE,
        }
    }

    /// A matrix from the model's width to a few numbers that stay a few: initial values that fall
    /// with the width, or what flows back through them would drown the gradient of all else
    /// (arXiv:2203.03466, table 3, output weights).
    fn read_out(&self) -> RoleFactors {
        let scale = self.width.recip();
        RoleFactors { std: scale, learning_rate: scale, epsilon: 1.0 / self.depth }
    }
}
