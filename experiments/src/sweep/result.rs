//! What a sweep found: the content of `sweep.json` and `sweep.csv`.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use super::candidate_result::{CandidateResult, RunOutcome, RungResult};
use super::candidates::{Source, Written};
use super::file::SweepFile;
use super::halving::{Rung, ranked};
use super::words::{arguments, early_stopping, edge_notes, general_notes, headline, stop_reason};
use crate::failure::Failure;

/// A finished sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SweepResult {
    /// Name of the sweep.
    pub(crate) sweep: String,
    /// Which candidate is best, in one sentence.
    pub(crate) headline: String,
    /// `candidate` of the best; `None` if every one diverged.
    pub(crate) best: Option<String>,
    /// Arguments that make the base recipe the best candidate: `--set`, `key=value`, and so on.
    pub(crate) best_arguments: Vec<String>,
    /// How early stopping works and what it hides; `None` if every candidate ran at full length.
    pub(crate) early_stopping: Option<String>,
    /// The candidates, the best first: those that came further before those that came less far,
    /// those that diverged last.
    pub(crate) candidates: Vec<CandidateResult>,
    /// What a reader must know before believing the numbers.
    pub(crate) notes: Vec<String>,
    /// Where the numbers come from.
    pub(crate) provenance: SweepProvenance,
}

/// What happened in one round.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RungOutcome {
    /// As planned.
    pub(crate) rung: Rung,
    /// Positions of the candidates that took part, and the runs of each.
    pub(crate) members: Vec<(usize, Vec<RunOutcome>)>,
}

/// Where the numbers come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SweepProvenance {
    /// The command that repeats the sweep.
    pub(crate) command: String,
    /// SHA-256 of the sweep file, in hexadecimal.
    pub(crate) sweep_sha256: String,
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
    /// Seconds of training of all finished runs.
    pub(crate) total_train_secs: f64,
}

impl RungOutcome {
    /// Mean final loss of each member over the seeds; `None` if a run has none.
    pub(crate) fn mean_losses_nats(&self) -> Vec<Option<f64>> {
        self.members.iter().map(|(_, runs)| mean_loss(runs)).collect()
    }

    /// The member `candidate` in this round; `None` if it took no part.
    fn result_of(&self, candidate: usize) -> Option<RungResult> {
        let position = self.members.iter().position(|(member, _)| *member == candidate)?;
        let losses = self.mean_losses_nats();
        let rank = 1 + ranked(&losses).into_iter().position(|other| other == position)?;
        Some(RungResult {
            num_steps: self.rung.num_steps,
            mean_loss_nats: losses[position],
            rank,
            num_candidates: self.members.len(),
            runs: self.members[position].1.clone(),
        })
    }
}

fn mean_loss(runs: &[RunOutcome]) -> Option<f64> {
    let losses: Option<Vec<f64>> = runs.iter().map(|run| run.final_loss_nats).collect();
    losses.filter(|losses| !losses.is_empty()).map(|losses| losses.iter().sum::<f64>() / losses.len() as f64)
}

impl SweepResult {
    /// The result of `sweep` from its rounds; `candidates` are the names and what was written of
    /// each.
    pub(crate) fn new(
        sweep: &SweepFile,
        candidates: &[(&str, &Written)],
        rungs: &[RungOutcome],
        provenance: SweepProvenance,
    ) -> Self {
        let result_at = |position: usize| candidate_result(candidates[position], position, sweep, rungs);
        let mut results: Vec<CandidateResult> = (0..candidates.len()).map(result_at).collect();
        results.sort_by_key(|result| {
            let last = result.rungs.last();
            (result.has_diverged(), Reverse(last.map(|rung| rung.num_steps)), last.map(|rung| rung.rank))
        });
        let best = results.first().filter(|first| first.final_loss(sweep.num_steps).is_some());
        let mut notes = general_notes(sweep, &results);
        notes.extend(best.iter().flat_map(|best| edge_notes(sweep, best)));
        Self {
            sweep: sweep.name.clone(),
            headline: headline(sweep, best, results.len()),
            best: best.map(|best| best.candidate.clone()),
            best_arguments: best.map(|best| arguments(sweep, best)).unwrap_or_default(),
            early_stopping: early_stopping(sweep, &results),
            notes,
            provenance,
            candidates: results,
        }
    }

    /// The runs as CSV, a row each; see the header line.
    ///
    /// # Errors
    /// None that a file's content could cause.
    pub(crate) fn to_csv(&self) -> Result<String, Failure> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        for candidate in &self.candidates {
            for rung in &candidate.rungs {
                for run in &rung.runs {
                    writer
                        .serialize(row(candidate, rung, run))
                        .map_err(|error| Failure::Fault(error.into()))?;
                }
            }
        }
        let bytes =
            writer.into_inner().map_err(|error| Failure::Fault(anyhow::Error::msg(error.to_string())))?;
        String::from_utf8(bytes).map_err(|error| Failure::Fault(error.into()))
    }
}

/// A run in `sweep.csv`.
#[derive(Debug, Serialize)]
struct Row<'a> {
    candidate: &'a str,
    label: Option<&'a str>,
    source: Source,
    overrides: String,
    num_steps: u64,
    seed: u64,
    final_loss_nats: Option<f64>,
    diverged: Option<&'a str>,
    mean_loss_nats: Option<f64>,
    rank: usize,
    num_candidates: usize,
    stopped: Option<&'a str>,
    run: &'a str,
}

