//! Text up to the first of some stop texts, handed out as soon as no stop can begin in it.

/// Text that ends before a stop.
#[derive(Debug)]
pub(super) struct TextUntil<'a> {
    stops: &'a [String],
    /// Text that may be the beginning of a stop.
    held: String,
    has_stopped: bool,
}

impl<'a> TextUntil<'a> {
    /// With these stops, none of which is empty.
    pub(super) fn new(stops: &'a [String]) -> Self {
        Self { stops, held: String::new(), has_stopped: false }
    }

    /// The text that is certain once `piece` has come, and whether a stop has.
    pub(super) fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(end) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(end);
            self.has_stopped = true;
            return (std::mem::take(&mut self.held), true);
        }
        let may_begin = |start: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*start..]));
        let starts = self.held.char_indices().map(|(start, _)| start);
        let kept_from = starts.clone().find(may_begin).unwrap_or(self.held.len());
        let kept = self.held.split_off(kept_from);
        (std::mem::replace(&mut self.held, kept), false)
    }

    /// Whether a stop has come.
    pub(super) fn has_stopped(&self) -> bool {
        self.has_stopped
    }

    /// What was held back, at the end of the text.
    pub(super) fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_join_to_the_text_before_the_first_stop(
            pieces in prop::collection::vec("[ab\u{e9}]{0,4}", 0..12),
            stops in prop::collection::vec("[ab\u{e9}]{1,4}", 0..3),
        ) {
            let whole = pieces.concat();
            let expected = stops.iter().filter_map(|stop| whole.find(stop.as_str())).min();
            let (mut until, mut found, mut has_stopped) = (TextUntil::new(&stops), String::new(), false);
            for piece in &pieces {
                let (text, stopped) = until.push(piece);
                found.push_str(&text);
                has_stopped = stopped;
                if stopped { break; }
            }
            if !has_stopped { found.push_str(&until.finish()); }
            prop_assert_eq!(has_stopped, expected.is_some());
            // A stop that ends earlier is seen earlier, though another may have begun before it.
            prop_assert!(whole.starts_with(&found));
            if !has_stopped { prop_assert_eq!(found, whole); }
            else { prop_assert!(stops.iter().all(|stop| !found.contains(stop.as_str()))); }
        }
    }

    #[test]
    fn what_may_begin_a_stop_is_held_back() {
        let stops = ["END".to_owned()];
        let mut until = TextUntil::new(&stops);
        assert_eq!(until.push("an E"), ("an ".into(), false));
        assert_eq!(until.push("N"), (String::new(), false));
        assert_eq!(until.push("x E"), ("ENx ".into(), false));
        assert_eq!(until.push("ND of it"), (String::new(), true));
    }
}
