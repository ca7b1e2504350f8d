//! The index of a Megatron-LM dataset: `NAME.idx` says where in `NAME.bin` the documents are.
//!
//! # Layout of the index, little-endian
//! | bytes | content |
//! |---|---|
//! | 9 | magic `MMIDIDX\0\0` |
//! | 8 | version 1 |
//! | 1 | type of the ids: 1 `uint8`, 4 `int32`, 8 `uint16`; others are not read |
//! | 8 | number of sequences, n |
//! | 8 | number of document borders, d: one more than documents |
//! | 4 n | ids of each sequence |
//! | 8 n | first byte of each sequence in `NAME.bin` |
//! | 8 d | first sequence of each document, then n |
//! | n | mode of each sequence, in multimodal datasets only |

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

use switchyard_ground::regular_file;

use crate::error::DatasetError;
use crate::progress::Progress;
use crate::token_width::TokenWidth;

const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";
const VERSION: u64 = 1;
const HEADER_BYTES: u64 = 34;
/// Sequences between two looks at the stop flag.
const SEQUENCES_PER_CHECK: u64 = 1 << 16;

/// What an index says.
#[derive(Debug)]
pub(super) struct MegatronIndex {
    pub(super) width: TokenWidth,
    /// First token of each document.
    pub(super) document_starts: Vec<u64>,
}

/// The facts in the header.
struct Header {
    width: TokenWidth,
    num_sequences: u64,
    /// Of the borders that are still to be read, once reading has begun.
    num_borders: u64,
}

impl MegatronIndex {
    /// The index at `path`, of ids in a file of `data_bytes` bytes.
    ///
    /// # Errors
    /// If it cannot be read, is none, is cut, or does not fit the ids.
    pub(super) fn read(path: &Path, data_bytes: u64, progress: &Progress) -> Result<Self, DatasetError> {
        let broken = |problem: String| DatasetError::TokenFile { path: path.to_path_buf(), problem };
        let failed = || DatasetError::io("read", path);
        let open = || regular_file::open(path).map_err(failed());
        let mut head = Vec::new();
        let mut file = open()?;
        let num_bytes = file.metadata().map_err(failed())?.len();
        file.by_ref().take(HEADER_BYTES).read_to_end(&mut head).map_err(failed())?;
        let header = Header::parse(&head, num_bytes).map_err(broken)?;
        let pointers_at = HEADER_BYTES + 4 * header.num_sequences;
        let borders_at = pointers_at + 8 * header.num_sequences;
        let mut walk = Walk {
            lengths: numbers(open()?, HEADER_BYTES).map_err(failed())?,
            pointers: numbers(open()?, pointers_at).map_err(failed())?,
            borders: numbers(open()?, borders_at).map_err(failed())?,
            header,
            data_bytes,
        };
        walk.documents(progress).map_err(|problem| match problem {
            Problem::Read(error) => DatasetError::io("read", path)(error),
            Problem::Content(problem) => {
                broken(format!("{problem}. Copy the `.idx` and the `.bin` again, or build them anew"))
            }
            Problem::Stopped => DatasetError::Interrupted,
        })
    }
}

impl Header {
    /// The header in `head`, of an index of `num_bytes`; or what is wrong with it.
    fn parse(head: &[u8], num_bytes: u64) -> Result<Self, String> {
        if !head.starts_with(MAGIC) {
            return Err("is no index of a Megatron dataset (wrong magic number): name the `.idx` that lies beside its \
                        `.bin`, or, for raw ids, a file with another ending"
                .to_owned());
        }
        if (head.len() as u64) < HEADER_BYTES {
            return Err(format!("has {num_bytes} bytes, less than the header of an index: copy it again"));
        }
        let number = |at: usize| {
            let bytes = head[at..].first_chunk::<8>().copied().unwrap_or_default();
            u64::from_le_bytes(bytes)
        };
        let (version, num_sequences, num_borders) = (number(9), number(18), number(26));
        if version != VERSION {
            return Err(format!(
                "has version {version} of Megatron's index, of which only {VERSION} is read"
            ));
        }
        let width = match head[17] {
            1 => TokenWidth::One,
            4 => TokenWidth::Four,
            8 => TokenWidth::Two,
            code => {
                return Err(format!(
                    "has ids of type {code} ({}): build the dataset with uint8 (1), int32 (4) or uint16 (8)",
                    type_name(code)
                ));
            }
        };
        let table = |modes: u64| {
            let of_sequences = num_sequences.checked_mul(12 + modes)?;
            num_borders.checked_mul(8)?.checked_add(of_sequences)?.checked_add(HEADER_BYTES)
        };
        if table(0) != Some(num_bytes) && table(1) != Some(num_bytes) {
            return Err(format!(
                "has {num_bytes} bytes, but its header promises {num_sequences} sequences and {num_borders} document borders: it \
                 is cut or damaged. Copy it again"
            ));
        }
        Ok(Self { width, num_sequences, num_borders })
    }
}

