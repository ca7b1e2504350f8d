//! Training on a device of wgpu beside the CPU. With a software device, which Debian has in
//! mesa-vulkan-drivers: `cargo test --workspace --features switchyard/wgpu --test laws devices`.

use std::path::Path;

use switchyard_trainer::config::RunConfig;
use switchyard_trainer::device;
use switchyard_trainer::metrics::{Record, StepRecord};
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::run_folder::OpenMode;
use tempfile::TempDir;

use crate::resume::{tensors, with_steps};
use crate::routers::{self, ROUTERS};
use crate::tiny;

const NUM_STEPS: u64 = 4;
/// Between the losses of both, as a share: sums of f32 in other orders.
const LOSS_ERROR: f64 = 1e-5;

fn has_device() -> bool {
    let has = device::select("wgpu").is_ok();
    if !has {
        switchyard_ground::say!("skipped: no device of wgpu answers; Debian has one in mesa-vulkan-drivers");
    }
    has
}

fn on_wgpu(config: &RunConfig) -> RunConfig {
    RunConfig { device: "wgpu".into(), ..config.clone() }
}

fn steps(config: &RunConfig, out: &Path) -> Vec<StepRecord> {
    tiny::run(config, out, OpenMode::New).unwrap();
    tiny::rows(out).iter().filter_map(Record::as_step).cloned().collect()
}

#[test]
fn every_router_trains_as_on_the_cpu_or_is_refused_by_name() {
    if !has_device() {
        return;
    }
    for (name, router) in ROUTERS {
        let config = with_steps(&routers::config(router), NUM_STEPS, 1);
        let folder = TempDir::new().unwrap();
        let [on_cpu, on_device] = ["cpu", "wgpu"].map(|device| folder.path().join(device));
        if router.contains("precision = \"f64\"") {
            let refused = RunPlan::resolve(&on_wgpu(&config)).unwrap_err().to_string();
            assert!(refused.contains("router.precision` is \"f64\", but `device`"), "{refused}");
            continue;
        }
        let rows = steps(&config, &on_cpu).into_iter().zip(steps(&on_wgpu(&config), &on_device));
        let mut num_rows = 0;
        for (cpu, wgpu) in rows {
            let error = (cpu.total_loss - wgpu.total_loss).abs() / cpu.total_loss.abs();
            assert!(
                error <= LOSS_ERROR,
                "{name}, step {}: {} and {}",
                cpu.step,
                cpu.total_loss,
                wgpu.total_loss
            );
            let loads = |row: &StepRecord| {
                row.layers.iter().map(|layer| layer.tokens_per_expert.clone()).collect::<Vec<_>>()
            };
            assert_eq!(loads(&cpu), loads(&wgpu), "{name}, step {}", cpu.step);
            num_rows += 1;
        }
        assert_eq!(num_rows, NUM_STEPS, "{name}");
    }
}

#[test]
fn a_run_resumes_bit_for_bit() {
    if !has_device() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|run| folder.path().join(run));
    let config = |num_steps| on_wgpu(&with_steps(&tiny::moe(), num_steps, 1));
    tiny::run(&config(NUM_STEPS), &whole, OpenMode::New).unwrap();
    tiny::run(&config(NUM_STEPS / 2), &parts, OpenMode::New).unwrap();
    tiny::run(&config(NUM_STEPS), &parts, OpenMode::Resume).unwrap();
    assert!(tensors(&whole, NUM_STEPS) == tensors(&parts, NUM_STEPS));
}
