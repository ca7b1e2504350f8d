//! Ranks that are threads.

use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use switchyard_kernels::{ExpertGradientSink, ExpertParallel, RowExchange};

/// What each of `num_ranks` threads returns, by rank.
///
/// # Panics
/// As one of them does: then none waits for it any longer.
pub(crate) fn on_ranks<T: Send>(num_ranks: usize, run: impl Fn(usize, ExpertParallel) -> T + Sync) -> Vec<T> {
    let rows = Channels::of_ranks(num_ranks).into_iter();
    let exchanges = rows.zip(Channels::of_ranks(num_ranks)).enumerate();
    thread::scope(|scope| {
        let run = &run;
        let start = |(rank, (rows, counts))| {
            let exchange = Arc::new(ThreadExchange { rank, num_ranks, rows, counts });
            let gradients = Arc::new(ExpertGradientSink::default());
            scope.spawn(move || run(rank, ExpertParallel { exchange, gradients }))
        };
        let threads: Vec<_> = exchanges.map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

#[derive(Debug)]
struct ThreadExchange {
    rank: usize,
    num_ranks: usize,
    rows: Channels<f32>,
    counts: Channels<u32>,
}

impl RowExchange for ThreadExchange {
    fn num_ranks(&self) -> usize {
        self.num_ranks
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn exchange_rows(&self, parts: &[&[f32]]) -> Vec<Vec<f32>> {
        self.rows.exchange(parts)
    }

    fn exchange_counts(&self, parts: &[&[u32]]) -> Vec<Vec<u32>> {
        self.counts.exchange(parts)
    }
}

/// One rank's channels to and from all, by rank.
#[derive(Debug)]
struct Channels<T> {
    to: Vec<Sender<Vec<T>>>,
    from: Mutex<Vec<Receiver<Vec<T>>>>,
}

impl<T: Clone> Channels<T> {
    fn of_ranks(num_ranks: usize) -> Vec<Self> {
        let mut to: Vec<Vec<_>> = (0..num_ranks).map(|_| Vec::new()).collect();
        let mut from: Vec<Vec<_>> = (0..num_ranks).map(|_| Vec::new()).collect();
        for receivers in &mut from {
            for senders in &mut to {
                let (sender, receiver) = channel();
                senders.push(sender);
                receivers.push(receiver);
            }
        }
        to.into_iter().zip(from).map(|(to, from)| Self { to, from: Mutex::new(from) }).collect()
    }

    fn exchange(&self, parts: &[&[T]]) -> Vec<Vec<T>> {
        assert_eq!(parts.len(), self.to.len(), "a part for each rank");
        for (sender, part) in self.to.iter().zip(parts) {
            sender.send(part.to_vec()).expect("the other rank runs");
        }
        let from = self.from.lock().expect("one thread per rank");
        from.iter().map(|receiver| receiver.recv().expect("the other rank runs")).collect()
    }
}
