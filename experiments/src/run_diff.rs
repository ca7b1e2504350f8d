//! What differs between two runs, or two configurations: what was asked for, what came out, and
//! where it ran.
//!
//! Pure: from manifests to a list of differences.

mod table;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use switchyard_trainer::run_folder::RunReading;

use crate::comparison::{DataRelation, Measured, final_bits_per_byte, is_place, why_not_comparable};
use crate::difference::{Difference, differences};

/// One of the two.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    /// As the user named it.
    pub(crate) label: String,
    /// The configuration with every default filled in.
    pub(crate) config: Value,
    /// What it resolves to.
    pub(crate) plan: Value,
    /// Content key of a run's data; absent of a configuration, and of a run that does not tell.
    pub(crate) data_key: Option<String>,
    /// What came out; none of a configuration file.
    pub(crate) outcome: Option<Outcome>,
}

/// What a run tells beside its configuration.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) reading: RunReading,
    /// Median over the steps.
    pub(crate) median_tokens_per_sec: Option<f64>,
    /// Alarms of each kind, by name.
    pub(crate) alarms: BTreeMap<String, u64>,
}

/// All differences. Null stands for what is absent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct RunDiff {
    pub(crate) a: String,
    pub(crate) b: String,
    /// Whether the data is the same, by its content.
    pub(crate) data: DataDiff,
    /// By dotted key, without where the data lies.
    pub(crate) config: Vec<Difference>,
    /// Of what the configurations resolve to, without what `config` says already.
    pub(crate) plan: Vec<Difference>,
    /// `None` unless both are runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) results: Option<Vec<Difference>>,
    /// Number of alarms of each kind; `None` unless both are runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) alarms: Option<Vec<Difference>>,
    /// Program, machine and origin; `None` unless both are runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) provenance: Option<Vec<Difference>>,
    /// Why losses of the two may not be comparable.
    pub(crate) notes: Vec<String>,
}

/// What is known of the data of both.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct DataDiff {
    pub(crate) relation: DataRelation,
    /// Content keys, as far as they are known.
    pub(crate) key_a: Option<String>,
    pub(crate) key_b: Option<String>,
    /// Where it lies, where that differs.
    pub(crate) places: Vec<Difference>,
}

impl RunDiff {
    /// What differs between `a` and `b`.
    pub(crate) fn new(a: &Side, b: &Side) -> Self {
        let all = differences(&a.config, &b.config);
        let (places, config): (Vec<_>, Vec<_>) = all.into_iter().partition(|found| is_place(&found.key));
        let plan = differences(&without_notes(&a.plan), &without_notes(&b.plan));
        let plan = plan
            .into_iter()
            .filter(|resolved| !config.iter().any(|written| written.says(resolved)))
            .collect();
        let outcomes = a.outcome.as_ref().zip(b.outcome.as_ref());
        Self {
            a: a.label.clone(),
            b: b.label.clone(),
            data: DataDiff {
                relation: DataRelation::of(&a.measured(), &b.measured()),
                key_a: a.data_key.clone(),
                key_b: b.data_key.clone(),
                places,
            },
            notes: why_not_comparable(&a.measured(), &b.measured()),
            config,
            plan,
            results: outcomes.map(|(a, b)| differences(&results(a), &results(b))),
            alarms: outcomes.map(|(a, b)| differences(&json!(a.alarms), &json!(b.alarms))),
            provenance: outcomes.map(|(a, b)| differences(&provenance(a), &provenance(b))),
        }
    }
}

impl Side {
    fn measured(&self) -> Measured<'_> {
        Measured {
            label: &self.label,
            config: &self.config,
            plan: &self.plan,
            data_key: self.data_key.as_deref(),
            has_run: self.outcome.is_some(),
        }
    }
}

/// Notes are sentences about keys, not values.
fn without_notes(plan: &Value) -> Value {
    let mut plan = plan.clone();
    if let Some(table) = plan.as_object_mut() {
        table.remove("notes");
    }
    plan
}

fn results(outcome: &Outcome) -> Value {
    let manifest = &outcome.reading.manifest;
    json!({
        "status": outcome.reading.status(),
        "error": manifest.error,
        "final_validation_cross_entropy_nats": manifest.final_validation_cross_entropy_nats,
        "final_validation_bits_per_byte": final_bits_per_byte(manifest),
        "best_validation_cross_entropy_nats": manifest.best_validation_cross_entropy_nats,
        "best_validation_step": manifest.best_validation_step,
        "steps_done": manifest.steps_done,
        "tokens_seen": manifest.tokens_seen,
        "active_flops": manifest.active_flops,
        "train_secs": manifest.train_secs,
        "flight_recorder_secs": manifest.flight_recorder_secs,
        "checkpoint_stall_secs": manifest.checkpoint_stall_secs,
        "energy_joules": manifest.energy_joules,
        "median_tokens_per_sec": outcome.median_tokens_per_sec,
    })
}

