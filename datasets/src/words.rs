//! Words as GPT-2's byte-level pattern finds them: letters, digits or other signs, each with a
//! space before it, and runs of white space.
//!
//! The pattern runs through a backtracking regular expression, which takes most of the time of
//! training and applying a vocabulary. ASCII text, nearly all of a corpus of code, is split by hand
//! here; the rest goes to the expression.

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

/// Text from this length on is cut where that changes nothing, so that one foreign letter costs one
/// cut.
const MIN_CUT_BYTES: usize = 256;

const CONTRACTIONS: [&[u8]; 7] = [b"'s", b"'t", b"'re", b"'ve", b"'m", b"'ll", b"'d"];

/// The words of `text`; they join to `text`.
///
/// # Errors
/// If the regular expression gives up.
pub(crate) fn words(text: &str) -> tokenizers::Result<Vec<&str>> {
    let mut words = Vec::with_capacity(text.len() / 4);
    let mut rest = text;
    while !rest.is_empty() {
        let (part, after) = rest.split_at(cut_before_word(rest, MIN_CUT_BYTES).unwrap_or(rest.len()));
        if part.is_ascii() {
            push_ascii_words(part, &mut words);
        } else {
            push_matches(part, &mut words)?;
        }
        rest = after;
    }
    Ok(words)
}

/// First place from `min` on at which the pattern ends a word whatever surrounds it: before a space
/// between an ASCII letter or digit and an ASCII letter.
pub(crate) fn cut_before_word(text: &str, min: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let is_cut = |at: &usize| {
        bytes[*at] == b' ' && bytes[at - 1].is_ascii_alphanumeric() && bytes[at + 1].is_ascii_alphabetic()
    };
    (min.max(1)..bytes.len().saturating_sub(1)).find(is_cut)
}

/// The characters that stand for the bytes of `word` in a byte-level vocabulary: printable bytes
/// for themselves, the others for the characters from U+0100 on, in order (GPT-2's
/// `bytes_to_unicode`).
pub(crate) fn byte_level_chars(word: &str) -> impl Iterator<Item = char> + '_ {
    word.bytes().map(|byte| {
        let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        if is_printable(byte) {
            return char::from(byte);
        }
        let num_before = (0..byte).filter(|other| !is_printable(*other)).count() as u32;
        char::from_u32(0x100 + num_before).unwrap_or(char::REPLACEMENT_CHARACTER)
    })
}

/// The expression itself.
pub(crate) fn pre_tokenizer() -> ByteLevel {
    ByteLevel::new(false, true, true)
}

fn push_matches<'a>(text: &'a str, words: &mut Vec<&'a str>) -> tokenizers::Result<()> {
    let mut matches = PreTokenizedString::from(text);
    pre_tokenizer().pre_tokenize(&mut matches)?;
    let splits = matches.get_splits(OffsetReferential::Original, OffsetType::Byte);
    words.extend(splits.into_iter().map(|(_, (start, end), _)| &text[start..end]));
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Digit,
    Space,
    Other,
}

fn class(byte: u8) -> Class {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
        b'0'..=b'9' => Class::Digit,
        b'\t'..=b'\r' | b' ' => Class::Space,
        _ => Class::Other,
    }
}

fn push_ascii_words<'a>(text: &'a str, words: &mut Vec<&'a str>) {
    let mut rest = text;
    while !rest.is_empty() {
        let (word, after) = rest.split_at(ascii_word_len(rest.as_bytes()));
        words.push(word);
        rest = after;
    }
}

/// Length of the first word of `text`, which is not empty: the alternatives of the pattern, in its
/// order.
fn ascii_word_len(text: &[u8]) -> usize {
    if let Some(contraction) = CONTRACTIONS.iter().find(|contraction| text.starts_with(contraction)) {
        return contraction.len();
    }
    let run_len = |start: usize| {
        let first = class(text[start]);
        text[start..].iter().take_while(|byte| class(**byte) == first).count()
    };
    let num_spaces = usize::from(text[0] == b' ');
    if text.get(num_spaces).is_some_and(|byte| class(*byte) != Class::Space) {
        return num_spaces + run_len(num_spaces);
    }
    // White space leaves its last character to the word that follows.
    match run_len(0) {
        len if len == text.len() || len == 1 => len,
        len => len - 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(text: &str) -> Vec<&str> {
        let mut words = Vec::new();
        push_matches(text, &mut words).unwrap();
        words
    }

    proptest! {
        #[test]
        fn words_are_the_matches_of_the_pattern(text in "[a-c0-2 \\t\\n\\r.,'_stremvld\u{b}]{0,40}|[ -~\\s]{0,40}|\\PC{0,20}") {
            prop_assert_eq!(words(&text).unwrap(), matches(&text));
        }

        #[test]
        fn cuts_change_no_word(text in "([ab]{1,3}[ '.\\n]{0,2}|é){0,60}") {
            if let Some(at) = cut_before_word(&text, 1) {
                let (left, right) = text.split_at(at);
                prop_assert_eq!([matches(left), matches(right)].concat(), matches(&text));
            }
        }
    }

    #[test]
    fn long_mixed_text_splits_as_the_pattern_does() {
        let text = include_str!("tokenizer.rs").repeat(2) + &"naïve  façade\t… don't 12½ ".repeat(40);
        assert_eq!(words(&text).unwrap(), matches(&text));
    }

    #[test]
    fn every_byte_has_its_character() {
        let text: String = (0..0x800).filter_map(char::from_u32).collect();
        let mut mapped = PreTokenizedString::from(text.as_str());
        pre_tokenizer().pre_tokenize(&mut mapped).unwrap();
        let splits = mapped.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let expected: String = splits.into_iter().map(|(word, _, _)| word).collect();
        assert_eq!(byte_level_chars(&text).collect::<String>(), expected);
    }
}
