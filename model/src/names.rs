//! What each parameter of a [`Transformer`](crate::Transformer) is called, and what it is for.
//!
//! A name such as `blocks.3.ffn.experts.gate` is stable: checkpoints hold it, messages and
//! conversions use it, and it does not change with the fields of the Rust modules. A [`Role`]
//! answers every question about a kind of parameter (does it decay, does it belong to an expert),
//! so that nobody takes a name apart.

use std::fmt;

/// A parameter's place and role. Its text form is the parameter's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParameterName {
    /// The layer; `None` outside the layers.
    pub layer: Option<usize>,
    /// What it is for.
    pub role: Role,
}

/// What a parameter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Part of the embedding.
    Embedding(EmbeddingPart),
    /// Part of a norm of rows as wide as the model.
    Norm(NormPlace, Affine),
    /// A projection of attention, and its bias.
    Attention(AttentionPart, Affine),
    /// Scale of the norm of queries, keys or a latent vector.
    QkNorm(AttentionPart),
    /// The score of each head without a key.
    AttentionSinks,
    /// Part of a long short-term memory.
    Lstm(LstmPart),
    /// A matrix of a dense feed-forward block.
    Dense(FfnMatrix),
    /// The bias of one.
    DenseBias(FfnMatrix),
    /// The blocks of a block-sparse matrix.
    BlockSparse(FfnMatrix),
    /// Part of a router.
    Router(RouterPart),
    /// A matrix of every routed expert, stacked.
    Expert(FfnMatrix),
    /// The bias of one, of every routed expert, stacked.
    ExpertBias(FfnMatrix),
    /// A matrix of the shared expert.
    Shared(FfnMatrix),
    /// The bias of one.
    SharedBias(FfnMatrix),
    /// What weighs the shared expert's output.
    SharedGate,
    /// The matrix of the logits, where it is not the embedding.
    Head,
    /// The bias of the logits.
    HeadBias,
}

/// A part of the embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EmbeddingPart {
    /// A row for each id.
    Token,
    /// A row for each position.
    Position,
}

/// Where a norm stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NormPlace {
    /// Before attention, or the LSTM in its place.
    Attention,
    /// Before the feed-forward block.
    Ffn,
    /// Before the head.
    Final,
}

/// A part of an affine map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Affine {
    /// The factors: a matrix, or the scale of a norm.
    Weight,
    /// What is added.
    Bias,
}

/// A projection of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttentionPart {
    /// Model, or the latent vector of queries, to query heads.
    Query,
    /// Model to key heads.
    Key,
    /// Model to value heads.
    Value,
    /// Heads back to the model.
    Output,
    /// Model to the latent vector of queries.
    QueryLatent,
    /// Model to the latent vector of keys and values, and to the part of the keys that is turned.
    KeyValueLatent,
    /// The latent vector of keys and values to the heads of both.
    KeyValue,
}

/// A part of a long short-term memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LstmPart {
    /// The gates' matrix of the step's input.
    Input,
    /// The gates' matrix of the step before.
    Recurrent,
    /// The gates' bias.
    Bias,
    /// Cells back to the model, where they are not as many as it is wide.
    Projection,
}

/// A matrix of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FfnMatrix {
    /// Model to hidden units, before the non-linearity; only where the activation is gated.
    Gate,
    /// Model to hidden units.
    Up,
    /// Hidden units back to the model.
    Down,
}

/// A part of a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouterPart {
    /// The matrix of the logits.
    Weight,
    /// The bias of the logits.
    Bias,
    /// The matrix of the noise's standard deviations.
    Noise,
    /// Part of a cosine gate.
    Cosine(CosinePart),
    /// The bias of the experts' selection, which gets no gradient.
    SelectionBias,
}

/// A part of a cosine gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CosinePart {
    /// Model to the gate's width.
    Projection,
    /// A direction for each expert.
    Directions,
    /// Logarithm of the factor on the cosines.
    LogScale,
}

