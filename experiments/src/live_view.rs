//! A run at a glance, as lines of text: how far it is, how the loss falls, where the tokens go,
//! what went wrong.
//!
//! Pure: from rows to a frame, without escape codes.

mod blocks;
mod pace;

use std::path::Path;

use switchyard_flight::alarms::Alarm;
use switchyard_ground::units::{compact, duration};
use switchyard_trainer::metrics::{EvalRecord, LayerRecord, Record, StepRecord};
use switchyard_trainer::run_folder::RunReading;

use crate::run_series::bits_per_byte;
use blocks::{load_bars, progress_bar, sparkline};
use pace::secs_left;

/// Alarms shown, the newest.
const MOST_ALARMS: usize = 5;

/// A run as it stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LiveRun<'a> {
    pub(crate) path: &'a Path,
    pub(crate) reading: &'a RunReading,
    /// All rows, in the order of the file.
    pub(crate) records: &'a [Record],
    /// In the order in which they were raised.
    pub(crate) alarms: &'a [Alarm],
}

impl LiveRun<'_> {
    /// The run in lines of at most `width` characters, each ended.
    pub(crate) fn frame(&self, width: usize) -> String {
        let mut lines = vec![self.title(), self.progress(width)];
        lines.extend(self.newest_step().map(newest_numbers));
        lines.extend(self.losses(width));
        lines.extend(self.layers(width));
        lines.extend(self.newest_alarms());
        lines.extend(self.reading.manifest.error.iter().map(|error| format!("error       {error}")));
        // Names and messages are whatever the files say.
        let shown = |letter: char| if letter.is_control() { '\u{fffd}' } else { letter };
        let line = |line: String| line.chars().map(shown).take(width).collect::<String>() + "\n";
        lines.into_iter().map(line).collect()
    }

    fn title(&self) -> String {
        let manifest = &self.reading.manifest;
        let name = manifest.config["name"].as_str().unwrap_or("run");
        format!("{name}  {}  {}", self.reading.status(), self.path.display())
    }

    fn progress(&self, width: usize) -> String {
        let manifest = &self.reading.manifest;
        let step = self.newest_step().map_or(manifest.steps_done, |row| row.step);
        let Some(num_steps) = manifest.plan["num_steps"].as_u64() else { return format!("step {step}") };
        let steps: Vec<&StepRecord> = self.steps().collect();
        let secs = secs_left(&steps, num_steps).filter(|_| self.reading.is_at_work());
        let eta = secs.map_or_else(String::new, |secs| format!("  eta {}", duration(secs)));
        let share = step as f64 / num_steps.max(1) as f64;
        let text = format!("step {step}/{num_steps}  {:.0}%{eta}", 100.0 * share);
        let bar_width = width.saturating_sub(text.chars().count() + 4).min(40);
        format!("[{}]  {text}", progress_bar(share, bar_width))
    }

    fn losses(&self, width: usize) -> Vec<String> {
        let training: Vec<f64> = self.steps().map(|row| row.cross_entropy_nats).collect();
        let evals: Vec<&EvalRecord> = self.records.iter().filter_map(Record::as_eval).collect();
        let validation: Vec<f64> = evals.iter().map(|row| row.cross_entropy_nats).collect();
        let bits = evals.last().and_then(|row| bits_per_byte(row));
        let bits = bits.map_or_else(String::new, |bits| format!(" ({bits:.4} bits per byte)"));
        let step_of_last = evals.last().map_or(0, |row| row.step);
        let training = curve("training", &training, "", width);
        let validation = curve("validation", &validation, &format!("{bits} at step {step_of_last}"), width);
        training.into_iter().chain(validation).collect()
    }

    fn layers(&self, width: usize) -> Vec<String> {
        let layers = self.newest_step().map_or(&[][..], |row| row.layers.as_slice());
        let title = "load of each expert: half a bar is the fair share, a dot is none";
        let title = (!layers.is_empty()).then(|| title.to_string());
        title.into_iter().chain(layers.iter().map(|layer| layer_line(layer, width))).collect()
    }

    fn newest_alarms(&self) -> Vec<String> {
        let (first, newest) = self.alarms.split_at(self.alarms.len().saturating_sub(MOST_ALARMS));
        let earlier = if first.is_empty() { String::new() } else { format!(", {} earlier", first.len()) };
        let title = (!newest.is_empty()).then(|| format!("alarms      {}{earlier}", newest.len()));
        let line = |alarm: &Alarm| format!("  step {}: {}", alarm.step, alarm.message);
        title.into_iter().chain(newest.iter().rev().map(line)).collect()
    }

    fn steps(&self) -> impl DoubleEndedIterator<Item = &StepRecord> {
        self.records.iter().filter_map(Record::as_step)
    }

    fn newest_step(&self) -> Option<&StepRecord> {
        self.steps().next_back()
    }
}

