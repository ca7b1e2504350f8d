//! What a person should know about a corpus before the loss of a run on it means anything.

use switchyard_ground::units::scaled;

use crate::build::Survey;
use crate::manifest::{Manifest, Overlap, Repeats, SplitManifest};
use crate::split::SplitKind;

/// Held-out documents below which a loss is mostly chance, and the share that one of them may have.
const FEW_DOCUMENTS: u64 = 50;
const LARGE_SHARE: f64 = 0.1;
/// Share of a held-out split's text that may be in the training split without a word.
const TOLD_OVERLAP: f64 = 0.01;

/// The notes on a corpus that has just been prepared, in the order of their weight.
pub(crate) fn of_corpus(survey: &Survey, manifest: &Manifest) -> Vec<String> {
    let rule = survey.rule.kind;
    let mut notes = survey.remarks.sentences();
    notes.extend(unmarked_documents(survey.num_documents, manifest));
    notes.extend(lost_text(manifest));
    notes.extend(unknown_tokens(manifest));
    notes.extend(repeats(rule, survey, &manifest.repeats));
    for (name, split) in manifest.held_out() {
        notes.extend(few_documents(survey.num_documents, name, split));
        notes.extend(split.overlap.and_then(|overlap| shared_text(name, &overlap)));
    }
    notes.extend(cut_document(rule, survey.num_documents, manifest));
    notes
}

/// The corpus in one line.
pub(crate) fn summary(manifest: &Manifest) -> String {
    let split = |split: &SplitManifest| {
        let tokens = scaled(split.num_tokens as f64, "");
        // Of ids without borders no documents are known.
        if split.num_documents == 0 {
            return format!("{tokens} tokens");
        }
        format!("{}, {tokens} tokens", documents(split.num_documents))
    };
    let mut text = format!("data: train {}", split(&manifest.train));
    for (name, facts) in manifest.held_out() {
        text += &format!("; {name} {}", split(facts));
    }
    text
}

fn unmarked_documents(num_documents: u64, manifest: &Manifest) -> Option<String> {
    let has_mark = manifest.begin_of_document.is_some() || manifest.end_of_document.is_some();
    (num_documents > 1 && !has_mark).then(|| {
        format!(
            "the {num_documents} documents follow each other without a mark between them: the tokenizer has no token of a known \
             name for it; name one with `data.tokenizer.file.end_of_document`"
        )
    })
}

fn lost_text(manifest: &Manifest) -> Option<String> {
    let lost = of_all(manifest, |split| split.lost_bytes);
    let all = of_all(manifest, |split| split.num_bytes);
    (lost > 0).then(|| {
        format!(
            "{lost} bytes of text ({}) have no id and were left out, as `data.tokenizer.file.on_unknown_text = \"skip\"` says",
            share(lost, all)
        )
    })
}

fn unknown_tokens(manifest: &Manifest) -> Option<String> {
    let unknown = of_all(manifest, |split| split.unknown_tokens);
    let all = of_all(manifest, |split| split.num_tokens);
    (unknown > 0).then(|| {
        format!(
            "{unknown} tokens ({}) stand for text that the vocabulary cannot spell: the model learns nothing of it",
            share(unknown, all)
        )
    })
}

fn repeats(rule: SplitKind, survey: &Survey, repeats: &Repeats) -> Option<String> {
    if repeats.documents == 0 {
        return None;
    }
    let counted = format!(
        "{} of {} documents ({} of the text) repeat an earlier one",
        repeats.documents,
        survey.num_documents,
        share(repeats.len, survey.total_len)
    );
    Some(match (rule, repeats.held_out_documents_in_train) {
        (SplitKind::ByDocumentHash, _) => {
            format!("{counted}: all copies of a document are in the same split, and weigh in its loss")
        }
        (SplitKind::Tail, 0) => counted,
        (SplitKind::Tail, seen) => {
            format!(
                "{counted}: {seen} validation or test document(s) are in the train split too, so their loss is of text \
                 already seen"
            )
        }
    })
}

/// A word on a held-out split whose loss hangs on few documents; `None` for a single text, which is
/// cut on purpose.
fn few_documents(num_documents: u64, name: &str, split: &SplitManifest) -> Option<String> {
    if num_documents < 2 || split.num_documents == 0 {
        return None;
    }
    let largest = split.largest_document_tokens as f64 / split.num_tokens as f64;
    let is_small = split.num_documents < FEW_DOCUMENTS;
    (is_small || largest > LARGE_SHARE).then(|| {
        format!(
            "the {name} split has {}, and the largest is {:.0} % of it: its loss says little about other text. A larger \
             `{name}_fraction` or more documents help",
            documents(split.num_documents),
            100.0 * largest
        )
    })
}

/// A word on a held-out split that the training split has a part of.
fn shared_text(name: &str, overlap: &Overlap) -> Option<String> {
    let left_out = overlap.documents_left_out;
    (left_out > 0 || overlap.share() >= TOLD_OVERLAP).then(|| {
        let of_them = if left_out == 0 {
            format!("{} have more than half of theirs there. `max_overlap` leaves such out", documents(overlap.near_duplicates))
        } else {
            format!("{} with too much of it were left out, as `max_overlap` says", documents(left_out))
        };
        format!(
            "{} of the {name} text is in the train split too, word for word in passages of {} or more bytes: {of_them}",
            share(overlap.shared_len, overlap.len),
            overlap.passage_len
        )
    })
}

/// A word on a document that two splits have a part of.
fn cut_document(rule: SplitKind, num_documents: u64, manifest: &Manifest) -> Option<String> {
    let of_two = of_all(manifest, |split| split.num_documents).checked_sub(num_documents)?;
    (rule == SplitKind::Tail && num_documents > 1 && of_two > 0).then(|| {
        "the splits part within a document: its beginning is in one split, its end in the next, and both count it".to_owned()
    })
}

/// The sum over the splits.
fn of_all(manifest: &Manifest, number: impl Fn(&SplitManifest) -> u64) -> u64 {
    let held_out = manifest.held_out().map(|(_, split)| split);
    [&manifest.train].into_iter().chain(held_out).map(number).sum()
}

fn documents(count: u64) -> String {
    if count == 1 { "1 document".to_owned() } else { format!("{count} documents") }
}

fn share(part: u64, whole: u64) -> String {
    match 100.0 * part as f64 / whole as f64 {
        percent if percent < 0.1 => "less than 0.1 %".to_owned(),
        percent => format!("{percent:.1} %"),
    }
}
