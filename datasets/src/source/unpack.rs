//! Bytes of a text file, plain or compressed, cut into records of bounded size.

use std::collections::TryReserveError;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::Path;

use flate2::bufread::GzDecoder;
use switchyard_ground::regular_file;

use super::file_kind::Compression;
use crate::error::DatasetError;
use crate::progress::Progress;

const BUFFER_BYTES: usize = 1 << 16;

/// Records from this size on get their room at once.
const LARGE_RECORD_BYTES: usize = 64 << 20;

/// The longest window that the format of zstd's command line allows, as a power of two: 2 GiB. The
/// decoder keeps that much of what it has unpacked, and no more.
const MAX_ZSTD_WINDOW_LOG: u32 = 31;
/// Windows up to this size need no mention: every decoder accepts them.
const COMMON_ZSTD_WINDOW_BYTES: u64 = 128 << 20;
/// First byte of every gzip member.
const GZIP_MAGIC: u8 = 0x1f;
const ZSTD_MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
const ZSTD_SINGLE_SEGMENT: u8 = 1 << 5;

/// The uncompressed bytes of a file.
pub(super) struct Unpacked<'a> {
    path: &'a Path,
    compression: Compression,
    progress: &'a Progress,
    reader: Box<dyn BufRead>,
}

impl<'a> Unpacked<'a> {
    /// The file at `path`, to be read from its start.
    ///
    /// # Errors
    /// If it is no regular file or cannot be opened.
    pub(super) fn open(
        path: &'a Path,
        compression: Compression,
        progress: &'a Progress,
    ) -> Result<Self, DatasetError> {
        let file = regular_file::open(path).map_err(DatasetError::io("read", path))?;
        let file = BufReader::with_capacity(BUFFER_BYTES, file);
        let reader: Box<dyn BufRead> = match compression {
            Compression::None => Box::new(file),
            Compression::Gzip => Box::new(BufReader::with_capacity(BUFFER_BYTES, GzipMembers::new(file))),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(file).map_err(DatasetError::io("read", path))?;
                decoder.window_log_max(MAX_ZSTD_WINDOW_LOG).map_err(DatasetError::io("read", path))?;
                Box::new(BufReader::with_capacity(BUFFER_BYTES, decoder))
            }
        };
        Ok(Self { path, compression, progress, reader })
    }

    /// Replaces `record` by the bytes up to the next `delimiter`, or to the end without one.
    ///
    /// # Errors
    /// If the file cannot be read or unpacked, or the stop flag is set.
    pub(super) fn read_record(
        &mut self,
        delimiter: Option<&[u8]>,
        max_bytes: u64,
        record: &mut Vec<u8>,
    ) -> Result<RecordEnd, DatasetError> {
        record.clear();
        loop {
            self.progress.check()?;
            match read_on(self.reader.as_mut(), delimiter, max_bytes, record) {
                Ok(None) => {}
                Ok(Some(end)) => return Ok(end),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.read_error(error)),
            }
        }
    }

    /// What an error of the reader means: the file cannot be read, or what is in it cannot be
    /// unpacked.
    fn read_error(&self, error: io::Error) -> DatasetError {
        let name = match self.compression {
            Compression::Zstd => "zstd",
            Compression::Gzip => "gzip",
            Compression::None => return DatasetError::io("read", self.path)(error),
        };
        // An error of the system has a number, one of the decoder has none.
        if error.raw_os_error().is_some() {
            return DatasetError::io("read", self.path)(error);
        }
        let problem = if error.kind() == ErrorKind::UnexpectedEof {
            format!("it ends in the middle of its {name} data ({error}). It was cut short: copy it again")
        } else {
            format!("it is no {name} data, or damaged ({error}). Make it again, or remove it from the folder")
        };
        DatasetError::Compressed { path: self.path.to_path_buf(), problem }
    }
}

/// Size of the window that the first frame of the zstd file at `path` asks for, where that is more
/// than usual.
pub(super) fn long_zstd_window(path: &Path) -> Option<u64> {
    let mut header = [0; 6];
    regular_file::open(path).and_then(|mut file| file.read_exact(&mut header)).ok()?;
    if header[..4] != ZSTD_MAGIC || header[4] & ZSTD_SINGLE_SEGMENT != 0 {
        return None;
    }
    // RFC 8878, section 3.1.1.1.2.
    let base = 1_u64 << (10 + u32::from(header[5] >> 3));
    let window = base + base / 8 * u64::from(header[5] & 7);
    (window > COMMON_ZSTD_WINDOW_BYTES).then_some(window)
}

/// All members of a gzip file, one after the other. Zeros after the last, which tapes and some
/// disks leave, are no member.
struct GzipMembers {
    /// None at the end.
    member: Option<GzDecoder<BufReader<File>>>,
}

