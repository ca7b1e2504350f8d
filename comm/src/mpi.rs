//! Ranks that are processes, started by `mpirun` or another launcher of MPI.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::datatype::Equivalence as _;
use mpi::environment::Universe;
use mpi::point_to_point::{Destination as _, Source as _};
use mpi::request::{Request, Scope};
use mpi::topology::{Communicator as _, SimpleCommunicator};

use switchyard_ground::say;

use crate::CommError;
use crate::heartbeat::{DATA_TAG, Heartbeat};
use crate::job::{Job, Waits, within};
use crate::transport::{Call, Incoming, Outgoing, Transport};

/// MPI counts elements in a C `int`: longer messages go in parts of this many bytes.
const LONGEST_MESSAGE: usize = 1 << 30;
/// Looks at open requests before the process sleeps between them.
const LOOKS_WITHOUT_SLEEP: u32 = 2000;
/// A message between processes takes microseconds; a sleep is not to be what it waits for.
const SLEEP: Duration = Duration::from_micros(20);

/// How long MPI may take to end once all ranks have come to their ends.
const FINALIZE: Duration = Duration::from_secs(30);

pub(crate) struct Mpi {
    job: Arc<Job>,
    /// [`LONGEST_MESSAGE`], or what a test asks for.
    longest_message: usize,
    /// Held by the thread that exchanges messages: those of two would mix.
    exchanges: Mutex<()>,
    /// `None` in a process alone.
    heartbeat: Option<Heartbeat>,
    /// Finalizes MPI when it goes.
    universe: Option<Universe>,
}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Mpi").field("job", &self.job).finish_non_exhaustive()
    }
}

impl Mpi {
    pub(crate) fn start() -> Result<Self, CommError> {
        // Any thread calls MPI, one at a time: more MPIs serve that than calls at once, and they
        // need no locks of their own for it.
        let unusable = |problem: &str| CommError::Unusable(problem.to_owned());
        let (universe, support) = mpi::initialize_with_threading(Threading::Serialized)
            .ok_or_else(|| unusable("it has been started in this process before"))?;
        if support < Threading::Serialized {
            return Err(unusable("it serves its first thread only; use an MPI built with thread support"));
        }
        let job = Arc::new(Job::join());
        let heartbeat = (job.size > 1).then(|| Heartbeat::start(&job)).transpose()?;
        let longest_message =
            std::env::var("SWITCHYARD_LONGEST_MESSAGE").ok().and_then(|len| len.parse().ok());
        Ok(Self {
            job,
            longest_message: longest_message.unwrap_or(LONGEST_MESSAGE),
            exchanges: Mutex::default(),
            heartbeat,
            universe: Some(universe),
        })
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        let Some(heartbeat) = self.heartbeat.take() else { return };
        if thread::panicking() {
            say!("rank {}: it panicked, and the others may wait for it", self.job.rank);
            self.job.end();
        }
        heartbeat.leave();
        let late =
            format!("rank {}: MPI does not end, though all ranks have done their parts", self.job.rank);
        within(FINALIZE, &late, || drop(self.universe.take()));
    }
}

impl Transport for Mpi {
    fn rank(&self) -> usize {
        self.job.rank
    }

    fn size(&self) -> usize {
        self.job.size
    }

    fn watch(&self, limit: Duration) {
        if let Some(heartbeat) = &self.heartbeat {
            heartbeat.set_limit(limit);
        }
    }

    fn exchange(
        &self,
        sends: &[Outgoing<'_>],
        receives: Vec<Incoming<'_>>,
        call: Call,
    ) -> Result<(), CommError> {
        let _alone = self.exchanges.lock().unwrap_or_else(PoisonError::into_inner);
        let world = SimpleCommunicator::world();
        let process = |rank: usize| world.process_at_rank(rank as i32);
        mpi::request::scope(|scope| {
            let mut turn = self.job.turn();
            *turn = Some(call.collective);
            let mut open: Vec<Open<'_, _>> = Vec::new();
            for Incoming { from, bytes } in receives {
                for part in parts_mut(bytes, self.longest_message) {
                    let len = part.len();
                    let request = process(from).immediate_receive_into_with_tag(scope, part, DATA_TAG);
                    open.push(Open { with: from, expected: Some(len), request });
                }
            }
            for &Outgoing { to, bytes } in sends {
                for part in parts(bytes, self.longest_message) {
                    let request = process(to).immediate_send_with_tag(scope, part, DATA_TAG);
                    open.push(Open { with: to, expected: None, request });
                }
            }
            drop(turn);
            self.complete(open, call);
        });
        Ok(())
    }

    fn end_job(&self) -> ! {
        self.job.end()
    }
}

/// A message on its way.
struct Open<'a, S: Scope<'a>> {
    /// The other rank.
    with: usize,
    /// Bytes that are to come; `None` for what is sent.
    expected: Option<usize>,
    request: Request<'a, [u8], S>,
}

impl Mpi {
    /// Waits until all messages are through. Buffers that a message may still write to cannot be
    /// given back, so what cannot be completed ends the job from here.
    fn complete<'a, S: Scope<'a>>(&self, mut open: Vec<Open<'a, S>>, call: Call) {
        let (rank, collective) = (self.job.rank, call.collective);
        let begun = Instant::now();
        let mut looks = 0;
        loop {
            let mut turn = self.job.turn();
            let mut still_open = Vec::with_capacity(open.len());
            for Open { with, expected, request } in open {
                match request.test() {
                    Ok(status) => {
                        let got = status.count(u8::equivalent_datatype()) as usize;
                        if let Some(expected) = expected.filter(|expected| *expected != got) {
                            fail(&CommError::OutOfStep { rank, collective, from: with, got, expected }, turn);
                        }
                    }
                    Err(request) => still_open.push(Open { with, expected, request }),
                }
            }
            if still_open.is_empty() {
                *turn = None;
                return;
            }
            if begun.elapsed() > call.timeout {
                let mut missing: Vec<usize> = still_open.iter().map(|open| open.with).collect();
                missing.sort_unstable();
                missing.dedup();
                fail(&CommError::Timeout { rank, collective, missing, waited: begun.elapsed() }, turn);
            }
            drop(turn);
            open = still_open;
            looks += 1;
            // Outside of its turn, so that another thread gets one.
            if looks > LOOKS_WITHOUT_SLEEP {
                thread::sleep(SLEEP);
            } else {
                thread::yield_now();
            }
        }
    }
}

fn fail(error: &CommError, turn: MutexGuard<'_, Waits>) -> ! {
    say!("error: {error}");
    Job::end_in(turn)
}

/// `bytes` in parts of at most `longest`; one empty part if there are none, for a message without
/// bytes is one too.
fn parts(bytes: &[u8], longest: usize) -> Vec<&[u8]> {
    if bytes.is_empty() { vec![bytes] } else { bytes.chunks(longest).collect() }
}

/// As [`parts`].
fn parts_mut(bytes: &mut [u8], longest: usize) -> Vec<&mut [u8]> {
    if bytes.is_empty() { vec![bytes] } else { bytes.chunks_mut(longest).collect() }
}
