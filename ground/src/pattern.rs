//! Names with `*` in them.

/// What stands for any text.
pub const ANY_TEXT: char = '*';

/// Whether `text` is `pattern` with some text in the place of each `*`.
pub fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split(ANY_TEXT);
    let Some(text) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let Some(end) = parts.next_back() else { return text.is_empty() };
    let Some(mut middle) = text.strip_suffix(end) else { return false };
    // Wherever a part fits first, it leaves most to the others.
    parts.all(|part| match middle.find(part) {
        Some(at) => {
            middle = &middle[at + part.len()..];
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_text() {
        for (pattern, text, expected) in [
            ("train_*.bin", "train_0001.bin", true),
            ("train_*.bin", "train_.bin", true),
            ("train_*.bin", "train_1.bin.part", false),
            ("*_*", "a_b", true),
            ("*", "", true),
            ("a*a", "a", false),
            ("ä*", "äé", true),
            ("a*b*c", "axbxc", true),
            ("a*b*c", "axcxb", false),
            ("*a*", "a", true),
            ("train.bin", "train.bin", true),
            ("train.bin", "train.bin2", false),
        ] {
            assert_eq!(fits(pattern, text), expected, "{pattern} {text}");
        }
        // In one pass, however many stars there are.
        assert!(!fits(&format!("{}x", "a*".repeat(5000)), &"a".repeat(10_000)));
    }
}
