//! The numbers: how many faults of which kind in which scenario, and how they ended.

use std::collections::BTreeMap;
use std::fmt;

use crate::fault::{Fault, KINDS};
use crate::prepared::Prepared;
use crate::trial::Verdict;

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    places: usize,
    identical: usize,
    refused: usize,
    failed: usize,
}

impl Counts {
    fn tried(self) -> usize {
        self.identical + self.refused + self.failed
    }

    fn plus(self, other: Self) -> Self {
        Self {
            places: self.places + other.places,
            identical: self.identical + other.identical,
            refused: self.refused + other.refused,
            failed: self.failed + other.failed,
        }
    }
}

/// Counts by position of scenario and kind.
pub(crate) struct Tally {
    scenarios: Vec<&'static str>,
    calls: Vec<usize>,
    counts: BTreeMap<(usize, usize), Counts>,
}

impl Tally {
    pub(crate) fn new(prepared: &[Prepared]) -> Self {
        let mut counts = BTreeMap::new();
        for (scenario, prepared) in prepared.iter().enumerate() {
            for (kind, what) in KINDS.iter().enumerate() {
                let places = prepared.num_places(what);
                counts.insert((scenario, kind), Counts { places, ..Counts::default() });
            }
        }
        Self {
            scenarios: prepared.iter().map(|prepared| prepared.scenario.name).collect(),
            calls: prepared.iter().map(|prepared| prepared.calls.len()).collect(),
            counts,
        }
    }

    pub(crate) fn add(&mut self, fault: &Fault, verdict: &Verdict) {
        let kind = KINDS.iter().position(|kind| *kind == fault.kind).unwrap_or_default();
        let counts = self.counts.entry((fault.scenario, kind)).or_default();
        match verdict {
            Verdict::Identical => counts.identical += 1,
            Verdict::Refused => counts.refused += 1,
            Verdict::Failed(_) => counts.failed += 1,
        }
    }

    pub(crate) fn num_failed(&self) -> usize {
        self.counts.values().map(|counts| counts.failed).sum()
    }

    fn sum(&self, is_counted: impl Fn(&(usize, usize)) -> bool) -> Counts {
        let counted = self.counts.iter().filter(|(place, _)| is_counted(place));
        counted.fold(Counts::default(), |sum, (_, counts)| sum.plus(*counts))
    }
}

/// A row of the table.
struct Row<'a>(&'a str, usize, Counts);

impl fmt::Display for Row<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(name, places, counts) = self;
        let Counts { identical, refused, failed, .. } = counts;
        let tried = counts.tried();
        writeln!(formatter, "{name:<38}{places:>8}{tried:>8}{identical:>11}{refused:>9}{failed:>8}")
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = |first: &str, second: &str| {
            format!(
                "\n{first:<38}{second:>8}{:>8}{:>11}{:>9}{:>8}\n",
                "tried", "identical", "refused", "failed"
            )
        };
        formatter.write_str(&head("scenario and kind", "places"))?;
        for (scenario, name) in self.scenarios.iter().enumerate() {
            for (kind, what) in KINDS.iter().enumerate() {
                let counts = self.sum(|place| *place == (scenario, kind));
                if counts.tried() > 0 {
                    Row(&format!("{name} {}", what.name()), counts.places, counts).fmt(formatter)?;
                }
            }
        }
        formatter.write_str(&head("kind", "places"))?;
        for (kind, what) in KINDS.iter().enumerate() {
            let counts = self.sum(|place| place.1 == kind);
            Row(what.name(), counts.places, counts).fmt(formatter)?;
        }
        formatter.write_str(&head("scenario", "calls"))?;
        for (scenario, name) in self.scenarios.iter().enumerate() {
            Row(name, self.calls[scenario], self.sum(|place| place.0 == scenario)).fmt(formatter)?;
        }
        Row("all", self.calls.iter().sum(), self.sum(|_| true)).fmt(formatter)
    }
}
