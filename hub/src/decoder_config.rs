//! The keys of `config.json` that the Llama-like families share, both ways.

use serde_json::{Map, Value, json};
use switchyard_experts::{Activation, MoeConfig};
use switchyard_model::{
    AttentionBias, AttentionConfig, FfnConfig, InitConfig, ModelConfig, MultipliersConfig, NormConfig,
    PositionConfig, QkNorm, Residual, RmsNormConfig, RopeConfig, WindowConfig,
};
use switchyard_router::{BalancingScope, RouterConfig};

use crate::HubError;
use crate::keys::Keys;
use crate::rope::{self, RopeDefaults};

/// What a family's class takes for keys that are absent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults {
    pub(crate) norm_epsilon: f64,
    pub(crate) rope: RopeDefaults,
    pub(crate) tied: bool,
    /// Width of a head; `None` is `hidden_size / num_attention_heads`.
    pub(crate) d_head: Option<usize>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { norm_epsilon: 1e-6, rope: RopeDefaults::default(), tied: false, d_head: None }
    }
}

/// A Llama of the sizes in `keys`, with a dense feed-forward block of width `intermediate_size`.
pub(crate) fn read(keys: &Keys, defaults: Defaults) -> Result<ModelConfig, HubError> {
    keys.must_be("hidden_act", &json!("silu"))?;
    let d_model = keys.size_of(&["hidden_size"])?;
    let num_heads = keys.size_of(&["num_attention_heads"])?;
    let d_head = match keys.size("head_dim")?.or(defaults.d_head) {
        Some(d_head) => d_head,
        None => head_width(keys, d_model, num_heads)?,
    };
    let attention = AttentionConfig {
        num_heads,
        num_kv_heads: Some(keys.size("num_key_value_heads")?.unwrap_or(num_heads)),
        d_head: Some(d_head),
        ..plain_attention(num_heads)
    };
    let epsilon = keys.number("rms_norm_eps")?.unwrap_or(defaults.norm_epsilon);
    Ok(ModelConfig {
        num_layers: keys.size_of(&["num_hidden_layers"])?,
        d_model,
        attention: Some(attention),
        ffn: FfnConfig { d_ff: keys.size("intermediate_size")?, ..plain_ffn(Activation::Swiglu) },
        norm: Some(NormConfig::Rms(RmsNormConfig { epsilon })),
        position: Some(PositionConfig::Rope(rope::read(keys, d_head, defaults.rope)?)),
        tie_embeddings: keys.flag_or("tie_word_embeddings", defaults.tied)?,
        ..bare(keys)?
    })
}

/// What every decoder's configuration has, with a model of no layers.
pub(crate) fn bare(keys: &Keys) -> Result<ModelConfig, HubError> {
    Ok(ModelConfig {
        num_layers: 0,
        d_model: 0,
        attention: Some(plain_attention(1)),
        lstm: None,
        ffn: plain_ffn(Activation::Swiglu),
        norm: None,
        position: None,
        tie_embeddings: false,
        dropout: 0.0,
        residual: Residual::Sequential,
        init: InitConfig { std: keys.number("initializer_range")?.unwrap_or(0.02), ..InitConfig::default() },
        vocab_size: Some(keys.size_of(&["vocab_size"])?),
        num_positions: keys.size("max_position_embeddings")?,
        multipliers: MultipliersConfig::default(),
        parametrisation: None,
        head_bias: false,
        padding_id: keys.size("pad_token_id")?,
    })
}

pub(crate) fn plain_attention(num_heads: usize) -> AttentionConfig {
    AttentionConfig {
        num_heads,
        num_kv_heads: None,
        d_head: None,
        qk_norm: QkNorm::Off,
        bias: AttentionBias::Off,
        window: None,
        sinks: false,
        clip_qkv: None,
        scale: None,
        scale_by_layer: false,
        latent: None,
    }
}

pub(crate) fn plain_ffn(activation: Activation) -> FfnConfig {
    FfnConfig { activation, d_ff: None, bias: false, moe: None, block_sparse: None }
}

/// `hidden_size / num_attention_heads`.
pub(crate) fn head_width(keys: &Keys, d_model: usize, num_heads: usize) -> Result<usize, HubError> {
    if num_heads == 0 || !d_model.is_multiple_of(num_heads) {
        let problem = format!("is {num_heads}, which does not divide `hidden_size` = {d_model}");
        return Err(keys.error("num_attention_heads", problem, "is `head_dim` missing?"));
    }
    Ok(d_model / num_heads)
}

/// Biases on all four projections if `key` says so.
pub(crate) fn bias_on_all(keys: &Keys, key: &str, default: bool) -> Result<AttentionBias, HubError> {
    Ok(if keys.flag_or(key, default)? { AttentionBias::All } else { AttentionBias::Off })
}

