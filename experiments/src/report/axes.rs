//! The x-axes of a comparison, in words and numbers.

use switchyard_ground::units::{duration, grouped, scaled};

use super::series::EvalPoint;
use crate::study::result::Axis;

/// Every axis, in the order of the report.
pub(super) const AXES: [Axis; 4] = [Axis::Steps, Axis::Tokens, Axis::ActiveFlops, Axis::Seconds];

/// What the axis counts.
pub(super) fn name(axis: Axis) -> &'static str {
    match axis {
        Axis::Steps => "optimizer steps",
        Axis::Tokens => "training tokens",
        Axis::ActiveFlops => "active training FLOPs",
        Axis::Seconds => "wall-clock seconds",
    }
}

/// The last part of the figure's file name.
pub(super) fn file_stem(axis: Axis) -> &'static str {
    match axis {
        Axis::Steps => "steps",
        Axis::Tokens => "tokens",
        Axis::ActiveFlops => "active-flops",
        Axis::Seconds => "seconds",
    }
}

/// What an evaluation had used of it.
pub(super) fn value(point: &EvalPoint, axis: Axis) -> f64 {
    match axis {
        Axis::Steps => point.step as f64,
        Axis::Tokens => point.tokens as f64,
        Axis::ActiveFlops => point.active_flops,
        Axis::Seconds => point.secs,
    }
}

/// An amount of it, with its unit.
pub(super) fn amount(axis: Axis, value: f64) -> String {
    match axis {
        Axis::Steps => grouped(value.round().max(0.0) as u64),
        Axis::Tokens => scaled(value, ""),
        Axis::ActiveFlops => scaled(value, "FLOP"),
        Axis::Seconds => duration(value),
    }
}
