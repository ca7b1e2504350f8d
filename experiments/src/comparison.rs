//! Runs side by side: what each reached, with how many parameters, operations and seconds.
//!
//! From manifests and rows to a table. The first arm is the baseline that the others are timed
//! against.

mod data_key;
mod measured;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use switchyard_ground::printable::excerpt;
use switchyard_ground::units::compact;
use switchyard_trainer::metrics::Record;
use switchyard_trainer::products::bits_differ;
use switchyard_trainer::run_folder::{RunManifest, RunStatus};

pub(crate) use data_key::data_key;
pub(crate) use measured::{DataRelation, Measured, is_place, why_not_comparable};

/// Characters of a label or of an error message in the table and its notes.
const MOST_CHARS: usize = 400;

/// A run to compare.
#[derive(Debug, Clone)]
pub(crate) struct Arm {
    /// Name in the table, which no other arm has.
    pub(crate) label: String,
    /// Its folder, without links in its name.
    pub(crate) folder: PathBuf,
    /// Content key of its data; `None` if nothing tells.
    pub(crate) data_key: Option<String>,
    /// Its `run.json`.
    pub(crate) manifest: RunManifest,
    /// Its `metrics.jsonl`.
    pub(crate) records: Vec<Record>,
}

/// The comparison of several runs; its JSON form is `comparison.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Comparison {
    /// The first arm's final validation loss; `None` if it has none.
    pub(crate) target_cross_entropy_nats: Option<f64>,
    /// The arms, in the order given.
    pub(crate) arms: Vec<ArmResult>,
    /// What a reader must know before believing the table.
    pub(crate) notes: Vec<String>,
}

/// What one run reached.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ArmResult {
    pub(crate) label: String,
    /// The run's folder.
    pub(crate) run: String,
    /// Content key of its data: losses of runs with different keys are losses on different tokens.
    pub(crate) data_key: Option<String>,
    pub(crate) status: RunStatus,
    pub(crate) final_validation_cross_entropy_nats: Option<f64>,
    /// `None` where the bytes of the text are not known.
    pub(crate) final_validation_bits_per_byte: Option<f64>,
    pub(crate) best_validation_cross_entropy_nats: Option<f64>,
    pub(crate) best_validation_step: Option<u64>,
    pub(crate) total_params: Option<u64>,
    pub(crate) active_params: Option<u64>,
    pub(crate) active_flops: f64,
    pub(crate) train_secs: f64,
    /// Median over the steps: neither evaluations nor a slow first step move it.
    pub(crate) median_tokens_per_sec: Option<f64>,
    pub(crate) steps_done: u64,
    pub(crate) tokens_seen: u64,
    /// The first evaluation at or below the target; `None` if there is none.
    pub(crate) reached_target: Option<ReachedTarget>,
}

/// When a run reached the target.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct ReachedTarget {
    pub(crate) step: u64,
    pub(crate) elapsed_secs: f64,
}

impl Comparison {
    /// The comparison of `arms`, the baseline first.
    pub(crate) fn new(arms: &[Arm]) -> Self {
        let target = arms.first().and_then(|arm| arm.manifest.final_validation_cross_entropy_nats);
        Self {
            target_cross_entropy_nats: target,
            arms: arms.iter().map(|arm| ArmResult::new(arm, target)).collect(),
            notes: notes(arms, target),
        }
    }

    /// The table with aligned columns, for a terminal.
    pub(crate) fn to_text(&self) -> String {
        let rows = self.rows();
        let widths: Vec<usize> = (0..=self.arms.len())
            .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        let line = |row: &Vec<String>| {
            let first = format!("{:<width$}", row[0], width = widths[0]);
            let cells = row.iter().zip(&widths).skip(1);
            cells.fold(first, |line, (cell, &width)| line + &format!("  {cell:>width$}")) + "\n"
        };
        let rule = "-".repeat(widths.iter().sum::<usize>() + 2 * self.arms.len()) + "\n";
        let body: String = rows[1..].iter().map(line).collect();
        let notes: String = self.notes.iter().map(|note| format!("- {note}\n")).collect();
        format!("{}{rule}{body}\n{notes}", line(&rows[0]))
    }

