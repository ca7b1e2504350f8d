//! Where a text ends: before the first stop string.

/// Hands text on until it holds a stop string; what may become one is held back.
#[derive(Debug, Clone)]
pub(super) struct StopScanner {
    stops: Vec<String>,
    held: String,
    has_stopped: bool,
}

impl StopScanner {
    pub(super) fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, held: String::new(), has_stopped: false }
    }

    pub(super) fn has_stopped(&self) -> bool {
        self.has_stopped
    }

    /// What is certain to stand before any stop string, once `text` has followed.
    pub(super) fn push(&mut self, text: &str) -> String {
        if self.has_stopped {
            return String::new();
        }
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop)).min();
        self.has_stopped = found.is_some();
        let end = found.unwrap_or_else(|| self.held.len() - self.len_to_hold());
        let certain = self.held[..end].to_owned();
        self.held.drain(..end);
        certain
    }

    /// What was held back, at the end of a text that no stop string ended.
    pub(super) fn take_held(&mut self) -> String {
        if self.has_stopped { String::new() } else { std::mem::take(&mut self.held) }
    }

    /// Bytes at the end that a stop string may begin with.
    fn len_to_hold(&self) -> usize {
        let begins = |stop: &String| {
            let ends = stop.char_indices().map(|(at, _)| at).filter(|at| self.held.ends_with(&stop[..*at]));
            ends.max().unwrap_or(0)
        };
        self.stops.iter().map(begins).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scanned(stops: &[&str], pieces: &[&str]) -> (Vec<String>, String, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut scanner = StopScanner::new(&stops);
        let shown = pieces.iter().map(|piece| scanner.push(piece)).collect();
        let rest = scanner.take_held();
        (shown, rest, scanner.has_stopped())
    }

    #[test]
    fn text_ends_before_the_first_stop_string() {
        let (shown, rest, has_stopped) = scanned(&["END", "\n\n"], &["one E", "Nd two E", "N", "D three"]);
        assert_eq!(shown, ["one ", "ENd two ", "", ""]);
        assert!(rest.is_empty() && has_stopped);
        let (shown, _, has_stopped) = scanned(&["b", "ab"], &["xab"]);
        assert_eq!((shown, has_stopped), (vec!["x".to_owned()], true));
    }

    #[test]
    fn what_became_no_stop_string_is_shown_at_the_end() {
        let (shown, rest, has_stopped) = scanned(&["äöü"], &["x ä", "ö"]);
        assert_eq!((shown, rest.as_str(), has_stopped), (vec!["x ".to_owned(), String::new()], "äö", false));
        assert_eq!(scanned(&[], &["a", "b"]).0, ["a", "b"]);
        assert_eq!(scanned(&[""], &["a"]).0, ["a"]);
    }
}
