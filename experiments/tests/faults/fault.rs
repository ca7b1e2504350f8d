//! The kinds of faults, and which fault the n-th of a series is.

use std::fmt;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::call_log::Class;
use crate::power_cut::Order;
use crate::prepared::Prepared;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// By the shim, under this name; a call of this class.
    Call(&'static str, Class),
    /// The power goes.
    PowerCut(Order),
}

use Kind::{Call, PowerCut};

pub(crate) const KINDS: [Kind; 11] = [
    Call("kill-before", Class::Kill),
    Call("kill-halfway", Class::Tear),
    Call("kill-after", Class::Kill),
    Call("disk-full", Class::Fill),
    Call("disk-full-once", Class::Fill),
    Call("io-error-once", Class::Fail),
    Call("no-descriptor-once", Class::Crowd),
    Call("interrupted-once", Class::Interrupt),
    Call("short-write", Class::Tear),
    PowerCut(Order::Journal),
    PowerCut(Order::Any),
];

impl Kind {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Call(name, _) => name,
            PowerCut(Order::Journal) => "power-cut-journal",
            PowerCut(Order::Any) => "power-cut-any",
        }
    }

    /// The calls to which it can happen; `None` for a cut of the power.
    pub(crate) fn class(&self) -> Option<Class> {
        match self {
            Call(_, class) => Some(*class),
            PowerCut(_) => None,
        }
    }

    /// What the system says is wrong, for a fault that a process survives.
    pub(crate) fn reason(&self) -> Option<&'static str> {
        match self.name() {
            "disk-full" | "disk-full-once" => Some("No space left on device"),
            "io-error-once" => Some("Input/output error"),
            "no-descriptor-once" => Some("Too many open files"),
            "interrupted-once" => Some("Interrupted system call"),
            _ => None,
        }
    }

    pub(crate) fn kills(&self) -> bool {
        self.name().starts_with("kill-")
    }
}

/// One fault of one scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Position among the scenarios.
    pub(crate) scenario: usize,
    pub(crate) kind: Kind,
    /// From 1.
    pub(crate) place: usize,
    /// Of what a power cut leaves.
    pub(crate) seed: u64,
}

impl Fault {
    /// The fault `index` of a series: every scenario with every kind equally often, at any place.
    pub(crate) fn drawn(prepared: &[Prepared], series: u64, index: u64) -> Self {
        let mut dice = ChaCha8Rng::seed_from_u64(series);
        dice.set_stream(index);
        loop {
            let scenario = dice.random_range(0..prepared.len());
            let kind = KINDS[dice.random_range(0..KINDS.len())];
            if let Some(fault) = Self::somewhere(prepared, scenario, kind, &mut dice) {
                return fault;
            }
        }
    }

    /// One fault of the scenario, the kinds in turn with `index`; `None` if there is no place for
    /// the kind.
    pub(crate) fn in_turn(prepared: &[Prepared], index: usize) -> Option<Self> {
        let scenario = index % prepared.len();
        let kind = KINDS[(index / prepared.len() * 3 + scenario) % KINDS.len()];
        Self::somewhere(prepared, scenario, kind, &mut ChaCha8Rng::seed_from_u64(index as u64))
    }

    fn somewhere(prepared: &[Prepared], scenario: usize, kind: Kind, dice: &mut ChaCha8Rng) -> Option<Self> {
        let num_places = prepared[scenario].num_places(&kind);
        (num_places > 0).then(|| Self {
            scenario,
            kind,
            place: dice.random_range(1..=num_places),
            seed: dice.random_range(0..1 << 32),
        })
    }

    /// The fault that `words` name: scenario, kind, place and seed, as [`Named`] prints them.
    pub(crate) fn named(prepared: &[Prepared], words: &str) -> Self {
        let words: Vec<&str> = words.split_whitespace().collect();
        let [scenario, kind, place, seed] = words[..] else { panic!("write SCENARIO KIND PLACE SEED") };
        let position = prepared.iter().position(|prepared| prepared.scenario.name == scenario);
        let kind = KINDS.into_iter().find(|known| known.name() == kind);
        Self {
            scenario: position.unwrap_or_else(|| panic!("no scenario is called {scenario}")),
            kind: kind.expect("a kind of fault"),
            place: place.parse().expect("a place, from 1"),
            seed: seed.parse().expect("a seed"),
        }
    }
}

/// A fault with the name of its scenario.
pub(crate) struct Named<'a>(pub(crate) &'a Fault, pub(crate) &'a Prepared);

impl fmt::Display for Named<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { kind, place, seed, .. } = self.0;
        write!(formatter, "{} {} {place} {seed}", self.1.scenario.name, kind.name())
    }
}
