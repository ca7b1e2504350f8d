//! Repeated work and its times.

use std::time::{Duration, Instant};

use crate::TrainError;

/// How often the work is done.
#[derive(Debug, Clone, Copy)]
pub struct Repetitions {
    /// First, without timing: page faults and caches settle.
    pub warmup: usize,
    /// Then timed.
    pub timed: Timed,
}

/// When enough has been timed.
#[derive(Debug, Clone, Copy)]
pub enum Timed {
    /// After so many repetitions.
    Times(usize),
    /// After so many repetitions at least, and so long.
    AtLeast(usize, Duration),
}

impl Timed {
    fn is_enough(self, rounds: usize, elapsed: Duration) -> bool {
        match self {
            Self::Times(times) => rounds >= times,
            Self::AtLeast(times, duration) => rounds >= times && elapsed >= duration,
        }
    }
}

impl Repetitions {
    /// Times of each of `works`, which take turns so that a change of the machine's speed meets all
    /// of them alike.
    ///
    /// # Errors
    /// The first error of any work.
    pub(super) fn time_in_turn(&self, works: &mut [Work<'_>]) -> Result<Vec<Timings>, TrainError> {
        for _ in 0..self.warmup {
            works.iter_mut().try_for_each(|work| work())?;
        }
        let mut timings = vec![Timings::default(); works.len()];
        let started = Instant::now();
        let mut rounds = 0;
        while !self.timed.is_enough(rounds, started.elapsed()) {
            for (work, timings) in works.iter_mut().zip(&mut timings) {
                let work_started = Instant::now();
                work()?;
                timings.millis.push(work_started.elapsed().as_secs_f64() * 1e3);
            }
            rounds += 1;
        }
        Ok(timings)
    }

    /// As [`Repetitions::time_in_turn`], of one work alone.
    ///
    /// # Errors
    /// The first error of the work.
    pub(super) fn time(
        &self,
        mut work: impl FnMut() -> Result<(), TrainError>,
    ) -> Result<Timings, TrainError> {
        Ok(self.time_in_turn(&mut [&mut work])?.remove(0))
    }
}

/// Work that can be repeated.
pub(super) type Work<'a> = &'a mut dyn FnMut() -> Result<(), TrainError>;

/// Wall-clock times of repetitions of the same work, in milliseconds and in their order.
#[derive(Debug, Clone, Default)]
pub struct Timings {
    millis: Vec<f64>,
}

impl Timings {
    /// Number of repetitions.
    pub fn len(&self) -> usize {
        self.millis.len()
    }

    /// Whether nothing was timed.
    pub fn is_empty(&self) -> bool {
        self.millis.is_empty()
    }

    /// The middle time, or the mean of the two middle ones, in milliseconds.
    ///
    /// # Panics
    /// If nothing was timed.
    pub fn median_ms(&self) -> f64 {
        median(self.millis.clone())
    }

    /// The shortest time, in milliseconds.
    pub fn min_ms(&self) -> f64 {
        self.millis.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// Median of the ratios to the times of the same rounds of other work.
    ///
    /// # Panics
    /// If nothing was timed.
    pub fn ratio_to(&self, other: &Self) -> f64 {
        median(self.millis.iter().zip(&other.millis).map(|(mine, theirs)| mine / theirs).collect())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty(), "the median of nothing");
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn works_take_turns_after_their_warm_up() {
        let order = std::cell::RefCell::new(String::new());
        let mut a = || {
            order.borrow_mut().push('a');
            Ok(())
        };
        let mut b = || {
            order.borrow_mut().push('b');
            Ok(())
        };
        let repetitions = Repetitions { warmup: 1, timed: Timed::Times(2) };
        let timings = repetitions.time_in_turn(&mut [&mut a, &mut b]).unwrap();
        assert_eq!(timings.iter().map(Timings::len).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(*order.borrow(), "ababab");
    }

    #[test]
    fn short_work_is_timed_as_long_as_asked() {
        let timed = Timed::AtLeast(2, Duration::from_millis(20));
        let mut work = || {
            std::thread::sleep(Duration::from_millis(1));
            Ok(())
        };
        let started = Instant::now();
        let timings = Repetitions { warmup: 0, timed }.time(&mut work).unwrap();
        assert!(timings.len() >= 2 && started.elapsed() >= Duration::from_millis(20), "{timings:?}");
        assert!(!timed.is_enough(1, Duration::from_secs(1)));
    }

    #[test]
    fn the_ratio_is_taken_round_by_round() {
        let (mine, theirs) =
            (Timings { millis: vec![2.0, 40.0, 9.0] }, Timings { millis: vec![1.0, 10.0, 3.0] });
        assert_eq!((mine.median_ms(), mine.min_ms(), mine.ratio_to(&theirs)), (9.0, 2.0, 3.0));
        assert_eq!(Timings { millis: vec![4.0, 1.0] }.median_ms(), 2.5);
    }
}
