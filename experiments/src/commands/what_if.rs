//! `switchyard whatif`

use std::fmt::Write as _;

use serde_json::json;
use switchyard_flight::whatif::WhatIf;
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
            "asked": common_setting(&answer).map(setting_json),
            "layers": answer.layers.iter().map(layer_json).collect::<Vec<_>>(),
            "refused": answer.refusals,
        }));
    }
    print_text(&describe(&answer).map_err(|error| Failure::Fault(error.into()))?)
}

/// The setting that all layers are asked about; `None` if their routers differ.
fn common_setting(answer: &RunAnswer) -> Option<&WhatIf> {
    let first = &answer.layers.first()?.setting;
    answer.layers.iter().all(|layer| layer.setting == *first).then_some(first)
}

fn setting_json(setting: &WhatIf) -> serde_json::Value {
    json!({
        "top_k": setting.top_k,
        "capacity_factor": setting.capacity_factor,
        "drop": setting.drop,
        "tokens_per_pass": setting.tokens_per_pass,
    })
}

fn layer_json(layer: &LayerAnswer) -> serde_json::Value {
    json!({
        "layer": layer.layer,
        "setting": setting_json(&layer.setting),
        "recorded": layer.recorded,
        "asked": layer.asked,
    })
}

fn describe(answer: &RunAnswer) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    let common = common_setting(answer);
    match common {
        Some(setting) => writeln!(text, "step {}: what if {}", answer.step, setting_text(setting))?,
        None => writeln!(text, "step {}: what if, layer by layer", answer.step)?,
    }
    for layer in &answer.layers {
        match common {
            Some(_) => writeln!(text, "layer {}", layer.layer)?,
            None => writeln!(text, "layer {}: {}", layer.layer, setting_text(&layer.setting))?,
        }
        writeln!(text, "  recorded  {}", outcome(&layer.recorded))?;
        writeln!(text, "  asked     {}", outcome(&layer.asked))?;
    }
    for refusal in &answer.refusals {
        writeln!(text, "not answered: {}", refusal.reason)?;
    }
    Ok(text)
}

fn setting_text(setting: &WhatIf) -> String {
    let capacity = match setting.capacity_factor {
        Some(factor) => format!("capacity factor {factor}, dropping by {}", drop_name(setting.drop)),
        None => "dropless".into(),
    };
    format!("top_k = {}, {capacity}", setting.top_k)
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