/// A type of ids by its number in an index.
fn type_name(code: u8) -> &'static str {
    match code {
        2 => "int8",
        3 => "int16",
        5 => "int64",
        6 => "float64",
        7 => "float32",
        _ => "unknown",
    }
}

/// The numbers of a table in `file` from byte `at` on.
fn numbers(mut file: File, at: u64) -> io::Result<BufReader<File>> {
    file.seek(SeekFrom::Start(at))?;
    Ok(BufReader::new(file))
}

fn next<const N: usize>(table: &mut BufReader<File>) -> Result<[u8; N], Problem> {
    let mut bytes = [0; N];
    match table.read_exact(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            Err(Problem::Content("ends within its tables".to_owned()))
        }
        Err(error) => Err(Problem::Read(error)),
    }
}

enum Problem {
    Read(io::Error),
    Content(String),
    Stopped,
}

/// One walk over the three tables side by side, so that none has to fit into the memory.
struct Walk {
    header: Header,
    lengths: BufReader<File>,
    pointers: BufReader<File>,
    borders: BufReader<File>,
    data_bytes: u64,
}

impl Walk {
    fn documents(&mut self, progress: &Progress) -> Result<MegatronIndex, Problem> {
        let Header { width, num_sequences, .. } = self.header;
        let (mut num_tokens, mut document_starts) = (0, Vec::new());
        let mut border = self.next_border()?;
        let mut has_order = border == Some(0);
        for sequence in 0..num_sequences {
            if sequence % SEQUENCES_PER_CHECK == 0 {
                progress.check().map_err(|_| Problem::Stopped)?;
            }
            while border == Some(sequence) {
                document_starts.push(num_tokens);
                border = self.next_border()?;
            }
            num_tokens += self.sequence_len(sequence, num_tokens)?;
        }
        // The last border is the end; empty documents may end there too.
        has_order &= border == Some(num_sequences);
        while border == Some(num_sequences) {
            border = self.next_border()?;
        }
        if border.is_some() || !has_order {
            let problem =
                format!("has document borders that do not ascend from 0 to its {num_sequences} sequences");
            return Err(Problem::Content(problem));
        }
        if num_tokens * width.bytes() as u64 != self.data_bytes {
            return Err(Problem::Content(format!(
                "promises {num_tokens} ids of {} bytes, but the `.bin` beside it has {} bytes",
                width.bytes(),
                self.data_bytes
            )));
        }
        Ok(MegatronIndex { width, document_starts })
    }

    /// The next document border; `None` after the last.
    fn next_border(&mut self) -> Result<Option<u64>, Problem> {
        let Some(num_left) = self.header.num_borders.checked_sub(1) else { return Ok(None) };
        self.header.num_borders = num_left;
        Ok(Some(u64::from_le_bytes(next(&mut self.borders)?)))
    }

