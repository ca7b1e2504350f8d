//! Memory in words.

use switchyard_ground::units::bytes;
use switchyard_model::Recompute;

use super::Row;
use crate::memory::StepMoment;
use crate::plan::RunPlan;

impl RunPlan {
    pub(super) fn memory_rows(&self) -> Vec<Row> {
        let memory = &self.memory;
        let threads = match memory.threads {
            Some(1) => "with one thread".to_owned(),
            Some(threads) => format!("with {threads} threads"),
            None => format!("with one thread, and {} with each further one", bytes(memory.thread_bytes)),
        };
        let total = format!("about {} {threads}", bytes(memory.total_bytes()));
        let process = memory.total_bytes().saturating_sub(memory.run_bytes());
        let parts = format!(
            "{}: weights {}, gradients {}, moments {}, activations {}, temporaries {}, process {}",
            self.moment_text(),
            bytes(memory.weights_bytes),
            bytes(memory.gradients_bytes),
            bytes(memory.moments_bytes),
            bytes(memory.activations_bytes),
            bytes(memory.temporaries_bytes),
            bytes(process),
        );
        let mut rows = vec![("memory", total), ("", parts)];
        if memory.checkpoint_bytes > 0 {
            let of_checkpoint = bytes(memory.checkpoint_bytes);
            let why = "if a checkpoint is still being written at the next update";
            rows.push(("", format!("up to {of_checkpoint} more, {why}")));
        }
        let anew = match self.recompute {
            Recompute::None => return rows,
            Recompute::Ffn => "projections of feed-forward blocks are",
            Recompute::Block => "each block but for its input is",
        };
        rows.push(("", format!("{anew} computed anew in the backward pass")));
        rows
    }

    /// When most memory is alive.
    fn moment_text(&self) -> String {
        match self.memory.moment {
            StepMoment::Loss => "most at the loss".to_owned(),
            StepMoment::Attention(layer) => {
                let mixer = if self.model.is_recurrent() { "the LSTM" } else { "attention" };
                format!("most in the backward pass of {mixer} in layer {layer}")
            }
            StepMoment::FeedForward(layer) => {
                format!("most in the backward pass of the feed-forward block in layer {layer}")
            }
            StepMoment::Embedding => "most at the end of the backward pass".to_owned(),
            StepMoment::Accumulation => "most where gradients are added up".to_owned(),
            StepMoment::Update => "most at the update of the parameters".to_owned(),
        }
    }
}
