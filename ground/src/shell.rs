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

/// `path` quoted as by [`quoted`]; one that begins with `-` gets a `./`, so that it is not taken
/// for a flag, and one that cannot be printed is spelled in octal for `printf`.
pub fn quoted_path(path: &Path) -> String {
    match path.to_str() {
        Some(text) if text.chars().any(char::is_control) => spelled(path),
        Some(text) if text.starts_with('-') => quoted(&format!("./{text}")).into_owned(),
        Some(text) => quoted(text).into_owned(),
        None => spelled(path),
    }
}

/// `path` as a command whose output a shell puts in its place: every POSIX shell has it, and all of
/// it can be printed.
fn spelled(path: &Path) -> String {
    let spelled: String = path
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .map(|byte| match byte {
            b'-' | b'_' | b'.' | b'/' => char::from(*byte).to_string(),
            byte if byte.is_ascii_alphanumeric() => char::from(*byte).to_string(),
            byte => format!("\\{byte:03o}"),
        })
        .collect();
    let here = if spelled.starts_with('-') { "./" } else { "" };
    format!("\"$(printf '{here}{spelled}')\"")
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

    #[cfg(unix)]
    #[test]
    fn a_path_that_cannot_be_printed_is_read_back_too() {
        use std::os::unix::ffi::OsStrExt;
        for bytes in [&b"caf\xe9 'r'/%d"[..], b"tab\there\x1b[2J", b"-\xff"] {
            let printed = quoted_path(Path::new(std::ffi::OsStr::from_bytes(bytes)));
            assert!(printed.chars().all(|letter| letter.is_ascii_graphic() || letter == ' '), "{printed}");
            let output =
                std::process::Command::new("sh").arg("-c").arg(format!("printf %s {printed}")).output();
            let read = output.unwrap().stdout;
            assert_eq!(read.strip_prefix(b"./").unwrap_or(&read), bytes);
        }
    }

    #[test]
    fn a_path_is_not_taken_for_a_flag() {
        assert_eq!(quoted_path(Path::new("-x")), "./-x");
        assert_eq!(quoted_path(Path::new("runs/my run")), "'runs/my run'");
    }
}
