//! The first part of the page: the verdict, what it rests on, and what to know before believing it.

use maud::{Markup, html};

use super::trust::trust;
use super::{Section, figure, table_or};
use crate::report::axes::name;
use crate::report::content::Content;
use crate::report::figures::Figures;
use crate::report::numbers::{difference, interval, or_absent, percent, ratio};
use crate::report::table::Table;
use crate::report::verdict_words::verdict_glyph;
use crate::study::held_equal_words;
use crate::study::result::{ArmComparison, AxisComparison, EffectiveSpeedup, StudyResult, TimeToLoss};

/// The headline of the study; without one, that there is none.
pub(super) fn verdict(content: &Content) -> Section {
    let body = match content.result {
        Some(result) => verdict_of(result),
        None if content.runs.len() == 1 => html! {
            p class="verdict" { "No verdict: this is one run, with nothing to judge it against." }
        },
        None => html! {
            p class="verdict" { "No verdict: these are plain runs, not a study." }
            p {
                "Nothing was held equal between them, and their learning rates were not tuned alike. The tables and \
                 figures show what each run did; a difference between them may be chance."
            }
            @if !content.notes.is_empty() {
                p { strong { "These losses cannot be compared:" } }
                ul { @for note in content.notes { li { (with_code(note)) } } }
            }
        },
    };
    Section { id: "verdict", heading: "Verdict", body }
}

fn verdict_of(result: &StudyResult) -> Markup {
    let word = result.verdict.word();
    let measure = result.question.metric.measure();
    html! {
        p class={ "verdict " (word) } {
            span class="sign" { span aria-hidden="true" { (verdict_glyph(result.verdict)) } " " (word) }
            " " (with_code(&result.headline))
        }
        p {
            "Study " strong { (result.study) } ". The baseline is " strong { (result.baseline) } ". Held equal: "
            (held_equal_words(result.held_equal)) ". The question is asked at equal " (name(result.question.axis))
            "; differences of up to " (measure.amount(result.question.margin)) " do not matter. Intervals are at "
            (percent(result.question.confidence)) "."
        }
    }
}

