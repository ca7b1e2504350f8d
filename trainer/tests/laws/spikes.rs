//! Laws of steps that are skipped.

use std::fs;
use std::path::Path;

use switchyard_trainer::metrics::{Record, StepRecord};
use switchyard_trainer::run_folder::{OpenMode, RunManifest};
use tempfile::TempDir;

use crate::resume::{tensors, with_steps};
use crate::tiny;

fn steps(out: &Path) -> Vec<StepRecord> {
    tiny::rows(out).iter().filter_map(Record::as_step).cloned().collect()
}

#[test]
fn a_skipped_step_moves_nothing_is_counted_and_a_resumed_run_skips_the_same() {
    let folder = TempDir::new().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let mut config = tiny::moe();
    // Whatever lies above the mean is a spike.
    config.train.skip_spikes = Some(toml::from_str("window_steps = 4\ndeviations = 1e-6").unwrap());
    config.train.checkpoint_every_steps = Some(1);
    config.train.checkpoints.keep_last = 20;
    let config = with_steps(&config, 12, 1);
    tiny::run(&config, &whole, OpenMode::New).unwrap();
    tiny::run(&with_steps(&config, 7, 1), &parts, OpenMode::New).unwrap();
    tiny::run(&config, &parts, OpenMode::Resume).unwrap();
    assert_eq!(steps(&whole), steps(&parts));
    assert!(tensors(&whole, 12) == tensors(&parts, 12), "stored tensors");

    let rows = steps(&whole);
    let skipped = rows.iter().filter(|row| row.skipped).count();
    assert!((1..10).contains(&skipped), "{skipped} of 12 steps");
    for row in &rows[1..] {
        let moved = tensors(&whole, row.step - 1) != tensors(&whole, row.step);
        assert_eq!(moved, !row.skipped, "step {}", row.step);
    }
    let manifest = RunManifest::read(&whole.join("run.json")).unwrap();
    assert_eq!((manifest.steps_done, manifest.skipped_steps), (12, skipped as u64));
    let alarms = fs::read_to_string(whole.join("flight/alarms.jsonl")).unwrap();
    assert_eq!(alarms.matches("\"skipped_step\"").count(), skipped);
    // One that never spikes is the run without the rule.
    let mut calm = config.clone();
    calm.train.skip_spikes = Some(toml::from_str("deviations = 1e9").unwrap());
    let mut without = config;
    without.train.skip_spikes = None;
    let runs = [(&calm, "calm"), (&without, "without")].map(|(config, name)| {
        let out = folder.path().join(name);
        tiny::run(config, &out, OpenMode::New).unwrap();
        tensors(&out, 12)
    });
    assert!(runs[0] == runs[1]);
}