    /// The table and its notes in Markdown.
    pub(crate) fn to_markdown(&self) -> String {
        let rows = self.rows();
        let line = |row: &Vec<String>| {
            let cells: String = row.iter().map(|cell| format!(" {} |", cell.replace('|', "\\|"))).collect();
            format!("|{cells}\n")
        };
        let rule = format!("|---|{}\n", "---:|".repeat(self.arms.len()));
        let body: String = rows[1..].iter().map(line).collect();
        let notes: String = self.notes.iter().map(|note| format!("- {note}\n")).collect();
        format!("{}{rule}{body}\n{notes}", line(&rows[0]))
    }

    /// The comparison for machines, numbers unrounded.
    ///
    /// # Errors
    /// Those of the serializer.
    pub(crate) fn to_json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Heading and body of the table: one measure per row, one arm per column.
    fn rows(&self) -> Vec<Vec<String>> {
        let target = self.target_cross_entropy_nats;
        let goal = target.map_or_else(|| "the first arm's final loss".into(), |nats| format!("{nats:.4}"));
        let row = |name: &str, cell: &dyn Fn(&ArmResult) -> String| {
            std::iter::once(name.to_string()).chain(self.arms.iter().map(cell)).collect::<Vec<_>>()
        };
        let reached = |arm: &ArmResult, cell: fn(ReachedTarget) -> String| match (target, arm.reached_target)
        {
            (None, _) => "-".into(),
            (Some(_), None) => "not reached".into(),
            (Some(_), Some(reached)) => cell(reached),
        };
        let mut rows = vec![
            row("", &|arm| arm.label.clone()),
            row("status", &|arm| format!("{:?}", arm.status).to_lowercase()),
            row("final validation loss (nats/token)", &|arm| nats(arm.final_validation_cross_entropy_nats)),
            row("final validation loss (bits/byte)", &|arm| nats(arm.final_validation_bits_per_byte)),
            row("best validation loss (nats/token)", &|arm| nats(arm.best_validation_cross_entropy_nats)),
            row("step of the best", &|arm| or_dash(arm.best_validation_step, |step| step.to_string())),
            row("total parameters", &|arm| or_dash(arm.total_params, |count| compact(count as f64))),
            row("active parameters", &|arm| or_dash(arm.active_params, |count| compact(count as f64))),
            row("active training FLOPs", &|arm| format!("{:.3e}", arm.active_flops)),
            row("wall-clock (s)", &|arm| format!("{:.1}", arm.train_secs)),
            row("tokens/s (median step)", &|arm| or_dash(arm.median_tokens_per_sec, compact)),
            row("training tokens", &|arm| compact(arm.tokens_seen as f64)),
            row("steps", &|arm| arm.steps_done.to_string()),
            row(&format!("steps to {goal}"), &|arm| reached(arm, |reached| reached.step.to_string())),
            row(&format!("seconds to {goal}"), &|arm| {
                reached(arm, |reached| format!("{:.1}", reached.elapsed_secs))
            }),
        ];
        if self.arms.iter().all(|arm| arm.final_validation_bits_per_byte.is_none()) {
            rows.remove(3);
        }
        rows
    }
}

impl ArmResult {
    fn new(arm: &Arm, target: Option<f64>) -> Self {
        let manifest = &arm.manifest;
        let count = |key: &str| manifest.plan.get("counts")?.get(key)?.as_u64();
        let at_or_below = |target: f64| {
            // The target is a loss on the whole split; one on a part of it can be lower by luck.
            let mut evals = arm.records.iter().filter_map(Record::as_eval).filter(|row| row.whole_split);
            evals.find(|row| row.cross_entropy_nats <= target)
        };
        Self {
            label: arm.label.clone(),
            run: arm.folder.display().to_string(),
            data_key: arm.data_key.clone(),
            status: manifest.status,
            final_validation_cross_entropy_nats: manifest.final_validation_cross_entropy_nats,
            final_validation_bits_per_byte: final_bits_per_byte(manifest),
            best_validation_cross_entropy_nats: manifest.best_validation_cross_entropy_nats,
            best_validation_step: manifest.best_validation_step,
            total_params: count("total_params"),
            active_params: count("active_params"),
            active_flops: manifest.active_flops,
            train_secs: manifest.train_secs,
            median_tokens_per_sec: median(
                arm.records.iter().filter_map(Record::as_step).map(|row| row.tokens_per_sec),
            ),
            steps_done: manifest.steps_done,
            tokens_seen: manifest.tokens_seen,
            reached_target: target
                .and_then(at_or_below)
                .map(|row| ReachedTarget { step: row.step, elapsed_secs: row.elapsed_secs }),
        }
    }
}