fn newest_numbers(row: &StepRecord) -> String {
    let mfu = row.mfu.map_or_else(String::new, |mfu| format!("  MFU {:.0}%", 100.0 * mfu));
    format!(
        "loss        {:.4}  {} tok/s{mfu}  lr {:.1e}  gradient norm {:.2}",
        row.cross_entropy_nats,
        compact(row.tokens_per_sec),
        row.learning_rate,
        row.grad_norm
    )
}

/// A loss over the whole run as one line; none before its first value.
fn curve(name: &str, nats: &[f64], place: &str, width: usize) -> Option<String> {
    let (first, last) = (nats.first()?, nats.last()?);
    let ends = format!("{first:.4} to {last:.4}{place}");
    let room = width.saturating_sub(12 + 2 + ends.chars().count()).clamp(8, 60);
    let line = sparkline(nats, room);
    Some(format!("{name:<12}{line}  {ends}"))
}

fn layer_line(layer: &LayerRecord, width: usize) -> String {
    let numbers = format!(
        "MaxVio {:.2}  entropy {:.2}  dead {:.0}%  dropped {:.1}%",
        layer.max_violation,
        layer.gate_entropy_nats,
        100.0 * layer.dead_expert_fraction,
        100.0 * layer.dropped_fraction
    );
    let room = width.saturating_sub(12 + 2 + numbers.chars().count()).clamp(8, 64);
    format!("layer {:>3}   {}  {numbers}", layer.layer, load_bars(&layer.tokens_per_expert, room))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use switchyard_flight::alarms::AlarmKind;
    use switchyard_trainer::run_folder::{RunManifest, RunStatus};

    use super::*;
    use crate::figures::sample_rows::{eval, layer, step};

    fn reading(status: RunStatus) -> RunReading {
        let mut manifest =
            RunManifest::starting(json!({ "name": "tiny" }), json!({ "num_steps": 8 }), 0, "cpu");
        manifest.status = status;
        RunReading { manifest, was_killed: false }
    }

    fn rows() -> Vec<Record> {
        let moe = |tokens: &[u64]| vec![layer(0, tokens), layer(2, &[4, 4, 4, 4])];
        vec![
            step(1, 4.0, moe(&[4, 4, 4, 4])),
            step(2, 3.0, moe(&[8, 8, 0, 0])),
            eval(2, 3.5),
            step(3, 2.5, moe(&[4, 4, 4, 4])),
            step(4, 2.0, moe(&[8, 4, 4, 0])),
            eval(4, 2.75),
        ]
    }

    fn alarm(step: u64) -> Alarm {
        Alarm {
            kind: AlarmKind::DeadExpert,
            step,
            since_step: step,
            layer: Some(0),
            expert: Some(3),
            value: 0.0,
            threshold: 0.0,
            message: format!("expert 3 is dead, said at {step}"),
        }
    }

    fn frame(status: RunStatus, records: &[Record], alarms: &[Alarm], width: usize) -> String {
        LiveRun { path: Path::new("runs/tiny"), reading: &reading(status), records, alarms }.frame(width)
    }

    #[test]
    fn a_frame_shows_progress_losses_loads_and_alarms() {
        insta::assert_snapshot!(frame(RunStatus::Running, &rows(), &[alarm(3)], 80), @r"
        tiny  running  runs/tiny
        [====================>                   ]  step 4/8  50%  eta 2.0s
        loss        2.0000  1.02k tok/s  lr 1.0e-3  gradient norm 1.00
        training    █▄▂▁  4.0000 to 2.0000
        validation  █▁  3.5000 to 2.7500 at step 4
        load of each expert: half a bar is the fair share, a dot is none
        layer   0   █▄▄.  MaxVio 0.50  entropy 1.00  dead 0%  dropped 0.0%
        layer   2   ▄▄▄▄  MaxVio 0.50  entropy 1.00  dead 0%  dropped 0.0%
        alarms      1
          step 3: expert 3 is dead, said at 3
        ");
    }

    #[test]
    fn no_line_is_longer_than_the_terminal_and_none_has_an_escape_code() {
        let alarms: Vec<Alarm> = (1..=9).map(alarm).collect();
        for width in [1, 10, 40, 79, 200] {
            let frame = frame(RunStatus::Running, &rows(), &alarms, width);
            assert!(frame.lines().all(|line| line.chars().count() <= width), "{frame}");
            assert!(frame.ends_with('\n') && !frame.contains('\u{1b}'));
        }
    }

    #[test]
    fn what_the_files_say_brings_neither_escape_codes_nor_lines() {
        let mut reading = reading(RunStatus::Running);
        reading.manifest.config["name"] = json!("a\u{1b}]52;c;eA==\u{7}\nb");
        reading.manifest.fail("\u{9b}31m");
        let alarms = [Alarm { message: "\r\u{1b}[2J".into(), ..alarm(1) }];
        let run =
            LiveRun { path: Path::new("runs/\u{1b}c"), reading: &reading, records: &[], alarms: &alarms };
        let frame = run.frame(200);
        assert!(!frame.contains(|letter: char| letter.is_control() && letter != '\n'), "{frame:?}");
        assert_eq!(frame.lines().count(), 5, "title, progress, two of alarms, error");
    }

    #[test]
    fn a_run_that_has_just_begun_is_a_title_and_an_empty_bar() {
        let frame = frame(RunStatus::Running, &[], &[], 80);
        assert_eq!(frame.lines().count(), 2, "{frame}");
        assert!(frame.contains("step 0/8  0%\n"), "{frame}");
    }

    #[test]
    fn only_a_run_at_work_has_time_left() {
        assert!(frame(RunStatus::Running, &rows(), &[], 80).contains("eta 2.0s"));
        assert!(!frame(RunStatus::Finished, &rows(), &[], 80).contains("eta"));
    }

    #[test]
    fn a_dense_run_has_no_layers() {
        let frame = frame(RunStatus::Finished, &[step(1, 4.0, Vec::new())], &[], 80);
        assert!(!frame.contains("layer") && !frame.contains("load"), "{frame}");
    }

    #[test]
    fn the_newest_alarms_come_first_and_the_others_are_counted() {
        let alarms: Vec<Alarm> = (1..=9).map(alarm).collect();
        let frame = frame(RunStatus::Running, &rows(), &alarms, 80);
        let steps: Vec<&str> = frame.lines().filter(|line| line.starts_with("  step ")).collect();
        assert!(frame.contains("alarms      5, 4 earlier"), "{frame}");
        assert!(steps.len() == 5 && steps[0].starts_with("  step 9:"), "{steps:?}");
    }

    #[test]
    fn a_failed_run_says_why() {
        let mut reading = reading(RunStatus::Running);
        reading.manifest.fail("the disk is full");
        let run = LiveRun { path: Path::new("runs/tiny"), reading: &reading, records: &[], alarms: &[] };
        let frame = run.frame(80);
        assert!(frame.contains("failed") && frame.contains("error       the disk is full"), "{frame}");
    }
}
