//! Where a long text may be cut so that its parts give, one after the other, the ids of the whole.
//!
//! A seam is a place that every step of a tokenizer treats as a border whatever surrounds it. Each
//! step is read from the file and looked up in a closed list; a tokenizer with a step that is not in
//! it has no seams, and its documents are encoded whole.
//!
//! Why a seam changes nothing, step by step. It lies before a single space between two *plain*
//! characters ([`is_plain`]): letters and digits that no normalizer of the list composes with a
//! neighbour, removes, or turns into anything but a letter or digit.
//! - **Added tokens**: none holds a plain character followed by a space, so none reaches across.
//!   None ends in a plain character, so none swallows the space (`rstrip`) or makes the part behind
//!   it a text of its own, in front of which a mark is put.
//! - **Normalizers**: they work character by character, grapheme by grapheme, or replace what cannot
//!   reach across. What is put in front of a text (`Prepend`) is left out for a part that continues.
//! - **Pre-tokenizers**: at least one ends a split there, or the model does so; the others look at
//!   nothing across it. A part that continues begins with the space, or the mark in its place, so no
//!   further mark is put in front.
//! - **Models** see one split at a time. A BPE that sees several words at once is admitted if none
//!   of its tokens holds the mark of a space behind another character: then no merge reaches across,
//!   and the merges of one side never wait for the other's. A unigram that does is not: its scores
//!   are sums from the beginning of the text, which rounding makes depend on all that is in front.

use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper};

/// What stands for a space in vocabularies after SentencePiece.
const SPACE_MARK: char = '\u{2581}';

/// Text with a longer run of white space is encoded whole. `fancy-regex` gives up after a million
/// steps, and the crate then stops splitting without a word, so that the rest depends on the whole
/// text. Expressions of the list back up in white space only; none was seen to give up at a megabyte
/// of it, and this stays far below.
const MAX_BLANK_BYTES: usize = 1 << 16;

/// Places at which a tokenizer may be given a text in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seams {
    /// None is known: documents are encoded whole.
    Nowhere,
    /// Before a space between two words.
    Spaces,
    /// There, before line ends, and before the punctuation of Chinese and Japanese.
    Words,
    /// Between any two characters.
    Anywhere,
}

impl Seams {
    /// The seams of `inner`, read from its parts.
    pub(crate) fn of(inner: &tokenizers::Tokenizer) -> Self {
        let normalizer = inner.get_normalizer().map(serde_json::to_value).transpose();
        let pre_tokenizer = inner.get_pre_tokenizer().map(serde_json::to_value).transpose();
        let (Ok(normalizer), Ok(pre_tokenizer)) = (normalizer, pre_tokenizer) else {
            return Self::Nowhere;
        };
        let has_plain_tokens = inner.get_added_tokens_decoder().values().any(|token| !token.special);
        if has_plain_tokens && !added_tokens_stay_on_one_side(inner) {
            return Self::Nowhere;
        }
        let mut border = Border { space: ' ', is_split: false, is_mapped: false, is_wide: !has_plain_tokens };
        let is_admitted = normalizer.as_ref().is_none_or(|step| border.survives_normalizer(step))
            && pre_tokenizer.as_ref().is_none_or(|step| border.survives_pre_tokenizer(step))
            && (border.is_split || is_split_by_model(inner.get_model(), border.space));
        match (is_admitted, border.is_split && border.is_wide) {
            (false, _) => Self::Nowhere,
            (true, false) => Self::Spaces,
            (true, true) => Self::Words,
        }
    }

    /// The first seam of `text` from byte `min` on.
    pub(crate) fn next(self, text: &str, min: usize) -> Option<usize> {
        let bytes = text.as_bytes();
        let is_seam = |at: &usize| match bytes[*at] {
            b' ' => self != Self::Nowhere && is_between_words(text, *at),
            b'\n' => self == Self::Words && text[..*at].ends_with(|c| is_plain(c) || is_ideograph(c)),
            0xe3 | 0xef => self == Self::Words && is_behind_ideograph(text, *at),
            _ => false,
        };
        match self {
            Self::Nowhere => None,
            Self::Anywhere => Some(text.floor_char_boundary(min)).filter(|at| (1..text.len()).contains(at)),
            Self::Spaces | Self::Words => (min.max(1)..bytes.len()).find(is_seam),
        }
    }
}

