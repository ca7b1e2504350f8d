//! What two runs are compared by, in words.

use std::fmt::Display;

/// A quantity of which less is better, and its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Measure {
    /// What it is called, such as "loss".
    pub(crate) quantity: &'static str,
    /// Its unit, such as "nats"; empty for a share.
    pub(crate) unit: &'static str,
}

impl Measure {
    /// The quantity with its unit, such as "loss, nats".
    pub(crate) fn of_quantity(self) -> String {
        match self.unit {
            "" => self.quantity.into(),
            unit => format!("{}, {unit}", self.quantity),
        }
    }

    /// Cross-entropy per token.
    pub(crate) const LOSS_IN_NATS: Self = Self { quantity: "loss", unit: "nats" };

    /// `number` with the unit, where there is one.
    pub(crate) fn amount(self, number: impl Display) -> String {
        match self.unit {
            "" => number.to_string(),
            unit => format!("{number} {unit}"),
        }
    }
}