fn provenance(outcome: &Outcome) -> Value {
    let manifest = &outcome.reading.manifest;
    json!({
        "version": manifest.version,
        "commit": manifest.commit,
        "cargo_lock_sha256": manifest.cargo_lock_sha256,
        "device": manifest.device,
        "host": manifest.host,
        "matmul_peak_flops": manifest.matmul_peak_flops,
        "products": manifest.products,
        "upcycled_from": manifest.upcycled_from,
        "resumed_from_steps": manifest.resumed_from_steps,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use switchyard_trainer::run_folder::{RunManifest, RunStatus};

    use super::*;

    /// A configuration with these experts; the plan repeats their number and counts parameters.
    pub(crate) fn configuration(label: &str, num_experts: u64) -> Side {
        Side {
            label: label.into(),
            config: json!({
                "seed": 0,
                "model": { "d_model": 128, "ffn": { "moe": { "num_experts": num_experts, "capacity": null } } },
            }),
            plan: json!({
                "seed": 0,
                "model": { "moe": { "num_experts": num_experts } },
                "counts": { "total_params": 1000 * num_experts },
                "notes": [label],
            }),
            data_key: None,
            outcome: None,
        }
    }

    /// A finished run of it, with this final loss.
    pub(crate) fn run(label: &str, num_experts: u64, loss: f64) -> Side {
        let side = configuration(label, num_experts);
        let mut manifest = RunManifest::starting(side.config.clone(), side.plan.clone(), 0, "cpu");
        manifest.end(RunStatus::Finished);
        manifest.final_validation_cross_entropy_nats = Some(loss);
        (manifest.steps_done, manifest.train_secs) = (400, 60.0);
        let alarms =
            BTreeMap::from([("dead_expert".to_string(), num_experts / 8), ("loss_spike".to_string(), 1)]);
        let reading = RunReading { manifest, was_killed: false };
        let outcome = Some(Outcome { reading, median_tokens_per_sec: Some(2000.0), alarms });
        Side { data_key: Some("k".into()), outcome, ..side }
    }

    fn keys(differences: &[Difference]) -> Vec<&str> {
        differences.iter().map(|difference| difference.key.as_str()).collect()
    }

    #[test]
    fn a_run_differs_from_itself_in_nothing() {
        let diff = RunDiff::new(&run("a", 8, 2.5), &run("a", 8, 2.5));
        assert_eq!((diff.config, diff.plan), (vec![], vec![]));
        assert_eq!((diff.results, diff.alarms, diff.provenance), (Some(vec![]), Some(vec![]), Some(vec![])));
    }

    #[test]
    fn what_the_configuration_says_the_plan_does_not_repeat() {
        let diff = RunDiff::new(&run("a", 8, 2.5), &run("b", 16, 2.25));
        let num_experts = Difference { key: "model.ffn.moe.num_experts".into(), a: json!(8), b: json!(16) };
        assert_eq!(diff.config, [num_experts]);
        assert_eq!(keys(&diff.plan), ["counts.total_params"]);
        assert_eq!(keys(diff.results.as_deref().unwrap()), ["final_validation_cross_entropy_nats"]);
        assert_eq!(keys(diff.alarms.as_deref().unwrap()), ["dead_expert"], "both had one loss spike");
    }

    #[test]
    fn another_machine_and_another_program_are_named() {
        let (a, mut b) = (run("a", 8, 2.5), run("b", 8, 2.5));
        let manifest = &mut b.outcome.as_mut().unwrap().reading.manifest;
        manifest.device = "cuda".into();
        manifest.host.hostname = "another".into();
        manifest.cargo_lock_sha256 = "0".repeat(64);
        let provenance = RunDiff::new(&a, &b).provenance.unwrap();
        assert_eq!(keys(&provenance), ["cargo_lock_sha256", "device", "host.hostname"]);
    }

    #[test]
    fn a_configuration_has_no_results_to_differ_in() {
        let diff = RunDiff::new(&configuration("a.toml", 8), &run("b", 16, 2.5));
        assert_eq!(keys(&diff.config), ["model.ffn.moe.num_experts"]);
        assert_eq!((&diff.results, &diff.alarms, &diff.provenance), (&None, &None, &None));
        let json = serde_json::to_value(&diff).unwrap();
        assert!(json.get("results").is_none(), "{json}");
        assert_eq!(json["config"][0], json!({ "key": "model.ffn.moe.num_experts", "a": 8, "b": 16 }));
    }

    #[test]
    fn data_is_the_same_by_its_content_and_not_by_its_path() {
        let on = |path: &str, key: &str| {
            let mut side = run(path, 8, 2.5);
            side.config["data"] = json!({ "text": { "path": path } });
            side.data_key = Some(key.into());
            side
        };
        let moved = RunDiff::new(&on("here", "k"), &on("there", "k"));
        assert_eq!(
            (moved.data.relation, &moved.config[..], &moved.notes[..]),
            (DataRelation::Same, &[][..], &[][..])
        );
        assert_eq!(keys(&moved.data.places), ["data.text.path"]);
        let changed = RunDiff::new(&on("here", "k"), &on("here", "l"));
        assert_eq!((changed.data.relation, changed.data.places.len()), (DataRelation::Different, 0));
        assert!(changed.notes[0].contains("whose content is not the same"), "{:?}", changed.notes);
    }

    #[test]
    fn a_key_of_one_side_alone_is_a_difference_from_null() {
        let found = differences(&json!({ "a": { "x": 1 } }), &json!({ "b": [1, 2] }));
        assert_eq!(
            found,
            [
                Difference { key: "a.x".into(), a: json!(1), b: Value::Null },
                Difference { key: "b".into(), a: Value::Null, b: json!([1, 2]) },
            ]
        );
    }

    #[test]
    fn swapping_the_sides_swaps_the_values() {
        let (a, b) = (run("a", 8, 2.5), run("b", 16, 2.25));
        let swapped = |differences: Vec<Difference>| -> Vec<Difference> {
            differences.into_iter().map(|found| Difference { a: found.b, b: found.a, ..found }).collect()
        };
        let (forth, back) = (RunDiff::new(&a, &b), RunDiff::new(&b, &a));
        assert_eq!(forth.config, swapped(back.config));
        assert_eq!(forth.results, back.results.map(swapped));
    }
}
