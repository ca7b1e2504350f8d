//! Long text in pieces, which give the same ids as the whole.

use crate::words::cut_before_word;

/// Longest text handed to a vocabulary in one piece; see [`pieces`].
pub(crate) const MAX_PIECE_BYTES: usize = 1 << 20;
const MIN_PIECE_BYTES: usize = 1 << 16;

/// Text in front of a piece that a vocabulary sees with it: enough for one word.
const MAX_CONTEXT_BYTES: usize = 32;

/// A part of a text, with a little of what is in front of it.
///
/// Tokenizers after SentencePiece put a mark in front of a text, and look at whether a word is the
/// first. With its context, a piece is not taken for the beginning; the ids of the context are
/// dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TextPiece<'a> {
    /// The context and the piece.
    pub(crate) with_context: &'a str,
    pub(crate) context_len: usize,
}

impl<'a> TextPiece<'a> {
    /// A text in one piece.
    pub(crate) fn whole(text: &'a str) -> Self {
        Self { with_context: text, context_len: 0 }
    }

    /// The piece alone.
    pub(crate) fn text(&self) -> &'a str {
        &self.with_context[self.context_len..]
    }
}

/// `text` in pieces that are encoded on their own, so that a long document needs bounded memory and
/// several cores.
///
/// A piece ends where GPT-2's pattern ends a word anyhow: cutting there changes no id of a
/// byte-level vocabulary, nor of one whose tokens hold no space but in front. Text without such a
/// place is cut at [`MAX_PIECE_BYTES`].
pub(crate) fn pieces(text: &str) -> impl Iterator<Item = TextPiece<'_>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        if start == text.len() {
            return None;
        }
        let end = start + piece_len(&text[start..]);
        let context_start = text.floor_char_boundary(start.saturating_sub(MAX_CONTEXT_BYTES));
        let piece = TextPiece { with_context: &text[context_start..end], context_len: start - context_start };
        start = end;
        Some(piece)
    })
}

fn piece_len(text: &str) -> usize {
    let head = &text[..text.floor_char_boundary(MAX_PIECE_BYTES)];
    if head.len() <= MIN_PIECE_BYTES {
        return head.len();
    }
    cut_before_word(head, MIN_PIECE_BYTES).unwrap_or(head.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join_to_the_text_and_know_what_is_in_front() {
        let text = "the cat's hat\n\n  and   12 bats, ünd the… ".repeat(6000);
        let cut: Vec<TextPiece<'_>> = pieces(&text).collect();
        assert!(cut.len() > 2);
        let mut joined = String::new();
        for piece in cut {
            assert!(joined.ends_with(&piece.with_context[..piece.context_len]));
            assert_eq!(piece.context_len == 0, joined.is_empty());
            joined.push_str(piece.text());
        }
        assert_eq!(joined, text);
        let solid = "é".repeat(MAX_PIECE_BYTES);
        let lens: Vec<usize> = pieces(&solid).map(|piece| piece.text().len()).collect();
        assert_eq!(lens, [MAX_PIECE_BYTES, MAX_PIECE_BYTES]);
    }
}
