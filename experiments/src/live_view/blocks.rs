//! Numbers as block characters.

/// From an eighth of a cell's height to all of it.
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// `====>     `, `width` characters long.
pub(super) fn progress_bar(share: f64, width: usize) -> String {
    let filled = (share.clamp(0.0, 1.0) * width as f64) as usize;
    let head = if filled < width { ">" } else { "" };
    format!("{}{head}{}", "=".repeat(filled), " ".repeat(width - filled - head.len()))
}

/// The values from left to right, at most `width` characters, the lowest of them at the bottom and
/// the highest at the top. With more values than characters, each shows the mean of its share.
pub(super) fn sparkline(values: &[f64], width: usize) -> String {
    let cells = means(values, width);
    let lowest = cells.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = cells.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let height = |value: f64| if highest > lowest { (value - lowest) / (highest - lowest) } else { 0.0 };
    cells.into_iter().map(|value| block(height(value))).collect()
}

/// Loads of experts from left to right, at most `width` characters: half a cell is the fair share,
/// a whole one twice as much or more, a dot no token at all.
pub(super) fn load_bars(tokens_per_expert: &[u64], width: usize) -> String {
    let loads: Vec<f64> = tokens_per_expert.iter().map(|&tokens| tokens as f64).collect();
    let fair = loads.iter().sum::<f64>() / loads.len().max(1) as f64;
    let bar = |load: f64| if load > 0.0 { block(load / (2.0 * fair)) } else { '.' };
    means(&loads, width).into_iter().map(bar).collect()
}

/// The block whose height is nearest to a share of a cell, but never nothing.
fn block(share: f64) -> char {
    let eighths = (share.clamp(0.0, 1.0) * BLOCKS.len() as f64).round() as usize;
    BLOCKS[eighths.saturating_sub(1)]
}

/// At most `width` means of consecutive values, over parts whose lengths differ by one at most.
fn means(values: &[f64], width: usize) -> Vec<f64> {
    let num_parts = values.len().min(width);
    let start = |part: usize| part * values.len() / num_parts;
    let mean = |part: usize| {
        let values = &values[start(part)..start(part + 1)];
        values.iter().sum::<f64>() / values.len() as f64
    };
    (0..num_parts).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_it_is_said_to_be() {
        assert_eq!(progress_bar(0.0, 4), ">   ");
        assert_eq!(progress_bar(0.5, 4), "==> ");
        assert_eq!(progress_bar(1.0, 4), "====");
        assert_eq!(progress_bar(7.0, 4), "====", "a resumed run may be beyond a shorter plan");
        assert_eq!(progress_bar(0.5, 0), "");
    }

    #[test]
    fn a_line_spans_from_the_lowest_to_the_highest_value() {
        assert_eq!(sparkline(&[0.0, 2.0, 4.0, 8.0], 10), "▁▂▄█");
        assert_eq!(sparkline(&[3.0, 3.0], 10), "▁▁");
        assert_eq!(sparkline(&[], 10), "");
    }

    #[test]
    fn many_values_become_means_of_equal_shares() {
        assert_eq!(means(&[1.0, 3.0, 5.0, 7.0], 2), [2.0, 6.0]);
        assert_eq!(means(&[1.0, 2.0, 3.0], 2), [1.0, 2.5]);
        let many: Vec<f64> = (0..1000).map(f64::from).collect();
        let line = sparkline(&many, 37);
        assert_eq!(line.chars().count(), 37);
        assert!(line.chars().is_sorted(), "rising values rise: {line}");
    }

    #[test]
    fn the_fair_share_is_half_a_bar_and_a_dead_expert_a_dot() {
        assert_eq!(load_bars(&[4, 4, 4, 4], 64), "▄▄▄▄");
        assert_eq!(load_bars(&[8, 4, 4, 0], 64), "█▄▄.");
        assert_eq!(load_bars(&[16, 0, 0, 0], 64), "█...");
        assert_eq!(load_bars(&[], 64), "");
        assert_eq!(load_bars(&[0, 0], 64), "..");
        assert_eq!(load_bars(&[4; 256], 64).chars().count(), 64);
    }
}
