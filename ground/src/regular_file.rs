//! Files opened without surprises: a named pipe would wait for ever, a device would never end, and
//! a link could lead a write elsewhere.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

/// Opens the file at `path` for reading; links are followed.
///
/// # Errors
/// Any error of the file system, and [`io::ErrorKind::InvalidInput`] for what is no regular file,
/// such as a folder, a named pipe or a device, none of which is waited for.
pub fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    // Opening a pipe waits for a writer unless told not to; on a regular file the flag does
    // nothing.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path).map_err(named_circle)?;
    require_regular(&file.metadata()?)?;
    Ok(file)
}

/// Whether `error` says that the process, or the system, has as many files open as it may.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    #[cfg(unix)]
    return matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
    #[cfg(not(unix))]
    return error.kind() == io::ErrorKind::QuotaExceeded;
}

/// `error`; if it is of links that lead back to themselves, as what lies there, which no second try
/// changes.
fn named_circle(error: io::Error) -> io::Error {
    #[cfg(unix)]
    if error.raw_os_error() == Some(libc::ELOOP) {
        return io::Error::new(io::ErrorKind::InvalidInput, "it is a link that leads back to itself");
    }
    error
}

/// The whole file at `path`, as by [`open`].
///
/// # Errors
/// As [`open`], and [`io::ErrorKind::FileTooLarge`] for more than `max_bytes`.
pub fn read(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that grows from one that fits.
    open(path)?.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        let message = format!("it has more than the {max_bytes} bytes that such a file can have");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

/// The whole file at `path` as text, as by [`read`].
///
/// # Errors
/// As [`read`], and [`io::ErrorKind::InvalidData`] for what is not UTF-8.
pub fn read_to_string(path: &Path, max_bytes: u64) -> io::Result<String> {
    let not_utf8 = |error: std::string::FromUtf8Error| {
        let message = format!("it is not UTF-8 at byte {}", error.utf8_error().valid_up_to());
        io::Error::new(io::ErrorKind::InvalidData, message)
    };
    String::from_utf8(read(path, max_bytes)?).map_err(not_utf8)
}

/// Opens the file at `path` for reading and writing, created if it is missing and otherwise left as
/// it is: for locks.
///
/// # Errors
/// Any error of the file system; a link is refused, because its target is not ours to write in.
pub fn open_or_create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path).map_err(|error| match path.is_symlink() {
        true => {
            io::Error::new(io::ErrorKind::InvalidInput, "it is a link, whose target is not ours to write in")
        }
        false => error,
    })?;
    require_regular(&file.metadata()?)?;
    Ok(file)
}

fn require_regular(metadata: &Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let what = if metadata.is_dir() { "a folder" } else { "a pipe, a socket or a device" };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}, not a regular file")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn pipes_devices_and_folders_are_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [pipe.as_path(), folder.path(), Path::new("/dev/zero")] {
            let error = read(path, 10).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
            assert!(error.to_string().ends_with("not a regular file"), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_read_through_and_never_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        std::fs::write(&target, "held").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert_eq!(read_to_string(&link, 4).unwrap(), "held");
        assert_eq!(open_or_create(&link).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(std::fs::read(&target).unwrap(), b"held");
    }

    #[test]
    fn a_file_larger_than_it_can_be_is_not_read_into_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        assert_eq!(read(&path, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
