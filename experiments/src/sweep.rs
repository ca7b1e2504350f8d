//! A sweep: many candidates for the values of some keys, of which successive halving stops the
//! hopeless ones early.
//!
//! | question | module |
//! |---|---|
//! | what the user wrote | [`mod@file`] |
//! | which candidates that makes | [`candidates`] |
//! | how long each is tried, and which go on | [`halving`] |
//! | what came out | [`candidate_result`], [`result`], told by [`words`] and [`table`] |
//!
//! A sweep chooses, a study ([`crate::study`]) judges: the loss of the best of many is lower than
//! what the same recipe gives on other seeds.

mod candidate_result;
mod candidates;
mod file;
mod halving;
mod result;
mod table;
mod words;

pub(crate) use candidate_result::RunOutcome;
pub(crate) use candidates::{Candidate, resolve_candidates};
pub(crate) use file::LoadedSweep;
pub(crate) use halving::{Rung, going_on, rungs, shorten_schedule};
pub(crate) use result::{RungOutcome, SweepProvenance, SweepResult};