/// Every role with its name, in a layer the part after `blocks.N.`, and its path through the fields
/// of the Rust modules.
const ROLES: [(Role, &str, &str); 62] = {
    use AttentionPart::{Key, KeyValue, KeyValueLatent, Output, Query, QueryLatent, Value};
    use CosinePart::{Directions, LogScale, Projection};
    use FfnMatrix::{Down, Gate, Up};
    [
        (Role::Embedding(EmbeddingPart::Token), "embedding.token", "embedding.token_vd"),
        (Role::Embedding(EmbeddingPart::Position), "embedding.position", "embedding.position_sd"),
        (Role::Norm(NormPlace::Attention, Affine::Weight), "attention_norm.weight", "attention_norm.scale_d"),
        (Role::Norm(NormPlace::Attention, Affine::Bias), "attention_norm.bias", "attention_norm.bias_d"),
        (Role::Norm(NormPlace::Ffn, Affine::Weight), "ffn_norm.weight", "ffn_norm.scale_d"),
        (Role::Norm(NormPlace::Ffn, Affine::Bias), "ffn_norm.bias", "ffn_norm.bias_d"),
        (Role::Norm(NormPlace::Final, Affine::Weight), "final_norm.weight", "final_norm.scale_d"),
        (Role::Norm(NormPlace::Final, Affine::Bias), "final_norm.bias", "final_norm.bias_d"),
        (Role::Attention(Query, Affine::Weight), "attention.query.weight", "mixer.query.weight_io"),
        (Role::Attention(Query, Affine::Bias), "attention.query.bias", "mixer.query.bias_o"),
        (Role::Attention(Key, Affine::Weight), "attention.key.weight", "mixer.key.weight_io"),
        (Role::Attention(Key, Affine::Bias), "attention.key.bias", "mixer.key.bias_o"),
        (Role::Attention(Value, Affine::Weight), "attention.value.weight", "mixer.value.weight_io"),
        (Role::Attention(Value, Affine::Bias), "attention.value.bias", "mixer.value.bias_o"),
        (Role::Attention(Output, Affine::Weight), "attention.output.weight", "mixer.output.weight_io"),
        (Role::Attention(Output, Affine::Bias), "attention.output.bias", "mixer.output.bias_o"),
        (
            Role::Attention(QueryLatent, Affine::Weight),
            "attention.query_latent.weight",
            "mixer.query_latent.weight_io",
        ),
        (
            Role::Attention(QueryLatent, Affine::Bias),
            "attention.query_latent.bias",
            "mixer.query_latent.bias_o",
        ),
        (
            Role::Attention(KeyValueLatent, Affine::Weight),
            "attention.key_value_latent.weight",
            "mixer.key_value_latent.weight_io",
        ),
        (
            Role::Attention(KeyValueLatent, Affine::Bias),
            "attention.key_value_latent.bias",
            "mixer.key_value_latent.bias_o",
        ),
        (
            Role::Attention(KeyValue, Affine::Weight),
            "attention.key_value.weight",
            "mixer.key_value.weight_io",
        ),
        (Role::Attention(KeyValue, Affine::Bias), "attention.key_value.bias", "mixer.key_value.bias_o"),
        (Role::QkNorm(QueryLatent), "attention.query_latent_norm.weight", "mixer.query_latent_norm_l"),
        (
            Role::QkNorm(KeyValueLatent),
            "attention.key_value_latent_norm.weight",
            "mixer.key_value_latent_norm_l",
        ),
        (Role::AttentionSinks, "attention.sinks", "mixer.sinks_h"),
        (Role::QkNorm(Query), "attention.query_norm.weight", "mixer.query_norm_k"),
        (Role::QkNorm(Key), "attention.key_norm.weight", "mixer.key_norm_k"),
        (Role::Lstm(LstmPart::Input), "lstm.input", "mixer.input_dg"),
        (Role::Lstm(LstmPart::Recurrent), "lstm.recurrent", "mixer.recurrent_dg"),
        (Role::Lstm(LstmPart::Bias), "lstm.bias", "mixer.bias_g"),
        (Role::Lstm(LstmPart::Projection), "lstm.projection", "mixer.projection_hd"),
        (Role::Dense(Gate), "ffn.gate.weight", "ffn.w_gate_df"),
        (Role::Dense(Up), "ffn.up.weight", "ffn.w_up_df"),
        (Role::Dense(Down), "ffn.down.weight", "ffn.w_down_fd"),
        (Role::DenseBias(Gate), "ffn.gate.bias", "ffn.b_gate_f"),
        (Role::DenseBias(Up), "ffn.up.bias", "ffn.b_up_f"),
        (Role::DenseBias(Down), "ffn.down.bias", "ffn.b_down_d"),
        (Role::BlockSparse(Gate), "ffn.gate.blocks", "ffn.gate_nbb"),
        (Role::BlockSparse(Up), "ffn.up.blocks", "ffn.up_nbb"),
        (Role::BlockSparse(Down), "ffn.down.blocks", "ffn.down_nbb"),
        (Role::Router(RouterPart::Weight), "ffn.router.weight", "ffn.router.weight_de"),
        (Role::Router(RouterPart::Bias), "ffn.router.bias", "ffn.router.logit_bias_e"),
        (Role::Router(RouterPart::Noise), "ffn.router.noise", "ffn.router.noise_weight_de"),
        (
            Role::Router(RouterPart::Cosine(Projection)),
            "ffn.router.cosine.projection",
            "ffn.router.cosine.projection_dc",
        ),
        (
            Role::Router(RouterPart::Cosine(Directions)),
            "ffn.router.cosine.directions",
            "ffn.router.cosine.directions_ce",
        ),
        (
            Role::Router(RouterPart::Cosine(LogScale)),
            "ffn.router.cosine.log_scale",
            "ffn.router.cosine.log_scale_1",
        ),
        (Role::Router(RouterPart::SelectionBias), "ffn.router.selection_bias", "ffn.router.bias_e"),
        (Role::Expert(Gate), "ffn.experts.gate", "ffn.experts.w_gate_edf"),
        (Role::Expert(Up), "ffn.experts.up", "ffn.experts.w_up_edf"),
        (Role::Expert(Down), "ffn.experts.down", "ffn.experts.w_down_efd"),
        (Role::ExpertBias(Gate), "ffn.experts.gate_bias", "ffn.experts.b_gate_ef"),
        (Role::ExpertBias(Up), "ffn.experts.up_bias", "ffn.experts.b_up_ef"),
        (Role::ExpertBias(Down), "ffn.experts.down_bias", "ffn.experts.b_down_ed"),
        (Role::SharedBias(Gate), "ffn.shared_expert.gate_bias", "ffn.shared_expert.b_gate_f"),
        (Role::SharedBias(Up), "ffn.shared_expert.up_bias", "ffn.shared_expert.b_up_f"),
        (Role::SharedBias(Down), "ffn.shared_expert.down_bias", "ffn.shared_expert.b_down_d"),
        (Role::Shared(Gate), "ffn.shared_expert.gate", "ffn.shared_expert.w_gate_df"),
        (Role::Shared(Up), "ffn.shared_expert.up", "ffn.shared_expert.w_up_df"),
        (Role::Shared(Down), "ffn.shared_expert.down", "ffn.shared_expert.w_down_fd"),
        (Role::SharedGate, "ffn.shared_gate", "ffn.shared_gate_d1"),
        (Role::Head, "head", "head_dv"),
        (Role::HeadBias, "head_bias", "head_bias_v"),
    ]
};

