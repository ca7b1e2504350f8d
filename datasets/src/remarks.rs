//! What a source leaves out or finds odd: counted by kind, with the first example, and said once.

use std::collections::BTreeMap;

use switchyard_ground::printable::excerpt;

/// Characters of an example that are shown.
const MAX_EXAMPLE_CHARS: usize = 200;

/// One kind of remark; they are said in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Remark {
    OutsideLink,
    RepeatedLink,
    BrokenLink,
    DotName,
    SpecialFile,
    OtherType,
    LongWindow,
    BadLine,
    BlankDocument,
    EndMarkAsText,
}

/// Remarks so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Remarks(BTreeMap<Remark, Counted>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Counted {
    count: u64,
    first: String,
}

impl Remarks {
    /// Counts one more of `kind`; `example` is asked for the first only.
    pub(crate) fn add(&mut self, kind: Remark, example: impl FnOnce() -> String) {
        let counted = self.0.entry(kind).or_insert_with(|| Counted { count: 0, first: example() });
        counted.count += 1;
    }

    /// One sentence for each kind.
    pub(crate) fn sentences(&self) -> Vec<String> {
        self.0.iter().map(|(kind, counted)| kind.sentence(counted)).collect()
    }
}

impl Remark {
    fn sentence(self, Counted { count, first }: &Counted) -> String {
        let (one, many, what) = self.words();
        let noun = if *count == 1 { one } else { many };
        let example = excerpt(first, MAX_EXAMPLE_CHARS);
        let introduction = match (self, *count) {
            (_, 1) => "",
            (Self::BadLine, _) => "the first ",
            _ => "such as ",
        };
        format!("{count} {noun} {what}: {introduction}{example}")
    }

    /// One, several, and what is said of them.
    fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::OutsideLink => ("link", "links", "followed out of the text folder"),
            Self::RepeatedLink => ("link", "links", "passed over as read already or leading in a circle"),
            Self::BrokenLink => ("link", "links", "passed over as leading nowhere"),
            Self::DotName => ("name", "names", "passed over, because of the dot in front"),
            Self::SpecialFile => ("pipe, socket or device", "pipes, sockets or devices", "passed over"),
            Self::OtherType => (
                "file",
                "files",
                "of other types passed over (text is .parquet, or .txt, .md or .jsonl, each also .gz or .zst)",
            ),
            Self::LongWindow => (
                "compressed file",
                "compressed files",
                "made with a long window, which takes as much memory to read",
            ),
            Self::BadLine => (
                "line or row",
                "lines or rows",
                "without usable text passed over, as `data.text.on_bad_line = \"skip\"` says",
            ),
            Self::BlankDocument => ("document", "documents", "of nothing but white space passed over"),
            Self::EndMarkAsText => (
                "document",
                "documents",
                "with the text `<|endoftext|>`, which is read as plain letters (`data.text.separator` splits there)",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_one_sentence_with_its_count_and_first_example() {
        let mut remarks = Remarks::default();
        remarks.add(Remark::BlankDocument, || "`b.txt`".into());
        remarks.add(Remark::DotName, || "`.git`".into());
        remarks.add(Remark::DotName, || panic!("only the first is described"));
        assert_eq!(
            remarks.sentences(),
            [
                "2 names passed over, because of the dot in front: such as `.git`",
                "1 document of nothing but white space passed over: `b.txt`"
            ]
        );
    }
}
