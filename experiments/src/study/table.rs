//! A result for the terminal.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::metric::{JudgedSplit, Metric};
use super::result::{
    ArmComparison, ArmResult, Axis, AxisComparison, EffectiveSpeedup, RunResult, StudyResult,
};
use super::words::{axis_words, small};
use crate::statistics::{DocumentDifference, Interval, RatioEstimate, SeedComponents};

impl StudyResult {
    /// The verdict, then what it rests on.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("{}\n\n", self.headline);
        let (seeds, split) = (self.seeds_of_largest_budget(), self.judged_split());
        for arm in &self.arms {
            text.push_str(&arm_line(arm, &seeds, self.question.metric, split));
        }
        for comparison in &self.comparisons {
            text.push_str(&self.comparison_lines(comparison));
        }
        text.push('\n');
        for line in
            self.unequal.iter().map(|line| format!("not equal: {line}")).chain(self.notes.iter().cloned())
        {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "- {line}");
        }
        text
    }
}

impl ArmResult {
    /// Steps of its largest budget, as far as a run of it is over.
    pub(super) fn most_steps(&self) -> Option<u64> {
        let diverged = self.diverged.iter().map(|run| run.num_steps);
        self.runs.iter().map(|run| run.num_steps).chain(diverged).max()
    }

    /// Its final loss at the largest budget with a seed, in a column of its own.
    fn loss_words(&self, seed: u64, metric: Metric, split: JudgedSplit) -> String {
        let most = self.most_steps();
        let run = self.runs.iter().find(|run| run.seed == seed && Some(run.num_steps) == most);
        match run.and_then(|run| run.final_loss(metric, split)) {
            Some(loss) => format!("{loss:.4}"),
            None if self.diverged.iter().any(|run| run.seed == seed && Some(run.num_steps) == most) => {
                "diverged".into()
            }
            None => "-".into(),
        }
    }
}

impl RunResult {
    /// Its last loss on a split, or on questions, in a metric.
    pub(crate) fn final_loss(&self, metric: Metric, split: JudgedSplit) -> Option<f64> {
        use JudgedSplit::{Questions, Test, Validation};
        match (metric, split) {
            (Metric::Nats, Validation) => self.final_loss_nats,
            (Metric::Nats, Test) => self.final_test_loss_nats,
            (Metric::BitsPerByte, Validation) => self.final_bits_per_byte,
            (Metric::BitsPerByte, Test) => self.final_test_bits_per_byte,
            (Metric::Acc, Questions) => Some(1.0 - self.acc?),
            (Metric::AccNorm, Questions) => Some(1.0 - self.acc_norm?),
            (Metric::Nats | Metric::BitsPerByte, Questions)
            | (Metric::Acc | Metric::AccNorm, Validation | Test) => None,
        }
    }
}

impl StudyResult {
    /// The split of the last losses: the test split if every run has one.
    pub(crate) fn judged_split(&self) -> JudgedSplit {
        let mut runs = self.arms.iter().flat_map(|arm| &arm.runs);
        let metric = self.question.metric;
        let has_test = |run: &RunResult| run.final_loss(metric, JudgedSplit::Test).is_some();
        if metric.is_of_questions() {
            JudgedSplit::Questions
        } else if runs.clone().next().is_some() && runs.all(has_test) {
            JudgedSplit::Test
        } else {
            JudgedSplit::Validation
        }
    }

    /// An arm against the baseline: each axis, ratios, what else moves the difference, the gauge.
    fn comparison_lines(&self, comparison: &ArmComparison) -> String {
        let mut text = format!("\n{} against {}\n", comparison.arm, self.baseline);
        let measure = self.question.metric.measure();
        comparison.axes.iter().for_each(|on| text.push_str(&self.axis_lines(on)));
        for (time, speedup) in comparison.time_to_loss.iter().zip(&comparison.effective_speedup) {
            // Tokens are the same as steps. Answers at the end of few runs make no curve.
            let is_measured = !speedup.ratios.is_empty() && !self.question.metric.is_of_questions();
            if time.axis == Axis::Tokens || !is_measured {
                continue;
            }
            let _ = writeln!(
                text,
                "  to its loss, of its {:<18} {}   effective speedup {} at {} steps",
                axis_words(time.axis),
                ratio_words(time.estimate.as_ref(), &time.ratios, "not reached"),
                speedup_words(speedup),
                speedup.num_steps,
            );
        }
        if let Some(floor) = comparison.noise_floor {
            let _ = writeln!(text, "  last bits alone move a difference by {}", measure.amount(small(floor)));
        }
        if let Some(SeedComponents { crossed_seeds, initial_values, data_order, both_together }) =
            comparison.seed_components
        {
            let _ = writeln!(
                text,
                "  deviation of one pair's difference, from {crossed_seeds} by {crossed_seeds} crossed seeds: initial values \
             {}, data order {}, their interaction {}",
                measure.amount(small(initial_values)),
                small(data_order),
                small(both_together)
            );
        }
        if let Some(gauge) = &comparison.gauge {
            let _ = writeln!(text, "  gauge: {}", gauge.sentence);
        }
        text
    }

