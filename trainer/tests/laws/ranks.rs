//! A run on several ranks is the run of one, bit for bit.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::resume::{tensors, with_steps};
use crate::routers::{self, ROUTERS};
use crate::tiny;
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::run_folder::OpenMode;
use switchyard_trainer::{RanksForecast, TrainError};
use tempfile::TempDir;

/// The configuration in micro-batches of so many tokens, of the 128 of a step.
fn in_micro_batches(config: &RunConfig, tokens: usize) -> RunConfig {
    let mut config = config.clone();
    config.train.micro_batch_tokens = Some(tokens);
    config.train.flight_recorder.probe_every_steps = 2;
    config.train.flight_recorder.scores_every_steps = 3;
    config
}

/// Everything that a run leaves and that does not tell time: logged numbers, tensors, generated text,
/// the losses of documents, what the flight recorder has seen.
fn traces(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut traces = BTreeMap::new();
    traces.insert("rows".into(), format!("{:?}", tiny::rows(out)).into_bytes());
    for step in [3, 6] {
        let [model, optimizer] = tensors(out, step);
        traces.extend([(format!("model {step}"), model), (format!("optimizer {step}"), optimizer)]);
    }
    for name in ["sample.txt", "document_losses.jsonl"] {
        traces.insert(name.into(), fs::read(out.join(name)).unwrap_or_default());
    }
    add_files(&mut traces, &out.join("flight"));
    traces
}

/// Every file in a folder and those in it, if there is one.
fn add_files(traces: &mut BTreeMap<String, Vec<u8>>, folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => add_files(traces, &path),
            false => drop(traces.insert(
                path.to_string_lossy().rsplit_once("flight/").unwrap().1.into(),
                fs::read(&path).unwrap(),
            )),
        }
    }
}

#[track_caller]
fn assert_same(name: &str, one: &BTreeMap<String, Vec<u8>>, other: &BTreeMap<String, Vec<u8>>) {
    let names = |traces: &BTreeMap<String, Vec<u8>>| traces.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(one), names(other), "{name}: what is there");
    for (trace, bytes) in one {
        assert!(*bytes == other[trace], "{name}: {trace} differs");
    }
}

/// So many ranks leave what one leaves.
#[track_caller]
fn assert_independent_of_ranks(name: &str, config: &RunConfig, numbers: &[usize]) {
    let folder = TempDir::new().unwrap();
    let alone = folder.path().join("alone");
    tiny::run(config, &alone, OpenMode::New).unwrap();
    for ranks in numbers {
        let out = folder.path().join(format!("on {ranks}"));
        let summary = tiny::run_on_ranks(*ranks, config, &out, OpenMode::New).unwrap();
        assert_eq!(summary.manifest.ranks, *ranks);
        assert_same(&format!("{name} on {ranks} ranks"), &traces(&alone), &traces(&out));
    }
}

#[test]
fn a_dense_run_and_a_mixture_are_the_same_on_1_2_and_4_ranks() {
    for (name, config) in [("dense", tiny::dense()), ("moe", tiny::moe())] {
        // One, two and four micro-batches of each rank.
        assert_independent_of_ranks(name, &in_micro_batches(&config, 16), &[2, 4, 8]);
    }
}

/// The configuration with each layer's experts spread over so many ranks.
fn over(config: &RunConfig, expert_parallel: usize) -> RunConfig {
    let mut config = config.clone();
    config.distributed.expert_parallel = expert_parallel;
    config
}

#[test]
fn experts_spread_over_ranks_are_the_same() {
    let mut config = in_micro_batches(&tiny::moe(), 16);
    for num_experts in [4, 32] {
        if let Some(moe) = &mut config.model.ffn.moe {
            moe.num_experts = num_experts;
        }
        let folder = TempDir::new().unwrap();
        let alone = folder.path().join("alone");
        tiny::run(&config, &alone, OpenMode::New).unwrap();
        for (ranks, expert_parallel) in [(2, 2), (4, 2), (4, 4), (8, 2)] {
            let name = format!("{num_experts} experts over {expert_parallel} of {ranks} ranks");
            let out = folder.path().join(&name);
            tiny::run_on_ranks(ranks, &over(&config, expert_parallel), &out, OpenMode::New).unwrap();
            assert_same(&name, &traces(&alone), &traces(&out));
        }
    }
}

