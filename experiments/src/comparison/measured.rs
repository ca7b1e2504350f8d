//! What a loss is a mean over and what the model saw before each token: what two runs must share
//! before their losses are compared.
//!
//! Data is judged by its content, which a key in `run.json` stands for. A path says nothing: the
//! file may have changed, or moved.

use serde::Serialize;
use serde_json::Value;
use switchyard_ground::printable::excerpt;
use switchyard_trainer::moved_data::is_data_path;

use crate::difference::{Difference, differences};
use crate::flatten::flatten;

/// Keys below `data` that decide no token.
const NOT_CONTENT: [&str; 2] = ["data.cache_dir", "data.mask_documents"];

/// One of the two.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured<'a> {
    pub(crate) label: &'a str,
    pub(crate) config: &'a Value,
    pub(crate) plan: &'a Value,
    /// Content key of the data; `None` if it is not known.
    pub(crate) data_key: Option<&'a str>,
    /// Whether it has run, so that its data may have changed since.
    pub(crate) has_run: bool,
}

/// Whether two had the same data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DataRelation {
    /// The same tokens in the same splits, wherever the files lie.
    Same,
    /// Other text, another tokenizer or another split.
    Different,
    /// The content of at least one is not known.
    Unknown,
}

impl DataRelation {
    pub(crate) fn of(a: &Measured<'_>, b: &Measured<'_>) -> Self {
        if let Some((a, b)) = a.data_key.zip(b.data_key) {
            return if a == b { Self::Same } else { Self::Different };
        }
        let written = written_differences(a, b);
        if written.iter().any(|difference| !is_place(&difference.key)) {
            return Self::Different;
        }
        // Generated data is what its keys say, and two files that nothing has read yet are one if
        // their paths are.
        let is_generated = !flatten(a.config).keys().any(|key| is_place(key));
        if written.is_empty() && (is_generated || !(a.has_run || b.has_run)) {
            return Self::Same;
        }
        Self::Unknown
    }
}

/// Whether `key` says where data lies.
pub(crate) fn is_place(key: &str) -> bool {
    is_data_path(key)
}

/// Differences between the configurations that may be differences between the data.
fn written_differences(a: &Measured<'_>, b: &Measured<'_>) -> Vec<Difference> {
    let mut found = differences(a.config, b.config);
    found.retain(|difference| {
        difference.key.starts_with("data.") && !NOT_CONTENT.contains(&difference.key.as_str())
    });
    found
}

/// Why a difference between losses of `a` and `b` may be no difference between the models, in the
/// order in which it matters.
pub(crate) fn why_not_comparable(a: &Measured<'_>, b: &Measured<'_>) -> Vec<String> {
    let notes =
        [data(a, b), sequences(a, b), vocabularies(a, b), masks(a, b), extents(a, b), causality(a, b)];
    notes.into_iter().flatten().collect()
}

fn data(a: &Measured<'_>, b: &Measured<'_>) -> Option<String> {
    let pair = pair(a, b);
    let keys: Vec<String> =
        written_differences(a, b).iter().map(|difference| format!("`{}`", difference.key)).collect();
    let keys = keys.join(", ");
    match DataRelation::of(a, b) {
        DataRelation::Same => None,
        DataRelation::Different => {
            let why = match keys.as_str() {
                "" => "their configurations name the same data, whose content is not the same".to_string(),
                keys => format!("their configurations differ in {keys}"),
            };
            Some(format!(
                "{pair} differ in the content of `data`{}: {why}. Losses per token of different texts, tokenizers or splits \
                 cannot be compared.",
                shown_keys(a, b)
            ))
        }
        DataRelation::Unknown => {
            let unknown: Vec<String> = [a, b]
                .iter()
                .filter(|side| side.data_key.is_none())
                .map(|side| format!("`{}`", excerpt(side.label, MOST_CHARS)))
                .collect();
            let written = match keys.as_str() {
                "" => "their configurations name the same place".to_string(),
                keys => format!("their configurations differ in {keys}"),
            };
            Some(format!(
                "Whether {pair} have the same data is not known: {} has no content key, and {written}. Losses on other data \
                 cannot be compared.",
                unknown.join(" and ")
            ))
        }
    }
}

/// Characters of a label or a value in a note.
const MOST_CHARS: usize = 80;

fn pair(a: &Measured<'_>, b: &Measured<'_>) -> String {
    format!("`{}` and `{}`", excerpt(a.label, MOST_CHARS), excerpt(b.label, MOST_CHARS))
}

fn shown_keys(a: &Measured<'_>, b: &Measured<'_>) -> String {
    let shown = |key: &str| excerpt(key, 12);
    a.data_key
        .zip(b.data_key)
        .map_or_else(String::new, |(a, b)| format!(" (keys {} and {})", shown(a), shown(b)))
}

