//! The plan as a page for people: what `switchyard plan FILE` prints.

use std::fmt::Write;

use switchyard_experts::{Activation, BlockSparseSpec, FfnSpec, TopologyKind};
use switchyard_ground::units::{bytes, exact, grouped, plural, scaled};
use switchyard_kernels::Products;
use switchyard_model::{
    Affine, AttentionPart, AttentionSpec, Compute, FfnMatrix, FfnUse, LstmSpec, MixerSpec, NormKind,
    PositionKind, QkNormOver, Recompute, Residual, Role, RouterPart, hidden_matrices,
};

use super::{RunPlan, router};
use crate::memory::StepMoment;
use crate::schedule::ScheduleShape;

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
            Products::RoundedF32 => "here by f32 instructions: less memory, no speed",
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

    fn memory_rows(&self) -> Vec<Row> {
        let memory = &self.memory;
        let threads = match memory.threads {
            Some(1) => "with one thread".to_owned(),
            Some(threads) => format!("with {threads} threads"),
            None => format!("with one thread, and {} with each further one", bytes(memory.thread_bytes)),
        };
        let total = format!("about {} {threads}", bytes(memory.total_bytes()));
        let process = memory.total_bytes().saturating_sub(memory.run_bytes());
        let parts = format!(
            "{}: weights {}, gradients {}, moments {}, activations {}, temporaries {}, process {}",
            self.moment_text(),
            bytes(memory.weights_bytes),
            bytes(memory.gradients_bytes),
            bytes(memory.moments_bytes),
            bytes(memory.activations_bytes),
            bytes(memory.temporaries_bytes),
            bytes(process),
        );
        let mut rows = vec![("memory", total), ("", parts)];
        if memory.checkpoint_bytes > 0 {
            let of_checkpoint = bytes(memory.checkpoint_bytes);
            let why = "from which a checkpoint is written while the run goes on";
            rows.push(("", format!("of it weights and moments of {of_checkpoint}, {why}")));
        }
        let anew = match self.recompute {
            Recompute::None => return rows,
            Recompute::Ffn => "projections of feed-forward blocks are",
            Recompute::Block => "each block but for its input is",
        };
        rows.push(("", format!("{anew} computed anew in the backward pass")));
        rows
    }

    fn run_rows(&self) -> Vec<Row> {
        let every = |steps: Option<u64>| match steps {
            Some(steps) => format!("every {} and at the end", plural(steps, "step", "steps")),
            None => "at the end".to_owned(),
        };
        let extent = match self.evaluation.max_tokens {
            Some(tokens) => {
                format!("the first {} tokens of the validation split, at the end all of it", grouped(tokens))
            }
            None => "the whole validation split".to_owned(),
        };
        let test = if self.evaluation.test_at_end { "; the test split at the end" } else { "" };
        let best = if self.checkpoints.keep_best { " and the best" } else { "" };
        let mut rows: Vec<Row> = self.optimizer_row().into_iter().collect();
        rows.extend(self.qk_clip.map(|clip| {
            let text =
                format!("heads whose largest logit of a step is above {} are made smaller", clip.max_logit);
            ("qk-clip", text)
        }));
        rows.extend([
            ("learning rate", self.schedule_text()),
            ("evaluation", format!("{}, on {extent}{test}", every(self.evaluation.every_steps))),
            (
                "checkpoints",
                format!(
                    "{}, keeping the newest {}{best}",
                    every(self.checkpoints.every_steps),
                    self.checkpoints.keep_last
                ),
            ),
        ]);
        if let Some(early_stopping) = &self.early_stopping {
            let evaluations = plural(early_stopping.patience_evals.into(), "evaluation", "evaluations");
            rows.push(("early stopping", format!("after {evaluations} without improvement")));
        }
        rows
    }

    /// Who trains what, where it is not AdamW alone with moments in f32.
    fn optimizer_row(&self) -> Option<Row> {
        let moments = if self.optimizer.moments.is_f32() { "" } else { ", its moments in bf16" };
        let Some(muon) = &self.muon else {
            return (!moments.is_empty()).then(|| ("optimizer", format!("AdamW{moments}")));
        };
        let words: Vec<&str> = muon.roles.iter().flatten().map(|role| role.word()).collect();
        let taken = hidden_matrices(&self.model).into_iter().filter(|matrix| muon.takes(matrix.name.role));
        let params: u64 = taken.map(|matrix| matrix.value.iter().product::<usize>() as u64).sum();
        let rest = self.counts.total_params.saturating_sub(params);
        let (words, params, rest) = (words.join(", "), grouped(params), grouped(rest));
        let text = format!("Muon for {params} parameters in matrices of {words}, AdamW for {rest}{moments}");
        Some(("optimizer", text))
    }

    fn schedule_text(&self) -> String {
        let peak = self.schedule.peak_learning_rate;
        let rise = match self.schedule.warmup_steps {
            0 => format!("{peak}"),
            steps => format!("up to {peak} in {}", plural(steps, "step", "steps")),
        };
        let course = match self.schedule.shape {
            ScheduleShape::Constant => "then constant".to_owned(),
            ScheduleShape::InverseSqrt => "then falling with the root of the step".to_owned(),
            ScheduleShape::Cosine { min_learning_rate } => {
                format!("then a cosine down to {min_learning_rate}")
            }
            ScheduleShape::Linear { min_learning_rate } => format!("then a line down to {min_learning_rate}"),
            ScheduleShape::Wsd { decay_steps, min_learning_rate } => {
                let steps = plural(decay_steps, "step", "steps");
                format!("then constant, in the last {steps} a line down to {min_learning_rate}")
            }
        };
        format!("{rise}, {course}")
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

    /// When most memory is alive.
    fn moment_text(&self) -> String {
        match self.memory.moment {
            StepMoment::Loss => "most at the loss".to_owned(),
            StepMoment::Attention(layer) => {
                let mixer = if self.model.is_recurrent() { "the LSTM" } else { "attention" };
                format!("most in the backward pass of {mixer} in layer {layer}")
            }
            StepMoment::FeedForward(layer) => {
                format!("most in the backward pass of the feed-forward block in layer {layer}")
            }
            StepMoment::Embedding => "most at the end of the backward pass".to_owned(),
            StepMoment::Accumulation => "most where gradients are added up".to_owned(),
            StepMoment::Update => "most at the update of the parameters".to_owned(),
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