/// `text` with what stands between backticks as code.
fn with_code(text: &str) -> Markup {
    html! {
        @for (index, part) in text.split('`').enumerate() {
            @if index % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

/// Differences, time to loss and effective speedup of each arm.
pub(super) fn comparisons(content: &Content, result: &StudyResult, figures: &Figures) -> Section {
    let arms = content.comparisons();
    let sentences = arms.iter().flat_map(|arm| arm.axes.iter().map(|axis| (arm.arm.as_str(), axis)));
    let body = html! {
        (table_or(&differences(arms, result), "No arm could be compared with the baseline yet."))
        @if let Some(gap) = &figures.gap { (figure(gap)) }
        details {
            summary { "The verdicts in words" }
            ul { @for (arm, axis) in sentences { li { (arm) ", " (name(axis.axis)) ": " (with_code(&axis.sentence)) } } }
        }
        (trust(result))
        @if !result.question.metric.is_of_questions() {
        h3 { "Time to the baseline's loss" }
        p {
            "What an arm needed to reach the final loss of the baseline, as a share of what the baseline needed: \
             below 1 the arm is faster."
        }
        (table_or(&times(arms), "Not measured."))
        h3 { "Effective speedup" }
        p {
            "What the baseline would need for an arm's final loss, over what the arm used: above 1 the arm is ahead."
        }
        (table_or(&speedups(arms), "Not measured."))
        }
        @if let Some(gauge) = &figures.gauge {
            h3 { "As compute grows" }
            (figure(gauge))
        }
    };
    Section { id: "comparisons", heading: "Against the baseline", body }
}

fn differences(arms: &[ArmComparison], result: &StudyResult) -> Table {
    let measure = result.question.metric.measure();
    let difference_head = format!("difference of {} [interval that decides]", measure.of_quantity());
    let head = [
        "arm",
        "at equal",
        "verdict",
        &difference_head,
        "t interval",
        "bootstrap interval",
        "signed-rank interval",
        "p, adjusted",
        "same sign",
        "seeds",
        "seeds to decide",
    ];
    let row = |arm: &str, axis: &AxisComparison| {
        let paired = &axis.difference;
        vec![
            arm.to_string(),
            name(axis.axis).into(),
            format!("{} {}", verdict_glyph(axis.verdict), axis.verdict.word()),
            difference(paired.mean, paired.interval(result.stopping)),
            interval(paired.t_interval.as_ref()),
            interval(paired.bootstrap_interval.as_ref()),
            interval(axis.signed_rank.as_ref().map(|found| &found.interval)),
            or_absent(axis.adjusted_p_value, |p| format!("{p:.4}")),
            percent(paired.sign_consistency),
            paired.differences.len().to_string(),
            or_absent(axis.seeds_to_decide, |seeds| seeds.to_string()),
        ]
    };
    let rows = arms.iter().flat_map(|arm| arm.axes.iter().map(move |axis| row(&arm.arm, axis)));
    Table::new(
        format!(
            "{} of an arm minus that of {}: below zero the arm is better",
            capitalised(measure.quantity),
            result.baseline
        ),
        3,
        &head,
    )
    .with_rows(rows)
}

/// `text` with a capital at its beginning.
fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

fn times(arms: &[ArmComparison]) -> Table {
    let row = |arm: &str, time: &TimeToLoss| {
        let num_reached = time.ratios.iter().flatten().count();
        let all = match (&time.estimate, num_reached, time.ratios.len()) {
            (Some(estimate), ..) => ratio(estimate),
            (None, 0, _) => "not reached".into(),
            (None, reached, total) if reached < total => {
                format!("not reached by {} of {total}", total - reached)
            }
            (None, ..) => "one seed".into(),
        };
        let seeds = time.ratios.iter().map(|ratio| ratio.map_or("not reached".into(), |x| format!("{x:.2}")));
        vec![arm.to_string(), name(time.axis).into(), all, seeds.collect::<Vec<String>>().join(", ")]
    };
    let rows = arms.iter().flat_map(|arm| arm.time_to_loss.iter().map(move |time| row(&arm.arm, time)));
    let head = ["arm", "axis", "share of the baseline's", "each seed"];
    Table::new("Time to the baseline's final loss", 2, &head).with_rows(rows)
}

fn speedups(arms: &[ArmComparison]) -> Table {
    let row = |arm: &str, speedup: &EffectiveSpeedup| {
        let seeds = each_seed(speedup).map(|(value, is_bound)| bounded(value, is_bound));
        vec![
            arm.to_string(),
            name(speedup.axis).into(),
            speedup.num_steps.to_string(),
            all_seeds(speedup),
            seeds.collect::<Vec<_>>().join(", "),
        ]
    };
    let rows =
        arms.iter().flat_map(|arm| arm.effective_speedup.iter().map(move |speedup| row(&arm.arm, speedup)));
    let head = ["arm", "axis", "steps of the arm", "speedup", "each seed"];
    Table::new("Effective speedup", 2, &head).with_rows(rows)
}

/// The ratio of each seed, or its lower bound where the baseline never came so far.
fn each_seed(speedup: &EffectiveSpeedup) -> impl Iterator<Item = (f64, bool)> {
    let bounds = speedup.lower_bounds.iter().copied().chain(std::iter::repeat(0.0));
    speedup.ratios.iter().zip(bounds).map(|(ratio, bound)| (ratio.unwrap_or(bound), ratio.is_none()))
}

fn all_seeds(speedup: &EffectiveSpeedup) -> String {
    if let Some(estimate) = &speedup.estimate {
        return ratio(estimate);
    }
    if speedup.at_most.contains(&true) {
        let most = speedup.ratios.iter().flatten().fold(0.0_f64, |most, &ratio| most.max(ratio));
        return format!("\u{2264} {most:.2}");
    }
    // With a bound in the place of each censored ratio, the geometric mean is a bound of the mean.
    let logarithms: Vec<f64> = each_seed(speedup).map(|(value, _)| value.ln()).collect();
    if logarithms.is_empty() {
        return "not measured".into();
    }
    let mean = (logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp();
    bounded(mean, speedup.ratios.iter().any(Option::is_none))
}

fn bounded(value: f64, is_bound: bool) -> String {
    if is_bound { format!("\u{2265} {value:.2}") } else { format!("{value:.2}") }
}

/// What the arms do not have in common, and what to know before believing the numbers.
pub(super) fn caveats(result: &StudyResult) -> Section {
    let list = |heading: &str, lines: &[String], otherwise: &str| {
        html! {
            h3 { (heading) }
            @if lines.is_empty() { p { (otherwise) } } @else { ul { @for line in lines { li { (with_code(line)) } } } }
        }
    };
    let body = html! {
        (list("Not equal", &result.unequal, "Nothing else is known to differ."))
        (list("Notes", &result.notes, "None."))
    };
    Section { id: "caveats", heading: "Before believing it", body }
}
