//! The runs of a study as an analysis asks for them: by arm, budget and seed.

use super::evidence::Evidence;
use super::matrix::Stage;
use super::outcome::FinishedRun;
use super::result::DivergedRun;

/// Runs of the arm and of the baseline with the same seed and budget; `None` stands for one that
/// diverged, which is worse than any that did not.
pub(super) struct Pair<'a> {
    pub(super) seed: u64,
    pub(super) baseline: Option<&'a FinishedRun>,
    pub(super) arm: Option<&'a FinishedRun>,
}

impl<'a> Pair<'a> {
    /// Both runs, unless one diverged.
    pub(super) fn both(&self) -> Option<[&'a FinishedRun; 2]> {
        Some([self.arm?, self.baseline?])
    }
}

impl Evidence<'_> {
    /// The finished runs for the result of an arm at its `budget`-th budget.
    pub(super) fn runs_at(&self, arm: usize, budget: usize) -> impl Iterator<Item = &FinishedRun> {
        let wanted = self.budget_steps[arm].get(budget).copied();
        self.main_runs(arm).filter(move |run| Some(run.result.num_steps) == wanted)
    }

    pub(super) fn main_runs(&self, arm: usize) -> impl Iterator<Item = &FinishedRun> {
        self.finished
            .iter()
            .filter(move |(stage, run)| *stage == Stage::Main && run.arm == arm)
            .map(|(_, run)| run)
    }

    pub(super) fn num_budgets(&self) -> usize {
        self.loaded.study.budget.num_steps.len()
    }

    /// Pairs of runs by seed, in the order of the study's seeds, those that are not over left out.
    pub(super) fn pairs(&self, arm: usize, budget: usize) -> Vec<Pair<'_>> {
        let seeds = self.loaded.study.seeds.iter();
        seeds
            .filter_map(|&seed| {
                let [arm, baseline] = [arm, 0].map(|arm| self.outcome(arm, budget, seed));
                Some(Pair { seed, baseline: baseline?, arm: arm? })
            })
            .collect()
    }

    /// The run of an arm at its `budget`-th budget if it has finished, `Some(None)` if it diverged.
    pub(super) fn outcome(&self, arm: usize, budget: usize, seed: u64) -> Option<Option<&FinishedRun>> {
        let finished = self.runs_at(arm, budget).find(|run| run.result.seed == seed);
        let num_steps = self.budget_steps[arm].get(budget).copied();
        let is_it = |(of, run): &&(usize, DivergedRun)| {
            *of == arm && run.seed == seed && Some(run.num_steps) == num_steps
        };
        match finished {
            Some(run) => Some(Some(run)),
            None => self.diverged.iter().find(is_it).map(|_| None),
        }
    }

    /// Runs of an arm that diverged, at any budget.
    pub(super) fn num_diverged(&self, arm: usize) -> usize {
        self.diverged.iter().filter(|(of, _)| *of == arm).count()
    }
}
