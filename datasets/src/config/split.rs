//! `[data.split]`: what is held out of training.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use switchyard_ground::key_error::KeyError;

/// `[data.split]`: at most one of the tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SplitConfig {
    /// Each document goes where the hash of its content says.
    ByDocumentHash(SplitFractions),
    /// The end of the corpus validates; the choice for a single long text.
    Tail(SplitFractions),
}

/// How much does not train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SplitFractions {
    /// Share of the validation split, above 0 and below 1.
    pub validation_fraction: f64,
    /// Share of the test split, which no choice is made by: a study looks at it once, for its
    /// verdict. Default 0, which makes none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub test_fraction: f64,
    /// Leave out validation and test documents of which the training split has more than this share,
    /// word for word, in passages of 50 or more bytes (or ids); absent keeps all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_overlap: Option<f64>,
}

impl SplitFractions {
    /// A validation split of this share, and no test split.
    pub fn of_validation(validation_fraction: f64) -> Self {
        Self { validation_fraction, test_fraction: 0.0, max_overlap: None }
    }
}

fn is_zero(fraction: &f64) -> bool {
    *fraction == 0.0
}

impl SplitConfig {
    /// Nothing, if the shares leave something for each split.
    pub(super) fn validate(&self) -> Result<(), KeyError> {
        let SplitFractions { validation_fraction, test_fraction, max_overlap } = *self.fractions();
        let wrong = |key: &str, value: f64, remedy: &str| {
            Err(KeyError::new(format!("split.{}.{key}", self.name()), format!("is {value}"), remedy))
        };
        if !(validation_fraction > 0.0 && validation_fraction < 1.0) {
            let remedy = "use a share above 0 and below 1, such as 0.05";
            return wrong("validation_fraction", validation_fraction, remedy);
        }
        if !(test_fraction >= 0.0 && validation_fraction + test_fraction < 1.0) {
            let remedy = "use a share of at least 0 that leaves some text to train on, such as 0.05";
            return wrong("test_fraction", test_fraction, remedy);
        }
        match max_overlap {
            Some(most) if !(0.0..1.0).contains(&most) => {
                wrong("max_overlap", most, "use a share of at least 0 and below 1, such as 0.5")
            }
            _ => Ok(()),
        }
    }

    /// The shares, whichever rule takes them.
    pub(crate) fn fractions(&self) -> &SplitFractions {
        match self {
            Self::ByDocumentHash(fractions) | Self::Tail(fractions) => fractions,
        }
    }

    /// The name of its table.
    fn name(&self) -> &'static str {
        match self {
            Self::ByDocumentHash(_) => "by_document_hash",
            Self::Tail(_) => "tail",
        }
    }
}
