//! What a study judges its arms by.

use serde::{Deserialize, Serialize};

use crate::statistics::Measure;

/// What a study judges its arms by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// Cross-entropy of held-out text, nats per token.
    #[default]
    Nats,
    /// Cross-entropy of held-out text, bits per byte: arms may have tokenizers of their own.
    BitsPerByte,
    /// Share of multiple-choice questions whose likeliest choice is right.
    Acc,
    /// Share of them whose likeliest choice per character is right.
    AccNorm,
}

impl Metric {
    /// What is compared, of which less is better: of an accuracy, what is missing from 1.
    pub(crate) fn measure(self) -> Measure {
        let (quantity, unit) = match self {
            Self::Nats => return Measure::LOSS_IN_NATS,
            Self::BitsPerByte => ("loss", "bits per byte"),
            Self::Acc => ("error (1 - acc)", ""),
            Self::AccNorm => ("error (1 - acc_norm)", ""),
        };
        Measure { quantity, unit }
    }

    /// Whether it is of questions, not of text.
    pub(crate) fn is_of_questions(self) -> bool {
        matches!(self, Self::Acc | Self::AccNorm)
    }

    /// What the curves and times to a loss are of: the evaluations of a run, or the questions, which
    /// are asked at its end.
    pub(super) fn curve_split(self) -> JudgedSplit {
        if self.is_of_questions() { JudgedSplit::Questions } else { JudgedSplit::Validation }
    }

    /// The units in which the differences of its split are, for a line of numbers.
    pub(crate) fn unit_of(self, split: JudgedSplit) -> String {
        match self {
            Self::Acc | Self::AccNorm => self.measure().quantity.into(),
            Self::Nats | Self::BitsPerByte => format!("{} of {} text", self.measure().unit, split.name()),
        }
    }
}

/// Held-out text by which arms are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum JudgedSplit {
    /// The text by which learning rates were chosen too.
    #[default]
    Validation,
    /// Text that nothing was chosen by.
    Test,
    /// Multiple-choice questions, which nothing was chosen by.
    Questions,
}

impl JudgedSplit {
    /// Its name in a run's files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Validation => "validation",
            Self::Test => "test",
            Self::Questions => "questions",
        }
    }
}