impl ParameterName {
    /// The name of a parameter outside the layers.
    pub fn of_model(role: Role) -> Self {
        Self { layer: None, role }
    }

    /// The name of a parameter of `layer`.
    pub fn of_layer(layer: usize, role: Role) -> Self {
        Self { layer: Some(layer), role }
    }

    /// The parameter with this name; `None` if no model has one.
    pub fn parse(name: &str) -> Option<Self> {
        Self::find(name, |(_, name, _)| name)
    }

    /// The parameter at this path through the fields of the Rust modules; `None` if it has no name
    /// yet.
    pub(crate) fn of_field_path(path: &str) -> Option<Self> {
        Self::find(path, |(_, _, field)| field)
    }

    /// The name in checkpoints of format versions 1 and 2, such as
    /// `blocks.3.ffn.experts.w_gate_edf`.
    pub fn before_version_3(&self) -> String {
        // They named parameters by the fields, and had attention where any mixer may be now.
        self.with_prefix(&self.role.entry().2.replacen("mixer.", "attention.", 1))
    }

    fn find(
        text: &str,
        column: impl Fn(&(Role, &'static str, &'static str)) -> &'static str,
    ) -> Option<Self> {
        let (layer, rest) = match text.strip_prefix(BLOCKS).and_then(|rest| rest.split_once('.')) {
            Some((layer, rest)) => (Some(layer.parse().ok()?), rest),
            None => (None, text),
        };
        let role = ROLES.iter().find(|entry| column(entry) == rest)?.0;
        (role.is_in_layers() == layer.is_some()).then_some(Self { layer, role })
    }

