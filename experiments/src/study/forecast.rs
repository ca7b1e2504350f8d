//! What a study will cost, before any of it is spent.

use std::fmt::Write;

use crate::statistics::smallest_found;
use switchyard_ground::units::{bytes, duration, grouped, scaled};

use super::arms::{Arm, held_equal_words};
use super::calibration::Calibration;
use super::execute::StudyFolder;
use super::file::StudyFile;
use super::judged::EQUAL;
use super::matrix::PlannedRun;
use super::metric::Metric;
use super::questions::Questions;
use super::result::{Axis, HeldEqual};
use super::words::axis_words;

/// The plan of a study, for a person to read.
#[derive(Debug)]
pub(crate) struct Forecast<'a> {
    /// The study.
    pub(crate) study: &'a StudyFile,
    /// Its questions, if it asks any.
    pub(crate) questions: Option<&'a Questions>,
    /// Its arms.
    pub(crate) arms: &'a [Arm],
    /// Its runs, as far as they are known: those after the pilots stand at the arms' first learning
    /// rates.
    pub(crate) runs: &'a [PlannedRun],
    /// Measured steps.
    pub(crate) calibration: &'a Calibration,
    /// Tokens of an evaluation.
    pub(crate) validation_tokens: u64,
}

impl Forecast<'_> {
    /// Predicted seconds of one run: its steps and its evaluations.
    pub(crate) fn run_secs(&self, run: &PlannedRun) -> f64 {
        let Some(measured) = self.calibration.arms.get(&self.arms[run.arm].label) else { return 0.0 };
        let evaluations =
            run.plan.num_steps / run.plan.evaluation.every_steps.unwrap_or(run.plan.num_steps).max(1);
        let forward_passes = self.validation_tokens as f64 / run.plan.tokens_per_step as f64;
        run.plan.num_steps as f64 * measured.step_secs
            + evaluations as f64 * forward_passes * measured.forward_secs
    }

    /// A word on a question that no number of seeds can decide: with one budget, on an axis on which
    /// the runs end apart.
    pub(crate) fn undecidable(&self) -> Option<String> {
        let StudyFile { held_equal, question, budget, .. } = self.study;
        let end_together = match question.axis {
            Axis::ActiveFlops => self.arms.iter().all(|arm| {
                let [mine, theirs] = [arm, &self.arms[0]].map(|arm| arm.plan.counts.training_flops_per_token);
                *held_equal == HeldEqual::ActiveFlops || (mine as f64 / theirs as f64 - 1.0).abs() <= EQUAL
            }),
            Axis::Seconds => *held_equal == HeldEqual::WallClock,
            Axis::Steps | Axis::Tokens => *held_equal != HeldEqual::WallClock,
        };
        (budget.num_steps.len() == 1 && !end_together).then(|| {
            format!(
                "there will be no verdict at equal {}: with one budget the runs end apart there. Give several budgets, hold that \
                 equal, or ask at equal {} with `question.axis`",
                axis_words(question.axis),
                axis_words(if *held_equal == HeldEqual::WallClock { Axis::Seconds } else { Axis::Tokens })
            )
        })
    }

    /// The plan as text: a line per arm, then the sums of what is missing in `folder`.
    pub(crate) fn describe(&self, folder: &StudyFolder) -> String {
        let mut text = format!(
            "study {}: {} arms, {} seeds, {} budget(s); held equal: {}\n",
            self.study.name,
            self.arms.len(),
            self.study.seeds.len(),
            self.study.budget.num_steps.len(),
            held_equal_words(self.study.held_equal)
        );
        for arm in self.arms {
            let counts = &arm.plan.counts;
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "  {:<16} equality {:.4}   {:.3e} FLOPs per token   {} of {} parameters active   memory {}   {}",
                arm.label,
                arm.equality,
                counts.training_flops_per_token as f64,
                scaled(counts.active_params as f64, ""),
                scaled(counts.total_params as f64, ""),
                bytes(arm.plan.memory.total_bytes()),
                own_change(arm, self.study),
            );
        }
        // A forecast: a run that cannot be looked at now is named when it is its turn.
        let is_missing = |run: &&PlannedRun| !folder.is_finished(run).unwrap_or(false);
        let missing: Vec<&PlannedRun> = self.runs.iter().filter(is_missing).collect();
        // The sum of nothing is -0.
        let secs = 0.0 + missing.iter().map(|run| self.run_secs(run)).sum::<f64>();
        let flops = 0.0
            + missing
                .iter()
                .map(|run| run.plan.training_flops_per_step() * run.plan.num_steps as f64)
                .sum::<f64>();
        let _ = writeln!(
            text,
            "  runs: {} in all, {} to do: {:.2e} FLOPs, about {} (measured on {})",
            self.runs.len(),
            missing.len(),
            flops,
            duration(secs),
            self.calibration.hostname
        );
        let _ = writeln!(text, "  {}", power_words(self.study));
        if let Some(questions) = self.questions {
            let _ = writeln!(
                text,
                "  each run is asked {} question(s) at its end, which is in no time or cost above",
                grouped(questions.identity().num_questions as u64)
            );
        }
        if let Some(price) = self.study.price_per_device_hour {
            let _ = writeln!(text, "  cost: about {:.2} at {price} per hour", secs / 3600.0 * price);
        }
        text
    }
}

/// The last change that is the arm's own: the solved width, if there is one.
fn own_change<'a>(arm: &'a Arm, study: &StudyFile) -> &'a str {
    arm.overrides[study.set.len()..].last().map_or("", String::as_str)
}

/// The smallest difference that so many seeds find, in words.
fn power_words(study: &StudyFile) -> String {
    const POWER: f64 = 0.8;
    let (num_seeds, num_arms) = (study.seeds.len(), study.arms.len() - 1);
    // The level of Holm's first step: the arm that is furthest ahead is judged by it.
    let confidence = 1.0 - (1.0 - study.question.confidence) / num_arms as f64;
    let Some(smallest) = smallest_found(num_seeds, confidence, POWER) else {
        return "power: one seed decides nothing".into();
    };
    let among = if num_arms > 1 { format!(" of one among {num_arms} arms") } else { String::new() };
    format!(
        "power: {num_seeds} seeds find a difference{among} of {smallest:.2} standard deviations (of the difference between two \
         runs of a seed) beyond the margin in {:.0} % of studies{}",
        100.0 * POWER,
        match study.question.metric {
            Metric::Nats => format!(
                "; with a deviation of 0.02 nats, which small models have, {:.3} nats",
                0.02 * smallest
            ),
            Metric::BitsPerByte | Metric::Acc | Metric::AccNorm => String::new(),
        }
    )
}