/// The value at a dotted key, or at another where older or newer files have it.
fn at<'a>(value: &'a Value, pointer: &str) -> Option<&'a Value> {
    value.pointer(pointer).filter(|value| !value.is_null())
}

fn sequences(a: &Measured<'_>, b: &Measured<'_>) -> Option<String> {
    let len = |side: &Measured<'_>| at(side.plan, "/seq_len").and_then(Value::as_u64);
    let (mine, theirs) = (len(a)?, len(b)?);
    (mine != theirs).then(|| {
        format!(
            "{} are evaluated on sequences of {mine} and {theirs} tokens (`train.seq_len`): in longer ones a token is predicted \
             from more text, so their losses cannot be compared.",
            pair(a, b)
        )
    })
}

fn vocabularies(a: &Measured<'_>, b: &Measured<'_>) -> Option<String> {
    let size = |side: &Measured<'_>| at(side.plan, "/model/vocab_size").and_then(Value::as_u64);
    let (mine, theirs) = (size(a)?, size(b)?);
    (mine != theirs).then(|| {
        format!(
            "{} have vocabularies of {mine} and {theirs} ids: losses per token cannot be compared, only bits per byte of the \
             same text.",
            pair(a, b)
        )
    })
}

fn masks(a: &Measured<'_>, b: &Measured<'_>) -> Option<String> {
    let masks = |side: &Measured<'_>| at(side.config, "/data/mask_documents") == Some(&Value::Bool(true));
    (masks(a) != masks(b)).then(|| {
        let masked = if masks(a) { a } else { b };
        format!(
            "Only `{}` masks documents (`data.mask_documents`): its tokens are predicted from less text, so losses of {} cannot \
             be compared.",
            excerpt(masked.label, MOST_CHARS),
            pair(a, b)
        )
    })
}

fn extents(a: &Measured<'_>, b: &Measured<'_>) -> Option<String> {
    let extent = |side: &Measured<'_>| match at(side.plan, "/evaluation/max_tokens").and_then(Value::as_u64) {
        Some(tokens) => format!("{tokens} tokens"),
        None => "the whole split".into(),
    };
    let (mine, theirs) = (extent(a), extent(b));
    (mine != theirs).then(|| {
        format!(
            "{} are evaluated during training on {mine} and {theirs} (`train.eval.max_tokens`): of their losses, only those \
             after the last step cover the same tokens.",
            pair(a, b)
        )
    })
}

fn causality(a: &Measured<'_>, b: &Measured<'_>) -> Option<String> {
    if is_causal(a.plan) == is_causal(b.plan) {
        return None;
    }
    let not_causal = if is_causal(a.plan) { b } else { a };
    Some(format!(
        "The routers of `{}` are not causal: its loss sees what it should predict, so losses of {} cannot be compared.",
        excerpt(not_causal.label, MOST_CHARS),
        pair(a, b)
    ))
}