    /// Ids of the sequence with this number, in front of which are `num_tokens`.
    fn sequence_len(&mut self, sequence: u64, num_tokens: u64) -> Result<u64, Problem> {
        let len = i32::from_le_bytes(next(&mut self.lengths)?);
        let pointer = i64::from_le_bytes(next(&mut self.pointers)?);
        let width = self.header.width.bytes() as u64;
        let Ok(len) = u64::try_from(len) else {
            return Err(Problem::Content(format!("gives sequence {sequence} the length {len}")));
        };
        let end = u64::try_from(pointer).ok().and_then(|start| start.checked_add(len * width));
        if end.is_none_or(|end| end > self.data_bytes) {
            return Err(Problem::Content(format!(
                "places sequence {sequence}, of {len} ids, at byte {pointer} of a `.bin` with {} bytes",
                self.data_bytes
            )));
        }
        if pointer as u64 != num_tokens * width {
            return Err(Problem::Content(format!(
                "places sequence {sequence} at byte {pointer}, not behind the one before it, at {}: such a dataset is not read",
                num_tokens * width
            )));
        }
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An index after the published layout: documents, each of sequences of so many ids.
    fn index(code: u8, width: u64, documents: &[&[u32]]) -> Vec<u8> {
        let sequences: Vec<u32> = documents.iter().flat_map(|lens| lens.iter().copied()).collect();
        let mut bytes = b"MMIDIDX\x00\x00".to_vec();
        bytes.extend(1_u64.to_le_bytes());
        bytes.push(code);
        bytes.extend((sequences.len() as u64).to_le_bytes());
        bytes.extend((documents.len() as u64 + 1).to_le_bytes());
        sequences.iter().for_each(|len| bytes.extend(len.to_le_bytes()));
        let mut pointer = 0;
        for len in &sequences {
            bytes.extend(i64::to_le_bytes(pointer));
            pointer += i64::from(*len) * width as i64;
        }
        let mut border = 0_i64;
        bytes.extend(border.to_le_bytes());
        for lens in documents {
            border += lens.len() as i64;
            bytes.extend(border.to_le_bytes());
        }
        bytes
    }

    fn read(bytes: &[u8], data_bytes: u64) -> Result<MegatronIndex, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.idx");
        std::fs::write(&path, bytes).unwrap();
        MegatronIndex::read(&path, data_bytes, &Progress::silent()).map_err(|error| error.to_string())
    }

    proptest! {
        #[test]
        fn documents_begin_where_the_sequences_before_them_end(
            documents in proptest::collection::vec(proptest::collection::vec(0_u32..9, 0..4), 1..20),
            code_and_width in prop_oneof![Just((1, 1)), Just((4, 4)), Just((8, 2))],
        ) {
            let (code, width) = code_and_width;
            let lens: Vec<&[u32]> = documents.iter().map(Vec::as_slice).collect();
            let num_tokens = documents.iter().flatten().map(|len| u64::from(*len)).sum::<u64>();
            let read = read(&index(code, width, &lens), num_tokens * width).unwrap();
            prop_assert_eq!(read.width.bytes() as u64, width);
            let mut starts = Vec::new();
            let (mut before, mut sequences) = (0, 0);
            let all: usize = documents.iter().map(Vec::len).sum();
            for lens in &documents {
                // Documents without sequences at the end begin nowhere.
                if sequences < all {
                    starts.push(before);
                }
                sequences += lens.len();
                before += lens.iter().map(|len| u64::from(*len)).sum::<u64>();
            }
            prop_assert_eq!(read.document_starts, starts);
        }

        #[test]
        fn garbled_and_cut_indices_are_errors_and_never_panics(
            at in 0_usize..90, flip in 1_u8.., len in 0_usize..90,
        ) {
            let sound = index(8, 2, &[&[3, 2], &[4]]);
            prop_assert!(read(&sound[..len.min(sound.len() - 1)], 18).is_err());
            let mut bytes = sound.clone();
            let at = at % sound.len();
            bytes[at] ^= flip;
            // One byte decides between sequences of the same document only.
            let is_inner_border = (34 + 12 * 3 + 8..34 + 12 * 3 + 16).contains(&at);
            prop_assert!(read(&bytes, 18).is_err() || is_inner_border);
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_do() {
        let sound = index(8, 2, &[&[3, 2], &[4]]);
        let message = read(b"0123456789", 20).unwrap_err();
        assert!(
            message.contains("is no index of a Megatron dataset (wrong magic number): name"),
            "{message}"
        );
        let changed = |at: usize, byte: u8| {
            let mut bytes = sound.clone();
            bytes[at] = byte;
            read(&bytes, 18).unwrap_err()
        };
        assert!(changed(9, 2).contains("has version 2 of Megatron's index"), "{}", changed(9, 2));
        assert!(changed(17, 5).contains("has ids of type 5 (int64): build the dataset with uint8"));
        assert!(changed(18, 4).contains("its header promises 4 sequences and 3 document borders"));
        let pointer_of_second = 34 + 12 + 8;
        assert!(
            changed(pointer_of_second + 1, 1)
                .contains("places sequence 1, of 2 ids, at byte 262 of a `.bin`")
        );
        assert!(changed(pointer_of_second, 4).contains("not behind the one before it, at 6"));
        let message = read(&sound, 16).unwrap_err();
        assert!(
            message.contains("places sequence 2, of 4 ids, at byte 10 of a `.bin` with 16 bytes"),
            "{message}"
        );
        let message = read(&sound, 20).unwrap_err();
        assert!(
            message.contains("promises 9 ids of 2 bytes, but the `.bin` beside it has 20 bytes"),
            "{message}"
        );
    }
}
