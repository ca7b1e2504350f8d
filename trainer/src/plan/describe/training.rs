//! What a run does, in words: optimizer, schedule, evaluations, checkpoints.

use switchyard_ground::units::{grouped, plural};
use switchyard_model::hidden_matrices;

use super::Row;
use crate::plan::RunPlan;
use crate::schedule::ScheduleShape;

impl RunPlan {
    pub(super) fn run_rows(&self) -> Vec<Row> {
        let every = |steps: Option<u64>| match steps {
            Some(steps) => format!("every {} and at the end", plural(steps, "step", "steps")),
            None => "at the end".to_owned(),
        };
        let extent = match self.evaluation.max_tokens {
            Some(tokens) => {
                format!("the first {} tokens of the validation split, at the end all of it", grouped(tokens))
            }
            None => "the whole validation split".to_owned(),
        };
        let test = if self.evaluation.test_at_end { "; the test split at the end" } else { "" };
        let best = if self.checkpoints.keep_best { " and the best" } else { "" };
        let mut rows: Vec<Row> = self.optimizer_row().into_iter().collect();
        rows.extend(self.qk_clip.map(|clip| {
            let text =
                format!("heads whose largest logit of a step is above {} are made smaller", clip.max_logit);
            ("qk-clip", text)
        }));
        rows.extend([
            ("learning rate", self.schedule_text()),
            ("evaluation", format!("{}, on {extent}{test}", every(self.evaluation.every_steps))),
            (
                "checkpoints",
                format!(
                    "{}, keeping the newest {}{best}",
                    every(self.checkpoints.every_steps),
                    self.checkpoints.keep_last
                ),
            ),
        ]);
        if let Some(early_stopping) = &self.early_stopping {
            let evaluations = plural(early_stopping.patience_evals.into(), "evaluation", "evaluations");
            rows.push(("early stopping", format!("after {evaluations} without improvement")));
        }
        rows
    }

    /// Who trains what, where it is not AdamW alone with moments in f32.
    pub(super) fn optimizer_row(&self) -> Option<Row> {
        let moments = if self.optimizer.moments.is_f32() { "" } else { ", its moments in bf16" };
        let Some(muon) = &self.muon else {
            return (!moments.is_empty()).then(|| ("optimizer", format!("AdamW{moments}")));
        };
        let words: Vec<&str> = muon.roles.iter().flatten().map(|role| role.word()).collect();
        let taken = hidden_matrices(&self.model).into_iter().filter(|matrix| muon.takes(matrix.name.role));
        let params: u64 = taken.map(|matrix| matrix.value.iter().product::<usize>() as u64).sum();
        let rest = self.counts.total_params.saturating_sub(params);
        let (words, params, rest) = (words.join(", "), grouped(params), grouped(rest));
        let text = format!("Muon for {params} parameters in matrices of {words}, AdamW for {rest}{moments}");
        Some(("optimizer", text))
    }

    fn schedule_text(&self) -> String {
        let peak = self.schedule.peak_learning_rate;
        let rise = match self.schedule.warmup_steps {
            0 => format!("{peak}"),
            steps => format!("up to {peak} in {}", plural(steps, "step", "steps")),
        };
        let course = match self.schedule.shape {
            ScheduleShape::Constant => "then constant".to_owned(),
            ScheduleShape::InverseSqrt => "then falling with the root of the step".to_owned(),
            ScheduleShape::Cosine { min_learning_rate } => {
                format!("then a cosine down to {min_learning_rate}")
            }
            ScheduleShape::Linear { min_learning_rate } => format!("then a line down to {min_learning_rate}"),
            ScheduleShape::Wsd { decay_steps, min_learning_rate } => {
                let steps = plural(decay_steps, "step", "steps");
                format!("then constant, in the last {steps} a line down to {min_learning_rate}")
            }
        };
        format!("{rise}, {course}")
    }
}
