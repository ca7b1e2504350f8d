//! How long something takes here.

use std::time::{Duration, Instant};

/// Times that something is tried.
const TRIALS: usize = 20;

/// The shortest time of a few: what else the machine does makes it longer, nothing makes it shorter.
pub(super) fn shortest(run: impl Fn()) -> Duration {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed()
    };
    (0..TRIALS).map(time).min().unwrap_or_default()
}
