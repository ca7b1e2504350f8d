//! Runs whose backward pass computes anew what others keep are the same runs, bit for bit.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use switchyard_datasets::Packing;
use switchyard_experts::RouterOverride;
use switchyard_model::{Recompute, Residual};
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::metrics::Record;
use switchyard_trainer::run_folder::OpenMode;
use tempfile::TempDir;

use crate::muon::{block_sparse, latent, recurrent};
use crate::precision::in_bf16;
use crate::resume::{tensors, with_steps};
use crate::routers::{ROUTERS, config};
use crate::tiny;

const NUM_STEPS: u64 = 3;

/// Rows of the log, tensors of the last checkpoint, and files of the flight recorder.
type Run = (Vec<Record>, [Vec<u8>; 2], BTreeMap<PathBuf, Vec<u8>>);

/// `config` in three layers, whose losses meet in the middle one.
fn deep(mut config: RunConfig) -> RunConfig {
    config.model.num_layers = 3;
    config
}

fn changed(mut config: RunConfig, change: impl FnOnce(&mut RunConfig)) -> RunConfig {
    change(&mut config);
    config
}

fn run(config: &RunConfig, recompute: Recompute, folder: &Path) -> Run {
    let mut config = with_steps(config, NUM_STEPS, 2);
    config.train.recompute = recompute;
    config.train.flight_recorder = toml::from_str("probe_every_steps = 1\nscores_every_steps = 1").unwrap();
    let out = folder.join(format!("{recompute:?}"));
    tiny::run(&config, &out, OpenMode::New).unwrap();
    let mut files = BTreeMap::new();
    read_files(&out.join("flight"), &mut files);
    (tiny::rows(&out), tensors(&out, NUM_STEPS), files)
}

/// The files below `folder`.
fn read_files(folder: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for path in fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()) {
        match path.is_dir() {
            true => read_files(&path, files),
            false => {
                files.insert(path.file_name().unwrap().into(), fs::read(&path).unwrap());
            }
        }
    }
}

#[track_caller]
fn assert_same(name: &str, config: &RunConfig, anew: Recompute) {
    let folder = TempDir::new().unwrap();
    let [kept, anew] = [Recompute::None, anew].map(|recompute| run(config, recompute, folder.path()));
    assert_eq!(kept.0, anew.0, "{name}: logged numbers");
    assert!(kept.1 == anew.1, "{name}: stored tensors");
    assert_eq!(kept.2.keys().collect::<Vec<_>>(), anew.2.keys().collect::<Vec<_>>(), "{name}");
    assert!(kept.2 == anew.2, "{name}: flight recorder");
}

#[test]
fn a_run_may_go_on_with_less_or_more_computed_anew() {
    let folder = TempDir::new().unwrap();
    let config = deep(config(ROUTERS[0].1));
    let (out, unbroken) = (folder.path().join("changed"), folder.path().join("unbroken"));
    for (num_steps, recompute) in [(1, Recompute::Block), (2, Recompute::None), (3, Recompute::Ffn)] {
        let part = changed(with_steps(&config, num_steps, 1), |config| config.train.recompute = recompute);
        let mode = if num_steps == 1 { OpenMode::New } else { OpenMode::Resume };
        tiny::run(&part, &out, mode).unwrap();
    }
    tiny::run(&with_steps(&config, 3, 1), &unbroken, OpenMode::New).unwrap();
    assert_eq!(tiny::rows(&out), tiny::rows(&unbroken));
    assert!(tensors(&out, 3) == tensors(&unbroken, 3));
}

#[test]
fn projections_computed_anew_change_nothing() {
    for (name, config) in
        [("dense", tiny::dense()), ("moe", tiny::moe()), ("moe in bf16", in_bf16(tiny::moe()))]
    {
        assert_same(name, &config, Recompute::Ffn);
    }
}

