//! Each recipe in `experiments/shapes` is the published model that it names, and counts what its
//! makers count.
//!
//! The exact numbers are those of transformers 5.23.0, which makes each model of the `config.json`
//! below without memory for it:
//!
//! ```python
//! with torch.device("meta"):
//!     model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
//! total = sum(parameter.numel() for parameter in model.parameters())
//! experts = sum(parameter.numel() for name, parameter in model.named_parameters() if ".experts." in name)
//! active = total - experts * (num_experts - num_experts_per_tok) // num_experts
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use switchyard_hub::PublishedModel;
use switchyard_hub::export::computes_the_same;
use switchyard_trainer::config_file::load;
use switchyard_trainer::plan::RunPlan;

/// A published model, and what is known of it.
struct Shape {
    /// The recipe, without `.toml`.
    name: &'static str,
    /// The keys of its `config.json` that say what it computes.
    config_json: &'static str,
    /// By transformers.
    total_params: u64,
    /// By transformers: all but the routed experts that a token is not sent to.
    active_params: u64,
    /// `None` if nobody has published such a model.
    printed: Option<Printed>,
    /// Tokens that it was trained on; `None` if that is not published.
    trained_tokens: Option<f64>,
}

/// Sizes as the makers print them.
struct Printed {
    source: &'static str,
    total: Rounded,
    /// `None` of a dense model, in which all are active.
    active: Option<Active>,
}

/// Active parameters as printed.
enum Active {
    /// The embedding among them, as in our count.
    WithEmbedding(Rounded),
    /// All but the embedding, which a token looks up and does not multiply with.
    WithoutEmbedding(Rounded),
}

/// A number of parameters.
#[derive(Clone, Copy)]
struct Rounded {
    billions: f64,
    /// What it is a multiple of: names such as "40B" are round to the ten.
    step: f64,
}

impl Rounded {
    const fn new(billions: f64, step: f64) -> Self {
        Self { billions, step }
    }

    fn is_of(self, params: u64) -> bool {
        (params as f64 / 1e9 / self.step).round() == (self.billions / self.step).round()
    }
}

