//! How far a verdict can be trusted: what else moves a difference than the arms.

use maud::{Markup, html};

use super::table_or;
use crate::report::numbers::{interval, or_absent, percent};
use crate::report::table::Table;
use crate::study::result::{ArmComparison, StudyResult};
use crate::study::small;

/// What the study measured of it; nothing if it measured nothing.
pub(super) fn trust(result: &StudyResult) -> Markup {
    let says_something = |arm: &&ArmComparison| {
        let documents = arm.on(result.question.axis).and_then(|on| on.documents.as_ref());
        documents.is_some() || arm.noise_floor.is_some() || arm.seed_components.is_some()
    };
    let arms: Vec<&ArmComparison> = result.comparisons.iter().filter(says_something).collect();
    html! {
        @if !arms.is_empty() {
            h3 { "How far to trust it" }
            p {
                "What else moves the difference of " (result.question.metric.measure().of_quantity()) ": the documents or \
                 questions that it is of, the last bits of the initial values, and, of one seed, its initial values and its data \
                 order."
            }
            (table_or(&table(&arms, result), "Not measured."))
        }
    }
}

fn table(arms: &[&ArmComparison], result: &StudyResult) -> Table {
    let parts = if result.question.metric.is_of_questions() { "questions" } else { "documents" };
    let (over, over_seeds, ahead) =
        (format!("interval over {parts}"), format!("over {parts} and seeds"), format!("{parts} ahead"));
    let head = [
        "arm",
        "text",
        &over,
        &over_seeds,
        parts,
        &ahead,
        "last bits",
        "initial values",
        "data order",
        "interaction",
    ];
    let row = |arm: &&ArmComparison| {
        let on = arm.on(result.question.axis);
        let documents = on.and_then(|on| on.documents.as_ref());
        let parts = arm.seed_components.as_ref();
        vec![
            arm.arm.clone(),
            or_absent(on, |on| on.split.name().into()),
            interval(documents.map(|documents| &documents.interval)),
            interval(documents.and_then(|documents| documents.interval_with_seeds.as_ref())),
            or_absent(documents, |documents| documents.num_documents.to_string()),
            or_absent(documents, |documents| percent(documents.share_ahead)),
            or_absent(arm.noise_floor, small),
            or_absent(parts, |parts| small(parts.initial_values)),
            or_absent(parts, |parts| small(parts.data_order)),
            or_absent(parts, |parts| small(parts.both_together)),
        ]
    };
    Table::new("What else moves the difference", 2, &head).with_rows(arms.iter().map(row))
}
