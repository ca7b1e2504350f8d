//! Rules about one value of the configuration at a time, and how a breach of them reads.

use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::key_error::KeyError;

/// Ok if the value is in the range.
///
/// # Errors
/// Otherwise, naming the range.
pub fn in_range<T: PartialOrd + Display>(
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
///
/// # Errors
/// Otherwise, naming the range and what absence means.
pub fn optional_in_range<T: PartialOrd + Display>(
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
///
/// # Errors
/// If it is zero.
pub fn not_zero(key: &str, is_zero: bool, alternative: &str) -> Result<(), KeyError> {
    if is_zero {
        return Err(KeyError::new(key, "is 0", format!("use at least 1{alternative}")));
    }
    Ok(())
}

/// Ok if the value is a number above 0, also in f32, which is what the model computes in.
///
/// # Errors
/// Otherwise.
pub fn positive(key: &str, value: f64) -> Result<(), KeyError> {
    if (value as f32).is_normal() && value > 0.0 {
        return Ok(());
    }
    Err(KeyError::new(key, format!("is {value}"), "use a number above 0, between 1e-37 and 1e38"))
}

/// Ok if the value is a number and not below 0.
///
/// # Errors
/// Otherwise.
pub fn not_negative(key: &str, value: f64) -> Result<(), KeyError> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(KeyError::new(key, format!("is {value}"), "use 0 or a number above 0"))
}

/// Ok if the value lies in `0..1`.
///
/// # Errors
/// Otherwise.
pub fn below_one(key: &str, value: f64) -> Result<(), KeyError> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(KeyError::new(key, format!("is {value}"), "use 0, or a number above 0 and below 1"))
}
