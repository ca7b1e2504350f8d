//! The accounting, pinned to the counts that the makers of well-known models publish.

#![expect(clippy::unwrap_used, reason = "functions of a test fail as the test does")]

use switchyard_model::ModelCounts;
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::plan::RunPlan;

/// A model as its makers describe it.
struct Published {
    name: &'static str,
    /// Where the numbers stand.
    source: &'static str,
    vocab_size: usize,
    seq_len: usize,
    /// `[model]`.
    model: &'static str,
    /// Parameters that the published model has and ours has not, for the reason beside it.
    foreign_params: u64,
    total_params: u64,
    /// As printed, rounded or cut to one decimal; `None` for a dense model, in which all are
    /// active.
    active_billions: Option<f64>,
}

const PUBLISHED: [Published; 6] = [
    Published {
        name: "Mixtral 8x7B",
        source: "46.7B and 12.9B: mistral.ai/news/mixtral-of-experts. Exact: half of total_size (bfloat16) in \
                 model.safetensors.index.json of mistralai/Mixtral-8x7B-v0.1",
        vocab_size: 32_000,
        seq_len: 4096,
        model: r#"
            num_layers = 32
            d_model = 4096
            attention = { num_heads = 32, num_kv_heads = 8 }
            [ffn]
            activation = "swiglu"
            [ffn.moe]
            num_experts = 8
            d_expert = 14336
            router = { top_k = 2, softmax = "after_selection" }
        "#,
        foreign_params: 0,
        total_params: 46_702_792_704,
        active_billions: Some(12.9),
    },
    Published {
        name: "OLMoE-1B-7B",
        source: "6.9B and 1.3B: arXiv:2409.02060, table 1. Exact: half of total_size (bfloat16) in \
                 model.safetensors.index.json of allenai/OLMoE-1B-7B-0924",
        vocab_size: 50_304,
        seq_len: 4096,
        model: r#"
            num_layers = 16
            d_model = 2048
            attention = { num_heads = 16, qk_norm = true }
            [ffn]
            activation = "swiglu"
            [ffn.moe]
            num_experts = 64
            d_expert = 1024
            router = { top_k = 8, renormalise = false }
        "#,
        // Its QK-norm has one scale per element of all 16 heads together, ours one per element of a
        // head.
        foreign_params: 16 * 2 * (2048 - 128),
        total_params: 6_919_161_856,
        active_billions: Some(1.3),
    },
    Published {
        name: "Qwen3-30B-A3B",
        source: "30.5B and 3.3B: model card of Qwen/Qwen3-30B-A3B. Exact: half of total_size (bfloat16) in its \
                 model.safetensors.index.json",
        vocab_size: 151_936,
        seq_len: 4096,
        model: r#"
            num_layers = 48
            d_model = 2048
            attention = { num_heads = 32, num_kv_heads = 4, d_head = 128, qk_norm = true }
            [ffn]
            activation = "swiglu"
            [ffn.moe]
            num_experts = 128
            d_expert = 768
            router = { top_k = 8 }
        "#,
        foreign_params: 0,
        total_params: 30_532_122_624,
        active_billions: Some(3.3),
    },
    Published {
        name: "Llama-2-7B",
        source: "7B (6.74B): arXiv:2307.09288. Exact: parameters of meta-llama/Llama-2-7b-hf",
        vocab_size: 32_000,
        seq_len: 4096,
        model: r#"
            num_layers = 32
            d_model = 4096
            attention = { num_heads = 32 }
            ffn = { activation = "swiglu", d_ff = 11008 }
        "#,
        foreign_params: 0,
        total_params: 6_738_415_616,
        active_billions: None,
    },
    Published {
        name: "GPT-2 124M",
        source: "124M: README of openai/gpt-2. Exact: parameters of openai-community/gpt2",
        vocab_size: 50_257,
        seq_len: 1024,
        model: r#"
            num_layers = 12
            d_model = 768
            tie_embeddings = true
            attention = { num_heads = 12, bias = true }
            ffn = { activation = "gelu_tanh", d_ff = 3072, bias = true }
            norm = { layer = {} }
            position = { learned = {} }
        "#,
        foreign_params: 0,
        total_params: 124_439_808,
        active_billions: None,
    },
    Published {
        name: "T5-Base",
        source: "223M: arXiv:2101.03961, section 4.2. Exact: parameters of google-t5/t5-base",
        vocab_size: 32_128,
        seq_len: 512,
        model: T5_BASE_BLOCKS,
        foreign_params: T5_BASE_FOREIGN_PARAMS,
        total_params: 222_903_552,
        active_billions: None,
    },
];

