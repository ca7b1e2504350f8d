//! Memory that the network holds during a training step beside its parameters, by arithmetic alone.
//!
//! What a part keeps for the backward pass is what its operations save under burn-autodiff: the
//! kernels' hand-written ones their inputs and a few results (the structs `Saved...` there), an
//! addition nothing, a multiplication both factors. A tensor that two operations save is there
//! once.
//!
//! Letters in formulas: t tokens of the pass, d model width, q = query heads * head width, g =
//! key/value heads * head width, h query heads, c cells of an LSTM, s sequence length, v vocabulary.

use switchyard_experts::{FfnSpec, Footprint, PassSize};
use switchyard_kernels::{FfnOptions, attention_elements_per_thread, num_logits_held};

use crate::counts::mixer_params;
use crate::{AttentionSpec, LayerSpec, LstmSpec, MixerSpec, ModelSpec, NormKind, Residual};

/// Bytes of one f32, the type of tensors.
const F32_BYTES: f64 = 4.0;

/// Memory of a model's parts in one forward and backward pass.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelFootprint {
    /// The layers, the first one first.
    pub layers: Vec<LayerFootprint>,
    /// Embedding, final norm, head and loss.
    pub head: HeadFootprint,
    /// One residual stream, `[t, d]`, or its gradient.
    pub stream_bytes: f64,
}

/// Memory of one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerFootprint {
    /// Attention, or the LSTM in its place, and the norm before it.
    pub mixer: Footprint,
    /// Parameters of it and of its norm.
    pub mixer_param_bytes: f64,
    /// The feed-forward block and the norm before it.
    pub ffn: Footprint,
    /// Parameters of the feed-forward block and of its norm.
    pub ffn_param_bytes: f64,
}

/// Memory of what lies before the first layer and behind the last.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadFootprint {
    /// Parameters of the embedding, `[v, d]`.
    pub embedding_bytes: f64,
    /// Gradient of the head's matrix, `[d, v]`, which the loss computes in the forward pass.
    pub gradient_bytes: f64,
    /// Whether the head's matrix is the embedding's.
    pub is_tied: bool,
    /// Kept until the backward pass: the input of the final norm, and dropout's mask of the
    /// embedding.
    pub kept_bytes: f64,
    /// Buffers of the loss: the rows that it reads, their gradient, and the logits of a part of
    /// them.
    pub loss_bytes: f64,
}

impl ModelFootprint {
    /// Memory of passes over `micro_batch_tokens` tokens, in sequences of the full length, whose
    /// feed-forward blocks are computed as `options` say.
    pub fn of(spec: &ModelSpec, micro_batch_tokens: usize, options: FfnOptions) -> Self {
        let pass = PassSize { micro_batch_tokens, seq_len: spec.max_seq_len };
        let stream_bytes = F32_BYTES * micro_batch_tokens as f64 * spec.d_model as f64;
        let matrix_bytes = F32_BYTES * spec.vocab_size as f64 * spec.d_model as f64;
        let logits = num_logits_held(micro_batch_tokens, spec.vocab_size) as f64;
        let masks = if spec.dropout > 0.0 { 1.0 } else { 0.0 };
        Self {
            layers: spec.layers.iter().map(|layer| LayerFootprint::of(layer, spec, pass, options)).collect(),
            head: HeadFootprint {
                embedding_bytes: matrix_bytes,
                gradient_bytes: matrix_bytes,
                is_tied: spec.tie_embeddings,
                kept_bytes: (1.0 + masks) * stream_bytes,
                loss_bytes: 2.0 * stream_bytes + F32_BYTES * logits,
            },
            stream_bytes,
        }
    }

    /// Most bytes that a thread has of its own in one part.
    pub fn thread_bytes(&self) -> f64 {
        let parts = self.layers.iter().flat_map(|layer| [layer.mixer, layer.ffn]);
        parts.map(|part| part.thread_bytes).fold(0.0, f64::max)
    }