/// Whether `text` has so much white space in a row that it is to be encoded whole, by the crate
/// alone.
pub(crate) fn has_long_blank(text: &str) -> bool {
    text.len() > MAX_BLANK_BYTES
        && text.split(|c: char| !c.is_whitespace()).any(|blank| blank.len() > MAX_BLANK_BYTES)
}

/// Letters and digits of scripts that part words by spaces: those that are the same in each Unicode
/// normal form (or, in Hangul, fall into letters), carry no mark, and are graphemes of their own.
fn is_plain(character: char) -> bool {
    matches!(character,
        '0'..='9' | 'A'..='Z' | 'a'..='z'
        | '\u{391}'..='\u{3a1}' | '\u{3a3}'..='\u{3a9}' | '\u{3b1}'..='\u{3c9}'
        | '\u{410}'..='\u{418}' | '\u{41a}'..='\u{438}' | '\u{43a}'..='\u{44f}'
        | '\u{5d0}'..='\u{5ea}' | '\u{627}'..='\u{63a}' | '\u{641}'..='\u{64a}'
        | '\u{ac00}'..='\u{d7a3}')
}

fn plain_characters() -> impl Iterator<Item = char> {
    ('0'..='\u{64a}').chain('\u{ac00}'..='\u{d7a3}').filter(|character| is_plain(*character))
}

fn is_ideograph(character: char) -> bool {
    matches!(character, '\u{4e00}'..='\u{9fa5}')
}

/// Two plain characters are asked for in front: the second is a grapheme of its own then.
fn is_between_words(text: &str, at: usize) -> bool {
    text[at + 1..].starts_with(is_plain)
        && text[..at].chars().rev().take(2).filter(|c| is_plain(*c)).count() == 2
}

fn is_behind_ideograph(text: &str, at: usize) -> bool {
    let is_punctuation = |c: char| matches!(c, '、' | '。' | '，' | '！' | '：' | '；' | '？');
    text.is_char_boundary(at) && text[at..].starts_with(is_punctuation) && text[..at].ends_with(is_ideograph)
}

/// Whether no added token reaches across a seam or looks across one. Special tokens are not searched
/// for, but hide others where both fit.
fn added_tokens_stay_on_one_side(inner: &tokenizers::Tokenizer) -> bool {
    !inner.get_added_tokens_decoder().values().any(|token| {
        let mut neighbours = token.content.chars().zip(token.content.chars().skip(1));
        neighbours.any(|(left, right)| is_plain(left) && right == ' ')
            || token.content.ends_with(is_plain)
            || (token.single_word && token.content.starts_with(' '))
            // The text that such a token is compared with is not the one that is cut.
            || (token.normalized && inner.get_normalizer().is_some())
    })
}

/// A seam on its way through the steps of a tokenizer.
struct Border {
    /// What the space behind it has become: a space, or a mark.
    space: char,
    /// Whether a split ends there.
    is_split: bool,
    /// Whether the bytes have been written as other characters.
    is_mapped: bool,
    /// Whether the same holds for the further seams of [`Seams::Words`].
    is_wide: bool,
}

impl Border {
    /// Whether `step` works on either side as it does on both.
    fn survives_normalizer(&mut self, step: &Value) -> bool {
        match step["type"].as_str().unwrap_or_default() {
            "Sequence" => steps_of(step, "normalizers").iter().all(|step| self.survives_normalizer(step)),
            "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase" => true,
            "BertNormalizer" | "StripAccents" | "Prepend" => {
                self.is_wide = false;
                true
            }
            "Nmt" => {
                self.is_wide = false;
                self.space == ' '
            }
            "Precompiled" => {
                self.is_wide = false;
                self.space == ' ' && keeps_plain_text(step)
            }
            "Replace" => {
                self.is_wide = false;
                self.survives_replacement(step)
            }
            _ => false,
        }
    }

    fn survives_replacement(&mut self, step: &Value) -> bool {
        let content = step["content"].as_str().unwrap_or_default();
        if let Some(expression) = step["pattern"]["Regex"].as_str() {
            // A seam has one space.
            return expression == " {2,}";
        }
        let Some(pattern) = step["pattern"]["String"].as_str() else { return false };
        if only_char(pattern) == Some(self.space) {
            let space = only_char(content).filter(|space| [' ', SPACE_MARK].contains(space));
            self.space = space.unwrap_or(self.space);
            return space.is_some();
        }
        self.is_away(pattern)
    }

