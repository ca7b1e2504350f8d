//! Signs of life between processes, whatever their collectives and computations do.
//!
//! A thread of each process sends a byte to the next rank of the ring of all ranks, again and
//! again, and looks for those of the rank before it. The job ends if none has come for the limit.
//!
//! Ranks leave together, for nobody could watch one that waits in `MPI_Finalize`: a rank that has
//! done its part goes on with the signs until all have done theirs, and only then do they stop.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mpi::collective::CommunicatorCollectives as _;
use mpi::point_to_point::{Destination as _, Source as _};
use mpi::request::Request;
use mpi::topology::{Communicator as _, SimpleCommunicator};

use switchyard_ground::say;

use crate::CommError;
use crate::job::{Job, Waits};
use crate::watch::Watch;

/// The messages of collectives.
pub(crate) const DATA_TAG: i32 = 0;
const BEAT_TAG: i32 = 1;
/// A beat goes out at the first look after the one before was taken: some twice a second.
const LOOK: Duration = Duration::from_millis(250);
/// Ranks that leave are to be gone at once when the last has come.
const LOOK_WHEN_LEAVING: Duration = Duration::from_millis(1);
/// The limit unless [`Comm::watch`](crate::Comm::watch) sets another.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);
/// Two beats and the looks for them, with room for a thread that gets no time for a while.
const LEAST_LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Heartbeat {
    orders: Arc<Orders>,
    thread: JoinHandle<()>,
}

/// What the thread is to know.
#[derive(Debug)]
struct Orders {
    limit_millis: AtomicU64,
    leaves: AtomicBool,
}

impl Heartbeat {
    /// # Errors
    /// [`CommError::Unusable`] without a thread.
    pub(crate) fn start(job: &Arc<Job>) -> Result<Self, CommError> {
        let orders = Orders { limit_millis: millis(LIMIT).into(), leaves: false.into() };
        let orders = Arc::new(orders);
        let (job, of_thread) = (Arc::clone(job), Arc::clone(&orders));
        let thread = thread::Builder::new()
            .name("heartbeat".to_owned())
            .spawn(move || beat_and_watch(&job, &of_thread))
            .map_err(|error| CommError::Unusable(format!("no thread for its heartbeat: {error}")))?;
        Ok(Self { orders, thread })
    }

    pub(crate) fn set_limit(&self, limit: Duration) {
        self.orders.limit_millis.store(millis(limit.max(LEAST_LIMIT)), Ordering::Relaxed);
    }

    /// Returns when all ranks have come here.
    pub(crate) fn leave(self) {
        self.orders.leaves.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        // A panic of the thread has been told by the hook of panics.
        let _ = self.thread.join();
    }
}

impl Orders {
    fn limit(&self) -> Duration {
        Duration::from_millis(self.limit_millis.load(Ordering::Relaxed))
    }
}

fn millis(limit: Duration) -> u64 {
    u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
}

/// How far a rank is on its way out. Each barrier is one that other calls of MPI go on beside.
enum Stage {
    /// It works.
    In,
    /// It waits until all ranks have done their parts.
    Leaving(Request<'static, ()>),
    /// It sends no more, and waits until its last beat was taken.
    Quiet { since: Instant },
    /// It waits until no rank has a beat under way.
    Out { since: Instant, barrier: Request<'static, ()> },
}

fn beat_and_watch(job: &Job, orders: &Orders) {
    let world = SimpleCommunicator::world();
    let [before, after] = [job.rank + job.size - 1, job.rank + 1].map(|rank| (rank % job.size) as i32);
    let mut watch = Watch::new(Instant::now());
    let mut stage = Stage::In;
    mpi::request::scope(|scope| {
        let mut beat: Option<Request<'_, u8, _>> = None;
        loop {
            let turn = job.turn();
            let heard = take_beats(&world, before);
            beat = beat.and_then(|beat| beat.test().err());
            if matches!(stage, Stage::In | Stage::Leaving(_)) {
                if let Some(silent) = watch.look(Instant::now(), heard, orders.limit()) {
                    end_for_silence(job, turn, before, silent);
                }
                // One at a time: a rank that takes none has one to take when it goes on.
                beat.get_or_insert_with(|| {
                    let next = world.process_at_rank(after);
                    next.immediate_synchronous_send_with_tag(scope, &1_u8, BEAT_TAG)
                });
            }
            let leaves = orders.leaves.load(Ordering::Relaxed);
            let Some(next) = stage.next(&world, leaves, beat.is_some()) else { return };
            stage = next;
            if let Some(problem) = stage.problem(&world, orders.limit()) {
                say!("rank {}: {problem}", job.rank);
                Job::end_in(turn);
            }
            drop(turn);
            if leaves { thread::sleep(LOOK_WHEN_LEAVING) } else { thread::park_timeout(LOOK) }
        }
    });
}

/// Whether any had come.
fn take_beats(world: &SimpleCommunicator, before: i32) -> bool {
    let before = world.process_at_rank(before);
    let mut heard = false;
    while before.immediate_probe_with_tag(BEAT_TAG).is_some() {
        before.receive_with_tag::<u8>(BEAT_TAG);
        heard = true;
    }
    heard
}

fn end_for_silence(job: &Job, turn: MutexGuard<'_, Waits>, before: i32, silent: Duration) -> ! {
    let waits = turn.map_or_else(String::new, |collective| format!(", while `{collective}` waits"));
    say!(
        "rank {}: rank {before} has not been heard of for {:.1} s{waits}: its process was stopped, or its machine \
         or network is gone",
        job.rank,
        silent.as_secs_f64()
    );
    Job::end_in(turn)
}

impl Stage {
    /// The stage after this one if it has come to its end; `None` after the last.
    fn next(self, world: &SimpleCommunicator, leaves: bool, has_beat_under_way: bool) -> Option<Self> {
        Some(match self {
            Self::In if leaves => Self::Leaving(world.immediate_barrier()),
            Self::In => Self::In,
            Self::Leaving(barrier) => match barrier.test() {
                Ok(_) => Self::Quiet { since: Instant::now() },
                Err(barrier) => Self::Leaving(barrier),
            },
            Self::Quiet { since } if has_beat_under_way => Self::Quiet { since },
            Self::Quiet { since } => Self::Out { since, barrier: world.immediate_barrier() },
            Self::Out { since, barrier } => Self::Out { since, barrier: barrier.test().err()? },
        })
    }

    /// Why the rank waits in this stage for what does not come.
    fn problem(&self, world: &SimpleCommunicator, limit: Duration) -> Option<String> {
        match self {
            Self::In => None,
            // It has received all that it ever wanted.
            Self::Leaving(_) => {
                let message = world.any_process().immediate_probe_with_tag(DATA_TAG)?;
                let other = message.source_rank();
                Some(format!("it has done its part, but rank {other} is in a collective that waits for it"))
            }
            Self::Quiet { since } | Self::Out { since, .. } => (since.elapsed() > limit).then(|| {
                let waited = since.elapsed().as_secs_f64();
                format!("all ranks have done their parts, but one has not come to its end for {waited:.1} s")
            }),
        }
    }
}
