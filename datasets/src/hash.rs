//! Content hashes: what keys the cache and guards the files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::DatasetError;

/// sha256 of the file at `path`, read in blocks.
pub(crate) fn sha256_of_file(path: &Path) -> Result<[u8; 32], DatasetError> {
    let mut file = File::open(path).map_err(DatasetError::io("read", path))?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; 1 << 16];
    loop {
        match file.read(&mut block).map_err(DatasetError::io("read", path))? {
            0 => return Ok(hasher.finalize().into()),
            num_bytes => hasher.update(&block[..num_bytes]),
        }
    }
}

/// `bytes` in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
