//! `[model.parametrisation]`: from the base shape that is written to the sizes over it.

use switchyard_experts::{ExpertsSpec, FfnSpec};
use switchyard_ground::key_checks::in_range;
use switchyard_ground::key_error::KeyError;
use switchyard_router::{RouterConfig, Selection, SoftmaxOrder};

use super::limits::{MAX_D_HEAD, MAX_D_MODEL, MAX_EXPERTS, MAX_HEADS, MAX_HIDDEN_WIDTH, MAX_LAYERS};
use crate::{
    AttentionSpec, BaseShapeConfig, LayerSpec, MixerSpec, ModelConfig, ModelSpec, MultipliersConfig,
    Parametrisation, Residual,
};

const TABLE: &str = "model.parametrisation";

/// The sizes of these layers over those of the base shape; `None` without the table.
///
/// # Errors
/// A base shape of another architecture, or a part of the model for which no rule is known.
pub(super) fn resolve_parametrisation(
    config: &ModelConfig,
    layers: &[LayerSpec],
) -> Result<Option<Parametrisation>, KeyError> {
    let Some(parametrisation) = &config.parametrisation else { return Ok(None) };
    let base = &parametrisation.base;
    let attention = attention_of(layers)?;
    check_layers(config, base, layers)?;
    let d_head = base_d_head(config, base, attention)?;
    let parts = Parts::of(layers)?;
    parts.check(base)?;
    let over = |size: Option<usize>, base: Option<usize>| match (size, base) {
        (Some(size), Some(base)) => size as f64 / base as f64,
        _ => 1.0,
    };
    let width = config.d_model as f64 / base.d_model as f64;
    let heads = attention.num_heads as f64 / base.num_heads as f64;
    let heads_over = attention.d_head as f64 / d_head as f64;
    let top_k = over(parts.router.map(|router| router.top_k), base.top_k);
    Ok(Some(Parametrisation {
        base_num_layers: base.num_layers,
        depth: config.num_layers as f64 / base.num_layers as f64,
        width,
        query_inputs: match attention.latent.as_ref().and_then(|latent| latent.d_query) {
            Some(_) => 1.0,
            None => width,
        },
        mixed_width: heads * heads_over,
        d_head: heads_over,
        d_ff: over(parts.d_ff, base.d_ff),
        d_shared_expert: over(parts.d_shared_expert(), base.d_shared_expert),
        d_expert: over(parts.experts.as_ref().map(|experts| experts.d_expert), base.d_expert),
        num_experts: over(parts.experts.as_ref().map(|experts| experts.num_experts), base.num_experts),
        top_k,
        gate: match parts.router {
            Some(router) if has_independent_gates(router) => 1.0,
            _ => top_k.recip(),
        },
    }))
}

impl ModelConfig {
    /// The same network without a parametrisation: its multipliers and its scale of attention
    /// written out. Initial values and rates are not part of it.
    pub fn without_parametrisation(&self, spec: &ModelSpec) -> Self {
        let mut config = self.clone();
        if config.parametrisation.take().is_none() {
            return config;
        }
        config.multipliers = spec.multipliers;
        // That of the first layer is not divided by anything, where layers divide it. A family with
        // multipliers writes the scale out, also the usual one.
        let has_multipliers = spec.multipliers != MultipliersConfig::default();
        let scale = spec.layers.first().and_then(|layer| match &layer.mixer {
            MixerSpec::Attention(attention) => {
                let usual = has_multipliers.then(|| 1.0 / (attention.d_head as f64).sqrt());
                attention.scale.or(usual)
            }
            MixerSpec::Lstm(_) => None,
        });
        if let Some(attention) = &mut config.attention {
            attention.scale = scale;
        }
        config
    }
}

/// What the base shape has to say something about.
struct Parts<'a> {
    d_ff: Option<usize>,
    experts: Option<&'a ExpertsSpec>,
    router: Option<&'a RouterConfig>,
}

