//! Which losses of a study's runs are compared: of which split, and at equal x.

use super::evidence::Evidence;
use super::metric::JudgedSplit;
use super::outcome::FinishedRun;
use super::pairs::Pair;
use super::result::{Axis, HeldEqual};
use crate::statistics::{DocumentDifference, LossCurve};

/// Share by which two quantities may differ and count as equal.
pub(super) const EQUAL: f64 = 0.005;

impl Evidence<'_> {
    /// Share of x by which the ends of two runs may differ and count as equal. Where steps were made
    /// to end at equal x they did so to half a step.
    pub(super) fn rounding(&self, [run, baseline]: [&FinishedRun; 2]) -> f64 {
        let half_step = 0.5 / run.result.num_steps.min(baseline.result.num_steps).max(1) as f64;
        match self.loaded.study.held_equal {
            HeldEqual::ActiveFlops | HeldEqual::WallClock => half_step.max(EQUAL),
            HeldEqual::TotalParams | HeldEqual::Memory | HeldEqual::Tokens => EQUAL,
        }
    }

    /// The split that last losses are taken from: the test split if every run for the result has one.
    pub(super) fn judged_split(&self) -> JudgedSplit {
        let mut runs = (0..self.arms.len()).flat_map(|arm| self.main_runs(arm));
        let has_test = |run: &FinishedRun| run.final_loss(JudgedSplit::Test).is_some();
        if self.loaded.study.question.metric.is_of_questions() {
            JudgedSplit::Questions
        } else if runs.all(has_test) {
            JudgedSplit::Test
        } else {
            JudgedSplit::Validation
        }
    }

    /// The split that curves and times to a loss are of.
    pub(super) fn curve_split(&self) -> JudgedSplit {
        self.loaded.study.question.metric.curve_split()
    }

    /// The last losses of the arm's finished runs of all budgets with the seed of `run`.
    pub(super) fn curve_of_ends(
        &self,
        split: JudgedSplit,
        arm: usize,
        run: &FinishedRun,
        axis: Axis,
    ) -> Option<LossCurve> {
        let runs = self.main_runs(arm).filter(|other| other.result.seed == run.result.seed);
        let ends: Option<Vec<(f64, f64)>> =
            runs.map(|run| Some((run.end(axis)?, run.final_loss(split)?))).collect();
        LossCurve::new(ends?)
    }

    /// The loss that an arm can have at each x, with the seed of `run`: that of its finished runs
    /// of all budgets, whose schedules have all come to their end; with one budget, that of the
    /// run's own evaluations.
    pub(super) fn best_curve(&self, arm: usize, run: &FinishedRun, axis: Axis) -> Option<LossCurve> {
        if self.num_budgets() == 1 {
            return run.curve(axis);
        }
        self.curve_of_ends(self.curve_split(), arm, run, axis)
    }
}

/// The losses of an arm and the baseline at equal x, on one split.
pub(super) struct Judged<'a> {
    pub(super) split: JudgedSplit,
    /// The runs, the arm's first.
    pub(super) pairs: Vec<[&'a FinishedRun; 2]>,
    /// Arm minus baseline.
    pub(super) differences: Vec<f64>,
    /// Whether all losses are those of the runs' last models.
    pub(super) is_of_last_models: bool,
}

impl<'a> Judged<'a> {
    /// `None` if a pair has no x in common on this axis and split.
    pub(super) fn new(
        evidence: &Evidence<'_>,
        arm: usize,
        axis: Axis,
        pairs: &[Pair<'a>],
        split: JudgedSplit,
    ) -> Option<Self> {
        let mut judged = Self { split, pairs: Vec::new(), differences: Vec::new(), is_of_last_models: true };
        for [run, baseline] in pairs.iter().filter_map(Pair::both) {
            if !is_comparable(axis, [run, baseline]) {
                return None;
            }
            // On the test split and of questions runs have one loss each, their last.
            let curve = |arm, run| match split {
                JudgedSplit::Validation => evidence.best_curve(arm, run, axis),
                JudgedSplit::Test | JudgedSplit::Questions => evidence.curve_of_ends(split, arm, run, axis),
            };
            let (mine, theirs) = (curve(arm, run)?, curve(0, baseline)?);
            let rounding = evidence.rounding([run, baseline]);
            let [mine_loss, theirs_loss] = losses_at_equal_x(&mine, &theirs, rounding)?;
            judged.is_of_last_models &= [mine_loss, theirs_loss] == [mine.final_loss(), theirs.final_loss()];
            judged.differences.push(mine_loss - theirs_loss);
            judged.pairs.push([run, baseline]);
        }
        Some(judged)
    }
}

/// The difference of the last models over the documents of a split, or over questions, where all runs
/// have the same.
pub(super) fn over_documents(
    pairs: &[[&FinishedRun; 2]],
    split: JudgedSplit,
    confidence: f64,
) -> Option<DocumentDifference> {
    let mut weights_d: Option<Vec<u64>> = None;
    let mut difference_sd = Vec::new();
    for [run, baseline] in pairs {
        let (mine, theirs) = (run.parts_of(split)?, baseline.parts_of(split)?);
        for parts in [&mine, &theirs] {
            let weights: Vec<u64> = parts.iter().map(|part| part.weight).collect();
            if weights_d.get_or_insert_with(|| weights.clone()) != &weights {
                return None;
            }
        }
        difference_sd.push(mine.iter().zip(&theirs).map(|(mine, theirs)| mine.loss - theirs.loss).collect());
    }
    DocumentDifference::new(&difference_sd, &weights_d?, confidence)
}

/// Seconds of two machines are not seconds of two arms.
pub(super) fn is_comparable(axis: Axis, [run, baseline]: [&FinishedRun; 2]) -> bool {
    let are_calibrated = [run, baseline].iter().all(|run| run.calibrated_step_secs.is_some());
    axis != Axis::Seconds || are_calibrated || run.manifest.host.hostname == baseline.manifest.host.hostname
}

/// The final losses of two curves that end at the same x but for the share `rounding`, else the
/// losses at the largest x of both; `None` if they have none in common.
fn losses_at_equal_x(mine: &LossCurve, theirs: &LossCurve, rounding: f64) -> Option<[f64; 2]> {
    let (larger, smaller) = (mine.last_x().max(theirs.last_x()), mine.last_x().min(theirs.last_x()));
    if larger - smaller <= rounding * larger {
        return Some([mine.final_loss(), theirs.final_loss()]);
    }
    Some([mine.loss_at(smaller)?, theirs.loss_at(smaller)?])
}
