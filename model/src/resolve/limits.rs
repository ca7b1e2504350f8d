//! Upper bounds on what a configuration may ask for. They lie far above any model that could be
//! trained, and low enough that parameter and FLOP counts stay within 64 bits.

pub(super) const MAX_LAYERS: usize = 1 << 10;
pub(super) const MAX_D_MODEL: usize = 1 << 16;
pub(super) const MAX_HEADS: usize = 1 << 12;
pub(super) const MAX_D_HEAD: usize = 1 << 12;
pub(super) const MAX_HIDDEN_WIDTH: usize = 1 << 18;
pub(super) const MAX_EXPERTS: usize = 1 << 14;
/// Most ids of a vocabulary.
pub const MAX_VOCAB_SIZE: usize = 1 << 24;
/// Most tokens of a sequence.
pub const MAX_SEQ_LEN: usize = 1 << 24;