impl GzipMembers {
    fn new(file: BufReader<File>) -> Self {
        Self { member: Some(GzDecoder::new(file)) }
    }
}

impl Read for GzipMembers {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            match member.read(out)? {
                0 if !out.is_empty() => {}
                num_bytes => return Ok(num_bytes),
            }
            let Some(finished) = self.member.take() else { break };
            let mut file = finished.into_inner();
            if skip_zeros(&mut file)? {
                if file.fill_buf()?.first() != Some(&GZIP_MAGIC) {
                    return Err(io::Error::new(
                        ErrorKind::InvalidData,
                        "its gzip data is whole, but something else follows it",
                    ));
                }
                self.member = Some(GzDecoder::new(file));
            }
        }
        Ok(0)
    }
}

/// Whether something follows after zeros.
fn skip_zeros(file: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let buffer = match file.fill_buf() {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        };
        if buffer.is_empty() {
            return Ok(false);
        }
        let num_zeros = buffer.iter().take_while(|byte| **byte == 0).count();
        let is_more = num_zeros < buffer.len();
        file.consume(num_zeros);
        if is_more {
            return Ok(true);
        }
    }
}

/// How a record ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordEnd {
    /// At a delimiter, which is not part of the record.
    Delimiter,
    /// At the end of the file.
    File,
    /// At the limit; the record is not whole.
    Limit,
    /// Where the memory ends; the record is not whole.
    Memory,
}

/// Adds to `record` what `reader` has at hand, up to a `delimiter`; returns how the record ended,
/// if it did.
///
/// Memory is asked for as bytes arrive and never beyond `max_bytes`, so that a small file cannot
/// fill it.
fn read_on(
    reader: &mut dyn BufRead,
    delimiter: Option<&[u8]>,
    max_bytes: u64,
    record: &mut Vec<u8>,
) -> io::Result<Option<RecordEnd>> {
    // One that holds all of a delimiter can end at it, so the limit counts without it.
    let max_len =
        usize::try_from(max_bytes).unwrap_or(usize::MAX).saturating_add(delimiter.map_or(0, <[u8]>::len));
    let buffer = reader.fill_buf()?;
    if buffer.is_empty() {
        let is_within = record.len() as u64 <= max_bytes;
        return Ok(Some(if is_within { RecordEnd::File } else { RecordEnd::Limit }));
    }
    // A delimiter ends where its last byte is.
    let last = delimiter.and_then(<[u8]>::last);
    let at_last = last.and_then(|last| buffer.iter().position(|byte| byte == last));
    let wanted = at_last.map_or(buffer.len(), |at| at + 1);
    let taken = wanted.min(max_len - record.len());
    if taken == 0 {
        return Ok(Some(RecordEnd::Limit));
    }
    if grow(record, taken, max_len).is_err() {
        return Ok(Some(RecordEnd::Memory));
    }
    record.extend_from_slice(&buffer[..taken]);
    reader.consume(taken);
    match delimiter {
        Some(delimiter) if at_last.is_some() && record.ends_with(delimiter) => {
            record.truncate(record.len() - delimiter.len());
            Ok(Some(RecordEnd::Delimiter))
        }
        _ => Ok(None),
    }
}

