//! A recurrent model's state goes from step to step, through checkpoints and along held-out text.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::resume::{tensors, with_steps};
use crate::tiny;
use burn::tensor::Device;
use switchyard_datasets::{Dataset, Progress, prepare};
use switchyard_hub::export::ExpertForm;
use switchyard_hub::tensor_files::Element;
use switchyard_model::{Compute, ModelInput, Pass, Transformer};
use switchyard_trainer::TrainError;
use switchyard_trainer::checkpoint::{Checkpoint, CheckpointManifest, find_checkpoint};
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::evaluate::{EvaluationSettings, evaluate};
use switchyard_trainer::export::{ExportSettings, export};
use switchyard_trainer::flight::replay::{ReplayRequest, replay};
use switchyard_trainer::run_folder::OpenMode;
use tempfile::TempDir;

/// 96 rows of 16 tokens a step: the training split is gone over once in 4 steps.
const BATCH_TOKENS: usize = 1536;

/// Two LSTMs with a mixture between them, dropout and the losses of its router.
pub(crate) fn recurrent() -> RunConfig {
    let mut config = tiny::routed(
        "top_k = 2\nsoftmax = \"after_selection\"\nselection = { noisy = { importance_weight = 0.1, load_weight = 0.1 } }",
    );
    let model = &mut config.model;
    (model.attention, model.lstm) = (None, Some(toml::from_str("d_hidden = 24").unwrap()));
    model.norm = Some(toml::from_str("[off]").unwrap());
    if let Some(moe) = &mut model.ffn.moe {
        moe.layers = Some(toml::from_str("list = [0]").unwrap());
    }
    config.train.batch_tokens = BATCH_TOKENS;
    config.train.micro_batch_tokens = Some(BATCH_TOKENS / 2);
    config
}

fn checkpoint(out: &Path) -> Checkpoint {
    Checkpoint::read(&find_checkpoint(out).unwrap()).unwrap()
}

fn carried(out: &Path, step: u64) -> Vec<u8> {
    fs::read(out.join(format!("checkpoints/step-{step}/recurrent.safetensors"))).unwrap()
}

fn dataset(checkpoint: &Checkpoint) -> Dataset {
    prepare(&checkpoint.config.data, &Progress::silent()).unwrap()
}

#[test]
fn a_resumed_run_goes_on_with_its_state_bit_for_bit() {
    let folder = TempDir::new().unwrap();
    let config = recurrent();
    let mut reference = None;
    for threads in [1, 2] {
        let whole = folder.path().join(format!("whole-{threads}"));
        let parts = folder.path().join(format!("parts-{threads}"));
        tiny::run(&with_steps(&config, 6, threads), &whole, OpenMode::New).unwrap();
        tiny::run(&with_steps(&config, 3, threads), &parts, OpenMode::New).unwrap();
        tiny::run(&with_steps(&config, 6, threads), &parts, OpenMode::Resume).unwrap();
        assert_eq!(tiny::rows(&whole), tiny::rows(&parts), "{threads} threads: logged numbers");
        assert!(tensors(&whole, 6) == tensors(&parts, 6), "{threads} threads: stored tensors");
        assert!(carried(&whole, 6) == carried(&parts, 6), "{threads} threads: the state");
        assert!(carried(&whole, 3) != carried(&whole, 6));
        let result = (tiny::rows(&whole), tensors(&whole, 6), carried(&whole, 6));
        assert!(*reference.get_or_insert(result.clone()) == result, "depends on the thread count");
    }
}

#[test]
fn a_step_is_replayed_with_the_state_before_it() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    tiny::run(&recurrent(), &out, OpenMode::New).unwrap();
    for (step, from) in [(2, 0), (5, 3)] {
        let stop = Arc::new(AtomicBool::new(false));
        let request =
            ReplayRequest { run: out.clone(), step, overrides: Vec::new(), show_progress: false, stop };
        let replayed = replay(&request).unwrap();
        assert!(replayed.from_step == from && replayed.is_exact(), "{replayed:?}");
    }
}

/// Without what differs between micro-batches by its nature: dropout, noise, and losses of a
/// mixture. Sums of other length differ in their last bits.
#[test]
fn a_step_in_one_pass_or_in_several_is_the_same_step() {
    let folder = TempDir::new().unwrap();
    let mut config = recurrent();
    (config.model.dropout, config.model.ffn.moe) = (0.0, None);
    let losses = |name: &str, micro_batch_tokens: usize| {
        let mut config = config.clone();
        config.train.micro_batch_tokens = Some(micro_batch_tokens);
        let out = folder.path().join(name);
        tiny::run(&config, &out, OpenMode::New).unwrap();
        let steps: Vec<f64> =
            tiny::rows(&out).iter().filter_map(|row| Some(row.as_step()?.cross_entropy_nats)).collect();
        steps
    };
    let whole = losses("whole", BATCH_TOKENS);
    for (name, parts) in [("halves", 2), ("sixths", 6)] {
        for (step, (whole, part)) in whole.iter().zip(losses(name, BATCH_TOKENS / parts)).enumerate() {
            assert!((whole - part).abs() < 1e-5, "{name}, step {}: {whole} and {part}", step + 1);
        }
    }
}

#[test]
fn only_a_run_that_carries_a_state_stores_one() {
    let folder = TempDir::new().unwrap();
    let files = |name: &str, config: &RunConfig| {
        let out = folder.path().join(name);
        tiny::run(config, &out, OpenMode::New).unwrap();
        let manifest = CheckpointManifest::read(&find_checkpoint(&out).unwrap()).unwrap();
        manifest.files.into_keys().collect::<Vec<_>>()
    };
    let mut fresh = recurrent();
    fresh.train.carry_state = Some(false);
    for (name, config, stores) in
        [("moe", tiny::moe(), false), ("fresh", fresh, false), ("carried", recurrent(), true)]
    {
        let files = files(name, &config);
        assert_eq!(files.iter().any(|file| file == "recurrent.safetensors"), stores, "{files:?}");
        assert_eq!(files.len(), if stores { 7 } else { 6 });
    }
}

