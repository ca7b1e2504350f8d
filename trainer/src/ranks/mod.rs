//! A run on several ranks, processes that each do a share of every step, with the bits of one.
//!
//! | question | module |
//! |---|---|
//! | what ranks tell each other | this one |
//! | which runs several ranks can do | `check` |
//! | what the first rank has the others do | `orders` |
//! | one step | `step`: who computes which micro-batches, and how gradients are added |
//! | an evaluation, each rank a share of it | `evaluate` |
//! | experts of which each rank has some | `experts` |
//! | a checkpoint of all | `moments` |
//! | what each rank would hold and send | `forecast` |

mod check;
mod evaluate;
mod experts;
mod forecast;
mod moments;
mod orders;
mod step;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytemuck::Pod;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use switchyard_comm::{Comm, CommError};
use switchyard_model::NonFinite;

use crate::TrainError;
use crate::config::DistributedConfig;
use crate::sharding::{Groups, Layout};

pub(crate) use check::check;
pub use forecast::{RankForecast, RanksForecast, TokenForecast};
pub(crate) use orders::{Begin, Beginning, EvaluatedSplit, Leader, Order, Readiness};

/// The ranks of a run, and which of them this process is.
#[derive(Debug, Clone)]
pub(crate) struct Ranks {
    comm: Comm,
    groups: Groups,
    /// The ranks that the experts of each layer are spread over, this one among them.
    experts: Comm,
    /// Whether a rank was asked to stop; all are told so after each step.
    stop: Arc<AtomicBool>,
}

/// What became of a rank that cannot go on.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct RankFailure {
    message: String,
    non_finite: Option<NonFinite>,
    leaves_the_model_whole: bool,
    is_interruption: bool,
}

impl RankFailure {
    fn new(error: &TrainError) -> Self {
        Self {
            message: error.to_string(),
            non_finite: error.non_finite(),
            leaves_the_model_whole: error.leaves_the_model_whole(),
            is_interruption: matches!(error, TrainError::Interrupted),
        }
    }

    fn into_error(self, rank: usize) -> TrainError {
        let Self { message, non_finite, leaves_the_model_whole, is_interruption } = self;
        match is_interruption {
            true => TrainError::Interrupted,
            false => TrainError::OfRank { rank, message, non_finite, leaves_the_model_whole },
        }
    }
}

impl Ranks {
    /// The ranks of `comm`, each with all experts; `stop` is what asks this one to stop.
    pub(crate) fn new(comm: Comm, stop: Arc<AtomicBool>) -> Self {
        let groups = Groups { all: comm.clone(), replicas: comm.clone() };
        Self { comm, groups, experts: Comm::single(), stop }
    }

    /// The same ranks as a run's configuration has them. All ranks call it at once.
    ///
    /// # Errors
    /// [`TrainError::Comm`].
    pub(crate) fn of_run(&self, config: &DistributedConfig) -> Result<Self, TrainError> {
        if self.is_alone() {
            return Ok(self.clone());
        }
        self.comm.watch(Duration::from_secs(config.silence_secs));
        let comm = self.comm.clone().with_timeout(Duration::from_secs(config.timeout_secs));
        let (rank, group_len) = (comm.rank(), config.expert_parallel);
        let experts = comm.split((rank / group_len) as u64)?;
        let replicas = comm.split((rank % group_len) as u64)?;
        Ok(Self { groups: Groups { all: comm.clone(), replicas }, experts, comm, stop: self.stop.clone() })
    }

    fn layout(&self) -> Layout {
        let (num_ranks, group_len) = (self.number(), self.experts.size());
        Layout { num_ranks, group_len, rank: self.comm.rank() }
    }

    /// One process alone.
    pub(crate) fn alone() -> Self {
        Self::new(Comm::single(), Arc::default())
    }

    /// Ranks of the run.
    pub(crate) fn number(&self) -> usize {
        self.comm.size()
    }

    /// The flag that asks this rank to stop.
    pub(crate) fn stop_flag(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }

