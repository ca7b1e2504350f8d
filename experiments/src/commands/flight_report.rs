//! What the flight recorder has to say about a run: the second half of `switchyard inspect`.

use serde_json::{Value, json};
use switchyard_flight::RunStep;
use switchyard_flight::alarms::Alarm;
use switchyard_flight::columns::{ColumnsError, read_experts_between};
use switchyard_flight::diagnosis::{DiagnosisSettings, Finding, diagnose};
use switchyard_trainer::flight::{SaturationRow, read_alarms, read_saturation};
use switchyard_trainer::metrics::Record;
use switchyard_trainer::run_folder::RunPaths;

use crate::failure::Failure;

/// Steps whose expert rows are read for runaway biases: the whole of a long run would be gigabytes.
const BIAS_STEPS: u64 = 1000;

/// Findings and alarms shown to a person; JSON has them all.
const MOST_LINES: usize = 20;

pub(super) struct FlightReport {
    is_sparse: bool,
    findings: Vec<Finding>,
    pub(super) alarms: Vec<Alarm>,
    saturation: Vec<SaturationRow>,
}

impl FlightReport {
    pub(super) fn read(paths: &RunPaths, records: &[Record]) -> Result<Self, Failure> {
        let steps: Vec<RunStep> = records.iter().filter_map(Record::as_step).map(RunStep::from).collect();
        let last_step = steps.last().map_or(0, |row| row.step);
        let experts = read_experts_between(&paths.flight(), last_step.saturating_sub(BIAS_STEPS)..=last_step)
            .map_err(|error: ColumnsError| Failure::from(switchyard_trainer::TrainError::from(error)))?;
        Ok(Self {
            is_sparse: steps.iter().any(|row| !row.layers.is_empty()),
            findings: diagnose(&steps, &experts, &DiagnosisSettings::default()),
            alarms: read_alarms(paths)?,
            saturation: read_saturation(paths)?,
        })
    }

    pub(super) fn findings_json(&self) -> Value {
        let finding = |finding: &Finding| {
            json!({
                "layer": finding.layer,
                "expert": finding.expert,
                "since_step": finding.since_step,
                "last_step": finding.last_step,
                "value": finding.value,
                "message": finding.to_string(),
            })
        };
        self.findings.iter().map(finding).collect()
    }

    pub(super) fn describe(&self) -> String {
        let mut lines = Vec::new();
        if self.is_sparse {
            let findings = self.findings.iter().map(ToString::to_string).collect();
            lines.extend(section("misbehaving experts", findings));
        }
        let alarm = |alarm: &Alarm| format!("step {}: {}", alarm.step, alarm.message);
        lines.extend(section("alarms", self.alarms.iter().map(alarm).collect()));
        lines.extend(self.saturated_since());
        lines.into_iter().map(|line| line + "\n").collect()
    }

    /// From which probe on each layer's router chose nearly as the final one does.
    fn saturated_since(&self) -> Vec<String> {
        let mut layers: Vec<usize> = self.saturation.iter().map(|row| row.layer).collect();
        layers.sort_unstable();
        layers.dedup();
        let line = |layer: usize| {
            let rows: Vec<String> = self
                .saturation
                .iter()
                .filter(|row| row.layer == layer)
                .map(|row| format!("{:.0}% at {}", 100.0 * row.agreement_with_final, row.step))
                .collect();
            format!("  layer {layer:>2}  {}", shortened(&rows).join(", "))
        };
        let title = (!layers.is_empty()).then(|| "agreement with the final router, at step".to_string());
        title.into_iter().chain(layers.into_iter().map(line)).collect()
    }
}

/// At most eight of these, evenly spread, the last one included.
fn shortened(rows: &[String]) -> Vec<String> {
    let stride = rows.len().div_ceil(8).max(1);
    rows.iter().rev().step_by(stride).rev().cloned().collect()
}

fn section(title: &str, mut lines: Vec<String>) -> Vec<String> {
    if lines.is_empty() {
        return vec![format!("{title:<20} none")];
    }
    let num_more = lines.len().saturating_sub(MOST_LINES);
    lines.truncate(MOST_LINES);
    let more = (num_more > 0).then(|| format!("  and {num_more} more (--json has them all)"));
    let shown = lines.into_iter().map(|line| format!("  {line}"));
    std::iter::once(title.to_string()).chain(shown).chain(more).collect()
}
