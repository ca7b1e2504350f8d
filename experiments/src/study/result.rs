//! What a study found: the content of `result.json`.
//!
//! Plain data. [`super`] fills it, the report and the CSV files are made from it and from nothing
//! else but the runs' rows.

use serde::{Deserialize, Serialize};

use super::metric::{JudgedSplit, Metric};
use super::questions::QuestionsIdentity;
use crate::statistics::{
    Asked, DocumentDifference, Gauge, Interval, PairedDifference, RatioEstimate, SeedComponents,
    SignedRankInterval, Stopping, Verdict,
};

/// A finished (or partly finished) study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StudyResult {
    /// Name of the study.
    pub(crate) study: String,
    /// The verdict in one or two sentences: the first thing that a reader sees.
    pub(crate) headline: String,
    /// On the question's axis, after the adjustment for the number of arms: `wins` if any arm wins
    /// against the baseline, else `fragile` if any is, `loses` if all lose, else `undecided`.
    pub(crate) verdict: Verdict,
    /// What was asked.
    pub(crate) question: Question,
    /// Whether the seeds are those that were planned: `open` after seeds were added to those that a
    /// result was seen of, and while runs are missing.
    #[serde(default)]
    pub(crate) stopping: Stopping,
    /// What the arms were made to have in common.
    pub(crate) held_equal: HeldEqual,
    /// Label of the arm that the others are compared with.
    pub(crate) baseline: String,
    /// The arms, the baseline first.
    pub(crate) arms: Vec<ArmResult>,
    /// Every other arm against the baseline.
    pub(crate) comparisons: Vec<ArmComparison>,
    /// What the arms do not have in common although one might think so, each with its numbers.
    pub(crate) unequal: Vec<String>,
    /// What a reader must know before believing the numbers.
    pub(crate) notes: Vec<String>,
    /// Where the numbers come from.
    pub(crate) provenance: Provenance,
}

/// What the study asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Question {
    /// The axis on which the verdict is given.
    pub(crate) axis: Axis,
    /// What the arms are judged by; nats in results of earlier versions.
    #[serde(default)]
    pub(crate) metric: Metric,
    /// Differences up to this many of the metric's units do not matter.
    #[serde(alias = "margin_nats")]
    pub(crate) margin: f64,
    /// Confidence level of every interval, such as 0.95.
    pub(crate) confidence: f64,
    /// The questions that a metric of questions is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) questions: Option<QuestionsIdentity>,
}

impl Question {
    /// The same, as a verdict is asked.
    pub(crate) fn asked(&self) -> Asked {
        Asked { measure: self.metric.measure(), margin: self.margin, confidence: self.confidence }
    }
}

#[cfg(test)]
impl Question {
    /// About nats on `axis`, at 95 %.
    pub(crate) fn of_nats(axis: Axis, margin: f64) -> Self {
        Self { axis, metric: Metric::Nats, margin, confidence: 0.95, questions: None }
    }
}

/// What is on the x-axis when two losses are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Axis {
    /// Optimizer steps.
    Steps,
    /// Training tokens.
    Tokens,
    /// Floating-point operations of the active parameters, forward and backward.
    ActiveFlops,
    /// Wall-clock seconds of training, evaluations and checkpoints included; where they are held
    /// equal, the calibrated seconds of the training steps.
    Seconds,
}

/// What the arms of a study have in common by construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HeldEqual {
    /// Training FLOPs of the active parameters. The width of an arm makes its FLOPs per token about
    /// equal, and its number of steps the rest.
    ActiveFlops,
    /// All parameters, and tokens.
    TotalParams,
    /// Measured training memory, and tokens: the estimate chooses the width, and is corrected by
    /// the peak of a process that trains it.
    Memory,
    /// Predicted seconds of training.
    WallClock,
    /// Training tokens only.
    Tokens,
}