impl<'a> Parts<'a> {
    /// # Errors
    /// If blocks or routers have no rule, or one that is not the same in all layers.
    fn of(layers: &'a [LayerSpec]) -> Result<Self, KeyError> {
        let mut parts = Self { d_ff: None, experts: None, router: None };
        for layer in layers {
            let (experts, router) = match &layer.ffn {
                FfnSpec::Dense(dense) => {
                    parts.d_ff = Some(dense.d_ff);
                    continue;
                }
                FfnSpec::Absent => continue,
                FfnSpec::BlockSparse(_) => return Err(no_rule("`model.ffn.block_sparse`")),
                FfnSpec::SoftMoe(soft) => {
                    return Err(no_rule(&format!("`{}.selection.soft`", soft.router.key)));
                }
                FfnSpec::Moe(moe) => (&moe.experts, &moe.router),
            };
            if let Some(first) = parts.router.filter(|first| !same_gates(first, &router.config)) {
                let problem = format!(
                    "is {}, and that of other layers {}: their experts would need rates of their own",
                    gates_in_words(&router.config),
                    gates_in_words(first)
                );
                let remedy =
                    format!("give all routers the same `top_k` and sum of gates, or remove `{TABLE}`");
                return Err(KeyError::new(format!("{}.top_k", router.key), problem, remedy).naming(TABLE));
            }
            (parts.experts, parts.router) = (Some(experts), Some(&router.config));
        }
        Ok(parts)
    }

    fn d_shared_expert(&self) -> Option<usize> {
        Some(self.experts?.shared.as_ref()?.d_expert)
    }

    /// Ok if the base shape has the parts that the model has, and no others.
    fn check(&self, base: &BaseShapeConfig) -> Result<(), KeyError> {
        let mixture = "a mixture of experts";
        let (is_mixture, is_shared) = (self.experts.is_some(), self.d_shared_expert().is_some());
        let widths = 1..=MAX_HIDDEN_WIDTH;
        let keys = [
            ("d_ff", base.d_ff, self.d_ff.is_some(), "dense blocks", widths.clone()),
            ("num_experts", base.num_experts, is_mixture, mixture, 1..=MAX_EXPERTS),
            ("d_expert", base.d_expert, is_mixture, mixture, widths.clone()),
            ("top_k", base.top_k, is_mixture, mixture, 1..=base.num_experts.unwrap_or(1)),
            ("d_shared_expert", base.d_shared_expert, is_shared, "a shared expert", widths),
        ];
        for (key, value, is_needed, what, range) in keys {
            let key = format!("{TABLE}.base.{key}");
            match (value, is_needed) {
                (Some(value), true) => in_range(&key, value, range)?,
                (None, false) => {}
                (None, true) => {
                    let problem = format!("is missing, but the model has {what}");
                    return Err(KeyError::new(key, problem, "give that of the base shape"));
                }
                (Some(_), false) => {
                    let problem =
                        format!("has no effect: the model has no {}", what.trim_start_matches("a "));
                    return Err(KeyError::new(key, problem, "remove the key"));
                }
            }
        }
        Ok(())
    }
}

/// The attention of all layers, which differ in windows and scales alone.
fn attention_of(layers: &[LayerSpec]) -> Result<&AttentionSpec, KeyError> {
    match layers.first().map(|layer| &layer.mixer) {
        Some(MixerSpec::Attention(attention)) => Ok(attention),
        Some(MixerSpec::Lstm(_)) | None => Err(no_rule("`model.lstm`")),
    }
}

fn check_layers(config: &ModelConfig, base: &BaseShapeConfig, layers: &[LayerSpec]) -> Result<(), KeyError> {
    let key = |name: &str| format!("{TABLE}.base.{name}");
    in_range(&key("d_model"), base.d_model, 1..=MAX_D_MODEL)?;
    in_range(&key("num_layers"), base.num_layers, 1..=MAX_LAYERS)?;
    in_range(&key("num_heads"), base.num_heads, 1..=MAX_HEADS)?;
    if config.residual == Residual::PostNorm && base.num_layers != layers.len() {
        let problem = format!(
            "is {}, but the model has {} layers, and for `model.residual` = \"post_norm\" no rule over depth is known",
            base.num_layers,
            layers.len()
        );
        let remedy = format!("use {}, or another `model.residual`", layers.len());
        return Err(KeyError::new(key("num_layers"), problem, remedy).naming("model.residual"));
    }
    Ok(())
}