/// The 12 blocks of T5-Base's encoder and the 12 of its decoder, which are ours but for what is
/// listed below.
const T5_BASE_BLOCKS: &str = r#"
    num_layers = 24
    d_model = 768
    tie_embeddings = true
    attention = { num_heads = 12 }
    [ffn]
    activation = "relu"
    d_ff = 3072
"#;

/// T5-Base is an encoder and a decoder: 12 cross-attentions with their norms, the encoder's own
/// last norm, and in each half 32 relative position biases for 12 heads.
const T5_BASE_FOREIGN_PARAMS: u64 = 12 * (4 * 768 * 768 + 768) + 768 + 2 * 32 * 12;

/// The counts of a `[model]` table, by way of a whole configuration and its plan.
fn counts(model: &str, vocab_size: usize, seq_len: usize) -> ModelCounts {
    let text = format!(
        r#"
            name = "published"
            [data.synthetic]
            num_domains = 1
            vocab_size = {vocab_size}
            num_documents = 2
            document_tokens = 2
            branching = 1
            [train]
            num_steps = 1
            seq_len = {seq_len}
            batch_tokens = {seq_len}
            adamw = {{ learning_rate = 1e-3 }}
        "#
    );
    let mut config: toml::Table = toml::from_str(&text).unwrap();
    config.insert("model".into(), toml::Value::Table(toml::from_str(model).unwrap()));
    let config: RunConfig = config.try_into().unwrap();
    RunPlan::resolve(&config).unwrap().counts
}

#[test]
fn total_parameters_are_the_published_ones_exactly() {
    for model in PUBLISHED {
        let counts = counts(model.model, model.vocab_size, model.seq_len);
        assert_eq!(
            counts.total_params + model.foreign_params,
            model.total_params,
            "{} ({})",
            model.name,
            model.source
        );
    }
}

#[test]
fn active_parameters_are_the_published_ones() {
    for model in PUBLISHED {
        let counts = counts(model.model, model.vocab_size, model.seq_len);
        let Some(published) = model.active_billions else {
            assert_eq!(counts.active_params, counts.total_params, "{}", model.name);
            continue;
        };
        let tenths = (counts.active_params + model.foreign_params) as f64 / 1e8;
        // Rounded, 12.88 gives 12.9; cut, 3.35 gives 3.3: one decimal either way.
        assert!(
            [tenths.round(), tenths.floor()].contains(&(published * 10.0)),
            "{}: {tenths} tenths of a billion, published {published} billion ({})",
            model.name,
            model.source
        );
    }
}

#[test]
fn switch_base_grows_with_its_experts_as_published() {
    // arXiv:2101.03961, section 4.2, compression rates of distillation: Switch-Base, every second
    // block sparse with one expert per token, here with the 16 to 256 experts that give the printed
    // sizes.
    for (num_experts, billions) in [(16, 1.1), (32, 2.0), (64, 3.8), (128, 7.4), (256, 14.7)] {
        let mixture = format!(
            "{T5_BASE_BLOCKS}
            [ffn.moe]
            num_experts = {num_experts}
            d_expert = 3072
            router = {{ top_k = 1, renormalise = false }}
            layers = {{ every = 2 }}"
        );
        let sparse = counts(&mixture, 32_128, 512);
        let total_billions = (sparse.total_params + T5_BASE_FOREIGN_PARAMS) as f64 / 1e9;
        assert_eq!((total_billions * 10.0).round() / 10.0, billions, "{num_experts} experts");
        // One expert of the dense width: a token uses the dense model and the routers.
        let dense = counts(T5_BASE_BLOCKS, 32_128, 512);
        assert_eq!(sparse.active_params, dense.total_params + 12 * 768 * num_experts);
    }
}

#[test]
fn training_flops_are_six_per_active_parameter_that_multiplies() {
    // The rule of thumb of arXiv:2001.08361, section 2.1: 6 N, and 6 * layers * d_attention *
    // context for attention.
    let llama = counts(PUBLISHED[3].model, 32_000, 4096);
    let multiplying = llama.total_params - llama.params.embedding - llama.params.norm;
    let expected = 6.0 * multiplying as f64 + 6.0 * 32.0 * 4096.0 * 4096.0;
    // Ours counts (s + 1) / 2 positions where the rule has s / 2.
    assert!((llama.training_flops_per_token as f64 / expected - 1.0).abs() < 1e-4);
}
