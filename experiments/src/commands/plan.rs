//! `switchyard plan`

use std::fmt::Write;

use serde::Serialize;
use switchyard_comm::Traffic;
use switchyard_ground::say;
use switchyard_ground::units::{bytes, exact, grouped};
use switchyard_trainer::available_memory::check_memory;
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::{RankForecast, RanksForecast};

use super::{load, print_json, print_text};
use crate::cli::PlanArgs;
use crate::failure::Failure;

/// The plan with one more key.
#[derive(Serialize)]
struct PlanOnRanks<'a> {
    #[serde(flatten)]
    plan: &'a RunPlan,
    ranks: &'a RanksForecast,
}

pub(super) fn run(args: &PlanArgs) -> Result<(), Failure> {
    let expert_parallel = args.expert_parallel.map(|number| format!("distributed.expert_parallel={number}"));
    let overrides: Vec<String> = args.config.overrides.iter().cloned().chain(expert_parallel).collect();
    let (loaded, plan) = load(&args.config.file, &overrides)?;
    let ranks = args.ranks.map(|number| RanksForecast::of(&loaded.config, &plan, number)).transpose()?;
    let ranks = ranks.map(|ranks| match args.link {
        Some(link) => ranks.over(link),
        None => ranks,
    });
    // Said beside the plan and not in it: the plan is the same on every machine.
    if let Err(error) = check_memory(&loaded.config, &plan) {
        say!("note: `train` would refuse this plan here: {error}");
    }
    match (&ranks, args.json) {
        (None, true) => print_json(&plan),
        (Some(ranks), true) => print_json(&PlanOnRanks { plan: &plan, ranks }),
        (None, false) => print_text(&plan.describe()),
        (Some(ranks), false) => print_text(&format!("{}\n{}", plan.describe(), ranks_section(ranks))),
    }
}

fn ranks_section(forecast: &RanksForecast) -> String {
    let RanksForecast { num_ranks, expert_parallel, ranks, tokens, communication_secs_per_step } = forecast;
    let mut text = format!("ranks: {num_ranks}, the experts of each layer over {expert_parallel}\n");
    // Neighbours are mostly alike, and a thousand lines tell nobody anything.
    let mut first = 0;
    for alike in ranks.chunk_by(|one, other| one == other) {
        let last = first + alike.len() - 1;
        let who = if first == last { format!("rank {first}") } else { format!("ranks {first}-{last}, each") };
        describe(&mut text, &who, &alike[0]);
        first = last + 1;
    }
    if let Some(tokens) = tokens {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "tokens       each rank sends {} messages, about {} of rows per step, if all experts get as many tokens",
            grouped(tokens.messages),
            bytes(tokens.bytes as u64)
        );
    }
    if let Some(secs) = communication_secs_per_step {
        let _ = writeln!(
            text,
            "time         {:.3} ms of messages per step, one after another, on the rank that takes longest",
            1e3 * secs
        );
    }
    text
}

fn describe(text: &mut String, who: &str, rank: &RankForecast) {
    let sent = |traffic: Traffic| {
        format!("{} messages, {} bytes per step", grouped(traffic.messages), grouped(traffic.bytes))
    };
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{who}\n  held       {} parameters\n  updated    {} parameters\n  optimizer  {}\n  gradients  {}\n  \
         parameters {}",
        exact(rank.parameters_held),
        exact(rank.parameters_updated),
        bytes(rank.moments_bytes),
        sent(rank.traffic.gradients),
        sent(rank.traffic.parameters)
    );
}