/// What limits the comparison, in the order in which it matters.
fn notes(arms: &[Arm], target: Option<f64>) -> Vec<String> {
    let Some((baseline, others)) = arms.split_first() else { return Vec::new() };
    let mut notes = Vec::new();
    if target.is_some() {
        notes.push(format!(
            "Steps and seconds to a loss are those of the first evaluation at or below it, without interpolation; \
             the loss is the final one of `{}`.",
            baseline.label
        ));
    } else {
        notes.push(format!(
            "`{}` has no final validation loss, so nothing was timed against it.",
            baseline.label
        ));
    }
    for arm in arms {
        if let Some(error) = &arm.manifest.error {
            notes.push(format!("`{}` failed: {}", arm.label, excerpt(error, MOST_CHARS)));
        }
        if arm.records.iter().filter_map(Record::as_eval).any(|row| !row.whole_split) {
            notes.push(format!(
                "Evaluations of `{}` during training cover part of the validation split (`train.eval.max_tokens`), so they do \
                 not count towards the time to a loss.",
                arm.label
            ));
        }
    }
    for arm in others {
        notes.extend(why_not_comparable(&measured(baseline), &measured(arm)));
        if let Some([a, b]) = bits_differ(baseline.manifest.products(), arm.manifest.products()) {
            notes.push(format!(
                "Products of `{}` were computed by {a}, those of `{}` by {b}: their bits differ.",
                baseline.label, arm.label
            ));
        }
        if machine(arm) != machine(baseline) {
            notes.push(format!(
                "`{}` and `{}` ran on different machines, devices or numbers of threads: seconds cannot be compared.",
                baseline.label, arm.label
            ));
        }
    }
    notes
}

fn measured(arm: &Arm) -> Measured<'_> {
    Measured {
        label: &arm.label,
        config: &arm.manifest.config,
        plan: &arm.manifest.plan,
        data_key: arm.data_key.as_deref(),
        has_run: true,
    }
}

/// Labels by which no two of these runs (name, folder) are taken for each other: their names, and
/// where several have one name, the folder too.
pub(crate) fn distinct_labels(runs: &[(String, &Path)]) -> Vec<String> {
    let last_part = |folder: &Path| folder.file_name().map(|name| name.to_string_lossy().into_owned());
    let label = |(name, folder): &(String, &Path)| {
        let namesakes = || runs.iter().filter(|(other, _)| other == name);
        if namesakes().count() == 1 {
            return excerpt(name, MOST_CHARS);
        }
        let same_end = namesakes().filter(|(_, other)| last_part(other) == last_part(folder)).count();
        let place = last_part(folder).filter(|_| same_end == 1);
        excerpt(&format!("{name} ({})", place.unwrap_or_else(|| folder.display().to_string())), MOST_CHARS)
    };
    runs.iter().map(label).collect()
}

/// The final validation loss in bits per byte of text; `None` where the run does not tell.
pub(crate) fn final_bits_per_byte(manifest: &RunManifest) -> Option<f64> {
    let manifest = serde_json::to_value(manifest).ok()?;
    manifest.get("final_validation_bits_per_byte")?.as_f64()
}

