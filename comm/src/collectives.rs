//! The collectives, each made of exchanges of messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use switchyard_ground::say;

use crate::CommError;
use crate::plan;
use crate::single::Single;
use crate::threads::Threads;
use crate::transport::{Call, Incoming, Outgoing, Traffic, Transport};

/// How long a collective waits for others unless [`Comm::with_timeout`] says otherwise. Whether
/// they live is watched ([`Comm::watch`]): this is for those that live, and do not come.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// One rank's end of a group of ranks. Clones are the same end.
#[derive(Debug, Clone)]
pub struct Comm {
    transport: Arc<dyn Transport>,
    /// The ranks of the world that are the ranks of this group, by their number here.
    pub(crate) members: Arc<[usize]>,
    /// The number here of this rank.
    rank: usize,
    timeout: Duration,
    sent: Arc<Sent>,
}

#[derive(Debug, Default)]
struct Sent {
    messages: AtomicU64,
    bytes: AtomicU64,
}

impl Comm {
    /// A process alone, rank 0 of 1.
    pub fn single() -> Self {
        Self::new(Arc::new(Single))
    }

    /// The ends of `size` ranks that are threads of this process.
    ///
    /// # Panics
    /// If `size` is 0.
    pub fn threads(size: usize) -> Vec<Self> {
        assert!(size > 0, "a group without ranks");
        Threads::world(size).into_iter().map(|transport| Self::new(Arc::new(transport))).collect()
    }

    /// The processes that `mpirun` or another launcher of MPI has started; this one alone if none
    /// has. To be called once in a process.
    ///
    /// # Errors
    /// [`CommError::Unusable`] if MPI does not start, or serves one thread only.
    #[cfg(feature = "mpi")]
    pub fn mpi() -> Result<Self, CommError> {
        Ok(Self::new(Arc::new(crate::mpi::Mpi::start()?)))
    }

    pub(crate) fn new(transport: Arc<dyn Transport>) -> Self {
        let (rank, size) = (transport.rank(), transport.size());
        Self { transport, members: (0..size).collect(), rank, timeout: TIMEOUT, sent: Arc::default() }
    }

    /// Sets how long another process may be silent before the job ends, with a message that names
    /// it: 5 s from the start on, never less than 2 s; with [`Duration::MAX`] none is watched, as
    /// when a debugger is to stop one. Every rank sets the same, once.
    ///
    /// A process is silent when it was stopped, or its machine or network is gone, not when it
    /// computes or waits. Each is watched by the rank after it, and the last by rank 0, until all
    /// ranks have dropped their ends. For other ranks than processes of MPI this does nothing.
    pub fn watch(&self, limit: Duration) {
        self.transport.watch(limit);
    }

    /// The same end, whose collectives wait this long for others, instead of an hour. It is to be
    /// longer than any rank is busy with what the others do not do, as writing a checkpoint.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// This rank, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// What this rank has sent so far, in this group and those that it was split into.
    pub fn traffic(&self) -> Traffic {
        let Sent { messages, bytes } = &*self.sent;
        Traffic { messages: messages.load(Ordering::Relaxed), bytes: bytes.load(Ordering::Relaxed) }
    }

    /// Says `message` on standard error, after the number that this rank has in the whole job, and
    /// ends the job with status 1: every process of it, and with ranks that are threads this one.
    /// A panic hook may call it while another thread is in a collective.
    pub fn abort(&self, message: &str) -> ! {
        say!("rank {}: {message}", self.transport.rank());
        self.transport.end_job()
    }

    /// Groups of the ranks that give the same `color`, in the order of their ranks here; returns
    /// this rank's.
    ///
    /// # Errors
    /// [`CommError`].
    pub fn split(&self, color: u64) -> Result<Self, CommError> {
        let colors = self.gather("split", &color.to_le_bytes())?;
        let of_color: Vec<usize> =
            (0..self.size()).filter(|&rank| colors[rank] == color.to_le_bytes()).collect();
        let rank = of_color.iter().take_while(|&&rank| rank < self.rank).count();
        let members = of_color.iter().map(|&rank| self.members[rank]).collect();
        Ok(Self { members, rank, ..self.clone() })
    }

    /// Returns when all ranks have called it.
    ///
    /// # Errors
    /// [`CommError`].
    pub fn barrier(&self) -> Result<(), CommError> {
        // A message that has no bytes still has to come.
        let nothing = vec![Vec::<u8>::new(); self.size()];
        self.exchange("barrier", &nothing.iter().map(Vec::as_slice).collect::<Vec<_>>(), &mut nothing.clone())
    }

