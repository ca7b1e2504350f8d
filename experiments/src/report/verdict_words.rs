//! The verdict in signs.

use crate::statistics::Verdict;

/// A sign whose shape tells the verdicts apart without colour.
pub(super) fn verdict_glyph(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Wins => "\u{2713}",
        Verdict::Loses => "\u{2717}",
        Verdict::Undecided => "?",
        Verdict::Fragile => "\u{2248}",
    }
}
