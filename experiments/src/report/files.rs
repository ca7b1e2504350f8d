//! Names of files.

/// A part of a file name made from `label`: lower case, digits, `.`, `-` and `_`.
pub(crate) fn file_name_of(label: &str) -> String {
    let kept = |letter: char| match letter.to_ascii_lowercase() {
        letter if letter.is_ascii_alphanumeric() || "._-".contains(letter) => letter,
        _ => '-',
    };
    let name: String = label.chars().take(60).map(kept).collect();
    let name = name.trim_matches(['.', '-']);
    if name.is_empty() { "arm".into() } else { name.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_never_leaves_the_folder() {
        let table = [
            ("Top-2 of 64", "top-2-of-64"),
            ("../../etc", "etc"),
            ("<script>", "script"),
            ("\u{3bb}", "arm"),
        ];
        for (label, name) in table {
            assert_eq!(file_name_of(label), name);
        }
    }
}