/// One arm and its runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ArmResult {
    /// Name of the arm.
    pub(crate) label: String,
    /// What the arm changes in the base recipe, `key=value`, the solved keys included.
    pub(crate) overrides: Vec<String>,
    /// Parameters of the model.
    pub(crate) total_params: u64,
    /// Parameters that a token meets.
    pub(crate) active_params: u64,
    /// Training FLOPs of a token.
    pub(crate) training_flops_per_token: u64,
    /// Estimated memory of training.
    pub(crate) memory_bytes: u64,
    /// Most memory resident in a process that trained it for some steps; `None` unless memory is
    /// held equal.
    #[serde(default)]
    pub(crate) measured_peak_bytes: Option<u64>,
    /// The held-equal quantity of this arm over the baseline's; 1 is equal.
    pub(crate) equality: f64,
    /// Learning rate that the grid's pilot seed found best; that of the runs below.
    pub(crate) learning_rate: f64,
    /// Learning rates tried and the final loss of each in its pilot run, in nats.
    pub(crate) learning_rate_grid: Vec<(f64, Option<f64>)>,
    /// Its runs at the chosen learning rate, ordered by budget and seed.
    pub(crate) runs: Vec<RunResult>,
    /// Its runs that diverged: they have no final loss, and count as worse than any.
    #[serde(default)]
    pub(crate) diverged: Vec<DivergedRun>,
    /// Key of the router through which its predictions see later tokens; `None` if it is causal.
    #[serde(default)]
    pub(crate) sees_later_tokens: Option<String>,
}

/// A run that ended in numbers that are none, or that an alarm stopped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DivergedRun {
    /// Seed.
    pub(crate) seed: u64,
    /// Optimizer steps of its budget.
    pub(crate) num_steps: u64,
    /// Its folder, and why.
    pub(crate) reason: String,
}

/// One run of an arm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunResult {
    /// Seed.
    pub(crate) seed: u64,
    /// Optimizer steps of its budget.
    pub(crate) num_steps: u64,
    /// Run folder, relative to the study's folder.
    pub(crate) run: String,
    /// Validation cross-entropy of the last model over the whole split; `None` if the run has not
    /// finished.
    pub(crate) final_loss_nats: Option<f64>,
    /// The same over the test split; `None` without one.
    #[serde(default)]
    pub(crate) final_test_loss_nats: Option<f64>,
    /// The last model's loss on the validation split in bits per byte; `None` where the bytes are not
    /// known.
    #[serde(default)]
    pub(crate) final_bits_per_byte: Option<f64>,
    /// The same over the test split.
    #[serde(default)]
    pub(crate) final_test_bits_per_byte: Option<f64>,
    /// Share of the study's questions whose likeliest choice is right; `None` unless it asks any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) acc: Option<f64>,
    /// Share of them whose likeliest choice per character is right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) acc_norm: Option<f64>,
    /// Training tokens.
    pub(crate) tokens: u64,
    /// FLOPs of the active parameters.
    pub(crate) active_flops: f64,
    /// Wall-clock seconds of training.
    pub(crate) train_secs: f64,
    /// Wall-clock seconds up to the last evaluation, which are those of the axis; `None` in results
    /// of earlier versions.
    #[serde(default)]
    pub(crate) elapsed_secs: Option<f64>,
    /// Energy that the processor used during the run; `None` where it does not tell.
    pub(crate) energy_joules: Option<f64>,
    /// Price of the run; `None` without a price per hour in the study.
    pub(crate) cost: Option<f64>,
    /// Alarms that the flight recorder raised.
    pub(crate) num_alarms: usize,
}

