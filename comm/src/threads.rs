//! Ranks that are threads of one process: the whole of a distributed run in one test.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::CommError;
use crate::transport::{Call, Incoming, Outgoing, Transport, end_process};

/// One rank's end.
#[derive(Debug)]
pub(crate) struct Threads {
    rank: usize,
    size: usize,
    world: Arc<World>,
}

#[derive(Debug, Default)]
struct World {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// By sender and receiver, in the order of sending.
    messages: HashMap<(usize, usize), VecDeque<Vec<u8>>>,
    /// Ranks that have ended.
    gone: Vec<usize>,
}

impl Threads {
    /// The ends of `size` ranks.
    pub(crate) fn world(size: usize) -> Vec<Self> {
        let world = Arc::new(World::default());
        (0..size).map(|rank| Self { rank, size, world: Arc::clone(&world) }).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock leaves it half done.
        self.world.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for Threads {
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
        let (rank, collective) = (self.rank, call.collective);
        let begun = Instant::now();
        let mut state = self.state();
        for send in sends {
            state.messages.entry((rank, send.to)).or_default().push_back(send.bytes.to_vec());
        }
        self.world.changed.notify_all();
        let mut open = receives;
        loop {
            let mut still_open = Vec::with_capacity(open.len());
            for Incoming { from, bytes } in open {
                match state.messages.get_mut(&(from, rank)).and_then(VecDeque::pop_front) {
                    Some(message) if message.len() == bytes.len() => bytes.copy_from_slice(&message),
                    Some(message) => {
                        let (got, expected) = (message.len(), bytes.len());
                        return Err(CommError::OutOfStep { rank, collective, from, got, expected });
                    }
                    None if state.gone.contains(&from) => {
                        return Err(CommError::Gone { rank, collective, gone: from });
                    }
                    None => still_open.push(Incoming { from, bytes }),
                }
            }
            open = still_open;
            if open.is_empty() {
                return Ok(());
            }
            let Some(left) = call.timeout.checked_sub(begun.elapsed()) else {
                let missing = open.iter().map(|receive| receive.from).collect();
                return Err(CommError::Timeout { rank, collective, missing, waited: begun.elapsed() });
            };
            state = self.world.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn end_job(&self) -> ! {
        end_process()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let rank = self.rank;
        self.state().gone.push(rank);
        self.world.changed.notify_all();
    }
}