    /// `bytes` become those of the rank `root`.
    ///
    /// # Errors
    /// [`CommError`].
    ///
    /// # Panics
    /// If there is no such rank.
    pub fn broadcast(&self, bytes: &mut Vec<u8>, root: usize) -> Result<(), CommError> {
        assert!(root < self.size(), "rank {root} of {}", self.size());
        // The length goes first.
        let call = self.call("broadcast");
        let size = self.size();
        let number = (self.rank + size - root) % size;
        let member = |number: usize| self.members[(number + root) % size];
        if let Some(parent) = plan::parent(number) {
            let from = member(parent);
            let mut len = [0; 8];
            self.run(&[], vec![Incoming { from, bytes: &mut len }], call)?;
            *bytes = vec![0; u64::from_le_bytes(len) as usize];
            self.run(&[], vec![Incoming { from, bytes }], call)?;
        }
        let len = (bytes.len() as u64).to_le_bytes();
        for message in [&len[..], bytes.as_slice()] {
            let sends: Vec<_> = plan::children(number, size)
                .map(|child| Outgoing { to: member(child), bytes: message })
                .collect();
            self.run(&sends, Vec::new(), call)?;
        }
        Ok(())
    }

    /// What every rank gives, by rank. Lengths may differ.
    ///
    /// # Errors
    /// [`CommError`].
    pub fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        self.gather("all_gather", bytes)
    }

    /// What every rank has for this one, by rank; `parts` are for the others, by rank. Lengths may
    /// differ.
    ///
    /// # Errors
    /// [`CommError`].
    ///
    /// # Panics
    /// If there is not a part for each rank, or a rank sends elements of another size.
    pub fn all_to_all<T: Pod>(&self, parts: &[&[T]]) -> Result<Vec<Vec<T>>, CommError> {
        self.all_to_all_of("all_to_all", parts)
    }

    fn gather(&self, collective: &'static str, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        self.all_to_all_of(collective, &vec![bytes; self.size()])
    }

    fn all_to_all_of<T: Pod>(
        &self,
        collective: &'static str,
        parts: &[&[T]],
    ) -> Result<Vec<Vec<T>>, CommError> {
        let lens: Vec<[u8; 8]> = parts.iter().map(|part| (size_of_val(*part) as u64).to_le_bytes()).collect();
        let lens: Vec<&[u8]> = lens.iter().map(|len| len.as_slice()).collect();
        let mut their_lens = vec![vec![0; 8]; self.size()];
        self.exchange(collective, &lens, &mut their_lens)?;
        let place = |len: &Vec<u8>| {
            let bytes = u64::from_le_bytes(len.as_slice().try_into().unwrap_or_default()) as usize;
            assert!(bytes.is_multiple_of(size_of::<T>()), "{bytes} bytes of elements of {}", size_of::<T>());
            vec![T::zeroed(); bytes / size_of::<T>()]
        };
        let mut received: Vec<Vec<T>> = their_lens.iter().map(place).collect();
        self.exchange(collective, parts, &mut received)?;
        Ok(received)
    }

    fn exchange<T: Pod>(
        &self,
        collective: &'static str,
        parts: &[&[T]],
        received: &mut [Vec<T>],
    ) -> Result<(), CommError> {
        assert!(parts.len() == self.size(), "{} parts for {} ranks", parts.len(), self.size());
        received[self.rank].copy_from_slice(parts[self.rank]);
        let targets = received.iter_mut().map(|part| cast_slice_mut(part.as_mut_slice())).enumerate();
        self.exchange_with_others(collective, |rank| cast_slice(parts[rank]), targets)
    }

    /// A part for each other rank, and a place for that of each, by rank. A place for this rank's own
    /// is left as it is.
    pub(crate) fn exchange_with_others<'a, 'b>(
        &self,
        collective: &'static str,
        part: impl Fn(usize) -> &'a [u8],
        targets: impl Iterator<Item = (usize, &'b mut [u8])>,
    ) -> Result<(), CommError> {
        let sends: Vec<_> = plan::others(self.rank, self.size())
            .map(|rank| Outgoing { to: self.members[rank], bytes: part(rank) })
            .collect();
        let receives = targets
            .filter(|(rank, _)| *rank != self.rank)
            .map(|(rank, bytes)| Incoming { from: self.members[rank], bytes })
            .collect();
        self.run(&sends, receives, self.call(collective))
    }

    pub(crate) fn call(&self, collective: &'static str) -> Call {
        Call { collective, timeout: self.timeout }
    }

    /// A later round waits longer, for its partner may itself wait for a rank in an earlier one: the
    /// first to give up is to name the rank that is missing.
    pub(crate) fn call_of_round(&self, collective: &'static str, round: usize) -> Call {
        let longer = (self.timeout / 8).saturating_mul(round as u32);
        Call { collective, timeout: self.timeout.saturating_add(longer) }
    }

    pub(crate) fn run(
        &self,
        sends: &[Outgoing<'_>],
        receives: Vec<Incoming<'_>>,
        call: Call,
    ) -> Result<(), CommError> {
        let traffic = Traffic::of(sends.iter().map(|send| send.bytes.len()));
        self.sent.messages.fetch_add(traffic.messages, Ordering::Relaxed);
        self.sent.bytes.fetch_add(traffic.bytes, Ordering::Relaxed);
        self.transport.exchange(sends, receives, call)
    }
}