#[test]
fn what_a_rank_sends_in_a_step_is_what_was_forecast() {
    let folder = TempDir::new().unwrap();
    let mut muon = tiny::moe();
    muon.train.muon = Some(toml::from_str("").unwrap());
    for (name, config, ranks, expert_parallel) in [
        ("dense", tiny::dense(), 2, 1),
        ("dense", tiny::dense(), 4, 1),
        ("moe", tiny::moe(), 2, 1),
        ("moe", tiny::moe(), 4, 1),
        ("moe", tiny::moe(), 2, 2),
        ("moe", tiny::moe(), 4, 2),
        ("Muon", muon, 4, 2),
    ] {
        let config = over(&in_micro_batches(&config, 16), expert_parallel);
        let name = format!("{name} on {ranks} over {expert_parallel}");
        let plan = RunPlan::resolve(&config).unwrap();
        let forecast = RanksForecast::of(&config, &plan, ranks).unwrap();
        let out = folder.path().join(&name);
        let summary = tiny::run_on_ranks(ranks, &config, &out, OpenMode::New).unwrap();
        let counted = summary.manifest.traffic.unwrap();
        assert_eq!(counted, forecast.ranks[0].traffic, "{name}");
        assert!(counted.gradients.bytes > 0 && counted.parameters.bytes > 0, "{name}");
        let total = plan.counts.total_params;
        let updated: u64 = forecast.ranks.iter().map(|rank| rank.parameters_updated).sum();
        let moments: u64 = forecast.ranks.iter().map(|rank| rank.memory.moments_bytes).sum();
        assert_eq!((updated, moments), (total, plan.memory.moments_bytes), "{name}");
    }
}

#[test]
fn a_number_of_ranks_that_is_no_power_of_two_changes_nothing() {
    let mut config = in_micro_batches(&tiny::moe(), 16);
    config.train.batch_tokens = 96;
    assert_independent_of_ranks("6 micro-batches", &config, &[3, 6]);
}

#[test]
fn threads_of_ranks_change_nothing() {
    let config = in_micro_batches(&tiny::moe(), 32);
    let folder = TempDir::new().unwrap();
    let outs = [1, 2, 3].map(|threads| {
        let out = folder.path().join(format!("{threads} threads"));
        tiny::run_on_ranks(2, &with_steps(&config, 6, threads), &out, OpenMode::New).unwrap();
        traces(&out)
    });
    assert_same("2 threads", &outs[0], &outs[1]);
    assert_same("3 threads", &outs[0], &outs[2]);
}

#[test]
fn every_router_is_the_same_on_two_ranks_or_refused_by_name() {
    for (name, router) in ROUTERS {
        let config = in_micro_batches(&routers::config(router), 32);
        if router.contains("global_batch") {
            let folder = TempDir::new().unwrap();
            let refused =
                tiny::run_on_ranks(2, &config, &folder.path().join("run"), OpenMode::New).unwrap_err();
            assert!(
                refused.to_string().contains("router.load_balancing_scope` is `global_batch`"),
                "{refused}"
            );
        } else {
            assert_independent_of_ranks(name, &config, &[2]);
            assert_independent_of_ranks(name, &over(&config, 2), &[2]);
        }
    }
}

#[test]
fn every_option_of_training_is_the_same_on_ranks() {
    let with = |text: &str| {
        let mut value = toml::Value::try_from(in_micro_batches(&tiny::moe(), 32)).unwrap();
        merge(&mut value, toml::from_str(text).unwrap());
        value.try_into::<RunConfig>().unwrap()
    };
    for (name, text, ranks) in [
        ("32 experts", "model.ffn.moe.num_experts = 32", 4),
        ("a bias", "model.ffn.moe.expert_bias = true", 4),
        ("bf16", "train.precision.compute = \"bf16\"", 2),
        ("recompute", "train.recompute = \"block\"", 2),
        ("bf16 moments", "train.adamw.moments = \"bf16\"", 4),
        ("Muon", "[train.muon]", 4),
        ("QK-clip", "train.qk_clip.max_logit = 0.5", 2),
        ("spikes", "train.skip_spikes = { window_steps = 4, deviations = 0.1 }", 2),
        ("groups", "[[train.groups]]\nmatch = \"role:router\"\nfreeze = true", 2),
        ("no recorder", "train.flight_recorder.enabled = false", 2),
        ("packing", "data.packing = \"best_fit\"", 2),
    ] {
        assert_independent_of_ranks(name, &with(text), &[ranks]);
        if !text.contains("freeze") {
            assert_independent_of_ranks(name, &over(&with(text), 2), &[ranks]);
        }
    }
}

