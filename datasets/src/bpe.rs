//! Training of a byte-level byte-pair encoding (Sennrich et al., arXiv:1508.07909, algorithm 1).
//!
//! The trainer of the crate `tokenizers` keeps pairs in randomly seeded hash maps and may hold one
//! pair twice in its queue, so that ties can fall differently from one process to the next. A
//! vocabulary decides what a checkpoint means, so here the result is a function of the text alone:
//! counts are sums, and equal counts are ordered by pair. The words and the file format are those
//! of `tokenizers`, which encodes and decodes with the result.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use rayon::prelude::*;
use serde_json::json;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use crate::encoded::vocabulary_error;
use crate::error::DatasetError;
use crate::tokenizer::Tokenizer;
use crate::vocabulary::END_OF_DOCUMENT;
use crate::words::{byte_level_chars, cut_before_word, words};

/// Shortest part of a text that one core counts, and longest.
const PIECE_BYTES: std::ops::Range<usize> = 1 << 16..1 << 20;

type Pair = (u32, u32);

/// How often each word occurs; grows text by text.
#[derive(Debug, Default)]
pub(crate) struct WordCounts(HashMap<String, u64>);

impl WordCounts {
    /// Counts the words of `texts`, on all cores.
    pub(crate) fn add<'a>(&mut self, texts: impl Iterator<Item = &'a str>) -> Result<(), DatasetError> {
        let pieces: Vec<&str> = texts.flat_map(pieces).collect();
        let count_words = |mut counts: HashMap<&'a str, u64>, piece| {
            for word in words(piece)? {
                *counts.entry(word).or_default() += 1;
            }
            Ok(counts)
        };
        let merge = |mut left: HashMap<&'a str, u64>, right| {
            for (word, count) in right {
                *left.entry(word).or_default() += count;
            }
            Ok(left)
        };
        let counts: tokenizers::Result<_> =
            pieces.into_par_iter().try_fold(HashMap::new, count_words).try_reduce(HashMap::new, merge);
        for (word, count) in counts.map_err(vocabulary_error)? {
            *self.0.entry(word.to_owned()).or_default() += count;
        }
        Ok(())
    }
}

/// `text` in parts whose words are its words. A longer word than one part may be falls into several:
/// a vocabulary learns nothing from it.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let head = &rest[..rest.floor_char_boundary(PIECE_BYTES.end)];
        let cut =
            if head.len() > PIECE_BYTES.start { cut_before_word(head, PIECE_BYTES.start) } else { None };
        let (piece, after) = rest.split_at(cut.unwrap_or(head.len()));
        rest = after;
        Some(piece).filter(|piece| !piece.is_empty())
    })
}

/// The vocabulary of at most `vocab_size` ids trained on `texts`.
#[cfg(test)]
pub(crate) fn train<'a>(
    texts: impl Iterator<Item = &'a str>,
    vocab_size: usize,
) -> Result<Tokenizer, DatasetError> {
    let mut counts = WordCounts::default();
    counts.add(texts)?;
    train_on_words(counts, vocab_size, &mut || Ok(()))
}

/// The vocabulary trained on counted words: id 0 is the end-of-document mark, 1 to 256 are the
/// bytes, the rest merges in the order in which they were found. Ends early when no pair occurs
/// twice; `tick` is called once a merge.
pub(crate) fn train_on_words(
    counts: WordCounts,
    vocab_size: usize,
    tick: &mut dyn FnMut() -> Result<(), DatasetError>,
) -> Result<Tokenizer, DatasetError> {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut tokens = vec![END_OF_DOCUMENT.to_owned()];
    tokens.extend(alphabet.iter().map(char::to_string));
    let mut ids: HashMap<String, u32> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id as u32)).collect();

    let mut merger = Merger::new(counts, &ids);
    let mut merges = Vec::new();
    while tokens.len() < vocab_size {
        tick()?;
        let Some(pair) = merger.most_frequent_pair() else { break };
        let (left, right) = (tokens[pair.0 as usize].clone(), tokens[pair.1 as usize].clone());
        let joined = format!("{left}{right}");
        // Two ways to the same string share one id.
        let id = *ids.entry(joined.clone()).or_insert(tokens.len() as u32);
        if id as usize == tokens.len() {
            tokens.push(joined);
        }
        merges.push([left, right]);
        merger.merge(pair, id);
    }
    let json = tokenizer_json(&tokens, &merges).into_bytes();
    Ok(Tokenizer::from_json(json)
        .map_err(|problem| DatasetError::Tokenizer { path: None, problem })?
        .with_vocab_size(vocab_size))
}