    /// The difference on an axis with the interval that decides, and its spread over documents.
    fn axis_lines(&self, on: &AxisComparison) -> String {
        let interval = on.difference.interval(self.stopping).map_or(String::new(), bracketed);
        let num_arms = self.comparisons.iter().filter(|other| other.on(on.axis).is_some()).count();
        let among = on.adjusted_interval.as_ref().filter(|_| num_arms > 1);
        let among =
            among.map_or(String::new(), |interval| format!(", among {num_arms} arms{}", bracketed(interval)));
        let mut text = format!(
            "  at equal {:<20} {:+.4}{interval}{among} {}   {}\n",
            axis_words(on.axis),
            on.difference.mean,
            self.question.metric.unit_of(on.split),
            if on.reads_unfinished_schedules { "undecided (the runs end apart)" } else { on.verdict.word() }
        );
        if let Some(documents) = &on.documents {
            let _ = writeln!(text, "{:31}{}", "", document_words(documents, on.split));
        }
        text
    }

    /// Seeds of all arms' runs at their largest budgets, ascending.
    fn seeds_of_largest_budget(&self) -> Vec<u64> {
        let of_arm = |arm: &ArmResult| {
            let most = arm.most_steps();
            let finished = arm.runs.iter().map(|run| (run.seed, run.num_steps));
            let diverged = arm.diverged.iter().map(|run| (run.seed, run.num_steps));
            let of_most = finished.chain(diverged).filter(|(_, steps)| Some(*steps) == most);
            of_most.map(|(seed, _)| seed).collect::<Vec<_>>()
        };
        let seeds: BTreeSet<u64> = self.arms.iter().flat_map(of_arm).collect();
        seeds.into_iter().collect()
    }
}

/// The losses by seed, in the same columns for all arms.
fn arm_line(arm: &ArmResult, seeds: &[u64], metric: Metric, split: JudgedSplit) -> String {
    let losses: Vec<String> =
        seeds.iter().map(|&seed| format!("{:<8}", arm.loss_words(seed, metric, split))).collect();
    let what = match split {
        JudgedSplit::Questions => metric.measure().quantity.to_string(),
        JudgedSplit::Validation | JudgedSplit::Test => {
            format!("{} loss ({})", split.name(), metric.measure().unit)
        }
    };
    format!("{:<16} final {what} by seed: {}\n", arm.label, losses.join(" ").trim_end())
}

/// An interval after a space.
fn bracketed(Interval { low, high }: &Interval) -> String {
    format!(" [{low:+.4}, {high:+.4}]")
}

/// The spread over documents.
fn document_words(documents: &DocumentDifference, split: JudgedSplit) -> String {
    let with_seeds = documents.interval_with_seeds.as_ref();
    let with_seeds = with_seeds.map_or(String::new(), |both| format!("; with seeds{}", bracketed(both)));
    format!(
        "over {} {}{}{with_seeds}; ahead on {:.0} %",
        documents.num_documents,
        if split == JudgedSplit::Questions { "questions" } else { "documents" },
        bracketed(&documents.interval),
        100.0 * documents.share_ahead
    )
}

/// A mean with its interval, or how many seeds have none.
fn ratio_words(estimate: Option<&RatioEstimate>, ratios: &[Option<f64>], censored: &str) -> String {
    match estimate {
        Some(estimate) => format!(
            "{:.3} [{:.3}, {:.3}]",
            estimate.geometric_mean, estimate.interval.low, estimate.interval.high
        ),
        None => {
            let known: Vec<String> = ratios.iter().flatten().map(|ratio| format!("{ratio:.3}")).collect();
            let missing = ratios.len() - known.len();
            let censored = if missing > 0 {
                format!("{censored} in {missing} of {}", ratios.len())
            } else {
                String::new()
            };
            [known.join(" "), censored]
                .iter()
                .filter(|part| !part.is_empty())
                .cloned()
                .collect::<Vec<_>>()
                .join(", ")
        }
    }
}

/// A mean with its interval, or the smallest lower bound.
fn speedup_words(speedup: &EffectiveSpeedup) -> String {
    match &speedup.estimate {
        Some(_) => ratio_words(speedup.estimate.as_ref(), &speedup.ratios, ""),
        None if speedup.ratios.is_empty() => "not measured".into(),
        None if speedup.at_most.contains(&true) => {
            let num_bounded = speedup.at_most.iter().filter(|at_most| **at_most).count();
            let known: Vec<String> =
                speedup.ratios.iter().flatten().map(|ratio| format!("{ratio:.2}")).collect();
            format!("{}, upper bounds in {num_bounded} of {}", known.join(" "), speedup.at_most.len())
        }
        None if !speedup.ratios.contains(&None) => ratio_words(None, &speedup.ratios, ""),
        None => {
            let bounds = speedup.ratios.iter().zip(&speedup.lower_bounds);
            let least = bounds.map(|(ratio, bound)| ratio.unwrap_or(*bound)).fold(f64::INFINITY, f64::min);
            format!("at least {least:.2}")
        }
    }
}
