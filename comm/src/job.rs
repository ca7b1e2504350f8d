//! One process's part in a job of MPI: calls of MPI one at a time, and the end of all processes.

use std::process;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use mpi::topology::{Communicator as _, SimpleCommunicator};

use switchyard_ground::say;

/// How long the end of a job may take: the launcher has to be reached, and the network may be gone.
const END: Duration = Duration::from_secs(3);
/// How long the thread that ends the job waits for another that calls MPI.
const LAST_TURN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) rank: usize,
    pub(crate) size: usize,
    /// Held by the thread that calls MPI, and never while it waits for another rank.
    calls: Mutex<Waits>,
}

/// The collective in which this rank waits for others; `None` outside of one.
pub(crate) type Waits = Option<&'static str>;

impl Job {
    /// The job that this process is in; MPI has been started.
    pub(crate) fn join() -> Self {
        let world = SimpleCommunicator::world();
        Self { rank: world.rank() as usize, size: world.size() as usize, calls: Mutex::new(None) }
    }

    /// Returns when no other thread calls MPI.
    pub(crate) fn turn(&self) -> MutexGuard<'_, Waits> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all processes, with status 1; from any thread, whatever the others do.
    pub(crate) fn end(&self) -> ! {
        let begun = Instant::now();
        loop {
            match self.calls.try_lock() {
                Ok(turn) => Self::end_in(turn),
                Err(TryLockError::Poisoned(turn)) => Self::end_in(turn.into_inner()),
                // A thread that panics in its own turn comes here too. Two calls of MPI at once are
                // against its rules, but one of them ends everything.
                Err(TryLockError::WouldBlock) if begun.elapsed() > LAST_TURN => end_all(),
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// As [`Self::end`], from the thread whose turn it is.
    pub(crate) fn end_in(_turn: MutexGuard<'_, Waits>) -> ! {
        end_all()
    }
}

fn end_all() -> ! {
    within(END, "", || SimpleCommunicator::world().abort(1))
}

/// What `work` returns. If it takes longer than `limit`, the process says `otherwise`, unless that
/// is empty, and ends by a signal, whatever its threads wait for; a launcher ends the others then.
pub(crate) fn within<T>(limit: Duration, otherwise: &str, work: impl FnOnce() -> T) -> T {
    let (done, is_done) = mpsc::channel::<()>();
    let otherwise = otherwise.to_owned();
    let end_late = move || {
        if is_done.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            if !otherwise.is_empty() {
                say!("{otherwise}");
            }
            process::abort();
        }
    };
    // Without a thread the work goes on unwatched.
    let _watching = thread::Builder::new().spawn(end_late);
    let result = work();
    drop(done);
    result
}
