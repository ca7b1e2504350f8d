//! Whether a rank that is to be heard of again and again has fallen silent.

use std::time::{Duration, Instant};

/// What this rank has heard of another. It is to look several times in each limit.
///
/// The clock does not count the time in which a machine sleeps.
#[derive(Debug)]
pub(crate) struct Watch {
    last_look: Instant,
    last_heard: Instant,
}

impl Watch {
    /// From now on, as if the other had just been heard of.
    pub(crate) fn new(now: Instant) -> Self {
        Self { last_look: now, last_heard: now }
    }

    /// How long the other has been silent, if for `limit` or longer. `heard` is whether a sign of
    /// it has come since the look before.
    pub(crate) fn look(&mut self, now: Instant, heard: bool, limit: Duration) -> Option<Duration> {
        // This process was stopped itself, or got no time: then perhaps the other did not either.
        let was_away = now.duration_since(self.last_look) > limit / 2;
        if heard || was_away {
            self.last_heard = now;
        }
        self.last_look = now;
        Some(now.duration_since(self.last_heard)).filter(|&silent| silent >= limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    /// Looks at these milliseconds from the start, at some of which a sign has come.
    fn silent_after(looks: impl IntoIterator<Item = (u64, bool)>) -> Option<Duration> {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        let look = |(at, heard)| watch.look(start + Duration::from_millis(at), heard, LIMIT);
        looks.into_iter().find_map(look)
    }

    #[test]
    fn who_is_heard_of_within_the_limit_is_never_silent() {
        assert_eq!(silent_after((0..100_000).step_by(250).map(|at| (at, at % 4000 == 0))), None);
    }

    #[test]
    fn who_falls_silent_is_so_when_the_limit_has_passed() {
        let silent = silent_after((0..60_000).step_by(250).map(|at| (at, at <= 20_000)));
        assert_eq!(silent, Some(LIMIT));
    }

    #[test]
    fn a_rank_that_was_away_itself_waits_anew() {
        let looks = || (0..4_000).step_by(250).map(|at| (at, false));
        let back = 600_000;
        let after = |len: u64| (back..back + len).step_by(250).map(|at| (at, false));
        assert_eq!(silent_after(looks().chain(after(5_000))), None);
        assert_eq!(silent_after(looks().chain(after(5_001))), Some(LIMIT));
    }

    #[test]
    fn no_limit_is_never_reached() {
        let start = Instant::now();
        let much_later = start + Duration::from_secs(1 << 30);
        assert_eq!(Watch::new(start).look(much_later, false, Duration::MAX), None);
    }
}
