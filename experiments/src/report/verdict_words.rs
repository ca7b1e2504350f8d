//! The verdict in words and signs.

use crate::statistics::Verdict;

pub(super) fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Wins => "wins",
        Verdict::Loses => "loses",
        Verdict::Undecided => "undecided",
    }
}

/// A sign whose shape tells the verdicts apart without colour.
pub(super) fn verdict_glyph(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Wins => "\u{2713}",
        Verdict::Loses => "\u{2717}",
        Verdict::Undecided => "?",
    }
}
