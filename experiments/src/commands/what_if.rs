//! `switchyard whatif`

use std::fmt::Write as _;

use serde_json::json;
use switchyard_trainer::flight::question::{
    AskedCapacity, DropPolicy, LayerAnswer, LayerOutcome, RunAnswer, RunQuestion, ask,
};

use super::{print_json, print_text};
use crate::cli::{AskedDrop, WhatIfArgs};
use crate::failure::Failure;

pub(super) fn run(args: &WhatIfArgs) -> Result<(), Failure> {
    let capacity = match args.dropless {
        true => Some(AskedCapacity::Dropless),
        false => args.capacity_factor.map(AskedCapacity::Factor),
    };
    let drop = args.drop.map(|drop| match drop {
        AskedDrop::Position => DropPolicy::Position,
        AskedDrop::Probability => DropPolicy::Probability,
    });
    let answer = ask(&args.run, &RunQuestion { step: args.step, top_k: args.top_k, capacity, drop })?;
    if args.json {
        return print_json(&json!({
            "step": answer.step,
            "asked": {
                "top_k": answer.asked.top_k,
                "capacity_factor": answer.asked.capacity_factor,
                "drop": answer.asked.drop,
                "tokens_per_pass": answer.asked.tokens_per_pass,
            },
            "layers": answer.layers.iter().map(layer_json).collect::<Vec<_>>(),
        }));
    }
    print_text(&describe(&answer).map_err(|error| Failure::Fault(error.into()))?)
}

fn layer_json(layer: &LayerAnswer) -> serde_json::Value {
    json!({ "layer": layer.layer, "recorded": layer.recorded, "asked": layer.asked })
}

fn describe(answer: &RunAnswer) -> Result<String, std::fmt::Error> {
    let asked = &answer.asked;
    let capacity = match asked.capacity_factor {
        Some(factor) => format!("capacity factor {factor}, dropping by {}", drop_name(asked.drop)),
        None => "dropless".into(),
    };
    let mut text = String::new();
    writeln!(text, "step {}: what if top_k = {}, {capacity}", answer.step, asked.top_k)?;
    for layer in &answer.layers {
        writeln!(text, "layer {}", layer.layer)?;
        writeln!(text, "  recorded  {}", outcome(&layer.recorded))?;
        writeln!(text, "  asked     {}", outcome(&layer.asked))?;
    }
    Ok(text)
}

fn drop_name(drop: DropPolicy) -> &'static str {
    match drop {
        DropPolicy::Position => "position",
        DropPolicy::Probability => "probability",
        DropPolicy::Random => "chance",
    }
}

fn outcome(outcome: &LayerOutcome) -> String {
    let dead = match outcome.dead_experts.as_slice() {
        [] => "none".to_string(),
        dead => format!("{dead:?}"),
    };
    format!(
        "dropped {:>5.1}%  MaxVio {:.2}  dead {dead}  load {:?}  taken {:?}",
        100.0 * outcome.dropped_fraction,
        outcome.max_violation,
        outcome.tokens_per_expert,
        outcome.kept_per_expert
    )
}
