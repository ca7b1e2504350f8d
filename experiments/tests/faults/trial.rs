//! One fault: what it leaves, what the program says, and whether the work goes on as if nothing had
//! happened.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use crate::fault::{Fault, Kind};
use crate::prepared::Prepared;
use crate::program::{Ended, Program, Shim};
use crate::scenario::When;
use crate::state::{State, checkpoint_steps, damage_of_checkpoint};

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As the unbroken command.
    Identical,
    /// The command, or the one after it, said what was wrong; what the message advised ended as the
    /// unbroken command.
    Refused,
    /// Anything else, in words.
    Failed(String),
}

const SIGKILL: i32 = 9;

/// Lets `fault` happen in the folder `desk`, which must not exist, and goes on as a person would.
pub(crate) fn try_fault(program: &Program, prepared: &Prepared, fault: &Fault, desk: &Path) -> Verdict {
    let trial = Trial { program, prepared, fault, desk };
    match trial.verdict() {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::Failed(reason),
    }
}

struct Trial<'a> {
    program: &'a Program,
    prepared: &'a Prepared,
    fault: &'a Fault,
    desk: &'a Path,
}

impl Trial<'_> {
    fn verdict(&self) -> Result<Verdict, String> {
        let kind = self.fault.kind;
        let mut said = String::new();
        let mut refused = false;
        match kind {
            Kind::PowerCut(order) => {
                let cut = self.prepared.calls_before_cut(self.fault.place);
                self.prepared.history.after_cut(cut, order, self.fault.seed).write(self.desk);
                self.check_promised_checkpoint(cut)?;
            }
            Kind::Call(name, _) => {
                self.prepared.start.write(self.desk);
                let shim = Shim::Fault { kind: name, at: self.fault.place };
                let ended = self.program.run(self.desk, self.prepared.scenario.command, &shim);
                let at = ended.fired.clone().unwrap_or_else(|| "nothing".into());
                self.check_manners(&ended).map_err(|reason| format!("at {at}: {reason}"))?;
                self.check_checkpoints().map_err(|reason| format!("at {at}: {reason}"))?;
                if ended.status.success() {
                    let named = |reason| format!("at {at}, exit code 0: {reason}");
                    return self.compare(&ended.stderr).map_err(named);
                }
                refused = !kind.kills();
                said = ended.stderr;
                if refused {
                    self.check_reason(&said, &at).map_err(|reason| format!("at {at}: {reason}"))?;
                }
            }
        }
        self.go_on(said, refused)
    }

    /// Tries what a person would try, until a command succeeds.
    fn go_on(&self, mut said: String, mut refused: bool) -> Result<Verdict, String> {
        for attempt in &self.prepared.scenario.afterwards {
            let is_tried = match attempt.when {
                When::First => true,
                When::Advised(advice) => said.contains(advice),
                When::AdvisedAndNothingToLose(advice) => {
                    said.contains(advice) && self.newest_whole().is_none()
                }
            };
            if !is_tried {
                continue;
            }
            let ended = self.program.run(self.desk, attempt.command, &Shim::Idle);
            self.check_manners(&ended)?;
            if ended.status.success() {
                let named = |reason| format!("`{}`: {reason}", attempt.command);
                let verdict = self.compare(&ended.stderr).map_err(named)?;
                return Ok(if refused { Verdict::Refused } else { verdict });
            }
            (said, refused) = (ended.stderr, true);
        }
        Err(format!("no way on: {}", last_error(&said)))
    }

    /// No panic, and no end by a signal but ours.
    fn check_manners(&self, ended: &Ended) -> Result<(), String> {
        for phrase in ["a bug in switchyard", "panicked", "did not end in"] {
            if ended.stderr.contains(phrase) {
                return Err(last_error(&ended.stderr));
            }
        }
        match (ended.status.signal(), ended.fired.is_some() && self.fault.kind.kills()) {
            (Some(SIGKILL), true) | (None, false) => Ok(()),
            (Some(signal), _) => Err(format!("ended by signal {signal}")),
            (None, true) => Err("the shim did not kill it".into()),
        }
    }

    /// A fault of the system is named with its reason, and nothing else is blamed.
    fn check_reason(&self, said: &str, at: &str) -> Result<(), String> {
        let message = last_error(said);
        let reason = self.fault.kind.reason().unwrap_or("error: ");
        // `at` is the call and its path, of which the message may name a folder; that of the desk
        // itself is empty.
        let path = at.split_once(' ').map_or("", |(_, path)| path);
        let names_a_path = path.split('/').any(|part| message.contains(part));
        if !message.starts_with("error: ") || !message.contains(reason) || !names_a_path {
            return Err(format!("the message does not say what failed where and why: {message}"));
        }
        if ["damaged", "Remove the folder", "not a checkpoint"].iter().any(|blame| message.contains(blame)) {
            return Err(format!("what is whole is called damaged: {message}"));
        }
        Ok(())
    }

    /// Whatever fails in one process, every checkpoint that has its name is whole.
    fn check_checkpoints(&self) -> Result<(), String> {
        let Some(run) = self.prepared.scenario.run else { return Ok(()) };
        let run = self.desk.join(run);
        checkpoint_steps(&run)
            .into_iter()
            .find_map(|step| damage_of_checkpoint(&run, step))
            .map_or(Ok(()), Err)
    }

    /// After a cut of the power the newest checkpoint is whole, and the one that was there for
    /// certain is not lost.
    fn check_promised_checkpoint(&self, cut: usize) -> Result<(), String> {
        let Some(run) = self.prepared.scenario.run else { return Ok(()) };
        let run = self.desk.join(run);
        let newest = checkpoint_steps(&run).pop();
        if let Some(damage) = newest.and_then(|step| damage_of_checkpoint(&run, step)) {
            return Err(format!("the newest checkpoint after the cut: {damage}"));
        }
        let promised = self.prepared.promised_checkpoint(cut);
        if newest < promised {
            return Err(format!(
                "the checkpoint of step {promised:?} was on the disk, and {newest:?} is the newest"
            ));
        }
        Ok(())
    }

    fn newest_whole(&self) -> Option<u64> {
        let run = self.desk.join(self.prepared.scenario.run?);
        let is_whole = |step: &u64| damage_of_checkpoint(&run, *step).is_none();
        checkpoint_steps(&run).into_iter().rev().find(is_whole)
    }

    /// A command that says it succeeded must have left what the unbroken one leaves.
    fn compare(&self, said: &str) -> Result<Verdict, String> {
        let state = State::of(self.desk);
        let Some(difference) = state.difference(&self.prepared.end) else { return Ok(Verdict::Identical) };
        // The text is the one thing that a finished run may lack, if it says so.
        let is_told = said.contains("no sample was written");
        if is_told && state.lacks_only(&self.prepared.end, "run/sample.txt") {
            return Ok(Verdict::Refused);
        }
        Err(difference)
    }
}

/// The last message in what a process said, on one line.
fn last_error(said: &str) -> String {
    let from = said.rfind("error: ").unwrap_or(0);
    said[from..].split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Removes what a trial left.
pub(crate) fn clear(desk: &Path) {
    drop(fs::remove_dir_all(desk));
}
