//! What can be concluded from the losses of few runs: intervals, verdicts, curves and the gauge.
//!
//! Pure: numbers to numbers and words. A loss is in nats per token and lower is better, so a
//! difference below zero means that the arm is ahead of its baseline. Every interval is
//! deterministic: the bootstrap draws from a fixed seed.

mod bootstrap;
mod curve;
mod gauge;
mod interval;
mod paired;
mod ratio;
mod sentence;
#[cfg(test)]
mod simulated;
mod verdict;

pub(crate) use curve::LossCurve;
pub(crate) use gauge::{Crossing, CrossingInterval, Gauge, GaugePoint, GaugeSample};
pub(crate) use interval::Interval;
pub(crate) use paired::PairedDifference;
pub(crate) use ratio::RatioEstimate;
pub(crate) use verdict::Verdict;
