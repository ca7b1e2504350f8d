//! Text tables with aligned columns.

/// `rows` with every column as wide as its widest cell, the first flush left, the others right; the
/// first row is the heading. Rows must be equally long.
pub(super) fn aligned(rows: &[Vec<String>]) -> String {
    let num_columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..num_columns)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    rows.iter().map(|row| line(row, &widths)).collect()
}

fn line(row: &[String], widths: &[usize]) -> String {
    let cells = row.iter().zip(widths).enumerate().map(|(column, (cell, &width))| match column {
        0 => format!("{cell:<width$}"),
        _ => format!("  {cell:>width$}"),
    });
    let text: String = cells.collect();
    format!("{}\n", text.trim_end())
}

/// Four significant digits: as they are where that is short, otherwise with an exponent.
pub(super) fn four_digits(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e5).contains(&size) {
        return format!("{value:.3e}");
    }
    let before_point = if size >= 1.0 { size.log10().floor() as usize + 1 } else { 0 };
    let decimals = 4_usize.saturating_sub(before_point);
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["name".into(), "value".into()], vec!["a".into(), "12345678".into()]];
        assert_eq!(aligned(&rows), "name     value\na     12345678\n");
    }

    #[test]
    fn numbers_keep_four_digits() {
        let shown: Vec<String> = [0.0, 0.1234567, 1.69, 406.4, 54321.0, 1.2e9, 1e-7].map(four_digits).into();
        assert_eq!(shown, ["0.0000", "0.1235", "1.690", "406.4", "54321", "1.200e9", "1.000e-7"]);
    }
}
