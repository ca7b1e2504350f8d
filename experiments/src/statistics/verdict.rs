//! What few pairs of runs decide.

use serde::{Deserialize, Serialize};

/// When pairs stop being added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stopping {
    /// After a number that was chosen before: Student's interval decides.
    #[default]
    Planned,
    /// Pairs were added after a look, or not all are there yet: the interval of the confidence
    /// sequence decides, which holds whenever one looks.
    Open,
}

/// Whether an arm beats its baseline by more than a margin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// The arm's loss is lower, and the interval says so.
    Wins,
    /// The arm's loss is higher, and the interval says so.
    Loses,
    /// The interval leaves it open.
    Undecided,
    /// It is nearer to its margin than what the last bits of the arithmetic decide: the same study
    /// by another build could say otherwise.
    Fragile,
}

impl Verdict {
    /// In one word.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Wins => "wins",
            Self::Loses => "loses",
            Self::Undecided => "undecided",
            Self::Fragile => "fragile",
        }
    }

    /// Whether it says which arm is better.
    pub(crate) fn is_decided(self) -> bool {
        matches!(self, Self::Wins | Self::Loses)
    }
}