/// Whether no router of the model looks at later tokens.
fn is_causal(plan: &Value) -> bool {
    let looks_ahead = |key: &String| {
        let parts: Vec<&str> = key.split('.').collect();
        parts.windows(2).any(|pair| pair[0] == "selection" && ["expert_choice", "soft"].contains(&pair[1]))
    };
    !at(plan, "/model").is_some_and(|moe| flatten(moe).keys().any(looks_ahead))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A run on the text at this path.
    struct Run {
        config: Value,
        plan: Value,
        key: Option<&'static str>,
    }

    fn run(path: &str, key: Option<&'static str>) -> Run {
        Run {
            config: json!({ "data": { "text": { "path": path }, "cache_dir": path }, "seed": 0 }),
            plan: json!({ "seq_len": 128, "model": { "vocab_size": 256 } }),
            key,
        }
    }

    impl Run {
        fn measured(&self, label: &'static str) -> Measured<'_> {
            Measured { label, config: &self.config, plan: &self.plan, data_key: self.key, has_run: true }
        }

        fn with(mut self, pointer: &str, value: Value) -> Self {
            let (table, key) = pointer.rsplit_once('/').unwrap();
            let of = if table.starts_with("/data") { &mut self.config } else { &mut self.plan };
            of.pointer_mut(table).unwrap()[key] = value;
            self
        }
    }

    fn relation(a: &Run, b: &Run) -> DataRelation {
        DataRelation::of(&a.measured("a"), &b.measured("b"))
    }

    fn notes(a: &Run, b: &Run) -> Vec<String> {
        why_not_comparable(&a.measured("a"), &b.measured("b"))
    }

    #[track_caller]
    fn assert_one_note(a: &Run, b: &Run, parts: &[&str]) {
        let notes = notes(a, b);
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(parts.iter().all(|part| notes[0].contains(part)), "{notes:?}");
    }

    #[test]
    fn the_same_bytes_elsewhere_are_the_same_data() {
        let (here, there) = (run("here.txt", Some("k1")), run("there.txt", Some("k1")));
        assert_eq!(relation(&here, &there), DataRelation::Same);
        assert_eq!(notes(&here, &there), [""; 0]);
    }

    #[test]
    fn a_changed_file_at_the_same_path_is_other_data() {
        let (before, after) = (run("a.txt", Some("0123456789abcdef")), run("a.txt", Some("fedcba")));
        assert_eq!(relation(&before, &after), DataRelation::Different);
        assert_one_note(
            &before,
            &after,
            &["(keys 0123456789ab... and fedcba)", "whose content is not the same"],
        );
    }

    #[test]
    fn runs_without_a_key_are_not_said_to_have_the_same_data() {
        let known = run("a.txt", Some("k1"));
        assert_one_note(
            &known,
            &run("a.txt", None),
            &["not known: `b` has no content key", "the same place"],
        );
        let moved = run("b.txt", None);
        assert_one_note(&run("a.txt", None), &moved, &["`a` and `b` has no content key", "`data.text.path`"]);
    }

    #[test]
    fn another_tokenizer_is_other_data_whether_a_key_is_known_or_not() {
        let bytes = run("a.txt", None);
        let bpe = run("a.txt", None).with("/data/tokenizer", json!({ "bpe": { "vocab_size": 512 } }));
        assert_eq!(relation(&bytes, &bpe), DataRelation::Different);
        assert_one_note(&bytes, &bpe, &["differ in `data.tokenizer.bpe.vocab_size`"]);
    }

    #[test]
    fn generated_data_is_what_its_keys_say() {
        let generated = |documents: u64| Run {
            config: json!({ "data": { "synthetic": { "num_documents": documents } } }),
            ..run("", None)
        };
        assert_eq!(relation(&generated(10), &generated(10)), DataRelation::Same);
        assert_eq!(relation(&generated(10), &generated(11)), DataRelation::Different);
    }

    #[test]
    fn configurations_alone_are_told_apart_by_where_their_data_lies_and_no_more_is_claimed() {
        let side = |run: &'static Run| Measured { has_run: false, ..run.measured("x.toml") };
        let (one, other) = (Box::leak(Box::new(run("a.txt", None))), Box::leak(Box::new(run("b.txt", None))));
        assert_eq!(DataRelation::of(&side(one), &side(one)), DataRelation::Same);
        assert_eq!(DataRelation::of(&side(one), &side(other)), DataRelation::Unknown);
        assert_eq!(
            DataRelation::of(&side(one), &one.measured("run")),
            DataRelation::Unknown,
            "it may have changed since"
        );
    }

    #[test]
    fn whatever_else_makes_losses_incomparable_is_said() {
        let plain = || run("a.txt", Some("k"));
        let masked = plain().with("/data/mask_documents", json!(true));
        assert_one_note(&plain(), &plain().with("/seq_len", json!(8)), &["sequences of 128 and 8 tokens"]);
        assert_one_note(
            &plain(),
            &plain().with("/model/vocab_size", json!(512)),
            &["vocabularies of 256 and 512"],
        );
        assert_one_note(&plain(), &masked, &["Only `b` masks documents"]);
        assert_eq!(notes(&plain(), &plain().with("/data/mask_documents", json!(false))), [""; 0]);
        let part = || Run { plan: json!({ "evaluation": { "max_tokens": 512 } }), ..plain() };
        let whole = || Run { plan: json!({ "evaluation": { "max_tokens": null } }), ..plain() };
        assert_one_note(&part(), &whole(), &["512 tokens and the whole split"]);
        assert_eq!(notes(&part(), &part()), [""; 0]);
    }

    #[test]
    fn a_router_that_sees_later_tokens_is_said_to_in_any_layer() {
        let plain = run("a.txt", Some("k"));
        for moe in [
            json!({ "router": { "selection": { "expert_choice": {} } } }),
            json!({ "router": {}, "router_overrides": [{ "router": { "selection": { "soft": { "slots": 1 } } } }] }),
        ] {
            let ahead = run("a.txt", Some("k")).with("/model/moe", moe);
            assert_one_note(&plain, &ahead, &["routers of `b` are not causal"]);
            assert_eq!(notes(&ahead, &ahead), [""; 0]);
        }
        let sinkhorn = json!({ "router": { "selection": { "sinkhorn": {} } } });
        assert_eq!(notes(&plain, &run("a.txt", Some("k")).with("/model/moe", sinkhorn)), [""; 0]);
    }

    #[test]
    fn labels_of_others_bring_no_control_characters_into_a_note() {
        let (a, b) = (run("a.txt", Some("\u{1b}[31m")), run("a.txt", Some("k")));
        let notes = why_not_comparable(&a.measured("x\u{1b}]52;c;eA==\u{7}"), &b.measured("b"));
        assert!(!notes[0].contains(char::is_control), "{notes:?}");
    }
}