const SHAPES: [Shape; 14] = [
    Shape {
        name: "gpt2-124m",
        config_json: r#"{
            "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12,
            "n_head": 12
        }"#,
        total_params: 124_439_808,
        active_params: 124_439_808,
        printed: Some(Printed {
            source: "124M: README of openai/gpt-2",
            total: Rounded::new(0.124, 0.001),
            active: None,
        }),
        trained_tokens: None,
    },
    Shape {
        name: "gpt2-1.5b",
        config_json: r#"{
            "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 1600, "n_layer": 48,
            "n_head": 25
        }"#,
        total_params: 1_557_611_200,
        active_params: 1_557_611_200,
        printed: Some(Printed {
            source: "1558M: the model's name in openai/gpt-2",
            total: Rounded::new(1.558, 0.001),
            active: None,
        }),
        trained_tokens: None,
    },
    Shape {
        name: "meena-like-1.7x",
        config_json: r#"{
            "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 2560, "n_layer": 32,
            "n_head": 32
        }"#,
        total_params: 2_648_931_840,
        active_params: 2_648_931_840,
        printed: Some(Printed {
            source: "2.6B of Meena itself, which has another network: arXiv:2001.09977, abstract",
            total: Rounded::new(2.6, 0.1),
            active: None,
        }),
        trained_tokens: None,
    },
    Shape {
        name: "meena-like-8.5x",
        config_json: r#"{
            "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 4608, "n_layer": 51,
            "n_head": 72
        }"#,
        total_params: 13_234_369_536,
        active_params: 13_234_369_536,
        printed: None,
        trained_tokens: None,
    },
    Shape {
        name: "llama2-7b",
        config_json: r#"{
            "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu",
            "rms_norm_eps": 1e-05, "max_position_embeddings": 4096, "tie_word_embeddings": false
        }"#,
        total_params: 6_738_415_616,
        active_params: 6_738_415_616,
        printed: Some(Printed {
            source: "6.74B: Hugging Face's count of its files; arXiv:2307.09288 has 7B",
            total: Rounded::new(6.74, 0.01),
            active: None,
        }),
        trained_tokens: Some(2e12),
    },
    Shape {
        name: "llama2-70b",
        config_json: r#"{
            "model_type": "llama", "vocab_size": 32000, "hidden_size": 8192, "intermediate_size": 28672,
            "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "hidden_act": "silu",
            "rms_norm_eps": 1e-05, "max_position_embeddings": 4096, "tie_word_embeddings": false
        }"#,
        total_params: 68_976_648_192,
        active_params: 68_976_648_192,
        printed: Some(Printed {
            source: "69B: Hugging Face's count of its files; arXiv:2307.09288 has 70B",
            total: Rounded::new(69.0, 1.0),
            active: None,
        }),
        trained_tokens: Some(2e12),
    },
    Shape {
        name: "falcon-7b",
        config_json: r#"{
            "model_type": "falcon", "vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32,
            "num_attention_heads": 71, "multi_query": true, "new_decoder_architecture": false,
            "parallel_attn": true, "bias": false, "alibi": false, "layer_norm_epsilon": 1e-05
        }"#,
        total_params: 6_921_720_704,
        active_params: 6_921_720_704,
        printed: Some(Printed {
            source: "7B: model card of tiiuae/falcon-7b; arXiv:2311.16867",
            total: Rounded::new(7.0, 1.0),
            active: None,
        }),
        trained_tokens: Some(1.5e12),
    },
    Shape {
        name: "falcon-40b",
        config_json: r#"{
            "model_type": "falcon", "vocab_size": 65024, "hidden_size": 8192, "num_hidden_layers": 60,
            "num_attention_heads": 128, "num_kv_heads": 8, "multi_query": true, "new_decoder_architecture": true,
            "parallel_attn": true, "bias": false, "alibi": false, "layer_norm_epsilon": 1e-05
        }"#,
        total_params: 41_303_293_952,
        active_params: 41_303_293_952,
        printed: Some(Printed {
            source: "40B: model card of tiiuae/falcon-40b; arXiv:2311.16867",
            total: Rounded::new(40.0, 10.0),
            active: None,
        }),
        trained_tokens: Some(1e12),
    },
    Shape {
        name: "falcon-180b",
        config_json: r#"{
            "model_type": "falcon", "vocab_size": 65024, "hidden_size": 14848, "num_hidden_layers": 80,
            "num_attention_heads": 232, "num_kv_heads": 8, "multi_query": true, "new_decoder_architecture": true,
            "parallel_attn": true, "bias": false, "alibi": false, "layer_norm_epsilon": 1e-05
        }"#,
        total_params: 178_557_088_768,
        active_params: 178_557_088_768,
        printed: Some(Printed {
            source: "180B: model card of tiiuae/falcon-180B; arXiv:2311.16867",
            total: Rounded::new(180.0, 10.0),
            active: None,
        }),
        trained_tokens: Some(3.5e12),
    },
    Shape {
        name: "mixtral-8x7b",
        config_json: r#"{
            "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu",
            "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "max_position_embeddings": 32768,
            "sliding_window": null, "num_local_experts": 8, "num_experts_per_tok": 2,
            "tie_word_embeddings": false
        }"#,
        total_params: 46_702_792_704,
        active_params: 12_879_925_248,
        printed: Some(Printed {
            source: "46.7B and 12.9B: mistral.ai/news/mixtral-of-experts",
            total: Rounded::new(46.7, 0.1),
            active: Some(Active::WithEmbedding(Rounded::new(12.9, 0.1))),
        }),
        trained_tokens: None,
    },
    Shape {
        name: "mixtral-8x22b",
        config_json: r#"{
            "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 6144, "intermediate_size": 16384,
            "num_hidden_layers": 56, "num_attention_heads": 48, "num_key_value_heads": 8, "hidden_act": "silu",
            "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "max_position_embeddings": 65536,
            "sliding_window": null, "num_local_experts": 8, "num_experts_per_tok": 2,
            "tie_word_embeddings": false
        }"#,
        total_params: 140_620_634_112,
        active_params: 39_152_031_744,
        printed: Some(Printed {
            source: "141B and 39B: mistral.ai/news/mixtral-8x22b",
            total: Rounded::new(141.0, 1.0),
            active: Some(Active::WithEmbedding(Rounded::new(39.0, 1.0))),
        }),
        trained_tokens: None,
    },
    Shape {
        name: "deepseek-v3",
        // Its `rope_scaling` came after the training that the recipe has.
        config_json: r#"{
            "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
            "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
            "num_key_value_heads": 128, "hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_theta": 10000,
            "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
            "v_head_dim": 128, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
            "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3, "norm_topk_prob": true,
            "routed_scaling_factor": 2.5, "attention_bias": false, "tie_word_embeddings": false
        }"#,
        // Without the 14,848 biases of the selection, which no gradient moves. The 14 B of the module that
        // predicts one token more are not in it, and not in the published 671 B.
        total_params: 671_026_404_352,
        active_params: 37_552_282_624,
        printed: Some(Printed {
            // README_WEIGHTS.md beside the model says 36.7B, embedding and head included. No count gives
            // that: it is 37.55 B with both, and 36.63 B without the embedding.
            source: "671B and 37B: arXiv:2412.19437, abstract",
            total: Rounded::new(671.0, 1.0),
            active: Some(Active::WithoutEmbedding(Rounded::new(37.0, 1.0))),
        }),
        trained_tokens: Some(14.8e12),
    },
    Shape {
        name: "gpt-oss-20b",
        config_json: r#"{
            "model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880,
            "num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
            "hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_theta": 150000, "max_position_embeddings": 131072,
            "rope_scaling": {
                "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
                "original_max_position_embeddings": 4096
            },
            "sliding_window": 128, "attention_bias": true, "swiglu_limit": 7.0, "num_local_experts": 32,
            "num_experts_per_tok": 4, "tie_word_embeddings": false
        }"#,
        total_params: 20_914_757_184,
        active_params: 4_187_440_704,
        printed: Some(Printed {
            source: "20.91B and 3.61B: model card, arXiv:2508.10925, table 1",
            total: Rounded::new(20.91, 0.01),
            active: Some(Active::WithoutEmbedding(Rounded::new(3.61, 0.01))),
        }),
        trained_tokens: None,
    },
    Shape {
        name: "gpt-oss-120b",
        config_json: r#"{
            "model_type": "gpt_oss", "vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880,
            "num_hidden_layers": 36, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
            "hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_theta": 150000, "max_position_embeddings": 131072,
            "rope_scaling": {
                "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
                "original_max_position_embeddings": 4096
            },
            "sliding_window": 128, "attention_bias": true, "swiglu_limit": 7.0, "num_local_experts": 128,
            "num_experts_per_tok": 4, "tie_word_embeddings": false
        }"#,
        total_params: 116_829_156_672,
        active_params: 5_711_982_912,
        printed: Some(Printed {
            source: "116.83B and 5.13B: model card, arXiv:2508.10925, table 1",
            total: Rounded::new(116.83, 0.01),
            active: Some(Active::WithoutEmbedding(Rounded::new(5.13, 0.01))),
        }),
        trained_tokens: None,
    },
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("shapes")
}

