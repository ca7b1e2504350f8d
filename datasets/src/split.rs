//! Which part of the corpus trains, which validates, and which is kept for the last word.

use crate::config::{DEFAULT_VALIDATION_FRACTION, SplitConfig, SplitFractions};
use crate::source::{Content, Document};

/// One of the parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Split {
    Train,
    Validation,
    Test,
}

impl Split {
    pub(crate) const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

/// The rule in `[data.split]`, or its default.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SplitRule {
    pub(crate) kind: SplitKind,
    validation_fraction: f64,
    test_fraction: f64,
    /// Share of a document outside the training split that may be text of the training split; more
    /// of it, and the document is left out.
    pub(crate) max_overlap: Option<f64>,
}

/// What decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SplitKind {
    /// A document validates if its hash, read as a share of all hashes, is below the fraction, and
    /// is for the test if it lies in the fraction after that. So the choice depends on the document
    /// alone: it survives changes elsewhere in the corpus, and equal documents stay together.
    ByDocumentHash,
    /// The last shares of the concatenated text validate and test; documents may be cut.
    Tail,
}

impl SplitRule {
    pub(crate) fn new(config: Option<&SplitConfig>) -> Self {
        let default = SplitFractions::of_validation(DEFAULT_VALIDATION_FRACTION);
        let (kind, fractions) = match config {
            Some(SplitConfig::Tail(tail)) => (SplitKind::Tail, tail),
            Some(SplitConfig::ByDocumentHash(hash)) => (SplitKind::ByDocumentHash, hash),
            None => (SplitKind::ByDocumentHash, &default),
        };
        Self {
            kind,
            validation_fraction: fractions.validation_fraction,
            test_fraction: fractions.test_fraction,
            max_overlap: fractions.max_overlap,
        }
    }

    /// The splits that there will be.
    pub(crate) fn splits(self) -> &'static [Split] {
        if self.test_fraction > 0.0 { &Split::ALL } else { &Split::ALL[..2] }
    }

    /// The rule in words.
    pub(crate) fn description(self) -> String {
        let percent = |fraction: f64| format!("{} %", fraction * 100.0);
        let validation = percent(self.validation_fraction);
        let mut text = match (self.kind, self.test_fraction > 0.0) {
            (SplitKind::ByDocumentHash, false) => format!("document hash ({validation} validation)"),
            (SplitKind::ByDocumentHash, true) => {
                format!("document hash ({validation} validation, {} test)", percent(self.test_fraction))
            }
            (SplitKind::Tail, false) => format!("position (the last {validation} is validation)"),
            (SplitKind::Tail, true) => format!(
                "position (the last {} is test, the {validation} before it validation)",
                percent(self.test_fraction)
            ),
        };
        if let Some(most) = self.max_overlap {
            text += &format!(", without documents of which the train split has more than {}", percent(most));
        }
        text
    }

    /// What tells the rule from any other; of a rule without a test split as it always was, so that
    /// prepared corpora and runs on them keep their keys.
    pub(crate) fn key(self) -> String {
        let kind = match self.kind {
            SplitKind::ByDocumentHash => "ByDocumentHash",
            SplitKind::Tail => "Tail",
        };
        let mut key = format!("{kind}({:?})", self.validation_fraction);
        if self.test_fraction > 0.0 {
            key += &format!(" test {:?}", self.test_fraction);
        }
        if let Some(most) = self.max_overlap {
            key += &format!(" max_overlap {most:?}");
        }
        key
    }

    /// Units of `total` (bytes, or tokens) of each split under the tail rule. What trains is rounded
    /// down, as nanoGPT does.
    pub(crate) fn tail_lens(self, total: u64) -> [u64; 3] {
        let before = |fraction: f64| ((1.0 - fraction) * total as f64) as u64;
        let validation_start = before(self.validation_fraction + self.test_fraction);
        let test_start = before(self.test_fraction);
        [validation_start, test_start - validation_start, total - test_start]
    }
}

