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

/// One pass of a text through the vocabulary: what `tokenizers::Tokenizer::encode` does, without
/// offsets.
pub(crate) struct Encoder<'v> {
    inner: &'v tokenizers::Tokenizer,
    /// What is done with text that has no id.
    on_unknown_text: OnTrouble,
    /// Whether the text continues another, so that nothing is put in front of it.
    continues: bool,
    lost_bytes: Cell<u64>,
    /// The first text without an id, where that is an error.
    unspellable: RefCell<Option<String>>,
}

impl<'v> Encoder<'v> {
    pub(crate) fn new(inner: &'v tokenizers::Tokenizer, on_unknown_text: OnTrouble, continues: bool) -> Self {
        Self { inner, on_unknown_text, continues, lost_bytes: Cell::new(0), unspellable: RefCell::new(None) }
    }

    /// Ids of `text`.
    pub(crate) fn encode(&self, text: &str) -> Result<Encoded, DatasetError> {
        let inner = self.inner;
        let normalizer = inner.get_normalizer().map(|inner| BoundedNormalizer::new(inner, self.continues));
        let mut splits = inner.get_added_vocabulary().extract_and_normalize(normalizer.as_ref(), text);
        if let Some(problem) = normalizer.and_then(|normalizer| normalizer.problem.into_inner()) {
            return Err(DatasetError::Tokenizer { path: None, problem });
        }
        if let Some(pre_tokenizer) = inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut splits).map_err(vocabulary_error)?;
        }
        splits.tokenize(|split| Ok(self.tokens(split))).map_err(vocabulary_error)?;
        if let Some(problem) = self.unspellable.take() {
            return Err(DatasetError::Unspellable { document: None, problem });
        }
        let mut ids = Vec::with_capacity(text.len() / 3);
        for (_, _, tokens) in splits.get_splits(OffsetReferential::Original, OffsetType::Byte) {
            ids.extend(tokens.iter().flatten().map(|token| token.id));
        }
        Ok(Encoded { ids, lost_bytes: self.lost_bytes.get() })
    }

    /// Tokens of `split`, without their text; what they leave out is counted or noted.
    fn tokens(&self, split: &NormalizedString) -> Vec<Token> {
        let text = split.get();
        let mut tokens = self.inner.get_model().tokenize(text).unwrap_or_default();
        // Offsets are sums of lengths, so they end early by what was left out.
        let num_covered = tokens.last().map_or(0, |token| token.offsets.1);
        if num_covered < text.len() {
            match self.on_unknown_text {
                OnTrouble::Skip => self.lost_bytes.update(|lost| lost + (text.len() - num_covered) as u64),
                OnTrouble::Stop => {
                    self.unspellable.borrow_mut().get_or_insert_with(|| self.describe_unspellable(split));
                }
            }
        }
        // A long document would hold each of its tokens in memory of its own.
        tokens.iter_mut().for_each(|token| token.value = String::new());
        tokens
    }

    /// The first character of `split` that has no id on its own.
    fn describe_unspellable(&self, split: &NormalizedString) -> String {
        let model = self.inner.get_model();
        let cannot_spell = |letter: &str| model.tokenize(letter).map_or(true, |tokens| tokens.is_empty());
        let normalized = split.get();
        let letters = || normalized.char_indices().map(|(at, letter)| (at, letter.len_utf8()));
        let first =
            letters().find(|(at, len)| cannot_spell(&normalized[*at..at + len])).or_else(|| letters().next());
        let original = first
            .and_then(|(at, len)| split.get_range_original(Range::Normalized(at..at + len)))
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
    /// Whether nothing is put in front of what the text begins with.
    continues: bool,
    /// What stopped it: the crate does not pass errors of normalizers on.
    problem: OnceLock<String>,
}

impl<'a> BoundedNormalizer<'a> {
    fn new(inner: &'a NormalizerWrapper, continues: bool) -> Self {
        Self { inner, continues, problem: OnceLock::new() }
    }
}

impl Normalizer for BoundedNormalizer<'_> {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        let bounds = Bounds {
            max_len: (text.get().len() * MAX_GROWTH).max(MIN_GROWTH_BYTES),
            // Behind an added token the crate begins anew, within a text too.
            prepends: !(self.continues && text.offsets_original().0 == 0),
        };
        let normalized = bounds.normalize(self.inner, text);
        if let Err(error) = &normalized {
            self.problem.get_or_init(|| format!("the normalizer fails: {error}. Use another tokenizer.json"));
        }
        normalized
    }
}

/// What a normalizer may do to a text.
#[derive(Clone, Copy)]
struct Bounds {
    max_len: usize,
    prepends: bool,
}

impl Bounds {
    fn normalize(
        self,
        normalizer: &NormalizerWrapper,
        text: &mut NormalizedString,
    ) -> tokenizers::Result<()> {
        match normalizer {
            NormalizerWrapper::Sequence(sequence) => {
                return sequence.as_ref().iter().try_for_each(|step| self.normalize(step, text));
            }
            NormalizerWrapper::Prepend(_) if !self.prepends => return Ok(()),
            _ => normalizer.normalize(text)?,
        }
        if text.get().len() > self.max_len {
            return Err(format!("it makes the text more than {MAX_GROWTH} times as long").into());
        }
        Ok(())
    }
}
