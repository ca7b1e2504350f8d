//! `switchyard fit`

use std::path::{Path, PathBuf};
use switchyard_ground::say;

use serde_json::Value;
use switchyard_trainer::run_folder::{RunManifest, RunPaths, RunStatus};

use super::{print_json, print_text};
use crate::cli::FitArgs;
use crate::failure::Failure;
use crate::run_folders::{read_each, run_folders};
use crate::scaling::{FitOptions, Observation, Point, ScalingReport, approximate_training_flops};
use crate::study::{read_result, run_of_study};

pub(super) fn run(args: &FitArgs) -> Result<(), Failure> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for path in &args.folders {
        match read_result(path)? {
            // A study's pilots, and runs of other code or other data, lie beside those of its
            // result.
            Some(result) => {
                for run in result.arms.iter().flat_map(|arm| &arm.runs) {
                    folders.push(run_of_study(path, &run.run)?);
                }
            }
            None => folders.extend(run_folders(path)?),
        }
    }
    let runs = read_each(&folders, observation)?;
    let num_runs = runs.len();
    let observations: Vec<Observation> = runs.into_iter().flatten().collect();
    let skipped = num_runs - observations.len();
    if skipped > 0 {
        say!("note: {skipped} run(s) without a final validation loss are left out");
    }
    if observations.is_empty() {
        let named: Vec<String> = args.folders.iter().map(|path| path.display().to_string()).collect();
        return Err(Failure::Mistake(format!(
            "{}: no finished run: name a study's folder, or run folders",
            named.join(", ")
        )));
    }
    let options = FitOptions { num_bootstrap_samples: args.bootstrap, seed: 0 };
    let report = ScalingReport::new(&observations, &options);
    if args.json { print_json(&report) } else { print_text(&report.to_text()) }
}

/// What a run says of a scaling law; `None` if it has not finished.
fn observation(folder: &Path) -> Result<Option<Observation>, Failure> {
    let manifest = RunManifest::read(&RunPaths::new(folder).manifest())?;
    let Some(loss_nats) = manifest.final_validation_cross_entropy_nats else { return Ok(None) };
    if manifest.status != RunStatus::Finished {
        return Ok(None);
    }
    // A run of zero FLOPs is one that did not count them.
    let counted_flops = (manifest.active_flops > 0.0).then_some(manifest.active_flops);
    let Some(point) = point_of(&manifest.plan, manifest.tokens_seen, counted_flops) else { return Ok(None) };
    Ok(Some(Observation {
        point,
        has_counted_flops: counted_flops.is_some(),
        loss_nats,
        weight: 1.0,
        label: shape_of(&manifest.plan, &point),
    }))
}

/// Sizes of the model in `plan`, and what it was trained on.
fn point_of(plan: &Value, tokens: u64, counted_flops: Option<f64>) -> Option<Point> {
    let count = |key: &str| plan["counts"][key].as_u64().map(|count| count as f64);
    let parts = &plan["counts"]["params"];
    let experts = match first_mixture(&plan["model"]) {
        Some(mixture) => ExpertShape::of(&mixture, number(&plan["model"]["d_model"])?),
        None => ExpertShape::DENSE,
    };
    let (active_params, tokens) = (count("active_params")?, tokens as f64);
    Some(Point {
        active_params,
        total_params: count("total_params")?,
        outer_params: ["embedding", "position", "router", "head"]
            .iter()
            .filter_map(|part| number(&parts[*part]))
            .sum(),
        num_experts: experts.num_experts,
        granularity: experts.granularity,
        shared_ratio: experts.shared_ratio,
        width_granularity: experts.width_granularity,
        tokens,
        training_flops: counted_flops.unwrap_or_else(|| approximate_training_flops(active_params, tokens)),
    })
}

/// A mixture's shape as scaling laws see it; the fields are those of [`Point`].
struct ExpertShape {
    num_experts: f64,
    granularity: f64,
    shared_ratio: f64,
    width_granularity: f64,
}

impl ExpertShape {
    const DENSE: Self =
        Self { num_experts: 1.0, granularity: 1.0, shared_ratio: 0.0, width_granularity: 1.0 };

    fn of(mixture: &Mixture, d_model: f64) -> Self {
        let Mixture { num_experts, d_expert, d_shared, top_k } = *mixture;
        // The dense block of the same cost is as wide as all experts of a token together.
        let width = top_k * d_expert + d_shared;
        Self {
            num_experts: num_experts + d_shared / d_expert,
            granularity: width / d_expert,
            shared_ratio: d_shared / width,
            width_granularity: 2.0 * d_model / d_expert,
        }
    }
}

/// Sizes of a mixture.
struct Mixture {
    num_experts: f64,
    d_expert: f64,
    d_shared: f64,
    top_k: f64,
}

/// The first mixture of `model`; `None` in a dense one.
fn first_mixture(model: &Value) -> Option<Mixture> {
    let blocks = model["layers"].as_array().into_iter().flatten();
    let mixture = blocks.flat_map(|layer| [&layer["ffn"]["moe"], &layer["ffn"]["soft_moe"]]);
    let (experts, router, shared) = match mixture.into_iter().find(|mixture| mixture.is_object()) {
        Some(moe) => (&moe["experts"], &moe["router"]["config"], &moe["experts"]["shared"]["d_expert"]),
        // As runs of earlier versions have it.
        None => (&model["moe"], &model["moe"]["router"], &model["moe"]["d_shared_expert"]),
    };
    Some(Mixture {
        num_experts: number(&experts["num_experts"])?,
        d_expert: number(&experts["d_expert"])?,
        d_shared: number(shared).unwrap_or(0.0),
        top_k: number(&router["top_k"])?,
    })
}

fn number(value: &Value) -> Option<f64> {
    value.as_u64().map(|number| number as f64)
}

/// Runs of one shape and length differ in their seed at most.
fn shape_of(plan: &Value, point: &Point) -> String {
    format!("{} at {} tokens", plan["model"], point.tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn granularity_is_the_width_of_the_equal_dense_block_over_an_experts() {
        let params = json!({ "embedding": 3, "head": 2, "attention": 35 });
        let counts = json!({ "active_params": 10, "total_params": 40, "params": params });
        let moe =
            json!({ "num_experts": 32, "d_expert": 64, "d_shared_expert": 128, "router": { "top_k": 6 } });
        let experts = json!({ "num_experts": 32, "d_expert": 64, "shared": { "d_expert": 128 } });
        let ffn = json!({ "moe": { "experts": experts, "router": { "config": { "top_k": 6 } } } });
        let layers = json!([{ "ffn": { "dense": {} } }, { "ffn": ffn }]);
        for model in [json!({ "d_model": 96, "moe": moe }), json!({ "d_model": 96, "layers": layers })] {
            let point = point_of(&json!({ "counts": counts, "model": model }), 1000, Some(5e4)).unwrap();
            assert_eq!((point.num_experts, point.granularity, point.tokens), (34.0, 8.0, 1000.0));
            assert_eq!((point.shared_ratio, point.width_granularity), (0.25, 3.0));
            assert!((point.training_flops - 5e4).abs() < 1e-9);
            assert_eq!((point.inner_params(), point.expansion_rate()), (35.0, 34.0 / 8.0));
        }
        let dense = point_of(&json!({ "counts": counts, "model": {} }), 1000, None).unwrap();
        assert_eq!((dense.num_experts, dense.granularity), (1.0, 1.0));
        assert!((dense.training_flops - 6e4).abs() < 1e-9, "six per active parameter and token");
    }
}
