//! A stretch of one document.

/// Pairs of one document: `len` inputs from token `start` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) len: usize,
}
