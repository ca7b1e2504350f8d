//! The shapes of a coordinate check: the base shape of a recipe, and multiples of it.

use switchyard_model::{BaseShapeConfig, ModelConfig, ModelSpec, ParametrisationConfig};
use switchyard_trainer::config::RunConfig;

use super::Axis;

/// The recipe at its base shape, with the learning rate as it is: at its own shape if it has no
/// parametrisation. `spec` is what its model resolves to.
pub(crate) fn base_shape(config: &RunConfig, spec: &ModelSpec) -> RunConfig {
    let mut at_base = config.clone();
    let model = &mut at_base.model;
    written_out(model, spec);
    let Some(ParametrisationConfig { base }) = model.parametrisation.take() else { return at_base };
    if let Some(attention) = &mut model.attention {
        let query_heads_each =
            attention.num_heads / attention.num_kv_heads.unwrap_or(attention.num_heads).max(1);
        attention.num_kv_heads = Some((base.num_heads / query_heads_each.max(1)).max(1));
        attention.d_head =
            base.d_head.or(config.model.attention().d_head).or(Some(base.d_model / base.num_heads));
        attention.num_heads = base.num_heads;
    }
    (model.d_model, model.num_layers) = (base.d_model, base.num_layers);
    model.ffn.d_ff = base.d_ff;
    if let Some(moe) = &mut model.ffn.moe {
        moe.num_experts = base.num_experts.unwrap_or(moe.num_experts);
        moe.d_expert = base.d_expert.unwrap_or(moe.d_expert);
        moe.d_shared_expert = base.d_shared_expert;
        let top_k = base.top_k.unwrap_or(moe.router.top_k);
        set_top_k(model, top_k);
    }
    at_base
}

/// The shape that the learning rate of a model is chosen for: that of its base, or its own without a
/// parametrisation. `spec` is what the model resolves to.
pub(crate) fn tuned_shape(config: &RunConfig, spec: &ModelSpec) -> BaseShapeConfig {
    shape_of(&base_shape(config, spec).model)
}

/// The shape of `at_base` multiplied along the axis; `None` where it cannot be: finer experts of an odd
/// width, or along an axis that the model does not have. Transferred, it takes the rate of `at_base`.
pub(crate) fn scaled(
    at_base: &RunConfig,
    axis: Axis,
    multiple: usize,
    is_transferred: bool,
) -> Option<RunConfig> {
    let mut config = at_base.clone();
    let model = &mut config.model;
    // At the base shape they are the same.
    model.parametrisation =
        (is_transferred && multiple > 1).then(|| ParametrisationConfig { base: shape_of(&at_base.model) });
    match (axis, &mut model.ffn.moe) {
        (Axis::Width, moe) => {
            model.d_model *= multiple;
            model.ffn.d_ff = model.ffn.d_ff.map(|d_ff| d_ff * multiple);
            if let Some(attention) = &mut model.attention {
                attention.num_heads *= multiple;
                attention.num_kv_heads = attention.num_kv_heads.map(|heads| heads * multiple);
            }
            if let Some(moe) = moe {
                moe.d_expert *= multiple;
                moe.d_shared_expert = moe.d_shared_expert.map(|width| width * multiple);
            }
        }
        (Axis::Depth, _) => model.num_layers *= multiple,
        (Axis::Experts, Some(moe)) => moe.num_experts *= multiple,
        (Axis::Granularity, Some(moe)) if moe.d_expert.is_multiple_of(multiple) => {
            moe.d_expert /= multiple;
            moe.num_experts *= multiple;
            let top_k = moe.router.top_k * multiple;
            set_top_k(model, top_k);
        }
        (Axis::Experts | Axis::Granularity, _) => return None,
    }
    Some(config)
}

/// Granularity applied, and the width of a head said.
fn written_out(model: &mut ModelConfig, spec: &ModelSpec) {
    let (d_model, num_layers) = (model.d_model, spec.num_layers());
    if let Some(attention) = &mut model.attention {
        attention.d_head.get_or_insert(d_model / attention.num_heads.max(1));
    }
    let experts = (0..num_layers).find_map(|layer| spec.experts_of(layer));
    if let (Some(moe), Some(experts)) = (&mut model.ffn.moe, experts) {
        (moe.num_experts, moe.d_expert) = (experts.num_experts, experts.d_expert);
        let top_k = moe.router.top_k * moe.granularity.take().unwrap_or(1);
        set_top_k(model, top_k);
    }
    if spec.routers().count() == num_layers {
        model.ffn.d_ff = None;
    }
}

/// A parametrisation has the same number of experts per token in all layers.
fn set_top_k(model: &mut ModelConfig, top_k: usize) {
    let Some(moe) = &mut model.ffn.moe else { return };
    moe.router.top_k = top_k;
    moe.router_overrides.iter_mut().for_each(|rule| rule.router.top_k = top_k);
}

/// The shape of a model whose granularity is applied.
fn shape_of(model: &ModelConfig) -> BaseShapeConfig {
    let moe = model.ffn.moe.as_ref();
    BaseShapeConfig {
        d_model: model.d_model,
        num_layers: model.num_layers,
        num_heads: model.attention.as_ref().map_or(1, |attention| attention.num_heads),
        d_head: model.attention.as_ref().and_then(|attention| attention.d_head),
        d_ff: model.ffn.d_ff,
        num_experts: moe.map(|moe| moe.num_experts),
        d_expert: moe.map(|moe| moe.d_expert),
        top_k: moe.map(|moe| moe.router.top_k),
        d_shared_expert: moe.and_then(|moe| moe.d_shared_expert),
    }
}
