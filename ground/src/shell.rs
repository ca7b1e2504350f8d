//! Paths and values as a shell takes them back, for commands that are printed to be run.

use std::borrow::Cow;
use std::path::Path;

/// `word` as a POSIX shell reads it back as one word: as it is, or in single quotes.
pub fn quoted(word: &str) -> Cow<'_, str> {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "_-./=:,+@%".contains(letter);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''")).into()
    }
}

/// `path` quoted as by [`quoted`]; one that begins with `-` gets a `./`, so that it is not taken for a flag.
pub fn quoted_path(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.starts_with('-') { quoted(&format!("./{text}")).into_owned() } else { quoted(&text).into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        for word in ["plain-1.toml", "two words", "it's", "", "$HOME", "a\"b", "x;y", "ü", "*", "~"] {
            let script = format!("printf %s {}", quoted(word));
            let output = std::process::Command::new("sh").arg("-c").arg(script).output();
            assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap(), word);
        }
    }

    #[test]
    fn a_path_is_not_taken_for_a_flag() {
        assert_eq!(quoted_path(Path::new("-x")), "./-x");
        assert_eq!(quoted_path(Path::new("runs/my run")), "'runs/my run'");
    }
}
