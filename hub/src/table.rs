//! Tables of tensors: for each of our parameters, where a family publishes it.

use switchyard_experts::{ExpertsSpec, FfnSpec};
use switchyard_model::{
    Affine, AttentionPart, AttentionSpec, EmbeddingPart, FfnMatrix, MixerSpec, ModelSpec, NormPlace,
    ParameterName, PositionKind, Role, RouterPart,
};

use crate::layout::{Channels, Mapping, Pairs, Part, rotary_channels};

/// A table in the making.
pub(crate) struct Table<'a> {
    pub(crate) spec: &'a ModelSpec,
    mappings: Vec<Mapping>,
}

/// Names of a mixture after the prefix of its layer, such as `model.layers.3.`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MoeNames {
    /// The gate's matrix, by all its names.
    pub(crate) router: &'static [&'static str],
    /// The bias of the choice, by all its names.
    pub(crate) selection_bias: &'static [&'static str],
    /// Whether that bias is published as `[1, experts]`.
    pub(crate) selection_bias_is_row: bool,
    /// Before the number of an expert, as `mlp.experts.`.
    pub(crate) expert: &'static str,
    /// After it, gate, up and down.
    pub(crate) matrices: [&'static str; 3],
    /// Stacks of all experts, gate and up in one, and down.
    pub(crate) fused: [&'static str; 2],
    /// Before the shared expert's matrices.
    pub(crate) shared: &'static str,
}

/// Names of a Llama-like decoder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecoderNames {
    /// The norms of a layer: of attention, and of the feed-forward block.
    pub(crate) norms: [&'static str; 2],
    /// Which channels turn together.
    pub(crate) pairs: Pairs,
    /// The mixtures; dense families have none.
    pub(crate) moe: Option<MoeNames>,
}

/// Gate, up and down of a block with names as Llama's.
pub(crate) const GATE_UP_DOWN: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];
const MATRICES: [FfnMatrix; 3] = [FfnMatrix::Gate, FfnMatrix::Up, FfnMatrix::Down];

impl<'a> Table<'a> {
    pub(crate) fn new(spec: &'a ModelSpec) -> Self {
        Self { spec, mappings: Vec::new() }
    }

    pub(crate) fn finish(self) -> Vec<Mapping> {
        self.mappings
    }

    /// A parameter that is a matrix or vector, in any of these forms.
    pub(crate) fn one_of(&mut self, layer: Option<usize>, role: Role, forms: Vec<Part>) {
        self.stack(layer, role, forms.into_iter().map(|part| vec![part]).collect());
    }

    /// A parameter in one form.
    pub(crate) fn one(&mut self, layer: Option<usize>, role: Role, part: Part) {
        self.one_of(layer, role, vec![part]);
    }

    /// A stack of matrices or vectors in any of these forms.
    pub(crate) fn stack(&mut self, layer: Option<usize>, role: Role, forms: Vec<Vec<Part>>) {
        self.mappings.push(Mapping { ours: ParameterName { layer, role }, forms });
    }

    /// Scale, and offset if the norm has one, of `width` elements.
    pub(crate) fn norm(&mut self, layer: Option<usize>, place: NormPlace, name: &str) {
        let width = self.spec.d_model;
        self.one(layer, Role::Norm(place, Affine::Weight), Part::vector(format!("{name}.weight"), width));
        if matches!(self.spec.norm, switchyard_model::NormKind::Layer { bias: true, .. }) {
            self.one(layer, Role::Norm(place, Affine::Bias), Part::vector(format!("{name}.bias"), width));
        }
    }

    /// Embedding, head and the norm before it; the head may have several names.
    pub(crate) fn ends(&mut self, embedding: &str, final_norm: &str, heads: &[&str]) {
        let (v, d) = (self.spec.vocab_size, self.spec.d_model);
        self.one(None, Role::Embedding(EmbeddingPart::Token), Part::as_is(embedding, [v, d]));
        if self.spec.has_final_norm() {
            self.norm(None, NormPlace::Final, final_norm);
        }
        if !self.spec.tie_embeddings {
            let forms = heads.iter().map(|head| Part::linear(format!("{head}.weight"), [d, v])).collect();
            self.one_of(None, Role::Head, forms);
        }
        if self.spec.head_bias {
            let forms = heads.iter().map(|head| Part::vector(format!("{head}.bias"), v)).collect();
            self.one_of(None, Role::HeadBias, forms);
        }
    }

