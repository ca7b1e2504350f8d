//! What is written is read back bit for bit, in every family and form.

#![expect(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::path::{Path, PathBuf};

use switchyard_hub::export::{ExpertForm, ExportRequest, Fit, expresses, family_for, write_model};
use switchyard_hub::tensor_files::Element;
use switchyard_hub::{HubError, Located, PublishedModel};
use switchyard_model::ParameterName;

/// The reference models, or those in the folder `FIXTURES`.
fn fixtures() -> Vec<PathBuf> {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../trainer/tests/fixtures");
    let root = std::env::var_os("FIXTURES").map_or_else(own, PathBuf::from);
    let folders = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = folders.filter(|path| path.join("io.safetensors").exists()).collect();
    folders.sort();
    folders
}

fn parameters(published: &PublishedModel, located: &Located) -> Vec<(ParameterName, Vec<u32>)> {
    let values = |name| published.values(located, name).unwrap();
    let bits = |name| values(name).iter().map(|value| value.to_bits()).collect();
    located.names().map(|(name, _)| (name, bits(name))).collect()
}

#[test]
fn what_is_written_is_read_back_bit_for_bit() {
    for folder in fixtures() {
        let published = PublishedModel::open(&folder).unwrap();
        let spec = published.spec(8).unwrap();
        let located = published.locate(&spec).unwrap();
        let before = parameters(&published, &located);
        for (experts, max_shard_bytes) in [(ExpertForm::Published, usize::MAX), (ExpertForm::Fused, 20_000)] {
            let target = tempfile::tempdir().unwrap();
            let request = ExportRequest {
                family: published.family,
                config: &published.config,
                spec: &spec,
                element: Element::F32,
                experts,
                special_ids: &published.special_ids,
                max_shard_bytes,
            };
            write_model::<HubError>(&request, target.path(), |name| published.values(&located, name))
                .unwrap();
            let written = PublishedModel::open(target.path()).unwrap();
            assert_eq!(written.family, published.family);
            assert_eq!(written.special_ids, published.special_ids);
            assert_eq!(written.unknown_keys, [], "{folder:?}");
            assert_eq!(written.spec(8).unwrap(), spec, "{folder:?}");
            let again = written.locate(&spec).unwrap();
            assert_eq!(parameters(&written, &again), before, "{folder:?} {experts:?}");
            let is_sharded = target.path().join("model.safetensors.index.json").exists();
            assert_eq!(is_sharded, experts == ExpertForm::Fused);
        }
    }
}

#[test]
fn a_family_expresses_its_own_models_and_not_all_others() {
    for folder in fixtures() {
        let published = PublishedModel::open(&folder).unwrap();
        assert!(expresses(published.family, &published.config), "{folder:?}");
        let fit = family_for(&published.config, Some(published.family)).unwrap();
        assert_eq!(fit, Fit { family: published.family, deviation: None });
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../trainer/tests/fixtures");
    let mut config = PublishedModel::open(&root.join("gpt_oss")).unwrap().config;
    config.tie_embeddings = true;
    config.residual = switchyard_model::Residual::OutputNorm;
    let refused = family_for(&config, None).unwrap_err().to_string();
    assert!(refused.contains("layers.residual = \"output_norm\""), "{refused}");
}

/// Writes every reference model to the folder `EXPORTS`, in both forms of experts, each beside the
/// reference's outputs, for `load_hf.py` of the references to load with transformers:
/// `EXPORTS=DIR cargo test --test round_trip -- --ignored`.
#[test]
#[ignore = "for transformers to load"]
fn written_models_for_transformers() {
    let target = PathBuf::from(std::env::var_os("EXPORTS").expect("EXPORTS names a folder"));
    for folder in fixtures() {
        let published = PublishedModel::open(&folder).unwrap();
        let spec = published.spec(8).unwrap();
        let located = published.locate(&spec).unwrap();
        for experts in [ExpertForm::Published, ExpertForm::Fused] {
            let name = folder.file_name().unwrap().to_string_lossy();
            let target = target.join(format!("{name}-{experts:?}").to_lowercase());
            std::fs::create_dir_all(&target).unwrap();
            let request = ExportRequest {
                family: published.family,
                config: &published.config,
                spec: &spec,
                element: Element::F32,
                experts,
                special_ids: &published.special_ids,
                max_shard_bytes: usize::MAX,
            };
            write_model::<HubError>(&request, &target, |name| published.values(&located, name)).unwrap();
            for file in ["io.safetensors", "train.safetensors"] {
                let _ = std::fs::copy(folder.join(file), target.join(file));
            }
        }
    }
}

/// What a configuration leaves out has our default, whatever the family's is.
#[test]
fn a_plain_mixture_of_our_own_is_a_mixtral() {
    let plain: switchyard_model::ModelConfig = serde_json::from_value(serde_json::json!({
        "num_layers": 2, "d_model": 16, "vocab_size": 32, "num_positions": 8,
        "attention": { "num_heads": 2 },
        "ffn": { "activation": "swiglu", "moe": {
            "num_experts": 4, "d_expert": 8,
            "router": { "top_k": 2, "load_balancing_weight": 0.04, "z_loss_weight": 0.001, "jitter": 0.1 },
        } },
    }))
    .unwrap();
    let fit = family_for(&plain, None).unwrap();
    assert_eq!(fit, Fit { family: switchyard_hub::Family::Mixtral, deviation: None });
    let mut normed = plain;
    normed.attention_mut().qk_norm = switchyard_model::QkNorm::On(switchyard_model::QkNormConfig::default());
    let fit = family_for(&normed, None).unwrap();
    assert_eq!(fit.family, switchyard_hub::Family::Qwen3Moe);
    assert!(fit.deviation.unwrap().contains("qk_norm.epsilon"));
}
