//! Every recipe in `experiments/` can be run, and says the truth about itself.

#![expect(clippy::unwrap_used, reason = "functions of a test fail as the test does")]

use std::path::{Path, PathBuf};

use switchyard_datasets::SourceConfig;
use switchyard_trainer::benchmark::LayerCase;
use switchyard_trainer::config_file::{LoadedConfig, Override, config_hash, load, schema, to_toml};
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::{RanksForecast, StepTraffic};

fn experiments() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../experiments")
}

fn recipes() -> Vec<PathBuf> {
    let (recipes, _) = files();
    recipes
}

/// Descriptions of single layers, for `switchyard bench layer`.
fn layer_cases() -> Vec<PathBuf> {
    let (_, layer_cases) = files();
    layer_cases
}

/// Recipes, and what is none because it describes no training.
fn files() -> (Vec<PathBuf>, Vec<PathBuf>) {
    let in_folder = |folder: PathBuf| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = in_folder(experiments())
        .chain(in_folder(experiments().join("bench")))
        .chain(in_folder(experiments().join("routers")))
        .chain(in_folder(experiments().join("shapes")))
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .filter(|path| path.file_name().is_some_and(|name| name != "Cargo.toml"))
        .collect();
    files.sort();
    files.into_iter().partition(|path| std::fs::read_to_string(path).unwrap().contains("\n[train]"))
}

/// A recipe as its user would start it: those on a text file need its path.
fn load_recipe(path: &Path) -> LoadedConfig {
    let needs_text = std::fs::read_to_string(path).unwrap().contains("\n[data.text]");
    let overrides: Vec<Override> =
        needs_text.then(|| Override::parse("data.text.path=input.txt").unwrap()).into_iter().collect();
    load(path, &overrides).unwrap_or_else(|error| panic!("{error}"))
}

fn plan(name: &str) -> RunPlan {
    load_recipe(&experiments().join(name)).resolve().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_recipe_says_what_a_rank_alone_holds_however_large_it_is() {
    for path in recipes() {
        let loaded = load_recipe(&path);
        let plan = loaded.resolve().unwrap_or_else(|error| panic!("{error}"));
        let forecast = RanksForecast::of(&loaded.config, &plan, 1).unwrap();
        let [rank] = &forecast.ranks[..] else { panic!("{}: {forecast:?}", path.display()) };
        assert_eq!(rank.parameters_updated, plan.counts.total_params, "{}", path.display());
        assert_eq!(rank.memory.moments_bytes, plan.memory.moments_bytes, "{}", path.display());
        assert_eq!(rank.traffic, StepTraffic::default(), "{}", path.display());
    }
}

#[test]
fn every_recipe_parses_and_resolves_without_notes_but_on_causality() {
    let recipes = recipes();
    assert!(recipes.len() >= 10, "recipes are missing: {recipes:?}");
    for path in recipes {
        let loaded = load_recipe(&path);
        let plan = loaded.resolve().unwrap_or_else(|error| panic!("{error}"));
        let is_causal = !["expert_choice", "soft"].contains(&plan.name.as_str());
        let (warnings, others): (Vec<_>, Vec<_>) =
            plan.notes.iter().partition(|note| note.contains("is not causal"));
        assert_eq!(warnings.len(), usize::from(!is_causal), "{}", path.display());
        assert_eq!(others, Vec::<&String>::new(), "{}", path.display());
        assert_eq!(Some(plan.name.as_str()), path.file_stem().and_then(|stem| stem.to_str()));
    }
}

#[test]
fn what_is_written_back_is_the_same_configuration() {
    let folder = tempfile::tempdir().unwrap();
    for path in recipes() {
        let config = load_recipe(&path).config;
        let copy = folder.path().join("config.toml");
        std::fs::write(&copy, to_toml(&config)).unwrap();
        let reread = load(&copy, &[]).unwrap_or_else(|error| panic!("{error}")).config;
        assert_eq!(reread, config, "{}", path.display());
        assert_eq!(config_hash(&reread), config_hash(&config));
    }
}

#[test]
fn a_plan_survives_json() {
    for path in recipes() {
        let plan = load_recipe(&path).resolve().unwrap();
        let json = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<RunPlan>(&json).unwrap(), plan);
    }
}

