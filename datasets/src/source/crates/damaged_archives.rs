//! Archives that are damaged and pinned as they are: the checksum keeps them out, what lies behind
//! it must hold without.

use std::fs;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::{MAX_FILE_BYTES, PinnedArchive, read_archive};
use crate::source::Content;
use switchyard_ground::digest::hex;

/// A file, a link, a folder, a name too long for a plain header and a table beyond the limit.
fn archive() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content).unwrap();
    };
    add("a-1.0.0/src/lib.rs", tar::EntryType::Regular, b"//! A crate.\n");
    add("a-1.0.0/README.md", tar::EntryType::Regular, "# Ä\n".as_bytes());
    add("a-1.0.0/src", tar::EntryType::Directory, b"");
    add(&format!("a-1.0.0/{}.rs", "long/".repeat(40)), tar::EntryType::Regular, b"fn f() {}");
    add("a-1.0.0/table.rs", tar::EntryType::Regular, &vec![b'0'; MAX_FILE_BYTES as usize]);
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Reads `compressed` as if the lockfile pinned it.
fn read(compressed: &[u8]) -> Option<Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a-1.0.0.crate");
    fs::write(&path, compressed).unwrap();
    let sha256 = hex(&Sha256::digest(compressed));
    let pinned = PinnedArchive { domain: 0, stem: "a-1.0.0".to_owned(), sha256 };
    let text = |content| match content {
        Content::Text(text) => text,
        Content::Ids(_) => panic!("an archive holds text"),
    };
    let documents = read_archive(&pinned, &path).ok()?;
    Some(documents.into_iter().map(|document| text(document.content)).collect())
}

/// Damage to a byte: where, as a share of the length, and what is there then.
fn damage() -> impl Strategy<Value = Vec<(f64, u8)>> {
    let byte = prop_oneof![
        any::<u8>(),
        Just(0),
        Just(0xff),
        Just(b'7'),
        Just(b'L'),
        Just(b'x'),
        Just(b'g'),
        Just(b'S')
    ];
    proptest::collection::vec((0.0..1.0, byte), 0..6)
}

fn apply(damage: &[(f64, u8)], bytes: &mut [u8]) {
    for (share, byte) in damage {
        let at = (share * bytes.len() as f64) as usize;
        bytes[at] = *byte;
    }
}

/// Tar files check their headers by a sum of the bytes: written anew, so that damage reaches what
/// lies behind.
fn seal_headers(bytes: &mut [u8]) {
    for header in bytes.as_chunks_mut::<512>().0.iter_mut().filter(|block| &block[257..262] == b"ustar") {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

#[test]
fn a_sound_archive_yields_its_texts() {
    assert_eq!(read(&gzip(&archive())).unwrap(), ["# Ä\n", "fn f() {}", "//! A crate.\n"]);
}

proptest! {
    #[test]
    fn a_damaged_archive_is_refused_or_read_within_its_limits(
        inside in damage(),
        header in damage(),
        outside in damage(),
        kept in 0.5..1.0_f64,
    ) {
        let mut bytes = archive();
        apply(&inside, &mut bytes);
        // The last file, most of the archive, is a filling: aim at what stands before it.
        apply(&header, &mut bytes[..4096]);
        seal_headers(&mut bytes);
        let mut compressed = gzip(&bytes);
        // Half of them reach the archive sound.
        if outside.len() > 3 {
            apply(&outside, &mut compressed);
            compressed.truncate((kept * compressed.len() as f64) as usize);
        }
        for text in read(&compressed).into_iter().flatten() {
            prop_assert!(!text.is_empty() && text.len() as u64 <= MAX_FILE_BYTES);
        }
    }
}
