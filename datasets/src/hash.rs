//! Content hashes: what keys the cache and guards the files.

use std::io::{ErrorKind, Read};
use std::path::Path;

use sha2::{Digest, Sha256};
use switchyard_ground::regular_file;

use crate::error::DatasetError;
use crate::progress::Progress;

/// Bytes read between two looks at the stop flag.
pub(crate) const BLOCK_BYTES: usize = 1 << 20;

/// sha256 of the file at `path`, read in blocks.
///
/// # Errors
/// If it is no regular file or cannot be read, or the stop flag is set.
pub(crate) fn sha256_of_file(path: &Path, progress: &Progress) -> Result<[u8; 32], DatasetError> {
    let mut file = regular_file::open(path).map_err(DatasetError::io("read", path))?;
    let mut hasher = Sha256::new();
    for_each_block(&mut file, path, progress, &mut |block| {
        hasher.update(block);
        Ok(())
    })?;
    Ok(hasher.finalize().into())
}

/// Calls `work` with the content of `file`, which is at `path`, block by block, with a look at the
/// stop flag in between: a file of one block is read before anybody could ask for its end.
pub(crate) fn for_each_block(
    file: &mut dyn Read,
    path: &Path,
    progress: &Progress,
    work: &mut dyn FnMut(&[u8]) -> Result<(), DatasetError>,
) -> Result<(), DatasetError> {
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(num_bytes) => {
                work(&block[..num_bytes])?;
                if num_bytes == BLOCK_BYTES {
                    progress.check()?;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(DatasetError::io("read", path)(error)),
        }
    }
}