#[test]
fn sparse_recipes_cost_a_token_as_much_as_their_dense_counterparts() {
    for (dense, sparse, max_router_share) in [
        ("quickstart-dense.toml", "quickstart.toml", 0.01),
        ("shakespeare-dense.toml", "shakespeare-moe.toml", 0.01),
        ("bench/s1-dense.toml", "bench/s1-e8k2.toml", 0.01),
        ("bench/s2-dense.toml", "bench/s2-e8k2.toml", 0.01),
        ("bench/s2-dense.toml", "bench/s2-e32k4.toml", 0.01),
        // 64 gate logits beside hidden values of width 1024.
        ("bench/s2-dense.toml", "bench/s2-e64k8.toml", 0.02),
    ] {
        let (dense, sparse) = (plan(dense), plan(sparse));
        let (dense_flops, sparse_flops) = (dense.counts.forward_flops, sparse.counts.forward_flops);
        assert_eq!(sparse_flops.routed_experts, dense_flops.dense_ffn);
        let difference = sparse.counts.forward_flops_per_token - dense.counts.forward_flops_per_token;
        assert_eq!(difference, sparse_flops.router);
        assert!((difference as f64) < max_router_share * dense.counts.forward_flops_per_token as f64);
        assert_eq!(sparse.total_tokens(), dense.total_tokens());
        assert_eq!(sparse.schedule, dense.schedule);
        assert_eq!(sparse.optimizer, dense.optimizer);
    }
}

#[test]
fn the_experts_of_the_lstm_recipes_cost_a_token_the_same() {
    let (dense, sparse) = (plan("lstm.toml"), plan("lstm-moe.toml"));
    let (dense_flops, sparse_flops) = (dense.counts.forward_flops, sparse.counts.forward_flops);
    assert_eq!(
        (sparse_flops.routed_experts, sparse_flops.lstm),
        (dense_flops.routed_experts, dense_flops.lstm)
    );
    assert_eq!(sparse.total_tokens(), dense.total_tokens());
    assert!(sparse.carries_state && dense.carries_state);
}

const ROUTERS: [&str; 14] = [
    "cosine",
    "deepseek_v3",
    "expert_choice",
    "forced_uniform",
    "group_limited",
    "gshard",
    "hash",
    "mixtral",
    "noisy_top_k",
    "quantile",
    "random",
    "sinkhorn",
    "soft",
    "switch",
];

#[test]
fn router_recipes_differ_in_the_mixture_alone_and_cost_the_same() {
    let path = |name: &str| experiments().join(format!("routers/{name}.toml"));
    let without_mixture = |name: &str| {
        let mut config = load_recipe(&path(name)).config;
        config.name.clear();
        config.model.ffn.moe = None;
        config
    };
    let routed_flops = |name: &str| {
        let plan = load_recipe(&path(name)).resolve().unwrap();
        (plan.counts.forward_flops.routed_experts, plan.counts.forward_flops.shared_experts)
    };
    for name in ROUTERS {
        assert_eq!(without_mixture(name), without_mixture("mixtral"), "{name}");
        assert_eq!(routed_flops(name), routed_flops("mixtral"), "{name}");
    }
    let found = recipes().into_iter().filter(|path| path.parent().unwrap().ends_with("routers")).count();
    assert_eq!(found, ROUTERS.len());
}