fn merge(value: &mut toml::Value, more: toml::Value) {
    match (value, more) {
        (toml::Value::Table(table), toml::Value::Table(more)) => {
            for (key, more) in more {
                match table.get_mut(&key) {
                    Some(value) => merge(value, more),
                    None => drop(table.insert(key, more)),
                }
            }
        }
        (value, more) => *value = more,
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks_to_the_bits_of_an_unbroken_one() {
    for (name, config) in [("dense", tiny::dense()), ("moe", tiny::moe())] {
        let config = in_micro_batches(&config, 32);
        let folder = TempDir::new().unwrap();
        let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
        tiny::run(&config, &whole, OpenMode::New).unwrap();
        let over_two = if name == "moe" { 2 } else { 1 };
        for (ranks, expert_parallel, num_steps) in
            [(1, 1, 1), (4, over_two, 3), (2, 1, 4), (2, over_two, 5), (4, 1, 6)]
        {
            let mode = if num_steps == 1 { OpenMode::New } else { OpenMode::Resume };
            let config = over(&with_steps(&config, num_steps, 1), expert_parallel);
            tiny::run_on_ranks(ranks, &config, &parts, mode).unwrap();
        }
        let steps = |out: &Path| [3, 6].map(|step| tensors(out, step));
        assert!(steps(&whole) == steps(&parts), "{name}");
    }
}

#[test]
fn micro_batches_that_cannot_be_spread_are_refused_with_what_to_write() {
    let folder = TempDir::new().unwrap();
    let refused = |ranks: usize, tokens: Option<usize>| {
        let mut config = tiny::dense();
        config.train.micro_batch_tokens = tokens;
        let out = folder.path().join("run");
        let error = tiny::run_on_ranks(ranks, &config, &out, OpenMode::New).unwrap_err();
        assert!(matches!(error, TrainError::Distributed(_)) && !out.exists(), "{error}");
        error.to_string()
    };
    let message = refused(2, None);
    assert!(
        message.starts_with("`train.micro_batch_tokens` is 128, so a step of 128 tokens is 1 micro-batch, ")
    );
    assert!(message.ends_with("start 1 rank, or use 64, for another run"), "{message}");
    assert!(refused(4, Some(64)).ends_with("start 2 ranks, or use 32, for another run"));
    assert!(refused(3, Some(16)).contains("start 2 ranks, or use 48, with `train.batch_tokens = 144`"));
    // What is advised works.
    let mut config = tiny::dense();
    config.train.batch_tokens = 144;
    config.train.micro_batch_tokens = Some(48);
    tiny::run_on_ranks(3, &config, &folder.path().join("three"), OpenMode::New).unwrap();
}

#[test]
fn experts_that_do_not_spread_are_refused_by_name() {
    let folder = TempDir::new().unwrap();
    let refused = |config: &RunConfig, ranks: usize, expert_parallel: usize| {
        let config = over(&in_micro_batches(config, 16), expert_parallel);
        let out = folder.path().join("run");
        let error = tiny::run_on_ranks(ranks, &config, &out, OpenMode::New).unwrap_err();
        assert!(matches!(error, TrainError::Distributed(_)) && !out.exists(), "{error}");
        error.to_string()
    };
    let key = "`distributed.expert_parallel` is";
    let mut frozen = tiny::moe();
    frozen.start.freeze = vec!["experts".into()];
    for (message, words) in [
        (refused(&tiny::dense(), 2, 2), "2, but no layer has experts"),
        (refused(&tiny::moe(), 8, 8), "8, which does not divide the 4 experts of a layer"),
        (refused(&tiny::moe(), 2, 4), "4, but there are 2 ranks"),
        (refused(&frozen, 2, 2), "2, but `start.freeze` freezes parameters"),
    ] {
        assert!(message.starts_with(&format!("{key} {words}")), "{message}");
    }
}
