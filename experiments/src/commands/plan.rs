//! `switchyard plan`

use serde::Serialize;
use switchyard_comm::Traffic;
use switchyard_ground::say;
use switchyard_ground::units::{bytes, exact, grouped};
use switchyard_trainer::available_memory::check_memory;
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::{RankForecast, RanksForecast, TokenForecast};

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
        Some(link) => ranks.over(link, args.step_secs),
        None => ranks,
    });
    // Said beside the plan and not in it: the plan is the same on every machine.
    let first = ranks.as_ref().and_then(|forecast| forecast.ranks.first());
    let memory = first.map_or(&plan.memory, |rank| &rank.memory);
    if let Err(error) = check_memory(&loaded.config, &plan, memory) {
        say!("note: `train` would refuse this plan here: {error}");
    }
    match (&ranks, args.json) {
        (None, true) => print_json(&plan),
        (Some(ranks), true) => print_json(&PlanOnRanks { plan: &plan, ranks }),
        (None, false) => print_text(&plan.describe()),
        (Some(ranks), false) => print_text(&format!("{}\n{}", plan.describe(), ranks_section(ranks))),
    }
}

/// A line for all ranks, which differ by a block of elements: a thousand lines tell nobody anything.
fn ranks_section(forecast: &RanksForecast) -> String {
    let RanksForecast { num_ranks, expert_parallel, ranks, tokens, communication_secs_per_step, step_secs } =
        forecast;
    let range = |of: &dyn Fn(&RankForecast) -> u64, written: &dyn Fn(u64) -> String| {
        let numbers = || ranks.iter().map(of);
        let [least, most] = [numbers().min(), numbers().max()].map(|number| written(number.unwrap_or(0)));
        if least == most { least } else { format!("{least} to {most}") }
    };
    let sent = |of: &dyn Fn(&RankForecast) -> Traffic| {
        let messages = range(&|rank| of(rank).messages, &grouped);
        let bytes = range(&|rank| of(rank).bytes, &grouped);
        format!("{messages} message{}, {bytes} bytes in all", if messages == "1" { "" } else { "s" })
    };
    let over = match expert_parallel {
        1 => "each with all experts".to_string(),
        number => format!("the experts of each layer over {number}"),
    };
    let total = |rank: &RankForecast| rank.memory.total_bytes();
    let threads = match ranks.first().and_then(|rank| rank.memory.threads).unwrap_or(1) {
        1 => "one thread".to_string(),
        number => format!("{number} threads"),
    };
    let mut lines = vec![
        ("ranks", format!("{num_ranks}, {over}")),
        ("each holds", format!("{} parameters", range(&|rank| rank.parameters_held, &exact))),
        ("and updates", format!("{} parameters", range(&|rank| rank.parameters_updated, &exact))),
        (
            "memory",
            format!("about {} each, MPI and {threads} in it, moments {}", range(&total, &bytes), {
                range(&|rank| rank.memory.moments_bytes, &bytes)
            }),
        ),
        ("gradients", format!("each sends {} per step", sent(&|rank| rank.traffic.gradients))),
        ("parameters", format!("each sends {} per step", sent(&|rank| rank.traffic.parameters))),
    ];
    if let Some(first) = ranks.first().filter(|rank| rank.memory.checkpoint_bytes > 0) {
        let more = bytes(first.memory.checkpoint_bytes);
        lines.insert(4, ("", format!("up to {more} more on rank 0 for a checkpoint")));
    }
    if let Some(TokenForecast { messages, bytes: of_rows }) = tokens {
        let (messages, of_rows) = (grouped(*messages), bytes(*of_rows));
        let text =
            format!("each sends {messages} messages, about {of_rows} in all, with experts in even use");
        lines.push(("tokens", text));
    }
    if let Some(secs) = communication_secs_per_step {
        lines.push(("messages", format!("{} per step, one after another", seconds(*secs))));
    }
    if let Some(secs) = step_secs {
        lines.push(("step", format!("{}, if no rank waits for another", seconds(*secs))));
    }
    lines.iter().fold(String::new(), |text, (label, line)| text + &format!("{label:<15}{line}\n"))
}

fn seconds(secs: f64) -> String {
    if secs < 1.0 { format!("{:.3} ms", 1e3 * secs) } else { format!("{secs:.3} s") }
}
