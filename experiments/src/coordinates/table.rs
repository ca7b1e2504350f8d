//! The coordinate check as a table.

use std::fmt::Write;

use switchyard_trainer::coordinates::Site;

use super::Series;

/// One row for each axis, site and way of choosing rates: what the steps changed at each multiple, and
/// the exponent.
pub(crate) fn table(all: &[Series]) -> String {
    let mut text = format!(
        "{:12} {:14} {:12} {:>9}  change of the root mean square at each multiple\n",
        "axis", "activations", "rates", "exponent"
    );
    for series in all {
        for site in Site::ALL {
            let Some(exponent) = series.exponent(site) else { continue };
            let rates = if series.is_transferred { "transferred" } else { "standard" };
            let changes: Vec<String> = series
                .changes(site)
                .iter()
                .map(|(multiple, change)| format!("x{multiple} {change:.4}"))
                .collect();
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{:12} {:14} {rates:12} {exponent:>+9.2}  {}",
                series.axis.to_string(),
                site.name(),
                changes.join("  ")
            );
        }
    }
    text
}