#[test]
fn router_recipes_train_on_synthetic_data_with_the_command_in_their_header() {
    for name in ROUTERS {
        let path = experiments().join(format!("routers/{name}.toml"));
        let text = std::fs::read_to_string(&path).unwrap();
        let (_, command) = text.split_once("On synthetic data").unwrap();
        let (header, _) = command.split_once("\nname").unwrap();
        // The arguments of `--set`, the last of which stands in quotes.
        let arguments = header.split("--set ").skip(1).map(|rest| match rest.strip_prefix('\'') {
            Some(quoted) => quoted.split('\'').next().unwrap(),
            None => rest.split_whitespace().next().unwrap(),
        });
        let overrides: Vec<Override> =
            arguments.chain(["train.num_steps=3"]).map(|text| Override::parse(text).unwrap()).collect();
        assert_eq!(overrides.len(), 4, "{name}");
        let loaded = load(&path, &overrides).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(matches!(loaded.config.data.source, SourceConfig::Synthetic(_)));
        assert_eq!(loaded.resolve().unwrap().num_steps, 3, "{name}");
    }
}

#[test]
fn the_recipe_of_2017_costs_what_its_dense_counterpart_does() {
    let (dense, first) = (plan("quickstart-dense.toml"), plan("transformer-2017.toml"));
    assert_eq!(first.counts.forward_flops, dense.counts.forward_flops);
    assert_eq!(first.total_tokens(), dense.total_tokens());
    assert_eq!(first.model.multipliers.embedding, (first.model.d_model as f64).sqrt());
}

#[test]
fn the_block_sparse_recipe_costs_what_its_dense_counterpart_does() {
    let (dense, sparse) = (plan("quickstart-dense.toml"), plan("block-sparse.toml"));
    assert_eq!(sparse.counts.total_params, dense.counts.total_params);
    assert_eq!(sparse.counts.forward_flops_per_token, dense.counts.forward_flops_per_token);
    assert_eq!((sparse.total_tokens(), &sparse.schedule), (dense.total_tokens(), &dense.schedule));
}

#[test]
fn the_shared_expert_recipe_costs_what_its_dense_counterpart_does_but_for_its_gates() {
    let (dense, sparse) = (plan("quickstart-dense.toml"), plan("shared-expert.toml"));
    let flops = &sparse.counts.forward_flops;
    assert_eq!(flops.routed_experts + flops.shared_experts, dense.counts.forward_flops.dense_ffn);
    assert_eq!(flops.routed_experts, flops.shared_experts);
    let difference = sparse.counts.forward_flops_per_token - dense.counts.forward_flops_per_token;
    // In each of 4 layers, 16 logits and the shared expert's one, of width 128.
    assert_eq!((difference, flops.router), (2 * 4 * 128 * 17, 2 * 4 * 128 * 17));
    let has_gate =
        |layer| sparse.model.experts_of(layer).is_some_and(|it| it.shared.as_ref().unwrap().is_gated);
    assert!((0..4).all(has_gate));
}

#[test]
fn the_shakespeare_recipe_is_nanogpts_cpu_configuration() {
    let plan = plan("shakespeare-dense.toml");
    // nanoGPT prints 0.80M parameters, positions left out, for 65 characters; 191 more bytes of
    // width 128 make the rest.
    let params = plan.counts.params;
    assert_eq!(plan.counts.total_params - params.position - 191 * 128, 795_904);
    assert_eq!((plan.seq_len, plan.tokens_per_step, plan.num_steps), (64, 12 * 64, 2000));
    assert_eq!(plan.model.residual_std(), 0.02 / 8.0_f64.sqrt());
}

#[test]
fn benchmarks_have_the_sizes_of_the_models_they_are_compared_with() {
    let size = |name: &str| {
        let plan = plan(&format!("bench/{name}.toml"));
        (plan.counts.total_params, plan.tokens_per_step)
    };
    // Embedding and head 2 v d, norms (2 l + 1) d, projections 4 l d d, and per layer 3 d f, or d e
    // and e times that.
    assert_eq!(size("s1-dense"), (1_115_264, 12 * 64));
    assert_eq!(size("s1-e8k2"), (3_478_656, 12 * 64));
    assert_eq!(size("s2-dense"), (8_391_936, 8 * 256));
    assert_eq!(size("s2-e8k2"), (22_560_000, 8 * 256));
    assert_eq!(size("s2-e32k4"), (41_471_232, 8 * 256));
    assert_eq!(size("s2-e64k8"), (41_520_384, 8 * 256));
}

