//! What cannot be imported is one error that names the file, the tensor or the key, and what to do.

#![expect(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use switchyard_hub::PublishedModel;

/// A copy of a reference model to be damaged.
struct Copy {
    folder: tempfile::TempDir,
}

impl Copy {
    fn of(name: &str) -> Self {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../trainer/tests/fixtures").join(name);
        let folder = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(from.join(file), folder.path().join(file)).unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn set(&self, key: &str, value: Value) {
        let path = self.path("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(path, config.to_string()).unwrap();
    }

    /// Every tensor changed by `change`: its name, shape and bytes.
    fn change(&self, change: impl Fn(&mut Vec<(String, Vec<usize>, Vec<u8>)>)) {
        let path = self.path("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Vec<_> = tensors
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, view.shape().to_vec(), view.data().to_vec()))
            .collect();
        change(&mut tensors);
        let views = tensors.iter().map(|(name, shape, data)| {
            (name.clone(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap())
        });
        fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }

    /// The message of importing it.
    #[track_caller]
    fn message(&self) -> String {
        let imported = PublishedModel::open(self.folder.path()).and_then(|published| {
            let located = published.locate(&published.spec(8)?)?;
            located.names().try_for_each(|(name, _)| published.values(&located, name).map(|_| ()))
        });
        imported.expect_err("it is refused").to_string()
    }

    #[track_caller]
    fn assert_refused(&self, parts: &[&str]) {
        let message = self.message();
        for part in parts {
            assert!(message.contains(part), "{message:?} without {part:?}");
        }
    }
}

#[test]
fn a_tensor_that_is_missing_superfluous_or_of_another_shape_is_named() {
    let copy = Copy::of("mixtral");
    copy.change(|tensors| tensors.retain(|(name, ..)| name != "model.layers.1.self_attn.v_proj.weight"));
    copy.assert_refused(&["`model.layers.1.self_attn.v_proj.weight` is missing", "blocks.1.attention.value"]);
    let copy = Copy::of("mixtral");
    copy.change(|tensors| {
        tensors.retain(|(name, ..)| name != "model.layers.0.block_sparse_moe.experts.2.w3.weight");
    });
    copy.assert_refused(&["experts.2.w3.weight` is missing, though others"]);
    let copy = Copy::of("llama");
    copy.change(|tensors| tensors.push(("model.layers.0.self_attn.q_proj.bias".into(), vec![2], vec![0; 8])));
    copy.assert_refused(&["`model.layers.0.self_attn.q_proj.bias` belongs to no parameter of this llama"]);
    let copy = Copy::of("llama");
    copy.set("num_key_value_heads", json!(4));
    copy.assert_refused(&["k_proj.weight` is [16, 32], but by `config.json` it is [32, 32]"]);
}

#[test]
fn a_value_that_is_no_finite_number_is_named() {
    let copy = Copy::of("llama");
    copy.change(|tensors| {
        let (_, _, data) = tensors.iter_mut().find(|(name, ..)| name == "model.norm.weight").unwrap();
        data[8..12].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    copy.assert_refused(&["`model.norm.weight` holds NaN at place 2"]);
}

#[test]
fn a_head_that_is_not_there_is_missed_and_an_own_one_is_kept() {
    let copy = Copy::of("llama");
    copy.change(|tensors| tensors.retain(|(name, ..)| name != "lm_head.weight"));
    copy.assert_refused(&["`lm_head.weight` is missing"]);
    let copy = Copy::of("llama");
    copy.set("tie_word_embeddings", json!(true));
    let published = PublishedModel::open(copy.folder.path()).unwrap();
    assert!(!published.config.tie_embeddings, "its head is not the embedding, and is used");
}

#[test]
fn a_key_that_no_model_here_can_have_is_named_with_its_value() {
    for (model, key, value, part) in [
        ("llama", "hidden_act", json!("gelu"), "`hidden_act` is \"gelu\""),
        (
            "llama",
            "rope_parameters",
            json!({ "rope_type": "mrope", "rope_theta": 1e4 }),
            "`rope_parameters.rope_type` is \"mrope\"",
        ),
        ("llama", "model_type", json!("mamba"), "`model_type` is \"mamba\""),
        ("llama", "hidden_size", json!("wide"), "`hidden_size` is \"wide\": expected a whole number"),
        ("llama", "hidden_size", Value::Null, "`hidden_size` is missing"),
        (
            "llama",
            "quantization_config",
            json!({ "quant_method": "awq" }),
            "`quantization_config.quant_method` is \"awq\"",
        ),
        ("mixtral", "num_experts_per_tok", json!(9), "9"),
        (
            "qwen2",
            "layer_types",
            json!(["chunked_attention", "full_attention"]),
            "`layer_types` is [\"chunked_attention\"",
        ),
    ] {
        let copy = Copy::of(model);
        copy.set(key, value);
        copy.assert_refused(&[part]);
    }
}

#[test]
fn a_file_that_is_no_model_or_ends_early_is_named() {
    let copy = Copy::of("llama");
    fs::write(copy.path("config.json"), "{").unwrap();
    copy.assert_refused(&["config.json` is no JSON"]);
    let copy = Copy::of("llama");
    fs::remove_file(copy.path("model.safetensors")).unwrap();
    copy.assert_refused(&["holds no model"]);
    let copy = Copy::of("llama");
    let bytes = fs::read(copy.path("model.safetensors")).unwrap();
    fs::write(copy.path("model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    copy.assert_refused(&["model.safetensors", "is the download complete?"]);
    let copy = Copy::of("llama");
    fs::rename(copy.path("model.safetensors"), copy.path("model-00001-of-00002.safetensors")).unwrap();
    let index = json!({ "weight_map": {
        "lm_head.weight": "model-00001-of-00002.safetensors", "model.norm.weight": "model-00002-of-00002.safetensors"
    } });
    fs::write(copy.path("model.safetensors.index.json"), index.to_string()).unwrap();
    copy.assert_refused(&["model-00002-of-00002.safetensors` is missing"]);
    let index = json!({ "weight_map": { "lm_head.weight": "../elsewhere.safetensors" } });
    fs::write(copy.path("model.safetensors.index.json"), index.to_string()).unwrap();
    copy.assert_refused(&["which is not beside it"]);
}