    /// The largest matrix, or stack of matrices.
    pub fn largest_param_bytes(&self) -> f64 {
        let parts = self.layers.iter().flat_map(|layer| [layer.mixer, layer.ffn]);
        parts.map(|part| part.largest_param_bytes).fold(self.head.embedding_bytes, f64::max)
    }
}

impl LayerFootprint {
    fn of(layer: &LayerSpec, spec: &ModelSpec, pass: PassSize, options: FfnOptions) -> Self {
        let (t, d) = (pass.micro_batch_tokens as f64, spec.d_model as f64);
        let params = layer.ffn.params(spec.d_model, pass);
        let ffn_params = params
            .dense
            .saturating_add(params.block_sparse)
            .saturating_add(params.router)
            .saturating_add(params.routed_experts)
            .saturating_add(params.shared_experts);
        // The norm keeps its input, and the block the norm's output. Halves side by side share
        // both. Without a norm the block keeps the stream itself.
        let of_norm = if spec.norm == NormKind::Off { 1.0 } else { 2.0 };
        let mask_widths = if spec.dropout > 0.0 { 1.0 } else { 0.0 };
        let block = layer.ffn.footprint(spec.d_model, pass, options);
        let ffn_widths = match (&layer.ffn, layer.residual) {
            (FfnSpec::Absent, _) => 0.0,
            (_, Residual::Parallel) => mask_widths,
            _ => of_norm + mask_widths,
        };
        let stream_bytes = F32_BYTES * t * d * ffn_widths;
        let of_mixer = match &layer.mixer {
            MixerSpec::Attention(attention) => attention.footprint(t, spec),
            MixerSpec::Lstm(lstm) => lstm.footprint(t, spec.d_model),
        };
        let kept_bytes = of_mixer.kept_bytes + F32_BYTES * t * d * (of_norm + mask_widths);
        Self {
            mixer: Footprint { kept_bytes, ..of_mixer },
            mixer_param_bytes: F32_BYTES * mixer_params(&layer.mixer, spec.d_model as u64) as f64,
            ffn: Footprint { kept_bytes: block.kept_bytes + stream_bytes, ..block },
            ffn_param_bytes: F32_BYTES * ffn_params as f64,
        }
    }
}

impl AttentionSpec {
    /// Queries, keys, values and their mixture are kept (2 q + 2 g), and each query's log-partition
    /// (h); with QK-norm also queries and keys before it (q + g). The backward pass makes the
    /// gradients of the mixture, of queries, keys and values.
    fn footprint(&self, num_tokens: f64, spec: &ModelSpec) -> Footprint {
        let (q, g, h) = (self.query_width() as f64, self.key_width() as f64, self.num_heads as f64);
        let before_norm = if self.qk_norm.settings().is_some() { q + g } else { 0.0 };
        Footprint {
            kept_bytes: F32_BYTES * num_tokens * (2.0 * q + 2.0 * g + h + before_norm),
            backward_bytes: F32_BYTES * num_tokens * (2.0 * q + 2.0 * g),
            thread_bytes: F32_BYTES
                * attention_elements_per_thread(spec.max_seq_len, self.d_head, self.d_value()) as f64,
            largest_param_bytes: F32_BYTES * spec.d_model as f64 * q,
            ..Footprint::default()
        }
    }
}

impl LstmSpec {
    /// The inputs in the order of steps are kept (d), and of each step the gates before and the
    /// factors of products behind their non-linearities (4 c + 4 c), the cells before and behind
    /// theirs (2 c), and what it gives to the next one (d), before a projection too (c). The backward
    /// pass makes the gradient of the gates, and for the pieces that they are cut into as much again.
    fn footprint(&self, num_tokens: f64, d_model: usize) -> Footprint {
        let (c, d) = (self.d_hidden as f64, d_model as f64);
        let projected = if self.has_projection(d_model) { c } else { 0.0 };
        Footprint {
            kept_bytes: F32_BYTES * num_tokens * (10.0 * c + 2.0 * d + projected),
            backward_bytes: F32_BYTES * num_tokens * (8.0 * c + d),
            largest_param_bytes: F32_BYTES * 4.0 * c * d,
            ..Footprint::default()
        }
    }
}