/// An arm against the baseline, over the seeds that both have finished at the largest budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ArmComparison {
    /// Label of the arm.
    pub(crate) arm: String,
    /// One entry per axis: losses at the largest x that both curves reach. With several budgets the
    /// curves are those of finished runs.
    pub(crate) axes: Vec<AxisComparison>,
    /// When the arm reached the baseline's final loss, as a share of what the baseline needed, on
    /// each axis.
    pub(crate) time_to_loss: Vec<TimeToLoss>,
    /// How much dense compute the arm's final loss is worth: the baseline's loss curve inverted,
    /// over the arm's own use.
    pub(crate) effective_speedup: Vec<EffectiveSpeedup>,
    /// The gap against compute over the budgets; `None` with fewer than four.
    pub(crate) gauge: Option<Gauge>,
    /// Standard deviation of the difference between a run of the arm and one of the baseline
    /// that the last bits of their initial values decide; `None` unless the study measured it.
    #[serde(default)]
    #[serde(alias = "noise_floor_nats")]
    pub(crate) noise_floor: Option<f64>,
    /// What the initial values and the data order decide of the difference at the largest budget;
    /// `None` unless the study crossed some seeds.
    #[serde(default)]
    pub(crate) seed_components: Option<SeedComponents>,
}

#[cfg(test)]
impl ArmComparison {
    /// That of an arm with these differences over the tokens, and nothing else.
    pub(crate) fn of_differences(differences: &[f64]) -> Self {
        let Some(difference) = PairedDifference::new(differences, 0.95) else { panic!("{differences:?}") };
        let on = AxisComparison {
            axis: Axis::Tokens,
            seeds: (0..differences.len() as u64).collect(),
            p_value: difference.p_value(0.0, Stopping::Planned),
            adjusted_p_value: None,
            adjusted_interval: None,
            reasons: Vec::new(),
            signed_rank: None,
            split: JudgedSplit::Validation,
            reads_unfinished_schedules: false,
            documents: None,
            verdict: difference.verdict(0.0, Stopping::Planned),
            difference,
            seeds_to_decide: None,
            sentence: "It is judged.".into(),
        };
        Self {
            arm: "arm".into(),
            axes: vec![on],
            time_to_loss: Vec::new(),
            effective_speedup: Vec::new(),
            gauge: None,
            noise_floor: None,
            seed_components: None,
        }
    }
}

/// Losses of an arm and the baseline at equal x.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct AxisComparison {
    /// The axis.
    pub(crate) axis: Axis,
    /// Seeds, in the order of the differences.
    pub(crate) seeds: Vec<u64>,
    /// Loss of the arm minus loss of the baseline, paired by seed: below 0 the arm is
    /// better.
    pub(crate) difference: PairedDifference,
    /// Two-sided p-value of Student's test against the margin; `None` with one pair.
    #[serde(default)]
    pub(crate) p_value: Option<f64>,
    /// The same, adjusted for the number of arms (Holm): a verdict needs it to be small.
    #[serde(default)]
    pub(crate) adjusted_p_value: Option<f64>,
    /// The interval of the mean at the level at which this arm is judged among all (Holm).
    #[serde(default)]
    pub(crate) adjusted_interval: Option<Interval>,
    /// An interval that does not take the differences to be normal; `None` if they are too few.
    #[serde(default)]
    pub(crate) signed_rank: Option<SignedRankInterval>,
    /// The text that the losses are of.
    #[serde(default)]
    pub(crate) split: JudgedSplit,
    /// Whether losses were read while a schedule had not come to its end: with one budget, where the
    /// runs of a pair end at different x.
    #[serde(default)]
    pub(crate) reads_unfinished_schedules: bool,
    /// The difference over the documents of that text; `None` where they are not known, not the same
    /// for every seed, or where losses were read between evaluations.
    #[serde(default)]
    pub(crate) documents: Option<DocumentDifference>,
    /// The verdict on this axis.
    pub(crate) verdict: Verdict,
    /// Seeds in all at which the confidence sequence would decide, at this arm's level among all, were
    /// mean and spread to stay.
    pub(crate) seeds_to_decide: Option<u64>,
    /// Why the verdict is another than this arm's interval by itself would give.
    #[serde(default)]
    pub(crate) reasons: Vec<String>,
    /// The verdict in words.
    pub(crate) sentence: String,
}