    /// Whether `pattern` matches nothing next to the border.
    fn is_away(&self, pattern: &str) -> bool {
        let is_next_to = |c: char| c.is_alphanumeric() || c == self.space;
        !pattern.is_empty() && !pattern.contains(is_next_to)
    }

    /// Whether `step` splits either side as it does both, but for a border there.
    fn survives_pre_tokenizer(&mut self, step: &Value) -> bool {
        let kind = step["type"].as_str().unwrap_or_default();
        if kind == "Sequence" {
            return steps_of(step, "pretokenizers").iter().all(|step| self.survives_pre_tokenizer(step));
        }
        if self.is_split {
            // Splits are looked at one by one, except that a text may have a first one.
            return kind != "Metaspace" || step["prepend_scheme"] != "first";
        }
        if self.is_mapped {
            return false;
        }
        match kind {
            "ByteLevel" => self.survives_byte_level(step),
            "Metaspace" => self.survives_metaspace(step),
            "BertPreTokenizer" | "Whitespace" | "WhitespaceSplit" => {
                self.is_wide = false;
                self.is_split = true;
                self.space == ' '
            }
            "CharDelimiterSplit" => {
                self.is_wide = false;
                let delimiter = step["delimiter"].as_str().unwrap_or_default();
                self.is_split = only_char(delimiter) == Some(self.space);
                self.is_split || self.is_away(delimiter)
            }
            "Digits" => true,
            "Punctuation" => {
                self.is_wide = false;
                true
            }
            "Split" => self.survives_split(step),
            _ => false,
        }
    }

    fn survives_byte_level(&mut self, step: &Value) -> bool {
        let uses_pattern = step["use_regex"] != false;
        let adds_space = step["add_prefix_space"] != false;
        if self.space != ' ' {
            return false;
        }
        self.is_wide &= !adds_space;
        self.is_split = uses_pattern;
        self.is_mapped = true;
        self.space = 'Ġ';
        true
    }

    fn survives_metaspace(&mut self, step: &Value) -> bool {
        let Some(mark) = step["replacement"].as_str().and_then(only_char) else { return false };
        let is_mark = !mark.is_alphanumeric() && (self.space == ' ' || self.space == mark);
        self.is_wide = false;
        self.space = mark;
        self.is_split = step["split"] != false;
        is_mark
    }

    fn survives_split(&mut self, step: &Value) -> bool {
        let behavior = step["behavior"].as_str().unwrap_or_default();
        let is_inverted = step["invert"] != false;
        if let Some(pattern) = step["pattern"]["String"].as_str() {
            self.is_wide = false;
            if only_char(pattern) == Some(self.space) {
                self.is_split = true;
                return !is_inverted && behavior != "MergedWithPrevious";
            }
            return !is_inverted && self.is_away(pattern);
        }
        let expression = step["pattern"]["Regex"].as_str().unwrap_or_default();
        let is_plain_split = matches!((behavior, is_inverted), ("Isolated", false) | ("Removed", true));
        let Some(covers) = Covers::of_expression(expression) else { return false };
        self.is_split = covers.letters && covers.digits;
        is_plain_split && self.space == ' '
    }
}

/// What an expression matches wherever it stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Covers {
    letters: bool,
    digits: bool,
}

const NOTHING: Covers = Covers { letters: false, digits: false };
const LETTERS: Covers = Covers { letters: true, digits: false };
const DIGITS: Covers = Covers { letters: false, digits: true };

