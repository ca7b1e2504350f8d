//! Families of models: for each a map of `config.json` both ways and a table of its tensors. No family
//! has a network of its own.

mod deepseek;
mod ernie;
mod falcon;
mod glm;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod llama;
mod mixtral;
mod olmo;
mod phimoe;
mod qwen;

use serde_json::{Map, Value};
use switchyard_experts::MoeLayersConfig;
use switchyard_model::{ModelConfig, ModelSpec};

use crate::HubError;
use crate::keys::Keys;
use crate::layout::{Mapping, Pairs};
use crate::table::{DecoderNames, GATE_UP_DOWN, MoeNames, Table};

/// A family of published models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 1, 2 and 3.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3.
    Qwen3,
    /// OLMo 2.
    Olmo2,
    /// GPT-2.
    Gpt2,
    /// GPT-NeoX and Pythia.
    GptNeox,
    /// Falcon 7B, 40B, 180B and RefinedWeb.
    Falcon,
    /// Mixtral.
    Mixtral,
    /// OLMoE.
    Olmoe,
    /// Qwen1.5-MoE and Qwen2-MoE.
    Qwen2Moe,
    /// Qwen3-MoE.
    Qwen3Moe,
    /// The first DeepSeekMoE.
    Deepseek,
    /// DeepSeek-V2.
    DeepseekV2,
    /// DeepSeek-V3 and R1.
    DeepseekV3,
    /// gpt-oss.
    GptOss,
    /// GLM-4.5.
    Glm4Moe,
    /// ERNIE 4.5 with experts.
    Ernie45Moe,
    /// Granite with experts.
    GraniteMoe,
    /// Phi-3.5-MoE.
    PhiMoe,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 20] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Olmo2,
        Self::Gpt2,
        Self::GptNeox,
        Self::Falcon,
        Self::Mixtral,
        Self::Olmoe,
        Self::Qwen2Moe,
        Self::Qwen3Moe,
        Self::Deepseek,
        Self::DeepseekV2,
        Self::DeepseekV3,
        Self::GptOss,
        Self::Glm4Moe,
        Self::Ernie45Moe,
        Self::GraniteMoe,
        Self::PhiMoe,
    ];

    /// Its `model_type`, and the class in `architectures`.
    pub fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Llama => ("llama", "LlamaForCausalLM"),
            Self::Mistral => ("mistral", "MistralForCausalLM"),
            Self::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
            Self::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
            Self::Olmo2 => ("olmo2", "Olmo2ForCausalLM"),
            Self::Gpt2 => ("gpt2", "GPT2LMHeadModel"),
            Self::GptNeox => ("gpt_neox", "GPTNeoXForCausalLM"),
            Self::Falcon => ("falcon", "FalconForCausalLM"),
            Self::Mixtral => ("mixtral", "MixtralForCausalLM"),
            Self::Olmoe => ("olmoe", "OlmoeForCausalLM"),
            Self::Qwen2Moe => ("qwen2_moe", "Qwen2MoeForCausalLM"),
            Self::Qwen3Moe => ("qwen3_moe", "Qwen3MoeForCausalLM"),
            Self::Deepseek => ("deepseek", "DeepseekForCausalLM"),
            Self::DeepseekV2 => ("deepseek_v2", "DeepseekV2ForCausalLM"),
            Self::DeepseekV3 => ("deepseek_v3", "DeepseekV3ForCausalLM"),
            Self::GptOss => ("gpt_oss", "GptOssForCausalLM"),
            Self::Glm4Moe => ("glm4_moe", "Glm4MoeForCausalLM"),
            Self::Ernie45Moe => ("ernie4_5_moe", "Ernie4_5_MoeForCausalLM"),
            Self::GraniteMoe => ("granitemoe", "GraniteMoeForCausalLM"),
            Self::PhiMoe => ("phimoe", "PhimoeForCausalLM"),
        }
    }

    /// Whether transformers has its class: what is written of another needs code of its own there.
    pub fn is_in_transformers(self) -> bool {
        self != Self::Deepseek
    }

    /// The family of a `model_type`; `None` if it is of none.
    pub fn of_model_type(model_type: &str) -> Option<Self> {
        let is_it = |family: &Self| family.names().0 == model_type;
        // Falcon's first files.
        let earlier = matches!(model_type, "RefinedWeb" | "RefinedWebModel").then_some(Self::Falcon);
        Self::ALL.into_iter().find(is_it).or(earlier)
    }

    /// The model that `config.json` describes.
    pub(crate) fn read(self, keys: &Keys) -> Result<ModelConfig, HubError> {
        let mut model = self.read_keys(keys)?;
        if let Some(moe) = &mut model.ffn.moe {
            // Its router is as it is, whether or not a gate of 1 could teach it anything.
            moe.router.constant_gate = moe.router.top_k == 1;
        }
        Ok(model)
    }

    fn read_keys(self, keys: &Keys) -> Result<ModelConfig, HubError> {
        match self {
            Self::Llama => llama::read_llama(keys),
            Self::Mistral => llama::read_mistral(keys),
            Self::Qwen2 => qwen::read_qwen2(keys),
            Self::Qwen3 => qwen::read_qwen3(keys),
            Self::Olmo2 => olmo::read_olmo2(keys),
            Self::Gpt2 => gpt2::read(keys),
            Self::GptNeox => gpt_neox::read(keys),
            Self::Falcon => falcon::read(keys),
            Self::Mixtral => mixtral::read(keys),
            Self::Olmoe => olmo::read_olmoe(keys),
            Self::Qwen2Moe => qwen::read_qwen2_moe(keys),
            Self::Qwen3Moe => qwen::read_qwen3_moe(keys),
            Self::Deepseek => deepseek::read_v1(keys),
            Self::DeepseekV2 => deepseek::read_v2(keys),
            Self::DeepseekV3 => deepseek::read_v3(keys),
            Self::GptOss => gpt_oss::read(keys),
            Self::Glm4Moe => glm::read(keys),
            Self::Ernie45Moe => ernie::read(keys),
            Self::GraniteMoe => granite::read(keys),
            Self::PhiMoe => phimoe::read(keys),
        }
    }

    /// The keys of `config.json` that say what `model` computes.
    pub(crate) fn write(self, model: &ModelConfig) -> Map<String, Value> {
        // What is not written has our default, which need not be the family's.
        let mut model = model.clone();
        model.position.get_or_insert_default();
        model.norm.get_or_insert_default();
        let d_model = model.d_model;
        let attention = model.attention_mut();
        attention.num_kv_heads.get_or_insert(attention.num_heads);
        attention.d_head.get_or_insert(d_model / attention.num_heads.max(1));
        self.write_keys(&model)
    }

    fn write_keys(self, model: &ModelConfig) -> Map<String, Value> {
        match self {
            Self::Llama => llama::write_llama(model),
            Self::Mistral => llama::write_mistral(model),
            Self::Qwen2 => qwen::write_qwen2(model),
            Self::Qwen3 => qwen::write_qwen3(model),
            Self::Olmo2 => olmo::write_olmo2(model),
            Self::Gpt2 => gpt2::write(model),
            Self::GptNeox => gpt_neox::write(model),
            Self::Falcon => falcon::write(model),
            Self::Mixtral => mixtral::write(model),
            Self::Olmoe => olmo::write_olmoe(model),
            Self::Qwen2Moe => qwen::write_qwen2_moe(model),
            Self::Qwen3Moe => qwen::write_qwen3_moe(model),
            Self::Deepseek => deepseek::write_v1(model),
            Self::DeepseekV2 => deepseek::write_v2(model),
            Self::DeepseekV3 => deepseek::write_v3(model),
            Self::GptOss => gpt_oss::write(model),
            Self::Glm4Moe => glm::write(model),
            Self::Ernie45Moe => ernie::write(model),
            Self::GraniteMoe => granite::write(model),
            Self::PhiMoe => phimoe::write(model),
        }
    }

    /// Where each parameter of `spec` is published, in files that have these channels of a head turn
    /// together.
    pub fn tensors(self, spec: &ModelSpec, pairs: Pairs) -> Vec<Mapping> {
        let table = Table::new(spec);
        match self {
            Self::Gpt2 => gpt2::tensors(table),
            Self::GptNeox => gpt_neox::tensors(table),
            Self::Falcon => falcon::tensors(table),
            Self::GptOss => gpt_oss::tensors(table),
            _ => table.decoder(&DecoderNames { pairs, ..self.decoder_names() }).finish(),
        }
    }

    /// Names of a Llama-like family.
    fn decoder_names(self) -> DecoderNames {
        let moe = match self {
            Self::Mixtral => Some(mixtral::NAMES),
            Self::Olmoe | Self::Qwen3Moe => Some(PLAIN_MOE),
            Self::Qwen2Moe => Some(MoeNames { shared: "mlp.shared_expert", ..PLAIN_MOE }),
            Self::Deepseek => Some(deepseek::NAMES_V1),
            Self::DeepseekV2 | Self::DeepseekV3 | Self::Glm4Moe => Some(deepseek::NAMES),
            Self::Ernie45Moe => Some(ernie::NAMES),
            Self::GraniteMoe => Some(granite::NAMES),
            Self::PhiMoe => Some(phimoe::NAMES),
            _ => None,
        };
        let norms = match self {
            Self::Olmo2 => ["post_attention_layernorm", "post_feedforward_layernorm"],
            _ => ["input_layernorm", "post_attention_layernorm"],
        };
        DecoderNames { norms, pairs: Pairs::Halves, moe }
    }

    /// Which channels of a head turn together in this family's files.
    pub(crate) fn pairs(self, keys: &Keys) -> Result<Pairs, HubError> {
        let neighbours = match self {
            Self::Ernie45Moe | Self::DeepseekV2 => true,
            Self::DeepseekV3 => keys.flag_or("rope_interleave", true)?,
            _ => false,
        };
        Ok(if neighbours { Pairs::Neighbours } else { Pairs::Halves })
    }

    /// Which channels of a head turn together in files that are written.
    pub fn written_pairs(self) -> Pairs {
        match self {
            Self::Ernie45Moe | Self::DeepseekV2 | Self::DeepseekV3 => Pairs::Neighbours,
            _ => Pairs::Halves,
        }
    }

    /// Whether a tensor of this name carries no parameter, though it may lie in a file.
    pub(crate) fn is_ignored(self, name: &str, num_layers: usize) -> bool {
        let everywhere = name.ends_with("rotary_emb.inv_freq");
        let own = match self {
            Self::Gpt2 => {
                // The mask, a matrix; not `attn.c_attn.bias`.
                name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")
            }
            Self::GptNeox => name.ends_with(".attention.bias") || name.ends_with(".attention.masked_bias"),
            Self::DeepseekV3 | Self::Glm4Moe => name.contains(&format!("layers.{num_layers}.")),
            Self::Ernie45Moe => name.contains("mtp"),
            _ => false,
        };
        everywhere || own
    }

    /// What stands before the names of a base model that was saved with a head.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Gpt2 | Self::Falcon => "transformer.",
            Self::GptNeox => "gpt_neox.",
            _ => "model.",
        }
    }
}

/// Layers of the model that are mixtures.
fn sparse_layers(model: &ModelConfig) -> Vec<usize> {
    let Some(moe) = &model.ffn.moe else { return Vec::new() };
    (0..model.num_layers)
        .filter(|layer| match &moe.layers {
            None => true,
            Some(MoeLayersConfig::Every(every)) => (layer + 1).is_multiple_of(*every),
            Some(MoeLayersConfig::List(list)) => list.contains(layer),
        })
        .collect()
}

/// Layers of the model that are dense.
fn dense_layers(model: &ModelConfig) -> Vec<usize> {
    let sparse = sparse_layers(model);
    (0..model.num_layers).filter(|layer| !sparse.contains(layer)).collect()
}

/// Names of a mixture as most families have them.
const PLAIN_MOE: MoeNames = MoeNames {
    router: &["mlp.gate.weight"],
    selection_bias: &[],
    selection_bias_is_row: false,
    expert: "mlp.experts.",
    matrices: GATE_UP_DOWN,
    fused: ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    shared: "mlp.shared_experts",
};