    /// The attention of a layer.
    ///
    /// # Panics
    /// If it has none, which no family has.
    pub(crate) fn attention_of(&self, layer: usize) -> &'a AttentionSpec {
        match &self.spec.layers[layer].mixer {
            MixerSpec::Attention(attention) => attention,
            MixerSpec::Lstm(_) => panic!("layer {layer} has no attention"),
        }
    }

    /// The channels of heads of queries or keys that positions turn, in the published order.
    pub(crate) fn turned_channels(&self, layer: usize, num_heads: usize, pairs: Pairs) -> Channels {
        let PositionKind::Rope { d_rotary, .. } = self.spec.position else { return Channels::All };
        let d_head = self.attention_of(layer).d_head;
        rotary_channels(num_heads, d_head, d_rotary.unwrap_or(d_head), pairs)
    }

    /// One projection of attention, its matrix and its bias if it has one.
    pub(crate) fn projection(
        &mut self,
        layer: usize,
        part: AttentionPart,
        name: &str,
        sizes: [usize; 2],
        channels: Channels,
    ) {
        let output = sizes[1];
        let weight = Part::linear(format!("{name}.weight"), sizes).channels(channels.clone(), output);
        self.one(Some(layer), Role::Attention(part, Affine::Weight), weight);
        if self.attention_of(layer).has_bias(part) {
            let bias = Part::vector(format!("{name}.bias"), output).channels(channels, output);
            self.one(Some(layer), Role::Attention(part, Affine::Bias), bias);
        }
    }

    /// Separate projections with names as Llama's, and norms of queries and keys.
    fn separate_attention(&mut self, layer: usize, prefix: &str, pairs: Pairs) {
        let it = self.attention_of(layer);
        let d = self.spec.d_model;
        let [q, g] = [it.query_width(), it.key_width()];
        let [q_channels, k_channels] =
            [it.num_heads, it.num_kv_heads].map(|heads| self.turned_channels(layer, heads, pairs));
        let name = |part: &str| format!("{prefix}self_attn.{part}_proj");
        self.projection(layer, AttentionPart::Query, &name("q"), [d, q], q_channels.clone());
        self.projection(layer, AttentionPart::Key, &name("k"), [d, g], k_channels.clone());
        self.projection(layer, AttentionPart::Value, &name("v"), [d, g], Channels::All);
        self.projection(layer, AttentionPart::Output, &name("o"), [q, d], Channels::All);
        for (part, name, width, channels) in
            [(AttentionPart::Query, "q_norm", q, q_channels), (AttentionPart::Key, "k_norm", g, k_channels)]
        {
            let scale_width = it.qk_norm.scale_width(width, it.d_head);
            if scale_width == 0 {
                continue;
            }
            let channels = match scale_width == width {
                true => channels,
                false => self.turned_channels(layer, 1, pairs),
            };
            let name = format!("{prefix}self_attn.{name}.weight");
            let scale = Part::vector(name, scale_width).channels(channels, scale_width);
            self.one(Some(layer), Role::QkNorm(part), scale);
        }
        if it.sinks {
            let sinks = Part::vector(format!("{prefix}self_attn.sinks"), it.num_heads);
            self.one(Some(layer), Role::AttentionSinks, sinks);
        }
    }

    /// A dense block of these names after `prefix`; of a block that is not gated, up and down.
    pub(crate) fn dense(&mut self, layer: usize, prefix: &str, names: [&str; 3]) {
        let FfnSpec::Dense(dense) = &self.spec.layers[layer].ffn else { return };
        let (gated, biased, f) = (dense.activation.is_gated(), dense.bias, dense.d_ff);
        self.block(layer, prefix, (names, f), [gated, biased], [Role::Dense, Role::DenseBias]);
    }

    fn block(
        &mut self,
        layer: usize,
        prefix: &str,
        (names, d_hidden): ([&str; 3], usize),
        [gated, biased]: [bool; 2],
        [weight, bias]: [fn(FfnMatrix) -> Role; 2],
    ) {
        let d = self.spec.d_model;
        for (matrix, name) in MATRICES.into_iter().zip(names) {
            if matrix == FfnMatrix::Gate && !gated {
                continue;
            }
            let sizes = if matrix == FfnMatrix::Down { [d_hidden, d] } else { [d, d_hidden] };
            let part = Part::linear(format!("{prefix}{name}.weight"), sizes);
            self.one(Some(layer), weight(matrix), part);
            if biased {
                let part = Part::vector(format!("{prefix}{name}.bias"), sizes[1]);
                self.one(Some(layer), bias(matrix), part);
            }
        }
    }

    /// A mixture of these names after `prefix`.
    fn mixture(&mut self, layer: usize, prefix: &str, names: &MoeNames) {
        let FfnSpec::Moe(moe) = &self.spec.layers[layer].ffn else { return };
        let (d, experts) = (self.spec.d_model, &moe.experts);
        let e = experts.num_experts;
        let router = names.router.iter().map(|name| Part::linear(format!("{prefix}{name}"), [d, e]));
        self.one_of(Some(layer), Role::Router(RouterPart::Weight), router.collect());
        if moe.router.config.bias.is_some() {
            let part = |name: &&str| {
                let part = Part::vector(format!("{prefix}{name}"), e);
                if names.selection_bias_is_row { part.stacked(0, 1) } else { part }
            };
            let forms = names.selection_bias.iter().map(part).collect();
            self.one_of(Some(layer), Role::Router(RouterPart::SelectionBias), forms);
        }
        self.experts(layer, prefix, names, experts);
        if let Some(shared) = &experts.shared {
            let prefix = format!("{prefix}{}", names.shared);
            let flags = [true, shared.bias];
            let roles: [fn(FfnMatrix) -> Role; 2] = [Role::Shared, Role::SharedBias];
            self.block(layer, &format!("{prefix}."), (GATE_UP_DOWN, shared.d_expert), flags, roles);
            if shared.is_gated {
                let gate = Part::linear(format!("{prefix}_gate.weight"), [d, 1]);
                self.one(Some(layer), Role::SharedGate, gate);
            }
        }
    }

    /// The routed experts, a tensor each or stacked.
    fn experts(&mut self, layer: usize, prefix: &str, names: &MoeNames, experts: &ExpertsSpec) {
        let (d, e, f) = (self.spec.d_model, experts.num_experts, experts.d_expert);
        for (matrix, name) in MATRICES.into_iter().zip(names.matrices) {
            let (sizes, fused, channels, output) = match matrix {
                FfnMatrix::Gate => ([d, f], names.fused[0], Channels::Range(0..f), 2 * f),
                FfnMatrix::Up => ([d, f], names.fused[0], Channels::Range(f..2 * f), 2 * f),
                FfnMatrix::Down => ([f, d], names.fused[1], Channels::All, d),
            };
            let each = |expert: usize| {
                Part::linear(format!("{prefix}{}{expert}.{name}.weight", names.expert), sizes)
            };
            let stacked = |expert: usize| {
                let part = Part::linear(format!("{prefix}{fused}"), sizes);
                part.channels(channels.clone(), output).stacked(expert, e)
            };
            let stack = (0..e).map(stacked).collect();
            let forms = match names.expert.is_empty() {
                true => vec![stack],
                false => vec![(0..e).map(each).collect(), stack],
            };
            self.stack(Some(layer), Role::Expert(matrix), forms);
        }
    }

    /// A whole Llama-like decoder.
    pub(crate) fn decoder(mut self, names: &DecoderNames) -> Self {
        self.ends("model.embed_tokens.weight", "model.norm", &["lm_head"]);
        for layer in 0..self.spec.num_layers() {
            let prefix = format!("model.layers.{layer}.");
            let [attention_norm, ffn_norm] = names.norms;
            self.norm(Some(layer), NormPlace::Attention, &format!("{prefix}{attention_norm}"));
            self.norm(Some(layer), NormPlace::Ffn, &format!("{prefix}{ffn_norm}"));
            match self.attention_of(layer).latent {
                Some(_) => self.latent_attention(layer, &prefix, names.pairs),
                None => self.separate_attention(layer, &prefix, names.pairs),
            }
            self.dense(layer, &format!("{prefix}mlp."), GATE_UP_DOWN);
            if let Some(moe) = &names.moe {
                self.mixture(layer, &prefix, moe);
            }
        }
        self
    }

    /// Latent attention: a query head ends with the turned channels, and the latent projection of
    /// keys and values with those that all heads share.
    fn latent_attention(&mut self, layer: usize, prefix: &str, pairs: Pairs) {
        let it = self.attention_of(layer);
        let Some(latent) = &it.latent else { return };
        let (d, h, q) = (self.spec.d_model, it.num_heads, it.query_width());
        let (l, r) = (latent.d_key_value, latent.d_rope);
        let n = it.d_head - r;
        let name = |part: &str| format!("{prefix}self_attn.{part}");
        let turned = match rotary_channels(1, r, r, pairs) {
            Channels::Listed(listed) => listed,
            Channels::All | Channels::Range(_) => (0..r).collect(),
        };
        let behind = |start: usize| turned.iter().map(move |channel| start + channel);
        let of_head = |head: usize| {
            let start = head * (n + r);
            (start..start + n).chain(behind(start + n)).collect::<Vec<_>>()
        };
        let q_channels = Channels::Listed((0..h).flat_map(of_head).collect());
        let latent_channels = Channels::Listed((0..l).chain(behind(l)).collect());
        match latent.d_query {
            Some(width) => {
                let part = AttentionPart::QueryLatent;
                self.projection(layer, part, &name("q_a_proj"), [d, width], Channels::All);
                let norm = Part::vector(name("q_a_layernorm.weight"), width);
                self.one(Some(layer), Role::QkNorm(part), norm);
                self.projection(layer, AttentionPart::Query, &name("q_b_proj"), [width, q], q_channels);
            }
            None => self.projection(layer, AttentionPart::Query, &name("q_proj"), [d, q], q_channels),
        }
        let part = AttentionPart::KeyValueLatent;
        self.projection(layer, part, &name("kv_a_proj_with_mqa"), [d, l + r], latent_channels);
        let norm = Part::vector(name("kv_a_layernorm.weight"), l);
        self.one(Some(layer), Role::QkNorm(part), norm);
        let heads = h * (n + latent.d_value);
        self.projection(layer, AttentionPart::KeyValue, &name("kv_b_proj"), [l, heads], Channels::All);
        let mixed = it.mixed_width();
        self.projection(layer, AttentionPart::Output, &name("o_proj"), [mixed, d], Channels::All);
    }
}
