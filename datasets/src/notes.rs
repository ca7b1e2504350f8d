//! What a person should know about a corpus before the loss of a run on it means anything.

use switchyard_ground::units::scaled;

use crate::build::Survey;
use crate::manifest::{Manifest, Repeats, SplitManifest};
use crate::split::SplitRule;

/// Validation documents below which a loss is mostly chance, and the share that one of them may
/// have.
const FEW_DOCUMENTS: u64 = 50;
const LARGE_SHARE: f64 = 0.1;

/// The notes on a corpus that has just been prepared, in the order of their weight.
pub(crate) fn of_corpus(survey: &Survey, rule: SplitRule, manifest: &Manifest) -> Vec<String> {
    let mut notes = survey.remarks.sentences();
    notes.extend(unmarked_documents(survey.num_documents, manifest));
    notes.extend(lost_text(manifest));
    notes.extend(unknown_tokens(manifest));
    notes.extend(repeats(rule, survey, &manifest.repeats));
    notes.extend(small_validation(survey.num_documents, &manifest.validation));
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
    format!("data: train {}; validation {}", split(&manifest.train), split(&manifest.validation))
}

fn unmarked_documents(num_documents: u64, manifest: &Manifest) -> Option<String> {
    (num_documents > 1 && manifest.end_of_document.is_none()).then(|| {
        format!(
            "the {num_documents} documents follow each other without a mark between them: the tokenizer has no token of a known \
             name for it; name one with `data.tokenizer.file.end_of_document`"
        )
    })
}

fn lost_text(manifest: &Manifest) -> Option<String> {
    let lost = manifest.train.lost_bytes + manifest.validation.lost_bytes;
    let all = manifest.train.num_bytes + manifest.validation.num_bytes;
    (lost > 0).then(|| {
        format!(
            "{lost} bytes of text ({}) have no id and were left out, as `data.tokenizer.file.on_unknown_text = \"skip\"` says",
            share(lost, all)
        )
    })
}

fn unknown_tokens(manifest: &Manifest) -> Option<String> {
    let unknown = manifest.train.unknown_tokens + manifest.validation.unknown_tokens;
    let all = manifest.train.num_tokens + manifest.validation.num_tokens;
    (unknown > 0).then(|| {
        format!(
            "{unknown} tokens ({}) stand for text that the vocabulary cannot spell: the model learns nothing of it",
            share(unknown, all)
        )
    })
}

fn repeats(rule: SplitRule, survey: &Survey, repeats: &Repeats) -> Option<String> {
    if repeats.documents == 0 {
        return None;
    }
    let counted = format!(
        "{} of {} documents ({} of the text) repeat an earlier one",
        repeats.documents,
        survey.num_documents,
        share(repeats.len, survey.total_len)
    );
    Some(match (rule, repeats.validation_documents_in_train) {
        (SplitRule::ByDocumentHash(_), _) => {
            format!("{counted}: all copies of a document are in the same split, and weigh in its loss")
        }
        (SplitRule::Tail(_), 0) => counted,
        (SplitRule::Tail(_), seen) => {
            format!(
                "{counted}: {seen} validation document(s) are in the train split too, so their loss is of text already seen"
            )
        }
    })
}

/// A word on a validation split whose loss hangs on few documents; `None` for a single text, which
/// is cut on purpose.
fn small_validation(num_documents: u64, validation: &SplitManifest) -> Option<String> {
    if num_documents < 2 || validation.num_documents == 0 {
        return None;
    }
    let largest = validation.largest_document_tokens as f64 / validation.num_tokens as f64;
    let is_small = validation.num_documents < FEW_DOCUMENTS;
    (is_small || largest > LARGE_SHARE).then(|| {
        format!(
            "the validation split has {}, and the largest is {:.0} % of it: its loss says little about other text. A larger \
             `validation_fraction` or more documents help",
            documents(validation.num_documents),
            100.0 * largest
        )
    })
}

/// A word on a document that both splits have a part of.
fn cut_document(rule: SplitRule, num_documents: u64, manifest: &Manifest) -> Option<String> {
    let of_both =
        (manifest.train.num_documents + manifest.validation.num_documents).checked_sub(num_documents)?;
    (matches!(rule, SplitRule::Tail(_)) && num_documents > 1 && of_both > 0).then(|| {
        "the splits part within a document: its beginning is in the train split, its end in the validation split, and both count it"
            .to_owned()
    })
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
