//! What a run says of itself before its first step.

use std::path::Path;

use switchyard_datasets::{Dataset, DatasetSource, passes, passes_note};
use switchyard_ground::units::bytes;
use switchyard_kernels::Products;

use crate::checkpoint::TrainingState;
use crate::config::RunConfig;
use crate::plan::RunPlan;
use crate::products::bits_differ;
use crate::run_folder::{RunFolder, RunManifest};

/// Names of files that a note lists, at most.
const MAX_LISTED: usize = 5;

/// How often the run goes over its training data.
pub(super) fn on_passes(plan: &RunPlan, dataset: &Dataset) -> String {
    let (num_steps, step_tokens) = (plan.num_steps, plan.tokens_per_step as u64);
    let train_tokens = dataset.manifest.train.num_tokens;
    let passes = passes(plan.total_tokens(), train_tokens);
    let note = passes_note(step_tokens, train_tokens).map(|note| format!("; {note}")).unwrap_or_default();
    format!("passes over the training split: {passes:.2}, by {num_steps} steps of {step_tokens} tokens{note}")
}

/// How so many ranks share the run; `None` of one alone.
pub(super) fn on_ranks(config: &RunConfig, plan: &RunPlan, num_ranks: usize) -> Option<String> {
    let group_len = config.distributed.expert_parallel;
    let experts = match group_len {
        1 => String::new(),
        all if all == num_ranks => ", with the experts of each layer spread over all".into(),
        _ => format!(", with the experts of each layer spread over {group_len} neighbours"),
    };
    (num_ranks > 1).then(|| {
        format!(
            "{num_ranks} ranks, each with {} of a step's {} micro-batches and its part of the optimizer{experts}",
            plan.micro_batches_per_step / num_ranks,
            plan.micro_batches_per_step
        )
    })
}

/// Which of several sources have no validation loss of their own; `None` if all have one.
pub(super) fn on_short_sources(plan: &RunPlan, dataset: &Dataset) -> Option<String> {
    let several = Some(&dataset.sources[..]).filter(|sources| sources.len() > 1).unwrap_or_default();
    let is_short = |source: &&DatasetSource| source.validation.len() <= plan.seq_len;
    let words = |source: &DatasetSource| format!("`{}` ({} tokens)", source.name, source.validation.len());
    let short: Vec<String> = several.iter().filter(is_short).map(words).collect();
    (!short.is_empty()).then(|| {
        format!(
            "no validation loss of its own: {}, whose validation split holds no window of {} tokens: a larger \
             `validation_fraction` of its split helps",
            short.join(", "),
            plan.seq_len + 1
        )
    })
}

/// That a run which was to be resumed begins again, and where its log is.
pub(super) fn on_restart(folder: &RunFolder, earlier_log: Option<&Path>) -> String {
    let kept =
        earlier_log.map_or_else(String::new, |log| format!("; its log so far is now `{}`", log.display()));
    format!(
        "`{}` holds no checkpoint to resume: the run begins again at step 1{kept}",
        folder.paths().root().display()
    )
}

/// That steps are done again whose checkpoint is gone; `None` if none are.
pub(super) fn on_lost_steps(manifest: &RunManifest, resumed_from: Option<&TrainingState>) -> Option<String> {
    let (done, step) = (manifest.steps_done, resumed_from?.step);
    (done > step).then(|| {
        format!(
            "`run.json` says that {done} steps were done, but the newest checkpoint is of step {step}: the run goes on from \
             there, and the rows of the steps after it are written anew"
        )
    })
}

/// That the coming steps have other bits than those so far; `None` if they have the same.
pub(super) fn on_products(then: Products, now: Products) -> Option<String> {
    let [then, now] = bits_differ(then, now)?;
    Some(format!(
        "products were computed by {then} so far and are by {now} here, which has other bits: this is not, bit for \
         bit, the run that it would have been there; a run with `train.precision.matrix_units = false` has the same \
         bits everywhere"
    ))
}

/// Why the loop stands still while a checkpoint is written; `None` if it does not, or none is written
/// on the way.
pub(super) fn on_waiting_for_checkpoints(plan: &RunPlan, goes_on: bool) -> Option<String> {
    (plan.checkpoints.every_steps.is_some() && !goes_on).then(|| {
        format!(
            "each checkpoint is waited for: there is no memory for the {} that it would be written from beside the next steps",
            bytes(plan.memory.checkpoint_bytes)
        )
    })
}

/// What an overwritten folder still holds; `None` if nothing.
pub(super) fn on_left(folder: &RunFolder) -> Option<String> {
    let names: Vec<String> = folder.left().iter().map(|path| format!("`{}`", path.display())).collect();
    let more = match names.len().saturating_sub(MAX_LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let listed = names.iter().take(MAX_LISTED).cloned().collect::<Vec<_>>().join(", ");
    (!names.is_empty()).then(|| format!("left as it is, because no run writes it: {listed}{more}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_goes_on_with_other_bits_says_so() {
        let note = |then, now| on_products(then, now);
        assert_eq!(note(Products::F32, Products::F32), None);
        assert_eq!(note(Products::RoundedF32, Products::Avx512Bf16), None, "the same bits");
        assert_eq!(note(Products::Amx, Products::Amx), None);
        let text = note(Products::Amx, Products::Avx512Bf16).unwrap();
        assert!(
            text.starts_with("products were computed by AMX so far and are by AVX512-BF16 here"),
            "{text}"
        );
    }
}