/// What decides how many seconds a run takes.
fn machine(arm: &Arm) -> (&str, &str, Option<&Value>) {
    let RunManifest { host, device, config, .. } = &arm.manifest;
    (&host.hostname, device, config.get("threads"))
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

fn nats(value: Option<f64>) -> String {
    or_dash(value, |nats| format!("{nats:.4}"))
}

fn or_dash<T>(value: Option<T>, text: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "-".into(), text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::sample_rows::{eval, step_at_rate};
    use serde_json::json;

    /// An arm with an evaluation every 10 steps; the last is the final one.
    fn arm(label: &str, total_params: u64, losses: &[f64]) -> Arm {
        let plan = json!({ "counts": { "total_params": total_params, "active_params": 1_310_000 } });
        let config = json!({ "data": { "crates": {}, "cache_dir": label } });
        let mut manifest = RunManifest::starting(config, plan, 0, "cpu");
        let mut records = vec![step_at_rate(1, 100.0), step_at_rate(2, 1000.0), step_at_rate(3, 1200.0)];
        for (index, &loss) in losses.iter().enumerate() {
            let at = 10 * (index as u64 + 1);
            manifest.record_validation(at, loss);
            records.push(eval(at, loss));
            manifest.steps_done = at;
        }
        manifest.end(RunStatus::Finished);
        manifest.final_validation_cross_entropy_nats = losses.last().copied();
        manifest.tokens_seen = manifest.steps_done * 512;
        manifest.active_flops = 1.5e12;
        manifest.train_secs = 173.21;
        Arm { label: label.into(), folder: label.into(), data_key: Some("k".into()), manifest, records }
    }

    fn dense_and_sparse() -> Vec<Arm> {
        vec![arm("dense", 1_310_000, &[4.0, 3.0, 2.5, 2.6]), arm("moe", 4_700_000, &[3.5, 2.6, 2.4, 2.3])]
    }

    #[test]
    fn the_time_to_the_target_is_that_of_the_first_evaluation_at_or_below_it() {
        let comparison = Comparison::new(&dense_and_sparse());
        assert_eq!(comparison.target_cross_entropy_nats, Some(2.6));
        // The dense arm got below its own final loss earlier; the sparse one meets it exactly.
        let reached: Vec<_> = comparison.arms.iter().map(|arm| arm.reached_target).collect();
        assert_eq!(reached[0], Some(ReachedTarget { step: 30, elapsed_secs: 15.0 }));
        assert_eq!(reached[1], Some(ReachedTarget { step: 20, elapsed_secs: 10.0 }));
    }

    #[test]
    fn an_arm_that_never_gets_there_is_said_not_to() {
        let arms = [arm("dense", 1, &[4.0, 2.5]), arm("moe", 1, &[4.0, 2.51])];
        let comparison = Comparison::new(&arms);
        assert_eq!(comparison.arms[1].reached_target, None);
        assert!(comparison.to_text().contains("not reached"));
        assert!(comparison.to_json().unwrap().contains("\"reached_target\": null"));
    }

    #[test]
    fn a_baseline_without_a_final_loss_times_nobody_and_says_so() {
        let mut arms = dense_and_sparse();
        arms[0].manifest.final_validation_cross_entropy_nats = None;
        arms[0].manifest.fail("the disk is full");
        let comparison = Comparison::new(&arms);
        assert_eq!(comparison.target_cross_entropy_nats, None);
        assert!(comparison.arms.iter().all(|arm| arm.reached_target.is_none()));
        assert!(!comparison.to_text().contains("not reached"));
        assert!(
            comparison.notes[0].contains("`dense` has no final validation loss"),
            "{:?}",
            comparison.notes
        );
        assert_eq!(comparison.notes[1], "`dense` failed: the disk is full");
    }

    #[test]
    fn text_is_aligned_and_markdown_is_a_table() {
        let comparison = Comparison::new(&dense_and_sparse());
        insta::assert_snapshot!(comparison.to_text(), @r"
                                               dense       moe
        ------------------------------------------------------
        status                              finished  finished
        final validation loss (nats/token)    2.6000    2.3000
        best validation loss (nats/token)     2.5000    2.3000
        step of the best                          30        40
        total parameters                       1.31M     4.70M
        active parameters                      1.31M     1.31M
        active training FLOPs               1.500e12  1.500e12
        wall-clock (s)                         173.2     173.2
        tokens/s (median step)                 1.00k     1.00k
        training tokens                        20.5k     20.5k
        steps                                     40        40
        steps to 2.6000                           30        20
        seconds to 2.6000                       15.0      10.0

        - Steps and seconds to a loss are those of the first evaluation at or below it, without interpolation; the loss is the final one of `dense`.
        ");
        insta::assert_snapshot!(comparison.to_markdown(), @r"
        |  | dense | moe |
        |---|---:|---:|
        | status | finished | finished |
        | final validation loss (nats/token) | 2.6000 | 2.3000 |
        | best validation loss (nats/token) | 2.5000 | 2.3000 |
        | step of the best | 30 | 40 |
        | total parameters | 1.31M | 4.70M |
        | active parameters | 1.31M | 1.31M |
        | active training FLOPs | 1.500e12 | 1.500e12 |
        | wall-clock (s) | 173.2 | 173.2 |
        | tokens/s (median step) | 1.00k | 1.00k |
        | training tokens | 20.5k | 20.5k |
        | steps | 40 | 40 |
        | steps to 2.6000 | 30 | 20 |
        | seconds to 2.6000 | 15.0 | 10.0 |

        - Steps and seconds to a loss are those of the first evaluation at or below it, without interpolation; the loss is the final one of `dense`.
        ");
    }

    #[test]
    fn json_keeps_every_digit() {
        let mut arms = dense_and_sparse();
        arms[1].manifest.final_validation_cross_entropy_nats = Some(0.1 + 0.2);
        let value: Value = serde_json::from_str(&Comparison::new(&arms).to_json().unwrap()).unwrap();
        assert_eq!(value["arms"][1]["final_validation_cross_entropy_nats"], json!(0.1 + 0.2));
        assert_eq!(value["arms"][1]["total_params"], json!(4_700_000));
        assert_eq!(value["arms"][0]["median_tokens_per_sec"], json!(1000.0));
        assert_eq!(value["arms"][0]["status"], "finished");
    }

    #[test]
    fn numbers_that_cannot_be_compared_are_flagged() {
        let mut arms = dense_and_sparse();
        assert_eq!(Comparison::new(&arms).notes.len(), 1, "only the cache folder differs");
        arms[1].manifest.config = json!({ "data": { "text": {} }, "threads": 1 });
        arms[1].data_key = Some("l".into());
        let Record::Eval(row) = &mut arms[1].records[3] else {
            panic!("the first evaluation is the fourth row")
        };
        row.whole_split = false;
        let notes = Comparison::new(&arms).notes;
        assert!(notes[1].contains("`moe` during training cover part of the validation split"), "{notes:?}");
        assert!(notes[2].contains("differ in the content of `data` (keys k and l)"), "{notes:?}");
        assert!(notes[3].contains("different machines, devices or numbers of threads"), "{notes:?}");
    }

    #[test]
    fn two_runs_of_one_name_are_told_apart_by_their_folders() {
        let labels = |runs: &[(&str, &str)]| {
            let runs: Vec<_> = runs.iter().map(|(name, path)| (name.to_string(), Path::new(*path))).collect();
            distinct_labels(&runs)
        };
        assert_eq!(labels(&[("dense", "runs/a"), ("moe", "runs/b")]), ["dense", "moe"]);
        assert_eq!(labels(&[("t", "runs/a"), ("t", "runs/b"), ("u", "c")]), ["t (a)", "t (b)", "u"]);
        assert_eq!(labels(&[("t", "x/run"), ("t", "y/run")]), ["t (x/run)", "t (y/run)"]);
        assert_eq!(labels(&[("a\u{1b}[1m", "x")]), ["a\u{fffd}[1m"]);
    }

    #[test]
    fn bits_per_byte_have_a_row_where_a_run_knows_them() {
        let mut comparison = Comparison::new(&dense_and_sparse());
        assert!(!comparison.to_text().contains("bits/byte"));
        comparison.arms[1].final_validation_bits_per_byte = Some(1.25);
        assert!(comparison.to_text().contains("final validation loss (bits/byte)"));
        assert!(comparison.to_markdown().contains("| final validation loss (bits/byte) | - | 1.2500 |"));
    }

    #[test]
    fn a_label_cannot_break_the_markdown_table() {
        let arms = [arm("a|b", 1, &[1.0])];
        assert!(Comparison::new(&arms).to_markdown().starts_with("|  | a\\|b |\n|---|---:|\n"));
    }

    #[test]
    fn the_median_of_two_is_their_middle() {
        assert_eq!(median([3.0, 1.0].into_iter()), Some(2.0));
        assert_eq!(median(std::iter::empty()), None);
    }
}
