//! The middle of the page: losses, parameters and routing, mostly figures.

use maud::{Markup, html};

use switchyard_ground::units::{bytes, scaled};

use super::{Section, figure, table_or};
use crate::report::axes;
use crate::report::content::Content;
use crate::report::figures::{Figures, LossFigure};
use crate::report::numbers::{nats, or_absent};
use crate::report::table::Table;
use crate::study::result::ArmResult;

/// Loss against the axis that the reader chooses.
pub(super) fn losses(figures: &Figures) -> Section {
    let body = match &figures.loss[..] {
        [] => html! { p { "No run has an evaluation yet." } },
        losses => chooser(losses),
    };
    Section { id: "losses", heading: "Loss", body }
}

/// One figure at a time, without a script: each radio button stands before the figures, and its
/// being checked shows the one that has its place. A browser without styles shows all.
fn chooser(losses: &[LossFigure]) -> Markup {
    html! {
        div class="chooser" role="group" aria-label="Loss against" {
            span class="against" aria-hidden="true" { "Loss against" }
            @for (index, loss) in losses.iter().enumerate() {
                @let id = format!("{}-choice", loss.figure.name);
                input type="radio" name="loss-axis" id=(id) checked[index == 0];
                label for=(id) { (axes::name(loss.axis)) }
            }
            div class="choices" {
                @for loss in losses { (figure(&loss.figure)) }
            }
        }
    }
}

/// Sizes of the arms, and how they came to be.
pub(super) fn parameters(content: &Content, figures: &Figures) -> Section {
    let body = html! {
        @match &figures.parameters {
            Some(parameters) => (figure(parameters)),
            None => p { "The runs do not tell the parameters of their models." },
        }
        @if let Some(result) = content.result {
            @let shared = shared_changes(&result.arms);
            @if !shared.is_empty() {
                p { "All arms change their recipe alike by: " @for change in shared { code { (change) } " " } }
            }
            (table_or(&sizes(&result.arms), "The study has no arm."))
            (table_or(&learning_rates(&result.arms), "No learning rate was tuned."))
        }
    };
    Section { id: "parameters", heading: "Parameters and sparsity", body }
}

/// The changes that all arms begin with.
fn shared_changes(arms: &[ArmResult]) -> &[String] {
    let Some((first, others)) = arms.split_first() else { return &[] };
    let shared_with = |arm: &ArmResult| {
        first.overrides.iter().zip(&arm.overrides).take_while(|(mine, theirs)| mine == theirs).count()
    };
    let num_shared = others.iter().map(shared_with).min().unwrap_or(0);
    &first.overrides[..num_shared]
}

fn sizes(arms: &[ArmResult]) -> Table {
    let num_shared = shared_changes(arms).len();
    let head = [
        "arm",
        "changes of its own",
        "FLOP per token",
        "training memory",
        "held-equal quantity over the baseline's",
    ];
    let rows = arms.iter().map(|arm| {
        let own = &arm.overrides[num_shared..];
        let changes = if own.is_empty() { "none".into() } else { own.join(" ") };
        vec![
            arm.label.clone(),
            changes,
            scaled(arm.training_flops_per_token as f64, "FLOP"),
            bytes(arm.memory_bytes),
            format!("{:.3}", arm.equality),
        ]
    });
    Table::new("What each arm changes, and what that costs", 2, &head).with_rows(rows)
}

fn learning_rates(arms: &[ArmResult]) -> Table {
    let rows = arms.iter().flat_map(|arm| {
        let row = |&(rate, loss): &(f64, Option<f64>)| {
            let chosen = if rate == arm.learning_rate { "chosen" } else { "" };
            let loss = or_absent(loss, nats);
            vec![arm.label.clone(), chosen.to_string(), format!("{rate:.2e}"), loss]
        };
        arm.learning_rate_grid.iter().map(row).collect::<Vec<_>>()
    });
    let head = ["arm", "choice", "learning rate", "mean final loss (nats)"];
    Table::new("Learning rates tried", 2, &head).with_rows(rows)
}

/// Load of the experts, entropy and drops.
pub(super) fn routing(content: &Content, figures: &Figures) -> Section {
    let has_layers = content.runs.iter().any(|run| !run.layers.is_empty());
    let body = html! {
        @if !has_layers { p { "No run has router statistics: all are dense." } }
        @for load in &figures.load { (figure(load)) }
        @if let Some(routing) = &figures.routing { (figure(routing)) }
    };
    Section { id: "routing", heading: "Load balance and routing", body }
}