/// A document, or the part of one that falls into a split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) split: Split,
    pub(crate) document: Document,
    /// Whether the document begins here; the parts of a cut one behind the first do not.
    pub(crate) is_begin: bool,
    /// Whether the document ends here; the parts of a cut one before the last do not.
    pub(crate) is_end: bool,
    /// Whether this is all of the document.
    pub(crate) is_whole: bool,
}

/// Assigns documents to splits, in corpus order.
#[derive(Debug, Clone)]
pub(crate) struct Splitter {
    rule: SplitRule,
    /// Units of the corpus that the tail rule still gives to each split but the last.
    left: [(Split, u64); 2],
}

impl Splitter {
    /// A splitter for a corpus of `total` units.
    pub(crate) fn new(rule: SplitRule, total: u64) -> Self {
        let [train, validation, _] = rule.tail_lens(total);
        // Without a test split no rounding may leave a rest for it.
        let validation = if rule.test_fraction > 0.0 { validation } else { u64::MAX };
        Self { rule, left: [(Split::Train, train), (Split::Validation, validation)] }
    }

    /// The parts of the next document: one, unless the tail rule cuts it.
    pub(crate) fn assign(&mut self, document: Document) -> Vec<Part> {
        match self.rule.kind {
            SplitKind::ByDocumentHash => {
                let split = self.split_of_hash(hash_share(&document));
                vec![Part { split, document, is_begin: true, is_end: true, is_whole: true }]
            }
            SplitKind::Tail => self.cut_at_borders(document),
        }
    }

    fn split_of_hash(&self, share: f64) -> Split {
        let SplitRule { validation_fraction, test_fraction, .. } = self.rule;
        if share < validation_fraction {
            Split::Validation
        } else if share < validation_fraction + test_fraction {
            Split::Test
        } else {
            Split::Train
        }
    }

    fn cut_at_borders(&mut self, document: Document) -> Vec<Part> {
        let (mut parts, mut rest) = (Vec::new(), document);
        let part =
            |split, document, is_begin| Part { split, document, is_begin, is_end: false, is_whole: false };
        let mut last = Split::Test;
        for (split, left) in &mut self.left {
            if rest.len() <= *left {
                *left -= rest.len();
                last = *split;
                break;
            }
            let (head, tail) = cut(rest, std::mem::take(left) as usize);
            if head.len() > 0 {
                parts.push(part(*split, head, parts.is_empty()));
            }
            rest = tail;
        }
        let is_whole = parts.is_empty();
        parts.push(Part { is_end: true, is_whole, ..part(last, rest, is_whole) });
        parts
    }
}

/// The first 53 bits of the document's hash as a number in [0, 1).
fn hash_share(document: &Document) -> f64 {
    let hash = document.hash();
    let head = hash[..8].iter().fold(0_u64, |head, byte| head << 8 | u64::from(*byte));
    (head >> 11) as f64 / (1_u64 << 53) as f64
}

