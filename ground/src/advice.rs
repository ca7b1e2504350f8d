//! What to do about an error of the file system.

use std::io::{self, ErrorKind};

use crate::regular_file::is_out_of_descriptors;

/// What to do about `source`, which came of `action` on a file.
pub fn advice(action: &str, source: &io::Error) -> &'static str {
    if is_out_of_descriptors(source) {
        return "nothing is wrong with the file as far as is known: allow more open files (`ulimit -n`) and try again";
    }
    match source.kind() {
        ErrorKind::NotFound => "check the path",
        ErrorKind::InvalidFilename => "choose a shorter name",
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "change the permissions, or choose another folder"
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            "free some space, choose another disk, or allow larger files (`ulimit -f`)"
        }
        ErrorKind::InvalidInput | ErrorKind::IsADirectory | ErrorKind::NotADirectory => {
            "see what lies there, and move it away"
        }
        _ if action == "read" || action == "open" => {
            "nothing is wrong with the file as far as is known: try again when the cause is mended"
        }
        _ => "check the disk and the permissions of the folder",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_failed_for_a_moment_is_no_reason_to_delete_or_to_free_anything() {
        for code in [5, 12, 24, 116] {
            let advice = advice("read", &io::Error::from_raw_os_error(code));
            assert!(advice.contains("nothing is wrong"), "{code}: {advice}");
        }
        assert!(advice("write", &ErrorKind::StorageFull.into()).contains("space"));
        assert!(!advice("create", &ErrorKind::InvalidFilename.into()).contains("space"));
    }
}
