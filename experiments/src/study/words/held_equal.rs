//! What was held equal, and how far it was.

use std::collections::BTreeMap;

use switchyard_ground::units::bytes;

use super::super::arms::Arm;
use super::super::evidence::Evidence;
use super::super::matrix::Stage;
use super::super::measured_memory::process_bytes;
use super::super::outcome::FinishedRun;
use super::super::result::HeldEqual;
use crate::statistics::RatioEstimate;

/// What the reader must know of the comparison itself.
pub(super) fn how_it_was_compared(evidence: &Evidence<'_>) -> Vec<String> {
    let study = &evidence.loaded.study;
    let held_equal = match study.held_equal {
        HeldEqual::WallClock => {
            "Held equal are the seconds of training steps, and the seconds of the axis are those: the steps of each arm follow \
             from its time per step beside the baseline's, and the schedule is stretched over them. What each run took, \
             whatever else the machine did, is in runs.csv and in the figure over seconds."
        }
        HeldEqual::ActiveFlops => {
            "Held equal are the active training FLOPs: an arm whose tokens cost more does fewer steps, so that all schedules \
             end at equal FLOPs, to half a step."
        }
        _ => "",
    };
    let at_equal_x = match study.budget.num_steps.len() {
        1 => {
            "Where one run of a pair is longer on an axis, its loss at equal x is taken before its learning rate has come \
             down, which counts against it; seconds nearly always differ: ask about them with several budgets, or with \
             `held_equal = \"wall_clock\"`."
        }
        _ => {
            "A loss at equal x, and the x of a loss, are read between finished runs of neighbouring budgets, whose schedules \
             have come to their end."
        }
    };
    let told = [held_equal.to_string(), what_is_the_same(evidence.arms), at_equal_x.into()];
    let mut notes: Vec<String> = told.into_iter().filter(|note| !note.is_empty()).collect();
    if study.held_equal == HeldEqual::Memory {
        notes.extend(evidence.arms[1..].iter().filter_map(|arm| measured_peaks(arm, evidence)));
    }
    if study.held_equal == HeldEqual::WallClock {
        notes.extend(evidence.arms[1..].iter().filter_map(|arm| step_ratio(&arm.label, evidence)));
        notes.extend((1..evidence.arms.len()).filter_map(|arm| step_ratio_of_runs(arm, evidence)));
    }
    if study.held_equal != HeldEqual::ActiveFlops && study.budget.num_steps.len() > 3 {
        notes.push(
            "The gauge compares at equal active FLOPs: where an arm's run takes others than the baseline's, the baseline's loss \
             is read between its budgets, or at most 1.3 times beyond them."
                .into(),
        );
    }
    let what_they_are = match study.held_equal {
        HeldEqual::WallClock => "are those of training steps alone",
        _ => "include the evaluations",
    };
    notes.push(format!(
        "Seconds hold for this machine and program only, and {what_they_are}; the other axes do not depend on them."
    ));
    notes
}

/// What all arms have in common for the same seed.
fn what_is_the_same(arms: &[Arm]) -> String {
    let have_own_tokenizers =
        arms.iter().any(|arm| arm.config.data.tokenizer != arms[0].config.data.tokenizer);
    let read_otherwise = arms.iter().any(|arm| arm.plan.carries_state != arms[0].plan.carries_state);
    let tokens = match (have_own_tokenizers, read_otherwise) {
        (true, _) => {
            "The arms have tokenizers of their own: as many tokens are other amounts of text, in another order, and the losses \
             are those of the same held-out bytes. For the same seed"
        }
        (false, true) => {
            "Some arms read the text in streams and others in shuffled windows: the same tokens, in another order. For the same \
             seed"
        }
        (false, false) => {
            "For the same seed all arms see the same tokens in the same order as far as they come, and"
        }
    };
    format!(
        "{tokens} parts of the same name and shape start from the same values; evaluation is dropless and covers the whole \
         validation split."
    )
}

/// What was measured of an arm's memory beside the baseline's.
fn measured_peaks(arm: &Arm, evidence: &Evidence<'_>) -> Option<String> {
    let baseline = &evidence.arms[0];
    Some(format!(
        "The peak of a process that trains `{}` was {}, of one that trains `{}` {}; without the {} that such a process takes by \
         itself that is {:.3} times as much.",
        arm.label,
        bytes(arm.measured_peak_bytes?),
        baseline.label,
        bytes(baseline.measured_peak_bytes?),
        bytes(process_bytes(arm)),
        arm.equality
    ))
}

/// How long a step of an arm takes, as its number of steps was made from.
fn step_ratio(label: &str, evidence: &Evidence<'_>) -> Option<String> {
    let measured = evidence.calibration.arms.get(label)?;
    let RatioEstimate { geometric_mean, interval } = measured.ratio()?;
    Some(format!(
        "A step of `{label}` takes {geometric_mean:.3} times one of `{}` [{:.3}, {:.3}], timed in turn in {} rounds: by as much \
         as this interval the seconds may differ.",
        evidence.arms[0].label,
        interval.low,
        interval.high,
        measured.ratios.len()
    ))
}

/// How long steps took in the runs themselves, which tells whether the ones timed before them were
/// like them.
fn step_ratio_of_runs(arm: usize, evidence: &Evidence<'_>) -> Option<String> {
    let study = &evidence.loaded.study;
    // By seed and number of the budget.
    let secs_per_step = |of: usize| -> BTreeMap<(u64, usize), f64> {
        let main = evidence.finished.iter().filter(|(stage, run)| *stage == Stage::Main && run.arm == of);
        main.filter_map(|(_, FinishedRun { result: run, .. })| {
            let budget = evidence.budget_steps[of].iter().position(|steps| *steps == run.num_steps)?;
            Some(((run.seed, budget), run.train_secs / run.num_steps as f64))
        })
        .collect()
    };
    let baseline = secs_per_step(0);
    let ratios: Vec<f64> =
        secs_per_step(arm).iter().filter_map(|(pair, secs)| Some(secs / baseline.get(pair)?)).collect();
    let RatioEstimate { geometric_mean, interval } = RatioEstimate::new(&ratios, study.question.confidence)?;
    Some(format!(
        "In the runs themselves, evaluations and whatever else the machine did included, a step of `{}` took \
         {geometric_mean:.3} times one of `{}` [{:.3}, {:.3}], over {} pairs: where this is far from the ratio above, so are \
         the seconds.",
        evidence.arms[arm].label,
        evidence.arms[0].label,
        interval.low,
        interval.high,
        ratios.len()
    ))
}