#[test]
fn blocks_computed_anew_change_nothing_with_any_router() {
    for (name, router) in ROUTERS {
        assert_same(name, &deep(config(router)), Recompute::Block);
    }
    let all_layers = "top_k = 2\nload_balancing_weight = 0.1\nload_balancing_scope = \"all_layers\"\n\
                      z_loss_weight = 0.1\nentropy_weight = 0.1";
    assert_same("all layers", &deep(config(all_layers)), Recompute::Block);
}

/// The sums of gradients have the whole tape's order whichever layers have which losses.
#[test]
fn blocks_computed_anew_change_nothing_where_layers_have_other_losses() {
    let [balanced, z, both, none] = [
        "top_k = 2\nload_balancing_weight = 0.3",
        "top_k = 2\nz_loss_weight = 0.3",
        "top_k = 2\nload_balancing_weight = 0.3\nz_loss_weight = 0.3\nentropy_weight = -0.2",
        "top_k = 2",
    ];
    for routers in [
        [both, both, both],
        [both, balanced, z],
        [both, z, balanced],
        [balanced, both, none],
        [z, none, both],
        [both, none, z],
    ] {
        let mut config = deep(config(routers[0]));
        let moe = config.model.ffn.moe.as_mut().unwrap();
        (moe.d_shared_expert, moe.shared_expert_gate) = (Some(8), true);
        moe.router_overrides = (1..3)
            .map(|layer| RouterOverride {
                layers: vec![layer],
                router: toml::from_str(routers[layer]).unwrap(),
            })
            .collect();
        for residual in [Residual::Sequential, Residual::Parallel] {
            config.model.residual = residual;
            assert_same(&format!("{routers:?}, {residual:?}"), &config, Recompute::Block);
        }
    }
}

#[test]
fn blocks_computed_anew_change_nothing_in_any_kind_of_model() {
    let post_norm = |config: &mut RunConfig| config.model.residual = Residual::PostNorm;
    let output_norm = |config: &mut RunConfig| config.model.residual = Residual::OutputNorm;
    let tied = |config: &mut RunConfig| config.model.tie_embeddings = true;
    let clipped = |config: &mut RunConfig| {
        config.train.qk_clip = Some(toml::from_str("max_logit = 0.01").unwrap());
        config.train.muon = Some(toml::from_str("").unwrap());
    };
    let packed = |config: &mut RunConfig| config.data.packing = Packing::BestFit;
    let dropping = |config: &mut RunConfig| {
        config.model.ffn.moe.as_mut().unwrap().capacity = Some(toml::from_str("factor = 0.6").unwrap());
        config.train.head_z_loss_weight = Some(1e-3);
    };
    for (name, config) in [
        ("dense", tiny::dense()),
        ("dense, tied", changed(tiny::dense(), tied)),
        ("mixture", tiny::moe()),
        ("mixture in bf16", in_bf16(tiny::moe())),
        ("mixture that drops tokens", changed(tiny::moe(), dropping)),
        ("mixture of documents with padding", changed(tiny::moe(), packed)),
        ("mixture behind norms", changed(tiny::moe(), post_norm)),
        ("mixture before norms", changed(tiny::moe(), output_norm)),
        ("mixture by Muon, clipped heads", changed(tiny::moe(), clipped)),
        ("latent attention, clipped heads", changed(latent(), clipped)),
        ("LSTM", recurrent()),
        ("LSTM that carries its state", crate::recurrent::recurrent()),
        ("block-sparse", block_sparse()),
    ] {
        assert_same(name, &deep(config), Recompute::Block);
    }
}

/// Below the first layer that learns nothing is computed anew, and there are no gradients.
#[test]
fn blocks_computed_anew_change_nothing_where_parameters_are_frozen() {
    for frozen in [
        &["embedding"][..],
        &["embedding", "blocks.0.*"],
        &["embedding", "blocks.*"],
        &["router", "norms"],
        &["head", "blocks.2.*"],
        &["blocks.1.*"],
    ] {
        let mut config = deep(tiny::moe());
        let group = |name: &&str| toml::from_str(&format!("match = \"{name}\"\nfreeze = true")).unwrap();
        config.train.groups = frozen.iter().map(group).collect();
        assert_same(&format!("{frozen:?}"), &config, Recompute::Block);
    }
}
