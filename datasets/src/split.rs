//! Which part of the corpus validates.

use crate::config::{DEFAULT_VALIDATION_FRACTION, SplitConfig};
use crate::source::{Content, Document};

/// One of the two parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Split {
    Train,
    Validation,
}

impl Split {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
        }
    }
}

/// The rule in `[data.split]`, or its default.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum SplitRule {
    /// A document validates if its hash, read as a share of all hashes, is below the fraction. So
    /// the choice depends on the document alone: it survives changes elsewhere in the corpus, and
    /// equal documents stay together.
    ByDocumentHash(f64),
    /// The last share of the concatenated text validates; one document may be cut.
    Tail(f64),
}

impl SplitRule {
    pub(crate) fn new(config: Option<&SplitConfig>) -> Self {
        match config {
            Some(SplitConfig::Tail(tail)) => Self::Tail(tail.validation_fraction),
            Some(SplitConfig::ByDocumentHash(hash)) => Self::ByDocumentHash(hash.validation_fraction),
            None => Self::ByDocumentHash(DEFAULT_VALIDATION_FRACTION),
        }
    }

    /// The rule in words.
    pub(crate) fn description(self) -> String {
        match self {
            Self::ByDocumentHash(fraction) => format!("document hash ({} % validation)", fraction * 100.0),
            Self::Tail(fraction) => format!("position (the last {} % is validation)", fraction * 100.0),
        }
    }

    /// Units of `total` (bytes, or tokens) that train under the tail rule: rounded down, as nanoGPT
    /// does.
    pub(crate) fn tail_train_len(fraction: f64, total: u64) -> u64 {
        ((1.0 - fraction) * total as f64) as u64
    }
}

/// A document, or the part of one that falls into a split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) split: Split,
    pub(crate) document: Document,
    /// Whether the document ends here; the first part of a cut one does not.
    pub(crate) is_end: bool,
    /// Whether this is all of the document.
    pub(crate) is_whole: bool,
}

/// Assigns documents to splits, in corpus order.
#[derive(Debug, Clone)]
pub(crate) struct Splitter {
    rule: SplitRule,
    /// Units of the corpus that are still to train under the tail rule.
    train_left: u64,
}

impl Splitter {
    /// A splitter for a corpus of `total` units.
    pub(crate) fn new(rule: SplitRule, total: u64) -> Self {
        let train_left = match rule {
            SplitRule::Tail(fraction) => SplitRule::tail_train_len(fraction, total),
            SplitRule::ByDocumentHash(_) => 0,
        };
        Self { rule, train_left }
    }

    /// The one or two parts of the next document.
    pub(crate) fn assign(&mut self, document: Document) -> Vec<Part> {
        let len = document.len();
        let split = match self.rule {
            SplitRule::ByDocumentHash(fraction) if hash_share(&document) < fraction => Split::Validation,
            SplitRule::ByDocumentHash(_) => Split::Train,
            SplitRule::Tail(_) if len <= self.train_left => {
                self.train_left -= len;
                Split::Train
            }
            SplitRule::Tail(_) => {
                let train_len = std::mem::take(&mut self.train_left) as usize;
                return cut(document, train_len);
            }
        };
        vec![Part { split, document, is_end: true, is_whole: true }]
    }
}

/// The first 53 bits of the document's hash as a number in [0, 1).
fn hash_share(document: &Document) -> f64 {
    let hash = document.hash();
    let head = hash[..8].iter().fold(0_u64, |head, byte| head << 8 | u64::from(*byte));
    (head >> 11) as f64 / (1_u64 << 53) as f64
}

/// The document cut after `train_len` units, or before if that would split a character.
fn cut(mut document: Document, train_len: usize) -> Vec<Part> {
    let rest = match &mut document.content {
        Content::Text(text) => Content::Text(text.split_off(text.floor_char_boundary(train_len))),
        Content::Ids(ids) => Content::Ids(ids.split_off(train_len)),
    };
    let tail = Document { content: rest, domain: document.domain, name: document.name.clone() };
    let is_cut = document.len() > 0;
    let tail = Part { split: Split::Validation, document: tail, is_end: true, is_whole: !is_cut };
    if !is_cut {
        return vec![tail];
    }
    vec![Part { split: Split::Train, document, is_end: false, is_whole: false }, tail]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Document {
        Document { content: Content::Text(text.to_owned()), domain: 1, name: String::new() }
    }

    fn assign_all(rule: SplitRule, texts: &[&str]) -> (String, String) {
        let total = texts.iter().map(|text| text.len() as u64).sum();
        let mut splitter = Splitter::new(rule, total);
        let (mut train, mut validation) = (String::new(), String::new());
        for part in texts.iter().flat_map(|each| splitter.assign(text(each))) {
            let Content::Text(content) = &part.document.content else { panic!("text expected") };
            match part.split {
                Split::Train => train.push_str(content),
                Split::Validation => validation.push_str(content),
            }
        }
        (train, validation)
    }

    #[test]
    fn tail_cuts_the_concatenation_at_the_rounded_down_fraction() {
        let (train, validation) = assign_all(SplitRule::Tail(0.3), &["abc", "defg", "hij"]);
        assert_eq!((train.as_str(), validation.as_str()), ("abcdefg", "hij"));
        let (train, validation) = assign_all(SplitRule::Tail(0.5), &["abc", "defg", "hi"]);
        assert_eq!((train.as_str(), validation.as_str()), ("abcd", "efghi"));
        assert_eq!(SplitRule::tail_train_len(0.1, 1_115_394), 1_003_854);
    }

    #[test]
    fn tail_never_cuts_a_character() {
        assert_eq!(assign_all(SplitRule::Tail(0.5), &["aéé"]), ("a".to_owned(), "éé".to_owned()));
        assert_eq!(assign_all(SplitRule::Tail(0.9), &["é"]), (String::new(), "é".to_owned()));
    }

    #[test]
    fn hash_takes_about_the_fraction_and_depends_on_the_content_alone() {
        let mut splitter = Splitter::new(SplitRule::ByDocumentHash(0.2), 0);
        let splits: Vec<Split> = (0..5000).map(|n| splitter.assign(text(&n.to_string()))[0].split).collect();
        let share = splits.iter().filter(|split| **split == Split::Validation).count() as f64 / 5000.0;
        // A binomial share of 5,000 draws has a deviation of 0.0057; four of them.
        assert!((share - 0.2).abs() < 0.023, "{share}");
        let renamed = Document { name: "other".to_owned(), domain: 9, ..text("17") };
        assert_eq!(splitter.assign(renamed)[0].split, splits[17]);
    }
}