fn row<'a>(candidate: &'a CandidateResult, rung: &RungResult, run: &'a RunOutcome) -> Row<'a> {
    Row {
        candidate: &candidate.candidate,
        label: candidate.label.as_deref(),
        source: candidate.source,
        overrides: candidate.overrides.join(" "),
        num_steps: rung.num_steps,
        seed: run.seed,
        final_loss_nats: run.final_loss_nats,
        diverged: run.diverged.as_deref(),
        mean_loss_nats: rung.mean_loss_nats,
        rank: rung.rank,
        num_candidates: rung.num_candidates,
        stopped: candidate.stopped.as_deref(),
        run: &run.run,
    }
}

fn candidate_result(
    (name, written): (&str, &Written),
    position: usize,
    sweep: &SweepFile,
    rungs: &[RungOutcome],
) -> CandidateResult {
    let Written { source, label, overrides } = written.clone();
    let results: Vec<RungResult> = rungs.iter().filter_map(|rung| rung.result_of(position)).collect();
    let went_on = rungs.get(results.len()).map_or(0, |next| next.members.len());
    let stopped = results.last().and_then(|last| stop_reason(last, went_on, sweep.num_steps));
    CandidateResult { candidate: name.into(), label, source, overrides, rungs: results, stopped }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sweep::file::tests::SWEEP;

    fn run(loss: Option<f64>) -> RunOutcome {
        let diverged = loss.is_none().then(|| "step 3: the loss is NaN".to_string());
        RunOutcome { seed: 0, run: "runs/r".into(), final_loss_nats: loss, diverged }
    }

    fn round(num_steps: u64, losses: &[(usize, Option<f64>)]) -> RungOutcome {
        let members = losses.iter().map(|&(candidate, loss)| (candidate, vec![run(loss)])).collect();
        RungOutcome { rung: Rung { num_steps, num_candidates: losses.len() }, members }
    }

    fn provenance() -> SweepProvenance {
        SweepProvenance {
            command: "switchyard sweep rates.toml".into(),
            sweep_sha256: "aa".into(),
            base_sha256: "bb".into(),
            version: "0".into(),
            commit: None,
            cargo_lock_sha256: "cc".into(),
            machines: Vec::new(),
            total_train_secs: 1.0,
        }
    }

    /// Four candidates of a grid, of which the last diverges and the second wins.
    pub(crate) fn planted() -> SweepResult {
        let sweep: SweepFile = toml::from_str(SWEEP).unwrap();
        let rates = ["0.01", "0.001", "0.003", "1.0"];
        let written = rates.map(|rate| Written {
            source: Source::Grid,
            label: None,
            overrides: vec![format!("train.adamw.learning_rate={rate}")],
        });
        let names = ["c0", "c1", "c2", "c3"];
        let candidates: Vec<(&str, &Written)> = names.into_iter().zip(&written).collect();
        let first = round(20, &[(0, Some(4.0)), (1, Some(3.5)), (2, Some(3.0)), (3, None)]);
        let second = round(200, &[(1, Some(2.0)), (2, Some(2.5))]);
        SweepResult::new(&sweep, &candidates, &[first, second], provenance())
    }

    #[test]
    fn the_candidate_with_the_lowest_loss_at_full_length_is_the_best() {
        let result = planted();
        assert_eq!(result.best.as_deref(), Some("c1"));
        let order: Vec<&str> =
            result.candidates.iter().map(|candidate| candidate.candidate.as_str()).collect();
        assert_eq!(order, ["c1", "c2", "c0", "c3"]);
        assert_eq!(
            result.best_arguments,
            ["--set", "train.adamw.learning_rate=0.001", "--set", "train.num_steps=200"]
        );
    }

    #[test]
    fn where_and_why_each_stopped_is_told() {
        let stopped: Vec<Option<String>> =
            planted().candidates.into_iter().map(|candidate| candidate.stopped).collect();
        assert_eq!(stopped[..2], [None, None]);
        assert_eq!(stopped[2].as_deref(), Some("stopped after 20 steps: 3rd of 4, the best 2 went on"));
        assert_eq!(
            stopped[3].as_deref(),
            Some("stopped at 20 steps: diverged with seed 0: step 3: the loss is NaN")
        );
        assert!(planted().early_stopping.unwrap().contains("stopped 1 of 4 candidates before 200 steps"));
    }

    #[test]
    fn a_best_value_at_the_edge_of_what_was_tried_is_noted() {
        let note = "the best `train.adamw.learning_rate`, 0.001, is the smallest tried: extend the range";
        assert!(planted().notes.iter().any(|text| text == note), "{:?}", planted().notes);
    }

    #[test]
    fn a_sweep_of_which_all_diverged_has_no_best() {
        let sweep: SweepFile = toml::from_str(SWEEP).unwrap();
        let written = Written { source: Source::List, label: None, overrides: Vec::new() };
        let result = SweepResult::new(&sweep, &[("c0", &written)], &[round(200, &[(0, None)])], provenance());
        assert_eq!((result.best, result.best_arguments.len()), (None, 0));
        assert!(result.headline.starts_with("None of 1 candidates has a loss"), "{}", result.headline);
    }

    #[test]
    fn a_candidate_without_one_of_its_losses_has_no_mean() {
        assert_eq!(mean_loss(&[run(Some(2.0)), run(Some(3.0))]), Some(2.5));
        assert_eq!(mean_loss(&[run(Some(2.0)), run(None)]), None);
        assert_eq!(mean_loss(&[]), None);
    }

    #[test]
    fn the_csv_has_a_row_for_every_run() {
        let csv = planted().to_csv().unwrap();
        assert_eq!(csv.lines().count(), 1 + 4 + 2);
        assert!(csv.starts_with("candidate,label,source,overrides,num_steps,seed,final_loss_nats,"));
        let winner = csv.lines().nth(2).unwrap();
        assert_eq!(winner, "c1,,grid,train.adamw.learning_rate=0.001,200,0,2.0,,2.0,1,2,,runs/r");
    }
}
