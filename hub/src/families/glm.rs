//! GLM-4.5 with experts.

use serde_json::{Map, Value, json};
use switchyard_model::{
    AttentionBias, ModelConfig, NormConfig, QkNorm, QkNormConfig, QkNormOver, RmsNormConfig,
};

use super::deepseek;
use crate::HubError;
use crate::decoder_config::{self, Defaults};
use crate::keys::Keys;
use crate::rope::RopeDefaults;

pub(super) fn read(keys: &Keys) -> Result<ModelConfig, HubError> {
    let rope = RopeDefaults { partial: 0.5, ..RopeDefaults::default() };
    let mut model = decoder_config::read(keys, Defaults { norm_epsilon: 1e-5, rope, ..Defaults::default() })?;
    if keys.flag_or("attention_bias", false)? {
        model.attention_mut().bias = AttentionBias::Qkv;
    }
    if let (true, Some(NormConfig::Rms(RmsNormConfig { epsilon }))) =
        (keys.flag_or("use_qk_norm", false)?, &model.norm)
    {
        let over = QkNormOver::Head;
        model.attention_mut().qk_norm = QkNorm::On(QkNormConfig { over, epsilon: *epsilon });
    }
    let router = deepseek::read_sigmoid_router(keys, 8, 1, 1)?;
    deepseek::read_experts(keys, &mut model, router, 1)?;
    Ok(model)
}

pub(super) fn write(model: &ModelConfig) -> Map<String, Value> {
    let mut config = decoder_config::write(model);
    config.insert("attention_bias".into(), json!(model.attention().bias == AttentionBias::Qkv));
    config.insert("use_qk_norm".into(), json!(model.attention().qk_norm.settings().is_some()));
    deepseek::write_experts(model, &mut config);
    deepseek::write_groups(model, &mut config);
    config
}
