//! What can be concluded from the losses of few runs: intervals, verdicts, curves and the gauge.
//!
//! Pure: numbers to numbers and words. A loss is whatever a study is judged by, in its [`Measure`],
//! and lower is better, so a difference below zero means that the arm is ahead of its baseline. Every interval is
//! deterministic: the bootstrap draws from a fixed seed.

mod anytime;
mod bootstrap;
mod components;
#[cfg(test)]
mod coverage_tests;
mod curve;
mod documents;
mod gauge;
mod holm;
mod interval;
mod measure;
mod moments;
mod paired;
mod power;
mod ratio;
mod sentence;
mod signed_rank;
#[cfg(test)]
mod simulated;
mod verdict;

pub(crate) use components::SeedComponents;
pub(crate) use curve::LossCurve;
pub(crate) use documents::DocumentDifference;
pub(crate) use gauge::{Crossing, CrossingInterval, Gauge, GaugePoint, GaugeSample};
pub(crate) use holm::{Adjusted, holm};
pub(crate) use interval::Interval;
pub(crate) use measure::Measure;
pub(crate) use moments::standard_deviation_of;
pub(crate) use paired::PairedDifference;
pub(crate) use power::smallest_found;
pub(crate) use ratio::RatioEstimate;
pub(crate) use sentence::Asked;
pub(crate) use signed_rank::SignedRankInterval;
pub(crate) use verdict::{Stopping, Verdict};
