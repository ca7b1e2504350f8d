//! Rules about one value at a time, and how a breach of them reads.

use std::fmt::Display;
use std::ops::RangeInclusive;

use switchyard_ground::key_error::KeyError;

// Upper bounds on what a configuration may ask for. They lie far above any model that could be
// trained, and low enough that parameter and FLOP counts stay within 64 bits.
pub(super) const MAX_LAYERS: usize = 1 << 10;
pub(super) const MAX_D_MODEL: usize = 1 << 16;
pub(super) const MAX_HEADS: usize = 1 << 12;
pub(super) const MAX_D_HEAD: usize = 1 << 12;
pub(super) const MAX_HIDDEN_WIDTH: usize = 1 << 18;
pub(super) const MAX_EXPERTS: usize = 1 << 14;
pub(super) const MAX_VOCAB_SIZE: usize = 1 << 24;
pub(super) const MAX_SEQ_LEN: usize = 1 << 24;
pub(super) const MAX_BATCH_TOKENS: usize = 1 << 30;
pub(super) const MAX_STEPS: u64 = 1_000_000_000;
pub(crate) const MAX_THREADS: usize = 4096;

/// Ok if the value is in the range.
pub(super) fn in_range<T: PartialOrd + Display>(
    key: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<(), KeyError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(KeyError::new(key, format!("is {value}"), format!("use {}..={}", range.start(), range.end())))
}

/// As [`in_range`], for a key that may be absent; `absence` says what its absence means.
pub(super) fn optional_in_range<T: PartialOrd + Display>(
    key: &str,
    value: Option<T>,
    range: RangeInclusive<T>,
    absence: &str,
) -> Result<(), KeyError> {
    match value {
        Some(value) if !range.contains(&value) => Err(KeyError::new(
            key,
            format!("is {value}"),
            format!("use {}..={}, or remove the key {absence}", range.start(), range.end()),
        )),
        _ => Ok(()),
    }
}

/// Ok if a number that has no upper bound is not zero; `alternative` follows "use at least 1".
pub(super) fn not_zero(key: &str, is_zero: bool, alternative: &str) -> Result<(), KeyError> {
    if is_zero {
        return Err(KeyError::new(key, "is 0", format!("use at least 1{alternative}")));
    }
    Ok(())
}

/// Ok if the value is a number above 0, also in f32, which is what the model computes in.
pub(super) fn positive(key: &str, value: f64) -> Result<(), KeyError> {
    if (value as f32).is_normal() && value > 0.0 {
        return Ok(());
    }
    Err(KeyError::new(key, format!("is {value}"), "use a number above 0, between 1e-37 and 1e38"))
}

/// Ok if the value is a number and not below 0.
pub(super) fn not_negative(key: &str, value: f64) -> Result<(), KeyError> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(KeyError::new(key, format!("is {value}"), "use 0 or a number above 0"))
}

/// Ok if the value lies in `0..1`.
pub(super) fn below_one(key: &str, value: f64) -> Result<(), KeyError> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(KeyError::new(key, format!("is {value}"), "use 0, or a number above 0 and below 1"))
}