/// The words in their current spelling, and how often each pair of neighbours occurs.
struct Merger {
    words: Vec<(Vec<u32>, i64)>,
    pair_counts: HashMap<Pair, i64>,
    /// Words in which a pair was seen; it may have been merged away since.
    words_of_pair: HashMap<Pair, Vec<u32>>,
    /// Most frequent first, then the smaller pair; an entry may be out of date.
    queue: BinaryHeap<(i64, Reverse<Pair>)>,
}

impl Merger {
    fn new(counts: WordCounts, ids: &HashMap<String, u32>) -> Self {
        let id_of_char = |character: char| ids.get(character.encode_utf8(&mut [0; 4])).copied();
        let spell = |(word, count): (String, u64)| {
            (byte_level_chars(&word).filter_map(id_of_char).collect(), count as i64)
        };
        let words: Vec<(Vec<u32>, i64)> = counts.0.into_iter().map(spell).collect();
        let mut merger = Self {
            words,
            pair_counts: HashMap::new(),
            words_of_pair: HashMap::new(),
            queue: BinaryHeap::new(),
        };
        for (index, (symbols, count)) in merger.words.iter().enumerate() {
            for pair in symbols.windows(2).map(|pair| (pair[0], pair[1])) {
                *merger.pair_counts.entry(pair).or_default() += count;
                merger.words_of_pair.entry(pair).or_default().push(index as u32);
            }
        }
        merger.queue = merger.pair_counts.iter().map(|(pair, count)| (*count, Reverse(*pair))).collect();
        merger
    }

    /// The pair to merge next: most frequent, then smallest; `None` if none occurs twice.
    fn most_frequent_pair(&mut self) -> Option<Pair> {
        while let Some((queued, Reverse(pair))) = self.queue.pop() {
            let count = self.pair_counts.get(&pair).copied().unwrap_or(0);
            if count < 2 {
                continue;
            }
            if count == queued {
                return Some(pair);
            }
            // The count fell since. A count that rose was queued again.
            if count < queued {
                self.queue.push((count, Reverse(pair)));
            }
        }
        None
    }

    /// Replaces `pair` by `id` in every word.
    fn merge(&mut self, pair: Pair, id: u32) {
        let mut changes: HashMap<Pair, i64> = HashMap::new();
        let mut indices = self.words_of_pair.remove(&pair).unwrap_or_default();
        indices.sort_unstable();
        indices.dedup();
        for index in indices {
            let (symbols, count) = &mut self.words[index as usize];
            let merged = replace_pair(symbols, pair, id);
            for old in symbols.windows(2) {
                *changes.entry((old[0], old[1])).or_default() -= *count;
            }
            for new in merged.windows(2).map(|new| (new[0], new[1])) {
                *changes.entry(new).or_default() += *count;
                if new.0 == id || new.1 == id {
                    self.words_of_pair.entry(new).or_default().push(index);
                }
            }
            *symbols = merged;
        }
        for (changed, change) in changes {
            let count = self.pair_counts.entry(changed).or_default();
            *count += change;
            if change > 0 {
                self.queue.push((*count, Reverse(changed)));
            }
        }
    }
}

/// `symbols` with each occurrence of `pair`, from the left, replaced by `id`.
fn replace_pair(symbols: &[u32], pair: Pair, id: u32) -> Vec<u32> {
    let mut merged = Vec::with_capacity(symbols.len());
    let mut index = 0;
    while index < symbols.len() {
        if symbols.get(index..index + 2) == Some(&[pair.0, pair.1]) {
            merged.push(id);
            index += 2;
        } else {
            merged.push(symbols[index]);
            index += 1;
        }
    }
    merged
}