/// Makes room for `additional` bytes: twice as much as before, though never more than `max_len`;
/// for a large record all that it may need. What is not written to takes no memory, while each move
/// of a large record takes its size once more.
fn grow(record: &mut Vec<u8>, additional: usize, max_len: usize) -> Result<(), TryReserveError> {
    let needed = record.len() + additional;
    if needed <= record.capacity() {
        return Ok(());
    }
    let room_for = |len: usize| len.clamp(needed, max_len.max(needed)) - record.len();
    let (doubled, all) = (room_for(record.capacity().saturating_mul(2)), room_for(max_len));
    if needed > LARGE_RECORD_BYTES && record.try_reserve_exact(all).is_ok() {
        return Ok(());
    }
    record.try_reserve_exact(doubled)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacked(bytes: &[u8], compression: Compression) -> Result<Vec<u8>, DatasetError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, bytes).unwrap();
        let mut text = Vec::new();
        let progress = Progress::silent();
        let end = Unpacked::open(&path, compression, &progress)?.read_record(None, u64::MAX, &mut text)?;
        assert_eq!(end, RecordEnd::File);
        Ok(text)
    }

    #[test]
    fn all_members_and_frames_are_read_and_zeros_after_them_are_nothing() {
        let members = [gzip(b"one "), gzip(b""), gzip(b"two")].concat();
        for padding in [0, 1, 512, 3 * BUFFER_BYTES] {
            let padded = [members.clone(), vec![0; padding]].concat();
            assert_eq!(unpacked(&padded, Compression::Gzip).unwrap(), b"one two");
        }
        let between = [gzip(b"one "), vec![0; 100], gzip(b"two")].concat();
        assert_eq!(unpacked(&between, Compression::Gzip).unwrap(), b"one two");
        let frames =
            [zstd::encode_all(&b"one "[..], 3).unwrap(), zstd::encode_all(&b"two"[..], 3).unwrap()].concat();
        assert_eq!(unpacked(&frames, Compression::Zstd).unwrap(), b"one two");
    }

    #[test]
    fn what_is_cut_short_or_damaged_is_named_as_that() {
        let text = b"some text that is long enough to be cut somewhere".repeat(50);
        let zstd = zstd::encode_all(&text[..], 3).unwrap();
        let two_members = [gzip(b"first"), gzip(&text)].concat();
        for (bytes, compression) in
            [(gzip(&text), Compression::Gzip), (two_members, Compression::Gzip), (zstd, Compression::Zstd)]
        {
            let message = unpacked(&bytes[..bytes.len() - 9], compression).unwrap_err().to_string();
            assert!(message.contains("a` cannot be decompressed: it ends in the middle"), "{message}");
            let message = unpacked(b"plain text, not compressed", compression).unwrap_err();
            assert!(message.is_users_mistake() && message.to_string().contains("it is no "), "{message}");
            let trailed = [bytes, b"trailing text".to_vec()].concat();
            let message = unpacked(&trailed, compression).unwrap_err();
            assert!(message.is_users_mistake(), "{message}");
            let is_named = message.to_string().contains("is whole, but something else follows it");
            assert!(is_named || compression == Compression::Zstd, "{message}");
        }
    }

    #[test]
    fn zstd_windows_of_up_to_two_gibibytes_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        for window_log in [27, 30, 31] {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(window_log).unwrap();
            encoder.write_all(b"text of a long window").unwrap();
            let bytes = encoder.finish().unwrap();
            assert_eq!(unpacked(&bytes, Compression::Zstd).unwrap(), b"text of a long window");
            std::fs::write(&path, &bytes).unwrap();
            let expected = (window_log > 27).then_some(1 << window_log);
            assert_eq!(long_zstd_window(&path), expected);
        }
    }

    /// Reads records from memory, a few bytes at a time.
    fn read_record(
        reader: &mut dyn BufRead,
        delimiter: &str,
        max_bytes: u64,
        record: &mut Vec<u8>,
    ) -> RecordEnd {
        record.clear();
        loop {
            if let Some(end) = read_on(reader, Some(delimiter.as_bytes()), max_bytes, record).unwrap() {
                return end;
            }
        }
    }

    proptest! {
        #[test]
        fn records_are_what_splitting_the_text_gives(
            text in "[ab\n]{0,60}", delimiter in "[ab\n]{1,3}", capacity in 1_usize..9,
        ) {
            let mut reader = BufReader::with_capacity(capacity, text.as_bytes());
            let (mut record, mut records) = (Vec::new(), Vec::new());
            loop {
                let end = read_record(&mut reader, &delimiter, 1000, &mut record);
                records.push(String::from_utf8(record.clone()).unwrap());
                if end == RecordEnd::File {
                    break;
                }
            }
            let expected: Vec<&str> = text.split(&delimiter).collect();
            prop_assert_eq!(records, expected);
        }
    }

    #[test]
    fn a_record_ends_at_its_limit_and_not_before() {
        let mut record = Vec::new();
        let mut end = |text: &str, max_bytes| {
            let mut reader = BufReader::with_capacity(3, text.as_bytes());
            (read_record(&mut reader, "\n", max_bytes, &mut record), record.capacity())
        };
        assert_eq!(end("12345\n", 5).0, RecordEnd::Delimiter);
        assert_eq!(end("12345", 5).0, RecordEnd::File);
        assert_eq!(end("123456\n", 5).0, RecordEnd::Limit);
        assert_eq!(end("123456", 5).0, RecordEnd::Limit);
        let (limited, capacity) = end(&"x".repeat(10_000), 1000);
        assert_eq!(limited, RecordEnd::Limit);
        assert!(capacity <= 1001, "{capacity}");
        assert!(grow(&mut Vec::new(), usize::MAX, usize::MAX).is_err(), "what cannot be had is an error");
        let mut large = Vec::new();
        grow(&mut large, LARGE_RECORD_BYTES + 1, 2 * LARGE_RECORD_BYTES).unwrap();
        assert_eq!(large.capacity(), 2 * LARGE_RECORD_BYTES, "it moves once");
    }
}