/// Layers with a window: `layer_types` if it is there, else those that `by_default` names.
pub(crate) fn read_window(
    keys: &Keys,
    len: Option<usize>,
    num_layers: usize,
    by_default: impl Fn(usize) -> bool,
) -> Result<Option<WindowConfig>, HubError> {
    let layers: Vec<usize> = match keys.texts("layer_types")? {
        Some(types) => {
            if types.len() != num_layers {
                let problem = format!("has {} entries for {num_layers} layers", types.len());
                return Err(keys.error("layer_types", problem, "give one for each layer"));
            }
            if types.iter().any(|kind| kind != "sliding_attention" && kind != "full_attention") {
                let remedy = "full_attention and sliding_attention are supported";
                return Err(keys.unsupported("layer_types", remedy));
            }
            (0..num_layers).filter(|layer| types[*layer] == "sliding_attention").collect()
        }
        None if len.is_some() => (0..num_layers).filter(|layer| by_default(*layer)).collect(),
        None => Vec::new(),
    };
    if layers.is_empty() {
        return Ok(None);
    }
    let len = len.ok_or_else(|| keys.missing("sliding_window"))?;
    let layers = (layers.len() < num_layers).then_some(layers);
    Ok(Some(WindowConfig { len, layers }))
}

/// `layer_types` of the model.
pub(crate) fn layer_types(model: &ModelConfig) -> Value {
    let slides = |layer: usize| {
        let window = model.attention().window.as_ref();
        window.is_some_and(|it| it.layers.as_ref().is_none_or(|layers| layers.contains(&layer)))
    };
    let name = |layer| if slides(layer) { "sliding_attention" } else { "full_attention" };
    json!((0..model.num_layers).map(name).collect::<Vec<_>>())
}

/// The balancing loss of `router_aux_loss_coef`, which enters the loss only with
/// `output_router_logits`. Theirs is `top_k` times ours.
pub(crate) fn read_balancing(keys: &Keys, router: &mut RouterConfig, default: f64) -> Result<(), HubError> {
    let weight = keys.number("router_aux_loss_coef")?.unwrap_or(default);
    if keys.flag_or("output_router_logits", false)? && weight > 0.0 {
        router.load_balancing_weight = Some(weight * router.top_k as f64);
        router.load_balancing_scope = BalancingScope::AllLayers;
    }
    Ok(())
}

/// The inverse of [`read_balancing`]. A loss over other tokens than theirs is written with its
/// weight: it does the same, and nothing of it is in the model.
pub(crate) fn write_balancing(router: &RouterConfig, config: &mut Map<String, Value>) {
    let weight = router.load_balancing_weight.unwrap_or(0.0) / router.top_k as f64;
    config.insert("output_router_logits".into(), json!(router.load_balancing_weight.is_some()));
    config.insert("router_aux_loss_coef".into(), json!(weight));
}

/// A mixture without a shared expert.
pub(crate) fn plain_moe(num_experts: usize, d_expert: usize, router: RouterConfig) -> MoeConfig {
    MoeConfig {
        num_experts,
        d_expert,
        granularity: None,
        d_shared_expert: None,
        shared_expert_gate: false,
        shared_expert_bias: false,
        expert_bias: false,
        router,
        router_overrides: Vec::new(),
        capacity: None,
        layers: None,
    }
}

/// The keys that [`read`] reads.
pub(crate) fn write(model: &ModelConfig) -> Map<String, Value> {
    let heads = model.attention();
    let d_head = heads.d_head.unwrap_or(model.d_model / heads.num_heads.max(1));
    let mut config = write_bare(model);
    let mut set = |key: &str, value: Value| {
        config.insert(key.to_owned(), value);
    };
    set("hidden_act", json!("silu"));
    set("num_key_value_heads", json!(heads.num_kv_heads.unwrap_or(heads.num_heads)));
    set("head_dim", json!(d_head));
    if let Some(d_ff) = model.ffn.d_ff {
        set("intermediate_size", json!(d_ff));
    }
    if let Some(NormConfig::Rms(RmsNormConfig { epsilon })) = &model.norm {
        set("rms_norm_eps", json!(epsilon));
    }
    if let Some(PositionConfig::Rope(rope)) = &model.position {
        set("rope_parameters", rope::write(rope, d_head));
    }
    config
}

/// The keys that every decoder has.
pub(crate) fn write_bare(model: &ModelConfig) -> Map<String, Value> {
    let keys = json!({
        "hidden_size": model.d_model,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.attention().num_heads,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.num_positions,
        "initializer_range": model.init.std,
        "pad_token_id": model.padding_id,
        "tie_word_embeddings": model.tie_embeddings,
    });
    match keys {
        Value::Object(keys) => keys,
        _ => Map::new(),
    }
}

/// Rotary positions of a model that has them.
pub(crate) fn rope_of(model: &ModelConfig) -> Option<&RopeConfig> {
    match &model.position {
        Some(PositionConfig::Rope(rope)) => Some(rope),
        _ => None,
    }
}
