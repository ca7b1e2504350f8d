//! Numbers as a person reads them: grouped, with decimal prefixes, as durations.

/// Decimal prefixes from 1 on, a thousand apart.
const PREFIXES: [&str; 9] = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"];
/// The same for counts, of which English says billions.
const COUNT_PREFIXES: [&str; 5] = ["", "k", "M", "B", "T"];

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1234567` as `1.23 M (1,234,567)`, with B for billions; small numbers once.
pub fn exact(number: u64) -> String {
    if number < 1000 {
        return number.to_string();
    }
    let (digits, prefix) = scale(number as f64, &COUNT_PREFIXES);
    format!("{digits} {prefix} ({})", grouped(number))
}

/// Three significant digits with a decimal prefix and the unit, such as `8.81 MFLOP`. The unit may
/// be empty.
pub fn scaled(value: f64, unit: &str) -> String {
    let (digits, prefix) = scale(value, &PREFIXES);
    format!("{digits} {prefix}{unit}").trim_end().to_owned()
}

/// The same in the least space, for tables and lines that change: `905`, `12.3k`, `1.31M`.
pub fn compact(value: f64) -> String {
    let (digits, prefix) = scale(value, &PREFIXES);
    digits + prefix
}

/// Bytes with a decimal prefix: `224 MB`.
pub fn bytes(number: u64) -> String {
    scaled(number as f64, "B")
}

/// A number of seconds as a person says it: `0.4s`, `42s`, `1m32s`, `3h05m`.
pub fn duration(secs: f64) -> String {
    if secs < 9.95 {
        return format!("{secs:.1}s");
    }
    let whole = secs.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, secs) => format!("{secs}s"),
        (0, minutes, secs) => format!("{minutes}m{secs:02}s"),
        (hours, minutes, _) => format!("{hours}h{minutes:02}m"),
    }
}

/// `1 step`, `2,000 steps`.
pub fn plural(number: u64, one: &str, many: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{} {many}", grouped(number)) }
}

fn scale<'a>(value: f64, prefixes: &[&'a str]) -> (String, &'a str) {
    let (mut value, mut index) = (value, 0);
    // 999.5 would print as 1000.
    while value.abs() >= 999.5 && index + 1 < prefixes.len() {
        value /= 1000.0;
        index += 1;
    }
    let decimals = match value.abs() {
        _ if index == 0 && value.fract() == 0.0 => 0,
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        _ => 2,
    };
    (format!("{value:.decimals$}"), prefixes[index])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_grouped_by_thousands() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(exact(999), "999");
        assert_eq!(exact(124_439_808), "124 M (124,439,808)");
        assert_eq!(exact(46_702_792_704), "46.7 B (46,702,792,704)");
        assert_eq!([0, 1, 2000].map(|n| plural(n, "step", "steps")), ["0 steps", "1 step", "2,000 steps"]);
    }

    #[test]
    fn prefixed_numbers_have_three_significant_digits() {
        let table = [
            (0.0, "0"),
            (0.5, "0.50"),
            (7.0, "7"),
            (42.37, "42.4"),
            (999.4, "999"),
            (999.6, "1.00 k"),
            (12_345.0, "12.3 k"),
            (-1.31e6, "-1.31 M"),
            (1.234e15, "1.23 P"),
            (1e30, "1000000 Y"),
        ];
        for (value, text) in table {
            assert_eq!(scaled(value, ""), text);
            assert_eq!(compact(value), text.replace(' ', ""));
        }
        assert_eq!(scaled(2.5e15, "FLOP"), "2.50 PFLOP");
        assert_eq!([12, 999_600].map(bytes), ["12 B", "1.00 MB"]);
    }

    #[test]
    fn durations_stay_short() {
        let table = [(0.04, "0.0s"), (9.96, "10s"), (59.7, "1m00s"), (3599.7, "1h00m"), (36_000.0, "10h00m")];
        for (secs, text) in table {
            assert_eq!(duration(secs), text);
        }
    }
}