fn plan(name: &str) -> RunPlan {
    let loaded = load(&folder().join(format!("{name}.toml")), &[]).unwrap_or_else(|error| panic!("{error}"));
    loaded.resolve().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_recipe_has_a_row_and_every_row_a_recipe() {
    let files: BTreeSet<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| Some(name.strip_suffix(".toml")?.to_owned()))
        .collect();
    let rows: BTreeSet<String> = SHAPES.iter().map(|shape| shape.name.to_owned()).collect();
    assert_eq!(files, rows);
}

#[test]
fn parameters_are_those_of_transformers_to_the_last_one() {
    for shape in &SHAPES {
        let counts = plan(shape.name).counts;
        let ours = (counts.total_params, counts.active_params);
        assert_eq!(ours, (shape.total_params, shape.active_params), "{}", shape.name);
    }
}

#[test]
fn printed_sizes_are_ours_rounded() {
    for shape in &SHAPES {
        let Some(printed) = &shape.printed else { continue };
        let counts = plan(shape.name).counts;
        let place = format!("{} ({})", shape.name, printed.source);
        assert!(printed.total.is_of(counts.total_params), "{place}: {} in all", counts.total_params);
        let (active, printed) = match &printed.active {
            None => {
                assert_eq!(counts.active_params, counts.total_params, "{place}");
                continue;
            }
            Some(Active::WithEmbedding(printed)) => (counts.active_params, printed),
            Some(Active::WithoutEmbedding(printed)) => {
                (counts.active_params - counts.params.embedding, printed)
            }
        };
        assert!(printed.is_of(active), "{place}: {active} active");
    }
}

#[test]
fn a_recipe_computes_what_the_published_configuration_says() {
    let place = tempfile::tempdir().unwrap();
    // A file of no tensors: the configuration alone is asked.
    let header = b"{}";
    let file = [&(header.len() as u64).to_le_bytes()[..], header].concat();
    fs::write(place.path().join("model.safetensors"), file).unwrap();
    for shape in &SHAPES {
        fs::write(place.path().join("config.json"), shape.config_json).unwrap();
        let published = PublishedModel::open(place.path()).unwrap_or_else(|error| panic!("{error}"));
        assert!(published.unknown_keys.is_empty(), "{}: {:?}", shape.name, published.unknown_keys);
        let plan = plan(shape.name);
        let published = published.spec(plan.seq_len).unwrap_or_else(|error| panic!("{error}"));
        assert!(computes_the_same(published, plan.model), "{}", shape.name);
    }
}

#[test]
fn runs_are_as_long_as_published() {
    for shape in &SHAPES {
        let Some(published) = shape.trained_tokens else { continue };
        let plan = plan(shape.name);
        // The nearest whole number of steps.
        let difference = (plan.total_tokens() as f64 - published).abs();
        assert!(difference <= plan.tokens_per_step as f64 / 2.0, "{}: off by {difference}", shape.name);
    }
}

#[test]
fn the_scaled_up_gpt2_is_as_many_times_gpt2_as_its_name_says() {
    let gpt2 = plan("gpt2-1.5b");
    // Parameters, tokens and training FLOPs, each as a multiple of GPT-2's.
    let multiples = |name: &str| {
        let plan = plan(name);
        let params = plan.counts.total_params as f64 / gpt2.counts.total_params as f64;
        let tokens = plan.total_tokens() as f64 / gpt2.total_tokens() as f64;
        let flops = plan.total_training_flops() / gpt2.total_training_flops();
        let tenths = |multiple: f64| (10.0 * multiple).round() / 10.0;
        (tenths(params), tenths(tokens), flops.round())
    };
    // As Google says of Meena, with the product of its two numbers.
    assert_eq!(multiples("meena-like-1.7x"), (1.7, 8.5, 14.0));
    // The same numbers the other way round.
    assert_eq!(multiples("meena-like-8.5x"), (8.5, 1.7, 14.0));
}
