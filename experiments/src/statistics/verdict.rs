//! What few pairs of runs decide.

use serde::{Deserialize, Serialize};

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
}