/// The alternatives of which the patterns after GPT-2, GPT-4, Llama 3, Qwen and StarCoder are made.
///
/// None matches a letter or digit and what follows it at a seam (white space, or punctuation behind
/// an ideograph), none looks back, and none looks ahead but from behind white space. So matches end at
/// a seam, and those on either side are the same with and without the other; a pattern that covers
/// letters and digits leaves no gap there.
const ALTERNATIVES: [(&str, Covers); 27] = [
    (r"'s", NOTHING),
    (r"'t", NOTHING),
    (r"'re", NOTHING),
    (r"'ve", NOTHING),
    (r"'m", NOTHING),
    (r"'ll", NOTHING),
    (r"'d", NOTHING),
    (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", NOTHING),
    (r"'(?i:[sdmt]|ll|ve|re)", NOTHING),
    (r"\p{L}+", LETTERS),
    (r" ?\p{L}+", LETTERS),
    (r"[^\r\n\p{L}\p{N}]?\p{L}+", LETTERS),
    // These two match all letters together; see `of_expression`.
    (O200K_LOWER, NOTHING),
    (O200K_UPPER, NOTHING),
    (r"\p{N}", DIGITS),
    (r"\p{N}+", DIGITS),
    (r" ?\p{N}+", DIGITS),
    (r"\p{N}{1,3}", DIGITS),
    (r"[0-9]", DIGITS),
    (r"[0-9]+", DIGITS),
    (r" ?[^\s\p{L}\p{N}]+", NOTHING),
    (r" ?[^\s\p{L}\p{N}]+[\r\n]*", NOTHING),
    (r" ?[^\s\p{L}\p{N}]+[\r\n/]*", NOTHING),
    (r"\s*[\r\n]+", NOTHING),
    (r"\s*[\r\n]", NOTHING),
    (r"\s+(?!\S)", NOTHING),
    (r"\s+", NOTHING),
];

const O200K_LOWER: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?";
const O200K_UPPER: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?";

impl Covers {
    /// `None` if the expression is not made of [`ALTERNATIVES`] alone.
    fn of_expression(expression: &str) -> Option<Self> {
        let alternatives = alternatives(expression);
        let mut all = NOTHING;
        for alternative in &alternatives {
            let (_, covers) = ALTERNATIVES.iter().find(|(known, _)| known == alternative)?;
            all = Self { letters: all.letters || covers.letters, digits: all.digits || covers.digits };
        }
        all.letters |= alternatives.contains(&O200K_LOWER) && alternatives.contains(&O200K_UPPER);
        Some(all)
    }
}

/// The parts of `expression` between those `|` that stand in no brackets.
fn alternatives(expression: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth, mut is_escaped) = (Vec::new(), 0, 0_usize, false);
    for (at, character) in expression.char_indices() {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            '|' if depth == 0 => {
                parts.push(&expression[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&expression[start..]);
    parts
}

/// Whether the character map of SentencePiece in `step` leaves plain characters and spaces alone.
fn keeps_plain_text(step: &Value) -> bool {
    let Ok(normalizer) = serde_json::from_value::<NormalizerWrapper>(step.clone()) else { return false };
    let text: String = plain_characters().flat_map(|character| [character, ' ']).collect();
    let mut normalized = NormalizedString::from(text.as_str());
    normalizer.normalize(&mut normalized).is_ok() && normalized.get() == text
}

/// Whether `model`, given several words at once, makes of the text in front of `mark` and of the
/// text from it on what it makes of both.
fn is_split_by_model(model: &ModelWrapper, mark: char) -> bool {
    let ModelWrapper::BPE(bpe) = model else { return false };
    let is_empty = |affix: &Option<String>| affix.as_ref().is_none_or(String::is_empty);
    let vocab = bpe.get_vocab();
    let is_behind_another = |token: &str| {
        token.chars().zip(token.chars().skip(1)).any(|(left, right)| left != mark && right == mark)
    };
    let mut ids: Vec<u32> = vocab.values().copied().collect();
    ids.sort_unstable();
    // Unknown text is gathered up to a known character: the mark is one.
    vocab.contains_key(mark.encode_utf8(&mut [0; 4]) as &str)
        && !vocab.keys().any(|token| is_behind_another(token))
        // Merges go by id: two tokens with one id would merge as each other.
        && ids.windows(2).all(|pair| pair[0] != pair[1])
        && is_empty(&bpe.continuing_subword_prefix)
        && is_empty(&bpe.end_of_word_suffix)
        && !bpe.ignore_merges
}

fn steps_of<'a>(step: &'a Value, name: &str) -> &'a [Value] {
    step[name].as_array().map_or(&[], Vec::as_slice)
}

fn only_char(text: &str) -> Option<char> {
    let mut characters = text.chars();
    characters.next().filter(|_| characters.next().is_none())
}