/// Width of one head of the base shape.
fn base_d_head(
    config: &ModelConfig,
    base: &BaseShapeConfig,
    attention: &AttentionSpec,
) -> Result<usize, KeyError> {
    let key = format!("{TABLE}.base.d_head");
    let written = base.d_head.or(config.attention.as_ref().and_then(|attention| attention.d_head));
    let d_head = match written {
        Some(d_head) => d_head,
        None if base.d_model.is_multiple_of(base.num_heads) => base.d_model / base.num_heads,
        None => {
            let key = format!("{TABLE}.base.num_heads");
            let problem = format!(
                "is {}, which does not divide `{TABLE}.base.d_model` = {}",
                base.num_heads, base.d_model
            );
            let remedy = format!("use a divisor, or set `{TABLE}.base.d_head`");
            return Err(KeyError::new(key, problem, remedy));
        }
    };
    in_range(&key, d_head, 1..=MAX_D_HEAD)?;
    if attention.latent.is_some() && d_head != attention.d_head {
        let problem =
            format!("is {d_head}, but heads of latent attention keep their width, {}", attention.d_head);
        return Err(KeyError::new(key, problem, format!("use {}", attention.d_head)));
    }
    Ok(d_head)
}

/// The scale of attention in these layers, whose heads are so many times as wide as the base's.
///
/// Scores of queries and keys that have come to agree grow with the width of a head, not with its
/// root (arXiv:2203.03466, definition 4.1): a scale by the root falls by the other root.
pub(super) fn scale_attention(layers: &mut [LayerSpec], heads_over: f64) {
    if heads_over == 1.0 {
        return;
    }
    for layer in layers {
        if let MixerSpec::Attention(attention) = &mut layer.mixer {
            attention.scale = Some(match attention.scale {
                Some(scale) => scale / heads_over,
                None => 1.0 / (attention.d_head as f64 * heads_over).sqrt(),
            });
        }
    }
}

/// What is not transferred where a token's gates begin with a sum that goes with the experts.
pub(super) fn note_on_gates(parametrisation: &Parametrisation, layers: &[LayerSpec]) -> Option<String> {
    let router = layers.iter().find_map(|layer| layer.ffn.router())?;
    let RouterConfig { sigmoid, renormalise, softmax, .. } = &router.config;
    let has_one_sum = *renormalise || sigmoid.is_some() || *softmax == SoftmaxOrder::AfterSelection;
    (!has_one_sum && parametrisation.num_experts != parametrisation.top_k).then(|| {
        format!(
            "`{}.renormalise` is false, so that a token's gates begin with a sum of `top_k / num_experts`, which is not \
             that of the base shape: experts begin weaker or stronger than there",
            router.key
        )
    })
}

/// What is odd about a base shape that is larger than the model.
pub(super) fn note_on_size(parametrisation: &Parametrisation) -> Option<String> {
    let Parametrisation { width, depth, .. } = *parametrisation;
    (width < 1.0 || depth < 1.0).then(|| {
        format!(
            "`{TABLE}.base` is wider or deeper than the model (the model has {width:.3} times its width and {depth:.3} times \
             its layers): rates are chosen on a small model and taken to a large one"
        )
    })
}

/// Whether each gate of a token is a number of its own, so that more of them add up to more.
fn has_independent_gates(router: &RouterConfig) -> bool {
    (router.sigmoid.is_some() && !router.renormalise) || matches!(router.selection, Selection::SparseMixer(_))
}

fn same_gates(a: &RouterConfig, b: &RouterConfig) -> bool {
    a.top_k == b.top_k && has_independent_gates(a) == has_independent_gates(b)
}

fn gates_in_words(router: &RouterConfig) -> String {
    let sum = if has_independent_gates(router) { "independent gates" } else { "gates of one sum" };
    format!("{} with {sum}", router.top_k)
}

fn no_rule(what: &str) -> KeyError {
    let problem = format!("is given beside {what}, for which no rule is known");
    KeyError::new(TABLE, problem, "remove one of them")
}