#[test]
fn a_state_that_is_damaged_or_gone_is_named() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    tiny::run(&with_steps(&recurrent(), 3, 1), &out, OpenMode::New).unwrap();
    let path = out.join("checkpoints/step-3/recurrent.safetensors");
    let bytes = fs::read(&path).unwrap();
    let mut damaged = bytes.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let resumed = || tiny::run(&recurrent(), &out, OpenMode::Resume).map(drop);
    fs::write(&path, damaged).unwrap();
    let message = resumed().unwrap_err().to_string();
    assert!(message.contains("recurrent.safetensors: the checkpoint is damaged"), "{message}");
    fs::remove_file(&path).unwrap();
    let message = resumed().unwrap_err().to_string();
    assert!(message.contains("recurrent.safetensors"), "{message}");
    fs::write(&path, bytes).unwrap();
    resumed().unwrap();
}

/// The whole split in one pass, and window by window: the same sums in other order.
#[test]
fn held_out_text_is_read_from_its_beginning_to_its_end() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    tiny::run(&recurrent(), &out, OpenMode::New).unwrap();
    let checkpoint = checkpoint(&out);
    let (model, store) = (checkpoint.model(&Device::flex()).unwrap(), dataset(&checkpoint).validation);
    let settings = |seq_len: usize, mask_documents: bool| EvaluationSettings {
        seq_len,
        sequences_per_batch: 7,
        max_tokens: None,
        stride: None,
        mask_documents,
        carries_state: true,
        by_document: true,
    };
    let measured =
        |seq_len, masks| evaluate(&model, &store, &settings(seq_len, masks), &Device::flex()).unwrap();
    // Of this length all targets are in a window.
    let num_targets = store.len() - 1;
    for masks in [false, true] {
        let whole = measured(num_targets, masks);
        let windows = measured(1, masks);
        assert_eq!(windows.num_tokens as usize, num_targets);
        let (whole, windows) = (whole.cross_entropy_nats, windows.cross_entropy_nats);
        assert!((whole - windows).abs() < 1e-6, "{whole} in one window, {windows} in many");
    }
    let fresh = EvaluationSettings { carries_state: false, ..settings(1, false) };
    let fresh = evaluate(&model, &store, &fresh, &Device::flex()).unwrap().cross_entropy_nats;
    assert!((fresh - measured(1, false).cross_entropy_nats).abs() > 1e-4, "the state matters");

    let sliding = EvaluationSettings { stride: Some(4), ..settings(16, false) };
    let error = evaluate(&model, &store, &sliding, &Device::flex()).unwrap_err();
    assert!(matches!(error, TrainError::CarriedStride { stride: 4 }) && error.is_users_mistake(), "{error}");
}

#[test]
fn with_documents_apart_a_later_document_knows_nothing_of_those_before() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let mut config = recurrent();
    config.data.mask_documents = true;
    tiny::run(&config, &out, OpenMode::New).unwrap();
    let checkpoint = checkpoint(&out);
    let (model, store) = (checkpoint.model(&Device::flex()).unwrap(), dataset(&checkpoint).validation);
    let settings = EvaluationSettings {
        seq_len: 16,
        sequences_per_batch: 1,
        max_tokens: None,
        stride: None,
        mask_documents: true,
        carries_state: true,
        by_document: true,
    };
    let found = evaluate(&model, &store, &settings, &Device::flex()).unwrap().documents.unwrap();
    // Documents have 41 tokens; the first token of the next one is the last target of each.
    let second = found.iter().find(|loss| loss.document == 1).unwrap();
    let span = store.documents_of(0, store.len()).unwrap();
    let (first_len, second_len) = (span[0].1, span[1].1);
    let mut ids = vec![0; second_len];
    store.read(first_len, &mut ids).unwrap();
    let nats: f64 = alone(&model, &ids) + boundary_loss(&model, &store, first_len);
    assert!((second.nats - nats).abs() < 1e-3, "{} within the split, {nats} alone", second.nats);
}

/// Loss of all tokens of a text but the first.
fn alone(model: &Transformer, ids: &[i32]) -> f64 {
    let len = ids.len() - 1;
    let input = ModelInput::upload(ids[..len].to_vec(), None, [1, len], &Device::flex());
    let hidden_td = model.forward(&input, Pass::Evaluation).hidden_td;
    let targets = burn::tensor::Tensor::from_data(ids[1..].as_ref(), &Device::flex());
    f64::from(model.head_loss(hidden_td, targets, None, Compute::F32).cross_entropy_1.into_scalar::<f32>())
        * len as f64
}

/// Loss of the token at `position`, which begins a document, behind the document before it.
fn boundary_loss(model: &Transformer, store: &switchyard_datasets::TokenStore, position: usize) -> f64 {
    let mut ids = vec![0; position + 1];
    store.read(0, &mut ids).unwrap();
    alone(model, &ids) - alone(model, &ids[..position])
}

#[test]
fn a_recurrent_model_is_not_exported() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    tiny::run(&with_steps(&recurrent(), 3, 1), &out, OpenMode::New).unwrap();
    let settings = ExportSettings {
        to: folder.path().join("published"),
        element: Element::F32,
        experts: ExpertForm::Published,
        family: None,
    };
    let message = export(&checkpoint(&out), &settings).unwrap_err().to_string();
    assert_eq!(message, "no published family has `model.lstm`: only models with attention can be exported");
    assert!(!folder.path().join("published").exists());
}
