//! What a single token is: its text, and how many bytes of a document it stands for.

use crate::error::DatasetError;
use crate::tokenizer::Tokenizer;

impl Tokenizer {
    /// The text of one token by itself; U+FFFD where it is a part of a character only.
    ///
    /// # Errors
    /// If the vocabulary's decoder fails.
    pub fn token_text(&self, id: u32) -> Result<String, DatasetError> {
        self.decode(&[id])
    }

    /// Bytes of a document's text that `id` stands for at the document's beginning; 0 for the marks
    /// of a document.
    ///
    /// # Errors
    /// If the vocabulary's decoder fails.
    pub fn token_bytes(&self, id: u32) -> Result<usize, DatasetError> {
        if [self.begin_of_document(), self.end_of_document()].contains(&Some(id)) {
            return Ok(0);
        }
        let text = self.token_text(id)?;
        match self {
            Self::Bytes => Ok(1),
            // A byte-level vocabulary writes each byte as one letter.
            Self::Vocabulary(vocabulary) if text.contains(char::REPLACEMENT_CHARACTER) => {
                Ok(vocabulary.token(id).map_or(0, |token| token.chars().count()))
            }
            Self::Vocabulary(_) => Ok(text.len()),
            Self::Ids { .. } => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpe;

    #[test]
    fn the_bytes_of_the_tokens_add_up_to_those_of_the_text() {
        let text = "the cat and the hat, the bat \u{e9}\u{1f980} caf\u{e9}";
        let trained = bpe::train([text.to_owned()].iter().map(String::as_str), 270).unwrap();
        for tokenizer in [Tokenizer::Bytes, trained] {
            let ids = tokenizer.encode(text).unwrap();
            let bytes: usize = ids.iter().map(|id| tokenizer.token_bytes(*id).unwrap()).sum();
            assert_eq!(bytes, text.len(), "{}", tokenizer.kind());
            assert_eq!(tokenizer.token_bytes(tokenizer.end_of_document().unwrap()).unwrap(), 0);
        }
    }
}
