//! Text that others wrote, made safe to print.

use std::borrow::Cow;

/// `text` with every control character but line ends and tabs replaced by `�`, and those that turn
/// the direction of writing: escape codes in a file from elsewhere must not reach the terminal, nor
/// a picture or a page.
pub fn printable(text: &str) -> Cow<'_, str> {
    let turns = |letter: char| matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let is_bad = |letter: char| letter.is_control() && letter != '\n' && letter != '\t' || turns(letter);
    if text.contains(is_bad) { text.replace(is_bad, "\u{fffd}").into() } else { text.into() }
}

/// The first `max_chars` characters of `text` on one line, without control characters; what was
/// left out is marked with `...`.
pub fn excerpt(text: &str, max_chars: usize) -> String {
    let mut letters = text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter });
    let kept: String = letters.by_ref().take(max_chars).collect();
    if letters.next().is_some() { kept + "..." } else { kept }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_codes_do_not_pass_and_plain_text_does() {
        assert_eq!(
            printable("a\x1b]52;c;eA==\x07b\u{9b}\r\x7f"),
            "a\u{fffd}]52;c;eA==\u{fffd}b\u{fffd}\u{fffd}\u{fffd}"
        );
        assert_eq!(printable("one\ttwo\nthree ü"), "one\ttwo\nthree ü");
        assert_eq!(printable("a\u{202e}b\u{2066}"), "a\u{fffd}b\u{fffd}");
    }

    #[test]
    fn an_excerpt_counts_characters_and_says_that_it_is_cut() {
        assert_eq!(excerpt("äöü", 3), "äöü");
        assert_eq!(excerpt("äöüx", 3), "äöü...");
        assert_eq!(excerpt("a\nb", 3), "a\u{fffd}b");
    }
}
