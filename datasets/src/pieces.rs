//! Long text in pieces, which give the same ids as the whole.

use crate::seams::{Seams, has_long_blank};

/// Shortest piece of a text that goes on behind it.
pub(crate) const MIN_PIECE_BYTES: usize = 1 << 16;

/// A text, or a part of one that is encoded on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TextPiece<'a> {
    pub(crate) text: &'a str,
    /// Whether text lies in front, so that nothing is to be put in front of this piece.
    pub(crate) continues: bool,
}

impl<'a> TextPiece<'a> {
    /// A text in one piece.
    pub(crate) fn whole(text: &'a str) -> Self {
        Self { text, continues: false }
    }
}

/// `text` in pieces that are encoded on their own, so that a long document is shared among cores and
/// takes little memory.
///
/// A piece ends at the first seam behind `min_len` bytes. Without one the text stays whole, however
/// long it is: a cut elsewhere could change ids.
pub(crate) fn pieces(text: &str, seams: Seams, min_len: usize) -> impl Iterator<Item = TextPiece<'_>> {
    let seams = if text.len() > min_len && has_long_blank(text) { Seams::Nowhere } else { seams };
    let mut start = 0;
    std::iter::from_fn(move || {
        if start == text.len() {
            return None;
        }
        let rest = &text[start..];
        let len = seams.next(rest, min_len).unwrap_or(rest.len());
        let piece = TextPiece { text: &rest[..len], continues: start > 0 };
        start += len;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join_to_the_text_and_know_that_they_continue() {
        let text = "the cat's hat\n\n  and   12 bats, ünd the… 数据。数据，和\n".repeat(60);
        for seams in [Seams::Nowhere, Seams::Spaces, Seams::Words, Seams::Anywhere] {
            let cut: Vec<TextPiece<'_>> = pieces(&text, seams, 30).collect();
            assert_eq!(cut.len() > 20, seams != Seams::Nowhere, "{seams:?}");
            let mut joined = String::new();
            for piece in cut {
                assert_eq!(piece.continues, !joined.is_empty());
                joined.push_str(piece.text);
            }
            assert_eq!(joined, text);
        }
    }

    #[test]
    fn text_without_a_seam_and_text_with_a_long_blank_stay_whole() {
        let solid = "é".repeat(3 * MIN_PIECE_BYTES);
        let blank = "a word and ".repeat(MIN_PIECE_BYTES) + &" ".repeat(MIN_PIECE_BYTES + 1);
        for (text, seams) in [(&solid, Seams::Words), (&blank, Seams::Spaces)] {
            let cut: Vec<TextPiece<'_>> = pieces(text, seams, MIN_PIECE_BYTES).collect();
            assert_eq!(cut, [TextPiece::whole(text)]);
        }
    }
}
