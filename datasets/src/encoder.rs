//! One pass of a text through a vocabulary, with an eye on what is left out of it.

use std::cell::{Cell, RefCell};
use std::sync::OnceLock;

use switchyard_ground::printable::excerpt;
use tokenizers::normalizer::Range;
use tokenizers::{
    Model, NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizer,
    Token,
};

use crate::config::OnTrouble;
use crate::encoded::{Encoded, vocabulary_error};
use crate::error::DatasetError;

/// How many times as long as the text a normalizer may make it, from one step to the next.
pub(crate) const MAX_GROWTH: usize = 64;
/// What is always allowed.
const MIN_GROWTH_BYTES: usize = 1 << 12;

/// Characters of the surroundings that a message shows.
const SHOWN_CHARS: usize = 40;

/// One pass of a text through the vocabulary.
pub(crate) struct Encoder<'v> {
    inner: &'v tokenizers::Tokenizer,
    /// What is done with text that has no id.
    on_unknown_text: OnTrouble,
    /// Bytes in front of the text whose ids are not wanted.
    context_len: usize,
    lost_bytes: Cell<u64>,
    /// Whether a split that reaches from the context into the text has been cut there.
    is_cut: Cell<bool>,
    /// Whether one reaches across that cannot be cut.
    is_torn: Cell<bool>,
    /// The first text without an id, where that is an error.
    unspellable: RefCell<Option<String>>,
}

impl<'v> Encoder<'v> {
    /// A pass that leaves out the ids of the first `context_len` bytes.
    pub(crate) fn new(
        inner: &'v tokenizers::Tokenizer,
        on_unknown_text: OnTrouble,
        context_len: usize,
    ) -> Self {
        Self {
            inner,
            on_unknown_text,
            context_len,
            lost_bytes: Cell::new(0),
            is_cut: Cell::new(false),
            is_torn: Cell::new(false),
            unspellable: RefCell::new(None),
        }
    }

    /// Ids of `text` behind its context; `None` if the two cannot be told apart.
    pub(crate) fn encode(&self, text: &str) -> Result<Option<Encoded>, DatasetError> {
        let inner = self.inner;
        let normalizer = inner.get_normalizer().map(BoundedNormalizer::new);
        let mut splits = inner.get_added_vocabulary().extract_and_normalize(normalizer.as_ref(), text);
        if let Some(problem) = normalizer.and_then(|normalizer| normalizer.problem.into_inner()) {
            return Err(DatasetError::Tokenizer { path: None, problem });
        }
        if let Some(pre_tokenizer) = inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut splits).map_err(vocabulary_error)?;
        }
        splits.tokenize(|split| Ok(self.tokens_of_split(split))).map_err(vocabulary_error)?;
        if let Some(problem) = self.unspellable.take() {
            return Err(DatasetError::Unspellable { document: None, problem });
        }
        let mut ids = Vec::with_capacity(text.len() / 3);
        for (_, (start, end), tokens) in splits.get_splits(OffsetReferential::Original, OffsetType::Byte) {
            // Tokens that the vocabulary adds are found before there are splits, and are never cut.
            if start < self.context_len && self.context_len < end && !self.is_cut.get() {
                return Ok(None);
            }
            if end > self.context_len || self.context_len == 0 {
                ids.extend(tokens.iter().flatten().map(|token| token.id));
            }
        }
        let encoded = Encoded { ids, lost_bytes: self.lost_bytes.get() };
        Ok(if self.is_torn.get() { None } else { Some(encoded) })
    }

    /// Tokens of that part of `split` which lies behind the context.
    fn tokens_of_split(&self, split: &NormalizedString) -> Vec<Token> {
        let (start, end) = split.offsets_original();
        if self.context_len == 0 || start >= self.context_len {
            return self.tokens(split, 0);
        }
        if end <= self.context_len {
            return Vec::new();
        }
        match split.convert_offsets(Range::Original(self.context_len - start..end - start)) {
            Some(behind) => {
                self.is_cut.set(true);
                self.tokens(split, behind.start)
            }
            None => {
                self.is_torn.set(true);
                Vec::new()
            }
        }
    }

    /// Tokens of `split` from byte `from` of its normalized text on; what they leave out is counted
    /// or noted.
    fn tokens(&self, split: &NormalizedString, from: usize) -> Vec<Token> {
        let Some(text) = split.get().get(from..) else {
            self.is_torn.set(true);
            return Vec::new();
        };
        let tokens = self.inner.get_model().tokenize(text).unwrap_or_default();
        // Offsets are sums of lengths, so they end early by what was left out.
        let num_covered = tokens.last().map_or(0, |token| token.offsets.1);
        if num_covered < text.len() {
            match self.on_unknown_text {
                OnTrouble::Skip => self.lost_bytes.update(|lost| lost + (text.len() - num_covered) as u64),
                OnTrouble::Stop => {
                    let described = || self.describe_unspellable(split, from);
                    self.unspellable.borrow_mut().get_or_insert_with(described);
                }
            }
        }
        tokens
    }

    /// The first character of `split` that has no id on its own.
    fn describe_unspellable(&self, split: &NormalizedString, from: usize) -> String {
        let model = self.inner.get_model();
        let cannot_spell = |letter: &str| model.tokenize(letter).map_or(true, |tokens| tokens.is_empty());
        let normalized = &split.get()[from..];
        let letters = || normalized.char_indices().map(|(at, letter)| (at, letter.len_utf8()));
        let first =
            letters().find(|(at, len)| cannot_spell(&normalized[*at..at + len])).or_else(|| letters().next());
        let original = first
            .and_then(|(at, len)| split.get_range_original(Range::Normalized(from + at..from + at + len)))
            .filter(|original| !original.is_empty())
            .unwrap_or(normalized);
        let letter = original.chars().next().unwrap_or(char::REPLACEMENT_CHARACTER);
        format!(
            "the vocabulary has no id for `{}` (U+{:04X}), in `{}`",
            excerpt(original, 1),
            u32::from(letter),
            excerpt(split.get_original(), SHOWN_CHARS)
        )
    }
}

/// A normalizer that stops when it makes the text much longer.
struct BoundedNormalizer<'a> {
    inner: &'a NormalizerWrapper,
    /// What stopped it: the crate does not pass errors of normalizers on.
    problem: OnceLock<String>,
}

impl<'a> BoundedNormalizer<'a> {
    fn new(inner: &'a NormalizerWrapper) -> Self {
        Self { inner, problem: OnceLock::new() }
    }
}

impl Normalizer for BoundedNormalizer<'_> {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        let limit = (text.get().len() * MAX_GROWTH).max(MIN_GROWTH_BYTES);
        let normalized = normalize_within(limit, self.inner, text);
        if let Err(error) = &normalized {
            self.problem.get_or_init(|| format!("the normalizer fails: {error}. Use another tokenizer.json"));
        }
        normalized
    }
}

fn normalize_within(
    limit: usize,
    normalizer: &NormalizerWrapper,
    text: &mut NormalizedString,
) -> tokenizers::Result<()> {
    if let NormalizerWrapper::Sequence(sequence) = normalizer {
        return sequence.as_ref().iter().try_for_each(|step| normalize_within(limit, step, text));
    }
    normalizer.normalize(text)?;
    if text.get().len() > limit {
        return Err(format!("it makes the text more than {MAX_GROWTH} times as long").into());
    }
    Ok(())
}
