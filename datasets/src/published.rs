//! A tokenizer as other programs read it: a `tokenizer.json`.

use serde_json::{Map, Value, json};

use crate::tokenizer::Tokenizer;

impl Tokenizer {
    /// The tokenizer as the content of a `tokenizer.json` that encodes text to the same ids; `None` for
    /// ids that stand for no text.
    pub fn to_published_json(&self) -> Option<Vec<u8>> {
        match self {
            Self::Vocabulary(vocabulary) => vocabulary.published_json(),
            Self::Bytes => Some(bytes_json().to_string().into_bytes()),
            Self::Ids { .. } => None,
        }
    }

    /// How a token is written in the published file; `None` if there is no such token.
    pub fn published_token(&self, id: u32) -> Option<String> {
        match self {
            Self::Vocabulary(vocabulary) => vocabulary.token(id),
            Self::Bytes => u8::try_from(id).ok().map(|byte| letter_of(byte).to_string()),
            Self::Ids { .. } => None,
        }
    }
}

/// A byte-level vocabulary without merges: each byte is the token of its number.
fn bytes_json() -> Value {
    let vocab: Map<String, Value> =
        (0..=u8::MAX).map(|byte| (letter_of(byte).to_string(), json!(byte))).collect();
    let byte_level = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": byte_level(false),
        "post_processor": null,
        "decoder": byte_level(false),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": [],
        },
    })
}

/// The letter that stands for a byte in byte-level vocabularies: itself if it is printable in
/// Latin-1, else the next of those from 256 on (GPT-2's published code, `bytes_to_unicode`).
fn letter_of(byte: u8) -> char {
    let is_printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if is_printable(&byte) {
        return char::from(byte);
    }
    let earlier = (0..byte).filter(|byte| !is_printable(byte)).count() as u32;
    char::from_u32(256 + earlier).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_written_as_a_vocabulary_encode_to_themselves() {
        let json = Tokenizer::Bytes.to_published_json().unwrap();
        let published = tokenizers::Tokenizer::from_bytes(json).unwrap();
        for text in ["The cat.\r\n\t\0", "naïve 猫 🐱 مرحبا", ""] {
            let ids = published.encode(text, false).unwrap().get_ids().to_vec();
            assert_eq!(ids, text.bytes().map(u32::from).collect::<Vec<_>>(), "{text:?}");
            assert_eq!(published.decode(&ids, false).unwrap(), text);
        }
        assert_eq!(Tokenizer::Bytes.published_token(32), Some("Ġ".into()));
    }
}