    fn with_prefix(&self, name: &str) -> String {
        match self.layer {
            Some(layer) => format!("{BLOCKS}{layer}.{name}"),
            None => name.to_owned(),
        }
    }
}

const BLOCKS: &str = "blocks.";

impl fmt::Display for ParameterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_prefix(self.role.entry().1))
    }
}

impl Role {
    /// Whether each layer has a parameter of this role of its own.
    pub fn is_in_layers(self) -> bool {
        !matches!(self, Self::Embedding(_) | Self::Norm(NormPlace::Final, _) | Self::Head | Self::HeadBias)
    }

    /// The word for parameters of its kind.
    pub fn group(self) -> &'static str {
        match self {
            Self::Embedding(_) => "embedding",
            Self::Norm(..) => "norms",
            Self::Attention(..) | Self::QkNorm(_) | Self::AttentionSinks => "attention",
            Self::Lstm(_) => "lstm",
            Self::Dense(_) | Self::DenseBias(_) | Self::BlockSparse(_) => "dense",
            Self::Router(_) => "router",
            Self::Expert(_) | Self::ExpertBias(_) => "experts",
            Self::Shared(_) | Self::SharedBias(_) | Self::SharedGate => "shared_experts",
            Self::Head | Self::HeadBias => "head",
        }
    }

    /// Whether it is a stack over routed experts.
    pub fn is_of_experts(self) -> bool {
        matches!(self, Self::Expert(_) | Self::ExpertBias(_))
    }

    /// Whether it is the matrix that ends a half of a block, whose product is added to the residual
    /// stream.
    pub fn writes_to_residual(self) -> bool {
        matches!(
            self,
            Self::Attention(AttentionPart::Output, Affine::Weight)
                | Self::Lstm(LstmPart::Projection)
                | Self::Dense(FfnMatrix::Down)
                | Self::BlockSparse(FfnMatrix::Down)
                | Self::Expert(FfnMatrix::Down)
                | Self::Shared(FfnMatrix::Down)
        )
    }

    /// Whether it is a vector: a bias, or what scales a norm or a gate. Vectors do not decay.
    pub fn is_vector(self) -> bool {
        match self {
            Self::Norm(..)
            | Self::QkNorm(_)
            | Self::DenseBias(_)
            | Self::ExpertBias(_)
            | Self::SharedBias(_)
            | Self::AttentionSinks
            | Self::HeadBias
            | Self::Attention(_, Affine::Bias)
            | Self::Lstm(LstmPart::Bias)
            | Self::Router(
                RouterPart::Bias | RouterPart::Cosine(CosinePart::LogScale) | RouterPart::SelectionBias,
            ) => true,
            Self::Embedding(_)
            | Self::Attention(_, Affine::Weight)
            | Self::Lstm(LstmPart::Input | LstmPart::Recurrent | LstmPart::Projection)
            | Self::Dense(_)
            | Self::BlockSparse(_)
            | Self::Router(RouterPart::Weight | RouterPart::Noise | RouterPart::Cosine(_))
            | Self::Expert(_)
            | Self::Shared(_)
            | Self::SharedGate
            | Self::Head => false,
        }
    }

    /// Whether it is a whole matrix between vectors of hidden units, or a stack of such: not one that
    /// knows of ids or experts, not the matrices of an LSTM, of which four lie side by side, and not
    /// blocks of a matrix whose others are zero.
    pub fn is_hidden_matrix(self) -> bool {
        matches!(
            self,
            Self::Attention(_, Affine::Weight) | Self::Dense(_) | Self::Expert(_) | Self::Shared(_)
        )
    }

    /// Its entry in [`ROLES`].
    ///
    /// # Panics
    /// If it has none, which a test excludes.
    fn entry(self) -> &'static (Role, &'static str, &'static str) {
        let entry = ROLES.iter().find(|(role, _, _)| *role == self);
        entry.unwrap_or_else(|| panic!("{self:?} has no name: add it to the table"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every role there is, made without the table.
    fn all_roles() -> Vec<Role> {
        let matrices = [FfnMatrix::Gate, FfnMatrix::Up, FfnMatrix::Down];
        let latent = [AttentionPart::QueryLatent, AttentionPart::KeyValueLatent];
        let projections = [
            AttentionPart::Query,
            AttentionPart::Key,
            AttentionPart::Value,
            AttentionPart::Output,
            AttentionPart::KeyValue,
        ];
        let projections = projections.into_iter().chain(latent);
        let lstm = [LstmPart::Input, LstmPart::Recurrent, LstmPart::Bias, LstmPart::Projection];
        let cosine = [CosinePart::Projection, CosinePart::Directions, CosinePart::LogScale];
        let affine = [Affine::Weight, Affine::Bias];
        let norms = [NormPlace::Attention, NormPlace::Ffn, NormPlace::Final];
        let of_matrix: [fn(FfnMatrix) -> Role; 7] = [
            Role::Dense,
            Role::DenseBias,
            Role::BlockSparse,
            Role::Expert,
            Role::ExpertBias,
            Role::Shared,
            Role::SharedBias,
        ];
        let router = [RouterPart::Weight, RouterPart::Bias, RouterPart::Noise, RouterPart::SelectionBias];
        let embedding = [EmbeddingPart::Token, EmbeddingPart::Position].map(Role::Embedding);
        let affine_of = |role: &dyn Fn(Affine) -> Role| affine.map(role);
        [Role::SharedGate, Role::Head, Role::HeadBias, Role::AttentionSinks]
            .into_iter()
            .chain(embedding)
            .chain([AttentionPart::Query, AttentionPart::Key].map(Role::QkNorm))
            .chain(latent.map(Role::QkNorm))
            .chain(lstm.map(Role::Lstm))
            .chain(norms.iter().flat_map(|&place| affine_of(&|part| Role::Norm(place, part))))
            .chain(projections.flat_map(|it| affine_of(&|part| Role::Attention(it, part))))
            .chain(of_matrix.iter().flat_map(|role| matrices.map(role)))
            .chain(router.map(Role::Router))
            .chain(cosine.map(|part| Role::Router(RouterPart::Cosine(part))))
            .collect()
    }

    #[test]
    fn every_role_has_one_name_and_one_field_and_is_found_by_both() {
        let roles = all_roles();
        assert_eq!(roles.len(), ROLES.len());
        for role in &roles {
            let layer = role.is_in_layers().then_some(12);
            let name = ParameterName { layer, role: *role };
            assert_eq!(ParameterName::parse(&name.to_string()), Some(name));
            let field_path = name.with_prefix(role.entry().2);
            assert_eq!(ParameterName::of_field_path(&field_path), Some(name));
        }
        let names: BTreeSet<_> = roles.iter().map(|role| role.entry().1).collect();
        assert_eq!(names.len(), roles.len());
    }

    #[test]
    fn what_is_no_name_is_not_found() {
        for text in ["", "blocks", "blocks.", "blocks.0", "blocks.x.ffn.experts.gate", "blocks.0.head"] {
            assert_eq!(ParameterName::parse(text), None, "{text}");
        }
        assert_eq!(ParameterName::parse("ffn.experts.gate"), None, "without a layer");
        assert_eq!(ParameterName::parse("blocks.0.embedding.token"), None, "in a layer");
    }
}
