//! `switchyard parity`

use switchyard_hub::published_folder;
use switchyard_trainer::TrainError;
use switchyard_trainer::device;
use switchyard_trainer::parity::{Parity, parity};

use super::{print_json, print_text};
use crate::cli::ParityArgs;
use crate::failure::Failure;

pub(super) fn run(args: &ParityArgs) -> Result<(), Failure> {
    let device = device::select("cpu").map_err(TrainError::from)?;
    let dir = published_folder(&args.dir)?.unwrap_or_else(|| args.dir.clone());
    let parity = parity(&dir, &device)?;
    if args.json {
        print_json(&parity)?
    } else {
        print_text(&describe(&parity))?
    }
    match parity.beyond_limits() {
        faults if faults.is_empty() => Ok(()),
        faults => Err(Failure::Mistake(format!("{}: {}", args.dir.display(), faults.join("; ")))),
    }
}

fn describe(parity: &Parity) -> String {
    let share = parity.logits_max_abs_diff.zip(parity.logits_max_abs).map(|(diff, max)| diff / max);
    let routing = parity.routing_mismatches.zip(parity.routed_tokens);
    let lines = [
        share.map(|share| format!("logits      {share:.1e} of the largest")),
        parity.hidden_max_abs_diff.map(|diff| format!("hidden      {diff:.1e}")),
        routing.map(|(bad, all)| format!("routing     {bad} of {all} tokens to other experts")),
        parity.gates_max_abs_diff.map(|diff| format!("gates       {diff:.1e}")),
        parity.loss_abs_diff.map(|diff| format!("loss        {diff:.1e}")),
        parity.gradient_max_rel_diff.map(|diff| {
            let worst = parity.gradient_worst.as_deref().unwrap_or_default();
            format!("gradients   {diff:.1e} of the largest of its tensor, at `{worst}`")
        }),
        parity.loss_after_step_abs_diff.map(|diff| format!("after step  {diff:.1e}")),
    ];
    let lines: Vec<String> = lines.into_iter().flatten().collect();
    format!("{}, {} parameters\n{}\n", parity.family, parity.num_params, lines.join("\n"))
}
