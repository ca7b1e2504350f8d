//! What a mistake in a configuration reads like: one message with the place, the key, the value and
//! what is allowed.

#![expect(clippy::unwrap_used, reason = "functions of a test fail as the test does")]

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use switchyard_datasets::{SourceConfig, TextConfig, TokenizerConfig};
use switchyard_model::{AlibiConfig, PositionConfig};
use switchyard_router::{NoisyConfig, Selection};
use switchyard_trainer::config::{DecayConfig, ScheduleConfig, ScheduleShapeConfig};
use switchyard_trainer::config_file::{LoadedConfig, Override, load};
use switchyard_trainer::plan::RunPlan;
use tempfile::TempDir;

/// Sound as it stands; each test breaks it in one place.
const SOUND: &str = r#"name = "sound"

[data.crates]

[model]
num_layers = 4
d_model = 32

[model.attention]
num_heads = 4

[model.ffn]
activation = "swiglu"

[model.ffn.moe]
num_experts = 8
d_expert = 16

[model.ffn.moe.router]
top_k = 2

[train]
num_steps = 100
seq_len = 16
batch_tokens = 64

[train.adamw]
learning_rate = 1e-3

[train.schedule.cosine]
"#;

fn write(folder: &TempDir, text: &str) -> PathBuf {
    let path = folder.path().join("run.toml");
    std::fs::write(&path, text).unwrap();
    path
}

fn loaded(text: &str, overrides: &[&str]) -> Result<(LoadedConfig, RunPlan), String> {
    let folder = TempDir::new().unwrap();
    let path = write(&folder, text);
    let overrides: Vec<Override> = overrides.iter().map(|text| Override::parse(text).unwrap()).collect();
    let result = load(&path, &overrides).and_then(|loaded| {
        let plan = loaded.resolve()?;
        Ok((loaded, plan))
    });
    // The folder's name differs from run to run.
    result.map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
}

/// The error of the sound configuration after replacing `from` by `to`.
fn broken(from: &str, to: &str) -> String {
    assert!(SOUND.contains(from), "nothing to replace: {from}");
    loaded(&SOUND.replacen(from, to, 1), &[]).unwrap_err()
}

/// The error of the sound configuration with overrides.
fn set(overrides: &[&str]) -> String {
    loaded(SOUND, overrides).unwrap_err()
}

#[test]
fn the_sound_configuration_is_sound() {
    let (_, plan) = loaded(SOUND, &[]).unwrap();
    assert_eq!(plan.notes, Vec::<String>::new());
}

#[test]
fn a_number_that_toml_does_not_take_is_shown_as_it_takes_it() {
    for (written, right) in [(".001", "0.001"), ("1.", "1.0"), ("-.5 # half", "-0.5"), ("2.e-3", "0.002")] {
        let message = broken("learning_rate = 1e-3", &format!("learning_rate = {written}"));
        assert!(message.ends_with(&format!("write `{right}`")), "{message}");
    }
    assert!(!broken("learning_rate = 1e-3", "learning_rate = x.5").contains("write"));
}

