//! Bytes between the processes of one run, and nothing that knows of tensors.
//!
//! A [`Comm`] is one process's end of a group of *ranks*, numbered from 0. Every rank calls the same
//! collectives in the same order; each returns when this rank has what it asked for. One primitive
//! carries them all, an exchange of messages with several ranks at once: a transport of its own
//! implements it for a single process, for threads of one process (what tests use) and for MPI
//! (feature `mpi`). So every collective has one implementation, and [`Comm::traffic`] counts each
//! message and byte that a rank sends.
//!
//! Floats are never summed by the transport: [`Comm::ordered_sum`] adds what the ranks have by the
//! fixed binary tree of [`tree`], so that a sum has the same bits on any number of ranks.
//!
//! No rank waits for ever. Processes of MPI send each other signs of life, whatever they compute or
//! wait for, and one that falls silent ends the job ([`Comm::watch`]); ranks that live, but are in
//! different collectives, end it when the time for one is over ([`Comm::with_timeout`]).
//!
//! What a run on other machines would send and wait for can be told without them: [`cost`] gives the
//! messages and bytes of each collective, [`link`] what they take where it was measured.

mod collectives;
pub mod cost;
mod error;
#[cfg(feature = "mpi")]
mod heartbeat;
#[cfg(feature = "mpi")]
mod job;
pub mod link;
#[cfg(feature = "mpi")]
mod mpi;
mod plan;
mod single;
mod sums;
mod threads;
mod transport;
pub mod tree;
#[cfg(feature = "mpi")]
mod watch;

pub use collectives::Comm;
pub use error::CommError;
pub use sums::even_slices;
pub use transport::Traffic;
