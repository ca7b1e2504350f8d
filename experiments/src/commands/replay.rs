//! `switchyard replay`

use std::fmt::Write as _;

use serde_json::json;
use switchyard_trainer::flight::replay::{Replay, ReplayRequest, replay};
use switchyard_trainer::products::bits_differ;

use super::{parsed, print_json, print_text, with_device};
use crate::cli::ReplayArgs;
use crate::failure::Failure;
use crate::interrupt::Interruption;

pub(super) fn run(args: &ReplayArgs, interruption: &Interruption) -> Result<(), Failure> {
    let replay = replay(&ReplayRequest {
        run: args.run.clone(),
        step: args.step,
        overrides: parsed(&with_device(&args.overrides, args.device.as_deref()))?,
        show_progress: true,
        stop: interruption.watch("stopping after this step")?,
    })?;
    if args.json {
        print_json(&json!({
            "from_step": replay.from_step,
            "repeated": replay.repeated,
            "recorded": replay.recorded,
            "recorded_products": replay.products[0],
            "products": replay.products[1],
            "first_difference": replay.first_difference,
            "is_exact": replay.is_exact(),
        }))?;
    } else {
        print_text(&describe(&replay).map_err(|error| Failure::Fault(error.into()))?)?;
    }
    match (&replay.recorded, replay.first_difference) {
        (Some(_), None) => Ok(()),
        (None, _) => Err(Failure::Fault(anyhow::anyhow!(
            "the run has no record of step {} to compare with",
            args.step
        ))),
        (Some(_), Some(first)) => Err(Failure::Fault(anyhow::anyhow!(
            "step {first} is not what the run recorded: another machine, device, program or number of threads may \
             have done it; `run.json` names them"
        ))),
    }
}

fn describe(replay: &Replay) -> Result<String, std::fmt::Error> {
    let Replay { from_step, repeated, .. } = replay;
    let mut text = String::new();
    let origin = match from_step {
        0 => "the initial values".to_string(),
        step => format!("the checkpoint of step {step}"),
    };
    writeln!(text, "step {}, repeated from {origin}", repeated.step)?;
    writeln!(
        text,
        "  loss {} nats, gradient norm {}, learning rate {}",
        repeated.cross_entropy_nats, repeated.grad_norm, repeated.learning_rate
    )?;
    for layer in &repeated.layers {
        writeln!(
            text,
            "  layer {:>2}  MaxVio {:.2}  dropped {:.1}%  load {:?}",
            layer.layer,
            layer.max_violation,
            100.0 * layer.dropped_fraction,
            layer.tokens_per_expert
        )?;
    }
    let [then, now] = replay.products;
    if let Some([then, now]) = bits_differ(then, now) {
        writeln!(text, "products by {now}, but by {then} in the run: their bits differ")?;
    }
    if replay.is_exact() {
        let num_steps = repeated.step - from_step;
        writeln!(text, "equal to the recorded row bit for bit, as are all {num_steps} steps repeated")?;
    }
    Ok(text)
}
