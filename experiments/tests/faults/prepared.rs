//! A scenario, made ready for any number of faults: how its folder begins, every call of the
//! unbroken command, and what that command leaves.

use std::fs;
use std::path::Path;

use crate::call_log::{self, Call, Operation};
use crate::fault::Kind;
use crate::power_cut::History;
use crate::program::{Program, Shim};
use crate::scenario::Scenario;
use crate::state::State;
use crate::tree::Tree;

pub(crate) struct Prepared {
    pub(crate) scenario: Scenario,
    /// The folder before the command.
    pub(crate) start: Tree,
    /// What the unbroken command leaves.
    pub(crate) end: State,
    pub(crate) calls: Vec<Call>,
    pub(crate) history: History,
}

impl Prepared {
    /// Runs the commands of `scenario` in a folder of its own in `place`.
    pub(crate) fn new(program: &Program, scenario: Scenario, place: &Path) -> Self {
        let desk = place.join(scenario.name);
        fs::create_dir(&desk).unwrap();
        for (name, text) in &scenario.files {
            let path = desk.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        for command in scenario.before {
            must_succeed(program, &desk, command, &Shim::Idle);
        }
        let start = Tree::read(&desk);
        let log = desk.with_extension("log");
        must_succeed(program, &desk, scenario.command, &Shim::Log(&log));
        let calls = call_log::read(&log);
        let history = History::new(&start, &calls);
        let (modelled, real) = (history.end(), Tree::read(&desk));
        let difference = modelled.first_difference(&real);
        assert_eq!(difference, None, "{}: the shim missed a call that changes this file", scenario.name);
        Self { end: State::of(&desk), scenario, start, calls, history }
    }

    /// Places at which a fault of this kind can happen.
    pub(crate) fn num_places(&self, kind: &Kind) -> usize {
        match kind.class() {
            Some(class) => self.calls.iter().filter(|call| call.can(class)).count(),
            // Before each call that changes something, and after the last.
            None => match self.changing_calls().count() {
                0 => 0,
                changing => changing + 1,
            },
        }
    }

    /// Number of calls before a cut of the power at `place`, from 1.
    pub(crate) fn calls_before_cut(&self, place: usize) -> usize {
        self.changing_calls().nth(place - 1).unwrap_or(self.calls.len())
    }

    fn changing_calls(&self) -> impl Iterator<Item = usize> {
        let changes = |(_, call): &(usize, &Call)| call.operation != Operation::Nothing;
        self.calls.iter().enumerate().filter(changes).map(|(index, _)| index)
    }

    /// The newest checkpoint of which a cut before the call `cut` must leave everything: its folder
    /// got its name, and the folder around it was forced to the disk.
    pub(crate) fn promised_checkpoint(&self, cut: usize) -> Option<u64> {
        let (mut named, mut promised) = (None, None);
        let run = self.scenario.run?;
        let checkpoints = format!("{run}/checkpoints");
        for call in &self.calls[..cut] {
            match &call.operation {
                Operation::Rename { to } => {
                    let step = to.strip_prefix(&format!("{checkpoints}/step-"));
                    named = step.and_then(|step| step.parse().ok()).or(named);
                }
                Operation::Sync if call.path == checkpoints => promised = promised.max(named),
                _ => {}
            }
        }
        promised
    }
}

fn must_succeed(program: &Program, desk: &Path, command: &str, shim: &Shim<'_>) {
    let ended = program.run(desk, command, shim);
    assert!(ended.status.success(), "{command} without a fault: {}", ended.stderr);
}