#[test]
fn syntax_errors_name_the_line() {
    assert_eq!(
        broken("num_layers = 4", "num_layers 4"),
        "run.toml:6:12: not valid TOML: key with no value, expected `=`"
    );
    assert_eq!(broken("d_model = 32", "num_layers = 5"), "run.toml:7:1: not valid TOML: duplicate key");
    assert_eq!(
        broken("num_layers = 4", "num_layers = 99999999999999999999"),
        "run.toml:6:14: `99999999999999999999` is out of range: use a number of 64 bits"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let message = load(Path::new("no/such.toml"), &[]).unwrap_err().to_string();
    assert!(message.starts_with("cannot read the configuration `no/such.toml`: "), "{message}");
    assert!(message.ends_with("name a TOML file"), "{message}");
}

#[test]
fn an_unknown_key_names_the_known_ones_and_the_likely_one() {
    insta::assert_snapshot!(broken("top_k = 2", "top_K = 2"), @"run.toml:20:1: `model.ffn.moe.router.top_K` is not a key of the configuration: [model.ffn.moe.router] takes bias, constant_gate, cosine, entropy_weight, gate_bias, groups, init_scale, input, jitter, load_balancing_scope, load_balancing_weight, precision, renormalise, routed_scaling, selection, sigmoid, softmax, token_rounding, top_k, z_loss_weight. Did you mean `top_k`?");
    insta::assert_snapshot!(broken("num_steps", "steps"), @"run.toml:23:1: `train.steps` is not a key of the configuration: [train] takes adamw, batch_tokens, carry_state, checkpoint_every_steps, checkpoints, data_seed, early_stopping, eval, eval_every_steps, flight_recorder, groups, head_z_loss_weight, max_grad_norm, micro_batch_tokens, muon, num_steps, precision, qk_clip, recompute, schedule, seq_len, skip_spikes.");
    insta::assert_snapshot!(broken("[train.adamw]", "[train.adamv]"), @"run.toml:27:8: `train.adamv` is not a key of the configuration: [train] takes adamw, batch_tokens, carry_state, checkpoint_every_steps, checkpoints, data_seed, early_stopping, eval, eval_every_steps, flight_recorder, groups, head_z_loss_weight, max_grad_norm, micro_batch_tokens, muon, num_steps, precision, qk_clip, recompute, schedule, seq_len, skip_spikes. Did you mean `adamw`?");
    insta::assert_snapshot!(broken("batch_tokens", "learning_rate"), @"run.toml:25:1: `train.learning_rate` is not a key of the configuration: [train] takes adamw, batch_tokens, carry_state, checkpoint_every_steps, checkpoints, data_seed, early_stopping, eval, eval_every_steps, flight_recorder, groups, head_z_loss_weight, max_grad_norm, micro_batch_tokens, muon, num_steps, precision, qk_clip, recompute, schedule, seq_len, skip_spikes. Did you mean `train.adamw.learning_rate`?");
    insta::assert_snapshot!(broken("name =", "seeds ="), @"run.toml:1:1: `seeds` is not a key of the configuration: the top level takes data, device, distributed, model, name, sample, seed, start, threads, train. Did you mean `seed`?");
}

#[test]
fn a_wrong_type_names_value_and_type() {
    insta::assert_snapshot!(broken("num_steps = 100", "num_steps = \"many\""), @r#"run.toml:23:1: `train.num_steps` is "many": use a whole number, 0 or more"#);
    insta::assert_snapshot!(broken("num_steps = 100", "num_steps = -1"), @"run.toml:23:1: `train.num_steps` is -1: use a whole number, 0 or more");
    insta::assert_snapshot!(broken("learning_rate = 1e-3", "learning_rate = true"), @"run.toml:28:1: `train.adamw.learning_rate` is true: use a number");
    insta::assert_snapshot!(broken("\"swiglu\"", "\"swigul\""), @r#"run.toml:13:1: `model.ffn.activation` is "swigul": use one of "swiglu", "gelu", "gelu_tanh", "relu", { clamped_swiglu = {} }. Did you mean "swiglu"?"#);
    insta::assert_snapshot!(broken("\"swiglu\"", "\"clamped_swiglu\""), @r#"run.toml:13:1: `model.ffn.activation` is "clamped_swiglu": use one of "swiglu", "gelu", "gelu_tanh", "relu", { clamped_swiglu = {} }, as in `model.ffn.activation = { clamped_swiglu = {} }`"#);
    insta::assert_snapshot!(broken("\"swiglu\"", "{ clamped_swiglu = { limit = 0 } }"), @"run.toml:13:35: `model.ffn.activation.clamped_swiglu.limit` is 0: use a number above 0, between 1e-37 and 1e38");
    insta::assert_snapshot!(broken("\"swiglu\"", "{ clamped_swiglu = { limits = 7 } }"), @"run.toml:13:35: `model.ffn.activation.clamped_swiglu.limits` is not a key of the configuration: [model.ffn.activation.clamped_swiglu] takes alpha, limit. Did you mean `limit`?");
    insta::assert_snapshot!(broken("\"swiglu\"", "{ clamped_swiglu = [1.0, 2.0] }"), @"run.toml:13:16: `model.ffn.activation.clamped_swiglu` is a list: use a table with the keys alpha, limit");
    insta::assert_snapshot!(broken("[train.adamw]\n", "[[train.adamw]]\n"), @"run.toml:27:9: `train.adamw` is a list: use a table with the keys beta1, beta2, decay_embeddings, epsilon, learning_rate, moments, weight_decay");
    insta::assert_snapshot!(broken("\"sound\"", "2026"), @r#"run.toml:1:1: `name` is 2026: use a string, as in `name = "2026"` or `--set 'name="2026"'`"#);
    insta::assert_snapshot!(broken("[data.crates]", "data = 3"), @"run.toml:3:1: `data` is 3: use a table with the keys cache_dir, crates, mask_documents, packing, sources, split, synthetic, text, tokenizer, tokens");
    insta::assert_snapshot!(broken("d_expert = 16", "d_expert = 16\nlayers = { list = [1, \"a\"] }"), @r#"run.toml:18:23: `model.ffn.moe.layers.list[1]` is "a": use a whole number, 0 or more"#);
    insta::assert_snapshot!(broken("[train.schedule.cosine]", "[train.schedule]\ncosine = true"), @"run.toml:31:1: `train.schedule.cosine` is true: use a table with the keys min_learning_rate");
}

#[test]
fn a_missing_key_names_its_table() {
    insta::assert_snapshot!(broken("num_steps = 100", ""), @"run.toml:22:2: [train] lacks `num_steps` (Optimizer steps): add a whole number, 0 or more, or pass `--set train.num_steps=VALUE`");
    insta::assert_snapshot!(broken("[model.attention]\nnum_heads = 4", ""), @"run.toml:5:2: `model.attention` is missing, and so is `model.lstm`: give the table of what mixes tokens, such as [model.attention] with `num_heads`");
    insta::assert_snapshot!(broken("name = \"sound\"", ""), @"run.toml: the configuration lacks `name` (Name of the run): add a string, or pass `--set name=VALUE`");
    insta::assert_snapshot!(loaded("", &[]).unwrap_err(), @"run.toml: the configuration lacks `name` (Name of the run): add a string, or pass `--set name=VALUE`");
}

#[test]
fn what_an_lstm_has_no_use_for_is_named() {
    let lstm = |keys: &str| broken("[model.attention]\nnum_heads = 4", &format!("[model.lstm]\n{keys}"));
    let both = broken("num_heads = 4", "num_heads = 4\n[model.lstm]");
    insta::assert_snapshot!(both, @"run.toml:11:8: `model.lstm` is given beside `model.attention`: keep one of them");
    insta::assert_snapshot!(lstm("d_hidden = 0"), @"run.toml:10:1: `model.lstm.d_hidden` is 0: use 1..=262144");
    insta::assert_snapshot!(lstm("forget_bias = inf"), @"run.toml:10:1: `model.lstm.forget_bias` is inf: use a finite number");
    insta::assert_snapshot!(lstm("[model.position.rope]"), @"run.toml:10:8: `model.position` has no meaning for an LSTM, which knows the order of tokens from its steps: remove it");
    let text = SOUND.replacen("[model.attention]\nnum_heads = 4", "[model.lstm]", 1);
    let best_fit = loaded(&text, &["data.packing=best_fit"]).unwrap_err();
    insta::assert_snapshot!(best_fit, @r#"run.toml:21:2: `train.carry_state` needs the tokens of one source in their order, but `data.packing` is "best_fit": set it to false: every window then begins with an empty state"#);
    loaded(&text, &["data.packing=best_fit", "train.carry_state=false"]).unwrap();
    insta::assert_snapshot!(broken("seq_len = 16", "seq_len = 16\ncarry_state = true"), @"run.toml:25:1: `train.carry_state` is true, but attention has no state to carry: remove the key, or use `model.lstm`");
    let post_norm = broken("d_model = 32", "d_model = 32\nresidual = \"post_norm\"\nnorm = { off = {} }");
    insta::assert_snapshot!(post_norm, @"run.toml:8:1: `model.residual` says where norms stand, but `model.norm.off` leaves none: use `sequential` or `parallel`, or another norm");
}

#[test]
fn overrides_fail_as_files_do_and_are_named() {
    insta::assert_snapshot!(set(&["train.num_steps=many"]), @r#"--set train.num_steps=many: `train.num_steps` is "many": use a whole number, 0 or more"#);
    insta::assert_snapshot!(set(&["train.num_step=1"]), @"--set train.num_step=1: `train.num_step` is not a key of the configuration: [train] takes adamw, batch_tokens, carry_state, checkpoint_every_steps, checkpoints, data_seed, early_stopping, eval, eval_every_steps, flight_recorder, groups, head_z_loss_weight, max_grad_norm, micro_batch_tokens, muon, num_steps, precision, qk_clip, recompute, schedule, seq_len, skip_spikes. Did you mean `num_steps`?");
    insta::assert_snapshot!(set(&["model.ffn.moe.router.top_k=9"]), @"--set model.ffn.moe.router.top_k=9: `model.ffn.moe.router.top_k` is 9, but the layer has 8 experts: use 1..=8");
    insta::assert_snapshot!(set(&["name=2026"]), @r#"--set name=2026: `name` is 2026: use a string, as in `name = "2026"` or `--set 'name="2026"'`"#);
    insta::assert_snapshot!(set(&["train.num_steps="]), @"--set train.num_steps=: [train] lacks `num_steps` (Optimizer steps): add a whole number, 0 or more, or pass `--set train.num_steps=VALUE`");
    insta::assert_snapshot!(set(&["train.num_stepz="]), @"--set train.num_stepz=: `train.num_stepz` is not a key of the configuration: [train] takes adamw, batch_tokens, carry_state, checkpoint_every_steps, checkpoints, data_seed, early_stopping, eval, eval_every_steps, flight_recorder, groups, head_z_loss_weight, max_grad_norm, micro_batch_tokens, muon, num_steps, precision, qk_clip, recompute, schedule, seq_len, skip_spikes. Did you mean `num_steps`?");
    insta::assert_snapshot!(set(&["model.position.aliby={}"]), @"--set model.position.aliby={}: `model.position.aliby` is not a key of the configuration: [model.position] takes alibi, learned, rope, sinusoidal. Did you mean `alibi`?");
    insta::assert_snapshot!(set(&["model.position.alibi.slope=1"]), @"--set model.position.alibi.slope=1: `model.position.alibi.slope` is not a key of the configuration: [model.position.alibi] takes as_falcon.");
    insta::assert_snapshot!(set(&["train.num_steps.x=1"]), @"--set train.num_steps.x=1: `train.num_steps` is 100, not a table");
    insta::assert_snapshot!(set(&["train.seq_len=10"]), @"run.toml:25:1: `train.batch_tokens` is 64, not a multiple of `train.seq_len` = 10: use 60 or 70");
}

#[test]
fn a_second_choice_names_both_and_removal_makes_room() {
    insta::assert_snapshot!(set(&["train.schedule.linear.min_learning_rate=0"]), @"--set train.schedule.linear.min_learning_rate=0: `train.schedule.linear` is given beside `train.schedule.cosine`: keep one of them (on the command line, `--set train.schedule.cosine=` removes the other)");
    insta::assert_snapshot!(set(&["model.norm.rms={}", "model.norm.layer.bias=false"]), @"--set model.norm.layer.bias=false: `model.norm.layer` is given beside `model.norm.rms`: keep one of them (on the command line, `--set model.norm.rms=` removes the other)");
    insta::assert_snapshot!(set(&["model.position.rope={}", "model.position.learned={}"]), @"--set model.position.learned={}: `model.position.learned` is given beside `model.position.rope`: keep one of them (on the command line, `--set model.position.rope=` removes the other)");
    insta::assert_snapshot!(set(&["model.position.learned={}", "model.position.alibi={}"]), @"--set model.position.alibi={}: `model.position.alibi` is given beside `model.position.learned`: keep one of them (on the command line, `--set model.position.learned=` removes the other)");
    insta::assert_snapshot!(set(&["data.text.path=a.txt"]), @"--set data.text.path=a.txt: `data.text` is given beside `data.crates`: keep one of them (on the command line, `--set data.crates=` removes the other)");
    let swapped = ["train.schedule.cosine=", "train.schedule.linear.min_learning_rate=0"];
    let (loaded, _) = loaded(SOUND, &swapped).unwrap();
    assert!(matches!(loaded.config.train.schedule.shape, Some(ScheduleShapeConfig::Linear(_))));
}

#[test]
fn a_choice_that_is_missing_misspelt_or_no_table_names_the_tables_there_are() {
    insta::assert_snapshot!(broken("[data.crates]", "[data]"), @"run.toml:3:2: [data] needs exactly one of [data.crates], [data.text], [data.synthetic], [data.tokens] or [data.sources]");
    insta::assert_snapshot!(set(&["data.crates="]), @"run.toml:3:2: [data] needs exactly one of [data.crates], [data.text], [data.synthetic], [data.tokens] or [data.sources]");
    insta::assert_snapshot!(broken("[data.crates]", "[data.crate]"), @"run.toml:3:7: `data.crate` is not a key of the configuration: [data] takes cache_dir, crates, mask_documents, packing, sources, split, synthetic, text, tokenizer, tokens. Did you mean `crates`?");
    insta::assert_snapshot!(broken("[train.schedule.cosine]", "[train.schedule.cosin]"), @"run.toml:30:17: `train.schedule.cosin` is not a key of the configuration: [train.schedule] takes constant, cosine, inverse_sqrt, linear, warmup_steps, wsd. Did you mean `cosine`?");
    insta::assert_snapshot!(set(&["model.norm={ layers = {} }"]), @"--set model.norm={ layers = {} }: `model.norm.layers` is not a key of the configuration: [model.norm] takes layer, off, rms. Did you mean `layer`?");
    insta::assert_snapshot!(set(&["model.position={ rope = {}, learnt = {} }"]), @"--set model.position={ rope = {}, learnt = {} }: `model.position.learnt` is not a key of the configuration: [model.position] takes alibi, learned, rope, sinusoidal. Did you mean `learned`?");
    insta::assert_snapshot!(set(&["data.tokenizer.bytes={}", "data.tokenizer.bpe.vocab_size=300"]), @"--set data.tokenizer.bpe.vocab_size=300: `data.tokenizer.bpe` is given beside `data.tokenizer.bytes`: keep one of them (on the command line, `--set data.tokenizer.bytes=` removes the other)");
    insta::assert_snapshot!(set(&["data.split={ tail = { validation_fraction = 0.1 }, by_document_hash = { validation_fraction = 0.1 } }"]), @"--set data.split={ tail = { validation_fraction = 0.1 }, by_document_hash = { validation_fraction = 0.1 } }: `data.split.tail` is given beside `data.split.by_document_hash`: keep one of them (on the command line, `--set data.split.by_document_hash=` removes the other)");
    insta::assert_snapshot!(set(&["model.ffn.moe.router.selection=random"]), @r#"--set model.ffn.moe.router.selection=random: `model.ffn.moe.router.selection` is "random": use a table with one of the keys expert_choice, forced_uniform, hash, noisy, random, random_second, sinkhorn, soft, sparse_mixer, as in `model.ffn.moe.router.selection = { random = {} }`"#);
    insta::assert_snapshot!(set(&["model.ffn.moe.router.selection=3"]), @"--set model.ffn.moe.router.selection=3: `model.ffn.moe.router.selection` is 3: use a table with one of the keys expert_choice, forced_uniform, hash, noisy, random, random_second, sinkhorn, soft, sparse_mixer");
    insta::assert_snapshot!(set(&["model.ffn.moe.router.selection={ hash = {}, hahs = {} }"]), @"--set model.ffn.moe.router.selection={ hash = {}, hahs = {} }: `model.ffn.moe.router.selection.hahs` is not a key of the configuration: [model.ffn.moe.router.selection] takes expert_choice, forced_uniform, hash, noisy, random, random_second, sinkhorn, soft, sparse_mixer.");
    insta::assert_snapshot!(set(&["model.ffn.moe.router.selection.hash={}", "model.ffn.moe.router.selection.hash="]), @"--set model.ffn.moe.router.selection.hash=: `model.ffn.moe.router.selection` is empty: give `noisy`, `random_second`, `sinkhorn`, `expert_choice`, `hash`, `soft`, `sparse_mixer`, `random` or `forced_uniform`, or remove it (absent is the `top_k` best of each token)");
    insta::assert_snapshot!(set(&["model.ffn.moe.router.bias={}"]), @"--set model.ffn.moe.router.bias={}: `model.ffn.moe.router.bias` is empty: give `sign`, `proportional`, `quantile` or `fixed`, or remove it");
    insta::assert_snapshot!(set(&["train.schedule=cosine"]), @r#"--set train.schedule=cosine: `train.schedule` is "cosine": use a table with the keys constant, cosine, inverse_sqrt, linear, warmup_steps, wsd, as in `train.schedule = { cosine = {} }`"#);
    insta::assert_snapshot!(set(&["model.position=alibi"]), @r#"--set model.position=alibi: `model.position` is "alibi": use a table with one of the keys alibi, learned, rope, sinusoidal, as in `model.position = { alibi = {} }`"#);
}

#[test]
fn a_mistake_inside_a_choice_keeps_its_key_and_its_place() {
    let selection =
        |table: &str| broken("top_k = 2", &format!("top_k = 2\n[model.ffn.moe.router.selection.{table}"));
    insta::assert_snapshot!(selection("noisy]\nload_weight = true"), @"run.toml:22:1: `model.ffn.moe.router.selection.noisy.load_weight` is true: use a number");
    insta::assert_snapshot!(selection("noisy]\nload_weigth = 0.1"), @"run.toml:22:1: `model.ffn.moe.router.selection.noisy.load_weigth` is not a key of the configuration: [model.ffn.moe.router.selection.noisy] takes importance_weight, load_weight. Did you mean `load_weight`?");
    insta::assert_snapshot!(selection("random]\nseed = 1"), @"run.toml:22:1: `model.ffn.moe.router.selection.random.seed` is not a key of the configuration: [model.ffn.moe.router.selection.random] takes no keys. Did you mean `data.synthetic.seed` or `model.ffn.block_sparse.seed` or `model.ffn.moe.router.selection.hash.seed`?");
    insta::assert_snapshot!(selection("nosy]"), @"run.toml:21:33: `model.ffn.moe.router.selection.nosy` is not a key of the configuration: [model.ffn.moe.router.selection] takes expert_choice, forced_uniform, hash, noisy, random, random_second, sinkhorn, soft, sparse_mixer. Did you mean `noisy`?");
    insta::assert_snapshot!(selection("expert_choice]\ngeneration = \"topk\""), @r#"run.toml:22:1: `model.ffn.moe.router.selection.expert_choice.generation` is "topk": use one of "top_k". Did you mean "top_k"?"#);
    insta::assert_snapshot!(broken("[train.schedule.cosine]", "[train.schedule.wsd]"), @"run.toml:30:17: [train.schedule.wsd] lacks `decay_steps` (Steps of the final linear decay): add a whole number, 0 or more, or pass `--set train.schedule.wsd.decay_steps=VALUE`");
    insta::assert_snapshot!(broken("[data.crates]", "[data.text]\npath = 3"), @r#"run.toml:4:1: `data.text.path` is 3: use a string, as in `data.text.path = "3"` or `--set 'data.text.path="3"'`"#);
    insta::assert_snapshot!(broken("[data.crates]", "[data.crates]\n[data.tokenizer.bpe]"), @"run.toml:4:17: [data.tokenizer.bpe] lacks `vocab_size` (Number of ids): add a whole number, 0 or more, or pass `--set data.tokenizer.bpe.vocab_size=VALUE`");
}

#[test]
fn a_choice_is_overridden_key_by_key_or_as_a_whole_table() {
    let config = |overrides: &[&str]| loaded(SOUND, overrides).unwrap().0.config;
    let selection = |overrides: &[&str]| config(overrides).model.ffn.moe.unwrap().router.selection;
    assert_eq!(selection(&[]), Selection::TopK);
    let noisy = NoisyConfig { importance_weight: None, load_weight: Some(0.5) };
    assert_eq!(
        selection(&["model.ffn.moe.router.selection.noisy.load_weight=0.5"]),
        Selection::Noisy(noisy.clone())
    );
    assert_eq!(
        selection(&[
            "model.ffn.moe.router.selection={ soft = {} }",
            "model.ffn.moe.router.selection={ noisy = { load_weight = 0.5 } }"
        ]),
        Selection::Noisy(noisy)
    );
    assert_eq!(
        selection(&["model.ffn.moe.router.selection.random={}", "model.ffn.moe.router.selection="]),
        Selection::TopK
    );
    let schedule = |overrides: &[&str]| config(overrides).train.schedule;
    let cosine = |warmup_steps| ScheduleConfig {
        warmup_steps,
        shape: Some(ScheduleShapeConfig::Cosine(DecayConfig { min_learning_rate: 0.0 })),
    };
    assert_eq!(schedule(&["train.schedule.warmup_steps=3"]), cosine(3));
    assert_eq!(schedule(&["train.schedule.cosine="]), ScheduleConfig::default());
    assert_eq!(schedule(&["train.schedule={ constant = {} }"]).shape, Some(ScheduleShapeConfig::Constant));
    let data =
        config(&["data.crates=", "data.text.path=a.txt", "data.tokenizer.bytes={}", "data.split={}"]).data;
    assert_eq!(data.source, SourceConfig::Text(TextConfig::new("a.txt")));
    assert_eq!((data.tokenizer, data.split), (Some(TokenizerConfig::Bytes {}), None));
    let model = config(&["model.norm={}", "model.position={ alibi = {} }"]).model;
    assert_eq!((model.norm, model.position), (None, Some(PositionConfig::Alibi(AlibiConfig::default()))));
}

#[test]
fn an_override_beats_the_file_and_the_last_one_wins() {
    let (loaded, plan) =
        loaded(SOUND, &["train.num_steps=7", "train.num_steps=8", "data.crates=", "data.text.path=a b.txt"])
            .unwrap();
    assert_eq!(plan.num_steps, 8);
    let SourceConfig::Text(text) = loaded.config.data.source else { panic!("another source") };
    assert_eq!(text.path, Path::new("a b.txt"));
}

#[test]
fn sizes_that_do_not_fit_name_both_and_the_nearest_that_do() {
    insta::assert_snapshot!(broken("batch_tokens = 64", "batch_tokens = 60"), @"run.toml:25:1: `train.batch_tokens` is 60, not a multiple of `train.seq_len` = 16: use 48 or 64");
    insta::assert_snapshot!(broken("batch_tokens = 64", "batch_tokens = 8"), @"run.toml:25:1: `train.batch_tokens` is 8, not a multiple of `train.seq_len` = 16: use 16");
    insta::assert_snapshot!(broken("batch_tokens = 64", "batch_tokens = 64\nmicro_batch_tokens = 48"), @"run.toml:25:1: `train.batch_tokens` is 64, not a multiple of `train.micro_batch_tokens` = 48: use 48 or 96");
    insta::assert_snapshot!(broken("batch_tokens = 64", "batch_tokens = 64\nmicro_batch_tokens = 40"), @"run.toml:26:1: `train.micro_batch_tokens` is 40, not a multiple of `train.seq_len` = 16: use 32 or 48");
    insta::assert_snapshot!(broken("num_heads = 4", "num_heads = 5"), @"run.toml:10:1: `model.attention.num_heads` is 5, which does not divide `model.d_model` = 32: use a divisor, or set `model.attention.d_head`");
    insta::assert_snapshot!(broken("num_heads = 4", "num_heads = 4\nnum_kv_heads = 3"), @"run.toml:11:1: `model.attention.num_kv_heads` is 3, which does not divide `model.attention.num_heads` = 4: use a divisor");
    insta::assert_snapshot!(broken("num_heads = 4", "num_heads = 32"), @"run.toml:10:1: `model.attention.num_heads` is 32, which makes heads of width 1, but rotary positions turn pairs of elements: make the width even");
    insta::assert_snapshot!(broken("num_heads = 4", "num_heads = 4\nd_head = 5"), @"run.toml:11:1: `model.attention.d_head` is 5, but rotary positions turn pairs of elements: use an even width");
}

#[test]
fn layers_that_do_not_fit_are_named() {
    let with_layers = |layers: &str| broken("d_expert = 16", &format!("d_expert = 16\nlayers = {layers}"));
    insta::assert_snapshot!(with_layers("{}"), @"run.toml:18:1: `model.ffn.moe.layers` is empty: give `every` or `list`, or remove it (absent means all)");
    insta::assert_snapshot!(with_layers("{ every = 2, list = [1] }"), @"run.toml:18:23: `model.ffn.moe.layers.list` is given beside `model.ffn.moe.layers.every`: keep one of them (on the command line, `--set model.ffn.moe.layers.every=` removes the other)");
    insta::assert_snapshot!(with_layers("{ every = 5 }"), @"run.toml:18:12: `model.ffn.moe.layers.every` is 5: use 1..=4");
    insta::assert_snapshot!(with_layers("{ list = [] }"), @"run.toml:18:12: `model.ffn.moe.layers.list` is empty: name at least one layer, or remove `model.ffn.moe` for a dense model");
    insta::assert_snapshot!(with_layers("{ list = [4] }"), @"run.toml:18:12: `model.ffn.moe.layers.list` holds 4, but the model has 4 layers: use 0..=3");
    insta::assert_snapshot!(with_layers("{ list = [1, 1] }"), @"run.toml:18:12: `model.ffn.moe.layers.list` holds 1 twice: name each layer once");
    insta::assert_snapshot!(with_layers("{ list = [1] }"), @"run.toml:12:8: `model.ffn.d_ff` is missing, but layer 0 is dense: give the hidden width of the dense block");
}

#[test]
fn values_out_of_range_name_the_range() {
    for (key, value, expected) in [
        ("threads", "0", "use 1..=4096, or remove the key to use all cores"),
        (
            "name",
            "../x",
            "use 1 to 100 letters (a-z, A-Z), digits, `-`, `_` and `.`, a letter or digit first",
        ),
        ("model.num_layers", "0", "use 1..=1024"),
        ("model.d_model", "9223372036854775807", "use 1..=65536"),
        ("model.dropout", "1.0", "use 0, or a number above 0 and below 1"),
        ("model.dropout", "nan", "use 0, or a number above 0 and below 1"),
        ("model.init.std", "-0.1", "use 0 or a number above 0"),
        ("model.norm.rms.epsilon", "0", "use a number above 0"),
        ("model.position.rope.theta", "inf", "use a number above 0"),
        ("model.attention.num_kv_heads", "0", "use a divisor"),
        ("model.ffn.moe.num_experts", "0", "use at least 1"),
        ("model.ffn.moe.d_expert", "1000000", "use 1..=262144"),
        (
            "model.ffn.moe.d_shared_expert",
            "1000000",
            "use 1..=262144, or remove the key for no shared expert",
        ),
        ("model.ffn.moe.router.jitter", "1.5", "use a number between 0 and 1, or remove the key"),
        ("model.ffn.moe.router.z_loss_weight", "-1.0", "use a positive number, or remove the key"),
        ("model.ffn.moe.capacity.factor", "0", "use a positive number, or remove the table"),
        ("data.split.tail.validation_fraction", "1.0", "use a share above 0 and below 1"),
        ("train.num_steps", "0", "use 1..=1000000000"),
        ("train.seq_len", "0", "use 1..=16777216"),
        ("train.micro_batch_tokens", "0", "use 1..=1073741824"),
        ("train.max_grad_norm", "0", "use a number above 0"),
        ("train.head_z_loss_weight", "0", "use a number above 0"),
        ("train.eval_every_steps", "0", "use at least 1, or remove the key to do it at the end only"),
        ("train.checkpoint_every_steps", "0", "use at least 1, or remove the key to do it at the end only"),
        ("train.eval.max_tokens", "15", "use at least that, or remove the key"),
        ("train.checkpoints.keep_last", "0", "use at least 1"),
        ("train.adamw.learning_rate", "0", "use a number above 0"),
        ("train.adamw.beta2", "1.0", "use 0, or a number above 0 and below 1"),
        ("train.adamw.epsilon", "0", "use a number above 0"),
        ("train.adamw.weight_decay", "-0.1", "use 0 or a number above 0"),
        ("train.muon.momentum", "1.0", "use 0, or a number above 0 and below 1"),
        ("train.muon.newton_schulz_steps", "0", "use 1..=100"),
        ("train.muon.weight_decay", "-0.1", "use 0 or a number above 0"),
        ("train.schedule.cosine.min_learning_rate", "0.1", "use at most the peak"),
        ("sample.temperature", "-1", "use 0 or a number above 0"),
        ("sample.top_k", "0", "use at least 1, or remove the key"),
        ("sample.top_p", "0", "use a number above 0 and up to 1"),
        ("sample.prompt", "''", "give at least one character"),
    ] {
        let argument = format!("{key}={value}");
        let message = set(&[&argument]);
        assert!(message.starts_with(&format!("--set {argument}: `{key}`")), "{message}");
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn products_in_bf16_are_refused_where_they_cannot_be_had() {
    let bf16 = "train.precision.compute=bf16";
    insta::assert_snapshot!(set(&["train.precision.compute=fp16"]), @r#"--set train.precision.compute=fp16: `train.precision.compute` is "fp16": use one of "f32", "bf16""#);
    insta::assert_snapshot!(set(&[bf16, "device=wgpu"]), @r#"--set train.precision.compute=bf16: `train.precision.compute` is "bf16", but `device` is "wgpu": only the CPU computes products so: use "f32", or the device "cpu""#);
    insta::assert_snapshot!(set(&[bf16, "model.ffn.moe=", "model.ffn.block_sparse={ d_ff = 64, density = 0.5 }"]), @r#"--set train.precision.compute=bf16: `train.precision.compute` is "bf16", but block-sparse layers multiply in f32 only: use "f32", or other layers"#);
    insta::assert_snapshot!(set(&["train.precision.matrix_units=false"]), @r#"--set train.precision.matrix_units=false: `train.precision.matrix_units` is false, but `train.precision.compute` is "f32": matrix units multiply bf16 only: remove the key, or compute in "bf16""#);
    insta::assert_snapshot!(set(&["train.recompute=ffn", "model.ffn.moe=", "model.ffn.block_sparse={ d_ff = 64, density = 0.5 }"]), @r#"--set train.recompute=ffn: `train.recompute` is "ffn", but the model has neither dense blocks nor experts, whose projections it is about: remove the key"#);
    insta::assert_snapshot!(set(&["train.recompute=blocks"]), @r#"--set train.recompute=blocks: `train.recompute` is "blocks": use one of "none", "ffn", "block". Did you mean "block"?"#);
}

#[test]
fn token_rounding_is_refused_where_it_makes_no_sense() {
    let tile = |tile: usize| format!("model.ffn.moe.router.token_rounding.tile={tile}");
    insta::assert_snapshot!(set(&[&tile(1 << 20)]), @"--set model.ffn.moe.router.token_rounding.tile=1048576: `model.ffn.moe.router.token_rounding.tile` is 1048576, but in a micro-batch of 64 tokens an expert has 16.0 on average: with less than half a tile it would get none: use a smaller tile, or larger micro-batches");
    insta::assert_snapshot!(set(&[&tile(128), "model.ffn.moe.capacity.factor=1.5"]), @"--set model.ffn.moe.capacity.factor=1.5: `model.ffn.moe.capacity` would empty the tiles that `model.ffn.moe.router.token_rounding` fills: remove it, or `model.ffn.moe.router.token_rounding`");
    insta::assert_snapshot!(set(&[&tile(128), "model.ffn.moe.router.selection.hash={}"]), @"--set model.ffn.moe.router.token_rounding.tile=128: `model.ffn.moe.router.token_rounding` has no effect, because the selection learns nothing: remove it, or `model.ffn.moe.router.selection`");
}

#[test]
fn moments_in_bf16_are_refused_where_they_cannot_be_had() {
    let bf16 = "train.adamw.moments=bf16";
    insta::assert_snapshot!(set(&["train.adamw.moments=fp16"]), @r#"--set train.adamw.moments=fp16: `train.adamw.moments` is "fp16": use one of "f32", "bf16""#);
    insta::assert_snapshot!(set(&[bf16, "device=wgpu"]), @r#"--set train.adamw.moments=bf16: `train.adamw.moments` is "bf16", but `device` is "wgpu": only the CPU rounds them so: use "f32", or the device "cpu""#);
}

#[test]
fn a_parametrisation_is_refused_beside_muon() {
    let base = "model.parametrisation.base={ d_model = 32, num_layers = 4, num_heads = 4, d_expert = 16, num_experts = 8, top_k = 2 }";
    insta::assert_snapshot!(set(&[base, "train.muon={}"]), @"--set train.muon={}: `train.muon` cannot go with `model.parametrisation`, whose learning-rate factors are AdamW's: remove one of the two tables");
}

#[test]
fn routers_that_cannot_work_are_refused() {
    let router = |overrides: &[&str]| {
        let keys: Vec<String> = overrides.iter().map(|key| format!("model.ffn.moe.router.{key}")).collect();
        set(&keys.iter().map(String::as_str).collect::<Vec<_>>())
    };
    insta::assert_snapshot!(router(&["selection.hash={}", "selection.random={}"]), @"--set model.ffn.moe.router.selection.random={}: `model.ffn.moe.router.selection.random` is given beside `model.ffn.moe.router.selection.hash`: keep one of them (on the command line, `--set model.ffn.moe.router.selection.hash=` removes the other)");
    insta::assert_snapshot!(router(&["selection={}"]), @"--set model.ffn.moe.router.selection={}: `model.ffn.moe.router.selection` is empty: give `noisy`, `random_second`, `sinkhorn`, `expert_choice`, `hash`, `soft`, `sparse_mixer`, `random` or `forced_uniform`, or remove it (absent is the `top_k` best of each token)");
    insta::assert_snapshot!(router(&["selection.hahs={}"]), @"--set model.ffn.moe.router.selection.hahs={}: `model.ffn.moe.router.selection.hahs` is not a key of the configuration: [model.ffn.moe.router.selection] takes expert_choice, forced_uniform, hash, noisy, random, random_second, sinkhorn, soft, sparse_mixer.");
    insta::assert_snapshot!(router(&["top_k=1"]), @"run.toml:19:16: `model.ffn.moe.router.renormalise` is true with `top_k = 1`, which makes the only gate of each token 1, so that the router would not learn from the model's loss: use false");
    insta::assert_snapshot!(router(&["groups.num_groups=3", "groups.top_groups=1"]), @"--set model.ffn.moe.router.groups.num_groups=3: `model.ffn.moe.router.groups.num_groups` is 3, which does not divide 8 experts: use a divisor");
    insta::assert_snapshot!(router(&["groups.num_groups=4", "groups.top_groups=5"]), @"--set model.ffn.moe.router.groups.top_groups=5: `model.ffn.moe.router.groups.top_groups` is 5: of 4 groups of 2 experts, use at least 1 and at most 4");
    insta::assert_snapshot!(router(&["groups.num_groups=4", "groups.top_groups=2", "bias.quantile={}"]), @"--set model.ffn.moe.router.bias.quantile={}: `model.ffn.moe.router.bias.quantile` cannot balance experts that compete within groups: remove it, or `model.ffn.moe.router.groups`");
    insta::assert_snapshot!(router(&["bias.sign.rate=0"]), @"--set model.ffn.moe.router.bias.sign.rate=0: `model.ffn.moe.router.bias.sign.rate` is 0: use a positive number");
    insta::assert_snapshot!(router(&["selection.hash={}", "bias.sign={}"]), @"--set model.ffn.moe.router.bias.sign={}: `model.ffn.moe.router.bias` has no effect, because the selection learns nothing: remove it, or `model.ffn.moe.router.selection`");
    insta::assert_snapshot!(router(&["selection.random_second={}", "top_k=3"]), @"--set model.ffn.moe.router.selection.random_second={}: `model.ffn.moe.router.selection.random_second` needs two experts per token, but `model.ffn.moe.router.top_k` is 3: set it to 2, or remove the table");
    insta::assert_snapshot!(router(&["selection.soft={}", "load_balancing_weight=0.1"]), @"--set model.ffn.moe.router.load_balancing_weight=0.1: `model.ffn.moe.router.load_balancing_weight` has no effect on soft mixing, which selects nothing: remove it, or `model.ffn.moe.router.selection`");
    insta::assert_snapshot!(router(&["selection.soft.slots_per_expert=1000000000"]), @"--set model.ffn.moe.router.selection.soft.slots_per_expert=1000000000: `model.ffn.moe.router.selection.soft.slots_per_expert` is 1000000000: use 1..=262144, or remove the key for as much work as of `top_k` experts");
    insta::assert_snapshot!(router(&["load_balancing_scope=global_batch"]), @"--set model.ffn.moe.router.load_balancing_scope=global_batch: `model.ffn.moe.router.load_balancing_scope` has no effect without `model.ffn.moe.router.load_balancing_weight`: set that, or remove it");
    insta::assert_snapshot!(set(&["model.ffn.moe.router.selection.expert_choice={}", "model.ffn.moe.capacity.factor=1"]), @"--set model.ffn.moe.capacity.factor=1: `model.ffn.moe.capacity` has no effect where experts take their tokens: remove it, and set `model.ffn.moe.router.selection.expert_choice.capacity_factor`");
}

#[test]
fn a_plan_names_its_router_and_warns_of_one_that_is_not_causal() {
    let plan = |overrides: &[&str]| {
        let keys: Vec<String> = overrides.iter().map(|key| format!("model.ffn.moe.router.{key}")).collect();
        let (_, plan) = loaded(SOUND, &keys.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        let line = |line: &&str| ["mixture", "router ", "note"].iter().any(|label| line.starts_with(label));
        plan.describe().lines().filter(line).collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(plan(&["sigmoid.routed_scaling=2.5", "bias.sign={}", "groups={ num_groups = 4, top_groups = 2 }"]), @r"
    mixture        8 SwiGLU experts of width 16, each token to 2, dropless
    router         sigmoid scores renormalised, gates times 2.5, within 2 of 4 groups, loss-free balancing by sign, rate 0.001
    ");
    insta::assert_snapshot!(plan(&["softmax=after_selection", "load_balancing_weight=0.01", "load_balancing_scope=global_batch"]), @r"
    mixture        8 SwiGLU experts of width 16, each token to 2, dropless
    router         softmax over the chosen, balancing loss 0.01 over the whole step
    ");
    insta::assert_snapshot!(plan(&["selection.noisy={ importance_weight = 0.1, load_weight = 0.2 }", "precision=f64"]), @r"
    mixture        8 SwiGLU experts of width 16, each token to 2, dropless
    router         noisy logits, softmax scores renormalised, importance loss 0.1, load loss 0.2, gate in f64
    ");
    insta::assert_snapshot!(plan(&["selection.random_second={}", "jitter=0.01", "input=residual"]), @r"
    mixture        8 SwiGLU experts of width 16, each token to 2, dropless
    router         second expert kept with twice its gate, softmax scores renormalised, jitter 0.01, reads the residual stream
    ");
    insta::assert_snapshot!(plan(&["cosine.d_projection=8", "selection.sinkhorn={}", "z_loss_weight=0.001"]), @r"
    mixture        8 SwiGLU experts of width 16, each token to 2, dropless
    router         balanced by Sinkhorn while training, cosine gate of width 8, softmax scores renormalised, z-loss 0.001
    ");
    insta::assert_snapshot!(plan(&["selection.hash.seed=3"]), @r"
    mixture        8 SwiGLU experts of width 16, each token to 2, dropless
    router         by a hash of the token id, seed 3
    ");
    insta::assert_snapshot!(plan(&["selection.expert_choice={}"]), @r"
    mixture        8 SwiGLU experts of width 16, each token to 2 on average
    router         experts take their best tokens, capacity factor 1, not causal, softmax scores
    note           `model.ffn.moe.router.selection.expert_choice` in layers 0, 1, 2, 3 is not causal: a token's experts depend on later tokens, so the validation loss sees what it should predict and does not compare with that of a causal router
    ");
    insta::assert_snapshot!(plan(&["selection.soft={}"]), @r"
    mixture        8 SwiGLU experts of width 16, all for each token
    router         soft mixing, 4 slots per expert and sequence, not causal
    note           `model.ffn.moe.router.selection.soft` in layers 0, 1, 2, 3 is not causal: later tokens are mixed into every output, so the validation loss sees what it should predict and does not compare with that of a causal router
    ");
}

#[test]
fn muon_without_matrices_to_train_is_refused() {
    let roles = |roles: &str| set(&[&format!("train.muon.roles={roles}")]);
    insta::assert_snapshot!(roles("[\"embedding\"]"), @r#"--set train.muon.roles=["embedding"]: `train.muon.roles[0]` is "embedding": use one of "attention", "dense", "experts", "shared_experts""#);
    insta::assert_snapshot!(roles("[\"dense\"]"), @r#"--set train.muon.roles=["dense"]: `train.muon.roles` has "dense", of which the model has no matrix: use some of "attention", "experts", or remove the key for all of them"#);
    insta::assert_snapshot!(roles("[\"experts\", \"experts\"]"), @r#"--set train.muon.roles=["experts", "experts"]: `train.muon.roles` has "experts" twice: use some of "attention", "experts", or remove the key for all of them"#);
    insta::assert_snapshot!(roles("[]"), @r#"--set train.muon.roles=[]: `train.muon.roles` is empty, so that Muon trains nothing: use some of "attention", "experts", or remove the key for all of them"#);
    insta::assert_snapshot!(set(&["train.muon.lr=1"]), @"--set train.muon.lr=1: `train.muon.lr` is not a key of the configuration: [train.muon] takes momentum, nesterov, newton_schulz_steps, roles, weight_decay.");
    insta::assert_snapshot!(set(&["train.muon={}", "model.attention=", "model.lstm={}", "model.ffn.moe="]), @"--set train.muon={}: `train.muon` has nothing to train: the model has neither attention nor whole feed-forward matrices: remove the table, and AdamW trains everything");
}

#[test]
fn schedules_and_early_stopping_that_cannot_work_are_refused() {
    insta::assert_snapshot!(
        set(&["train.schedule.cosine=", "train.schedule.warmup_steps=60", "train.schedule.wsd.decay_steps=50"]), @"--set train.schedule.wsd.decay_steps=50: `train.schedule.wsd.decay_steps` is 50, but `train.num_steps` = 100 less `train.schedule.warmup_steps` = 60 leaves 40: use at most that"
    );
    insta::assert_snapshot!(set(&["train.early_stopping.patience_evals=2"]), @"--set train.early_stopping.patience_evals=2: `train.early_stopping` needs evaluations to stop at: set `train.eval_every_steps`, or remove the table");
    insta::assert_snapshot!(set(&["train.eval_every_steps=5", "train.early_stopping.patience_evals=0"]), @"--set train.early_stopping.patience_evals=0: `train.early_stopping.patience_evals` is 0: use at least 1");
}

#[test]
fn granularity_and_other_routers_that_cannot_be_are_refused() {
    insta::assert_snapshot!(set(&["model.ffn.moe.granularity=3"]), @"--set model.ffn.moe.granularity=3: `model.ffn.moe.granularity` is 3, which does not divide `model.ffn.moe.d_expert` = 16: use a divisor");
    insta::assert_snapshot!(set(&["model.ffn.moe.granularity=0"]), @"--set model.ffn.moe.granularity=0: `model.ffn.moe.granularity` is 0: use at least 1, or remove the key");
    let with = |rules: &str| {
        let text = SOUND.replacen("[train]", &format!("{rules}\n[train]"), 1);
        loaded(&text, &["model.ffn.d_ff=32"]).unwrap_err()
    };
    let rule = |layers: &str, router: &str| {
        format!("[[model.ffn.moe.router_overrides]]\nlayers = {layers}\nrouter = {{ {router} }}\n")
    };
    insta::assert_snapshot!(with(&rule("[4]", "top_k = 2")), @"run.toml:23:1: `model.ffn.moe.router_overrides[0].layers` holds 4, but the model has 4 layers: use 0..=3");
    insta::assert_snapshot!(with(&rule("[]", "top_k = 2")), @"run.toml:23:1: `model.ffn.moe.router_overrides[0].layers` is empty: name at least one layer, or remove the override");
    insta::assert_snapshot!(with(&rule("[0, 1]", "top_k = 2").repeat(2)), @"run.toml:26:1: `model.ffn.moe.router_overrides[1].layers` holds 0, which has a router of its own already: name each layer once");
    insta::assert_snapshot!(with(&rule("[0]", "top_k = 9")), @"run.toml:24:12: `model.ffn.moe.router_overrides[0].router.top_k` is 9, but the layer has 8 experts: use 1..=8");
    insta::assert_snapshot!(with(&rule("[0]", "top_K = 2")), @"run.toml:24:12: `model.ffn.moe.router_overrides[0].router.top_K` is not a key of the configuration: [model.ffn.moe.router_overrides[0].router] takes bias, constant_gate, cosine, entropy_weight, gate_bias, groups, init_scale, input, jitter, load_balancing_scope, load_balancing_weight, precision, renormalise, routed_scaling, selection, sigmoid, softmax, token_rounding, top_k, z_loss_weight. Did you mean `top_k`?");
    let dense = format!("[model.ffn.moe.layers]\nevery = 2\n{}", rule("[0]", "top_k = 2"));
    insta::assert_snapshot!(with(&dense), @"run.toml:25:1: `model.ffn.moe.router_overrides[0].layers` holds 0, which is dense: name layers that are mixtures");
}

#[test]
fn block_sparse_matrices_that_cannot_be_are_refused() {
    let with = |keys: &str| set(&["model.ffn.moe=", &format!("model.ffn.block_sparse={{ {keys} }}")]);
    for (keys, expected) in [
        (
            "d_ff = 64, density = 0.5, block = 5",
            "`model.ffn.block_sparse.block` is 5, which does not divide `model.d_model` = 32: use a divisor",
        ),
        ("d_ff = 65, density = 0.5", "`model.ffn.block_sparse.d_ff` is 65: use a multiple of `block` = 32"),
        (
            "d_ff = 64, density = 0.0",
            "`model.ffn.block_sparse.density` is 0: use a number above 0 and up to 1",
        ),
        (
            "d_ff = 64, density = 0.5, topology = { random = {}, barabasi_albert = {} }",
            "`model.ffn.block_sparse.topology.barabasi_albert` is given beside `model.ffn.block_sparse.topology.random`: keep \
             one of them (on the command line, `--set model.ffn.block_sparse.topology.random=` removes the other)",
        ),
        (
            "d_ff = 64, density = 0.5, topology = { small_world = { rewiring = 2.0 } }",
            "`model.ffn.block_sparse.topology.small_world.rewiring` is 2: use a number in 0..=1",
        ),
    ] {
        let message = with(keys);
        assert!(message.starts_with("--set ") && message.ends_with(expected), "{message}");
    }
    let both = set(&["model.ffn.block_sparse={ d_ff = 64, density = 0.5 }"]);
    assert!(
        both.ends_with("`model.ffn.block_sparse` is given beside `model.ffn.moe`: keep one of them"),
        "{both}"
    );
}

#[test]
fn keys_without_effect_are_noted_not_refused() {
    let notes = |overrides: &[&str]| loaded(SOUND, overrides).unwrap().1.notes;
    assert_eq!(
        notes(&["model.ffn.d_ff=64", "model.ffn.bias=true"]),
        [
            "`model.ffn.d_ff` has no effect: every layer is MoE",
            "`model.ffn.bias` has no effect: every layer is MoE"
        ]
    );
    assert_eq!(
        notes(&["train.schedule.warmup_steps=100"]),
        [
            "the learning rate never reaches its peak: `train.schedule.warmup_steps` is 100, `train.num_steps` 100"
        ]
    );
}

#[test]
fn the_largest_model_allowed_can_be_counted() {
    let (_, plan) = loaded(
        SOUND,
        &[
            "model.num_layers=1024",
            "model.d_model=65536",
            "model.attention={ num_heads = 4096, d_head = 4096, bias = true, qk_norm = true }",
            "model.ffn.moe.num_experts=16384",
            "model.ffn.moe.router.top_k=16384",
            "model.ffn.moe.d_expert=262144",
            "model.ffn.moe.d_shared_expert=262144",
            "train.num_steps=1000000000",
            "train.seq_len=16777216",
            "train.batch_tokens=1073741824",
        ],
    )
    .unwrap();
    assert!(plan.counts.total_params > 1 << 59);
    assert_eq!(plan.total_tokens(), 1_000_000_000 * 1_073_741_824);
    assert!(plan.describe().contains("parameters"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Cutting, repeating or replacing a piece of a file never panics, and an error always names
    /// the file.
    #[test]
    fn a_mangled_file_is_one_error_with_a_place(
        at in 0..SOUND.len(),
        len in 0_usize..20,
        piece in proptest::sample::select(vec!["", ".", "[", "]", "=1\n", "\"\"", "ü", "-", "x", "\n", "{}", "#", "9"]),
    ) {
        let end = (at + len).min(SOUND.len());
        let text = format!("{}{piece}{}", &SOUND[..at], &SOUND[end..]);
        if let Err(message) = loaded(&text, &[]) {
            prop_assert!(message.starts_with("run.toml"), "{}", message);
        }
    }
}

#[test]
fn a_mistake_in_the_flight_recorders_table_names_its_key() {
    let message = |set: &str| loaded(SOUND, &[set]).unwrap_err();
    let never = message("train.flight_recorder.probe_every_steps=0");
    assert!(never.contains("`train.flight_recorder.probe_every_steps` is 0: use at least 1"), "{never}");
    let share = message("train.flight_recorder.alarms.dropped_share=2.0");
    assert!(share.contains("`train.flight_recorder.alarms.dropped_share` is 2"), "{share}");
    let misspelt = message("train.flight_recorder.scores_every=5");
    assert!(misspelt.contains("scores_every"), "{misspelt}");
}

/// The base shape of the sound configuration, changed.
fn with_base(from: &str, to: &str) -> String {
    let base = "d_model = 16, num_layers = 2, num_heads = 2, num_experts = 4, d_expert = 8, top_k = 1";
    assert!(base.contains(from), "nothing to replace: {from}");
    let base = format!("[model.parametrisation]\nbase = {{ {} }}\n\n[train]", base.replacen(from, to, 1));
    loaded(&SOUND.replacen("[train]", &base, 1), &[]).map_or_else(|error| error, |(_, plan)| plan.describe())
}

#[test]
fn a_base_shape_says_what_the_model_has_and_nothing_else() {
    let sound = with_base("top_k = 1", "top_k = 1");
    assert!(sound.contains("transferred: width x2.000, depth x2.000 of the base"), "{sound}");
    insta::assert_snapshot!(with_base("top_k = 1", "top_k = 5"), @"run.toml:23:86: `model.parametrisation.base.top_k` is 5: use 1..=4");
    insta::assert_snapshot!(with_base("d_model = 16", "d_model = 0"), @"run.toml:23:10: `model.parametrisation.base.d_model` is 0: use 1..=65536");
    insta::assert_snapshot!(with_base("num_heads = 2", "num_heads = 3"), @"run.toml:23:40: `model.parametrisation.base.num_heads` is 3, which does not divide `model.parametrisation.base.d_model` = 16: use a divisor, or set `model.parametrisation.base.d_head`");
    insta::assert_snapshot!(with_base(", d_expert = 8", ""), @"run.toml:23:1: `model.parametrisation.base.d_expert` is missing, but the model has a mixture of experts: give that of the base shape");
    insta::assert_snapshot!(with_base("top_k = 1", "top_k = 1, d_ff = 32"), @"run.toml:23:97: `model.parametrisation.base.d_ff` has no effect: the model has no dense blocks: remove the key");
    insta::assert_snapshot!(with_base("top_k = 1", "top_k = 1, d_shared_expert = 32"), @"run.toml:23:97: `model.parametrisation.base.d_shared_expert` has no effect: the model has no shared expert: remove the key");
    insta::assert_snapshot!(with_base("top_k = 1", "granularity = 1"), @"run.toml:23:86: `model.parametrisation.base.granularity` is not a key of the configuration: [model.parametrisation.base] takes d_expert, d_ff, d_head, d_model, d_shared_expert, num_experts, num_heads, num_layers, top_k. Did you mean `model.ffn.moe.granularity`?");
    insta::assert_snapshot!(with_base("d_model = 16, ", ""), @"run.toml:23:1: [model.parametrisation.base] lacks `d_model` (Width of its residual stream): add a whole number, 0 or more, or pass `--set model.parametrisation.base.d_model=VALUE`");
    let beside = |overrides: &[&str]| {
        let base = "d_model = 16, num_layers = 2, num_heads = 2, num_experts = 4, d_expert = 8, top_k = 1";
        let base = format!("model.parametrisation.base={{ {base} }}");
        set(&[&[base.as_str()], overrides].concat())
    };
    insta::assert_snapshot!(beside(&["model.residual=\"post_norm\""]), @r#"--set model.parametrisation.base={ d_model = 16, num_layers = 2, num_heads = 2, num_experts = 4, d_expert = 8, top_k = 1 }: `model.parametrisation.base.num_layers` is 2, but the model has 4 layers, and for `model.residual` = "post_norm" no rule over depth is known: use 4, or another `model.residual`"#);
    insta::assert_snapshot!(beside(&["model.attention=", "model.lstm={}"]), @"--set model.parametrisation.base={ d_model = 16, num_layers = 2, num_heads = 2, num_experts = 4, d_expert = 8, top_k = 1 }: `model.parametrisation` is given beside `model.lstm`, for which no rule is known: remove one of them");
    insta::assert_snapshot!(beside(&["model.ffn.moe.router.selection={ soft = {} }"]), @"--set model.parametrisation.base={ d_model = 16, num_layers = 2, num_heads = 2, num_experts = 4, d_expert = 8, top_k = 1 }: `model.parametrisation` is given beside `model.ffn.moe.router.selection.soft`, for which no rule is known: remove one of them");
    insta::assert_snapshot!(beside(&["model.ffn.moe.router_overrides=[{ layers = [1], router = { top_k = 1 , constant_gate = true} }]"]), @"--set model.ffn.moe.router_overrides=[{ layers = [1], router = { top_k = 1 , constant_gate = true} }]: `model.ffn.moe.router_overrides[0].router.top_k` is 1 with gates of one sum, and that of other layers 2 with gates of one sum: their experts would need rates of their own: give all routers the same `top_k` and sum of gates, or remove `model.parametrisation`");
}
