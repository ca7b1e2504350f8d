//! The primitive that every collective is made of.

use std::iter::Sum;
use std::ops::Add;
use std::process;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::CommError;

/// A message to another rank of the world.
pub(crate) struct Outgoing<'a> {
    pub(crate) to: usize,
    pub(crate) bytes: &'a [u8],
}

/// Where a message of another rank goes, which has exactly as many bytes.
pub(crate) struct Incoming<'a> {
    pub(crate) from: usize,
    pub(crate) bytes: &'a mut [u8],
}

/// How messages go between the ranks of the world. Two messages from one rank to another arrive in
/// the order in which they were sent.
pub(crate) trait Transport: std::fmt::Debug + Send + Sync {
    fn rank(&self) -> usize;

    fn size(&self) -> usize;

    /// Sends and receives all of these, in no order among different ranks.
    ///
    /// # Errors
    /// [`CommError`], with messages lost: the job is to be ended.
    fn exchange(
        &self,
        sends: &[Outgoing<'_>],
        receives: Vec<Incoming<'_>>,
        call: Call,
    ) -> Result<(), CommError>;

    /// How long another rank may be silent before the job ends. Threads of one process do not fall
    /// silent one by one.
    fn watch(&self, _limit: Duration) {}

    /// Ends the process and all other ranks, with status 1; also while another thread is in
    /// [`Self::exchange`].
    fn end_job(&self) -> !;
}

/// Ends the process, in which all ranks are.
#[expect(clippy::exit, reason = "asked for, from wherever the caller is")]
pub(crate) fn end_process() -> ! {
    process::exit(1)
}

/// Which collective an exchange belongs to, and how long it may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) collective: &'static str,
    pub(crate) timeout: Duration,
}

/// What a rank has sent so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Messages, one for each call of a transport however it cuts them.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Traffic {
    /// What was sent after `earlier` of the same rank.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self { messages: self.messages - earlier.messages, bytes: self.bytes - earlier.bytes }
    }

    /// Messages of so many bytes each.
    pub(crate) fn of(message_lens: impl Iterator<Item = usize>) -> Self {
        message_lens.map(|len| Self { messages: 1, bytes: len as u64 }).sum()
    }
}

impl Add for Traffic {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { messages: self.messages + other.messages, bytes: self.bytes + other.bytes }
    }
}

impl Sum for Traffic {
    fn sum<I: Iterator<Item = Self>>(traffic: I) -> Self {
        traffic.fold(Self::default(), Add::add)
    }
}