#[test]
fn layer_cases_cost_as_much_as_the_dense_one() {
    let cases = layer_cases();
    assert_eq!(cases.len(), 4, "{cases:?}");
    for path in cases {
        let case = LayerCase::load(&path).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(case.training_flops(), 18.0 * 2048.0 * 512.0 * 2048.0, "{}", path.display());
    }
}

#[test]
fn a_recipe_without_its_text_says_how_to_name_it() {
    for name in ["shakespeare-dense.toml", "shakespeare-moe.toml"] {
        let error = load(&experiments().join(name), &[]).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
        assert!(error.contains("[data.text] lacks `path`"), "{error}");
        assert!(error.contains("--set data.text.path=VALUE"), "{error}");
    }
}

#[test]
fn the_schema_beside_the_recipes_is_the_current_one() {
    let path = experiments().join("schema.json");
    let written: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(&written, schema(), "renew it: cargo run -- schema > experiments/schema.json");
}

/// Not a recipe: sizes of recipes may be tuned without touching the page.
const PAGE: &str = r#"
    name = "page"
    data = { text = { path = "input.txt" } }
    [model]
    num_layers = 6
    d_model = 256
    attention = { num_heads = 8, num_kv_heads = 2 }
    [model.ffn]
    activation = "swiglu"
    d_ff = 768
    [model.ffn.moe]
    num_experts = 16
    d_expert = 192
    d_shared_expert = 192
    router = { top_k = 3 }
    capacity = { factor = 1.25 }
    layers = { every = 2 }
    [train]
    num_steps = 5000
    seq_len = 256
    batch_tokens = 16384
    micro_batch_tokens = 4096
    eval_every_steps = 250
    eval = { max_tokens = 100000 }
    adamw = { learning_rate = 2e-3 }
    schedule = { warmup_steps = 200, wsd = { decay_steps = 1000, min_learning_rate = 1e-5 } }
    early_stopping = { patience_evals = 1 }
"#;

#[test]
fn a_plan_reads_as_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("page.toml");
    std::fs::write(&path, PAGE).unwrap();
    let plan = load(&path, &[]).unwrap().resolve().unwrap_or_else(|error| panic!("{error}"));
    insta::assert_snapshot!(plan.describe(), @r"
    page

    model           6 layers of width 256
    attention       8 heads of width 32 on 2 key/value heads
    positions       rotary
    norm            root mean square
    dense blocks    SwiGLU of width 768
    mixture         16 SwiGLU experts of width 192, each token to 3, a shared expert of width 192, capacity factor 1.25
    router          softmax scores renormalised
    layer map       DMDMDM  (first layer first; D dense, M mixture of experts)
    vocabulary      256 tokens, head separate from the embedding
    parameters      10.4 M (10,419,456) total
                    4.67 M (4,668,672) active per token
    sparsity        44.8 % active: 2.23 times as many parameters as a token uses
    made of         embedding 65,536, attention 983,040, norms 3,328, dense blocks 1,769,472, routers 12,288, routed experts 7,077,888, shared experts 442,368, head 65,536
    per token       9.99 MFLOP forward, 30.0 MFLOP training
                    counted: matrix products, a multiply and an add as two, attention as causal; training three times the forward pass
                    counted: 3 experts per token, dropped assignments too
    per step        16,384 tokens, 491 GFLOP: 4 micro-batches of 16 sequences of 256 tokens
    whole run       5,000 steps, 81,920,000 tokens, 2.45 PFLOP
    memory          about 735 MB with one thread, and 34.8 MB with each further one
                    most in the backward pass of the feed-forward block in layer 5: weights 41.7 MB, gradients 93.7 MB, moments 83.4 MB, activations 325 MB, temporaries 30.5 MB, process 161 MB
    learning rate   up to 0.002 in 200 steps, then constant, in the last 1,000 steps a line down to 0.00001
    evaluation      every 250 steps and at the end, on the first 100,000 tokens of the validation split, at the end all of it
    checkpoints     at the end, keeping the newest 2 and the best
    early stopping  after 1 evaluation without improvement
    ");
}