/// The document cut after `head_len` units, or before if that would split a character.
fn cut(mut document: Document, head_len: usize) -> (Document, Document) {
    let rest = match &mut document.content {
        Content::Text(text) => Content::Text(text.split_off(text.floor_char_boundary(head_len))),
        Content::Ids(ids) => Content::Ids(ids.split_off(head_len)),
    };
    let tail = Document { content: rest, domain: document.domain, name: document.name.clone() };
    (document, tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Document {
        Document { content: Content::Text(text.to_owned()), domain: 1, name: String::new() }
    }

    fn tail(validation_fraction: f64, test_fraction: f64) -> SplitRule {
        SplitRule { kind: SplitKind::Tail, validation_fraction, test_fraction, max_overlap: None }
    }

    fn by_hash(validation_fraction: f64, test_fraction: f64) -> SplitRule {
        SplitRule { kind: SplitKind::ByDocumentHash, ..tail(validation_fraction, test_fraction) }
    }

    /// The text of each split.
    fn assign_all(rule: SplitRule, texts: &[&str]) -> [String; 3] {
        let total = texts.iter().map(|text| text.len() as u64).sum();
        let mut splitter = Splitter::new(rule, total);
        let mut splits = [const { String::new() }; 3];
        for part in texts.iter().flat_map(|each| splitter.assign(text(each))) {
            let Content::Text(content) = &part.document.content else { panic!("text expected") };
            splits[part.split as usize].push_str(content);
        }
        splits
    }

    #[test]
    fn tail_cuts_the_concatenation_at_the_rounded_down_fraction() {
        assert_eq!(assign_all(tail(0.3, 0.0), &["abc", "defg", "hij"]), ["abcdefg", "hij", ""]);
        assert_eq!(assign_all(tail(0.5, 0.0), &["abc", "defg", "hi"]), ["abcd", "efghi", ""]);
        assert_eq!(tail(0.1, 0.0).tail_lens(1_115_394), [1_003_854, 111_540, 0]);
        assert_eq!(assign_all(tail(0.25, 0.25), &["abc", "defg", "h"]), ["abcd", "ef", "gh"]);
        assert_eq!(assign_all(tail(0.25, 0.25), &["abcdefgh"]), ["abcd", "ef", "gh"]);
    }

    #[test]
    fn tail_never_cuts_a_character() {
        assert_eq!(assign_all(tail(0.5, 0.0), &["aéé"]), ["a", "éé", ""]);
        assert_eq!(assign_all(tail(0.9, 0.0), &["é"]), ["", "é", ""]);
        assert_eq!(assign_all(tail(0.4, 0.2), &["éé", "é"]), ["é", "é", "é"]);
    }

    #[test]
    fn a_cut_document_begins_in_its_first_part_and_ends_in_its_last() {
        let parts = Splitter::new(tail(0.25, 0.25), 8).assign(text("abcdefgh"));
        assert_eq!(parts.iter().map(|part| part.is_end).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!(parts.iter().map(|part| part.is_begin).collect::<Vec<_>>(), [true, false, false]);
        assert!(parts.iter().all(|part| !part.is_whole));
        assert!(Splitter::new(tail(0.5, 0.0), 8).assign(text("abcd"))[0].is_whole);
    }

    #[test]
    fn hash_takes_about_the_fractions_and_depends_on_the_content_alone() {
        let mut splitter = Splitter::new(by_hash(0.2, 0.1), 0);
        let splits: Vec<Split> = (0..5000).map(|n| splitter.assign(text(&n.to_string()))[0].split).collect();
        let share = |of: Split| splits.iter().filter(|split| **split == of).count() as f64 / 5000.0;
        // A binomial share of 5,000 draws has a deviation of at most 0.0057; four of them.
        assert!((share(Split::Validation) - 0.2).abs() < 0.023, "{}", share(Split::Validation));
        assert!((share(Split::Test) - 0.1).abs() < 0.023, "{}", share(Split::Test));
        let renamed = Document { name: "other".to_owned(), domain: 9, ..text("17") };
        assert_eq!(splitter.assign(renamed)[0].split, splits[17]);
    }

    /// A test split is taken from what trained: what validated still does.
    #[test]
    fn a_test_split_leaves_the_validation_split_as_it_was() {
        let [mut without, mut with] = [0.0, 0.3].map(|test| Splitter::new(by_hash(0.2, test), 0));
        for n in 0..1000 {
            let [before, after] = [&mut without, &mut with].map(|s| s.assign(text(&n.to_string()))[0].split);
            assert_eq!(before == Split::Validation, after == Split::Validation);
        }
    }

    #[test]
    fn a_rule_without_a_test_split_has_the_key_that_it_always_had() {
        assert_eq!(by_hash(0.05, 0.0).key(), "ByDocumentHash(0.05)");
        assert_eq!(tail(0.1, 0.0).key(), "Tail(0.1)");
        assert_eq!(tail(0.1, 0.05).key(), "Tail(0.1) test 0.05");
        let rule = SplitRule { max_overlap: Some(0.5), ..by_hash(0.05, 0.0) };
        assert_eq!(rule.key(), "ByDocumentHash(0.05) max_overlap 0.5");
    }
}
