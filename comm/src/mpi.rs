//! Ranks that are processes, started by `mpirun` or another launcher of MPI.

use std::sync::{Mutex, PoisonError};
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
use crate::transport::{Call, Incoming, Outgoing, Transport};

/// MPI counts elements in a C `int`: longer messages go in parts of this many bytes.
const LONGEST_MESSAGE: usize = 1 << 30;
/// Looks at open requests before the process sleeps between them.
const LOOKS_WITHOUT_SLEEP: u32 = 2000;
/// A message between processes takes microseconds; a sleep is not to be what it waits for.
const SLEEP: Duration = Duration::from_micros(20);

pub(crate) struct Mpi {
    rank: usize,
    size: usize,
    /// [`LONGEST_MESSAGE`], or what a test asks for.
    longest_message: usize,
    /// Finalizes MPI when it goes. Any thread may call MPI, but one at a time.
    universe: Mutex<Universe>,
}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Mpi").field("rank", &self.rank).field("size", &self.size).finish()
    }
}

impl Mpi {
    pub(crate) fn start() -> Result<Self, CommError> {
        // The loop may run on any thread, one at a time.
        let unusable = |problem: &str| CommError::Unusable(problem.to_owned());
        let (universe, support) = mpi::initialize_with_threading(Threading::Serialized)
            .ok_or_else(|| unusable("it has been started in this process before"))?;
        if support < Threading::Serialized {
            return Err(unusable("it serves its first thread only; use an MPI built with thread support"));
        }
        let world = universe.world();
        let longest_message =
            std::env::var("SWITCHYARD_LONGEST_MESSAGE").ok().and_then(|len| len.parse().ok());
        Ok(Self {
            rank: world.rank() as usize,
            size: world.size() as usize,
            longest_message: longest_message.unwrap_or(LONGEST_MESSAGE),
            universe: Mutex::new(universe),
        })
    }
}

impl Transport for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(
        &self,
        sends: &[Outgoing<'_>],
        receives: Vec<Incoming<'_>>,
        call: Call,
    ) -> Result<(), CommError> {
        let universe = self.universe.lock().unwrap_or_else(PoisonError::into_inner);
        let world = universe.world();
        let process = |rank: usize| world.process_at_rank(rank as i32);
        mpi::request::scope(|scope| {
            let mut open: Vec<Open<'_, _>> = Vec::new();
            for Incoming { from, bytes } in receives {
                for part in parts_mut(bytes, self.longest_message) {
                    let len = part.len();
                    let request = process(from).immediate_receive_into(scope, part);
                    open.push(Open { with: from, expected: Some(len), request });
                }
            }
            for &Outgoing { to, bytes } in sends {
                for part in parts(bytes, self.longest_message) {
                    open.push(Open {
                        with: to,
                        expected: None,
                        request: process(to).immediate_send(scope, part),
                    });
                }
            }
            self.complete(open, call);
        });
        Ok(())
    }

    fn end_job(&self) -> ! {
        // Without the lock, which another thread may hold for as long as it waits for a rank. Two
        // calls of MPI at once are against its rules, but one of them ends everything.
        SimpleCommunicator::world().abort(1)
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
        let (rank, collective) = (self.rank, call.collective);
        let begun = Instant::now();
        let mut looks = 0;
        loop {
            let mut still_open = Vec::with_capacity(open.len());
            for Open { with, expected, request } in open {
                match request.test() {
                    Ok(status) => {
                        let got = status.count(u8::equivalent_datatype()) as usize;
                        if let Some(expected) = expected.filter(|expected| *expected != got) {
                            self.fail(&CommError::OutOfStep { rank, collective, from: with, got, expected });
                        }
                    }
                    Err(request) => still_open.push(Open { with, expected, request }),
                }
            }
            if still_open.is_empty() {
                return;
            }
            if begun.elapsed() > call.timeout {
                let mut missing: Vec<usize> = still_open.iter().map(|open| open.with).collect();
                missing.sort_unstable();
                missing.dedup();
                self.fail(&CommError::Timeout { rank, collective, missing, waited: begun.elapsed() });
            }
            open = still_open;
            looks += 1;
            if looks > LOOKS_WITHOUT_SLEEP {
                thread::sleep(SLEEP);
            } else {
                thread::yield_now();
            }
        }
    }

    fn fail(&self, error: &CommError) -> ! {
        say!("error: {error}");
        self.end_job()
    }
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