    /// Whether this process is the run's only one.
    pub(crate) fn is_alone(&self) -> bool {
        self.number() == 1
    }

    /// Of `count` things in order, such as the micro-batches of a step, those of this rank.
    pub(crate) fn share_of(&self, count: usize) -> Range<usize> {
        let border = |rank: usize| count * rank / self.number();
        border(self.comm.rank())..border(self.comm.rank() + 1)
    }

    /// What every rank has, by rank.
    ///
    /// # Errors
    /// [`CommError`].
    fn all_gather<T: Serialize + DeserializeOwned>(&self, value: &T) -> Result<Vec<T>, CommError> {
        let received = self.comm.all_gather(&to_bytes(value))?;
        Ok(received.iter().map(|bytes| from_bytes(bytes)).collect())
    }

    /// What every rank has, by rank, on the first; `None` on the others.
    ///
    /// # Errors
    /// [`CommError`].
    fn gather<T: Pod>(&self, own: &[T]) -> Result<Option<Vec<Vec<T>>>, CommError> {
        let mut parts: Vec<&[T]> = vec![&[]; self.number()];
        parts[0] = own;
        let received = self.comm.all_to_all(&parts)?;
        Ok((self.comm.rank() == 0).then_some(received))
    }

    /// What every rank has, by rank, if all have something; else why the first that has nothing does
    /// not. A rank that was asked to stop asks all.
    ///
    /// # Errors
    /// This rank's own error, else [`TrainError::OfRank`] of the lowest rank that has one;
    /// [`TrainError::Comm`].
    pub(crate) fn agree<T>(&self, own: Result<T, TrainError>) -> Result<Vec<T>, TrainError>
    where
        T: Serialize + DeserializeOwned,
    {
        self.agree_and_look(own).map(|(values, _)| values)
    }

    /// As [`Ranks::agree`], and whether any rank had been asked to stop by then: the same on each.
    ///
    /// # Errors
    /// As [`Ranks::agree`].
    pub(crate) fn agree_and_look<T>(&self, own: Result<T, TrainError>) -> Result<(Vec<T>, bool), TrainError>
    where
        T: Serialize + DeserializeOwned,
    {
        let stop = self.stop.load(Ordering::SeqCst);
        let (own, failed) = match own {
            Ok(value) => (Ok(value), None),
            Err(error) => (Err(RankFailure::new(&error)), Some(error)),
        };
        let of_ranks: Vec<(bool, Result<T, RankFailure>)> = self.all_gather(&(stop, own))?;
        let stops = of_ranks.iter().any(|(stop, _)| *stop);
        if stops {
            self.stop.store(true, Ordering::SeqCst);
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let value = |(rank, (_, found)): (usize, (bool, Result<T, RankFailure>))| {
            found.map_err(|failure| failure.into_error(rank))
        };
        let values = of_ranks.into_iter().enumerate().map(value).collect::<Result<_, _>>()?;
        Ok((values, stops))
    }

    /// `own`, if every rank has what it asked for.
    ///
    /// # Errors
    /// As [`Ranks::agree`].
    pub(crate) fn all_or_none<T>(&self, own: Result<T, TrainError>) -> Result<T, TrainError> {
        if self.is_alone() {
            return own;
        }
        let (own, told) = match own {
            Ok(own) => (Some(own), Ok(())),
            Err(error) => (None, Err(error)),
        };
        self.agree(told)?;
        Ok(own.unwrap_or_else(|| unreachable!("no rank has failed")))
    }
}

/// A value as ranks send it: CBOR, which keeps every float as it is.
fn to_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes)
        .unwrap_or_else(|error| unreachable!("a value that has no form: {error}"));
    bytes
}

/// The value that another rank has made these bytes of.
///
/// # Panics
/// If they are of another type: then the ranks run different programs, which they have been asked
/// about before.
fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> T {
    ciborium::from_reader(bytes).unwrap_or_else(|error| panic!("another rank sent something else: {error}"))
}
