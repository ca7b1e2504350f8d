//! DeepSeekMoE, DeepSeek-V2 and V3.

use serde_json::{Map, Value, json};
use switchyard_experts::MoeLayersConfig;
use switchyard_model::{AttentionBias, LatentConfig, ModelConfig, PositionConfig};
use switchyard_router::{BiasRule, ExpertGroups, GroupScore, RouterConfig, SigmoidConfig};

use super::PLAIN_MOE;
use crate::HubError;
use crate::decoder_config::{
    self, Defaults, bare, bias_on_all, plain_attention, plain_ffn, plain_moe, rope_of,
};
use crate::keys::Keys;
use crate::rope::{self, RopeDefaults};
use crate::table::MoeNames;

pub(super) const NAMES: MoeNames =
    MoeNames { selection_bias: &["mlp.gate.e_score_correction_bias"], ..PLAIN_MOE };

/// The names of the first, whose router has no bias.
pub(super) const NAMES_V1: MoeNames = PLAIN_MOE;

/// DeepSeekMoE (arXiv:2401.06066): a Llama whose layers but the first are mixtures.
pub(super) fn read_v1(keys: &Keys) -> Result<ModelConfig, HubError> {
    let mut model = decoder_config::read(keys, Defaults::default())?;
    model.attention_mut().bias = bias_on_all(keys, "attention_bias", false)?;
    for (key, only) in
        [("pretraining_tp", json!(1)), ("moe_layer_freq", json!(1)), ("scoring_func", json!("softmax"))]
    {
        keys.must_be(key, &only)?;
    }
    let router = RouterConfig {
        renormalise: keys.flag_or("norm_topk_prob", false)?,
        ..RouterConfig::top_k(keys.size_of(&["num_experts_per_tok"])?)
    };
    read_experts(keys, &mut model, router, 0)?;
    Ok(model)
}

pub(super) fn read_v2(keys: &Keys) -> Result<ModelConfig, HubError> {
    let mut model = read_latent(keys)?;
    let top_k = keys.size("num_experts_per_tok")?.unwrap_or(6);
    let mut router = RouterConfig {
        renormalise: false,
        routed_scaling: keys.number("routed_scaling_factor")?.unwrap_or(1.0),
        ..RouterConfig::top_k(top_k)
    };
    // The class does not read it: gates are never renormalised.
    keys.has("norm_topk_prob");
    let method = keys.text("topk_method")?.unwrap_or_else(|| "greedy".into());
    match method.as_str() {
        "greedy" | "gready" => {}
        "group_limited_greedy" => {
            router.groups = Some(ExpertGroups {
                num_groups: keys.size_of(&["n_group"])?,
                top_groups: keys.size_of(&["topk_group"])?,
                score: GroupScore::Max,
            });
        }
        _ => return Err(keys.unsupported("topk_method", "greedy and group_limited_greedy are supported")),
    }
    read_experts(keys, &mut model, router, 0)?;
    Ok(model)
}

pub(super) fn read_v3(keys: &Keys) -> Result<ModelConfig, HubError> {
    let mut model = read_latent(keys)?;
    let router = read_sigmoid_router(keys, 8, 8, 4)?;
    read_experts(keys, &mut model, router, 3)?;
    Ok(model)
}

/// Sigmoid scores with a bias in the choice, within groups.
pub(super) fn read_sigmoid_router(
    keys: &Keys,
    default_top_k: usize,
    default_groups: usize,
    default_kept: usize,
) -> Result<RouterConfig, HubError> {
    let top_k = keys.size("num_experts_per_tok")?.unwrap_or(default_top_k);
    let num_groups = keys.size("n_group")?.unwrap_or(default_groups);
    let top_groups = keys.size("topk_group")?.unwrap_or(default_kept);
    let groups = ExpertGroups { num_groups, top_groups, score: GroupScore::SumOfTopTwo };
    Ok(RouterConfig {
        renormalise: keys.flag_or("norm_topk_prob", true)?,
        sigmoid: Some(SigmoidConfig {
            routed_scaling: keys.number("routed_scaling_factor")?.unwrap_or(if default_groups == 1 {
                1.0
            } else {
                2.5
            }),
        }),
        groups: (num_groups > 1).then_some(groups),
        bias: Some(BiasRule::Fixed {}),
        ..RouterConfig::top_k(top_k)
    })
}

/// Sizes, latent attention and dense blocks of both.
fn read_latent(keys: &Keys) -> Result<ModelConfig, HubError> {
    keys.must_be("hidden_act", &json!("silu"))?;
    let num_heads = keys.size_of(&["num_attention_heads"])?;
    let kv_heads = keys.size("num_key_value_heads")?.unwrap_or(num_heads);
    if kv_heads != num_heads {
        return Err(keys.unsupported("num_key_value_heads", "latent attention has as many as heads"));
    }
    let (d_rope, d_nope) = (keys.size_of(&["qk_rope_head_dim"])?, keys.size_of(&["qk_nope_head_dim"])?);
    let latent = LatentConfig {
        d_query: keys.size("q_lora_rank")?,
        d_key_value: keys.size_of(&["kv_lora_rank"])?,
        d_rope,
        d_value: keys.size_of(&["v_head_dim"])?,
    };
    let attention = switchyard_model::AttentionConfig {
        d_head: Some(d_nope + d_rope),
        bias: bias_on_all(keys, "attention_bias", false)?,
        latent: Some(latent),
        ..plain_attention(num_heads)
    };
    let epsilon = keys.number("rms_norm_eps")?.unwrap_or(1e-6);
    let rope = rope::read(keys, d_rope, RopeDefaults::default())?;
    // They follow from the others.
    for key in ["head_dim", "qk_head_dim"] {
        keys.has(key);
    }
    keys.must_be("pretraining_tp", &json!(1))?;
    keys.must_be("moe_layer_freq", &json!(1))?;
    Ok(ModelConfig {
        num_layers: keys.size_of(&["num_hidden_layers"])?,
        d_model: keys.size_of(&["hidden_size"])?,
        attention: Some(attention),
        ffn: switchyard_model::FfnConfig {
            d_ff: keys.size("intermediate_size")?,
            ..plain_ffn(switchyard_experts::Activation::Swiglu)
        },
        norm: Some(switchyard_model::NormConfig::Rms(switchyard_model::RmsNormConfig { epsilon })),
        position: Some(PositionConfig::Rope(rope)),
        tie_embeddings: keys.flag_or("tie_word_embeddings", false)?,
        ..bare(keys)?
    })
}