impl AxisComparison {
    /// The interval over the parts of the text and seeds, in words, if it does not carry `verdict`;
    /// also where there is none.
    pub(super) fn interval_within(&self, margin: f64, verdict: Verdict) -> Option<String> {
        let Some(Interval { low, high }) =
            self.documents.as_ref().and_then(|parts| parts.interval_with_seeds)
        else {
            return Some("there is no interval".into());
        };
        let holds = match verdict {
            Verdict::Wins => high < -margin,
            Verdict::Loses => low > margin,
            Verdict::Undecided | Verdict::Fragile => true,
        };
        (!holds).then(|| format!("the difference lies in [{low:+.4}, {high:+.4}]"))
    }
}

/// When an arm reached the baseline's final loss. With several budgets both curves are those of
/// finished runs, whose schedules have all come to their end; with one budget, those of the runs'
/// evaluations on the way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TimeToLoss {
    /// The axis.
    pub(crate) axis: Axis,
    /// Seeds, in the order of the numbers below.
    #[serde(default)]
    pub(crate) seeds: Vec<u64>,
    /// The target of each seed: the final loss of the baseline's run of that seed.
    #[serde(alias = "targets_nats")]
    pub(crate) targets: Vec<f64>,
    /// The arm's x at the target over the baseline's, for each seed; `None` where the arm did not
    /// reach it, or diverged (censored).
    pub(crate) ratios: Vec<Option<f64>>,
    /// Their geometric mean with interval; `None` if any seed is censored or there are fewer than
    /// two.
    pub(crate) estimate: Option<RatioEstimate>,
}

/// How much more compute the baseline would need for the arm's final loss. With several budgets the
/// baseline's curve is that of its finished runs, whose schedules have all come to their end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct EffectiveSpeedup {
    /// The axis.
    pub(crate) axis: Axis,
    /// Steps of the arm's runs that are judged: the largest budget at which every seed has a ratio,
    /// else the largest.
    pub(crate) num_steps: u64,
    /// Seeds, in the order of the numbers below.
    #[serde(default)]
    pub(crate) seeds: Vec<u64>,
    /// Baseline's x at the arm's final loss over the arm's final x, for each seed; above 1 the arm
    /// is ahead, and 0 stands for an arm that diverged. `None` where the baseline never reached that
    /// loss: then the speedup is at least the ratio of the final x.
    pub(crate) ratios: Vec<Option<f64>>,
    /// Lower bound for the seeds that are absent above.
    pub(crate) lower_bounds: Vec<f64>,
    /// Whether a seed's ratio is only an upper bound, because the arm's loss is above the whole of
    /// the baseline's curve.
    pub(crate) at_most: Vec<bool>,
    /// Geometric mean with interval; `None` if any seed has only a bound or there are fewer than
    /// two.
    pub(crate) estimate: Option<RatioEstimate>,
}

/// Where the numbers come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Provenance {
    /// The command that repeats the study.
    pub(crate) command: String,
    /// SHA-256 of the study file, in hexadecimal.
    pub(crate) study_sha256: String,
    /// SHA-256 of the base recipe.
    pub(crate) base_sha256: String,
    /// Version of Switchyard.
    pub(crate) version: String,
    /// Commit of the sources, with `-dirty` if they differed from it.
    pub(crate) commit: Option<String>,
    /// SHA-256 of the `Cargo.lock` of the program.
    pub(crate) cargo_lock_sha256: String,
    /// Machines that the runs ran on.
    pub(crate) machines: Vec<String>,
    /// Devices, with the number of threads.
    pub(crate) devices: Vec<String>,
    /// Earliest start of a run, RFC 3339.
    pub(crate) started_at: Option<String>,
    /// Latest end of a run, RFC 3339.
    pub(crate) ended_at: Option<String>,
    /// Seconds of training of all runs.
    pub(crate) total_train_secs: f64,
}
