//! What ends a collective.

use std::time::Duration;

/// Why a collective did not come to its end. No rank can go on: the job is to be ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommError {
    /// Others did not take part in time.
    #[error(
        "rank {rank} waited for {} in `{collective}` for {:.1} s: it is busy, or in another collective; raise \
         `distributed.timeout_secs` if it only is slow",
        list(.missing), .waited.as_secs_f64()
    )]
    Timeout {
        /// Who waited.
        rank: usize,
        /// What for.
        collective: &'static str,
        /// The ranks that it waited for.
        missing: Vec<usize>,
        /// How long.
        waited: Duration,
    },
    /// Another rank has ended.
    #[error("rank {rank} cannot finish `{collective}`: rank {gone} has ended")]
    Gone {
        /// Who tells.
        rank: usize,
        /// What it was about.
        collective: &'static str,
        /// Who has ended.
        gone: usize,
    },
    /// Another rank called another collective, or with values of another length.
    #[error(
        "rank {rank} got {got} bytes from rank {from} in `{collective}` instead of {expected}: the ranks do not run the \
         same program with the same configuration"
    )]
    OutOfStep {
        /// Who tells.
        rank: usize,
        /// In what.
        collective: &'static str,
        /// Who sent it.
        from: usize,
        /// What came.
        got: usize,
        /// What was to come.
        expected: usize,
    },
    /// There is no MPI, or it cannot be used from threads.
    #[error("MPI cannot be used: {0}")]
    Unusable(String),
}

fn list(ranks: &[usize]) -> String {
    let numbers: Vec<String> = ranks.iter().map(usize::to_string).collect();
    format!("{} {}", if ranks.len() == 1 { "rank" } else { "ranks" }, numbers.join(", "))
}
