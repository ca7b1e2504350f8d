//! The plan as a page for people: what `switchyard plan FILE` prints.

mod memory;
mod training;

use std::fmt::Write;

use switchyard_experts::{Activation, BlockSparseSpec, FfnSpec, TopologyKind};
use switchyard_ground::units::{exact, grouped, plural, scaled};
use switchyard_kernels::Products;
use switchyard_model::{
    Affine, AttentionPart, AttentionSpec, Compute, FfnMatrix, FfnUse, LstmSpec, MixerSpec, NormKind,
    PositionKind, QkNormOver, Residual, Role, RouterPart,
};

use super::{RunPlan, router};

/// A label and what stands beside it; an empty label continues the row above.
type Row = (&'static str, String);

impl RunPlan {
    /// The plan as aligned text of several lines, ending in a line break.
    pub fn describe(&self) -> String {
        let rows: Vec<Row> = [
            self.model_rows(),
            self.parameter_rows(),
            self.cost_rows(),
            self.memory_rows(),
            self.run_rows(),
            self.notes.iter().map(|note| ("note", note.clone())).collect(),
        ]
        .concat();
        let width = rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
        let mut page = format!("{}\n\n", self.name);
        for (label, text) in rows {
            // Writing to a String cannot fail.
            let _ = writeln!(page, "{label:width$}  {text}");
        }
        page
    }

    fn model_rows(&self) -> Vec<Row> {
        let model = &self.model;
        let mut rows = vec![
            ("model", format!("{} layers of width {}", model.num_layers(), model.d_model)),
            self.mixer_row(),
            ("positions", self.position_name().to_owned()),
            ("norm", self.norm_name().to_owned()),
        ];
        for used in model.ffn_uses() {
            match used.ffn {
                FfnSpec::Dense(dense) => {
                    let name = activation_name(dense.activation);
                    rows.push(("dense blocks", format!("{name} of width {}", dense.d_ff)));
                }
                FfnSpec::BlockSparse(sparse) => rows.push(("block-sparse", self.block_sparse_text(sparse))),
                // They have a common part.
                FfnSpec::Moe(_) | FfnSpec::SoftMoe(_) => {}
                // The layer map shows it.
                FfnSpec::Absent => {}
            }
        }
        rows.extend(self.mixture_rows());
        rows.extend(self.parametrisation_row());
        rows.push(("layer map", self.layer_map()));
        let head = if model.tie_embeddings { "tied to" } else { "separate from" };
        let vocab_size = grouped(model.vocab_size as u64);
        rows.push(("vocabulary", format!("{vocab_size} tokens, head {head} the embedding")));
        rows
    }

    /// How the model's sizes are over those that the learning rate is transferred from, and what that
    /// makes of the rates of matrices.
    fn parametrisation_row(&self) -> Option<Row> {
        let parametrisation = self.model.parametrisation?;
        let rate = |role| parametrisation.factors(role).learning_rate;
        let inputs = Role::Attention(AttentionPart::Value, Affine::Weight);
        let mixture = match self.model.mixture_uses().is_empty() {
            true => String::new(),
            false => format!(
                ", experts' down {:.3}, routers {:.3}",
                rate(Role::Expert(FfnMatrix::Down)),
                rate(Role::Router(RouterPart::Weight))
            ),
        };
        let text = format!(
            "transferred: width x{:.3}, depth x{:.3} of the base; rates of matrices from the stream x{:.3}{mixture}; \
             blocks add x{:.3}, logits x{:.3}",
            parametrisation.width,
            parametrisation.depth,
            rate(inputs),
            parametrisation.residual_multiplier(),
            parametrisation.logits_multiplier(),
        );
        Some(("parametrisation", text))
    }

    /// What mixes tokens: in all layers what it is in the first.
    fn mixer_row(&self) -> Row {
        let Some(layer) = self.model.layers.first() else { return ("attention", String::new()) };
        let side = match layer.residual {
            Residual::Sequential => "",
            Residual::Parallel => ", beside the feed-forward block",
            Residual::ParallelNorms => ", beside the feed-forward block, each after its own norm",
            Residual::OutputNorm => ", normalised before it is added",
            Residual::PostNorm => ", the sum normalised",
        };
        let (label, text) = match &layer.mixer {
            MixerSpec::Attention(attention) => ("attention", attention_text(attention)),
            MixerSpec::Lstm(lstm) => ("lstm", self.lstm_text(lstm)),
        };
        (label, text + side)
    }

    fn lstm_text(&self, lstm: &LstmSpec) -> String {
        let projected = match lstm.has_projection(self.model.d_model) {
            true => format!(", projected to {}", self.model.d_model),
            false => String::new(),
        };
        let state = match self.carries_state {
            true => "carried from window to window",
            false => "empty at the beginning of each window",
        };
        format!("{} cells{projected}, the state {state}", lstm.d_hidden)
    }

    /// The mixture that most layers have, the first of several; then the others.
    fn mixture_rows(&self) -> Vec<Row> {
        let mut uses = self.model.mixture_uses();
        let num_layers = |used: &FfnUse<'_>| used.layers.len();
        let most = uses.iter().map(num_layers).max();
        let Some(index) = uses.iter().position(|used| Some(num_layers(used)) == most) else {
            return Vec::new();
        };
        let main = uses.remove(index).ffn;
        let Some((experts, _)) = main.routed() else { return Vec::new() };
        let activation = activation_name(experts.activation);
        let text = [
            Some(format!("{} {activation} experts of width {}", experts.num_experts, experts.d_expert)),
            router::experts_of_token(self, main),
            experts.granularity.map(|granularity| format!("granularity {granularity}")),
            experts.shared.as_ref().map(|shared| format!("a shared expert of width {}", shared.d_expert)),
            router::limit(main),
        ];
        let text = text.into_iter().flatten().collect::<Vec<_>>().join(", ");
        let mut rows = vec![("mixture", text), ("router", router::describe(main))];
        rows.extend(uses.iter().map(|used| {
            let words = [
                Some(format!("in {}", used.layers_in_words())),
                router::experts_of_token(self, used.ffn),
                router::limit(used.ffn),
                Some(router::describe(used.ffn)),
            ];
            ("other router", words.into_iter().flatten().collect::<Vec<_>>().join(", "))
        }));
        rows
    }

    /// What products compute with, unless it is f32.
    fn precision_row(&self) -> Option<Row> {
        let here = match Products::of(self.compute) {
            Products::F32 => return None,
            Products::RoundedF32 => "here by f32 instructions: less memory, and slower than f32",
            Products::Avx512Bf16 => "here by AVX512-BF16",
            Products::Amx => "here by matrix units (AMX), with bits of their own",
        };
        let portable = match self.compute {
            Compute::PortableBf16 => " without matrix units",
            Compute::F32 | Compute::Bf16 => "",
        };
        let text =
            format!("factors of products in bf16{portable}, {here}; parameters, gradients and sums in f32");
        Some(("precision", text))
    }

    /// What the FLOPs hold, where that is more than a reader would expect.
    fn counted_rows(&self) -> Vec<Row> {
        const PRODUCTS: &str = "counted: matrix products, a multiply and an add as two, attention as causal; training three \
                                times the forward pass";
        let mixtures = self.model.mixture_uses();
        let is_alone = mixtures.len() == 1;
        let work = mixtures.into_iter().filter_map(|used| {
            let work = router::counted_work(self, used.ffn)?;
            let place = if is_alone { String::new() } else { format!(" in {}", used.layers_in_words()) };
            Some(("", format!("counted{place}: {work}")))
        });
        [("", PRODUCTS.to_owned())].into_iter().chain(work).collect()
    }

    fn block_sparse_text(&self, spec: &BlockSparseSpec) -> String {
        let config = &spec.matrices;
        let topology = match config.kind() {
            TopologyKind::Random {} => "at random",
            TopologyKind::SmallWorld { .. } => "as a small world",
            TopologyKind::BarabasiAlbert {} => "by preferential attachment",
        };
        let d_model = self.model.d_model;
        let num_places = d_model / config.block * (config.d_ff / config.block);
        format!(
            "{} of width {}, {} of {num_places} blocks of side {} in each matrix, {topology}",
            activation_name(spec.activation),
            config.d_ff,
            config.num_blocks(d_model),
            config.block
        )
    }

    /// One letter per layer: `D` dense, `M` mixture, `B` block-sparse; `-` without a feed-forward
    /// block.
    fn layer_map(&self) -> String {
        let letters: String = self
            .model
            .layers
            .iter()
            .map(|layer| match layer.ffn {
                FfnSpec::Dense(_) => 'D',
                FfnSpec::Moe(_) | FfnSpec::SoftMoe(_) => 'M',
                FfnSpec::BlockSparse(_) => 'B',
                FfnSpec::Absent => '-',
            })
            .collect();
        let block_sparse = if letters.contains('B') { ", B block-sparse" } else { "" };
        let absent = if letters.contains('-') { ", - none" } else { "" };
        format!("{letters}  (first layer first; D dense, M mixture of experts{block_sparse}{absent})")
    }

    fn parameter_rows(&self) -> Vec<Row> {
        let counts = &self.counts;
        let params = &counts.params;
        let parts = [
            ("embedding", params.embedding),
            ("positions", params.position),
            ("attention", params.attention),
            ("lstm", params.lstm),
            ("norms", params.norm),
            ("dense blocks", params.dense_ffn),
            ("block-sparse", params.block_sparse_ffn),
            ("routers", params.router),
            ("routed experts", params.routed_experts),
            ("shared experts", params.shared_experts),
            ("head", params.head),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(_, number)| *number > 0)
            .map(|(name, number)| format!("{name} {}", grouped(*number)))
            .collect();
        vec![
            ("parameters", format!("{} total", exact(counts.total_params))),
            ("", format!("{} active per token", exact(counts.active_params))),
            ("sparsity", self.sparsity_text()),
            ("made of", parts.join(", ")),
        ]
    }

    fn sparsity_text(&self) -> String {
        let active = self.counts.active_fraction();
        if active == 1.0 {
            return "none, every token uses every parameter".to_owned();
        }
        format!(
            "{:.1} % active: {:.2} times as many parameters as a token uses",
            100.0 * active,
            1.0 / active
        )
    }

    fn cost_rows(&self) -> Vec<Row> {
        let per_token = |flops: u64| scaled(flops as f64, "FLOP");
        let mut rows = vec![(
            "per token",
            format!(
                "{} forward, {} training",
                per_token(self.counts.forward_flops_per_token),
                per_token(self.counts.training_flops_per_token)
            ),
        )];
        rows.extend(self.counted_rows());
        rows.extend(self.precision_row());
        rows.extend([
            (
                "per step",
                format!(
                    "{} tokens, {}: {} of {} sequences of {} tokens",
                    grouped(self.tokens_per_step as u64),
                    scaled(self.training_flops_per_step(), "FLOP"),
                    plural(self.micro_batches_per_step as u64, "micro-batch", "micro-batches"),
                    self.sequences_per_micro_batch,
                    self.seq_len
                ),
            ),
            (
                "whole run",
                format!(
                    "{}, {} tokens, {}",
                    plural(self.num_steps, "step", "steps"),
                    grouped(self.total_tokens()),
                    scaled(self.total_training_flops(), "FLOP")
                ),
            ),
        ]);
        rows
    }

    fn position_name(&self) -> &'static str {
        match self.model.position {
            PositionKind::Rope { .. } => "rotary",
            PositionKind::Learned => "learned",
            PositionKind::Sinusoidal => "sinusoidal",
            PositionKind::Alibi | PositionKind::FalconAlibi => "ALiBi",
            PositionKind::Absent => "none",
        }
    }

    fn norm_name(&self) -> &'static str {
        match self.model.norm {
            NormKind::Rms { .. } => "root mean square",
            NormKind::Layer { bias: true, .. } => "layer norm",
            NormKind::Layer { bias: false, .. } => "layer norm without bias",
            NormKind::Off => "none",
        }
    }
}

fn attention_text(attention: &AttentionSpec) -> String {
    let heads = match attention.num_kv_heads {
        kv_heads if kv_heads == attention.num_heads => String::new(),
        kv_heads => format!(" on {kv_heads} key/value heads"),
    };
    let norm = match attention.qk_norm.settings().map(|settings| settings.over) {
        None => "",
        Some(QkNormOver::Head) => ", queries and keys normalised by head",
        Some(QkNormOver::Projection) => ", queries and keys normalised over all heads",
    };
    format!("{} heads of width {}{heads}{norm}", attention.num_heads, attention.d_head)
}

fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::Swiglu => "SwiGLU",
        Activation::ClampedSwiglu { .. } => "clamped SwiGLU",
        Activation::Gelu => "GELU",
        Activation::GeluTanh => "tanh-GELU",
        Activation::Relu => "ReLU",
    }
}