/// The vocabulary as a `tokenizer.json`.
fn tokenizer_json(tokens: &[String], merges: &[[String; 2]]) -> String {
    let vocab: serde_json::Map<_, _> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let end_mark = json!({
        "id": 0, "content": END_OF_DOCUMENT, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    });
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": vocab, "merges": merges,
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [end_mark], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level, "model": model,
    });
    tokenizer.to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, word for word: count all pairs anew, merge the most frequent, repeat. Of
    /// equally frequent pairs the one whose symbols are older comes first; letters are as old as
    /// their place in the alphabet.
    fn slow_merges(words: &[(String, u64)], num_merges: usize) -> Vec<(String, String)> {
        let mut words: Vec<(Vec<String>, u64)> =
            words.iter().map(|(word, count)| (word.chars().map(String::from).collect(), *count)).collect();
        let mut symbols_by_age: Vec<String> = ('a'..='z').map(String::from).collect();
        let mut merges = Vec::new();
        while symbols_by_age.len() < 26 + num_merges {
            let mut counts: HashMap<(String, String), u64> = HashMap::new();
            for (symbols, count) in &words {
                for pair in symbols.windows(2) {
                    *counts.entry((pair[0].clone(), pair[1].clone())).or_default() += count;
                }
            }
            let age = |symbol: &String| symbols_by_age.iter().position(|other| other == symbol).unwrap();
            let best = counts
                .iter()
                .max_by_key(|((left, right), count)| (**count, Reverse((age(left), age(right)))));
            let Some(((left, right), _)) = best.filter(|(_, count)| **count >= 2) else { break };
            let (left, right) = (left.clone(), right.clone());
            for (symbols, _) in &mut words {
                let mut index = 0;
                while index + 1 < symbols.len() {
                    if symbols[index] == left && symbols[index + 1] == right {
                        let next = symbols.remove(index + 1);
                        symbols[index].push_str(&next);
                    }
                    index += 1;
                }
            }
            let joined = format!("{left}{right}");
            if !symbols_by_age.contains(&joined) {
                symbols_by_age.push(joined);
            }
            merges.push((left, right));
        }
        merges
    }

    fn merges_of(tokenizer: &Tokenizer) -> Vec<(String, String)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        tokenizer.save(&path).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        serde_json::from_value(json["model"]["merges"].clone()).unwrap()
    }

    #[test]
    fn the_same_text_gives_the_same_file_at_any_thread_count() {
        let text = include_str!("tokenizer.rs").repeat(3) + include_str!("bpe.rs");
        let train_with = |num_threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
            pool.install(|| train([text.as_str()].into_iter(), 700).unwrap().hash())
        };
        let first = train_with(1);
        assert!((0..4).all(|repeat| train_with(1 + repeat % 3) == first));
    }

    #[test]
    fn too_little_text_keeps_the_configured_size() {
        let tokenizer = train(["abab"].into_iter(), 1000).unwrap();
        assert_eq!(tokenizer.vocab_size(), 1000);
        assert_eq!(tokenizer.encode("abab").unwrap().len(), 2);
    }

    proptest! {
        #[test]
        fn merges_are_those_of_the_definition(
            words in proptest::collection::hash_map("[abc]{1,9}", 1_u64..6, 1..12), num_merges in 1_usize..12,
        ) {
            let words: Vec<(String, u64)> = words.into_iter().collect();
            let counts = WordCounts(words.iter().cloned().collect());
            let tokenizer = train_on_words(counts, 257 + num_merges, &mut || Ok(())).unwrap();
            prop_assert_eq!(merges_of(&tokenizer), slow_merges(&words, num_merges));
        }

        #[test]
        fn every_text_survives_the_round_trip(text in "\\PC{0,60}") {
            let tokenizer = train(["the theme of the thing"].into_iter(), 262).unwrap();
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert!(ids.iter().all(|id| (1..262).contains(id)));
            prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }
}
