//! Ids to text while they are generated: text is handed out as soon as no later id can change it.

use crate::error::DatasetError;
use crate::tokenizer::Tokenizer;

/// Ids held back at most while their bytes are not UTF-8 yet: a character has at most four bytes.
const MAX_HELD_IDS: usize = 8;

/// Decodes one id at a time; the pieces of text join to what decoding all ids at once yields, for
/// the ids of any text without U+FFFD. Ids of a vocabulary whose bytes stay invalid are shown as
/// U+FFFD after a few.
#[derive(Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Bytes that may still become a character.
    Bytes(Vec<u8>),
    /// `ids[..num_shown]` have been handed out as the first `shown_len` bytes of the text of `ids`.
    /// They stay for context: a decoder may treat the first id of a text unlike the others.
    Vocabulary { ids: Vec<u32>, num_shown: usize, shown_len: usize },
    /// Whether a number has been handed out yet.
    Ids { has_begun: bool },
}

impl Tokenizer {
    /// A decoder that takes ids one at a time and yields text as soon as it is certain.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream::new(self)
    }
}

impl<'a> DecodeStream<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer) -> Self {
        let state = match tokenizer {
            Tokenizer::Bytes => State::Bytes(Vec::new()),
            Tokenizer::Vocabulary(_) => State::Vocabulary { ids: Vec::new(), num_shown: 0, shown_len: 0 },
            Tokenizer::Ids { .. } => State::Ids { has_begun: false },
        };
        Self { tokenizer, state }
    }

    /// Text that `id` completes; empty while a character is incomplete.
    ///
    /// # Errors
    /// If the vocabulary's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String, DatasetError> {
        match &mut self.state {
            State::Bytes(held) => {
                held.extend(u8::try_from(id).ok());
                Ok(take_complete(held))
            }
            State::Vocabulary { ids, num_shown, shown_len } => {
                ids.push(id);
                let text = self.tokenizer.decode(ids)?;
                if text.ends_with(char::REPLACEMENT_CHARACTER) && ids.len() - *num_shown < MAX_HELD_IDS {
                    return Ok(String::new());
                }
                let fresh = text.get(*shown_len..).unwrap_or_default().to_owned();
                ids.drain(..*num_shown);
                *num_shown = ids.len();
                *shown_len = self.tokenizer.decode(ids)?.len();
                Ok(fresh)
            }
            State::Ids { has_begun } => {
                let separator = if std::mem::replace(has_begun, true) { " " } else { "" };
                Ok(format!("{separator}{id}"))
            }
        }
    }

    /// What is still held back, at the end of the ids.
    ///
    /// # Errors
    /// If the vocabulary's decoder fails.
    pub fn finish(self) -> Result<String, DatasetError> {
        match self.state {
            State::Bytes(held) => Ok(String::from_utf8_lossy(&held).into_owned()),
            State::Vocabulary { ids, shown_len, .. } => {
                Ok(self.tokenizer.decode(&ids)?.get(shown_len..).unwrap_or_default().to_owned())
            }
            State::Ids { .. } => Ok(String::new()),
        }
    }
}

/// Takes from `held` what is certain; at most three bytes, the start of a character, stay.
fn take_complete(held: &mut Vec<u8>) -> String {
    let mut text = String::new();
    loop {
        let error = match std::str::from_utf8(held) {
            Ok(valid) => {
                text.push_str(valid);
                held.clear();
                return text;
            }
            Err(error) => error,
        };
        let (valid, _) = held.split_at(error.valid_up_to());
        text.push_str(&String::from_utf8_lossy(valid));
        let Some(num_invalid) = error.error_len() else {
            held.drain(..error.valid_up_to());
            return text;
        };
        text.push(char::REPLACEMENT_CHARACTER);
        held.drain(..error.valid_up_to() + num_invalid);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bpe;

    fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
        let mut stream = tokenizer.decode_stream();
        let mut text: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        text.push_str(&stream.finish().unwrap());
        text
    }

    proptest! {
        #[test]
        fn streamed_bytes_join_to_the_lossy_text(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let ids: Vec<u32> = bytes.iter().map(|byte| u32::from(*byte)).collect();
            prop_assert_eq!(streamed(&Tokenizer::Bytes, &ids), String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn streamed_vocabulary_ids_join_to_the_text(text in "\\PC{0,40}") {
            let tokenizer = bpe::train(["größer als ∞, größer 🦀🦀"].into_iter(), 270).unwrap();
            let text = text.replace(char::REPLACEMENT_CHARACTER, "");
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(streamed(&tokenizer, &ids), text);
        }
    }

    #[test]
    fn a_character_appears_when_its_last_byte_does() {
        let mut stream = Tokenizer::Bytes.decode_stream();
        let shown: Vec<String> = "aé".bytes().map(|byte| stream.push(u32::from(byte)).unwrap()).collect();
        assert_eq!(shown, ["a", "", "é"]);
    }

    #[test]
    fn numbers_are_separated_by_spaces() {
        assert_eq!(
            streamed(&Tokenizer::Ids { vocab_size: 50, end_of_document: None }, &[4, 0, 17]),
            "4 0 17"
        );
    }
}