/// Experts from layer `first_k_dense_replace` on, with shared ones.
pub(super) fn read_experts(
    keys: &Keys,
    model: &mut ModelConfig,
    router: RouterConfig,
    default_first: usize,
) -> Result<(), HubError> {
    let d_expert = keys.size_of(&["moe_intermediate_size"])?;
    let first = keys.size("first_k_dense_replace")?.unwrap_or(default_first);
    let Some(num_experts) = keys.size("n_routed_experts")? else { return Ok(()) };
    let num_shared = keys.size("n_shared_experts")?.unwrap_or(0);
    let sparse: Vec<usize> = (first..model.num_layers).collect();
    if sparse.is_empty() {
        return Ok(());
    }
    let mut moe = plain_moe(num_experts, d_expert, router);
    moe.d_shared_expert = (num_shared > 0).then_some(num_shared * d_expert);
    match sparse.len() == model.num_layers {
        true => model.ffn.d_ff = None,
        false => moe.layers = Some(MoeLayersConfig::List(sparse)),
    }
    model.ffn.moe = Some(moe);
    Ok(())
}

pub(super) fn write_v1(model: &ModelConfig) -> Map<String, Value> {
    let mut config = decoder_config::write(model);
    config.insert("attention_bias".into(), json!(model.attention().bias == AttentionBias::All));
    write_experts(model, &mut config);
    config.remove("routed_scaling_factor");
    if let Some(moe) = &model.ffn.moe {
        config.insert("norm_topk_prob".into(), json!(moe.router.renormalise));
        config.insert("scoring_func".into(), json!("softmax"));
        config.insert("moe_layer_freq".into(), json!(1));
    }
    config
}

pub(super) fn write_v2(model: &ModelConfig) -> Map<String, Value> {
    let mut config = write_latent(model);
    if let Some(moe) = &model.ffn.moe {
        let groups = moe.router.groups;
        let method = if groups.is_some() { "group_limited_greedy" } else { "greedy" };
        config.insert("topk_method".into(), json!(method));
        config.insert("n_group".into(), json!(groups.map(|groups| groups.num_groups)));
        config.insert("topk_group".into(), json!(groups.map(|groups| groups.top_groups)));
        config.insert("norm_topk_prob".into(), json!(false));
    }
    config
}

pub(super) fn write_v3(model: &ModelConfig) -> Map<String, Value> {
    let mut config = write_latent(model);
    config.insert("rope_interleave".into(), json!(true));
    write_groups(model, &mut config);
    config
}

/// The groups and renormalisation of a sigmoid router.
pub(super) fn write_groups(model: &ModelConfig, config: &mut Map<String, Value>) {
    let Some(moe) = &model.ffn.moe else { return };
    let groups = moe.router.groups;
    config.insert("n_group".into(), json!(groups.map_or(1, |groups| groups.num_groups)));
    config.insert("topk_group".into(), json!(groups.map_or(1, |groups| groups.top_groups)));
    config.insert("norm_topk_prob".into(), json!(moe.router.renormalise));
}

fn write_latent(model: &ModelConfig) -> Map<String, Value> {
    let mut config = decoder_config::write(model);
    let mut set = |key: &str, value: Value| {
        config.insert(key.to_owned(), value);
    };
    set("attention_bias", json!(model.attention().bias == AttentionBias::All));
    if let (Some(latent), Some(d_head)) = (&model.attention().latent, model.attention().d_head) {
        set("q_lora_rank", json!(latent.d_query));
        set("kv_lora_rank", json!(latent.d_key_value));
        set("qk_rope_head_dim", json!(latent.d_rope));
        set("qk_nope_head_dim", json!(d_head - latent.d_rope));
        set("v_head_dim", json!(latent.d_value));
        // Of the turned part, as these classes have it.
        set("head_dim", json!(latent.d_rope));
        if let Some(rope) = rope_of(model) {
            set("rope_parameters", rope::write(rope, latent.d_rope));
        }
    }
    write_experts(model, &mut config);
    config
}

/// The inverse of [`read_experts`], and the factor on gates.
pub(super) fn write_experts(model: &ModelConfig, config: &mut Map<String, Value>) {
    let Some(moe) = &model.ffn.moe else { return };
    let mut set = |key: &str, value: Value| {
        config.insert(key.to_owned(), value);
    };
    set("n_routed_experts", json!(moe.num_experts));
    set("num_experts_per_tok", json!(moe.router.top_k));
    set("moe_intermediate_size", json!(moe.d_expert));
    let num_shared = moe.d_shared_expert.unwrap_or(0) / moe.d_expert.max(1);
    // These classes build the shared expert from this number, so null stands for none.
    set("n_shared_experts", if num_shared > 0 { json!(num_shared) } else { Value::Null });
    set("first_k_dense_replace", json!(super::dense_layers(model).len()));
    set("routed_scaling_factor", json!(moe.router.gate_scale()));
    if model.ffn.d_ff.is_none() {
        set("intermediate_size", json!(moe.d_expert));
    }
}
